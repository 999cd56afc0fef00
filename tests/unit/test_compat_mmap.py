"""mmkit.compat.mmap: what the standard module promises, what newer Pythons added, and what mmkit adds."""

import copy
import errno
import fcntl
import gc
import importlib
import io
import mmap as standard
import multiprocessing.shared_memory
import os
import pickle
import re
import sys
import threading
import warnings
import weakref

import numpy as np
import pytest

import mmkit
from mmkit import MapFlag
from mmkit.compat import mmap
from mmkit.features import huge_page_size
from support import PAGE, in_child, locked_bytes, locks, perms, with_huge_pages

SIZE = 3 * PAGE
#: What the module of Python 3.15 has on Linux, beyond the functions: name and value.
NEWER = {
    "MAP_NORESERVE": 0x4000,
    "MAP_STACK": 0x20000,
    "MS_ASYNC": 1,
    "MS_INVALIDATE": 2,
    "MS_SYNC": 4,
    "MADV_FREE": 8,
    "MADV_POPULATE_WRITE": 23,
    "MADV_COLLAPSE": 25,
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("r+b") as file:
        yield file


@pytest.fixture
def memory():
    with mmap.mmap(-1, SIZE) as memory:
        yield memory


# ---- the module -------------------------------------------------------------------------------------


def test_every_name_of_the_installed_module_is_there_with_the_same_value():
    for name in dir(standard):
        if name.isupper():
            assert getattr(mmap, name) == getattr(standard, name), name
    assert mmap.error is OSError
    public = [name for name in dir(standard) if not name.startswith("_")]
    assert set(public) <= set(mmap.__all__)
    missing = [name for name in dir(standard.mmap) if not hasattr(mmap.mmap, name)]
    assert missing == []


def test_the_constants_of_newer_pythons_and_kernels_are_there():
    for name, value in NEWER.items():
        assert getattr(mmap, name) == value
    for advice in mmkit.Advice:
        assert getattr(mmap, f"MADV_{advice.name}") == advice
    assert all(type(getattr(mmap, name)) is int for name in mmap.__all__ if name.isupper())


def test_an_import_of_mmap_can_be_answered_with_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmap", mmap)
    assert importlib.import_module("mmap") is mmap


def test_it_is_no_relative_of_the_standard_type_and_a_region(memory):
    assert not any(kind.__module__ == "mmap" for kind in mmap.mmap.__mro__)
    assert isinstance(memory, mmkit.Region)
    assert memory in mmkit.regions()


# ---- making one -------------------------------------------------------------------------------------


def test_wrong_arguments_raise_what_the_standard_module_raises(file):
    fd = file.fileno()
    for arguments, options in (
        ((), {}),
        ((-1,), {}),
        (("x", 1), {}),
        ((-1, 1.5), {}),
        ((-1, -1), {}),
        ((-1, 0), {}),
        ((-1, 2**63), {}),
        ((2**31, 1), {}),
        ((-2, 10), {}),
        ((fd, SIZE + 1), {}),
        ((fd, 0), {"offset": SIZE}),
        ((fd, 0), {"offset": 4 * SIZE}),
        ((fd, 10), {"offset": -1}),
        ((fd, 10), {"offset": 7}),
        ((fd, 10), {"offset": None}),
        ((-1, 10), {"offset": 7}),
        ((fd, 10), {"access": 9}),
        ((fd, 10), {"access": mmap.ACCESS_READ, "prot": mmap.PROT_READ}),
        ((fd, 10), {"access": mmap.ACCESS_WRITE, "flags": mmap.MAP_PRIVATE}),
        ((fd, 10), {"flags": 0}),
        ((-1, 10), {"tagname": "x"}),
    ):
        with pytest.raises(Exception) as theirs:
            standard.mmap(*arguments, **options)
        with pytest.raises(type(theirs.value)) as ours:
            mmap.mmap(*arguments, **options)
        if isinstance(theirs.value, OSError):
            assert ours.value.errno == theirs.value.errno
    assert [region for region in mmkit.regions() if isinstance(region, mmap.mmap)] == []


def test_what_cannot_be_mapped_leaves_no_descriptor(tmp_path, file):
    before = os.listdir("/proc/self/fd")
    with (tmp_path / "file").open("rb") as readonly, pytest.raises(PermissionError):
        mmap.mmap(readonly.fileno(), 0)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="No such device"):
        mmap.mmap(reader, 10, prot=mmap.PROT_READ)
    os.close(reader)
    os.close(writer)
    assert os.listdir("/proc/self/fd") == before


