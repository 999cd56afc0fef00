"""Region: making and closing, forks, and the mistakes people make."""

import copy
import errno
import gc
import io
import os
import pickle
import resource
import signal
import sys
import warnings

import numpy as np
import pytest

import mmkit
from mmkit import Advice, MapFlag, Prot, Region
from mmkit.flags import Seal
from support import PAGE, exit_signal, in_child, perms, run, with_huge_pages

READ_WRITE = Prot.READ | Prot.WRITE


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


@pytest.mark.parametrize("length", [None, 10])
@pytest.mark.parametrize("name", ["/proc/self/status", "/proc/version", "/dev/../proc/self/maps"])
def test_of_a_file_of_proc_it_is_said_that_it_cannot_be_mapped_not_that_it_can_be_lengthened(name, length):
    with pytest.raises(ValueError, match=r"has no length and cannot be mapped, as files of proc") as refusal:
        Region.file(name, length)
    assert "truncate" not in str(refusal.value)
    with open(name) as file, pytest.raises(ValueError, match=r"^descriptor \d+ has no length and cannot"):
        Region.file(file.fileno(), length)


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


def test_looking_does_not_count_as_handing_out_a_pointer():
    with Region.anonymous(PAGE) as region:
        start, _ = region._range
        repr(region)
        mmkit.regions()
    assert perms(start) != "---p"


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


def test_slices_with_steps_are_those_of_bytes(path):
    with Region.file(path) as region:
        model = region[:]
        for start in (None, 0, 1, 4095, 4096, -1, -300, 10**6, -(10**6), 2**70):
            for stop in (None, 0, 3, 4097, -1, -5000, 10**6, -(2**70)):
                for step in (-1, 2, 3, -7, 255, 256, 257, -257, 4096, -5000, 2**70):
                    assert region[start:stop:step] == model[start:stop:step]


def test_a_wide_step_touches_only_the_bytes_that_it_gives(path):
    with Region.file(path, mode="c") as region:
        assert region[:: 2 * PAGE] == region[0:1] + region[2 * PAGE : 2 * PAGE + 1]
        region.protect(Prot.NONE, PAGE, PAGE)
        assert region[:: 2 * PAGE] == region[0:1] + region[2 * PAGE : 2 * PAGE + 1]
        with pytest.raises(mmkit.MemoryFault):
            region[::PAGE]


def test_an_index_of_any_size_is_only_out_of_range(region):
    for index in (2**63, -(2**63) - 1, 2**200):
        with pytest.raises(IndexError):
            region[index]
        with pytest.raises(IndexError):
            region[index] = 1
        with pytest.raises(ValueError):
            region[0] = index


def test_nothing_is_found_in_a_range_that_ends_before_it_starts(region):
    for find in (region.find, region.rfind):
        assert find(b"", 3, 2) == -1
        assert find(b"\0", 3, 2) == -1
        assert find(b"", 3, 3) == 3


def test_a_position_outside_is_refused_however_far(region):
    region.seek(5)
    for position, whence in (
        (-1, 0),
        (-6, 1),
        (sys.maxsize, 1),
        (1, 2),
        (-sys.maxsize, 2),
        (-sys.maxsize - 1, 1),
    ):
        with pytest.raises(ValueError, match="outside"):
            region.seek(position, whence)
    assert region.tell() == 5
    assert (region.seek(-5, 1), region.seek(-1, 2)) == (0, 4 * PAGE - 1)


def test_moving_within_a_region_is_as_in_a_bytearray(region):
    model = bytearray(range(256)) * (4 * PAGE // 256)
    region[:] = model
    for dest, src, count in (
        (0, 0, 10),
        (5, 0, 5000),
        (0, 5, 5000),
        (PAGE - 1, 1, 2),
        (0, 4 * PAGE, 0),
        (7, 1, 4 * PAGE - 7),
    ):
        model[dest : dest + count] = model[src : src + count]
        assert region.move(dest, src, count) is None
        assert region[:] == model
    for dest, src, count in (
        (-1, 0, 1),
        (0, -1, 1),
        (0, 0, -1),
        (0, 1, 4 * PAGE),
        (1, 0, 4 * PAGE),
        (0, sys.maxsize, 1),
    ):
        with pytest.raises(ValueError, match="leaves the region"):
            region.move(dest, src, count)
    region.protect(Prot.READ, 0, PAGE)
    with pytest.raises(mmkit.MemoryFault, match="write"):
        region.move(0, PAGE, 1)
    region.move(PAGE, 0, 100)
    assert region[:] != model
    region.close()
    with pytest.raises(mmkit.ClosedError):
        region.move(0, 0, 0)


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


# ---- slices -----------------------------------------------------------------------------------------


def test_slices_are_those_of_a_bytearray():
    content = bytes(range(8))
    region, model = Region.anonymous(8), bytearray(content)
    region[:] = content
    assert len(region) == 8
    numbers = [None, *range(-10, 11), True, -(10**40), 10**40, sys.maxsize, -sys.maxsize - 1]
    for start in numbers:
        for stop in numbers:
            for step in (None, 1, 2, 3, 9, -1, -2, -9):
                key = slice(start, stop, step)
                assert region[key] == model[key], key
                region[key] = content[: len(model[key])]
                model[key] = content[: len(model[key])]
                assert region[:] == model, key


def test_a_slice_is_of_the_length_that_the_region_has_after_its_bounds_were_asked():
    class Resizing:
        def __init__(self, length):
            self.length = length

        def __index__(self):
            region.resize(self.length)
            return 0

    region = Region.anonymous(2 * PAGE, reserve=8 * PAGE)
    assert len(region[Resizing(PAGE) :]) == PAGE
    assert len(region[Resizing(4 * PAGE) :]) == 4 * PAGE
    region[Resizing(PAGE) :] = bytes(PAGE)
    assert region.find(b"x", Resizing(3 * PAGE)) == -1


def test_a_slice_of_nothing_of_a_closed_region_is_refused():
    region = Region.anonymous(PAGE)
    region.close()
    for key in (slice(0, 0), slice(5, 1), slice(0, 5, -1)):
        with pytest.raises(mmkit.ClosedError):
            region[key]
        with pytest.raises(mmkit.ClosedError):
            region[key] = b""
