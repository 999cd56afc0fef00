"""`Block`: what the blocks of heaps, pools and arenas have in common."""

import gc

import pytest

import mmkit
from mmkit import Arena, Block, ClosedError, Error, Heap, Pool, Region
from mmkit.heap import ArenaBlock, HeapBlock, PoolBlock
from support import in_child

SIZE = 96
OWNERS = {
    "heap": (lambda source: Heap(source or "mmap"), lambda heap: heap.alloc(SIZE), HeapBlock),
    "pool": (lambda source: Pool(SIZE, 10, source=source), lambda pool: pool.take(), PoolBlock),
    "arena": (lambda source: Arena(source), lambda arena: arena.alloc(SIZE), ArenaBlock),
}


@pytest.fixture(params=OWNERS)
def kind(request):
    return OWNERS[request.param]


def test_each_is_a_block_which_is_a_writable_buffer_with_an_address(kind):
    make, take, cls = kind
    with make(None) as owner:
        block = take(owner)
        assert type(block) is cls
        assert isinstance(block, Block)
        assert len(block) == SIZE
        with memoryview(block) as view:
            assert (view.nbytes, view.format, view.readonly, view.contiguous) == (SIZE, "B", False, True)
            view[:5] = b"hello"
        assert mmkit.peek(block.address, 5) == b"hello"
        assert f" {SIZE} bytes at {block.address:#x}>" in repr(block)


def test_offsets_count_from_the_start_of_the_region_also_where_that_is_within_a_page(kind, tmp_path):
    make, take, _ = kind
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 16))
    with Region.file(file, offset=1234, mode="r+") as region, make(region) as owner:
        block = take(owner)
        memoryview(block)[:5] = b"hello"
        assert region[block.offset : block.offset + 5] == b"hello"
        assert block.address == region.address + block.offset


@pytest.mark.parametrize("name", ["heap", "pool"])
def test_at_says_closed_once_its_owner_is(name):
    with Region.anonymous(1 << 16) as region, OWNERS[name][0](region) as owner:
        offset = OWNERS[name][1](owner).offset
        owner.close()
        with pytest.raises(ClosedError, match=f"the {name} is closed"):
            owner.at(offset)


def test_offsets_of_memory_of_its_own_are_those_of_that_memory_where_it_is_one_piece():
    with Heap() as heap, Pool(SIZE, 10) as pool, Arena() as arena:
        with pytest.raises(Error, match="in a region"):
            _ = heap.alloc(SIZE).offset
        assert pool.at((block := pool.take()).offset).address == block.address
        assert arena.alloc(SIZE).offset == 0


def test_every_view_of_a_block_counts(kind):
    make, take, _ = kind
    with make(None) as owner:
        block = take(owner)
        views = [memoryview(block) for _ in range(3)]
        for view in views:
            with pytest.raises(BufferError, match="live"):
                owner.close()
            view.release()
    for use in (lambda: len(block), lambda: block.address, lambda: memoryview(block)):
        with pytest.raises(ClosedError, match="closed"):
            use()


def test_blocks_are_made_by_what_owns_them_only(kind):
    cls = kind[2]
    for made in (cls, Block):
        with pytest.raises(TypeError, match=r"made by Heap\.alloc\(\), Pool\.take\(\) or Arena\.alloc\(\)"):
            made()
    with pytest.raises(TypeError, match="not an acceptable base"):
        type("Derived", (cls,), {})
    bare = cls.__new__(cls)
    with pytest.raises(ClosedError):
        len(bare)
    assert repr(bare).startswith(f"<mmkit.heap.{cls.__name__}: ")


def test_what_a_block_cannot_do_is_an_error_that_says_why_and_changes_nothing():
    with Pool(SIZE, 10) as pool, Arena() as arena:
        block, other = pool.take(), arena.alloc(SIZE)
        with pytest.raises(Error, match="all blocks of a pool have one size"):
            block.resize(2 * SIZE)
        with pytest.raises(Error, match="keeps its length"):
            other.resize(2 * SIZE)
        with pytest.raises(Error, match="goes when that is rewound"):
            other.free()
        assert (len(block), len(other)) == (SIZE, SIZE)
    for call in (lambda: block.resize(1), lambda: other.resize(1), other.free):
        with pytest.raises(ClosedError):
            call()


def test_whoever_derives_from_block_gets_blocks_that_are_gone():
    class Own(Block):
        def __init__(self):
            pass

    own = Own()
    for use in (len, memoryview, lambda block: block.address):
        with pytest.raises(ClosedError, match="the block is gone"):
            use(own)


