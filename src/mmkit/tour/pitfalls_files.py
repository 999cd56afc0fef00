"""Scenes of pitfalls: files that end, begin, or are written where one did not think they would."""

from __future__ import annotations

import os

from mmkit import linux
from mmkit.errors import SyscallError
from mmkit.faults import peek, poke
from mmkit.flags import MapFlag, Prot, SyncFlag
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.company import scratch_file, scratch_file_python
from mmkit.tour.engine import Stage, scene
from mmkit.tour.faulting import fault_twice
from mmkit.tour.looking import to_be_written
from mmkit.tour.pictures import strip
from mmkit.tour.step import Step

__all__ = ["beyond_the_end", "offset_in_a_page", "who_sees_it"]

_READ_WRITE = Prot.READ | Prot.WRITE


@scene("Mistake 2: an offset within a page. A Region takes any")
def offset_in_a_page(stage: Stage) -> None:
    """Map a file from its hundredth byte on."""
    with scratch_file(b"." * 100 + b"here" + b"." * 100) as fd, stage.step() as step:
        step.prepare(*scratch_file_python("b'.' * 100 + b'here' + b'.' * 100"))
        step.call(
            "mmap",
            "NULL",
            50,
            Prot.READ,
            MapFlag.SHARED,
            "fd",
            100,
            assign="p",
            python="linux.mmap(0, 50, Prot.READ, MapFlag.SHARED, fd, 100)",
        )
        try:
            linux.munmap(linux.mmap(0, 50, Prot.READ, MapFlag.SHARED, fd, 100), 50)
        except SyscallError as error:
            step.refused(error)
        step.check("EINVAL: an offset is a multiple of the page size", step.calls[-1].errno == "EINVAL")
        step.call(
            "mmap",
            "NULL",
            150,
            Prot.READ,
            MapFlag.SHARED,
            "fd",
            0,
            assign="p",
            python="region = Region.file(fd, length=50, offset=100)",
        )
        with Region.file(fd, length=50, offset=100) as region:
            address, here = region.address, region[0:4]
            step.answer(address - 100, f", and the data begin at p + 100: region.address is {address:#x}")
            step.check(f"region[0:4] is {here!r}, as at offset 100 of the file", here == b"here")


_MAPPED = 4 * PAGE_SIZE
_SIZE = PAGE_SIZE + PAGE_SIZE // 2


@scene(
    "Mistake 3: beyond the end of a file. First zeros, then SIGBUS",
    "Mistake 3, again: somebody makes the file shorter",
)
def beyond_the_end(stage: Stage) -> None:
    """Map more than a file has, and then some of that goes too."""
    with scratch_file(b"abc".ljust(PAGE_SIZE, b"\0") * 2) as fd:
        os.ftruncate(fd, _SIZE)
        address = linux.mmap(0, _MAPPED, _READ_WRITE, MapFlag.SHARED, fd, 0)
        try:
            with stage.step() as step:
                _read_on(step, fd, address)
            with stage.step() as step:
                _made_shorter(step, fd, address)
        finally:
            linux.munmap(address, _MAPPED)


