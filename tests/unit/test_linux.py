"""Every function of mmkit.linux, against the real kernel."""

import contextlib
import ctypes
import errno
import inspect
import os
import resource
import threading

import pytest

import mmkit
from mmkit import Advice, MapFlag, Prot, linux
from mmkit.flags import (
    IpcFlag,
    LockAllFlag,
    LockFlag,
    MemfdFlag,
    RemapFlag,
    ShmAttachFlag,
    ShmCommand,
    SyncFlag,
)
from support import NOBODY, PAGE, in_child, locked_bytes, locks, needs_root, perms, sanitized

READ_WRITE = Prot.READ | Prot.WRITE
PRIVATE = MapFlag.PRIVATE | MapFlag.ANONYMOUS
SHARED = MapFlag.SHARED | MapFlag.ANONYMOUS


@pytest.fixture
def pages():
    """Four pages of private anonymous memory."""
    address = linux.mmap(0, 4 * PAGE, READ_WRITE, PRIVATE)
    yield address
    linux.munmap(address, 4 * PAGE)


def poke(address, data):
    ctypes.memmove(address, data, len(data))


def peek(address, length):
    return ctypes.string_at(address, length)


# ---- mmap, munmap, mremap


def test_mmap_gives_memory_that_reads_as_zeros_and_munmap_takes_it_away():
    address = linux.mmap(0, PAGE, READ_WRITE, PRIVATE)
    assert address % PAGE == 0
    assert peek(address, PAGE) == bytes(PAGE)
    poke(address, b"x")
    assert perms(address) == "rw-p"
    linux.munmap(address, PAGE)
    assert perms(address) is None


def test_mmap_of_a_file_writes_through(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * PAGE))
    with path.open("r+b") as file:
        address = linux.mmap(0, PAGE, READ_WRITE, MapFlag.SHARED, file.fileno(), PAGE)
    poke(address, b"through")
    linux.msync(address, PAGE, SyncFlag.SYNC)
    linux.munmap(address, PAGE)
    assert path.read_bytes()[PAGE : PAGE + 7] == b"through"


def test_mmap_fixed_takes_the_address(pages):
    assert linux.mmap(pages + PAGE, PAGE, Prot.READ, PRIVATE | MapFlag.FIXED) == pages + PAGE
    assert perms(pages + PAGE) == "r--p"


def test_mmap_fixed_noreplace_refuses_what_is_taken(pages):
    with pytest.raises(FileExistsError):
        linux.mmap(pages, PAGE, Prot.READ, PRIVATE | MapFlag.FIXED_NOREPLACE)


def test_shared_validate_refuses_flags_that_plain_shared_swallows():
    unknown = MapFlag(1 << 23)
    fd = linux.memfd_create("validate")
    os.ftruncate(fd, PAGE)
    linux.munmap(linux.mmap(0, PAGE, Prot.READ, MapFlag.SHARED | unknown, fd), PAGE)
    with pytest.raises(mmkit.SyscallError) as refusal:
        linux.mmap(0, PAGE, Prot.READ, MapFlag.SHARED_VALIDATE | unknown, fd)
    assert refusal.value.errno == errno.EOPNOTSUPP
    os.close(fd)


@pytest.mark.parametrize(
    "flag",
    [
        MapFlag.LOCKED, MapFlag.NORESERVE, MapFlag.POPULATE, MapFlag.NONBLOCK, MapFlag.STACK, MapFlag.GROWSDOWN,
        MapFlag.DENYWRITE, MapFlag.EXECUTABLE,
    ],
)  # fmt: skip
def test_mmap_takes_every_ordinary_flag(flag):
    linux.munmap(linux.mmap(0, PAGE, READ_WRITE, PRIVATE | flag), PAGE)


def test_mmap_takes_droppable_memory_where_the_kernel_has_it():
    if not mmkit.supports(MapFlag.DROPPABLE):
        pytest.skip("kernel before 6.11")
    linux.munmap(linux.mmap(0, PAGE, READ_WRITE, MapFlag.DROPPABLE | MapFlag.ANONYMOUS), PAGE)