def test_an_empty_file_is_refused(tmp_path):
    with (
        (tmp_path / "empty").open("w+b") as file,
        pytest.raises(ValueError, match="cannot mmap an empty file"),
    ):
        mmap.mmap(file.fileno(), 0)


def test_fixed_addresses_are_refused():
    for flag in (mmkit.MapFlag.FIXED, mmkit.MapFlag.FIXED_NOREPLACE):
        with pytest.raises(PermissionError):
            mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | flag)


def test_a_descriptor_of_anonymous_memory_is_ignored(file):
    with mmap.mmap(file.fileno(), PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        assert memory[:] == bytes(PAGE)
        assert memory.size() == PAGE
        memory.resize(2 * SIZE)
        assert len(memory) == 2 * SIZE
    assert file.seek(0, 2) == SIZE


def test_access_decides_who_sees_writes(file):
    fd = file.fileno()
    with (
        mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as private,
        mmap.mmap(fd, 0, access=mmap.ACCESS_WRITE) as shared,
    ):
        private[0] = 99
        assert (shared[0], private[0]) == (0, 99)
        shared[1] = 77
        file.seek(0)
        assert file.read(2) == bytes([0, 77])


def test_what_can_be_written_can_be_read(file):
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_WRITE) as memory:
        memory[0] = 9
        assert memory[0] == 9
        assert "access=ACCESS_WRITE" in repr(memory)


def test_a_subclass_can_have_its_own_constructor_and_attributes():
    class Named(mmap.mmap):
        def __new__(cls, name, *arguments):
            return super().__new__(cls, -1, *arguments)

        def __init__(self, name, *arguments):
            super().__init__()
            self.label = name

        def read_byte(self):
            return -super().read_byte()

    with Named("mine", 10) as memory:
        memory[0] = 5
        assert (memory.label, memory.read_byte(), memory[0]) == ("mine", -5, 5)
        assert repr(memory).startswith("<Named closed=False")
        memory.seek(0)
        assert next(iter(memory)) == b"\5"


def test_a_subclass_can_have_attributes_that_a_region_has_and_a_standard_map_has_not(file):
    def used(module):
        class Own(module.mmap):
            prot = "of the class"

            def __init__(self, *_):
                self.name, self.flags, self.address = "mine", "of the object", 7

            def __len__(self):
                return 3

            def tell(self):
                return -1

        with Own(file.fileno(), 0) as memory:
            said = repr(memory), memory.name, memory.flags, memory.address, memory.prot, memory.size()
            memory.resize(2 * PAGE)
            return *said, memory.size(), repr(memory)

    ours = used(mmap)
    file.truncate(SIZE)
    assert ours == used(standard)
    assert f"length={SIZE}, pos=0" in ours[0]

    class Named(mmap.mmap):
        flags = 0

    with Named(-1, PAGE) as memory:
        memory.set_name("still anonymous")
        memory.name = "its own"
        assert memory.name == "its own"
    with mmap.mmap(-1, PAGE) as memory, pytest.raises(AttributeError):
        memory.name = "a plain map has no room for it"


def test_the_ways_of_region_to_make_one_are_not_those_of_mmap():
    for make in (mmap.mmap.anonymous, mmap.mmap.memfd):
        with pytest.raises(TypeError, match=r"mmap\(fileno, length\)"):
            make(10)