def _read_on(step: Step, fd: int, address: int) -> None:
    step.prepare(*scratch_file_python(f"(b'abc' + bytes({PAGE_SIZE - 3})) * 2"), f"os.ftruncate(fd, {_SIZE})")
    step.call(
        "mmap",
        "NULL",
        _MAPPED,
        _READ_WRITE,
        MapFlag.SHARED,
        "fd",
        0,
        assign="p",
        python=f"p = linux.mmap(0, {_MAPPED}, Prot.READ | Prot.WRITE, MapFlag.SHARED, fd, 0)",
    )
    step.answer(address, f": {_MAPPED} bytes of a file that has {_SIZE}")
    step.code(f'memcpy(p + {_SIZE}, "lost", 4);', f'poke(p + {_SIZE}, b"lost")')
    poke(address + _SIZE, b"lost")
    step.say("not called: a store behind the end, but in the last page of the file")
    in_file = os.pread(fd, _MAPPED, 0)
    step.show(strip("now", address, _MAPPED // PAGE_SIZE, holds=True))
    step.check(
        f"read() of the file gives {len(in_file)} bytes, without it",
        len(in_file) == _SIZE and b"lost" not in in_file,
    )
    behind = 2 * PAGE_SIZE
    fault_twice(
        step,
        f"x = p[{behind}];",
        f"peek(p + {behind}, 1)",
        address=address + behind,
        access="read",
        touch=lambda: peek(address + behind, 1),
        codes=("BUS_ADRERR",),
        reasons=(_NOT_KNOWN_WHY,),
    )


#: Outside any region mmkit knows no file whose size it could ask for.
_NOT_KNOWN_WHY = "not backed"


def _made_shorter(step: Step, fd: int, address: int) -> None:
    before = strip("before", address, _MAPPED // PAGE_SIZE, holds=True)
    step.call("ftruncate", "fd", PAGE_SIZE, python=f"os.ftruncate(fd, {PAGE_SIZE})")
    os.ftruncate(fd, PAGE_SIZE)
    step.answer(0, ", by anybody who may write the file")
    step.show(before, strip("after", address, _MAPPED // PAGE_SIZE, holds=True))
    fault_twice(
        step,
        f"x = p[{PAGE_SIZE}];",
        f"peek(p + {PAGE_SIZE}, 1)",
        address=address + PAGE_SIZE,
        access="read",
        touch=lambda: peek(address + PAGE_SIZE, 1),
        codes=("BUS_ADRERR",),
        reasons=(_NOT_KNOWN_WHY,),
    )


_LENGTH = 4 * PAGE_SIZE


@scene(
    "Mistake 5: changes that never arrive. A private mapping keeps them",
    "Mistake 5, again: in the cache at once, on disk after msync",
)
def who_sees_it(stage: Stage) -> None:
    """Change a file through a private mapping, and through a shared one."""
    with scratch_file(b"old".ljust(PAGE_SIZE, b"\0") * 4, on_disk=True) as fd:
        with stage.step() as step, Region.file(fd, mode="c") as region:
            step.prepare(*scratch_file_python(f"(b'old' + bytes({PAGE_SIZE - 3})) * 4", on_disk=True))
            flags, python = MapFlag.PRIVATE, 'region = Region.file(fd, mode="c")'
            _map_and_store(step, region, flags, python)
            in_file = os.pread(fd, 3, 0)
            step.check(f"memory holds {region[0:3]!r}, the file {in_file!r}", in_file == b"old")
            step.call("msync", "p", _LENGTH, SyncFlag.SYNC, python="region.flush()")
            region.flush()
            step.answer(0, ", and nothing was written: there is nothing to write")
            in_file = os.pread(fd, 3, 0)
            step.check(f"the file holds {in_file!r} after msync, too", in_file == b"old")
        with stage.step() as step, Region.file(fd, mode="r+") as region:
            _map_and_store(step, region, MapFlag.SHARED, 'region = Region.file(fd, mode="r+")')
            in_file, dirty = os.pread(fd, 3, 0), to_be_written(fd, _LENGTH)
            step.check(f"read() of the file gives {in_file!r} at once", in_file == b"new")
            step.call("msync", "p", _LENGTH, SyncFlag.SYNC, python="region.flush()")
            region.flush()
            step.answer(0)
            if dirty:
                now = to_be_written(fd, _LENGTH)
                step.check(f"cachestat: {now} pages are still to be written to disk", now == 0)
                step.note(
                    f"before msync there were {dirty}. The kernel writes them by itself, half a minute "
                    "later as a rule: what it had no time for, a power cut takes"
                )


def _map_and_store(step: Step, region: Region, flags: MapFlag, python: str) -> None:
    before = strip("before the store", region, holds=True)
    step.call("mmap", "NULL", _LENGTH, _READ_WRITE, flags, "fd", 0, assign="p", python=python)
    step.answer(region.address)
    step.code('memcpy(p, "new", 3);', 'region[0:3] = b"new"')
    region[0:3] = b"new"
    step.say("not called: a store, and a page fault")
    step.show(before, strip("after", region, holds=True))
