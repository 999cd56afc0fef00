"""A malloc of one's own: first fit on a list of free blocks, over memory from sbrk(), drawn after each step.

The classroom allocator in Python that can be read: each block has a header in memory, in front of it, with
its size and whether it is free. malloc takes the first free block that is large enough, and splits it; free
merges neighbours. The same work is then done by `mmkit.Heap`, and the two are compared.
In C: malloc(3), free(3), sbrk(2). Belongs to the chapter "Heap" (docs/heap.md).
"""

from __future__ import annotations

import contextlib
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mmkit
from mmkit import Heap, linux

HEADER = struct.Struct("<QQ")  # size of the block's payload in bytes; 1 if it is free
ALIGNMENT = 16
LENGTH = 1024  # bytes of the drawn heap: 16 a character


class Header(NamedTuple):
    """What stands in front of a block."""

    address: int
    size: int
    free: bool

    @property
    def payload(self) -> int:
        """Return the address of the block itself."""
        return self.address + HEADER.size

    @property
    def end(self) -> int:
        """Return the address of the next header."""
        return self.payload + self.size


class FirstFit:
    """The allocator of the textbooks, on a stretch of memory that sbrk() gave."""

    def __init__(self, length: int) -> None:
        # sbrk() moves the end of the program's heap by so many bytes, and returns where it was before.
        linux.sbrk(-linux.sbrk(0) % ALIGNMENT)
        self.start = linux.sbrk(length)
        self.end = self.start + length
        self.write(self.start, length - HEADER.size, free=True)

    def read(self, address: int) -> Header:
        """Read the header at an address."""
        size, free = HEADER.unpack(mmkit.peek(address, HEADER.size))
        return Header(address, size, bool(free))

    def write(self, address: int, size: int, *, free: bool) -> None:
        """Write a header."""
        mmkit.poke(address, HEADER.pack(size, free))

    def walk(self) -> Iterator[Header]:
        """Go from header to header: each knows where the next one is."""
        address = self.start
        while address < self.end:
            header = self.read(address)
            yield header
            address = header.end

    def malloc(self, size: int) -> int | None:
        """Find the first free block that is large enough; split it if enough is left for another."""
        size = -(-size // ALIGNMENT) * ALIGNMENT
        for header in self.walk():
            if not header.free or header.size < size:
                continue
            rest = header.size - size - HEADER.size
            if rest >= ALIGNMENT:
                self.write(header.address, size, free=False)
                self.write(header.payload + size, rest, free=True)
            else:
                self.write(header.address, header.size, free=False)
            return header.payload
        return None

    def free(self, payload: int) -> None:
        """Mark a block as free, and merge free blocks that lie side by side."""
        header = self.read(payload - HEADER.size)
        self.write(header.address, header.size, free=True)
        before: Header | None = None
        for header in list(self.walk()):
            if before and before.free and header.free:
                self.write(before.address, header.end - before.payload, free=True)
                before = self.read(before.address)
            else:
                before = header


def main() -> None:
    """Draw the allocator at work, then let mmkit do the same."""
    print(f"{LENGTH} bytes from sbrk(), one character for each {ALIGNMENT}:")
    print("H a header, x a block in use, . free\n")
    mine = FirstFit(LENGTH)
    draw("the start", mine)
    a = taken(mine, "a = malloc(100)", 100)
    b = taken(mine, "b = malloc(200)", 200)
    c = taken(mine, "c = malloc(50)", 50)
    freed(mine, "free(b)", b)
    taken(mine, "d = malloc(80): first fit is the gap", 80)
    freed(mine, "free(a)", a)
    freed(mine, "free(c): merges with what is free behind it", c)
    total = sum(header.size for header in mine.walk() if header.free)
    print(f"\n  {total} bytes are free, but not in one piece:", end=" ")
    print(f"malloc({total - 100}) is {mine.malloc(total - 100)}")

    print("\nmmkit.Heap, after the same calls, in the same picture")
    with Heap("sbrk") as heap:
        a_block, b_block, c_block = heap.alloc(100), heap.alloc(200), heap.alloc(50)
        b_block.free()
        d_block = heap.alloc(80)
        a_block.free()
        c_block.free()
        start = min(info.address for info in heap.blocks()) - 16
        print(
            "\n".join(f"  {line}" for line in heap.map(start, start + LENGTH, scale=ALIGNMENT).splitlines())
        )
        print("  d is not in the gap: b waits there, for a while, for an alloc of its own size")
        d_block.free()

    print("\nThe same work for both: 400 random calls, up to 20 blocks at a time")
    slow = FirstFit(64 * 1024)
    spent_by_mine = timed(slow.malloc, slow.free)
    with Heap("sbrk") as heap:
        spent_by_heap = timed(heap.alloc, lambda block: block.free())
        heap.check()
    print(f"  first fit in Python: {spent_by_mine / 1000:10,.0f} µs, looks at every header from the start")
    print(f"  mmkit.Heap:          {spent_by_heap / 1000:10,.0f} µs, finds a free list by two bits")


def taken(mine: FirstFit, what: str, size: int) -> int:
    """Allocate, and draw."""
    payload = mine.malloc(size)
    assert payload is not None
    draw(what, mine)
    return payload


def freed(mine: FirstFit, what: str, payload: int) -> None:
    """Free, and draw."""
    mine.free(payload)
    draw(what, mine)


def draw(what: str, mine: FirstFit) -> None:
    """Draw each block of the allocator, and list what is free."""
    cells = ""
    free = []
    for header in mine.walk():
        cells += "H" + ("." if header.free else "x") * (header.size // ALIGNMENT)
        if header.free:
            free.append(f"{header.size} at +{header.payload - mine.start}")
    print(f"  {cells}  {what}")
    print(f"  {'':{len(cells)}}  free: {', '.join(free) or 'nothing'}")


def timed(malloc: Callable[[int], Any], free: Callable[[Any], None]) -> int:
    """Return the nanoseconds that a fixed series of calls takes."""
    numbers = random.Random(1)
    blocks: list[Any] = []
    start = time.perf_counter_ns()
    for _ in range(400):
        if len(blocks) == 20 or (blocks and numbers.random() < 0.45):
            free(blocks.pop(numbers.randrange(len(blocks))))
        else:
            blocks.append(malloc(numbers.randrange(1, 2000)))
    for block in blocks:
        free(block)
    return time.perf_counter_ns() - start


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
