"""Arena: blocks behind each other, marks, and what rewinding refuses."""

import gc
import resource
from pathlib import Path

import numpy as np
import pytest

import mmkit
from mmkit import Arena, ClosedError, OutOfMemory, Region
from mmkit.heap import ArenaBlock, Mark
from support import in_child, sanitized


def test_blocks_are_writable_buffers_that_do_not_overlap():
    with Arena() as arena:
        blocks = [arena.alloc(size) for size in (1, 100, 5000, 1 << 20)]
        for number, block in enumerate(blocks):
            assert block.address % 16 == 0
            memoryview(block)[:] = bytes([number]) * len(block)
        for number, block in enumerate(blocks):
            assert bytes(block) == bytes([number]) * len(block)


@pytest.mark.parametrize("align", [1, 2, 64, 4096, 1 << 21])
def test_a_block_is_aligned_as_asked(align):
    with Arena() as arena:
        arena.alloc(1, align=1)
        assert arena.alloc(10, align).address % align == 0


def test_rewinding_frees_what_came_after_the_mark_and_keeps_the_memory():
    with Arena() as arena:
        kept = arena.alloc(100)
        memoryview(kept)[:4] = b"kept"
        mark = arena.mark()
        gone = arena.alloc(1 << 20)
        address, capacity = gone.address, arena.capacity
        arena.rewind(mark)
        assert (arena.used, arena.capacity) == (100, capacity)
        assert arena.peak >= 1 << 20
        for call in (lambda: memoryview(gone), lambda: len(gone), lambda: gone.address, lambda: gone.offset):
            with pytest.raises(ClosedError, match="rewound"):
                call()
        assert arena.alloc(1 << 20).address == address
        assert bytes(kept)[:4] == b"kept"
        arena.rewind()
        assert arena.used == 0
        with pytest.raises(ClosedError):
            bytes(kept)


def test_rewinding_under_a_view_that_would_dangle_raises_and_changes_nothing():
    with Arena() as arena:
        before = memoryview(arena.alloc(10))
        mark = arena.mark()
        others = [arena.alloc(10) for _ in range(3)]
        array = np.frombuffer(arena.alloc(10), "u1")
        others += [arena.alloc(10) for _ in range(3)]
        used = arena.used
        for call in (lambda: arena.rewind(mark), arena.rewind, arena.close):
            with pytest.raises(BufferError):
                call()
        assert arena.used == used
        assert [len(block) for block in others] == [10] * 6
        array[:] = 1
        del array
        arena.rewind(mark)
        with pytest.raises(BufferError):
            arena.rewind()
        before.release()


def test_a_with_block_on_a_mark_rewinds_at_its_end():
    with Arena() as arena:
        arena.alloc(16)
        with arena.mark():
            arena.alloc(100)
            with arena.mark() as inner:
                arena.alloc(1000)
                arena.rewind(inner)
                assert arena.used == 116
        assert arena.used == 16
        with pytest.raises(BufferError), arena.mark():
            view = memoryview(arena.alloc(8))
        view.release()
        with pytest.raises(KeyError) as caught, arena.mark():
            view = memoryview(arena.alloc(8))
            raise KeyError
        assert any("view" in note for note in caught.value.__notes__)
        view.release()
        with arena.mark():
            arena.rewind()
        assert arena.used == 0


def test_a_mark_that_was_rewound_over_is_refused():
    with Arena() as arena, Arena() as other:
        low = arena.mark()
        arena.alloc(100)
        high = arena.mark()
        arena.rewind(low)
        arena.alloc(200)
        with pytest.raises(ValueError, match="before this mark"):
            arena.rewind(high)
        arena.rewind(low)
        arena.rewind(low)
        with pytest.raises(ValueError, match="another arena's"):
            other.rewind(low)
        with pytest.raises(TypeError):
            arena.rewind(0)
        assert repr(low) == "<mmkit.heap.Mark at 0>"
        assert repr(high) == "<mmkit.heap.Mark: gone>"


def test_blocks_and_marks_that_are_dropped_in_any_order_leave_the_rest():
    with Arena() as arena:
        places = [arena.mark() if i % 3 == 0 else arena.alloc(10) for i in range(30)]
        view = memoryview(places[20])
        for index in (0, 29, 15, 14, 16, 20):
            places[index] = None
        with pytest.raises(BufferError):
            arena.rewind(places[18])
        view.release()
        arena.rewind(places[18])
        assert "gone" in repr(places[19])
        assert len(places[17]) == 10