def test_the_collector_does_not_know_blocks_and_all_come_from_one_free_list(kind):
    """A class that the collector knew would be laid out otherwise, and not be served by the list."""
    make, take, cls = kind
    has_gc = 1 << 14
    assert not cls.__flags__ & has_gc
    assert cls.__basicsize__ == Block.__basicsize__
    with make(None) as owner:
        block = take(owner)
        assert not gc.is_tracked(block)
        place = id(block)
        del block
        assert id(Block.__new__(Block)) == place


def test_only_blocks_that_go_alone_are_for_with_blocks():
    with Heap() as heap, Pool(SIZE, 10) as pool, Arena() as arena:
        for block in (heap.alloc(SIZE), pool.take()):
            with block as same:
                assert same is block
            with pytest.raises(ClosedError, match="already"):
                block.free()
            with pytest.raises(ClosedError, match="with:"), block:
                pass
        assert not hasattr(arena.alloc(SIZE), "__enter__")


def test_attaching_to_nothing_is_a_type_error():
    for cls in (Heap, Pool):
        with pytest.raises(TypeError):
            cls.attach(None)


# ---- two in one region ------------------------------------------------------------------------------

NAMES = {"heap": "a heap", "pool": "a pool", "arena": "an arena"}


@pytest.mark.parametrize("second", OWNERS)
@pytest.mark.parametrize("first", OWNERS)
@pytest.mark.parametrize("make_region", [Region.anonymous, Region.memfd])
def test_what_stands_in_a_region_is_not_overwritten_by_a_second_one(first, second, make_region):
    make, take, _ = OWNERS[first]
    make_second = OWNERS[second][0]
    with make_region(1 << 16) as region:
        with make(region) as owner:
            block = take(owner)
            memoryview(block)[:] = b"x" * SIZE
            with pytest.raises(Error) as refused:
                make_second(region)
            text = str(refused.value)
            assert text.startswith(
                f"{NAMES[second]} would overwrite {NAMES[first]} that stands in the region at "
            )
            assert f"{region.address:#x} (64 KiB): close that first" in text
            assert bytes(block) == b"x" * SIZE
            assert len(take(owner)) == SIZE
        if first == second == "heap" and make_region == Region.memfd:
            with pytest.raises(Error, match=r"Heap\.attach joins"):
                make_second(region)
        else:
            make_second(region).close()


@pytest.mark.parametrize("name", ["heap", "pool"])
def test_a_second_handle_to_shared_memory_joins_and_keeps_the_place(name):
    make, take, cls = OWNERS[name]
    with Region.memfd(1 << 16) as region:
        first = make(region)
        with pytest.raises(Error, match=rf"{type(first).__name__}\.attach joins"):
            make(region)
        offset = take(first).offset
        with type(first).attach(region) as second:
            first.close()
            for other in OWNERS.values():
                with pytest.raises(Error, match=f"would overwrite {NAMES[name]} that stands"):
                    other[0](region)
            assert type(second.at(offset)) is cls
        Arena(region).close()


@pytest.mark.parametrize("name", ["heap", "pool"])
def test_nobody_joins_what_an_arena_stands_over(name):
    with Region.memfd(1 << 16) as region:
        made = OWNERS[name][0](region)
        made.close()
        with Arena(region), pytest.raises(Error, match="an arena that stands"):
            type(made).attach(region)
        type(made).attach(region).close()


def test_a_dropped_owner_frees_its_place(kind):
    make, take, _ = kind
    with Region.anonymous(1 << 16) as region:
        block = take(make(region))
        with pytest.raises(Error, match="would overwrite"):
            Arena(region)
        del block
        Arena(region).close()


def test_an_owner_that_could_not_be_made_holds_no_place():
    with Region.anonymous(1 << 16) as region:
        with pytest.raises(ValueError, match="need a region"):
            Pool(1 << 20, 10, source=region)
        with pytest.raises(ValueError, match="too small"):
            Heap(region, limit=16)
        Arena(region).close()


def test_a_forked_child_has_its_copy_and_its_own_to_close():
    with Region.anonymous(1 << 16) as region, Arena(region) as arena:

        def child():
            try:
                Heap(region)
            except Error:
                arena.close()
                Heap(region).close()
                return "refused, then made"

        assert in_child(child) == "refused, then made"
        with pytest.raises(Error, match="an arena that stands"):
            Heap(region)
