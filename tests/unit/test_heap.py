"""`Heap` and its blocks: what they promise, and what they refuse."""

import gc
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

import mmkit
from mmkit import ClosedError, CorruptError, Error, Heap, OutOfMemory, Pool, Region, linux
from mmkit.heap import BlockInfo, HeapBlock
from support import PAGE, SANITIZED, in_child, needs_root

SOURCES = ["mmap", "sbrk", "region", "memfd"]


@pytest.fixture(params=SOURCES)
def heap(request):
    region = None
    if request.param == "region":
        region = Region.anonymous(16 << 20)
    elif request.param == "memfd":
        region = Region.memfd(16 << 20)
    with Heap(region or request.param) as made:
        yield made
        made.check()
    if region:
        region.close()


def test_a_block_is_a_writable_buffer_of_the_length_asked_for(heap):
    with heap.alloc(1000, zero=True) as block:
        assert len(block) == 1000
        assert bytes(block) == bytes(1000)
        with memoryview(block) as view:
            assert (view.nbytes, view.format, view.readonly) == (1000, "B", False)
            view[:5] = b"hello"
        assert mmkit.peek(block.address, 5) == b"hello"


def test_numpy_sees_a_block_without_copying(heap):
    numpy = pytest.importorskip("numpy")
    block = heap.alloc(800, zero=True)
    array = numpy.frombuffer(block, dtype="f8")
    array[:] = 1.5
    assert array.ctypes.data == block.address
    with pytest.raises(BufferError):
        block.free()
    del array
    block.free()


def test_an_alignment_is_any_power_of_two(heap):
    for shift in range(17):
        block = heap.alloc(100, 1 << shift)
        assert block.address % (1 << shift) == 0
        block.free()


@pytest.mark.parametrize("size", [0, -1, -(2**63), 2**63, 2**64, -(2**70)])
def test_a_size_that_makes_no_sense_is_a_value_error(heap, size):
    with pytest.raises(ValueError, match=r"alloc: .*(at least one byte|address space)"):
        heap.alloc(size)
    block = heap.alloc(10)
    with pytest.raises(ValueError, match=r"resize: .*(at least one byte|address space)"):
        block.resize(size)
    assert len(block) == 10


@pytest.mark.parametrize("align", [0, 3, -1, -16, 24, 2**62 + 1])
def test_an_alignment_that_is_no_power_of_two_is_a_value_error(heap, align):
    with pytest.raises(ValueError, match=f"power of two, which {align} is not"):
        heap.alloc(10, align)


def test_sizes_and_alignments_are_integers(heap):
    for wrong in ("10", 1.0, None):
        with pytest.raises(TypeError):
            heap.alloc(wrong)
        with pytest.raises(TypeError):
            heap.alloc(10, wrong)


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63 - 1])
def test_a_size_that_cannot_be_had_is_out_of_memory_and_a_memory_error(heap, size):
    with pytest.raises(OutOfMemory, match="no room"):
        heap.alloc(size)
    with pytest.raises(MemoryError):
        heap.alloc(16, 2**61)
    heap.alloc(16).free()


def test_a_block_freed_twice_or_used_after_free_raises(heap):
    block = heap.alloc(100)
    block.free()
    for use in (
        block.free,
        lambda: block.resize(10),
        lambda: memoryview(block),
        lambda: len(block),
        lambda: block.address,
        lambda: bytes(block),
        block.__enter__,
    ):
        with pytest.raises(ClosedError, match="freed already"):
            use()
    assert heap.stats().live_blocks == 0


def test_freeing_or_resizing_under_a_view_raises_and_changes_nothing(heap):
    block = heap.alloc(100)
    address = block.address
    view = memoryview(block)
    for change in (block.free, lambda: block.resize(10), heap.close):
        with pytest.raises(BufferError):
            change()
    assert (len(block), block.address, heap.stats().live_blocks) == (100, address, 1)
    view.release()
    block.free()


class _Acting:
    """A number of bytes that does something when it is read."""

    def __init__(self, act):
        self.act = act

    def __index__(self):
        self.done = self.act()
        return 1_000_000


def test_resizing_looks_for_views_after_the_number_was_read_whose_code_may_make_one(heap):
    block = heap.alloc(100)
    address = block.address
    number = _Acting(lambda: memoryview(block))
    with pytest.raises(BufferError, match="live"):
        block.resize(number)
    assert (len(block), block.address) == (100, address)
    number.done.release()
    with pytest.raises(ClosedError, match="freed already"):
        block.resize(_Acting(block.free))
    with Heap() as other, pytest.raises(ClosedError, match="heap is closed"):
        other.alloc(100).resize(_Acting(other.close))