def test_zeros_on_request():
    with Arena() as arena:
        memoryview(arena.alloc(5000))[:] = b"x" * 5000
        arena.rewind()
        assert bytes(arena.alloc(100)) == b"x" * 100
        assert bytes(arena.alloc(100_000, zero=True)) == bytes(100_000)
    with Region.anonymous(4096) as region:
        region[:] = b"x" * 4096
        with Arena(region) as arena:
            assert bytes(arena.alloc(4096, zero=True)) == bytes(4096)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0,), ValueError), ((-1,), ValueError), ((1, 0), ValueError), ((1, 3), ValueError), ((1, -16), ValueError),
     ((1 << 63,), OverflowError), (((1 << 63) - 1,), OutOfMemory), ((1 << 40,), OutOfMemory), (("9",), TypeError)],
)  # fmt: skip
def test_requests_that_make_no_sense_change_nothing(arguments, error):
    with Arena(limit=1 << 20) as arena:
        arena.alloc(7)
        with pytest.raises(error):
            arena.alloc(*arguments)
        assert arena.used == 7


def test_an_arena_that_is_full_can_be_used_on():
    with Arena(limit=1 << 20) as arena:
        blocks = [arena.alloc(1 << 16) for _ in range(16)]
        with pytest.raises(OutOfMemory, match="rewind"):
            arena.alloc(1)
        assert len(blocks[15]) == 1 << 16
        arena.rewind()
        arena.alloc(1 << 20)


@sanitized
def test_an_arena_holds_less_address_space_where_there_is_less():
    def child():
        with Arena() as arena:
            arena.alloc(1 << 20)
            with pytest.raises(OutOfMemory):
                arena.alloc(2 << 30)
        with pytest.raises(OutOfMemory):
            Arena(limit=16 << 30)

    # What earlier tests left to the collector is address space of the child's, too.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmkit.PAGE_SIZE
    in_child(child, limits={resource.RLIMIT_AS: used + (3 << 30)})


def test_an_arena_in_a_shared_region_is_seen_by_others():
    with Region.anonymous(4096, shared=True) as region:
        with Arena(region) as arena:
            block = arena.alloc(5)
            memoryview(block)[:] = b"hello"
            offset = block.offset
            assert in_child(lambda: region[offset : offset + 5]) == b"hello"
            with pytest.raises(BufferError):
                region.close()
            with pytest.raises(OutOfMemory):
                arena.alloc(4096)
        for bad in ({"source": region, "limit": 5}, {"limit": 0}, {"limit": -1}, {"limit": 1 << 63}):
            with pytest.raises(ValueError):
                Arena(**bad)
        region.protect(mmkit.Prot.READ)
        with pytest.raises(mmkit.Error, match="written"):
            Arena(region)
    with pytest.raises(ClosedError):
        Arena(region)


def test_after_close_everything_says_so():
    arena = Arena()
    block, mark = arena.alloc(10), arena.mark()
    arena.close()
    arena.close()
    assert arena.closed
    assert (arena.used, arena.capacity) == (0, 0)
    for call in (
        lambda: arena.alloc(1),
        arena.mark,
        arena.rewind,
        lambda: arena.rewind(mark),
        lambda: bytes(block),
    ):
        with pytest.raises(ClosedError):
            call()
    assert repr(arena) == "<mmkit.Arena: closed>"
    assert "gone" in repr(block)
    for made in (ArenaBlock, Mark):
        with pytest.raises(TypeError):
            made()
    with pytest.raises(mmkit.Error, match="once"):
        arena.__init__()


def test_a_view_keeps_the_arena_alive():
    view = memoryview(Arena().alloc(10))
    gc.collect()
    view[:] = b"x" * 10
    assert bytes(view) == b"x" * 10


def test_a_forked_child_has_a_copy():
    with Arena() as arena:
        block = arena.alloc(3)
        memoryview(block)[:] = b"old"

        def child():
            memoryview(block)[:] = b"new"
            arena.rewind()
            return arena.used

        assert in_child(child) == 0
        assert bytes(block) == b"old"
        assert repr(arena) == "<mmkit.Arena: 3 B used of 64 KiB>"