def test_mmap_sync_is_refused_without_a_dax_file(tmp_path):
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(PAGE)
        with pytest.raises(mmkit.SyscallError) as refusal:
            linux.mmap(0, PAGE, READ_WRITE, MapFlag.SHARED_VALIDATE | MapFlag.SYNC, file.fileno())
    assert refusal.value.errno == errno.EOPNOTSUPP


def test_mmap_says_why_a_read_only_file_cannot_be_mapped_for_writing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with (
        path.open("rb") as file,
        pytest.raises(PermissionError, match="not opened for what prot and flags ask"),
    ):
        linux.mmap(0, PAGE, READ_WRITE, MapFlag.SHARED, file.fileno())


def test_mremap_moves_and_grows_and_keeps_the_contents(pages):
    old = linux.mmap(0, PAGE, READ_WRITE, PRIVATE)
    poke(old, b"kept")
    new = linux.mremap(old, PAGE, 8 * PAGE, RemapFlag.MAYMOVE)
    assert peek(new, 4) == b"kept"
    linux.munmap(new, 8 * PAGE)


def test_mremap_without_maymove_does_not_move(pages):
    with pytest.raises(mmkit.OutOfMemory):
        linux.mremap(pages, PAGE, 8 * PAGE)


def test_mremap_dontunmap_leaves_the_old_range_empty(pages):
    poke(pages, b"gone")
    new = linux.mremap(pages, PAGE, PAGE, RemapFlag.MAYMOVE | RemapFlag.DONTUNMAP)
    assert peek(new, 4) == b"gone"
    assert peek(pages, 4) == bytes(4)
    linux.munmap(new, PAGE)


# ---- msync, mprotect, madvise, mincore


def test_msync_refuses_a_hole(pages):
    hole = linux.mmap(0, 3 * PAGE, READ_WRITE, SHARED)
    linux.munmap(hole + PAGE, PAGE)
    with pytest.raises(mmkit.OutOfMemory, match="not mapped"):
        linux.msync(hole, 3 * PAGE, SyncFlag.SYNC)
    linux.munmap(hole, PAGE)
    linux.munmap(hole + 2 * PAGE, PAGE)


@locks
def test_msync_invalidate_refuses_locked_pages():
    address = linux.mmap(0, PAGE, READ_WRITE, SHARED)
    linux.mlock(address, PAGE)
    with pytest.raises(mmkit.SyscallError, match="unlock the range first") as refusal:
        linux.msync(address, PAGE, SyncFlag.SYNC | SyncFlag.INVALIDATE)
    assert refusal.value.errno == errno.EBUSY
    linux.munmap(address, PAGE)


def test_mprotect_changes_what_maps_says(pages):
    for prot, text in (
        (Prot.NONE, "---p"),
        (Prot.READ, "r--p"),
        (READ_WRITE, "rw-p"),
        (Prot.READ | Prot.EXEC, "r-xp"),
    ):
        linux.mprotect(pages, PAGE, prot)
        assert perms(pages) == text


_SPECIAL = {
    Advice.REMOVE: SHARED,
    Advice.HWPOISON: None,
    Advice.SOFT_OFFLINE: None,
}


@pytest.mark.parametrize("advice", list(Advice))
def test_madvise_gives_every_advice(advice):
    flags = _SPECIAL.get(advice, PRIVATE)
    if flags is None:
        pytest.skip("takes memory from the machine")
    if not mmkit.supports(advice):
        pytest.skip("not in this kernel")
    size = 4 << 20  # COLLAPSE wants a whole aligned huge page
    address = linux.mmap(0, size, READ_WRITE, flags)
    poke(address, b"x")
    # COLLAPSE may find no huge page on a fragmented machine; that too is the kernel's answer.
    with contextlib.suppress(mmkit.SyscallError) if advice is Advice.COLLAPSE else contextlib.nullcontext():
        linux.madvise(address, size, advice)
    linux.munmap(address, size)


