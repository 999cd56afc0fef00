"""Region: making, closing, ranges, and what each method promises."""

import copy
import errno
import gc
import io
import os
import pickle
import resource
import signal
import warnings

import numpy as np
import pytest

import mmkit
from mmkit import Advice, MapFlag, Prot, Region
from mmkit.flags import MemfdFlag, Seal
from support import PAGE, exit_signal, in_child, locks, perms, run, with_huge_pages

READ_WRITE = Prot.READ | Prot.WRITE


@pytest.fixture
def region():
    with Region.anonymous(4 * PAGE) as region:
        yield region


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (4 * PAGE // 256))
    return path


# ---- making


def test_anonymous_memory_is_zeros_of_the_length_asked():
    with Region.anonymous(5000) as region:
        assert len(region) == 5000
        assert region[:] == bytes(5000)
        assert region.address % PAGE == 0
        assert region.prot == READ_WRITE
        assert region.flags == MapFlag.PRIVATE | MapFlag.ANONYMOUS


@pytest.mark.parametrize("length", [0, -1])
def test_a_region_has_at_least_one_byte(length):
    for make in (Region.anonymous, Region.memfd):
        with pytest.raises(ValueError, match="at least one byte"):
            make(length)


def test_more_than_the_address_space_is_out_of_memory():
    for length in (1 << 50, 1 << 62):
        with pytest.raises(mmkit.OutOfMemory):
            Region.anonymous(length)
    with pytest.raises(mmkit.OutOfMemory, match="1024 EiB"):
        Region.anonymous(1 << 70)


def test_a_region_is_made_by_its_factories_only():
    with pytest.raises(TypeError, match=r"Region\.anonymous"):
        Region()


def test_the_length_of_a_file_region_is_that_of_the_file(path):
    with Region.file(path) as region:
        assert len(region) == 4 * PAGE
        assert region[255:257] == b"\xff\x00"
        assert region.prot == Prot.READ


@pytest.mark.parametrize("offset", [0, 1, 100, PAGE - 1, PAGE, PAGE + 1])
def test_a_file_region_may_start_and_end_anywhere(path, offset):
    data = path.read_bytes()
    with Region.file(path, 300, offset) as region:
        assert region[:] == data[offset : offset + 300]
        assert region.address % PAGE == offset % PAGE


def test_an_empty_file_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match=r"is empty.*os\.truncate"):
        Region.file(tmp_path / "empty")


def test_more_than_the_file_is_refused(path):
    for length, offset in ((5 * PAGE, 0), (1, 4 * PAGE), (None, 4 * PAGE), (PAGE, 4 * PAGE - 1)):
        with pytest.raises(ValueError, match="fewer than"):
            Region.file(path, length, offset)


def test_files_that_cannot_be_mapped_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"open\('.*none'\)"):
        Region.file(tmp_path / "none")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(mmkit.SyscallError, match="Only regular files") as refusal:
        Region.file(tmp_path / "fifo", PAGE)
    assert refusal.value.errno == errno.ENODEV
    with pytest.raises(mmkit.SyscallError):
        Region.file(tmp_path, PAGE)
    with pytest.raises(OSError) as refusal:
        Region.file(987654)
    assert refusal.value.errno == errno.EBADF


def test_a_device_needs_a_length():
    with pytest.raises(ValueError, match="not a regular file"):
        Region.file("/dev/zero")
    with Region.file("/dev/zero", PAGE, mode="c") as region:
        assert region[:] == bytes(PAGE)
        region.flush()


def test_the_region_keeps_its_own_descriptor(path):
    with path.open("rb") as file:
        region = Region.file(file.fileno())
    assert region[1] == 1
    assert region.fileno() != file
    region.close()


def test_no_descriptor_leaks_when_mapping_fails(path):
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(ValueError):
            Region.file(path, 1 << 40)
        with pytest.raises(OSError):
            Region.file("/dev", PAGE)
        with pytest.raises(OSError):
            Region.memfd(PAGE, seals=Seal.WRITE)
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_private_file_region_never_writes_the_file(path):
    data = path.read_bytes()
    with Region.file(path, mode="c") as region:
        region[:5] = b"local"
        region.flush()
        assert region[:5] == b"local"
        region.discard()
        assert region[:5] == data[:5]
    assert path.read_bytes() == data


def test_a_shared_file_region_writes_the_file(path):
    with Region.file(path, mode="r+") as region:
        region[10:14] = b"kept"
        assert region.flush() == (0, 4 * PAGE)
    assert path.read_bytes()[10:14] == b"kept"


@pytest.mark.parametrize("mode", ["w", "r+b", ""])
def test_an_unknown_mode_is_refused(path, mode):
    with pytest.raises(ValueError, match="mode"):
        Region.file(path, mode=mode)


