"""Section: brk and sbrk, the oldest way to get memory."""

from __future__ import annotations

import errno

from mmkit import linux, maps
from mmkit.faults import peek, poke
from mmkit.heap import Heap
from mmkit.region import PAGE_SIZE
from mmkit.tour.engine import Section, Stage, scene
from mmkit.tour.looking import in_this_process, permissions
from mmkit.tour.pictures import strip
from mmkit.wording import size

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
    # Room for malloc, so that it does not move the break itself while we are at it.
    bytearray(96 * 1024)
    with stage.step() as step:
        step.call("sbrk", 0, assign="p", python="p = linux.sbrk(0)")
        end = linux.sbrk(0)
        step.answer(end)
        heap = maps.find(end - 1)
        step.check(f"/proc/self/maps: [heap] ends at {heap.end:x}" if heap else "no heap", _ends_at(end))
    # Whole pages, from the first boundary at or above the break.
    first = _page_behind(end)
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
            now == start and permissions(_page_behind(start)) == "",
        )


@scene(
    "Let a heap move it: room for two blocks, and for those to come",
    "Free them and close the heap: the end comes back",
)
def a_heap(stage: Stage) -> None:
    """Have mmkit's heap allocate from the break, as malloc does."""
    # As above: room for malloc.
    bytearray(96 * 1024)
    with Heap("sbrk") as heap:
        with stage.step() as step:
            page = linux.sbrk(0) // PAGE_SIZE * PAGE_SIZE
            before = strip("before", page, _PAGES)
            start = linux.sbrk(0)
            blocks = heap.alloc(100), heap.alloc(5000)
            end = linux.sbrk(0)
            python = 'heap = Heap("sbrk");  blocks = heap.alloc(100), heap.alloc(5000)'
            step.call("sbrk", end - start, assign="p", python=python)
            step.answer(start, f", asked by the heap, once: {size(end - start)}")
            step.show(before, strip("after", page, _PAGES))
            head = blocks[0].address - start
            step.check(
                f"the first block is {head} bytes behind the old end: between lies what the heap must know",
                0 < head <= PAGE_SIZE,
            )
            step.check(
                f"the second lies behind it, the rest of {size(heap.stats().largest_free)} is free",
                blocks[0].address + 100 <= blocks[1].address < end
                and [block.kind for block in heap.blocks()] == ["live", "live", "free"],
            )
        with stage.step() as step:
            before = strip("before", page, _PAGES)
            for block in blocks:
                block.free()
            heap.close()
            now = linux.sbrk(0)
            step.call("brk", "p", python="for block in blocks: block.free()\nheap.close()")
            step.show(before, strip("after", page, _PAGES))
            if now == start:
                step.answer(0)
                step.check(f"sbrk(0) says {now:#x} again", permissions(_page_behind(start)) == "")
            else:
                step.say("not called: malloc has moved the end since, or there are other threads")
                step.check(
                    "the heap's pages are given back", not any(in_this_process(_page_behind(start), 1))
                )


def _page_behind(address: int) -> int:
    return -(-address // PAGE_SIZE) * PAGE_SIZE


def _ends_at(end: int) -> bool:
    heap = maps.find(end - 1)
    return heap is not None and heap.path == b"[heap]" and heap.end == _page_behind(end)


SECTION = Section(
    key="brk",
    title="The heap and its end: brk, sbrk",
    introduction=(
        "The heap is one stretch of memory with a movable end, the break. brk() sets that end, sbrk() moves "
        "it by so many bytes. malloc, which hands out memory in C, moves it up when it needs more, and may "
        "move it down again. Python asks malloc for all but small objects. mmkit's Heap can do what malloc "
        "does, on the same break."
    ),
    scenes=(the_break, a_heap),
)
