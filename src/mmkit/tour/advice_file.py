"""Scene of advice: a file larger than the read-ahead, from disk to the cache and into the process."""

from __future__ import annotations

import errno
import os
import time

from mmkit.flags import Advice
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.company import scratch_file, scratch_file_python
from mmkit.tour.engine import Stage, scene
from mmkit.tour.looking import in_memory, in_this_process
from mmkit.tour.pictures import bar
from mmkit.tour.readahead import file_length, fill, read_ahead
from mmkit.tour.step import Step
from mmkit.wording import size

__all__ = ["a_file"]


@scene(
    "Without advice: one touch, and what is around it is read too",
    "RANDOM: read what is touched, and nothing around it",
    "SEQUENTIAL: read on from there, and nothing that lies before",
    "WILLNEED: read it from disk, without waiting",
    "POPULATE_READ: into this process, before anyone waits for it",
    "DONTNEED on a file: this process lets go, the cache keeps it",
)
def a_file(stage: Stage) -> None:
    """Follow the pages of a file from disk to the cache, into the process and out of it."""
    with scratch_file(b"", on_disk=True) as fd:
        ahead, source = read_ahead(fd)
        length = file_length(ahead)
        with stage.step() as step:
            fill(fd, length)
            step.prepare(
                *scratch_file_python(f"bytes({length})", on_disk=True),
                *_COLD,
            )
            _touch_the_middle(step, fd, None)
            step.note(f"read-ahead: {size(ahead)} ({source}); the file: {size(length)}")
        for advice in (Advice.RANDOM, Advice.SEQUENTIAL):
            with stage.step() as step:
                step.prepare(*_COLD)
                _touch_the_middle(step, fd, advice)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with Region.file(fd) as region:
            _will_need(stage, region)
            _populate(stage, region)
            _do_not_need(stage, region)


#: Takes the file out of the cache, and maps it anew, without advice.
_COLD = "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)", "region = Region.file(fd)"


def _touch_the_middle(step: Step, fd: int, advice: Advice | None) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with Region.file(fd) as region:
        before, middle = bar("before", region), len(region) // 2
        if advice:
            _advise(step, region, advice)
        step.code(f"x = p[{middle}];", f"region[{middle}]")
        step.say("not called: a load, and a page fault")
        region[middle]
        cached = _settled(region)
        step.show(before, bar("after one byte was read, in the middle", region))
        step.check(
            f"pagemap: {_pages(region.resident())} in this process, with the one that was touched",
            region.resident(middle, 1) == PAGE_SIZE,
        )
        number = middle // PAGE_SIZE
        step.check(f"mincore: {_pages(len(cached) * PAGE_SIZE)} in memory, with that one", number in cached)
        if all(before.cached):
            step.note("this file system keeps its files in memory: nothing was left to be read")
        else:
            step.note(
                f"of these {sum(page < number for page in cached)} lie before it, "
                f"{sum(page > number for page in cached)} behind it"
            )


def _advise(step: Step, region: Region, advice: Advice) -> None:
    step.call("madvise", "p", len(region), advice, python=f"region.advise(Advice.{advice.name})")
    region.advise(advice)
    step.answer(0)


#: Seconds without news from the disk.
_CALM = 0.03


def _settled(region: Region) -> list[int]:
    """Wait until the disk brings no more; return the numbers of the pages in memory."""
    cached, since = _cached(region), time.monotonic()
    deadline = since + 2
    while time.monotonic() < (since + _CALM if cached else deadline):
        time.sleep(0.005)
        now = _cached(region)
        if now != cached:
            cached, since = now, min(time.monotonic(), deadline)
    return cached


def _cached(region: Region) -> list[int]:
    pages = in_memory(region.address, len(region) // PAGE_SIZE)
    return [number for number, there in enumerate(pages) if there]


def _pages(length: int) -> str:
    count = length // PAGE_SIZE
    return f"{count} page{'s' if count != 1 else ''}"


#: What a disk is asked for at once is seldom more.
_PIECE = 128 * 1024


def _will_need(stage: Stage, region: Region) -> None:
    with stage.step() as step:
        step.prepare(*_COLD)
        before, resident = bar("before", region), region.resident()
        _advise(step, region, Advice.WILLNEED)
        first = _settled(region)
        after = bar("after the whole file was asked for", region)
        step.call(
            "madvise",
            "p + at",
            _PIECE,
            Advice.WILLNEED,
            python=f"for at in range(0, {len(region)}, {_PIECE}):\n"
            f"    region.advise(Advice.WILLNEED, at, {_PIECE})",
        )
        for at in range(0, len(region), _PIECE):
            region.advise(Advice.WILLNEED, at, _PIECE)
        step.answer(0, times=len(region) // _PIECE)
        then = _settled(region)
        step.show(before, after, bar("after it was asked for in pieces", region))
        step.check(f"pagemap: {_pages(resident)} in this process, as before", region.resident() == resident)
        step.check(
            f"mincore: first {len(first)} pages in memory, then {len(then)}, and none was touched",
            bool(first and then),
        )
        step.note(
            "the kernel reads no more for one such call than it would read ahead, or than the disk takes in "
            "one request: who wants more asks in pieces"
        )


def _populate(stage: Stage, region: Region) -> None:
    with stage.step(may_refuse=(errno.EINVAL,)) as step:
        before = bar("before", region)
        step.call("madvise", "p", len(region), Advice.POPULATE_READ, python="region.populate()")
        region.populate()
        step.answer(0)
        step.show(before, bar("after", region))
        step.check("pagemap: all of it in this process", region.resident() == len(region))


def _do_not_need(stage: Stage, region: Region) -> None:
    with stage.step() as step:
        before, first = bar("before", region), region[0:PAGE_SIZE]
        step.call("madvise", "p", len(region), Advice.DONTNEED, python="region.discard()")
        region.discard()
        step.answer(0)
        step.show(before, bar("after", region))
        gone = not any(in_this_process(region.address, len(region) // PAGE_SIZE))
        step.check("pagemap: none of it in this process", gone)
        step.note(
            f"mincore: {len(_cached(region))} pages are in memory still, and are there at the next touch"
        )
        step.check("a touch finds what it was", region[0:PAGE_SIZE] == first)
