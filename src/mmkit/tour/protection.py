"""Section: what may be done with memory, and what becomes of who does something else."""

from __future__ import annotations

import os

from mmkit import linux, maps
from mmkit.faults import peek
from mmkit.flags import Prot
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.company import scratch_file, scratch_file_python
from mmkit.tour.engine import Section, Stage, scene
from mmkit.tour.faulting import fault_twice
from mmkit.tour.looking import permissions
from mmkit.tour.pictures import strip
from mmkit.tour.step import Step
from mmkit.wording import flag_names

__all__ = ["SECTION"]

_PAGES = 8
_LENGTH = _PAGES * PAGE_SIZE
_HALF = _LENGTH // 2
_READ_WRITE = Prot.READ | Prot.WRITE
_LAST = _LENGTH - PAGE_SIZE


@scene(
    "Half of it becomes read-only",
    "A store there: the processor stops it, and the kernel sends a signal",
    "Then nothing may be done with it at all",
    "Now a load is stopped as well",
    "And back: protection takes access, never contents",
)
def stages(stage: Stage) -> None:
    """Go from read-write to read-only to nothing, and back."""
    with Region.anonymous(_LENGTH) as region:
        _fill(region)
        _read_only(stage, region)
        _nothing(stage, region)
        with stage.step() as step:
            _protect(step, region, _READ_WRITE, "rw-p")
            step.check(f"region[0:3] is {region[0:3]!r}, as it was", region[0:3] == b"abc")


def _fill(region: Region) -> None:
    for offset in range(0, len(region), PAGE_SIZE):
        region[offset : offset + 3] = b"abc"


_REGION = f"region = Region.anonymous({_LENGTH})"
_FILLED = f"for at in range(0, {_LENGTH}, {PAGE_SIZE}): region[at:at + 3] = b'abc'"


def _read_only(stage: Stage, region: Region) -> None:
    with stage.step() as step:
        step.prepare(_REGION, _FILLED)
        _protect(step, region, Prot.READ, "r--p")
        area = maps.find(region.address)
        step.check(
            "one area has become two: the kernel keeps one entry for each stretch",
            area is not None and area.end == region.address + _HALF,
        )
    with stage.step() as step:
        fault_twice(
            step,
            "p[0] = 1;",
            "region[0] = 1",
            address=region.address,
            access="write",
            touch=lambda: region.__setitem__(0, 1),
            codes=("SEGV_ACCERR",),
            reasons=("protection",),
        )
        step.check(f"region[0:3] is still {region[0:3]!r}", region[0:3] == b"abc")
        step.note("mmkit did not have to try: the region knows what protect() has set")


def _nothing(stage: Stage, region: Region) -> None:
    with stage.step() as step:
        _protect(step, region, Prot.NONE, "---p")
    with stage.step() as step:
        fault_twice(
            step,
            "x = p[0];",
            "region[0]",
            address=region.address,
            access="read",
            touch=lambda: region[0],
            codes=("SEGV_ACCERR",),
            reasons=("protection",),
        )


def _protect(step: Step, region: Region, prot: Prot, expected: str) -> None:
    before = strip("before", region, holds=True)
    names = " | ".join(f"Prot.{name}" for name in (prot.name or "").split("|"))
    step.call("mprotect", "p", _HALF, prot, python=f"region.protect({names}, 0, {_HALF})")
    covered = region.protect(prot, 0, _HALF)
    step.answer(0, result=f"{covered}, the offset and length it covered" if prot == Prot.READ else "")
    step.show(before, strip("after", region, holds=True))
    first, second = permissions(region.address), permissions(region.address + _HALF)
    step.check(
        f"/proc/self/maps: {first} for the first half, {second} for the second",
        (first, second) == (expected, "rw-p"),
    )


