"""Region: ranges, protection, giving pages back, residency."""

import errno
import gc
import io
import os

import numpy as np
import pytest

import mmkit
from mmkit import Advice, Prot, Region
from support import PAGE, exit_signal, locks, perms

READ_WRITE = Prot.READ | Prot.WRITE


# ---- ranges


def test_calls_that_lose_nothing_widen_to_whole_pages(region):
    assert region.protect(Prot.READ, PAGE + 1, 1) == (PAGE, PAGE)
    assert region.advise(Advice.RANDOM, PAGE - 1, 2) == (0, 2 * PAGE)
    assert region.flush(1, PAGE) == (0, 2 * PAGE)
    assert region.lock(1, 1) == (0, PAGE)
    assert region.unlock(1, 1) == (0, PAGE)
    assert region.populate(False, 3 * PAGE + 5) == (3 * PAGE, PAGE)


def test_calls_that_destroy_shrink_inward(region):
    assert region.discard(1, 2 * PAGE) == (PAGE, PAGE)
    assert region.guard(PAGE, PAGE + 5) == (PAGE, PAGE)
    assert region.unguard(PAGE - 1, 2 * PAGE) == (PAGE, PAGE)
    assert region.discard(1, 10) == (1, 0)
    assert region.punch(1, 10) == (1, 10)


def test_what_was_covered_is_clipped_to_the_region(path):
    with Region.anonymous(5000) as region:
        assert region.protect(READ_WRITE) == (0, 5000)
        assert region.protect(READ_WRITE, 4999, 1) == (PAGE, 5000 - PAGE)
        assert region.discard(PAGE, 904) == (PAGE, 904)
        assert region.discard(PAGE, 903) == (PAGE, 0)
    with Region.file(path, 5000, 100, mode="r+") as region:
        assert region.flush(0, 1) == (0, PAGE - 100)
        assert region.flush(PAGE, 1) == (PAGE - 100, 5000 - (PAGE - 100))
        assert region.protect(Prot.READ) == (0, 5000)


def test_a_length_of_zero_covers_nothing(region):
    for call in (region.flush, region.lock, region.unlock, region.discard, region.guard, region.punch):
        assert call(PAGE, 0) == (PAGE, 0)
    assert region.protect(Prot.NONE, PAGE, 0) == (PAGE, 0)
    assert region.advise(Advice.NORMAL, 4 * PAGE, 0) == (4 * PAGE, 0)
    assert region[0] == 0


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 1), (0, 4 * PAGE + 1), (4 * PAGE + 1, None), (1, 4 * PAGE), (0, -1), (2**62, 2**62)],
)
def test_a_range_outside_is_refused(region, offset, length):
    for call in (
        region.flush,
        region.discard,
        region.guard,
        region.unguard,
        region.punch,
        region.lock,
        region.unlock,
        region.resident,
        region.cached,
    ):
        with pytest.raises(ValueError, match="not inside the region"):
            call(offset, length)
    with pytest.raises(ValueError):
        region.protect(Prot.READ, offset, length)
    with pytest.raises(ValueError):
        region.advise(Advice.NORMAL, offset, length)
    with pytest.raises(TypeError):
        region.flush("0")
    with pytest.raises(TypeError):
        region.flush(0, 1.5)


# ---- protect


def test_protect_shows_in_maps_and_in_accesses(region):
    assert region.protect(Prot.READ) == (0, 4 * PAGE)
    assert perms(region.address) == "r--p"
    assert region.prot == Prot.READ
    with pytest.raises(mmkit.MemoryFault) as fault:
        region[5] = 1
    assert (fault.value.address, fault.value.offset, fault.value.access) == (region.address + 5, 5, "write")
    region.protect(Prot.NONE, PAGE, PAGE)
    for access in (lambda: region[PAGE], lambda: region[:], lambda: region.find(b"x")):
        with pytest.raises(mmkit.MemoryFault, match="read at"):
            access()
    assert region[0] == 0


def test_protect_refuses_to_take_access_from_a_live_view(region):
    view = region.view(PAGE, 2 * PAGE)
    with pytest.raises(BufferError):
        region.protect(Prot.READ)
    region.protect(Prot.READ, 2 * PAGE)
    view[0] = 1
    assert region.protect(Prot.READ, force=True) == (0, 4 * PAGE)
    view.release()


