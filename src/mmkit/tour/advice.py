"""Section: telling the kernel what will be needed, and what will not."""

from __future__ import annotations

import errno
import os
import time

from mmkit.flags import Advice
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.company import scratch_file
from mmkit.tour.engine import Section, Stage
from mmkit.tour.pictures import strip

__all__ = ["SECTION"]

_PAGES = 8
_LENGTH = _PAGES * PAGE_SIZE


def a_file(stage: Stage) -> None:
    """Follow the pages of a file from disk to the cache, into the process and out of it."""
    with scratch_file(bytes(_LENGTH), on_disk=True) as fd, Region.file(fd) as region:
        _one_page(stage, region, fd)
        _will_need(stage, region)
        _populate(stage, region)
        _do_not_need(stage, region)


def _one_page(stage: Stage, region: Region, fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with stage.step("RANDOM: read what is touched, and nothing around it") as step:
        step.prepare(
            'fd = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR)',
            f"os.write(fd, bytes({_LENGTH}));  os.fsync(fd);  region = Region.file(fd)",
            "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)",
        )
        before = strip("before: nothing read from disk", region)
        step.call("madvise", "p", _LENGTH, Advice.RANDOM, python="region.advise(Advice.RANDOM)")
        region.advise(Advice.RANDOM)
        step.answer(0)
        was_empty = region.cached() == 0
        step.code(f"(void)*(volatile char *)(p + {3 * PAGE_SIZE});", f"region[{3 * PAGE_SIZE}]")
        step.answer("not called: a load, and a page fault")
        region[3 * PAGE_SIZE]
        step.show(before, strip("after a touch of the fourth page", region))
        # Other file systems keep everything in memory, or read more than a page at the least.
        if was_empty and os.fstatvfs(fd).f_bsize <= PAGE_SIZE:
            step.check("mincore(), what of a file is in memory: one page", region.cached() == PAGE_SIZE)
        else:
            step.check(
                f"mincore(), what of a file is in memory: {region.cached() // PAGE_SIZE} pages, "
                "as this file system has it",
                region.cached() > 0,
            )


def _will_need(stage: Stage, region: Region) -> None:
    with stage.step("WILLNEED: read it all from disk, without waiting") as step:
        before, resident = strip("before", region), region.resident()
        step.call("madvise", "p", _LENGTH, Advice.WILLNEED, python="region.advise(Advice.WILLNEED)")
        region.advise(Advice.WILLNEED)
        step.answer(0)
        _wait_until_cached(region)
        step.show(before, strip("after a moment", region))
        step.check(
            f"mincore: {region.cached() // PAGE_SIZE} pages in the kernel's cache", region.cached() == _LENGTH
        )
        step.check(
            f"pagemap: {resident // PAGE_SIZE} in this process, as before", region.resident() == resident
        )


def _wait_until_cached(region: Region) -> None:
    deadline = time.monotonic() + 2
    while region.cached() < len(region) and time.monotonic() < deadline:
        time.sleep(0.001)


def _populate(stage: Stage, region: Region) -> None:
    with stage.step(
        "POPULATE_READ: into this process, before anyone waits for it", may_refuse=(errno.EINVAL,)
    ) as step:
        before = strip("before", region)
        step.call("madvise", "p", _LENGTH, Advice.POPULATE_READ, python="region.populate()")
        region.populate()
        step.answer(0)
        step.show(before, strip("after", region))
        step.check("pagemap: all of it in this process", region.resident() == _LENGTH)


def _do_not_need(stage: Stage, region: Region) -> None:
    with stage.step("DONTNEED on a file: this process lets go, the cache keeps it") as step:
        before = strip("before", region)
        step.call("madvise", "p", _LENGTH, Advice.DONTNEED, python="region.discard()")
        region.discard()
        step.answer(0)
        step.show(before, strip("after", region))
        step.check("pagemap: none of it in this process", region.resident() == 0)
        step.check(
            f"mincore: {region.cached() // PAGE_SIZE} pages in the kernel's cache", region.cached() == _LENGTH
        )


def without_a_file(stage: Stage) -> None:
    """Show that the same advice destroys what no file backs."""
    with Region.anonymous(_LENGTH) as region:
        for offset in range(0, _LENGTH, PAGE_SIZE):
            region[offset : offset + 3] = b"abc"
        with stage.step("DONTNEED without a file: the contents are gone") as step:
            step.prepare(f"for at in range(0, {_LENGTH}, {PAGE_SIZE}): region[at:at + 3] = b'abc'")
            before = strip("before", region, holds=True)
            half = _LENGTH // 2
            step.call(
                "madvise",
                "p",
                half,
                Advice.DONTNEED,
                python=f"region.discard(0, {half})   # advise() takes hints only",
            )
            region.discard(0, half)
            step.answer(0)
            step.show(before, strip("after", region, holds=True))
            step.check(
                f"pagemap: {region.resident() // PAGE_SIZE} pages left in RAM", region.resident() == half
            )
            step.check(f"region[0:3] is now {region[0:3]!r}: zeros", region[0:3] == bytes(3))


SECTION = Section(
    key="advice",
    title="Telling the kernel what comes: madvise",
    introduction=(
        "The kernel guesses what a program will read next. Advice spares it the guess: read this soon, "
        "this not at all. Some advice is more than a hint, and gives memory back."
    ),
    scenes=(a_file, without_a_file),
)