@scene("Protected behind mmkit's back: the signal itself is caught")
def behind_its_back(stage: Stage) -> None:
    """Take access from a page without telling the region."""
    with Region.anonymous(_LENGTH) as region, stage.step() as step:
        _fill(region)
        step.prepare(_REGION, _FILLED)
        before = strip("before", region, holds=True)
        step.call(
            "mprotect",
            f"p + {_LAST}",
            PAGE_SIZE,
            Prot.NONE,
            python=f"linux.mprotect(region.address + {_LAST}, {PAGE_SIZE}, Prot.NONE)",
        )
        linux.mprotect(region.address + _LAST, PAGE_SIZE, Prot.NONE)
        step.answer(0)
        step.show(before, strip("after", region, holds=True))
        fault_twice(
            step,
            f"x = p[{_LAST}];",
            f"region[{_LAST}]",
            address=region.address + _LAST,
            access="read",
            touch=lambda: region[_LAST],
            codes=("SEGV_ACCERR",),
            reasons=("protection",),
        )
        step.check(
            f"region.prot is still {flag_names(region.prot)}: nobody told it", region.prot == _READ_WRITE
        )


@scene("Address 0, NULL: nothing is mapped there")
def nowhere(stage: Stage) -> None:
    """Follow a null pointer."""
    with stage.step() as step:
        step.check("/proc/self/maps: no area begins there", permissions(0) == "")
        fault_twice(
            step,
            "x = *(char *)NULL;",
            "peek(0, 1)",
            address=0,
            access="read",
            touch=lambda: peek(0, 1),
            codes=("SEGV_MAPERR",),
            reasons=("unmapped or guard",),
        )


@scene("A guard page: allowed by the map, and stopped all the same")
def guarded(stage: Stage) -> None:
    """Run into a guard."""
    with Region.anonymous(_LENGTH) as region, stage.step() as step:
        step.prepare(_REGION, f"region.guard({_LAST}, {PAGE_SIZE})   # section pages shows how it is done")
        region.guard(_LAST, PAGE_SIZE)
        fault_twice(
            step,
            f"p[{_LAST}] = 1;",
            f"region[{_LAST}] = 1",
            address=region.address + _LAST,
            access="write",
            touch=lambda: region.__setitem__(_LAST, 1),
            # Before Linux 6.13 it is a protection.
            codes=("SEGV_MAPERR", "SEGV_ACCERR"),
            reasons=("unmapped or guard", "protection"),
        )


@scene("A file cut short under its mapping: another signal, SIGBUS")
def cut_short(stage: Stage) -> None:
    """Touch what a file had when it was mapped."""
    with scratch_file(bytes(_LENGTH)) as fd, Region.file(fd) as region, stage.step() as step:
        step.prepare(*scratch_file_python(f"bytes({_LENGTH})"), "region = Region.file(fd)")
        before = strip("before", region)
        step.call("ftruncate", "fd", _HALF, python=f"os.ftruncate(fd, {_HALF})")
        os.ftruncate(fd, _HALF)
        step.answer(0)
        step.show(before, strip("after", region))
        fault_twice(
            step,
            f"x = p[{_HALF}];",
            f"region[{_HALF}]",
            address=region.address + _HALF,
            access="read",
            touch=lambda: region[_HALF],
            codes=("BUS_ADRERR",),
            reasons=("beyond end of file",),
        )
        perms = permissions(region.address + _HALF)
        step.check(f"/proc/self/maps: {perms}, as if nothing had happened", perms[:1] == "r")


SECTION = Section(
    key="protection",
    title="What may be done with memory: mprotect",
    introduction=(
        "Each page says what may be done with it: read, write, execute, or nothing. The processor holds "
        "every access to it, and the kernel ends a program that breaks it with a signal. mmkit raises "
        "MemoryFault instead: for what a Region knows beforehand, and for what it cannot know. Each access "
        "is made twice here: by a forked child as C makes it, which dies of it, and by mmkit."
    ),
    scenes=(stages, behind_its_back, nowhere, guarded, cut_short),
)