def test_a_read_only_view_stands_losing_write_access(region):
    region.protect(Prot.READ)
    view = memoryview(region)
    assert view.readonly
    region.protect(READ_WRITE)
    region.protect(Prot.READ)
    with pytest.raises(BufferError):
        region.protect(Prot.NONE)
    view.release()


def test_protected_holds_for_the_block(region):
    with region.protected(Prot.READ) as covered:
        assert covered == (0, 4 * PAGE)
        assert perms(region.address) == "r--p"
    assert perms(region.address) == "rw-p"


def test_protected_blocks_may_end_in_any_order(region):
    one, two = region.protected(Prot.READ, 0, 2 * PAGE), region.protected(Prot.NONE, PAGE, 2 * PAGE)
    one.__enter__()
    two.__enter__()
    state = [perms(region.address + page * PAGE) for page in range(4)]
    assert state == ["r--p", "---p", "---p", "rw-p"]
    one.release()
    assert [perms(region.address + page * PAGE) for page in range(4)] == ["rw-p", "---p", "---p", "rw-p"]
    two.release()
    assert [perms(region.address + page * PAGE) for page in range(4)] == ["rw-p"] * 4


def test_protect_inside_a_block_takes_effect_when_it_ends(region):
    with region.protected(Prot.READ, 0, PAGE):
        region.protect(Prot.NONE)
        assert perms(region.address) == "r--p"
        assert perms(region.address + PAGE) == "---p"
    assert perms(region.address) == "---p"


def test_the_end_of_a_block_does_not_take_a_view_made_inside(region):
    region.protect(Prot.READ)
    block = region.protected(READ_WRITE)
    with pytest.raises(BufferError), block:
        view = memoryview(region)
    view[0] = 1
    view.release()
    block.release()
    assert perms(region.address) == "r--p"


def test_a_dropped_block_ends(region):
    block = region.protected(Prot.NONE)
    block.__enter__()
    with pytest.raises(RuntimeError):
        block.__enter__()
    del block
    gc.collect()
    assert perms(region.address) == "rw-p"


def test_protecting_a_read_only_file_for_writing_says_why(path):
    with Region.file(path) as region, pytest.raises(PermissionError, match="not opened for what prot asks"):
        region.protect(READ_WRITE)


def test_a_buffer_is_read_only_where_part_of_it_cannot_be_written(region):
    region.protect(Prot.READ, PAGE, PAGE)
    assert memoryview(region).readonly
    assert not region.view(0, PAGE).readonly
    region.protect(Prot.NONE, PAGE, PAGE)
    with pytest.raises(BufferError, match="not all readable"):
        memoryview(region)
    assert len(region.view(2 * PAGE)) == 2 * PAGE
    with pytest.raises(TypeError, match="read-write"):
        io.BytesIO(bytes(PAGE)).readinto(region)


def test_prot_is_what_every_page_allows_now(region):
    with region.protected(Prot.READ):
        assert region.prot == Prot.READ
        assert " r-- " in repr(region)
    for page in range(4):
        region.protect(Prot.READ, page * PAGE, PAGE)
    assert region.prot == Prot.READ
    region.protect(READ_WRITE, 0, PAGE)
    assert region.prot == Prot.READ


# ---- advise, discard, punch, guard


def test_advise_refuses_what_destroys_and_names_what_to_use(region):
    region[0] = 7
    for advice in (
        Advice.DONTNEED,
        Advice.FREE,
        Advice.REMOVE,
        Advice.GUARD_INSTALL,
        Advice.HWPOISON,
        Advice.SOFT_OFFLINE,
        Advice.DONTNEED_LOCKED,
    ):
        with pytest.raises(ValueError, match=r"discard\(\).*punch\(\).*guard\(\)"):
            region.advise(advice)
    assert region[0] == 7


def test_advise_lets_shared_memory_drop_its_pages(path):
    with Region.file(path) as region:
        region[:]
        region.advise(Advice.DONTNEED)
        assert region.resident() == 0


def test_advise_with_a_value_this_kernel_does_not_know_is_einval(region):
    with pytest.raises(mmkit.SyscallError, match="does not know the advice"):
        region.advise(Advice(77))


def test_discard_gives_pages_back(region):
    region[:] = b"x" * 4 * PAGE
    assert region.resident() == 4 * PAGE
    region.discard(PAGE, 2 * PAGE)
    assert region.resident() == 2 * PAGE
    assert region[:] == b"x" * PAGE + bytes(2 * PAGE) + b"x" * PAGE


