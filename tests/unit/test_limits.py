"""What the kernel refuses: as an unprivileged user, with low limits, with calls refused one by one.

After every refusal everything must still be usable, and nothing left behind.
"""

import contextlib
import ctypes
import errno
import gc
import os
import resource
from pathlib import Path

import pytest

import mmkit
from mmkit import Advice, Prot, Region, linux
from support import NOBODY, PAGE, areas, in_child, locked_bytes, locks, needs_root, perms, sanitized, x86_64

MIB = 1 << 20
MEMLOCK_64K = {resource.RLIMIT_MEMLOCK: 64 << 10}


def still_usable():
    """Exercise a region through its whole life."""
    with Region.anonymous(4 * PAGE, reserve=8 * PAGE) as region:
        region[:4] = b"work"
        with region.protected(Prot.READ, 0, PAGE):
            assert region[:4] == b"work"
        region.resize(8 * PAGE)
        region.discard(PAGE)
        region.guard(PAGE, PAGE)
        region.unguard()
        assert region[:4] == b"work"
    return True


def test_everything_works_as_an_unprivileged_user():
    def live():
        with Region.memfd(PAGE) as memory:
            memory[:2] = b"hi"
            memory.flush()
            memory.resize(3 * PAGE)
            assert memory.cached() >= PAGE
        with Region.anonymous(PAGE) as region:
            region[0] = 1
            assert region.resident() == PAGE
        return os.geteuid(), still_usable()

    assert in_child(live, user=NOBODY)[1]