@pytest.mark.parametrize(("offset", "prot"), [(1, Prot.READ), (0, 1 << 20)], ids=["address", "bits"])
def test_mprotect_of_what_is_no_page_or_no_protection_says_so(pages, offset, prot):
    with pytest.raises(
        mmkit.SyscallError, match="not a multiple of the page size, or prot has a bit"
    ) as refusal:
        linux.mprotect(pages + offset, PAGE, prot)
    assert refusal.value.errno == errno.EINVAL


def test_madvise_names_the_advice_that_the_kernel_does_not_know(pages):
    with pytest.raises(mmkit.SyscallError, match=r"madvise\(0x[0-9a-f]+, 4 KiB, 0x4d\)") as refusal:
        linux.madvise(pages, PAGE, 77)
    assert refusal.value.errno == errno.EINVAL


def test_mincore_answers_one_byte_a_page(pages):
    poke(pages + 2 * PAGE, b"x")
    assert [byte & 1 for byte in linux.mincore(pages, 3 * PAGE + 1)] == [0, 0, 1, 0]


def test_mincore_refuses_a_hole(pages):
    hole = linux.mmap(0, PAGE, READ_WRITE, PRIVATE)
    linux.munmap(hole, PAGE)
    with pytest.raises(mmkit.OutOfMemory):
        linux.mincore(hole, PAGE)


# ---- mlock and friends


@locks
def test_mlock_and_munlock_show_in_the_process_status(pages):
    before = locked_bytes()
    linux.mlock(pages, 2 * PAGE)
    assert locked_bytes() - before == 2 * PAGE
    linux.munlock(pages, 2 * PAGE)
    assert locked_bytes() == before


@locks
def test_mlock2_on_fault_locks_without_bringing_in(pages):
    before = locked_bytes()
    linux.mlock2(pages, 4 * PAGE, LockFlag.ONFAULT)
    assert locked_bytes() - before == 4 * PAGE
    assert linux.mincore(pages, 4 * PAGE) == bytes(4)
    linux.munlock(pages, 4 * PAGE)


@needs_root
@sanitized
def test_mlock_beyond_the_limit_says_the_limit_and_what_to_do():
    def attempt():
        address = linux.mmap(0, 32 * PAGE, READ_WRITE, PRIVATE)
        try:
            linux.mlock(address, 32 * PAGE)
        except mmkit.OutOfMemory as error:
            return str(error)

    text = in_child(attempt, user=NOBODY, limits={resource.RLIMIT_MEMLOCK: 64 << 10})
    assert "mlock(0x" in text
    assert "128 KiB" in text
    assert "RLIMIT_MEMLOCK is 64 KiB, 0 B of it is used" in text
    assert "ulimit -l" in text


@locks
@needs_root  # others may lock 8 MiB, and a process has more
def test_mlockall_locks_the_process_and_munlockall_unlocks_it():
    def lock_all():
        linux.mlockall(LockAllFlag.CURRENT | LockAllFlag.ONFAULT)
        locked = locked_bytes()
        linux.munlockall()
        return locked, locked_bytes()

    locked, after = in_child(lock_all)
    assert locked > 1 << 20
    assert after == 0


@locks
def test_mlockall_refuses_no_flags():
    with pytest.raises(mmkit.SyscallError):
        linux.mlockall(0)


# ---- memfd_create, memfd_secret, mseal, cachestat


def test_memfd_create_makes_a_file_without_a_path_that_exec_does_not_inherit():
    fd = linux.memfd_create("named")
    assert "/memfd:named" in os.readlink(f"/proc/self/fd/{fd}")
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize("flag", [MemfdFlag.ALLOW_SEALING, MemfdFlag.NOEXEC_SEAL, MemfdFlag.EXEC])
def test_memfd_create_takes_its_flags(flag):
    if not mmkit.supports(flag):
        pytest.skip("not in this kernel")
    os.close(linux.memfd_create("flags", MemfdFlag.CLOEXEC | flag))