@pytest.mark.parametrize("destroy", ["discard", "punch", "guard"])
def test_what_a_live_view_sees_is_not_destroyed(region, destroy):
    region[:] = b"x" * 4 * PAGE
    view = region.view(PAGE, 2 * PAGE)
    with pytest.raises(BufferError):
        getattr(region, destroy)()
    assert bytes(view) == b"x" * PAGE
    getattr(region, destroy)(2 * PAGE)
    getattr(region, destroy)(force=True)
    view.release()


@locks
def test_discarding_locked_pages_says_what_to_do(region):
    with region.locked(), pytest.raises(mmkit.SyscallError, match="unlock it first"):
        region.discard()


def _make_all(path):
    yield Region.anonymous(4 * PAGE)
    yield Region.anonymous(4 * PAGE, shared=True)
    yield Region.anonymous(4 * PAGE, shared=True, reserve=8 * PAGE)
    yield Region.memfd(4 * PAGE)
    yield Region.file(path, mode="r+")


def test_punch_zeroes_exactly_the_range_of_any_kind_of_region(path):
    for region in _make_all(path):
        with region:
            region[:] = b"x" * 4 * PAGE
            assert region.punch(100, 2 * PAGE) == (100, 2 * PAGE)
            assert region[:] == b"x" * 100 + bytes(2 * PAGE) + b"x" * (2 * PAGE - 100)


def test_punch_gives_storage_back():
    with Region.memfd(64 * PAGE) as region:
        region[:] = b"x" * 64 * PAGE
        blocks = os.fstat(region.fileno()).st_blocks
        region.punch(0, 32 * PAGE)
        assert os.fstat(region.fileno()).st_blocks <= blocks // 2


def test_punch_refuses_private_files_and_read_only_ones(path):
    with Region.file(path, mode="c") as region, pytest.raises(mmkit.Error, match="come from the file"):
        region.punch()
    with Region.file(path) as region, pytest.raises(mmkit.SyscallError) as refusal:
        region.punch()
    assert refusal.value.errno == errno.EBADF


def test_a_guard_kills_raw_accesses_and_unguard_lifts_it(region):
    region.guard(PAGE, PAGE)
    array = np.frombuffer(region, dtype=np.uint8)
    assert exit_signal(lambda: array[PAGE]) == 11
    assert exit_signal(lambda: array[0]) == 0
    region.unguard()
    assert array[PAGE] == 0


def test_guards_do_not_cost_areas_where_the_kernel_has_them():
    if not mmkit.supports(Advice.GUARD_INSTALL):
        pytest.skip("kernel before 6.13")
    with Region.anonymous(200 * PAGE) as region:
        before = len(mmkit.maps.read())
        for page in range(0, 200, 2):
            region.guard(page * PAGE, PAGE)
        assert len(mmkit.maps.read()) - before < 5


# ---- lock, populate, resident, cached, flush


def test_file_pages_are_cached_before_they_are_resident(path):
    with path.open("rb") as file:
        file.read()
    with Region.file(path) as region:
        assert region.cached() == 4 * PAGE
        assert region.resident() == 0
        region[PAGE]
        assert region.resident() >= PAGE


def test_private_memory_has_no_page_cache(region):
    region[0] = 1
    assert region.cached() == 0
    with Region.anonymous(2 * PAGE, shared=True) as shared:
        shared[0] = 1
        assert shared.cached() == PAGE


def test_populate_past_the_end_of_a_cut_file_is_an_error_and_not_a_signal(path):
    with Region.file(path, mode="r+") as region:
        os.truncate(path, PAGE)
        with pytest.raises(mmkit.SyscallError, match="a signal") as refusal:
            region.populate()
        assert refusal.value.errno == errno.EFAULT


def test_flush_notices_a_file_that_was_cut_short(path):
    with Region.file(path, mode="r+") as region:
        os.truncate(path, 3 * PAGE + 1)
        region.flush(0, 3 * PAGE)
        with pytest.raises(mmkit.SyscallError, match="ends before this range") as refusal:
            region.flush()
        assert refusal.value.errno == errno.EIO
        region.flush(wait=False)


@locks
def test_flush_invalidate_refuses_locked_pages(path):
    with Region.file(path, mode="r+") as region, region.locked():
        with pytest.raises(mmkit.SyscallError) as refusal:
            region.flush(invalidate=True)
        assert refusal.value.errno == errno.EBUSY


def test_a_locked_block_stands_a_region_that_was_cut_inside(region):
    with region.locked():
        region.resize(PAGE)
    assert len(region) == PAGE
