"""Section: a file as memory."""

from __future__ import annotations

import os

from mmkit import maps
from mmkit.flags import MapFlag, Prot, SyncFlag
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.company import scratch_file, scratch_file_python
from mmkit.tour.engine import Section, Stage, scene
from mmkit.tour.looking import permissions, to_be_written
from mmkit.tour.pictures import earlier, strip

__all__ = ["SECTION"]

_PAGES = 8
_LENGTH = _PAGES * PAGE_SIZE


@scene(
    f"Map a file of {_PAGES} pages, to read and to write",
    "Write to memory: the file changes",
    "Have it written to disk now, and wait for it",
    "And the other way: write to the file, memory changes",
)
def a_file(stage: Stage) -> None:
    """Map a file, write through the mapping, and see the file change; then the other way round."""
    pages = b"".join(bytes([letter] * 3) + bytes(PAGE_SIZE - 3) for letter in b"abcdefgh")
    areas = maps.read()
    with scratch_file(pages) as fd:
        with stage.step() as step:
            flags, prot = MapFlag.SHARED, Prot.READ | Prot.WRITE
            step.prepare(
                f"pages = [bytes([letter] * 3) + bytes({PAGE_SIZE - 3}) for letter in b'abcdefgh']",
                *scratch_file_python("b''.join(pages)"),
            )
            step.call(
                "mmap",
                "NULL",
                _LENGTH,
                prot,
                flags,
                "fd",
                0,
                assign="p",
                python='region = Region.file(fd, mode="r+")',
            )
            region = Region.file(fd, mode="r+")
            step.answer(region.address)
            step.show(
                earlier("before", areas, region.address, _PAGES),
                strip("after: cached, not yet in here", region, holds=True),
            )
            step.check(
                f"/proc/self/maps: {permissions(region.address)}, s for shared",
                permissions(region.address) == "rw-s",
            )
        with region:
            _write_and_sync(stage, region, fd)
            _change_the_file(stage, region, fd)


def _write_and_sync(stage: Stage, region: Region, fd: int) -> None:
    with stage.step() as step:
        before = strip("before", region, holds=True)
        step.code('memcpy(p, "Hi!", 3);', 'region[0:3] = b"Hi!"')
        region[0:3] = b"Hi!"
        brought = "the page in, and its neighbours" if region.resident() > PAGE_SIZE else "this page in"
        step.say(f"not called: a store. The first touch brings {brought}")
        step.show(before, strip("after", region, holds=True))
        read = os.pread(fd, 3, 0)
        step.check(f"read() of the file gives {read!r}", read == b"Hi!")
    with stage.step() as step:
        dirty = to_be_written(fd, _LENGTH)
        step.call("msync", "p", _LENGTH, SyncFlag.SYNC, python="region.flush()")
        region.flush()
        step.answer(0)
        if dirty:
            left = to_be_written(fd, _LENGTH)
            step.check(f"cachestat: {dirty} pages of the file were to be written, {left} are left", left == 0)
        step.check("the file still holds what memory holds", os.pread(fd, _LENGTH, 0) == region[:])


def _change_the_file(stage: Stage, region: Region, fd: int) -> None:
    for offset in range(0, _LENGTH, PAGE_SIZE):
        region[offset]
    with stage.step() as step:
        step.prepare(f"for offset in range(0, {_LENGTH}, {PAGE_SIZE}): region[offset]")
        before = strip("before", region, holds=True)
        offset = 5 * PAGE_SIZE
        step.call("pwrite", "fd", '"Yo!"', 3, offset, assign="n", python=f'os.pwrite(fd, b"Yo!", {offset})')
        step.answer(os.pwrite(fd, b"Yo!", offset))
        step.show(before, strip("after", region, holds=True))
        step.check(
            f"region[{offset}:{offset + 3}] is {region[offset : offset + 3]!r}",
            region[offset : offset + 3] == b"Yo!",
        )


SECTION = Section(
    key="file",
    title="A file as memory: mmap, msync",
    introduction=(
        "A file can be mapped: its bytes then stand in memory, to be read and changed like a bytearray, "
        "without read() and write(). The kernel brings pages in when they are touched, and writes changed "
        "ones back. An open file goes by a number, its descriptor: fd in what follows."
    ),
    scenes=(a_file,),
)