def test_a_block_is_made_by_its_heap_only():
    with pytest.raises(TypeError, match="alloc"):
        HeapBlock()
    bare = HeapBlock.__new__(HeapBlock)
    with pytest.raises(ClosedError):
        bare.free()
    assert repr(bare) == "<mmkit.heap.HeapBlock: freed>"


def test_resizing_keeps_contents_and_alignment(heap):
    block = heap.alloc(300, 64)
    memoryview(block)[:] = bytes(range(256)) + bytes(44)
    wall = heap.alloc(16)
    for size in (10_000, 256, 1_000_000, 400_000, 300):
        block.resize(size)
        assert len(block) == size
        assert block.address % 64 == 0
        assert bytes(memoryview(block)[:256]) == bytes(range(256))
    wall.free()
    block.free()


def test_a_large_block_has_a_region_of_its_own_and_grows_without_copying():
    with Heap() as heap:
        block = heap.alloc(16 << 20)
        assert [info.kind for info in heap.blocks()].count("large") == 1
        memoryview(block)[0] = 7
        block.resize(64 << 20)
        assert memoryview(block)[0] == 7
        block.free()
        assert heap.stats().mapped_bytes < 16 << 20


def test_the_limit_holds_and_leaves_a_usable_heap():
    with Heap(limit=1 << 20) as heap:
        blocks = []
        with pytest.raises(OutOfMemory):
            while True:
                blocks.append(heap.alloc(10_000))
        assert len(blocks) > 80
        assert heap.stats().mapped_bytes <= 1 << 20
        with pytest.raises(OutOfMemory):
            blocks[0].resize(500_000)
        assert len(blocks[0]) == 10_000
        blocks.pop().free()
        blocks.append(heap.alloc(10_000))
        heap.check()


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has more address space than any limit")
def test_without_address_space_each_refusal_leaves_a_usable_heap():
    def exhaust():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), used + (48 << 20)))
        heap, blocks = Heap(), []
        refused = 0
        for size in (5_000_000, 300_000, 10_000_000, 20_000):
            try:
                while True:
                    blocks.append(heap.alloc(size))
            except OutOfMemory:
                refused += 1
                heap.check()
        del blocks[::2]
        heap.alloc(20_000).free()
        heap.check()
        return refused

    assert in_child(exhaust) == 4


@pytest.mark.parametrize("limit", [0, -1, 2**63])
def test_a_limit_that_makes_no_sense_is_a_value_error(limit):
    with pytest.raises(ValueError, match="limit"):
        Heap(limit=limit)


def test_a_source_is_mmap_sbrk_or_a_region():
    for source in ("malloc", None, 5, b"mmap", bytearray(100)):
        with pytest.raises(ValueError, match="source must be"):
            Heap(source)
    with Region.anonymous(PAGE) as region:
        region.close()
        with pytest.raises(ClosedError):
            Heap(region)
    with Region.anonymous(PAGE, prot=mmkit.Prot.READ) as region, pytest.raises(Error, match="written"):
        Heap(region)
    with Region.memfd(PAGE) as region, pytest.raises(ValueError, match="too small"):
        Heap(region)


def test_a_heap_is_opened_once():
    heap = Heap()
    with pytest.raises(Error, match="once"):
        heap.__init__()
    heap.close()
    with pytest.raises(Error, match="once"):
        heap.__init__()


# ---- life -------------------------------------------------------------------------------------------


def test_a_dropped_block_of_a_private_heap_is_given_back():
    with Heap() as heap:
        heap.alloc(100)
        blocks = [heap.alloc(100) for _ in range(1000)]
        assert heap.stats().live_blocks == 1000
        del blocks
        gc.collect()
        assert heap.stats().live_blocks == 0


def test_a_dropped_block_warns_when_that_is_asked_for():
    with Heap(warn=True) as heap:
        with pytest.warns(ResourceWarning, match="100 bytes at 0x"):
            heap.alloc(100)
        assert heap.stats().live_blocks == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            heap.alloc(100).free()


def test_a_dropped_block_is_given_back_although_the_warning_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda failed: None)
    with Heap(warn=True) as heap, Pool(64, 1, warn=True) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        heap.alloc(100)
        pool.take()
        assert (heap.stats().live_blocks, pool.stats().live) == (0, 0)


def test_the_error_of_a_with_block_counts_more_than_a_view_of_its_block():
    with Heap() as heap, Pool(64, 1) as pool:
        for made in (heap.alloc(64), pool.take()):
            with pytest.raises(LookupError) as caught, made:
                view = memoryview(made)
                raise LookupError
            assert "view of the block is live" in caught.value.__notes__[0]
            view.release()
            made.free()


