"""The raw calls on shared memory and on other processes' memory, as `mmkit.linux` exports them."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport errno
from libc.stdint cimport intptr_t
from libc.string cimport memset

from mmkit._native.arguments cimport as_int, as_size, check_end
from mmkit._native.base cimport MMK_EOVERLAP
from mmkit._native.sys cimport *

from os import fsencode

from mmkit.flags import Advice, ShmAttachFlag, ShmCommand
from mmkit.hints import Verbatim, failure
from mmkit.structs import IpcPerm, ShmidDs, ShmInfo, ShmUsage

# process_madvise has a parameter of that name.
ctypedef iovec c_iovec

cdef enum:
    SHM_REMAP = 0o40000
    IPC_RMID = 0
    IPC_SET = 1
    IPC_STAT = 2
    IPC_INFO = 3
    SHM_LOCK = 11
    SHM_UNLOCK = 12
    SHM_STAT = 13
    SHM_INFO = 14
    SHM_STAT_ANY = 15


cdef bytes as_name(object name, str call):
    cdef bytes text = fsencode(name)
    if b"\0" in text:
        raise ValueError(f"{call}: name must not contain a NUL byte")
    return text


def shm_open(name: str | bytes, oflag: int, mode: int = 0o600) -> int:
    """Open or create a POSIX shared memory object (shm_open(3)).

    Parameters
    ----------
    name
        ``/name``, without further slashes; at most 254 bytes.
    oflag
        ``os.O_RDONLY`` or ``os.O_RDWR``, with ``os.O_CREAT``, ``os.O_EXCL``, ``os.O_TRUNC``.
    mode
        Permission bits of a new object, less the umask.

    Returns
    -------
    int
        A file descriptor, closed on exec; a new object's size is 0.

    Raises
    ------
    SyscallError
        ``ENOENT``, ``EEXIST``, ``EACCES``; ``EINVAL``: a slash in the name, or it is empty.

    References
    ----------
    shm_open(3), shm_overview(7), POSIX.1-2024
    """
    cdef bytes text = as_name(name, "shm_open")
    cdef int fd = mmk_sys_shm_open(text, as_int(oflag, "shm_open", "oflag"), as_int(mode, "shm_open", "mode"))
    if fd < 0:
        raise failure(fd, "shm_open", None, (name, oflag, Verbatim(oct(mode))))
    return fd


def shm_unlink(name: str | bytes) -> None:
    """Remove the name of a POSIX shared memory object; who has it mapped keeps it (shm_unlink(3)).

    Raises
    ------
    SyscallError
        ``ENOENT``, ``EACCES``.

    References
    ----------
    shm_unlink(3), POSIX.1-2024
    """
    cdef bytes text = as_name(name, "shm_unlink")
    cdef int error = mmk_sys_shm_unlink(text)
    if error:
        raise failure(error, "shm_unlink", None, (name,))


def ftok(pathname: object, proj_id: int) -> int:
    """Make a System V key from an existing file and a number (ftok(3)).

    Two files can share a key: it holds 16 bits of the inode number and 8 of the device's.

    Parameters
    ----------
    pathname : str, bytes or os.PathLike
        A file that exists.
    proj_id
        Its low 8 bits count, and must not all be 0.

    Returns
    -------
    int
        The key.

    Raises
    ------
    SyscallError
        The file cannot be looked at.

    References
    ----------
    ftok(3), POSIX.1-2024
    """
    cdef bytes text = as_name(pathname, "ftok")
    cdef int project = as_int(proj_id, "ftok", "proj_id")
    if project & 0xFF == 0:
        raise ValueError(f"ftok: the low 8 bits of proj_id must not be 0, as in {proj_id:#x}")
    cdef int key = c_ftok(text, project)
    if key == -1:
        raise failure(-errno, "ftok", None, (pathname, proj_id))
    return key


def shmget(key: int, size: int, shmflg: int = 0o600) -> int:
    """Find or make a System V shared memory segment (shmget(2)).

    Parameters
    ----------
    key
        A number all users agree on (see `ftok`), or 0 (``IPC_PRIVATE``) for a new one.
    size
        Bytes, rounded up to pages; for an existing segment at most its own.
    shmflg
        `IpcFlag` and the nine permission bits.

    Returns
    -------
    int
        The segment's identifier.

    Raises
    ------
    SyscallError
        ``ENOENT``, ``EEXIST``, ``EACCES``; ``EINVAL``: bad size; ``ENOSPC``: too many segments.

    References
    ----------
    shmget(2), sysvipc(7), POSIX.1-2024
    """
    cdef int shmid = mmk_sys_shmget(
        as_int(key, "shmget", "key"), as_size(size, "shmget", "size"), as_int(shmflg, "shmget", "shmflg")
    )
    if shmid < 0:
        raise failure(shmid, "shmget", None, (Verbatim(hex(key)), size, Verbatim(oct(shmflg))))
    return shmid


def shmat(shmid: int, shmaddr: int = 0, shmflg: int = 0) -> int:
    """Attach a System V segment (shmat(2)).

    Parameters
    ----------
    shmid
        From `shmget`.
    shmaddr
        Where; 0 lets the kernel choose.
    shmflg
        `ShmAttachFlag`.

    Returns
    -------
    int
        The address.

    Raises
    ------
    SyscallError
        ``EACCES``; ``EINVAL``: no such segment, or a bad address; ``EIDRM``: removed.
    Error
        ``ShmAttachFlag.REMAP`` over a live Region.

    References
    ----------
    shmat(2), POSIX.1-2024
    """
    cdef size_t address = as_size(shmaddr, "shmat", "shmaddr")
    cdef int identifier = as_int(shmid, "shmat", "shmid"), f = as_int(shmflg, "shmat", "shmflg")
    cdef shmid_ds status
    if f & SHM_REMAP and mmk_sys_shmctl(identifier, IPC_STAT, &status) == 0:
        check_end(address, status.shm_segsz, "shmat")
        if mmk_registry_overlap(address, status.shm_segsz).length:
            raise failure(-MMK_EOVERLAP, "shmat", (address, status.shm_segsz), (shmid, ShmAttachFlag(shmflg)))
    cdef intptr_t attached = mmk_sys_shmat(identifier, <void *>address, f)
    if attached < 0:
        raise failure(attached, "shmat", None, (shmid, Verbatim(hex(shmaddr)), ShmAttachFlag(shmflg)))
    return attached


def shmdt(shmaddr: int) -> None:
    """Detach the System V segment attached at an address (shmdt(2)).

    Raises
    ------
    SyscallError
        ``EINVAL``: nothing is attached there.

    References
    ----------
    shmdt(2), POSIX.1-2024
    """
    cdef size_t address = as_size(shmaddr, "shmdt", "shmaddr")
    cdef int error = mmk_sys_shmdt(<void *>address)
    if error:
        raise failure(error, "shmdt", None, (Verbatim(hex(shmaddr)),))


cdef object from_shmid_ds(const shmid_ds *ds, int shmid):
    perm = IpcPerm(
        ds.shm_perm.__key, ds.shm_perm.uid, ds.shm_perm.gid, ds.shm_perm.cuid, ds.shm_perm.cgid,
        ds.shm_perm.mode, ds.shm_perm.__seq,
    )
    return ShmidDs(
        perm, ds.shm_segsz, ds.shm_atime, ds.shm_dtime, ds.shm_ctime, ds.shm_cpid, ds.shm_lpid,
        ds.shm_nattch, shmid,
    )


def shmctl(shmid: int, cmd: int, buf: ShmidDs | None = None) -> ShmidDs | ShmInfo | ShmUsage | None:
    """Look at, change or remove a System V segment (shmctl(2)).

    Parameters
    ----------
    shmid
        The segment's identifier; for SHM_STAT and SHM_STAT_ANY an index of the kernel's table; for INFO and
        SHM_INFO not looked at.
    cmd
        `ShmCommand`.
    buf
        For SET: a `ShmidDs` whose ``shm_perm`` has the new ``uid``, ``gid`` and ``mode``.

    Returns
    -------
    ShmidDs
        For STAT, SHM_STAT, SHM_STAT_ANY.
    ShmInfo
        For INFO: the limits.
    ShmUsage
        For SHM_INFO: what is used.
    None
        For the others.

    Raises
    ------
    SyscallError
        ``EINVAL``: no such segment or command; ``EACCES``, ``EPERM``: not allowed; ``EIDRM``: removed;
        ``ENOMEM``: LOCK beyond ``RLIMIT_MEMLOCK``.

    References
    ----------
    shmctl(2), POSIX.1-2024
    """
    cdef int identifier = as_int(shmid, "shmctl", "shmid"), command = as_int(cmd, "shmctl", "cmd"), result
    cdef shmid_ds status
    cdef shminfo limits
    cdef shm_info usage
    memset(&status, 0, sizeof(status))
    cdef shmid_ds *argument = &status
    if command == IPC_SET:
        if buf is None:
            raise TypeError("shmctl: SET needs buf, a ShmidDs with the shm_perm to set")
        status.shm_perm.uid = buf.shm_perm.uid
        status.shm_perm.gid = buf.shm_perm.gid
        status.shm_perm.mode = buf.shm_perm.mode
    elif command == IPC_INFO:
        argument = <shmid_ds *>&limits
    elif command == SHM_INFO:
        argument = <shmid_ds *>&usage
    elif command not in (IPC_RMID, IPC_STAT, SHM_LOCK, SHM_UNLOCK, SHM_STAT, SHM_STAT_ANY):
        # What an unknown command would write through the pointer is unknown too.
        raise failure(-22, "shmctl", None, (shmid, ShmCommand(cmd)))
    result = mmk_sys_shmctl(identifier, command, argument)
    if result < 0:
        raise failure(result, "shmctl", None, (shmid, ShmCommand(cmd)))
    if command == IPC_STAT or command == SHM_STAT or command == SHM_STAT_ANY:
        return from_shmid_ds(&status, result)
    if command == IPC_INFO:
        return ShmInfo(limits.shmmax, limits.shmmin, limits.shmmni, limits.shmseg, limits.shmall, result)
    if command == SHM_INFO:
        return ShmUsage(usage.used_ids, usage.shm_tot, usage.shm_rss, usage.shm_swp, result)
    return None


cdef iovec *remote_vector(object remote_iov, str call, size_t *count, size_t *total) except? NULL:
    """The remote side as the kernel takes it; to be freed by the caller."""
    cdef list ranges = list(remote_iov)
    cdef iovec *vector = <iovec *>PyMem_Malloc(max(1, len(ranges)) * sizeof(iovec))
    if not vector:
        raise MemoryError
    cdef size_t i, address, length
    count[0], total[0] = len(ranges), 0
    try:
        for i in range(count[0]):
            remote_address, remote_length = ranges[i]
            address = as_size(remote_address, call, "a remote address")
            length = as_size(remote_length, call, "a remote length")
            check_end(address, length, call)
            check_end(total[0], length, call)
            vector[i].iov_base = <void *>address
            vector[i].iov_len = length
            total[0] += length
    except BaseException:
        PyMem_Free(vector)
        raise
    return vector


def process_vm_readv(pid: int, remote_iov: object, flags: int = 0) -> bytes:
    """Read another process's memory (process_vm_readv(2)).

    Parameters
    ----------
    pid
        The process.
    remote_iov : sequence of (int, int)
        Addresses and lengths there, at most 1024 of them.
    flags
        0: none is defined.

    Returns
    -------
    bytes
        What was read: all ranges one after the other, cut where an address could not be read.

    Raises
    ------
    SyscallError
        ``ESRCH``, ``EPERM``; ``EFAULT``: not even the first byte could be read.

    References
    ----------
    process_vm_readv(2)
    """
    cdef size_t count, total, f = as_size(flags, "process_vm_readv", "flags")
    cdef int target = as_int(pid, "process_vm_readv", "pid")
    cdef iovec *remote = remote_vector(remote_iov, "process_vm_readv", &count, &total)
    cdef iovec local
    cdef ssize_t moved
    cdef bytes data
    try:
        data = PyBytes_FromStringAndSize(NULL, total)
        local.iov_base = PyBytes_AS_STRING(data)
        local.iov_len = total
        with nogil:
            moved = mmk_sys_process_vm_readv(target, &local, 1, remote, count, f)
    finally:
        PyMem_Free(remote)
    if moved < 0:
        raise failure(moved, "process_vm_readv", None, (pid, Verbatim(f"{count} ranges"), Verbatim(f"{total} bytes")))
    return data if <size_t>moved == total else data[:moved]


def process_vm_writev(pid: int, local_iov: object, remote_iov: object, flags: int = 0) -> int:
    """Write another process's memory (process_vm_writev(2)).

    Parameters
    ----------
    pid
        The process.
    local_iov : sequence of bytes-like
        What to write, one after the other.
    remote_iov : sequence of (int, int)
        Addresses and lengths there, at most 1024 of them.
    flags
        0: none is defined.

    Returns
    -------
    int
        Bytes written; fewer than asked where an address could not be written.

    Raises
    ------
    SyscallError
        ``ESRCH``, ``EPERM``; ``EFAULT``: not even the first byte could be written.

    References
    ----------
    process_vm_writev(2)
    """
    cdef size_t count, total, f = as_size(flags, "process_vm_writev", "flags")
    cdef int target = as_int(pid, "process_vm_writev", "pid")
    cdef bytes data = b"".join(local_iov)
    cdef iovec *remote = remote_vector(remote_iov, "process_vm_writev", &count, &total)
    cdef iovec local
    cdef ssize_t moved
    local.iov_base = PyBytes_AS_STRING(data)
    local.iov_len = len(data)
    try:
        with nogil:
            moved = mmk_sys_process_vm_writev(target, &local, 1, remote, count, f)
    finally:
        PyMem_Free(remote)
    if moved < 0:
        what = Verbatim(f"{len(data)} bytes"), Verbatim(f"{count} ranges")
        raise failure(moved, "process_vm_writev", None, (pid, *what))
    return moved


def process_madvise(pidfd: int, iovec: object, advice: int, flags: int = 0) -> int:
    """Tell the kernel how another process will use its memory (process_madvise(2), Linux 5.10).

    Parameters
    ----------
    pidfd
        The process, as `os.pidfd_open` names it.
    iovec : sequence of (int, int)
        Addresses and lengths there, at most 1024 of them; addresses page-aligned.
    advice
        `Advice`: ``COLD``, ``PAGEOUT``, ``WILLNEED`` (5.13), ``COLLAPSE`` (6.1); for the process itself any
        advice (6.13).
    flags
        0: none is defined.

    Returns
    -------
    int
        Bytes advised; fewer than asked where a range could not be.

    Raises
    ------
    SyscallError
        ``EBADF``, ``ESRCH``; ``EPERM``, ``EACCES``: needs CAP_SYS_NICE and what ptrace needs; ``EINVAL``:
        advice that is not for others; ``ENOMEM``: nothing is mapped there.

    References
    ----------
    process_madvise(2)
    """
    cdef size_t count, total
    cdef int target = as_int(pidfd, "process_madvise", "pidfd"), a = as_int(advice, "process_madvise", "advice")
    cdef unsigned int f = <unsigned int>as_int(flags, "process_madvise", "flags")
    cdef c_iovec *remote = remote_vector(iovec, "process_madvise", &count, &total)
    cdef ssize_t advised
    try:
        with nogil:
            advised = mmk_sys_process_madvise(target, remote, count, a, f)
    finally:
        PyMem_Free(remote)
    if advised < 0:
        raise failure(advised, "process_madvise", None, (pidfd, Verbatim(f"{count} ranges"), Advice(advice)))
    return advised


def process_mrelease(pidfd: int, flags: int = 0) -> None:
    """Take the memory of a dying process at once (process_mrelease(2), Linux 5.15).

    Parameters
    ----------
    pidfd
        The process, as `os.pidfd_open` names it; SIGKILL was sent to it.
    flags
        0: none is defined.

    Raises
    ------
    SyscallError
        ``EINVAL``: it is not dying; ``EAGAIN``: not all could be taken; ``EBADF``, ``ESRCH``, ``EPERM``.

    References
    ----------
    process_mrelease(2)
    """
    cdef int error, target = as_int(pidfd, "process_mrelease", "pidfd")
    cdef unsigned int f = <unsigned int>as_int(flags, "process_mrelease", "flags")
    with nogil:
        error = mmk_sys_process_mrelease(target, f)
    if error:
        raise failure(error, "process_mrelease", None, (pidfd, flags))