def test_memfd_secret_is_sized_once():
    if not mmkit.supports("memfd_secret"):
        pytest.skip("secret memory is off in this kernel")
    fd = linux.memfd_secret()
    os.ftruncate(fd, PAGE)
    with pytest.raises(OSError):
        os.ftruncate(fd, 2 * PAGE)
    os.close(fd)


def test_mseal_forbids_unmapping_for_ever():
    if not mmkit.supports("mseal"):
        pytest.skip("kernel before 6.10")

    def seal():
        address = linux.mmap(0, PAGE, READ_WRITE, PRIVATE)
        linux.mseal(address, PAGE)
        refused = []
        for call in (
            lambda: linux.munmap(address, PAGE),
            lambda: linux.mprotect(address, PAGE, Prot.READ),
            lambda: linux.mremap(address, PAGE, 2 * PAGE, RemapFlag.MAYMOVE),
        ):
            try:
                call()
            except PermissionError:
                refused.append(True)
        return refused

    assert in_child(seal) == [True, True, True]


def test_cachestat_counts_the_page_cache(tmp_path):
    if not mmkit.supports("cachestat"):
        pytest.skip("kernel before 6.5")
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(bytes(3 * PAGE))
        stat = linux.cachestat(file.fileno(), 0, 0)
        assert stat.nr_cache == 3
        assert linux.cachestat(file.fileno(), PAGE, PAGE).nr_cache == 1


# ---- brk, sbrk (each in a child: the break is the whole process's)


def test_sbrk_grows_and_gives_back_what_was_taken_last():
    def move():
        start = linux.sbrk(16 * PAGE)
        poke(start, b"real memory")
        ends = [linux.sbrk()]
        linux.sbrk(-16 * PAGE)
        ends.append(linux.sbrk())
        return start, ends

    start, ends = in_child(move)
    assert ends == [start + 16 * PAGE, start]


def test_brk_sets_the_break():
    def move():
        start = linux.sbrk()
        linux.brk(start + 4 * PAGE)
        grown = linux.sbrk() - start
        linux.brk(start)
        return grown, linux.sbrk() - start

    assert in_child(move) == (4 * PAGE, 0)


def test_sbrk_never_takes_what_somebody_else_took_since():
    def shrink_under_another():
        linux.sbrk(PAGE)
        libc = ctypes.PyDLL(None)
        libc.sbrk.restype = ctypes.c_void_p
        libc.sbrk.argtypes = [ctypes.c_ssize_t]
        libc.sbrk(PAGE)
        try:
            linux.sbrk(-PAGE)
        except OSError as error:
            return error.errno, str(error)

    number, text = in_child(shrink_under_another)
    assert number == errno.EBUSY
    assert "malloc or another library" in text


def test_sbrk_never_shrinks_below_what_it_took():
    def shrink():
        with pytest.raises(OSError, match="malloc or another library"):
            linux.sbrk(-PAGE)

    in_child(shrink)


def test_sbrk_does_not_shrink_while_other_threads_exist():
    def shrink():
        linux.sbrk(PAGE)
        done = threading.Event()
        thread = threading.Thread(target=done.wait)
        thread.start()
        try:
            linux.sbrk(-PAGE)
        except OSError as error:
            return str(error)
        finally:
            done.set()
            thread.join()

    assert "other threads" in in_child(shrink)


@sanitized
def test_sbrk_beyond_the_data_limit_is_out_of_memory():
    def grow():
        with pytest.raises(mmkit.OutOfMemory):
            linux.sbrk(1 << 40)
        return linux.sbrk(PAGE) > 0

    assert in_child(grow, limits={resource.RLIMIT_DATA: 1 << 30})


# ---- POSIX and System V shared memory