def test_memfd_regions_are_shared_by_descriptor():
    with Region.memfd(5000, name="by-fd") as region:
        region[:2] = b"hi"
        with Region.file(region.fileno(), mode="r+") as other:
            assert len(other) == 5000
            assert other[:2] == b"hi"
            other[0] = ord("H")
        assert region[:2] == b"Hi"


def test_seals_hold():
    with Region.memfd(PAGE, seals=Seal.SHRINK | Seal.GROW) as region:
        for size in (1, 2 * PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(region.fileno(), size)
            with pytest.raises(PermissionError):
                region.resize(size)
        assert len(region) == PAGE
        region.add_seals(Seal.FUTURE_WRITE)
        with pytest.raises(PermissionError):
            Region.file(region.fileno(), mode="r+")
        with pytest.raises(mmkit.SyscallError, match="FUTURE_WRITE"):
            region.add_seals(Seal.WRITE)
        region[0] = 1


def test_a_region_without_a_file_has_neither_descriptor_nor_seals(region):
    for call in (region.fileno, lambda: region.add_seals(Seal.SHRINK)):
        with pytest.raises(io.UnsupportedOperation):
            call()


def test_secret_memory_has_no_descriptor_and_cannot_be_read_by_the_kernel():
    if not mmkit.supports("memfd_secret"):
        pytest.skip("secret memory is off in this kernel")
    with Region.memfd(PAGE, secret=True) as region:
        region[:3] = b"key"
        assert region[:3] == b"key"
        with pytest.raises(io.UnsupportedOperation):
            region.fileno()
        region.lock()
        region.unlock()
        with pytest.raises(mmkit.SyscallError):
            mmkit.linux.process_vm_readv(os.getpid(), [(region.address, 3)])
        with pytest.raises(mmkit.Error, match="secret memory"):
            region.resize(2 * PAGE)
    for bad in ({"seals": Seal.GROW}, {"hugepages": "warn"}):
        with pytest.raises(ValueError, match="neither seals nor huge pages"):
            Region.memfd(PAGE, secret=True, **bad)


@pytest.mark.parametrize("make", [Region.anonymous, Region.memfd])
def test_huge_pages_are_taken_and_given_back_whole(make):
    if not with_huge_pages(1):
        pytest.skip("no free huge page")
    with make(5000, hugepages="require") as region:
        assert MapFlag.HUGETLB in region.flags
        region[4999] = 1
        assert region.resident() == 2 << 20
        assert region.protect(Prot.READ, 0, 1) == (0, 5000)
    assert mmkit.supports(MapFlag.HUGETLB)


@pytest.mark.parametrize("make", [Region.anonymous, Region.memfd])
def test_missing_huge_pages_are_an_error_or_a_warning_as_asked(make):
    length = 1 << 44
    with pytest.raises(mmkit.Error):
        make(length, hugepages="require")
    if make is Region.anonymous:
        with pytest.warns(RuntimeWarning, match="ordinary pages"):
            region = make(length, hugepages="warn", noreserve=True)
        region.close()
    with pytest.raises(ValueError, match="'require', 'warn' or 'off'"):
        make(PAGE, hugepages=True)


def test_guard_pages_stand_on_both_sides():
    with Region.anonymous(3 * PAGE, guard=True) as region:
        assert [perms(region.address + at) for at in (-1, 0, 3 * PAGE - 1, 3 * PAGE)] == [
            "---p",
            "rw-p",
            "rw-p",
            "---p",
        ]


def test_reserve_holds_address_space_only():
    with Region.anonymous(PAGE, reserve=1 << 40) as region:
        assert perms(region.address + (1 << 30)) == "---p"
        assert len(region) == PAGE
    with pytest.raises(ValueError, match="at least length"):
        Region.anonymous(2 * PAGE, reserve=PAGE)


def test_populate_brings_all_pages_in():
    with Region.anonymous(16 * PAGE, populate=True) as region:
        assert region.resident() == 16 * PAGE


def test_populate_respects_the_protection():
    with Region.anonymous(16 * PAGE, prot=Prot.READ, populate=True) as region:
        assert region.resident() == 16 * PAGE


# ---- closing


def test_closing_under_a_live_view_raises_and_changes_nothing(region):
    region[0] = 7
    view = memoryview(region)
    with pytest.raises(BufferError, match="live view"):
        region.close()
    assert view[0] == region[0] == 7
    view.release()
    region.close()
    assert region.closed


def test_a_with_block_that_ends_under_a_live_view_raises():
    with pytest.raises(BufferError), Region.anonymous(PAGE) as region:
        view = region.view(0, 10)
    assert not region.closed
    del view
    region.close()


def test_a_view_keeps_a_dropped_region_alive():
    view = Region.anonymous(PAGE).view(0, 10)
    gc.collect()
    view[:5] = b"alive"
    assert bytes(view[:5]) == b"alive"


def test_a_dropped_region_is_unmapped():
    region = Region.anonymous(PAGE)
    address = region.address
    del region
    gc.collect()
    assert perms(address) is None


def test_closing_twice_does_nothing(region):
    region.close()
    region.close()


def test_after_close_the_addresses_stay_taken_until_the_object_dies():
    region = Region.anonymous(4 * PAGE)
    address = region.address
    region.close()
    assert perms(address) == "---p"
    del region
    assert perms(address) is None


def test_a_pointer_kept_past_close_faults_and_never_reads_foreign_memory():
    def touch():
        region = Region.anonymous(PAGE)
        array = np.ndarray(PAGE, dtype=np.uint8, buffer=region)
        region.close()
        fill = [Region.anonymous(PAGE) for _ in range(100)]
        return array[0], fill

    assert exit_signal(touch) == 11


_USES = [
    len, lambda r: r[0], lambda r: r[:], lambda r: r.__setitem__(0, 1), lambda r: r.read(), lambda r: r.readline(), lambda r: r.write(b"x"),
    lambda r: r.seek(0), lambda r: r.tell(), lambda r: r.find(b"x"), lambda r: r.rfind(b"x"), memoryview, lambda r: r.view(),
    lambda r: r.protect(Prot.READ), lambda r: r.protected(Prot.READ), lambda r: r.advise(Advice.NORMAL), lambda r: r.flush(),
    lambda r: r.discard(), lambda r: r.punch(), lambda r: r.guard(), lambda r: r.unguard(), lambda r: r.populate(),
    lambda r: r.lock(), lambda r: r.unlock(), lambda r: r.resident(), lambda r: r.cached(), lambda r: r.resize(10),
    lambda r: r.mseal(), lambda r: r.fileno(), lambda r: r.array("u1"), lambda r: r.__enter__(),
]  # fmt: skip


@pytest.mark.parametrize("use", _USES)
def test_use_after_close_raises(use, region):
    region.close()
    with pytest.raises(mmkit.ClosedError):
        use(region)


def test_use_after_close_of_a_block_is_harmless(region):
    with region.protected(Prot.READ), region.locked():
        region.close()


def test_unclosed_regions_with_a_name_or_a_file_warn(path):
    for make in (
        lambda: Region.file(path),
        lambda: Region.memfd(PAGE),
        lambda: Region.anonymous(PAGE, name="lost"),
    ):
        with pytest.warns(ResourceWarning, match="unclosed <Region"):
            make()
            gc.collect()


def test_unclosed_plain_memory_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Region.anonymous(PAGE)
        gc.collect()


def test_regions_lists_what_is_live():
    before = mmkit.regions()
    one, two = Region.anonymous(PAGE), Region.anonymous(PAGE)
    assert [r for r in mmkit.regions() if r not in before] == sorted([one, two], key=lambda r: r.address)
    one.close()
    assert one not in mmkit.regions()
    two.close()


def test_repr_shows_range_protection_backing_and_resident_share():
    with Region.anonymous(1 << 20, name="shown") as region:
        region[0] = 1
        end = region.address + (1 << 20)
        assert repr(region) == (
            f"<Region 'shown' {region.address:#x}-{end:#x} rw- anonymous, 4 KiB of 1 MiB resident>"
        )
    assert repr(region) == "<Region 'shown' closed>"


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


# ---- fork


def test_a_child_shares_shared_regions_and_copies_private_ones():
    with Region.anonymous(PAGE, shared=True) as shared, Region.anonymous(PAGE) as private:

        def write():
            shared[0], private[0] = 1, 1
            shared.close()
            private.close()
            return [r.closed for r in (shared, private)]

        assert in_child(write) == [True, True]
        assert (shared[0], private[0]) == (1, 0)


def test_views_live_in_the_child_too():
    with Region.anonymous(PAGE) as region:
        view = memoryview(region)

        def close():
            with pytest.raises(BufferError):
                region.close()
            view.release()
            region.close()

        in_child(close)
        assert view[0] == 0
        view.release()


def test_subinterpreters_get_a_clear_import_error():
    code = (
        "import _xxsubinterpreters as s\n"
        "import mmkit\n"
        "i = s.create()\n"
        "try: s.run_string(i, 'import mmkit')\n"
        "except Exception as error: print(error)\n"
    )
    try:
        __import__("_xxsubinterpreters")
    except ImportError:
        pytest.skip("no subinterpreters in this Python")
    assert "interpreter" in run(code).stdout


# ---- mistakes people make


def test_an_exception_under_way_is_not_replaced_when_the_block_cannot_close():
    with pytest.raises(KeyError, match="mine") as raised, Region.anonymous(PAGE) as region:
        view = memoryview(region)
        raise KeyError("mine")
    assert "live view" in raised.value.__notes__[0]
    view.release()
    with pytest.raises(KeyError) as raised, region:
        region.protect(Prot.READ)
        with region.protected(READ_WRITE):
            view = memoryview(region)
            raise KeyError("mine")
    assert "release()" in raised.value.__notes__[0]
    view.release()


def test_flags_of_another_type_are_refused(region):
    for bad in (Advice.RANDOM, "r", None, MapFlag.SHARED):
        with pytest.raises(TypeError, match="prot must be a mmkit.Prot"):
            region.protect(bad)
        with pytest.raises(TypeError, match="prot must be a mmkit.Prot"):
            region.protected(bad)
    with pytest.raises(TypeError, match="advice must be a mmkit.Advice"):
        region.advise("random")
    assert region.protect(3) == (0, 4 * PAGE)


def test_mistakes_are_answered_with_the_cure(region, path):
    with pytest.raises(TypeError, match=r"mode='r\+'"):
        Region.file(path, "r+")
    with pytest.raises(TypeError, match="length must be an int"):
        Region.anonymous("10")
    with path.open("rb") as file, pytest.raises(TypeError, match=r"fileno\(\)"):
        Region.file(file)
    with pytest.raises(TypeError, match=r"region\[0:1\] = b'a'"):
        region[0] = b"a"
    with Region.file(path) as readonly:
        with pytest.raises(mmkit.MemoryFault, match=r"mode='r\+'"):
            readonly[0] = 1
        with pytest.raises(PermissionError, match=r"mode='r\+'"):
            readonly.protect(READ_WRITE)
    for copy_it in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            copy_it(region)


# ---- what a strict reader found


def test_a_collected_cycle_with_a_view_in_it_lets_the_region_go():
    code = """
import gc, mmkit
gc.disable()
for _ in range(50):
    region = mmkit.Region.anonymous(1 << 16)
    cycle = [region.view()]
    cycle.append(cycle)
    del region, cycle
    gc.collect()
assert mmkit.regions() == []
print("done")
"""
    assert run(code).stdout == "done\n"


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


def test_support_is_told_apart_by_type_and_not_by_number():
    assert mmkit.supports(Advice.NORMAL)
    with pytest.raises(ValueError, match="no probe"):
        mmkit.supports(MapFlag.FIXED)
    mmkit.supports(MemfdFlag.EXEC)
    with pytest.raises(ValueError, match="no probe"):
        mmkit.supports(MapFlag.FIXED)


def test_looking_does_not_count_as_handing_out_a_pointer():
    with Region.anonymous(PAGE) as region:
        start, _ = region._range
        repr(region)
        mmkit.regions()
    assert perms(start) is None or region.closed


def test_prot_is_what_every_page_allows_now(region):
    with region.protected(Prot.READ):
        assert region.prot == Prot.READ
        assert " r-- " in repr(region)
    for page in range(4):
        region.protect(Prot.READ, page * PAGE, PAGE)
    assert region.prot == Prot.READ
    region.protect(READ_WRITE, 0, PAGE)
    assert region.prot == Prot.READ


def test_a_file_region_may_be_resized_while_it_is_protected(path):
    with Region.file(path, mode="r+") as region:
        region.protect(Prot.READ)
        region.resize(5 * PAGE)
        assert len(region) == 5 * PAGE


def test_a_locked_block_stands_a_region_that_was_cut_inside(region):
    with region.locked():
        region.resize(PAGE)
    assert len(region) == PAGE


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


def test_arguments_that_are_not_whole_numbers_are_type_errors(region):
    for call in (
        lambda: Region.anonymous(4096.9),
        lambda: region.resize(5000.7),
        lambda: region.protect(1.0),
        lambda: region.advise(3.2),
        lambda: region.__setitem__(0, 1.9),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises((ValueError, mmkit.OutOfMemory)):
        Region.file("/dev/zero", 2**64 - 1, 4095, mode="c")


def test_a_memory_file_beyond_the_file_size_limit_is_our_error():
    def make():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(mmkit.SyscallError, match=r"ftruncate.*\n.*RLIMIT_FSIZE"):
            Region.memfd(4 << 20)
        return True

    assert in_child(make, limits={resource.RLIMIT_FSIZE: 1 << 20})


def test_names_are_checked_before_anything_is_mapped():
    with pytest.raises(ValueError, match="NUL"):
        Region.anonymous(PAGE, name="a\0b")
    with pytest.raises(TypeError):
        Region.anonymous(PAGE, name=5)
