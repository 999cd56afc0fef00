"""Heaps on huge pages: those of the pool, and those that the kernel makes of memory that is advised so."""

import pytest

import mmkit
from mmkit import Advice, Heap, MapFlag, OutOfMemory, Region, maps
from mmkit.features import huge_page_size
from support import in_child, with_huge_pages

PAGES = 2


@pytest.fixture(params=["anonymous", "shared", "memfd"])
def region(request):
    if not with_huge_pages(PAGES):
        pytest.skip(f"the pool has no {PAGES} free huge pages, and none can be added")
    length = PAGES * huge_page_size()
    how = {"shared": True} if request.param == "shared" else {}
    make = Region.memfd if request.param == "memfd" else Region.anonymous
    with make(length, hugepages="require", **how) as made:
        assert MapFlag.HUGETLB in made.flags
        yield made


def use(heap):
    """Fill the heap, free every other block, and see that the others are as they were."""
    blocks = []
    with pytest.raises(OutOfMemory):
        while True:
            block = heap.alloc(100_000, zero=True)
            assert bytes(block) == bytes(len(block))
            memoryview(block)[:] = bytes([len(blocks) + 1]) * 100_000
            blocks.append(block)
    for block in blocks[1::2]:
        block.free()
    heap.check()
    heap.trim()
    heap.check()
    assert all(bytes(block) == bytes([2 * i + 1]) * 100_000 for i, block in enumerate(blocks[::2]))
    for block in blocks[::2]:
        block.resize(90_000)
        block.free()
    heap.check()
    return len(blocks)


def test_a_heap_lies_on_huge_pages_of_the_pool(region):
    with Heap(region) as heap:
        assert use(heap) > 35
        assert use(heap) > 35
        assert heap.stats().live_blocks == 0


def test_trimming_gives_huge_pages_back_whole(region):
    with Heap(region) as heap:
        first, second = heap.alloc(100), heap.alloc(huge_page_size() + 4096)
        memoryview(second)[:] = b"x" * len(second)
        assert region.resident() == PAGES * huge_page_size()
        second.free()
        heap.trim()
        heap.check()
        # The first page has a block, and the second the end of the slice.
        memoryview(first)[:] = b"y" * 100
        again = heap.alloc(huge_page_size() + 4096, zero=True)
        assert bytes(again) == bytes(len(again))
        assert bytes(first) == b"y" * 100
        again.free()
        first.free()


def test_another_process_joins_a_heap_on_huge_pages():
    if not with_huge_pages(PAGES):
        pytest.skip(f"the pool has no {PAGES} free huge pages, and none can be added")
    with Region.memfd(PAGES * huge_page_size(), hugepages="require") as region, Heap(region) as heap:
        block = heap.alloc(100)

        def write():
            with Region.file(region.fileno(), mode="r+") as mine, Heap.attach(mine) as other:
                memoryview(other.at(block.offset))[:] = b"z" * 100
                return other.alloc(50).offset

        offset = in_child(write)
        assert bytes(block) == b"z" * 100
        heap.at(offset).free()
        heap.check()


@pytest.mark.parametrize("shared", [False, True])
def test_where_the_pool_runs_out_alloc_answers_and_nobody_is_killed(shared):
    if not with_huge_pages(PAGES):
        pytest.skip(f"the pool has no {PAGES} free huge pages, and none can be added")

    def starve():
        length = 1000 * huge_page_size()
        how = {"hugepages": "require", "noreserve": True, "shared": shared}
        # The first and the last page are needed for the heap itself.
        with Region.anonymous(length, **how) as region, Heap(region) as heap:
            blocks = []
            with pytest.raises(OutOfMemory):
                while True:
                    blocks.append(heap.alloc(huge_page_size() // 2, zero=True))
            heap.check()
            heap.alloc(1000, zero=True).free()
            for block in blocks:
                block.free()
            heap.check()

    in_child(starve)


def test_a_heap_lies_on_memory_that_is_advised_to_be_of_huge_pages():
    if not mmkit.supports(Advice.HUGEPAGE):
        pytest.skip("this kernel makes no huge pages")
    with Region.anonymous(8 << 20) as region:
        region.advise(Advice.HUGEPAGE)
        with Heap(region) as heap:
            kept = heap.alloc(5 << 20, zero=True)
            memoryview(kept)[:] = b"x" * len(kept)
            huge = sum(
                area.anonhugepages
                for area in maps.read(costs=True)
                if area.start <= region.address < area.end
            )
            # Whether it finds huge pages free is the kernel's to say.
            assert huge % huge_page_size() == 0
            kept.free()
            assert use(heap) > 70