def test_making_one_raises_the_audit_event_of_the_standard_module(file):
    seen = []
    watching = True
    sys.addaudithook(
        lambda name, arguments: seen.append(arguments) if watching and name == "mmap.__new__" else None
    )
    for module in (standard, mmap):
        module.mmap(-1, 10).close()
        module.mmap(file.fileno(), 20, access=mmap.ACCESS_READ, offset=PAGE).close()
        module.mmap(file.fileno(), 0, prot=mmap.PROT_READ).close()
        with pytest.raises(ValueError):
            module.mmap(-1, 10, access=17)
    watching = False
    assert seen[:3] == seen[3:]
    assert len(seen) == 6


def test_without_trackfd_no_descriptor_is_kept(file):
    before = os.listdir("/proc/self/fd")
    copy_of_fd = os.dup(file.fileno())
    with mmap.mmap(copy_of_fd, SIZE, trackfd=False) as memory:
        os.close(copy_of_fd)
        assert os.listdir("/proc/self/fd") == before
        memory[0] = 200
        memory.flush()
        file.seek(0)
        assert file.read(1) == b"\xc8"
        # EBADF in Python 3.13, ValueError since 3.15.
        with pytest.raises(ValueError) as refusal:
            memory.size()
        assert isinstance(refusal.value, OSError)
        assert refusal.value.errno == errno.EBADF
        with pytest.raises(ValueError, match="trackfd=False"):
            memory.resize(PAGE)
        with pytest.raises(io.UnsupportedOperation):
            memory.fileno()
    assert file.seek(0, 2) == SIZE


# ---- contents ---------------------------------------------------------------------------------------


def test_going_through_it_gives_bytes_objects_as_the_standard_module_does():
    with mmap.mmap(-1, 4) as memory:
        memory[:] = b"abcd"
        assert list(memory) == [b"a", b"b", b"c", b"d"]
        assert list(reversed(memory)) == [b"d", b"c", b"b", b"a"]
        assert (b"c" in memory, b"x" in memory, 99 in memory) == (True, False, False)
        iterator = iter(memory)
        assert next(iterator) == b"a"
        assert iterator.__length_hint__() == 3
        memory[1:4] = b"BCD"
        assert list(iterator) == [b"B", b"C", b"D"]
        memory.seek(0)
        assert list(iterator) == []
        late, at_its_end = iter(memory), iter(memory)
        assert len([next(at_its_end) for _ in range(4)]) == 4
    for iterator in (late, at_its_end):
        with pytest.raises(ValueError, match="mmap closed or invalid"):
            next(iterator)


def test_bytes_are_read_and_written_one_by_one():
    with mmap.mmap(-1, 2) as memory:
        memory.write_byte(255)
        memory.write_byte(0)
        for bad in (lambda: memory.write_byte(1), memory.read_byte):
            with pytest.raises(ValueError, match="out of range"):
                bad()
        memory.seek(0)
        assert [memory.read_byte(), memory.read_byte()] == [255, 0]
        for number in (-1, 256, 2**80):
            with pytest.raises(OverflowError):
                memory.write_byte(number)


def test_what_is_read_only_is_refused_with_type_error_before_anything_else(file):
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        for write in (
            lambda: memory.__setitem__(0, 1),
            lambda: memory.__setitem__(10**9, 1),
            lambda: memory.__setitem__(slice(0, 2), b"x"),
            lambda: memory.__delitem__(0),
            lambda: memory.write(b"x" * 10**6),
            lambda: memory.write_byte(1),
            lambda: memory.move(0, 10**9, 1),
            lambda: memory.resize(PAGE),
        ):
            with pytest.raises(TypeError):
                write()
        assert memoryview(memory).readonly
        assert memory.flush() is None
    file.seek(0)
    assert file.read(2) == b"\0\1"


