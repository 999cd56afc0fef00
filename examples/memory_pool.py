"""Blocks of one size, ready to be taken: a pool in this process, and one that four processes share.

Takes blocks and gives them back, sees all of them as one array, runs out of them, and makes the mistakes that
a pool refuses. Then processes pass blocks to each other by number, and one of them is killed while it holds
some. Last an arena, for what lives and dies together.
In C: malloc(3), free(3), memfd_create(2), mmap(2). Belongs to the chapter "Pools" (docs/pool.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
from collections.abc import Callable
from functools import partial

import mmkit
from mmkit import Arena, Pool, Region

RECORD = struct.Struct("<id")  # a number and its square root
PARTS = 3
WORKERS = 4


def main() -> None:
    """Use a pool alone, then with others, then an arena."""
    take_and_give()
    see_them_all()
    make_mistakes()
    share()
    use_an_arena()


def take_and_give() -> None:
    """Take every block of a pool, as malloc() would, give one back, as free() would, and see which comes."""
    print("A pool of 3 blocks of 64 bytes")
    with Pool(64, 3) as pool:
        blocks = [pool.take() for _ in range(3)]
        print(f"  they lie {blocks[1].address - blocks[0].address} bytes apart")
        try:
            pool.take()
        except mmkit.OutOfMemory:
            print("  a fourth: OutOfMemory")
        pool.give(blocks[1])
        print(
            f"  block 1 is given; the next to be taken is block {pool.take().index}, still warm in the cache"
        )


def see_them_all() -> None:
    """Look at the blocks of a pool as the rows of a table."""
    with Pool(RECORD.size, 5) as pool:
        blocks = [pool.take() for _ in range(5)]
        for number, block in enumerate(blocks):
            RECORD.pack_into(memoryview(block), 0, number, number**0.5)
        try:
            table = pool.array([("number", "<i4"), ("root", "<f8")])
        except ImportError:
            print("\nAll blocks as one array: needs numpy")
            return
        print(f"\nAll blocks as one array: the roots add up to {table['root'].sum():.3f}")
        table["root"] *= 2
        print(f"  all doubled at once; block 4 now has {RECORD.unpack_from(memoryview(blocks[4]))[1]:.1f}")
        del table  # somebody who looks: the pool would not close


def make_mistakes() -> None:
    """Do what corrupts a heap in C, and read what the pool says."""
    print("\nMistakes")
    with Pool(64, 2, on_give="poison") as pool, Pool(64, 2) as another:
        block = pool.take()
        address = block.address
        view = memoryview(block)
        refused("give it while somebody looks", lambda: pool.give(block))
        view.release()
        refused("give it to another pool", lambda: another.give(block))
        pool.give(block)
        refused("give it twice", lambda: pool.give(block))
        refused("look at it after that", lambda: memoryview(block))
        mmkit.poke(address, b"written by who kept a pointer")
        refused("write to it after that, in C", pool.take)


def refused(what: str, call: Callable[[], object]) -> None:
    """Do something, and print with what it was refused."""
    try:
        call()
    except (mmkit.Error, BufferError, ValueError) as error:
        print(f"  {what}: {type(error).__name__}")
    else:
        print(f"  {what}: nobody minded")


def share() -> None:
    """Have processes work at one pool; one of them is killed."""
    print(f"\n{WORKERS} processes at one pool")
    # memfd_create(2) makes a file that is in memory only, and has a descriptor but no path; mmap(2) maps it.
    with Region.memfd(1 << 16) as region, Pool(RECORD.size, 100, source=region) as pool:
        reader, writer = os.pipe()
        workers = [start(partial(fill, region, number, writer)) for number in range(WORKERS)]
        total = 0.0
        for _ in range(WORKERS * PARTS):
            offset = int.from_bytes(os.read(reader, 4), "little")
            block = pool.at(offset)
            total += RECORD.unpack_from(memoryview(block))[1]
            pool.give(block)
        for worker in workers:
            os.waitpid(worker, 0)
        print(
            f"  sent {WORKERS * PARTS} blocks by their offsets, 4 bytes each; the roots add up to {total:.3f}"
        )

        worker = start(partial(take_and_stay, region, writer))
        os.read(reader, 1)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        print(f"  a process is killed with {pool.stats().live} blocks in its hands", end="")
        for offset in pool.live():
            pool.give(pool.at(offset))
        lost = pool.check()
        print(f"; {pool.stats().live} after we gave them back for it, {lost} lost")
        os.close(reader)
        os.close(writer)


def start(work: Callable[[], None]) -> int:
    """Run something in a child, which never comes back."""
    sys.stdout.flush()
    worker = os.fork()
    if worker:
        return worker
    try:
        work()
    finally:
        os._exit(0)


def fill(region: Region, number: int, writer: int) -> None:
    """Attach as a stranger would, at another address; take blocks, fill them, and send where they are."""
    with Region.file(region.fileno(), mode="r+") as mine, Pool.attach(mine) as pool:
        for part in range(PARTS):
            block = pool.take()
            value = number * PARTS + part
            RECORD.pack_into(memoryview(block), 0, value, value**0.5)
            os.write(writer, block.offset.to_bytes(4, "little"))


def take_and_stay(region: Region, writer: int) -> None:
    """Take five blocks, and wait to be killed."""
    with Region.file(region.fileno(), mode="r+") as mine, Pool.attach(mine) as pool:
        blocks = [pool.take() for _ in range(5)]
        os.write(writer, bytes([len(blocks)]))
        signal.pause()


def use_an_arena() -> None:
    """Allocate for one piece of work at a time, and forget it all at its end."""
    print("\nAn arena")
    with Arena() as arena:
        header = arena.alloc(100)
        memoryview(header)[:5] = b"stays"
        for number in range(3):
            with arena.mark():
                scratch = [arena.alloc(10_000 * (number + 1)) for _ in range(5)]
                print(f"  {len(scratch)} blocks for request {number}: {arena.used:>6} bytes used")
        print(f"  after them: {arena.used} used of {arena.capacity >> 10} KiB that it keeps", end="")
        print(f"; the header {bytes(memoryview(header)[:5]).decode()}")
        view = memoryview(header)
        refused("rewind under a view", arena.rewind)
        view.release()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
