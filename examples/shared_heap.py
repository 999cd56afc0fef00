"""A linked list in shared memory: one process builds it on a heap, another walks it, at another address.

What stands in the list are offsets, not addresses: each process maps the region where it likes. Then a
process is killed while it allocates, and the heap goes on.
In C: memfd_create(2), mmap(2), fork(2), malloc(3). Belongs to the chapter "Heap" (docs/heap.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
from collections.abc import Callable

import mmkit
from mmkit import Heap, Region
from mmkit.heap import HeapBlock

NODE = struct.Struct("<Q16s")  # where the next node is, 0 for none; a word
WORDS = ["blocks", "of", "memory", "that", "two", "processes", "share"]


def main() -> None:
    """Make a heap that processes share, and have some share it."""
    # memfd_create(2) makes a file that is in memory only, and has a descriptor; mmap(2) maps it.
    with Region.memfd(1 << 20, name="shared-heap") as region:
        try:
            heap = Heap(region)
        except mmkit.OutOfMemory as refusal:  # before Linux 5.14 what processes share cannot be reserved
            print(f"Not on this machine: {refusal}")
            return
        with heap:
            pass_a_list_around(region, heap)


def pass_a_list_around(region: Region, heap: Heap) -> None:
    """Build in one process, walk in another, lose a third."""
    print(f"Process A has the region at {region.address:#x}, and builds a list:")
    first = build(heap, WORDS)
    print(f"  {heap.stats().live_blocks} blocks; the first node is at offset {first}\n")

    # All that B needs is the descriptor of the memory, and a number.
    in_another_process(walk, region.fileno(), first)
    print(f"\nProcess A counts again: {heap.stats().live_blocks} blocks. B added one, and the list is now")
    print(f"  {' '.join(word for _, word in nodes(heap, first))}")

    kill_one_at_work(heap)
    heap.check()
    print("\nProcess C was killed in the middle of its work. check() finds the heap whole, and the list is")
    print(f"  {' '.join(word for _, word in nodes(heap, first))}")

    for offset, _ in list(nodes(heap, first)):
        heap.at(offset).free()
    print(f"\nFreed node by node; {heap.stats().live_blocks} blocks are left, of process C")


def build(heap: Heap, words: list[str]) -> int:
    """Make a list of words, from the last to the first; return the offset of its first node."""
    following = 0
    for word in reversed(words):
        node = heap.alloc(NODE.size)  # as malloc() does: a block of so many bytes
        NODE.pack_into(node, 0, following, word.encode())
        following = node.offset
    return following


def nodes(heap: Heap, offset: int) -> list[tuple[int, str]]:
    """Return offset and word of each node of the list that starts at an offset."""
    found = []
    while offset:
        following, word = NODE.unpack_from(heap.at(offset))
        found.append((offset, word.rstrip(b"\0").decode()))
        offset = following
    return found


def walk(fd: int, first: int) -> None:
    """Walk the list in process B, and put a node of B's own at its end."""
    with Region.file(fd, mode="r+") as region, Heap.attach(region) as heap:
        print(f"Process B has it at {region.address:#x}, and walks the list:")
        for offset, word in nodes(heap, first):
            print(f"  {offset:6}  {word}")
        last = nodes(heap, first)[-1]
        addition = build(heap, ["now"])
        NODE.pack_into(heap.at(last[0]), 0, addition, last[1].encode())


def kill_one_at_work(heap: Heap) -> None:
    """Let process C allocate and free for ever, and kill it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            held: list[HeapBlock] = []
            for number in range(1 << 62):
                held.append(heap.alloc(number % 5000 + 1))
                if len(held) > 20:
                    held.pop(number % 20).free()
                if number == 1000:
                    os.write(writer, b"!")
        finally:
            os._exit(1)
    os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)


def in_another_process(function: Callable[[int, int], None], fd: int, first: int) -> None:
    """Call a function in a forked child, and wait for it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with contextlib.suppress(BrokenPipeError):  # whoever reads may leave
                function(fd, first)
                sys.stdout.flush()
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("process B failed")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