def test_read_only_is_what_is_read_only_now(file):
    with mmap.mmap(file.fileno(), 0) as memory:
        memory.protect(mmap.PROT_READ)
        with pytest.raises(TypeError, match="read-only"):
            memory[0] = 1
        memory.protect(mmap.PROT_READ | mmap.PROT_WRITE)
        memory[0] = 1
        with memory.protected(mmap.PROT_READ), pytest.raises(mmkit.MemoryFault, match="protection"):
            memory[0] = 2


def test_regular_expressions_and_everything_else_that_takes_a_buffer_work(memory):
    memory[PAGE : PAGE + 6] = b"foobar"
    assert re.search(rb"o+b", memory).span() == (PAGE + 1, PAGE + 4)
    assert bytes(memory) == memory[:]
    assert memoryview(memory)[PAGE : PAGE + 3] == b"foo"


def test_seek_answers_with_the_position_and_it_is_seekable(memory):
    assert memory.seekable()
    assert (memory.seek(10), memory.seek(5, os.SEEK_CUR), memory.seek(-1, os.SEEK_END)) == (10, 15, SIZE - 1)


def test_find_takes_none_for_its_ends(memory):
    memory[100:103] = b"abc"
    assert memory.find(b"abc", None, None) == memory.rfind(b"abc", None, None) == 100
    memory.seek(101)
    assert memory.find(b"abc") == memory.find(b"abc", None) == -1
    assert memory.find(b"", 3, 2) == memory.rfind(b"", 3, 2) == -1


# ---- files ------------------------------------------------------------------------------------------


def test_flush_takes_ranges_on_pages_and_flags(memory, file):
    with mmap.mmap(file.fileno(), 0) as mapped:
        for mapping in (memory, mapped):
            for arguments in ((), (0,), (PAGE,), (SIZE,), (PAGE, 5), (0, 0), (2 * PAGE, PAGE)):
                assert mapping.flush(*arguments) is None
                for flags in (mmap.MS_SYNC, mmap.MS_ASYNC, mmap.MS_ASYNC | mmap.MS_INVALIDATE):
                    assert mapping.flush(*arguments, flags=flags) is None
            for arguments in ((1,), (5, 10), (SIZE - 1, 1)):
                with pytest.raises(OSError, match="Invalid argument"):
                    mapping.flush(*arguments)
            with pytest.raises(OSError, match="Invalid argument"):
                mapping.flush(flags=64)
            for arguments in ((-PAGE,), (0, SIZE + 1), (PAGE, SIZE), (0, -2), (2 * SIZE,)):
                with pytest.raises(ValueError, match="flush values out of range"):
                    mapping.flush(*arguments)


def test_size_is_the_files_and_that_of_anonymous_memory_its_own(file, memory):
    with mmap.mmap(file.fileno(), PAGE, offset=PAGE) as mapped:
        assert (len(mapped), mapped.size()) == (PAGE, SIZE)
    assert memory.size() == SIZE


def test_resize_resizes_the_file_as_well(file):
    fd = file.fileno()
    with mmap.mmap(fd, PAGE, offset=PAGE) as memory:
        for size in (PAGE + 5, 7, 10 * PAGE, PAGE):
            memory.resize(size)
            assert (len(memory), memory.size(), os.fstat(fd).st_size) == (size, PAGE + size, PAGE + size)
        assert memory[:7] == bytes(range(7))
        assert memory[7:] == bytes(PAGE - 7)


def test_a_refused_resize_changes_nothing(file):
    with mmap.mmap(file.fileno(), 0) as memory:
        before = memory[:]
        for size, error in ((0, OSError), (-1, ValueError), (sys.maxsize, OSError), ("x", TypeError)):
            with pytest.raises(error):
                memory.resize(size)
        with pytest.raises(OSError, match="mremap"):
            memory.resize(0)
        # Even a view that would not notice, as the standard module has it.
        for view in (memoryview(memory), memory.view(0, 10)):
            for size in (PAGE, SIZE - 1, SIZE + 1, 2 * SIZE):
                with pytest.raises(BufferError):
                    memory.resize(size)
            view.release()
        assert (memory[:], memory.size()) == (before, SIZE)
    with (
        mmap.mmap(file.fileno(), 0, offset=PAGE) as memory,
        pytest.raises(ValueError, match="new size out of range"),
    ):
        memory.resize(sys.maxsize - PAGE + 1)


