"""The program break, and a heap on it: the first program of every tutorial on malloc.

Moves the break by hand with sbrk(), then has a heap do it, as malloc() does: blocks are cut from what the
break gave, freed ones merge, and what somebody else takes of the break stays in between as a hole.
In C: sbrk(2), brk(2), malloc(3). Belongs to the chapter "Heap" (docs/heap.md).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import mmkit
from mmkit import Heap, linux

KIB = 1024


def main() -> None:
    """Move the break by hand, then with a heap."""
    start = linux.sbrk(0)
    print(f"The break, the end of the program's heap, is at {start:#x}")

    print("\nBy hand, as C does it")
    old = linux.sbrk(64 * KIB)
    print(f"  sbrk(64 KiB) returned {old:#x}, the old break: that much memory is ours from there on")
    mmkit.poke(old, b"hello")
    print(f"  the first bytes there are now {mmkit.peek(old, 5)!r}")
    lower(f"brk({old:#x}), which takes the new break itself,", lambda: linux.brk(old))

    print("\nWith a heap on the break")
    with Heap("sbrk") as heap:
        blocks = [heap.alloc(size) for size in (100, 5000, 20_000, 300)]
        for block in blocks:
            print(f"  alloc({len(block):6}) is at {block.address:#x}")
        print(
            f"  the break has moved to {linux.sbrk(0):#x}, for {heap.stats().mapped_bytes // KIB} KiB at once"
        )

        view = memoryview(blocks[0])
        view[:5] = b"hello"
        print(f"  a block is a buffer: {bytes(view[:5])!r}")
        try:
            blocks[0].free()
        except BufferError as error:
            print(f"  freeing it now raises {type(error).__name__}: {error}")
        view.release()

        blocks.pop(1).free()
        print("\nThe second block was freed. The heap from its start:")
        first = blocks[0].address - 16
        print(indented(heap.map(first, first + 32 * KIB, scale=256, width=64)))

        again = heap.alloc(4000)
        print(f"\n  alloc(4000) found room in the gap: {again.address:#x}")
        again.free()

        print("\nSomebody else takes some of the break, and the heap has to grow")
        foreign = linux.sbrk(16 * KIB)
        blocks.append(heap.alloc(400 * KIB))
        print(f"  others have 16 KiB from {foreign:#x} on, and our new block is at {blocks[-1].address:#x}")
        for info in heap.blocks():
            print(f"  {info.address:#x} {info.size:8} bytes  {info.kind}")
        heap.check()
        print("  check() finds nothing wrong with it")

        for block in blocks:
            block.free()
        print(f"\nAll freed, and the break is at {linux.sbrk(0):#x}")
        print(f"  trim() gives {heap.trim() // KIB} KiB of RAM back; the break is at {linux.sbrk(0):#x}")
    print(f"The heap is closed: the break is at {linux.sbrk(0):#x}, above what others have")
    lower("sbrk(-16 KiB)", lambda: linux.sbrk(-16 * KIB))
    print(f"They gave it back, too: {linux.sbrk(0) - start} bytes, which were ours below theirs, are left")


def lower(what: str, call: Callable[[], object]) -> None:
    """Give back what was taken last."""
    try:
        call()
        print(f"  {what} gave it back")
    except mmkit.SyscallError as error:
        print(f"  it stays: {error.hint}")


def indented(text: str) -> str:
    """Put two spaces before each line."""
    return "\n".join(f"  {line}" for line in text.splitlines())


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
