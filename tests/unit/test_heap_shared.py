"""A heap in shared memory or a file: joined by other processes, and by later ones."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import mmkit
from meeting import wait_until
from mmkit import CorruptError, Error, Heap, Region
from support import in_child

#: Where a shared heap has its lock (heap_shared.c), and futex(2) on x86-64.
LOCK, FUTEX = 80, "202"


def test_another_process_finds_a_block_by_its_offset():
    with Region.memfd(1 << 20) as region, Heap(region) as heap:
        block = heap.alloc(100, zero=True)
        memoryview(block)[:5] = b"hello"
        code = (
            "import sys, mmkit\n"
            "region = mmkit.Region.file(int(sys.argv[1]), mode='r+')\n"
            "heap = mmkit.Heap.attach(region)\n"
            "block = heap.at(int(sys.argv[2]))\n"
            "assert bytes(block)[:5] == b'hello' and len(block) == 100\n"
            "memoryview(block)[:5] = b'there'\n"
            "print(heap.alloc(50).offset)\n"
        )
        arguments = [sys.executable, "-c", code, str(region.fileno()), str(block.offset)]
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=60, pass_fds=[region.fileno()]
        )
        assert done.stderr == ""
        assert bytes(block)[:5] == b"there"
        # What the other process allocated is still there, and anybody may free it.
        other = heap.at(int(done.stdout))
        assert len(other) == 50
        other.free()
        block.free()
        assert heap.stats().live_blocks == 0
        heap.check()


def test_dropping_a_block_of_a_shared_heap_frees_nothing():
    with Region.memfd(1 << 20) as region, Heap(region) as heap:
        offset = heap.alloc(100).offset
        assert heap.stats().live_blocks == 1
        borrowed = heap.at(offset)
        del borrowed
        heap.at(offset).free()
        assert heap.stats().live_blocks == 0


def test_what_somebody_else_has_freed_is_no_block():
    with Region.memfd(1 << 20) as region, Heap(region) as heap:
        block = heap.alloc(100)
        twin = heap.at(block.offset)
        block.free()
        with pytest.raises(ValueError, match="no live block"):
            twin.free()
        for offset in (0, 17, 5000, 1 << 19, 1 << 21):
            with pytest.raises(ValueError, match="no live block"):
                heap.at(offset)
        with pytest.raises(ValueError, match="at: offset must be between 0"):
            heap.at(-1)


def test_only_heaps_in_regions_have_offsets():
    with Heap() as heap:
        with pytest.raises(Error, match="region"):
            heap.at(16)
        block = heap.alloc(10)
        with pytest.raises(Error, match="region"):
            block.offset  # noqa: B018
        block.free()


def test_a_file_keeps_its_heap(tmp_path):
    path = tmp_path / "heap"
    path.write_bytes(bytes(1 << 20))
    with Region.file(path, mode="r+") as region, Heap(region) as heap:
        block = heap.alloc(11)
        memoryview(block)[:] = b"still there"
        offset = block.offset
    with Region.file(path, mode="r+") as region, Heap.attach(region) as heap:
        assert bytes(heap.at(offset)) == b"still there"
        heap.check()
        with pytest.raises(Error, match=r"attach joins"):
            Heap(region)


@contextmanager
def in_another_thread(region, function):
    """Run a function in a thread that stands before the heap's lock for as long as the block runs."""
    lock = region.address + LOCK
    libc = ctypes.CDLL(None)
    assert libc.pthread_mutex_lock(ctypes.c_void_p(lock)) == 0
    thread = threading.Thread(target=function)
    thread.start()
    try:
        calls = Path(f"/proc/self/task/{thread.native_id}/syscall")
        wait_until(lambda: calls.read_text().split()[:2] == [FUTEX, hex(lock)])
        yield
    finally:
        assert libc.pthread_mutex_unlock(ctypes.c_void_p(lock)) == 0
        thread.join()


def test_nobody_looks_at_a_block_that_another_thread_resizes():
    with Region.memfd(16 << 20) as region, Heap(region) as heap:
        block = heap.alloc(1 << 20)
        with in_another_thread(region, lambda: block.resize(2 << 20)):
            with pytest.raises(BufferError, match="resizing"):
                memoryview(block)
            with pytest.raises(BufferError):
                block.free()
        with memoryview(block) as view:
            assert len(view) == 2 << 20


