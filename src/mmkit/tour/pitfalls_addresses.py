"""Scenes of pitfalls: addresses that are none, are not any more, or are nobody's."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import mmkit
from mmkit import linux, maps
from mmkit.errors import OutOfMemory, SyscallError
from mmkit.faults import peek, poke
from mmkit.flags import MapFlag, Prot
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.engine import Stage, scene
from mmkit.tour.faulting import fault_twice
from mmkit.tour.looking import permissions
from mmkit.tour.pictures import strip
from mmkit.tour.step import Step

__all__ = ["after_munmap", "failure_is_not_null", "forgotten", "part_of_it"]

_PAGES = 8
_LENGTH = _PAGES * PAGE_SIZE
_READ_WRITE = Prot.READ | Prot.WRITE
_FLAGS = MapFlag.PRIVATE | MapFlag.ANONYMOUS
_PYTHON_FLAGS = "Prot.READ | Prot.WRITE, MapFlag.PRIVATE | MapFlag.ANONYMOUS"


@scene("Mistake 1: a failure not noticed. mmap fails with -1, not with NULL")
def failure_is_not_null(stage: Stage) -> None:
    """Ask for more than there is, and use what came back."""
    length, failed = 1 << 62, (1 << 64) - 1
    with stage.step() as step:
        step.call(
            "mmap",
            "NULL",
            "1UL << 62",
            _READ_WRITE,
            _FLAGS,
            -1,
            0,
            assign="p",
            python=f"p = linux.mmap(0, 1 << 62, {_PYTHON_FLAGS})",
        )
        try:
            linux.mmap(0, length, _READ_WRITE, _FLAGS)
        except SyscallError as error:
            step.refused(error)
            step.check("mmkit raises, and `except OutOfMemory` catches it", isinstance(error, OutOfMemory))
        step.check("C has MAP_FAILED, (void *)-1, instead of NULL", bool(step.calls[-1].errno))
        fault_twice(
            step,
            "if (p != NULL) p[0] = 1;",
            f"poke({failed:#x}, b'\\x01')",
            address=failed,
            access="write",
            touch=lambda: poke(failed, b"\x01"),
            codes=("SEGV_MAPERR",),
            reasons=("unmapped or guard",),
        )


@scene(
    "Mistake 4: used after munmap. A fault, if you are lucky",
    "Mistake 4, worse: by now it is somebody else's memory",
    "Mistake 4, prevented: a closed Region keeps its addresses",
)
def after_munmap(stage: Stage) -> None:
    """Use addresses that were given back."""
    with _mapped() as (address, ours):
        hole, length = address + 2 * PAGE_SIZE, 4 * PAGE_SIZE
        with stage.step() as step:
            step.prepare(*_MAPPED)
            before = strip("before", address, _PAGES, holds=True)
            step.call(
                "munmap",
                f"p + {2 * PAGE_SIZE}",
                length,
                python=f"linux.munmap(p + {2 * PAGE_SIZE}, {length})",
            )
            linux.munmap(hole, length)
            ours[:] = [(address, 2 * PAGE_SIZE), (hole + length, 2 * PAGE_SIZE)]
            step.answer(0)
            step.show(before, strip("after", address, _PAGES, holds=True))
            fault_twice(
                step,
                f"x = p[{2 * PAGE_SIZE}];",
                f"peek(p + {2 * PAGE_SIZE}, 1)",
                address=hole,
                access="read",
                touch=lambda: peek(hole, 1),
                codes=("SEGV_MAPERR",),
                reasons=("unmapped or guard",),
            )
        with stage.step() as step:
            ours.append((_somebody_else(step, address, hole, length), length))
    with stage.step() as step:
        _closed(step)


def _somebody_else(step: Step, address: int, hole: int, length: int) -> int:
    before = strip("before", address, _PAGES, holds=True)
    step.call(
        "mmap",
        f"p + {2 * PAGE_SIZE}",
        length,
        _READ_WRITE,
        _FLAGS,
        -1,
        0,
        assign="q",
        python=f"q = linux.mmap(p + {2 * PAGE_SIZE}, {length}, {_PYTHON_FLAGS})",
    )
    theirs = linux.mmap(hole, length, _READ_WRITE, _FLAGS)
    step.answer(theirs, ", as was wished; without a wish it may be there as well")
    step.code('memcpy(q, "new", 3);', 'poke(q, b"new")')
    poke(theirs, b"new")
    step.say("not called: a store, by the new owner")
    step.code(f"memcpy(seen, p + {2 * PAGE_SIZE}, 3);", f"seen = peek(p + {2 * PAGE_SIZE}, 3)")
    seen = peek(hole, 3)
    step.say(f"not called: a load through the old pointer, of {seen!r}, and no fault")
    step.show(before, strip("after", address, _PAGES, holds=True))
    step.check(f"the old pointer reads {seen!r}, which it never wrote", seen == b"new")
    return theirs


def _closed(step: Step) -> None:
    region = Region.anonymous(_LENGTH)
    address = region.address
    region[0:3] = b"abc"
    step.prepare(f"region = Region.anonymous({_LENGTH});  p = region.address", "region[0:3] = b'abc'")
    before = strip("before", address, _PAGES, holds=True)
    step.call("munmap", "p", _LENGTH, python="region.close()")
    region.close()
    step.answer(0, ", and the addresses are held without access: a pointer was handed out")
    step.call(
        "mmap",
        "p",
        _LENGTH,
        _READ_WRITE,
        _FLAGS,
        -1,
        0,
        assign="q",
        python=f"q = linux.mmap(p, {_LENGTH}, {_PYTHON_FLAGS})",
    )
    theirs = linux.mmap(address, _LENGTH, _READ_WRITE, _FLAGS)
    step.answer(theirs, ", elsewhere")
    step.show(before, strip("after", address, _PAGES, holds=True))
    step.check("a new mapping that wished to be there went elsewhere", theirs != address)
    linux.munmap(theirs, _LENGTH)
    fault_twice(
        step,
        "x = p[0];",
        "peek(p, 1)",
        address=address,
        access="read",
        touch=lambda: peek(address, 1),
        codes=("SEGV_ACCERR",),
        reasons=("protection",),
    )


@scene(
    "Mistake 6: memory forgotten. Nobody has the address, and it stays",
    "Mistake 6, prevented: a forgotten Region gives its memory back",
)
def forgotten(stage: Stage) -> None:
    """Lose a mapping, and a region."""
    with stage.step() as step, _mapped() as (address, _):
        step.prepare(*_MAPPED)
        step.code("p = NULL;", "del p")
        step.say("not called: who forgets an address does not tell")
        perms = permissions(address)
        step.check(f"/proc/self/maps: {perms}, mapped until the process ends", perms == "rw-p")
    with stage.step() as step:
        step.prepare(f'region = Region.memfd({_LENGTH}, name="lost")')
        region = Region.memfd(_LENGTH, name="lost")
        step.check("mmkit.regions(), the list of what is open, has the region", region in mmkit.regions())
        step.call("munmap", "p", _LENGTH, python="del region")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del region
        told = [str(each.message) for each in caught if each.category is ResourceWarning]
        # A warning holds on to what it is about.
        caught.clear()
        step.answer(0, ": a region calls it as it dies. In C nobody does")
        step.check("ResourceWarning: unclosed <Region 'lost' ...>", any("'lost'" in each for each in told))
        still = any(b"memfd:lost" in area.path for area in maps.read())
        step.check("/proc/self/maps: 'lost' is mapped nowhere any more", not still)


@scene("Mistake 6, again: a wrong length. munmap of a part leaves the rest")
def part_of_it(stage: Stage) -> None:
    """Give back less than was taken, and a little more than was said."""
    with _mapped() as (address, ours), stage.step() as step:
        step.prepare(*_MAPPED)
        before = strip("before", address, _PAGES, holds=True)
        first, length = address + PAGE_SIZE, 4 * PAGE_SIZE + 1
        rest = first + 5 * PAGE_SIZE
        step.call("munmap", f"p + {PAGE_SIZE}", length, python=f"linux.munmap(p + {PAGE_SIZE}, {length})")
        linux.munmap(first, length)
        ours[:] = [(address, PAGE_SIZE), (rest, 2 * PAGE_SIZE)]
        step.answer(0)
        step.show(before, strip("after", address, _PAGES, holds=True))
        step.check(
            f"{length} bytes were 5 pages: a length is rounded up",
            permissions(rest - PAGE_SIZE) == "" and permissions(rest) != "",
        )
        step.check(
            f"the rest, before and behind, holds {peek(rest, 3)!r} as it did",
            peek(address, 3) == peek(rest, 3) == b"abc",
        )


_MAPPED = (
    f"p = linux.mmap(0, {_LENGTH}, {_PYTHON_FLAGS})",
    f"for at in range(0, {_LENGTH}, {PAGE_SIZE}): poke(p + at, b'abc')",
)


@contextlib.contextmanager
def _mapped() -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Map eight pages as C does.

    Yields
    ------
    address : int
    ours : list of (int, int)
        Ranges to be unmapped at the end. Who unmaps some before takes them out: others may have moved in.
    """
    address = linux.mmap(0, _LENGTH, _READ_WRITE, _FLAGS)
    ours = [(address, _LENGTH)]
    try:
        for offset in range(0, _LENGTH, PAGE_SIZE):
            poke(address + offset, b"abc")
        yield address, ours
    finally:
        for start, length in ours:
            linux.munmap(start, length)