@pytest.fixture
def shm_name():
    name = f"/mmkit-test-{os.getpid()}"
    yield name
    with contextlib.suppress(FileNotFoundError):
        linux.shm_unlink(name)


def test_shm_open_makes_a_named_object_and_shm_unlink_removes_the_name(shm_name):
    fd = linux.shm_open(shm_name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    assert os.stat(f"/dev/shm{shm_name}").st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError, match="without O_EXCL"):
        linux.shm_open(shm_name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    linux.shm_unlink(shm_name)
    with pytest.raises(FileNotFoundError, match="O_CREAT makes one"):
        linux.shm_open(shm_name, os.O_RDWR)
    with pytest.raises(FileNotFoundError, match="there never was one"):
        linux.shm_unlink(shm_name)
    os.close(fd)


@pytest.mark.parametrize("name", ["/a/b", "", "/", "/" + "x" * 300])
def test_shm_open_refuses_bad_names(name):
    with pytest.raises(OSError):
        linux.shm_open(name, os.O_RDWR | os.O_CREAT)


@pytest.fixture
def segment():
    shmid = linux.shmget(0, 3 * PAGE, IpcFlag.CREAT | 0o600)
    yield shmid
    with contextlib.suppress(OSError):
        linux.shmctl(shmid, ShmCommand.RMID)


def test_a_system_v_segment_is_shared_by_who_attaches_it(segment):
    address = linux.shmat(segment)

    def write():
        own = linux.shmat(segment)
        poke(own, b"from the child")
        linux.shmdt(own)

    in_child(write)
    assert peek(address, 14) == b"from the child"
    linux.shmdt(address)


def test_shmat_read_only_maps_read_only(segment):
    address = linux.shmat(segment, 0, ShmAttachFlag.RDONLY)
    assert perms(address) == "r--s"
    linux.shmdt(address)


def test_shmctl_stat_tells_what_the_man_page_tells(segment):
    address = linux.shmat(segment)
    stat = linux.shmctl(segment, ShmCommand.STAT)
    assert (stat.shm_segsz, stat.shm_nattch, stat.shm_cpid, stat.shm_lpid) == (
        3 * PAGE,
        1,
        os.getpid(),
        os.getpid(),
    )
    assert stat.shm_perm.mode & 0o777 == 0o600
    assert stat.shm_perm.uid == os.geteuid()
    assert stat.shm_atime > 0
    linux.shmdt(address)
    assert linux.shmctl(segment, ShmCommand.STAT).shm_nattch == 0


def test_shmctl_set_changes_owner_and_mode(segment):
    stat = linux.shmctl(segment, ShmCommand.STAT)
    changed = stat._replace(shm_perm=stat.shm_perm._replace(mode=0o640))
    linux.shmctl(segment, ShmCommand.SET, changed)
    assert linux.shmctl(segment, ShmCommand.STAT).shm_perm.mode & 0o777 == 0o640
    with pytest.raises(TypeError, match="SET needs buf"):
        linux.shmctl(segment, ShmCommand.SET)


def test_shmctl_tells_limits_and_use(segment):
    limits = linux.shmctl(0, ShmCommand.INFO)
    assert limits.shmmin == 1
    assert limits.shmmni >= 1
    use = linux.shmctl(0, ShmCommand.SHM_INFO)
    assert use.used_ids >= 1
    assert use.shm_tot >= 3


@pytest.mark.parametrize("command", [ShmCommand.SHM_STAT, ShmCommand.SHM_STAT_ANY])
def test_shmctl_walks_the_table_by_index(segment, command):
    highest = linux.shmctl(0, ShmCommand.SHM_INFO).highest_index
    found = []
    for index in range(highest + 1):
        with contextlib.suppress(OSError):
            found.append(linux.shmctl(index, command).shmid)
    assert segment in found


def test_shmctl_locks_and_unlocks(segment):
    linux.shmctl(segment, ShmCommand.LOCK)
    assert linux.shmctl(segment, ShmCommand.STAT).shm_perm.mode & 0o2000
    linux.shmctl(segment, ShmCommand.UNLOCK)
    assert not linux.shmctl(segment, ShmCommand.STAT).shm_perm.mode & 0o2000


def test_shmctl_refuses_an_unknown_command_before_it_can_write_anywhere(segment):
    with pytest.raises(OSError, match="UNKNOWN|0x63|99"):
        linux.shmctl(segment, 99)


def test_a_removed_segment_is_gone(segment):
    linux.shmctl(segment, ShmCommand.RMID)
    with pytest.raises(mmkit.SyscallError) as refusal:
        linux.shmat(segment)
    assert refusal.value.errno in (errno.EINVAL, errno.EIDRM)


def test_ftok_gives_everybody_the_same_key(tmp_path):
    assert linux.ftok(tmp_path, 7) == linux.ftok(str(tmp_path), 7) != linux.ftok(os.fsencode(tmp_path), 8)
    with pytest.raises(FileNotFoundError):
        linux.ftok(tmp_path / "none", 7)
    with pytest.raises(ValueError, match="proj_id"):
        linux.ftok(tmp_path, 256)


# ---- process_vm_readv, process_vm_writev


def test_another_process_can_be_read_and_written():
    shared = mmkit.Region.anonymous(PAGE, shared=True)
    ready, go = os.pipe(), os.pipe()
    private = ctypes.create_string_buffer(b"the child's own bytes")
    pid = os.fork()
    if pid == 0:
        private.value = b"written by the child"
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        shared[: len(private.raw)] = private.raw
        os._exit(0)
    os.read(ready[0], 1)
    address = ctypes.addressof(private)
    assert linux.process_vm_readv(pid, [(address, 7), (address + 11, 9)]) == b"written" + b"the child"
    assert linux.process_vm_writev(pid, [b"WRI", bytearray(b"TTEN")], [(address, 3), (address + 3, 4)]) == 7
    os.write(go[1], b"x")
    os.waitpid(pid, 0)
    assert shared[:10] == b"WRITTEN by"
    shared.close()
    for fd in (*ready, *go):
        os.close(fd)


def test_reading_stops_where_memory_ends(pages):
    linux.mprotect(pages + PAGE, PAGE, Prot.NONE)
    assert len(linux.process_vm_readv(os.getpid(), [(pages, PAGE), (pages + PAGE, PAGE)])) == PAGE
    with pytest.raises(mmkit.SyscallError) as refusal:
        linux.process_vm_readv(os.getpid(), [(pages + PAGE, PAGE)])
    assert refusal.value.errno == errno.EFAULT


def test_a_process_that_is_not_there_is_a_process_lookup_error():
    with pytest.raises(ProcessLookupError):
        linux.process_vm_readv(2**22 + 1, [(PAGE, 1)])


@needs_root
def test_reading_another_users_process_says_what_is_needed():
    def attempt():
        try:
            linux.process_vm_readv(1, [(PAGE, 1)])
        except PermissionError as error:
            return str(error)

    assert "CAP_SYS_PTRACE" in in_child(attempt, user=NOBODY)


# ---- bad arguments, live regions

_BAD = [
    (linux.mmap, (0, -1, 0, 2)),
    (linux.mmap, (-PAGE, PAGE, 0, 2)),
    (linux.mmap, (0, PAGE, 0, 2, -1, -PAGE)),
    (linux.mmap, (2**63 - PAGE, 2 * PAGE, 0, 2)),
    (linux.mmap, (0, PAGE, 2**40, 2)),
    (linux.munmap, (0, -1)),
    (linux.munmap, (2**63 - PAGE, 2 * PAGE)),
    (linux.munmap, (2**64, PAGE)),
    (linux.mremap, (0, -1, PAGE)),
    (linux.mremap, (0, PAGE, -1)),
    (linux.msync, (0, -1, 4)),
    (linux.mprotect, (0, -PAGE, 1)),
    (linux.madvise, (-1, PAGE, 0)),
    (linux.mincore, (0, -1)),
    (linux.mlock, (2**63 - 1, PAGE)),
    (linux.mlock2, (0, -1, 0)),
    (linux.munlock, (0, -1)),
    (linux.mseal, (0, -1)),
    (linux.cachestat, (0, -1, 0)),
    (linux.memfd_create, ("nul\0byte",)),
    (linux.shm_open, ("/nul\0byte", 0)),
    (linux.shm_unlink, ("/nul\0byte",)),
    (linux.shmget, (0, -1)),
    (linux.shmat, (0, -1)),
    (linux.shmdt, (-1,)),
    (linux.sbrk, (2**63,)),
    (linux.brk, (-1,)),
    (linux.process_vm_readv, (1, [(0, -1)])),
    (linux.process_vm_readv, (1, [(0, 2**62), (0, 2**62)])),
    (linux.process_vm_writev, (1, [b""], [(-1, 1)])),
]


@pytest.mark.parametrize(("function", "arguments"), _BAD, ids=lambda value: getattr(value, "__name__", None))
def test_bad_arguments_raise_before_the_kernel_sees_them(function, arguments):
    with pytest.raises(ValueError, match=function.__name__):
        function(*arguments)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (linux.mmap, ("0", PAGE, 0, 2)), (linux.munmap, (0.5, PAGE)), (linux.mprotect, (0, None, 0)), (linux.madvise, (0, PAGE, "0")),
        (linux.memfd_create, (5,)), (linux.ftok, (5, 1)), (linux.shmget, ("k", 1)), (linux.sbrk, (1.0,)), (linux.brk, ("0",)),
        (linux.process_vm_readv, (1, 5)), (linux.process_vm_readv, (1, [5])), (linux.process_vm_writev, (1, ["text"], [])),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_arguments_of_the_wrong_type_are_type_errors(function, arguments):
    with pytest.raises(TypeError):
        function(*arguments)


@pytest.mark.parametrize(
    "call",
    [
        lambda a: linux.munmap(a, PAGE),
        lambda a: linux.munmap(a - PAGE, 2 * PAGE),
        lambda a: linux.mmap(a, PAGE, Prot.NONE, PRIVATE | MapFlag.FIXED),
        lambda a: linux.mremap(a, PAGE, 2 * PAGE, RemapFlag.MAYMOVE),
        lambda a: linux.mremap(0x10000, PAGE, PAGE, RemapFlag.MAYMOVE | RemapFlag.FIXED, a),
        lambda a: linux.mremap(a, 0, PAGE, RemapFlag.MAYMOVE),
    ],
)
def test_a_live_region_cannot_be_pulled_away(call):
    with mmkit.Region.anonymous(4 * PAGE) as region:
        region[0] = 7
        with pytest.raises(mmkit.Error, match="live mmkit.Region"):
            call(region.address)
        assert region[0] == 7


def test_shmat_remap_does_not_go_over_a_live_region(segment):
    with mmkit.Region.anonymous(4 * PAGE) as region, pytest.raises(mmkit.Error, match="live mmkit.Region"):
        linux.shmat(segment, region.address, ShmAttachFlag.REMAP)


def test_a_closed_region_keeps_its_addresses_until_it_dies():
    region = mmkit.Region.anonymous(4 * PAGE)
    address = region.address
    region.close()
    with pytest.raises(mmkit.Error, match="live mmkit.Region"):
        linux.mmap(address, PAGE, READ_WRITE, PRIVATE | MapFlag.FIXED)
    del region
    linux.mmap(address, PAGE, READ_WRITE, PRIVATE | MapFlag.FIXED)
    linux.munmap(address, PAGE)


def test_every_function_names_its_man_page():
    for name in linux.__all__:
        function = getattr(linux, name)
        if inspect.isclass(function):
            continue
        assert f"{name}(" in function.__doc__, name
        assert "References" in function.__doc__, name
