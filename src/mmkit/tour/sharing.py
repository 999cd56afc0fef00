"""Section: private against shared, between two processes."""

from __future__ import annotations

import os
from collections.abc import Callable

from mmkit.flags import MapFlag, Prot
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.company import in_a_child, scratch_file, scratch_file_python
from mmkit.tour.engine import Section, Stage, scene
from mmkit.tour.looking import permissions
from mmkit.tour.pictures import Strip, strip

__all__ = ["SECTION"]

_PAGES = 4
_LENGTH = _PAGES * PAGE_SIZE
_MIDDLE = PAGE_SIZE


@scene("Private: the child writes, and the parent sees nothing of it")
def private_memory(stage: Stage) -> None:
    """Fork with private memory: the child's changes are its own."""
    with Region.anonymous(_LENGTH) as region:
        _fork_and_write(stage, region, "PRIVATE", sees=b"old")


@scene("Shared: the child writes, and the parent sees it")
def shared_memory(stage: Stage) -> None:
    """Fork with shared memory: both see one memory."""
    with Region.anonymous(_LENGTH, shared=True) as region:
        _fork_and_write(stage, region, "SHARED", sees=b"new")


def _fork_and_write(stage: Stage, region: Region, kind: str, *, sees: bytes) -> None:
    region[0:3] = region[_MIDDLE : _MIDDLE + 3] = b"old"
    with stage.step() as step:
        before = strip("parent, before", region, holds=True)
        shared = ", shared=True" if kind == "SHARED" else ""
        step.call(
            "mmap",
            "NULL",
            _LENGTH,
            Prot.READ | Prot.WRITE,
            f"MAP_{kind}|MAP_ANONYMOUS",
            -1,
            0,
            assign="p",
            python=f"region = Region.anonymous({_LENGTH}{shared})",
        )
        step.answer(region.address)
        step.code(
            f'memcpy(p, "old", 3); memcpy(p + {_MIDDLE}, "old", 3);',
            f'region[0:3] = region[{_MIDDLE}:{_MIDDLE + 3}] = b"old"',
        )
        step.say("not called: two stores")
        step.call("fork", assign="child", python="child = os.fork()")
        child, in_child = in_a_child(_writes_new(region))
        step.answer(child, ", and 0 in the child, which has the same addresses")
        step.code(
            f'if (child == 0) memcpy(p + {_MIDDLE}, "new", 3);',
            f'if child == 0: region[{_MIDDLE}:{_MIDDLE + 3}] = b"new"',
        )
        step.say("not called: a store, in the child")
        step.show(before, in_child, strip("parent, after", region, holds=True))
        seen = region[_MIDDLE : _MIDDLE + 3]
        step.check(
            f"/proc/self/maps: {permissions(region.address)}",
            permissions(region.address)[3] == kind[0].lower(),
        )
        step.check(
            f"the child saw {in_child.holds[1]!r}, the parent sees {seen.decode()!r}",
            in_child.holds[1] == "new" and seen == sees,
        )


def _writes_new(region: Region) -> Callable[[], tuple[int, Strip]]:
    def work() -> tuple[int, Strip]:
        region[0]  # what the parent wrote is there: look at it
        region[_MIDDLE : _MIDDLE + 3] = b"new"
        return os.getpid(), strip("child, after", region, holds=True)

    return work


@scene("A private file mapping: copied on write, the file stays as it was")
def private_file(stage: Stage) -> None:
    """Map a file privately: changes stay here, and the file stays as it was."""
    pages = (b"old" + bytes(PAGE_SIZE - 3)) * _PAGES
    with scratch_file(pages) as fd, Region.file(fd, mode="c") as region, stage.step() as step:
        step.prepare(*scratch_file_python(f"(b'old' + bytes({PAGE_SIZE - 3})) * {_PAGES}"))
        flags = MapFlag.PRIVATE
        prot = Prot.READ | Prot.WRITE
        step.call(
            "mmap",
            "NULL",
            _LENGTH,
            prot,
            flags,
            "fd",
            0,
            assign="p",
            python='region = Region.file(fd, mode="c")',
        )
        step.answer(region.address)
        step.code(f"x = p[0] + p[{_MIDDLE}];", f"region[0], region[{_MIDDLE}]")
        region[0], region[_MIDDLE]
        step.say("not called: two loads, which bring pages of the file in")
        before = strip("before the store", region, holds=True)
        step.code(f'memcpy(p + {_MIDDLE}, "new", 3);', f'region[{_MIDDLE}:{_MIDDLE + 3}] = b"new"')
        region[_MIDDLE : _MIDDLE + 3] = b"new"
        step.say("not called: a page fault, in which the kernel copies the page")
        step.show(before, strip("after", region, holds=True))
        in_file = os.pread(fd, 3, _MIDDLE)
        step.check(
            f"memory holds {region[_MIDDLE : _MIDDLE + 3]!r}, the file {in_file!r}",
            in_file == b"old" and region[_MIDDLE : _MIDDLE + 3] == b"new",
        )


SECTION = Section(
    key="sharing",
    title="Private or shared, seen by two processes",
    introduction=(
        "fork() makes a second process that goes on from the same point with the same memory. Whether "
        "the two then see each other's changes was decided when the memory was mapped: private, or shared."
    ),
    scenes=(private_memory, shared_memory, private_file),
)