def test_a_resize_that_the_file_refuses_changes_nothing():
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    with mmap.mmap(fd, 2 * PAGE) as memory:
        memory[:] = b"x" * 2 * PAGE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        for size in (10, PAGE, 4 * PAGE):
            with pytest.raises(PermissionError):
                memory.resize(size)
            assert (memory[:], memory.size()) == (b"x" * 2 * PAGE, SIZE)
    os.close(fd)


def test_private_memory_grows_and_shared_anonymous_memory_only_shrinks(memory):
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE) as private:
        private[:] = b"x" * PAGE
        private.resize(5 * PAGE)
        assert private[:] == b"x" * PAGE + bytes(4 * PAGE)
    with pytest.raises(ValueError, match="can't expand a shared anonymous mapping"):
        memory.resize(SIZE + 1)
    memory.resize(10)
    assert (len(memory), memory.size()) == (10, 10)


def test_a_private_map_of_a_file_is_not_resized(file):
    with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as memory, pytest.raises(TypeError):
        memory.resize(PAGE)
    assert file.seek(0, 2) == SIZE


# ---- advice, names, and the rest of what a Region can -----------------------------------------------


def test_huge_pages_are_protected_whole():
    if not with_huge_pages(1):
        pytest.skip("no huge page can be had")
    size = huge_page_size()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | int(MapFlag.HUGETLB)
    with mmap.mmap(-1, size, flags=flags) as memory:
        memory[0] = 1
        assert memory.protect(mmap.PROT_READ, 0, 100) == (0, size)
        with pytest.raises(mmkit.MemoryFault):
            mmkit.poke(memory.address + size - 1, b"x")


def test_madvise_gives_hints_and_gives_pages_back(file):
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE) as memory:
        memory[:] = b"x" * SIZE
        view = memoryview(memory)
        for advice in (
            mmap.MADV_NORMAL,
            mmap.MADV_WILLNEED,
            mmap.MADV_DONTFORK,
            mmap.MADV_DOFORK,
            mmap.MADV_COLD,
        ):
            assert memory.madvise(advice) is None
        memory.madvise(mmap.MADV_DONTNEED, PAGE, 1)
        assert view[:] == b"x" * PAGE + bytes(PAGE) + b"x" * PAGE
        memory.madvise(mmap.MADV_FREE, 0, 10 * SIZE)
        view.release()
    with mmap.mmap(-1, SIZE) as shared:
        shared[:] = b"x" * SIZE
        shared.madvise(mmap.MADV_REMOVE, 2 * PAGE)
        assert shared[:] == b"x" * 2 * PAGE + bytes(PAGE)


def test_madvise_refuses_what_the_standard_module_refuses(memory):
    for arguments, error, message in (
        ((0, SIZE), ValueError, "madvise start out of bounds"),
        ((0, -1), ValueError, "madvise start out of bounds"),
        ((0, 0, -1), ValueError, "madvise length invalid"),
        ((0, PAGE, sys.maxsize), OverflowError, "madvise length too large"),
        ((0, 1), OSError, "Invalid argument"),
        ((4711,), OSError, "Invalid argument"),
        (("x",), TypeError, None),
    ):
        with pytest.raises(error, match=message):
            memory.madvise(*arguments)


@pytest.mark.skipif(not mmkit.supports(mmkit.Advice.GUARD_INSTALL), reason="the kernel has no guards")
def test_guards_are_an_advice_that_looks_at_views(memory):
    view = memoryview(memory)
    with pytest.raises(BufferError):
        memory.madvise(mmap.MADV_GUARD_INSTALL, PAGE, PAGE)
    view.release()
    memory.madvise(mmap.MADV_GUARD_INSTALL, PAGE, PAGE)
    with pytest.raises(mmkit.MemoryFault, match="guard"):
        memory[PAGE]
    memory.madvise(mmap.MADV_GUARD_REMOVE, PAGE, PAGE)
    assert memory[PAGE] == 0


