"""Section: brk and sbrk, the oldest way to get memory."""

from __future__ import annotations

import errno

from mmkit import linux, maps
from mmkit.faults import peek, poke
from mmkit.region import PAGE_SIZE
from mmkit.tour.engine import Section, Stage, scene
from mmkit.tour.looking import permissions
from mmkit.tour.pictures import strip

__all__ = ["SECTION"]

_PAGES = 4


@scene(
    "Ask where the heap ends",
    f"Move the end up by {_PAGES} pages: new memory",
    "Move it back: the memory is gone",
)
def the_break(stage: Stage) -> None:
    """Grow the heap by four pages, use them, and give them back."""
    length = _PAGES * PAGE_SIZE
    with stage.step() as step:
        step.call("sbrk", 0, assign="p", python="p = linux.sbrk(0)")
        end = linux.sbrk(0)
        step.answer(end)
        heap = maps.find(end - 1)
        step.check(f"/proc/self/maps: [heap] ends at {heap.end:x}" if heap else "no heap", _ends_at(end))
    # Room for malloc, so that it does not move the break itself while we are at it.
    bytearray(96 * 1024)
    # Whole pages, from the first boundary at or above the break.
    first = -(-end // PAGE_SIZE) * PAGE_SIZE
    below = first - _PAGES * PAGE_SIZE
    with stage.step(may_refuse=(errno.EBUSY,)) as step:
        before = strip("before", below, 2 * _PAGES)
        step.call("sbrk", length, assign="p", python=f"p = linux.sbrk({length})")
        # Not `end`: malloc may have moved it since, for what the pictures took.
        start, now = linux.sbrk(length), linux.sbrk(0)
        step.answer(start, ", the old end: the new memory starts there")
        message = b"hello"
        step.code(
            f'memcpy(p, "{message.decode()}", {len(message)});',
            f"poke(p, {message!r})",
        )
        step.say("not called: a store, the first touch of the new memory")
        poke(start, message)
        step.show(before, strip("after, one page written to", below, 2 * _PAGES))
        step.check(f"the break is now {now:#x}", now == start + length)
        step.check("the new memory holds what was stored in it", peek(start, len(message)) == message)
    with stage.step(may_refuse=(errno.EBUSY,)) as step:
        before = strip("before", below, 2 * _PAGES)
        step.call("brk", "p", python="linux.brk(p)")
        linux.brk(start)
        now = linux.sbrk(0)
        step.answer(0)
        step.show(before, strip("after", below, 2 * _PAGES))
        step.check(
            f"sbrk(0) says {now:#x} again, and nothing is mapped there",
            now == start and permissions(-(-start // PAGE_SIZE) * PAGE_SIZE) == "",
        )


def _ends_at(end: int) -> bool:
    heap = maps.find(end - 1)
    return heap is not None and heap.path == b"[heap]" and heap.end == -(-end // PAGE_SIZE) * PAGE_SIZE


SECTION = Section(
    key="brk",
    title="The heap and its end: brk, sbrk",
    introduction=(
        "The heap is one stretch of memory with a movable end, the break. brk() sets that end, sbrk() moves "
        "it by so many bytes. malloc, which hands out memory in C, moves it up when it needs more, and may "
        "move it down again. Python asks malloc for all but small objects."
    ),
    scenes=(the_break,),
)