@pytest.mark.parametrize(
    "call",
    [Heap.check, Heap.blocks, Heap.stats, Heap.trim, lambda heap: heap.alloc(1 << 20, zero=True)],
    ids=["check", "blocks", "stats", "trim", "alloc"],
)
def test_a_shared_heap_is_not_closed_under_another_threads_call(call):
    with Region.memfd(16 << 20) as region, Heap(region) as heap:
        with (
            in_another_thread(region, lambda: call(heap)),
            pytest.raises(BufferError, match="inside a call"),
        ):
            heap.close()
        heap.check()


def test_what_is_no_heap_cannot_be_joined(tmp_path):
    with Region.memfd(1 << 20) as region, pytest.raises(CorruptError, match="no heap"):
        Heap.attach(region)
    with Region.anonymous(1 << 20) as region, pytest.raises(Error, match="private"):
        Heap.attach(region)
    with pytest.raises(TypeError):
        Heap.attach(None)


def test_a_smashed_head_is_an_error_for_everybody_and_no_abort():
    with Region.memfd(1 << 20) as region:
        heap = Heap(region)
        block = heap.alloc(100)
        mmkit.poke(block.address - 16, b"\xff")
        for _ in range(2):  # What could not be freed is as it was.
            with pytest.raises(CorruptError, match="check"):
                block.free()
        assert len(block) == 100
        with pytest.raises(CorruptError):
            heap.alloc(10)
        assert repr(heap) == "<mmkit.Heap: damaged>"
        with pytest.raises(CorruptError, match=f"{region.address:#x}"[:8]):
            heap.check()
        with pytest.raises(CorruptError):
            Heap.attach(region)
        heap.close()


@pytest.mark.parametrize("left", [0, 1 << 14, 1 << 19])
def test_a_file_cut_under_a_heap_is_corrupt_and_the_process_lives(tmp_path, left):
    path = tmp_path / "heap"
    path.write_bytes(bytes(1 << 20))

    def use():
        with Region.file(path, mode="r+") as region:
            heap = Heap(region)
            kept = [heap.alloc(100_000, zero=True) for _ in range(9)]
            os.truncate(path, left)
            calls = [
                kept[8].free,
                lambda: heap.alloc(5000, zero=True),
                lambda: kept[7].resize(120_000),
                lambda: heap.at(kept[6].offset),
                heap.stats,
                heap.blocks,
                heap.trim,
            ]
            for call in calls:
                with pytest.raises(CorruptError):
                    call()
            with pytest.raises(CorruptError, match="made shorter"):
                heap.check()
            with pytest.raises(mmkit.MemoryFault, match="file"):
                mmkit.peek(region.address + (1 << 20) - 1, 1)
            assert repr(heap) == "<mmkit.Heap: damaged>"
            heap.close()

    in_child(use)


def test_a_process_killed_at_work_leaves_a_whole_heap():
    """The core's tests kill hundreds, and at each instruction: this is the same through Python."""
    with Region.memfd(4 << 20) as region, Heap(region) as heap:
        mine = [heap.alloc(500) for _ in range(20)]
        for number, block in enumerate(mine):
            memoryview(block)[:] = bytes([number]) * 500
        for _ in range(10):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                blocks = []
                os.write(writer, b"x")
                while True:
                    blocks.append(heap.alloc(len(blocks) * 7 % 3000 + 1))
                    if len(blocks) > 50:
                        blocks.pop(len(blocks) * 13 % 50).free()
            os.read(reader, 1)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            os.close(writer)
            heap.alloc(100).free()
            heap.check()
            addresses = {block.address for block in mine}
            for info in heap.blocks():
                if info.kind == "live" and info.address not in addresses:
                    heap.at(info.address - region.address).free()
        assert all(bytes(block) == bytes([number]) * 500 for number, block in enumerate(mine))


def test_a_child_shares_the_heap():
    with Region.anonymous(1 << 20, shared=True) as region, Heap(region) as heap:

        def use():
            block = heap.alloc(20)
            memoryview(block)[:] = b"from the child, yes!"
            return block.offset

        assert bytes(heap.at(in_child(use))) == b"from the child, yes!"