def test_set_name_takes_what_python_takes_for_anonymous_memory(memory, file):
    assert memory.set_name("x" * 66) is None
    assert memory.name == "x" * 66
    for bad in ("x" * 67, "é" * 34, "a\0b"):
        with pytest.raises(ValueError):
            memory.set_name(bad)
    with pytest.raises(TypeError):
        memory.set_name(b"x")
    with mmap.mmap(file.fileno(), 0) as mapped, pytest.raises(ValueError, match="non-anonymous"):
        mapped.set_name("x")


@locks
def test_it_is_protected_locked_and_looked_into_as_a_region_is(memory):
    memory.protect(mmap.PROT_READ, PAGE, PAGE)
    assert perms(memory.address + PAGE) == "r--s"
    with memory.locked(0, PAGE):
        assert locked_bytes() >= PAGE
    memory[0] = 1
    assert memory.resident(0, PAGE) == PAGE
    assert memory.view(0, 5).tolist() == [1, 0, 0, 0, 0]
    assert memory.array(np.uint8, 3).tolist() == [1, 0, 0]


# ---- its life ---------------------------------------------------------------------------------------


def test_a_refusal_says_which_argument_it_is_about(file):
    with pytest.raises(OSError, match="Length must be at least 1") as refusal:
        mmap.mmap(-1, 0)
    assert refusal.value.errno == errno.EINVAL
    assert "prot=READ|WRITE, offset=0" in str(refusal.value)
    with pytest.raises(OSError, match=f"multiple of ALLOCATIONGRANULARITY, which is {PAGE}") as refusal:
        mmap.mmap(file.fileno(), 1, offset=3)
    assert refusal.value.errno == errno.EINVAL
    with pytest.raises(PermissionError, match=r"MAP_FIXED .* mmkit\.linux\.mmap"):
        mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MapFlag.FIXED)
    untracked = mmap.mmap(file.fileno(), 0, trackfd=False)
    with pytest.raises(io.UnsupportedOperation, match="trackfd=False"):
        untracked.fileno()
    untracked.close()
    with pytest.raises(ValueError, match="closed"):
        untracked.fileno()
    with (
        mmap.mmap(-1, PAGE, trackfd=False) as memory,
        pytest.raises(io.UnsupportedOperation, match="no file stands"),
    ):
        memory.fileno()


def test_flush_of_private_memory_does_nothing_inside_the_map_and_is_refused_outside():
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        assert memory.flush(1, 100) is None
        with pytest.raises(ValueError, match="out of range"):
            memory.flush(0, SIZE + 1)


def test_repr_is_that_of_the_standard_module(file):
    for access in range(4):
        theirs, ours = (
            module.mmap(file.fileno(), 50, access=access, offset=PAGE) for module in (standard, mmap)
        )
        for mapping in (theirs, ours):
            mapping.seek(7)
        assert repr(ours) == repr(theirs)
        for mapping in (theirs, ours):
            mapping.close()
        assert repr(ours) == repr(theirs) == "<mmap.mmap closed=True>"


def test_an_exported_buffer_keeps_it_from_being_closed(memory):
    view = memoryview(memory)
    for _ in range(2):
        with pytest.raises(BufferError):
            memory.close()
    assert not memory.closed
    view.release()
    memory.close()
    memory.close()
    assert memory.closed


