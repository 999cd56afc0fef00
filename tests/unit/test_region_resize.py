"""Region: growing and shrinking."""

import gc
import os

import numpy as np
import pytest

import mmkit
from mmkit import Advice, MapFlag, Prot, Region
from support import PAGE, exit_signal, in_child, perms, with_huge_pages

READ_WRITE = Prot.READ | Prot.WRITE


# ---- resize


def test_growing_inside_a_reservation_keeps_views_valid():
    with Region.anonymous(PAGE, reserve=16 * PAGE) as region:
        view = memoryview(region)
        address = region.address
        region[0] = 7
        region.resize(16 * PAGE)
        assert (region.address, len(region), len(view), view[0]) == (address, 16 * PAGE, PAGE, 7)
        region[16 * PAGE - 1] = 9
        view.release()


def test_moving_under_a_live_view_is_refused_and_changes_nothing():
    with Region.anonymous(2 * PAGE, guard=True) as region:  # the guard behind it: it cannot grow in place
        view = region.view(0, 1)
        with pytest.raises(BufferError):
            region.resize(100 * PAGE)
        assert len(region) == 2 * PAGE
        view.release()
        region[0] = 7
        old = region.address
        region.resize(100 * PAGE)
        assert region.address != old
        assert (region[0], region[100 * PAGE - 1]) == (7, 0)
        assert perms(old) == "---p"
        assert perms(region.address - 1) == "---p"


def test_shrinking_cuts_only_what_no_view_sees(region):
    view = region.view(0, PAGE)
    other = region.view(2 * PAGE)
    with pytest.raises(BufferError):
        region.resize(2 * PAGE)
    other.release()
    region.resize(2 * PAGE)
    assert perms(region.address + 2 * PAGE) == "---p"
    view.release()


def test_what_was_cut_off_does_not_come_back():
    for region in (
        Region.anonymous(5000),
        Region.memfd(5000),
        Region.anonymous(5000, shared=True, reserve=9000),
    ):
        with region:
            region[:] = b"x" * 5000
            region.resize(4500)
            region.resize(5000)
            assert region[4500:] == bytes(500)
            region.resize(100)
            region.resize(9000)
            assert region[:] == b"x" * 100 + bytes(8900)


def test_growing_step_by_step_moves_seldom():
    with Region.anonymous(PAGE) as region:
        addresses = set()
        for pages in range(2, 300):
            region.resize(pages * PAGE)
            region[-1] = 1
            addresses.add(region.address)
        assert len(addresses) < 12


def test_resizing_a_file_region_sets_the_size_of_its_file(path):
    with Region.file(path, mode="r+") as region:
        region.resize(5 * PAGE + 7)
        assert path.stat().st_size == 5 * PAGE + 7
        region[-1] = 1
        region.resize(100)
        assert path.stat().st_size == 100


def test_resizing_a_window_leaves_the_rest_of_the_file(path):
    data = path.read_bytes()
    with Region.file(path, PAGE, mode="r+") as region:
        region.resize(2 * PAGE)
        assert region[:] == data[: 2 * PAGE]
        region.resize(10)
    assert path.read_bytes() == data


def test_what_cannot_be_resized_says_so(path):
    with (
        Region.file(path) as readonly,
        Region.file(path, mode="c") as private,
        Region.anonymous(PAGE, shared=True) as shared,
    ):
        for region in (readonly, private):
            with pytest.raises(mmkit.Error, match=r"mode='r\+'"):
                region.resize(PAGE)
        with pytest.raises(mmkit.Error, match="made without reserve="):
            shared.resize(2 * PAGE)
        for n in (0, -5):
            with pytest.raises(ValueError, match="at least one byte"):
                shared.resize(n)


def test_parts_that_differ_stay_as_they_are_when_a_region_moves():
    with Region.anonymous(5 * PAGE, guard=True) as region:
        region[:] = b"".join(bytes([page]) * PAGE for page in range(5))
        region.protect(Prot.READ, PAGE, PAGE)
        region.advise(Advice.DONTDUMP, 3 * PAGE, PAGE)
        region.guard(2 * PAGE, PAGE)
        old = region.address
        region.resize(400 * PAGE)
        assert region.address != old
        assert [perms(region.address + page * PAGE) for page in (0, 1, 3, 399)] == [
            "rw-p",
            "r--p",
            "rw-p",
            "rw-p",
        ]
        assert [region[page * PAGE] for page in (0, 1, 3, 4, 399)] == [0, 1, 3, 4, 0]
        assert exit_signal(lambda: np.frombuffer(region, dtype=np.uint8)[2 * PAGE]) == 11


def test_locked_pages_do_not_move():
    with Region.anonymous(4 * PAGE, guard=True) as region, region.locked(0, PAGE):
        with pytest.raises(mmkit.Error, match="unlock them first"):
            region.resize(100 * PAGE)
        assert len(region) == 4 * PAGE


def test_mseal_keeps_the_memory_for_ever():
    if not mmkit.supports("mseal"):
        pytest.skip("kernel before 6.10")

    def seal():
        region = Region.anonymous(PAGE)
        region.mseal()
        region[0] = 7
        address = region.address
        with pytest.raises(PermissionError):
            region.protect(Prot.READ)
        region.close()
        return region.closed, perms(address)

    assert in_child(seal) == (True, "rw-p")


def test_addresses_left_behind_by_a_move_are_not_reused_until_the_region_dies():
    region = Region.anonymous(2 * PAGE, guard=True)
    old = region.address
    region.resize(500 * PAGE)
    assert region.address != old
    for call in (
        lambda: mmkit.linux.munmap(old, PAGE),
        lambda: mmkit.linux.mmap(old, PAGE, 3, MapFlag.FIXED | MapFlag.PRIVATE | MapFlag.ANONYMOUS),
    ):
        with pytest.raises(mmkit.Error, match="live mmkit.Region"):
            call()
    region.close()
    del region
    gc.collect()
    assert perms(old) is None


def test_a_file_region_may_be_resized_while_it_is_protected(path):
    with Region.file(path, mode="r+") as region:
        region.protect(Prot.READ)
        region.resize(5 * PAGE)
        assert len(region) == 5 * PAGE


def test_regions_of_huge_pages_may_have_any_length():
    if not with_huge_pages(4):
        pytest.skip("not enough huge pages")
    with Region.memfd(2 << 20, hugepages="require") as region:
        region[0] = 7
        region.resize((3 << 20) + 5)
        assert (len(region), region[0], region[-1]) == ((3 << 20) + 5, 7, 0)
        assert os.fstat(region.fileno()).st_size == 4 << 20
        region.resize(100)
        assert os.fstat(region.fileno()).st_size == 2 << 20