@pytest.mark.skipif(SANITIZED, reason="its allocator is the sanitizer's")
def test_the_collector_does_not_take_the_region_from_under_a_heap():
    """What is used after it was freed is seen where each block of the interpreter is guarded."""
    code = """if True:
        import gc, mmkit

        def in_a_circle(kind, *arguments, **more):
            made = type("Circle", (kind,), {})(*arguments, **more)
            made.itself = made

        in_a_circle(mmkit.Heap, mmkit.Region.memfd(1 << 16))
        in_a_circle(mmkit.Arena, mmkit.Region.memfd(1 << 16))
        in_a_circle(mmkit.Pool, 64, 10, source=mmkit.Region.memfd(1 << 16))
        gc.collect()
        assert not mmkit.regions()
    """
    done = subprocess.run(
        [sys.executable, "-m", "mmkit", "run", "--guard", sys.executable, "-c", code],
        env=os.environ | {"PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_view_keeps_block_and_heap_alive():
    view = memoryview(Heap().alloc(100, zero=True))
    gc.collect()
    view[:3] = b"abc"
    assert bytes(view[:4]) == b"abc\0"


def test_after_close_everything_says_closed_and_addresses_stay_taken():
    heap = Heap()
    block = heap.alloc(100)
    address = block.address
    heap.close()
    heap.close()
    assert heap.closed
    for use in (
        lambda: heap.alloc(1),
        heap.stats,
        heap.blocks,
        heap.check,
        heap.trim,
        heap.map,
        block.free,
        lambda: memoryview(block),
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()
    with pytest.raises(mmkit.MemoryFault):
        mmkit.peek(address, 1)
    assert repr(heap) == "<mmkit.Heap: closed>"
    assert repr(block) == "<mmkit.heap.HeapBlock of a closed heap>"


def test_a_region_stays_open_as_long_as_its_heap():
    region = Region.anonymous(1 << 20)
    with Heap(region):
        with pytest.raises(BufferError):
            region.close()
        with pytest.raises(BufferError):
            region.discard()
    region.close()


def test_making_and_freeing_allocates_only_the_object():
    with Heap() as heap:
        alloc = heap.alloc
        for _ in range(100):
            alloc(64).free()
        before = sys.getallocatedblocks()
        for _ in range(10_000):
            alloc(64).free()
        assert sys.getallocatedblocks() - before < 50


# ---- what it says -----------------------------------------------------------------------------------


def test_stats_count_what_is_live(heap):
    blocks = [heap.alloc(1000) for _ in range(10)]
    stats = heap.stats()
    assert (stats.live_blocks, stats.live_bytes, stats.peak_bytes) == (10, 10_000, 10_000)
    assert stats.mapped_bytes >= stats.live_bytes
    assert 0 <= stats.fragmentation < 1
    row = next(row for row in stats.classes if row.least == 512)
    assert (row.live_blocks, row.live_bytes) == (10, 10_000)
    for block in blocks:
        block.free()
    assert (heap.stats().live_bytes, heap.stats().peak_bytes) == (0, 10_000)


def test_freed_neighbours_are_one_block_to_whoever_looks(heap):
    blocks = [heap.alloc(100) for _ in range(30)]
    first = blocks[1].address
    for block in blocks[1:-1]:
        block.free()
    middle = next(info for info in heap.blocks() if info.address == first)
    assert (middle.kind, middle.size >= 28 * 100) == ("free", True)
    blocks[0].free()
    blocks[-1].free()


def test_blocks_lists_every_block_in_order(heap):
    first, second = heap.alloc(100), heap.alloc(200)
    blocks = heap.blocks()
    live = [(info.address, info.size) for info in blocks if info.kind == "live"]
    assert live == [(first.address, 100), (second.address, 200)]
    assert all(isinstance(info, BlockInfo) for info in blocks)
    assert all(one.address + one.span <= other.address for one, other in itertools.pairwise(blocks))


def test_leaks_name_who_allocated():
    def careless(heap):
        return heap.alloc(321)

    with Heap(track=4) as heap:
        kept = careless(heap)
        heap.alloc(100).free()
        (leak,) = heap.leaks()
        assert (leak.address, leak.size) == (kept.address, 321)
        assert leak.frames[0][0] == __file__
        assert leak.frames[0][2].endswith("careless")
        assert "careless" in str(leak)
        assert len(leak.frames) == 4
        assert len(heap.leaks(frames=1)[0].frames) == 1
        kept.resize(500_000)
        assert heap.leaks()[0].frames[0][2].endswith("careless")
        kept.free()
        assert heap.leaks() == []
    with Heap() as heap, pytest.raises(ValueError, match="track="):
        heap.leaks()


def test_trim_gives_memory_back(heap):
    blocks = [heap.alloc(100_000) for _ in range(40)]
    for block in blocks:
        memoryview(block)[:] = b"x" * 100_000
    for block in blocks[1::2]:
        block.free()
    assert heap.trim() > 15 * 100_000
    assert all(bytes(block) == b"x" * 100_000 for block in blocks[::2])
    for block in blocks[::2]:
        block.free()


def test_the_map_draws_blocks_free_runs_and_a_legend():
    with Heap() as heap:
        kept = [heap.alloc(48) for _ in range(3)]
        gone = heap.alloc(1000)
        kept.append(heap.alloc(200))
        gone.free()
        start = kept[0].address - 16
        drawn = heap.map(start, start + 4 * 64 * 16, scale=16, width=64, color=False)
        first = drawn.splitlines()[0]
        assert first.startswith(f"{start:#14x} ")
        assert first.split()[1].startswith("CcccCcccCccc·········")
        assert "one character: 16 B" in drawn
        assert "c up to 64 B" in drawn
        assert "\x1b[" in heap.map(color=True)
        assert "\x1b[" not in heap.map(color=False)
        for wrong in ({"scale": 0}, {"width": 0}):
            with pytest.raises(ValueError, match="at least 1"):
                heap.map(**wrong)


def test_the_map_shows_what_others_took_of_the_break():
    def draw():
        heap = Heap("sbrk")
        kept = heap.alloc(200_000)
        linux.sbrk(8192)
        more = heap.alloc(200_000)
        drawn = heap.map(color=False)
        return "#" in drawn, kept.address < more.address, any(info.kind == "hole" for info in heap.blocks())

    assert in_child(draw) == (True, True, True)


# ---- damage -----------------------------------------------------------------------------------------


@pytest.mark.skipif(SANITIZED, reason="ASan sees the write itself")
def test_check_says_what_is_broken_and_where():
    with Heap() as heap:
        first, second = heap.alloc(100), heap.alloc(100)
        head = second.address - 16
        saved = mmkit.peek(head, 16)
        mmkit.poke(first.address + 112, b"overrun")
        with pytest.raises(CorruptError, match=f"damaged at {head:#x}.*smashed.*{first.address - 16:#x}"):
            heap.check()
        mmkit.poke(head, saved)
        heap.check()
        mmkit.poke(first.address - 16, b"underrun")
        with pytest.raises(CorruptError, match=f"smashed. The next good head behind it is at {head:#x}$"):
            heap.check()


@pytest.mark.skipif(SANITIZED, reason="ASan sees the write itself")
def test_a_smashed_head_aborts_with_one_line():
    code = (
        "import mmkit; heap = mmkit.Heap(); a, b = heap.alloc(100), heap.alloc(100)\n"
        "mmkit.poke(a.address + 112, b'overrun'); b.free()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGABRT
    assert done.stderr.splitlines()[0].startswith("mmkit: heap corruption at 0x")


# ---- threads, fork ----------------------------------------------------------------------------------


def test_threads_share_a_heap(heap):
    errors = []

    def work(seed):
        try:
            kept = []
            for i in range(2000):
                size = (i * seed) % 3000 + 1
                block = heap.alloc(size)
                memoryview(block)[:] = bytes([seed]) * size
                kept.append(block)
                if i % 3:
                    old = kept.pop(i % len(kept))
                    assert bytes(old) == bytes([seed]) * len(old)
                    old.free()
            for block in kept:
                assert bytes(block) == bytes([seed]) * len(block)
                block.free()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (3, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert heap.stats().live_blocks == 0


def test_a_child_has_a_copy_of_a_private_heap():
    with Heap() as heap:
        block = heap.alloc(100, zero=True)

        def use():
            memoryview(block)[:5] = b"child"
            block.free()
            heap.check()
            return heap.stats().live_blocks

        assert in_child(use) == 0
        assert bytes(block) == bytes(100)
        assert heap.stats().live_blocks == 1


@needs_root
def test_a_full_tmpfs_is_out_of_memory_and_no_signal(tmp_path):
    assert subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path]).returncode == 0
    try:
        path = tmp_path / "heap"
        with open(path, "wb") as file:
            file.truncate(8 << 20)
        with Region.file(path, mode="r+") as region, Heap(region) as heap:
            blocks = []
            with pytest.raises(OutOfMemory):
                while True:
                    block = heap.alloc(20_000)
                    memoryview(block)[:] = b"x" * 20_000
                    blocks.append(block)
            assert len(blocks) > 20
            heap.check()
            blocks.pop().free()
            memoryview(heap.alloc(20_000))[:] = b"y" * 20_000
            heap.check()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
