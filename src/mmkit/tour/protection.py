"""Section: what may be done with memory, changed page by page."""

from __future__ import annotations

from collections.abc import Callable

from mmkit import maps
from mmkit.errors import MemoryFault
from mmkit.flags import Prot
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.engine import Section, Stage, Step
from mmkit.tour.pictures import permissions, strip

__all__ = ["SECTION"]

_PAGES = 8
_HALF = _PAGES // 2 * PAGE_SIZE
_READ_WRITE = Prot.READ | Prot.WRITE


def stages(stage: Stage) -> None:
    """Go from read-write to read-only to nothing, and back."""
    with Region.anonymous(_PAGES * PAGE_SIZE) as region:
        for offset in range(0, len(region), PAGE_SIZE):
            region[offset : offset + 3] = b"abc"
        _protect(stage, region, Prot.READ, "Half of it becomes read-only", "r--p", _store_is_refused)
        _protect(
            stage, region, Prot.NONE, "Then nothing may be done with it at all", "---p", _load_is_refused
        )
        _protect(
            stage,
            region,
            _READ_WRITE,
            "And back: protection takes access, never contents",
            "rw-p",
            _contents_are_there,
        )


def _protect(
    stage: Stage, region: Region, prot: Prot, title: str, expected: str, also: Callable[[Step, Region], None]
) -> None:
    with stage.step(title) as step:
        if prot == Prot.READ:
            step.prepare(f"for at in range(0, {len(region)}, {PAGE_SIZE}): region[at:at + 3] = b'abc'")
        before = strip("before", region, holds=True)
        names = " | ".join(f"Prot.{name}" for name in (prot.name or "").split("|"))
        step.call("mprotect", "p", _HALF, prot, python=f"region.protect({names}, 0, {_HALF})")
        covered = region.protect(prot, 0, _HALF)
        step.answer(0, f"{covered}, the offset and length it covered" if prot == Prot.READ else None)
        step.show(before, strip("after", region, holds=True))
        first, second = permissions(region.address), permissions(region.address + _HALF)
        step.check(
            f"/proc/self/maps: {first} for the first half, {second} for the second",
            (first, second) == (expected, "rw-p"),
        )
        also(step, region)


def _store_is_refused(step: Step, region: Region) -> None:
    area = maps.find(region.address)
    step.check(
        "one area has become two: the kernel keeps one entry for each stretch",
        area is not None and area.end == region.address + _HALF,
    )
    try:
        region[0] = 1
    except MemoryFault as fault:
        step.check(f"region[0] = 1 raises MemoryFault: {fault.reason}", True)
    else:
        step.check("region[0] = 1 is refused", False)


def _load_is_refused(step: Step, region: Region) -> None:
    try:
        region[0]
    except MemoryFault as fault:
        step.check(f"region[0] raises MemoryFault: {fault.reason}", True)
    else:
        step.check("region[0] is refused", False)


def _contents_are_there(step: Step, region: Region) -> None:
    step.check(f"region[0:3] is {region[0:3]!r}, as it was", region[0:3] == b"abc")


SECTION = Section(
    key="protection",
    title="What may be done with memory: mprotect",
    introduction=(
        "Each page says what may be done with it: read, write, execute, or nothing. The processor holds "
        "every access to it: in C a forbidden one ends the process with a signal. A Region knows what "
        "protect() has set, and raises MemoryFault before it comes to that. What it cannot know (a guard "
        "page, a file that somebody cut) ends the process in this version, as in C."
    ),
    scenes=(stages,),
)
