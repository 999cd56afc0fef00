"""How the public API types: checked by mypy, never run."""

from typing import assert_type

import mmkit
from mmkit import (
    Advice,
    Arena,
    Block,
    Heap,
    MapFlag,
    Pool,
    Prot,
    Region,
    Secret,
    SharedMemory,
    SystemVMemory,
    linux,
    shared,
)
from mmkit.compat import mmap
from mmkit.flags import ShmCommand
from mmkit.heap import ArenaBlock, HeapBlock, Mark, PoolBlock
from mmkit.secret import SecretStatus, decrypt, encrypt
from mmkit.shared import Segment
from mmkit.shared.array_type import SharedArray
from mmkit.structs import MemPolicy, ShmidDs, ShmInfo, ShmUsage

region = Region.anonymous(4096, prot=Prot.READ | Prot.WRITE, lock="warn", hugepages="off")
assert_type(region, Region)
assert_type(region[0], int)
assert_type(region[0:4], bytes)
region[0] = 1
region[0:4] = bytearray(4)
assert_type(region.view(0, 4), memoryview)
assert_type(memoryview(region), memoryview[int])
assert_type(region.protect(Prot.READ), tuple[int, int])
assert_type(region.advise(Advice.WILLNEED), tuple[int, int])
assert_type(region.read(), bytes)
with region.protected(Prot.READ) as covered:
    assert_type(covered, tuple[int, int])
with region.locked() as covered:
    assert_type(covered, tuple[int, int])
with Region.file("f", mode="c") as file:
    assert_type(file, Region)
assert_type(mmkit.regions(), list[Region])
assert_type(mmkit.supports(MapFlag.HUGETLB), bool)

with mmkit.Channel("name", 4096, create=True, delivery="at-most-once") as channel:
    assert_type(channel, mmkit.Channel)
    channel.send(bytearray(4), timeout=1)
    assert_type(channel.recv(), bytes)
    with channel.loan(4) as lent:
        assert_type(lent, memoryview)
    with channel.recv_view(0.5) as seen:
        assert_type(seen, memoryview)

assert_type(linux.mmap(0, 4096, Prot.READ, MapFlag.PRIVATE), int)
assert_type(linux.shmctl(0, ShmCommand.STAT), ShmidDs)
assert_type(linux.shmctl(0, ShmCommand.INFO), ShmInfo)
assert_type(linux.shmctl(0, ShmCommand.SHM_INFO), ShmUsage)
linux.shmctl(0, ShmCommand.RMID)
assert_type(linux.get_mempolicy(), MemPolicy)
assert_type(linux.move_pages(0, [4096]), tuple[int, ...])
assert_type(linux.process_madvise(3, [(4096, 4096)], Advice.COLD), int)

with mmap.mmap(-1, 100, access=mmap.ACCESS_WRITE, trackfd=False) as mapped:
    assert_type(mapped, mmap.mmap)
    assert_type(mapped[0], int)
    assert_type(mapped[0:4], bytes)
    assert_type(mapped.read_byte(), int)
    assert_type(list(mapped), list[bytes])
    assert_type(mapped.find(b"x", None, 5), int)
    mapped.flush(0, 4096, flags=mmap.MS_ASYNC)
    mapped.madvise(mmap.MADV_COLLAPSE)
    assert_type(mapped.protect(mmap.PROT_READ), tuple[int, int])
    assert_type(memoryview(mapped), memoryview[int])
with SharedMemory("name", create=True, size=10, mode=0o640) as segment:
    assert_type(segment, SharedMemory)
    assert_type(segment.buf, memoryview)
    assert_type(segment.name, str | None)
    assert_type(segment.region, Region)
assert_type(SharedMemory.memfd(10), SharedMemory)
with SystemVMemory("/path", 10, create=True) as numbered:
    assert_type(numbered.id, int)
    assert_type(numbered.stat(), ShmidDs)
assert_type(SystemVMemory.attach(7, readonly=True), SystemVMemory)
assert_type(shared.array("name", (2, 3), "f8", create=True), SharedArray)
assert_type(shared.segments(), list[Segment])
assert_type(shared.reap(dry_run=True), list[Segment])

with Heap() as heap, heap.alloc(10) as piece:
    assert_type(piece, HeapBlock)
    assert_type(heap.at(piece.offset), HeapBlock)
    piece.resize(20)
    general: Block = piece
with Pool(64, 10, exhausted="grow", limit=20) as pool, pool.take() as block:
    assert_type(block, PoolBlock)
    assert_type(memoryview(block), memoryview[int])
    assert_type(pool.at(block.offset), PoolBlock)
    assert_type(pool.live(), list[int])
    assert_type(pool.stats().peak, int)
with Arena(region) as arena, arena.mark() as mark:
    assert_type(arena.alloc(5, align=64, zero=True), ArenaBlock)
    general = arena.alloc(5)
    assert_type(general.address, int)
    assert_type(mark, Mark)
    arena.rewind(mark)

with shared.Lock("name", create=True) as lock:
    assert_type(lock, shared.Lock)
    assert_type(lock.acquire(0.5), bool)
with lock.repairing() as abandoned:
    assert_type(abandoned, bool)
assert_type(shared.RLock.at(region, 64, create=True), shared.RLock)
assert_type(shared.Condition("name").wait_for(lambda: 7), int)
assert_type(shared.Semaphore("name", create=True, value=3, held=False).recover(), int)
assert_type(shared.Event("name").wait(timeout=1), bool)
assert_type(shared.Barrier("name", create=True, parties=3).wait(), int)

with Secret.take(bytearray(8), isolated=True) as secret_, secret_.open(write=True) as seen:
    assert_type(secret_, Secret)
    assert_type(seen, memoryview[int])
assert_type(secret_ == b"guess", bool)
assert_type(secret_.status(), SecretStatus)
assert_type(decrypt(encrypt(Secret.prompt()), lock="warn"), Secret)

mmkit.Channel("name", delivery="twice")  # type: ignore[arg-type]
Region.file("f", mode="w")  # type: ignore[arg-type]
Region.anonymous(4096, lock=True)  # type: ignore[arg-type]
Pool(64, 10, exhausted="sleep")  # type: ignore[arg-type]
Secret(32, backend="disk")  # type: ignore[arg-type]
Secret.take(b"constant")  # refused when it runs: bytes type as any buffer