def test_a_closed_one_answers_with_value_error(file):
    memory = mmap.mmap(file.fileno(), 0)
    memory.close()
    for use in (
        lambda: memory[0],
        lambda: memory[:],
        lambda: memory[5:2],
        lambda: memory.__setitem__(0, 1),
        lambda: memory.__setitem__(slice(5, 2), b""),
        lambda: memory.__delitem__(0),
        lambda: next(iter(memory)),
        lambda: reversed(memory),
        lambda: len(memory),
        lambda: memory.find(b""),
        lambda: memory.rfind(b"x", 1, 2),
        lambda: memory.read(0),
        lambda: memory.read_byte(),
        lambda: memory.readline(),
        lambda: memory.write(b""),
        lambda: memory.write_byte(1),
        lambda: memory.seek(0),
        lambda: memory.tell(),
        lambda: memory.size(),
        lambda: memory.move(0, 0, 0),
        lambda: memory.resize(1),
        lambda: memory.flush(),
        lambda: memory.madvise(0),
        lambda: memory.set_name("x"),
        lambda: memory.__enter__(),
    ):
        with pytest.raises(ValueError, match="mmap closed or invalid"):
            use()
    with pytest.raises((ValueError, BufferError)):
        memoryview(memory)


def test_it_can_be_referred_to_weakly_and_dies_without_a_warning(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory = mmap.mmap(file.fileno(), 0)
        reference = weakref.ref(memory)
        view = memoryview(memory)
        del memory
        gc.collect()
        assert view[1] == 1
        assert reference() is not None
        view.release()
        del view
        gc.collect()
        assert reference() is None


def test_it_cannot_be_pickled_or_copied(memory):
    for copy_it in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="mmap cannot be pickled or copied"):
            copy_it(memory)


def test_a_child_shares_what_is_shared_and_closes_its_own(memory):
    def use():
        memory[0] = 42
        memory.close()

    in_child(use)
    assert memory[0] == 42


def test_threads_that_use_it_while_it_is_closed_get_value_errors(file):
    problems = []
    start = threading.Barrier(5)

    def use(memory):
        start.wait()
        try:
            while True:
                memory[3] = 7
                assert memory[3] == 7
                assert memory.find(b"\7\4\5") in (3, -1)
                memory.move(100, 0, 50)
        except ValueError:
            pass
        except BaseException as problem:
            problems.append(problem)

    for _ in range(20):
        memory = mmap.mmap(file.fileno(), 0)
        threads = [threading.Thread(target=use, args=(memory,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        start.wait()
        while not memory.closed:
            try:
                memory.close()
            except BufferError:
                continue
        for thread in threads:
            thread.join()
    assert problems == []


# ---- those who build on mmap ------------------------------------------------------------------------


@pytest.fixture
def in_place(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmap", mmap)


def test_numpy_memmap_works_on_it(in_place, tmp_path):
    path = tmp_path / "array"
    array = np.memmap(path, dtype=np.float64, mode="w+", shape=(1000, 3), offset=PAGE + 8)
    assert type(array._mmap) is mmap.mmap
    array[:] = np.arange(3000.0).reshape(1000, 3)
    array.flush()
    for mode in ("r", "r+", "c"):
        again = np.memmap(path, dtype=np.float64, mode=mode, shape=(1000, 3), offset=PAGE + 8)
        assert again.sum() == 2999 * 1500
        assert again.flags.writeable == (mode != "r")
    with pytest.raises(ValueError):
        np.memmap(path, mode="r")[0] = 1
    saved = tmp_path / "saved.npy"
    np.save(saved, np.arange(10))
    assert np.load(saved, mmap_mode="r").tolist() == list(range(10))


def test_shared_memory_of_the_standard_library_works_on_it(monkeypatch):
    monkeypatch.setattr(multiprocessing.shared_memory, "mmap", mmap)
    segment = multiprocessing.shared_memory.SharedMemory(create=True, size=100)
    try:
        segment.buf[:3] = b"abc"
        other = multiprocessing.shared_memory.SharedMemory(segment.name)
        assert bytes(other.buf[:3]) == b"abc"
        assert type(other._mmap) is mmap.mmap
        other.close()
    finally:
        segment.close()
        segment.unlink()