@needs_root
def test_a_file_of_somebody_else_is_a_permission_error(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(bytes(PAGE))
    path.chmod(0o600)
    tmp_path.chmod(0o755)

    def attempt():
        with pytest.raises(PermissionError):
            Region.file(path)
        return True

    assert in_child(attempt, user=NOBODY)


@needs_root
def test_what_is_cached_of_a_file_one_cannot_write_is_not_told():
    if not mmkit.supports("cachestat"):
        pytest.skip("kernel before 6.5")

    def attempt():
        with Region.file("/etc/passwd") as region:
            try:
                region.cached()
            except PermissionError as error:
                return "Only who could write the file" in str(error)

    assert in_child(attempt, user=NOBODY)


@needs_root
def test_a_process_that_gave_up_root_is_told_why_its_page_table_is_closed_to_it():
    def attempt():
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: what changing user does
        with Region.anonymous(PAGE) as region:
            with pytest.raises(PermissionError, match="PR_SET_DUMPABLE"):
                region.resident()
            return "resident" not in repr(region)

    assert in_child(attempt, user=NOBODY)


# ---- locking


@needs_root
@sanitized
def test_locking_beyond_the_limit_locks_nothing_and_says_why():
    def attempt():
        with Region.anonymous(MIB) as region:
            region.lock(0, 8 * PAGE)
            before = locked_bytes()
            with pytest.raises(mmkit.OutOfMemory, match="RLIMIT_MEMLOCK is 64 KiB"):
                region.lock()
            assert locked_bytes() == before
            region.unlock()
            return locked_bytes(), still_usable()

    assert in_child(attempt, user=NOBODY, limits=MEMLOCK_64K) == (0, True)


@needs_root
@sanitized
@pytest.mark.parametrize("lock", ["require", "warn"])
def test_a_region_that_must_be_locked_is_not_made_otherwise(lock):
    def attempt():
        before = len(areas())
        if lock == "require":
            with pytest.raises(mmkit.OutOfMemory, match="mlock"):
                Region.anonymous(MIB, lock="require")
        else:
            with pytest.warns(RuntimeWarning, match="not locked into RAM"):
                Region.anonymous(MIB, lock="warn").close()
        gc.collect()
        return len(areas()) - before

    assert in_child(attempt, user=NOBODY, limits=MEMLOCK_64K) <= 1


@needs_root
@locks
def test_a_limit_of_nothing_says_so():
    def attempt():
        with Region.anonymous(PAGE) as region, pytest.raises(PermissionError, match="RLIMIT_MEMLOCK is 0"):
            region.lock()
        return still_usable()

    assert in_child(attempt, user=NOBODY, limits={resource.RLIMIT_MEMLOCK: 0})


@locks
def test_locks_nest_per_page():
    before = locked_bytes()
    with Region.anonymous(8 * PAGE) as region:
        with region.locked(0, 4 * PAGE):
            with region.locked(2 * PAGE, 4 * PAGE):
                assert locked_bytes() - before == 6 * PAGE
            assert locked_bytes() - before == 4 * PAGE
        assert locked_bytes() == before


@locks
def test_a_lock_that_fails_over_a_guard_leaves_no_page_locked():
    with Region.anonymous(8 * PAGE) as region:
        region.guard(4 * PAGE, PAGE)
        before = locked_bytes()
        with pytest.raises(mmkit.SyscallError):
            region.lock()
        assert locked_bytes() == before


# ---- address space


@sanitized
def test_when_the_address_space_is_full_everything_stays_usable():
    """RLIMIT_AS, reached at a different point in each round."""

    def exhaust():
        limit = sum(end - start for start, end, _ in areas()) + 64 * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        refused = 0
        for size in (MIB, 3 * MIB, 7 * MIB, 40 * MIB, 100 * MIB):
            kept = []
            try:
                while True:
                    region = Region.anonymous(size, reserve=size + MIB)
                    region[0] = len(kept) % 256
                    kept.append(region)
            except mmkit.OutOfMemory as error:
                assert error.errno == errno.ENOMEM
                assert "RLIMIT_AS is" in str(error)
                refused += 1
            for index, region in enumerate(kept):
                assert region[0] == index % 256
                with pytest.raises(mmkit.OutOfMemory):
                    region.resize(200 * MIB)
                assert len(region) == size
                assert region[0] == index % 256
                region.protect(Prot.READ, 0, PAGE)
                region.close()
            kept.clear()
            region = None
            gc.collect()
            assert still_usable()
        with pytest.raises(mmkit.OutOfMemory):
            linux.mmap(0, 200 * MIB, 3, 0x22)
        return refused

    assert in_child(exhaust) == 5


@locks
def test_when_the_process_has_too_many_areas_protect_changes_nothing():
    def exhaust():
        maximum = int(Path("/proc/sys/vm/max_map_count").read_text())
        region = Region.anonymous((maximum + 1000) * 2 * PAGE, noreserve=True)
        page = 0
        with pytest.raises(mmkit.OutOfMemory, match="vm.max_map_count"):
            while True:
                region.protect(Prot.READ, page * PAGE, PAGE)
                page += 2
        assert page > maximum // 2
        view = region.view(page * PAGE, (page + 1) * PAGE)
        assert not view.readonly
        view.release()
        with pytest.raises(mmkit.OutOfMemory):
            region.protected(Prot.READ, page * PAGE, PAGE).__enter__()
        region[page * PAGE] = 1
        region.protect(Prot.READ | Prot.WRITE)
        region[0] = 1
        region.close()
        return still_usable()

    assert in_child(exhaust)


# ---- calls refused by seccomp: older kernels, locked-down containers

_MPROTECT, _MADVISE, _MREMAP, _MMAP, _MLOCK = 10, 28, 25, 9, 149
_CACHESTAT, _MSEAL, _MEMFD_SECRET = 451, 462, 447


@x86_64
def test_guards_on_a_kernel_without_them_are_protections():
    refuse = [
        ((_MADVISE, Advice.GUARD_INSTALL), errno.EINVAL),
        ((_MADVISE, Advice.GUARD_REMOVE), errno.EINVAL),
    ]

    def guard():
        assert not mmkit.supports(Advice.GUARD_INSTALL)
        with Region.anonymous(4 * PAGE) as region:
            region[:] = b"x" * 4 * PAGE
            assert region.guard(PAGE, PAGE) == (PAGE, PAGE)
            assert perms(region.address + PAGE) == "---p"
            region.protect(Prot.READ)
            region.protect(Prot.READ | Prot.WRITE)
            assert perms(region.address + PAGE) == "---p"
            region.unguard()
            return region[:] == b"x" * PAGE + bytes(PAGE) + b"x" * 2 * PAGE

    assert in_child(guard, refuse=refuse)


@x86_64
def test_what_an_old_kernel_lacks_is_said():
    calls = [(_CACHESTAT, errno.ENOSYS), (_MSEAL, errno.ENOSYS), (_MEMFD_SECRET, errno.ENOSYS)]

    def old():
        found = [mmkit.supports(name) for name in ("cachestat", "mseal", "memfd_secret")]
        with pytest.raises(mmkit.SyscallError, match=r"6\.10"):
            linux.mseal(0, 0)
        with pytest.raises(mmkit.SyscallError, match=r"6\.5"):
            linux.cachestat(0, 0, 0)
        with pytest.raises(mmkit.SyscallError, match=r"secretmem\.enable"):
            Region.memfd(PAGE, secret=True)
        with Region.memfd(3 * PAGE) as region:
            region[0] = 1
            return found, region.cached()

    assert in_child(old, refuse=calls) == ([False] * 3, PAGE)


@x86_64
@pytest.mark.parametrize("call", [pytest.param(_MMAP, marks=sanitized), _MPROTECT, _MADVISE, _MREMAP, _MLOCK])
def test_any_call_may_be_refused_at_any_time(call):
    """The parent's regions are used in a child in which a call always answers ENOMEM."""
    with Region.anonymous(4 * PAGE, guard=True) as region, Region.memfd(4 * PAGE) as memory:
        region[:4] = b"kept"

        def use():
            for attempt in (
                lambda: region.protect(Prot.READ, 0, PAGE),
                lambda: region.protected(Prot.READ).__enter__(),
                lambda: region.guard(PAGE, PAGE),
                lambda: region.discard(2 * PAGE),
                lambda: region.lock(),
                lambda: region.populate(),
                lambda: region.resize(100 * PAGE),
                lambda: memory.resize(100 * PAGE),
                lambda: Region.anonymous(PAGE, reserve=2 * PAGE),
                lambda: Region.memfd(PAGE),
                lambda: region.close(),
            ):
                with contextlib.suppress(mmkit.Error):
                    attempt()
            return region.closed or region[:4]

        assert in_child(use, refuse=[(call, errno.ENOMEM)]) in (True, b"kept")
        assert region[:4] == b"kept"
