"""The raw calls on a process's own memory, as `mmkit.linux` exports them."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport intptr_t

from mmkit._native.arguments cimport as_int, as_size, check_end
from mmkit._native.base cimport MMK_EOVERLAP, mmk_page_size
from mmkit._native.sys cimport *

from os import fsencode

from mmkit.flags import Advice, LockAllFlag, LockFlag, MapFlag, MemfdFlag, Prot, RemapFlag, SyncFlag
from mmkit.hints import Verbatim, failure
from mmkit.structs import CacheStat

cdef enum:
    # Below this a call is done before another thread could have used the GIL: releasing costs 25 to 40 ns.
    QUICK = 256 * 1024
    MAP_FIXED = 0x10
    MREMAP_FIXED = 2

PAGE_SIZE = mmk_page_size()


cdef int refuse_overlap(size_t address, size_t length, str call) except -1:
    """A raw call must not pull a live Region's memory from under it."""
    if mmk_registry_overlap(address, length).length:
        raise failure(-MMK_EOVERLAP, call, (address, length))
    return 0


def brk(addr: int) -> None:
    """Set the program break (brk(2)).

    Parameters
    ----------
    addr
        The new end of the data segment.

    Raises
    ------
    SyscallError
        ``ENOMEM``: beyond ``RLIMIT_DATA``, or something is mapped there.
        ``EBUSY``: as for `sbrk`.

    See Also
    --------
    sbrk : the same by an increment, with the rules for shrinking.

    References
    ----------
    brk(2)
    """
    cdef size_t address = as_size(addr, "brk", "addr")
    cdef intptr_t now = mmk_break_move(0)
    cdef intptr_t previous = mmk_break_move(<intptr_t>address - now)
    if previous < 0:
        raise failure(previous, "brk", None, (Verbatim(hex(addr)),))


def sbrk(increment: int = 0) -> int:
    """Move the program break by a number of bytes (sbrk(2)).

    The break belongs to the whole process, and malloc moves it too. Growing is always allowed: memory that
    somebody else takes afterwards stays above it. Shrinking gives back only what was taken last through this
    function, and only while the process has one thread. libc takes no lock: a malloc in a thread that runs
    without the GIL, growing its heap at the same moment, corrupts memory. Use it where you own the process.

    Parameters
    ----------
    increment
        Bytes; negative to give memory back.

    Returns
    -------
    int
        Address of the previous break: the start of the new memory, when growing.

    Raises
    ------
    SyscallError
        ``ENOMEM``: beyond ``RLIMIT_DATA``, or something is mapped there.
        ``EBUSY``: shrinking would take memory from somebody else, or other threads run.

    References
    ----------
    sbrk(2)
    """
    if not -0x7FFFFFFFFFFFFFFF <= increment <= 0x7FFFFFFFFFFFFFFF:
        raise ValueError(f"sbrk: increment must fit in 64 bits, not {increment:#x}")
    cdef intptr_t previous = mmk_break_move(increment)
    if previous < 0:
        raise failure(previous, "sbrk", None, (increment,))
    return previous


def mmap(addr: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """Map a file or anonymous memory (mmap(2)).

    The mapping has no owner: `munmap` it yourself. `Region` is the owned form.

    Parameters
    ----------
    addr
        Where; a hint without ``MapFlag.FIXED``. 0 lets the kernel choose.
    length
        Bytes; the kernel rounds up to pages.
    prot
        `Prot`.
    flags
        `MapFlag`.
    fd, offset
        The file and where in it to start, in bytes, a multiple of the page size.

    Returns
    -------
    int
        The address.

    Raises
    ------
    SyscallError
        The kernel refused.
    Error
        ``MapFlag.FIXED`` over a live Region.

    References
    ----------
    mmap(2), POSIX.1-2024
    """
    cdef size_t address = as_size(addr, "mmap", "addr"), size = as_size(length, "mmap", "length")
    cdef size_t start = as_size(offset, "mmap", "offset")
    cdef int p = as_int(prot, "mmap", "prot"), f = as_int(flags, "mmap", "flags"), file = as_int(fd, "mmap", "fd")
    check_end(address, size, "mmap")
    if f & MAP_FIXED:
        refuse_overlap(address, size, "mmap")
    cdef intptr_t mapped
    with nogil:  # may fault pages in (MAP_POPULATE, MAP_LOCKED) or unmap much (MAP_FIXED)
        mapped = mmk_sys_mmap(<void *>address, size, p, f, file, start)
    if mapped < 0:
        raise failure(mapped, "mmap", (address, size), (Prot(prot), MapFlag(flags), fd, offset))
    return mapped


def munmap(addr: int, length: int) -> None:
    """Unmap a range (munmap(2)).

    Raises
    ------
    SyscallError
        ``EINVAL``: not page-aligned, or length 0.
    Error
        The range overlaps a live Region: close that instead.

    References
    ----------
    munmap(2), POSIX.1-2024
    """
    cdef size_t address = as_size(addr, "munmap", "addr"), size = as_size(length, "munmap", "length")
    cdef int error
    check_end(address, size, "munmap")
    refuse_overlap(address, size, "munmap")
    if size < QUICK:
        error = mmk_sys_munmap(<void *>address, size)
    else:
        with nogil:
            error = mmk_sys_munmap(<void *>address, size)
    if error:
        raise failure(error, "munmap", (address, size))


def mremap(old_address: int, old_size: int, new_size: int, flags: int = 0, new_address: int = 0) -> int:
    """Grow, shrink or move a mapping (mremap(2)).

    Growing a shared anonymous mapping "succeeds", and then its new part gets SIGBUS.

    Parameters
    ----------
    old_address, old_size
        What to remap, in bytes.
    new_size
        Bytes it shall have.
    flags
        `RemapFlag`.
    new_address
        Read with ``RemapFlag.FIXED`` or ``RemapFlag.DONTUNMAP`` only.

    Returns
    -------
    int
        The new address.

    Raises
    ------
    SyscallError
        ``EFAULT``: the range is not one mapping. ``ENOMEM``: no room there, and no ``MAYMOVE``.
    Error
        The old range, or a fixed new one, overlaps a live Region.

    References
    ----------
    mremap(2)
    """
    cdef size_t old = as_size(old_address, "mremap", "old_address"), new = as_size(new_address, "mremap", "new_address")
    cdef size_t had = as_size(old_size, "mremap", "old_size"), wanted = as_size(new_size, "mremap", "new_size")
    cdef int f = as_int(flags, "mremap", "flags")
    check_end(old, max(had, wanted), "mremap")
    check_end(new, wanted, "mremap")
    refuse_overlap(old, max(had, 1), "mremap")
    if f & MREMAP_FIXED:
        refuse_overlap(new, wanted, "mremap")
    cdef intptr_t moved
    with nogil:
        moved = mmk_sys_mremap(<void *>old, had, wanted, f, <void *>new)
    if moved < 0:
        raise failure(moved, "mremap", (old, had), (new_size, RemapFlag(flags), Verbatim(hex(new_address))))
    return moved


def msync(addr: int, length: int, flags: int) -> None:
    """Write a shared file mapping's changes to the file (msync(2)).

    Succeeds for pages past the end of the file, whose changes are lost.

    Parameters
    ----------
    addr, length
        The range in bytes; addr page-aligned.
    flags
        `SyncFlag`.

    Raises
    ------
    SyscallError
        ``ENOMEM``: part of it is not mapped. ``EBUSY``: INVALIDATE on locked pages. ``EIO``.

    References
    ----------
    msync(2), POSIX.1-2024
    """
    cdef size_t address = as_size(addr, "msync", "addr"), size = as_size(length, "msync", "length")
    cdef int error, f = as_int(flags, "msync", "flags")
    check_end(address, size, "msync")
    with nogil:
        error = mmk_sys_msync(<void *>address, size, f)
    if error:
        raise failure(error, "msync", (address, size), (SyncFlag(flags),))


def mprotect(addr: int, length: int, prot: int) -> None:
    """Set what may be done with pages (mprotect(2)).

    Parameters
    ----------
    addr, length
        The range in bytes; addr page-aligned.
    prot
        `Prot`.

    Raises
    ------
    SyscallError
        ``EACCES``: the file was not opened for it. ``ENOMEM``: not mapped, or too many areas.

    References
    ----------
    mprotect(2), POSIX.1-2024
    """
    cdef size_t address = as_size(addr, "mprotect", "addr"), size = as_size(length, "mprotect", "length")
    cdef int error, p = as_int(prot, "mprotect", "prot")
    check_end(address, size, "mprotect")
    if size < QUICK:
        error = mmk_sys_mprotect(<void *>address, size, p)
    else:
        with nogil:
            error = mmk_sys_mprotect(<void *>address, size, p)
    if error:
        raise failure(error, "mprotect", (address, size), (Prot(prot),))


def madvise(addr: int, length: int, advice: int) -> None:
    """Tell the kernel how a range will be used (madvise(2)).

    Some advice gives the contents up: ``DONTNEED``, ``FREE``, ``REMOVE``, ``GUARD_INSTALL``.

    Parameters
    ----------
    addr, length
        The range in bytes; addr page-aligned.
    advice
        `Advice`.

    Raises
    ------
    SyscallError
        ``EINVAL``: unknown to this kernel, or wrong kind of memory. ``ENOMEM``: not all of it is mapped.

    References
    ----------
    madvise(2)
    """
    cdef size_t address = as_size(addr, "madvise", "addr"), size = as_size(length, "madvise", "length")
    cdef int error, a = as_int(advice, "madvise", "advice")
    check_end(address, size, "madvise")
    with nogil:
        error = mmk_sys_madvise(<void *>address, size, a)
    if error:
        raise failure(error, "madvise", (address, size), (Advice(advice),))


def mincore(addr: int, length: int) -> bytes:
    """Tell which pages of a range are resident (mincore(2)).

    For a file mapping that is what the page cache holds, not what this process has mapped. Says
    "resident" for every page of a file that the caller could not write (Linux 5.2).

    Parameters
    ----------
    addr, length
        The range in bytes; addr page-aligned.

    Returns
    -------
    bytes
        One byte a page; bit 0 is set where the page is resident.

    Raises
    ------
    SyscallError
        ``ENOMEM``: part of it is not mapped.

    References
    ----------
    mincore(2)
    """
    cdef size_t address = as_size(addr, "mincore", "addr"), size = as_size(length, "mincore", "length")
    cdef size_t page = mmk_page_size()
    cdef int error
    check_end(address, size, "mincore")
    cdef size_t pages = size // page + (size % page != 0)
    cdef bytes vector = PyBytes_FromStringAndSize(NULL, pages)
    cdef unsigned char *bits = <unsigned char *>PyBytes_AS_STRING(vector)
    with nogil:
        error = mmk_sys_mincore(<void *>address, size, bits)
    if error:
        raise failure(error, "mincore", (address, size))
    return vector


def mlock(addr: int, length: int) -> None:
    """Keep a range in RAM (mlock(2)).

    A failed call leaves the range marked as locked: `munlock` it.

    Raises
    ------
    SyscallError
        ``ENOMEM``: beyond ``RLIMIT_MEMLOCK``, or a page that cannot be brought in. ``EPERM``, ``EAGAIN``.

    References
    ----------
    mlock(2), POSIX.1-2024
    """
    cdef size_t address = as_size(addr, "mlock", "addr"), size = as_size(length, "mlock", "length")
    cdef int error
    check_end(address, size, "mlock")
    with nogil:
        error = mmk_sys_mlock(<void *>address, size)
    if error:
        raise failure(error, "mlock", (address, size))


def mlock2(addr: int, length: int, flags: int = 0) -> None:
    """Keep a range in RAM, with flags: ``LockFlag.ONFAULT`` locks pages as they are touched (mlock2(2)).

    Raises
    ------
    SyscallError
        As for `mlock`.

    References
    ----------
    mlock2(2)
    """
    cdef size_t address = as_size(addr, "mlock2", "addr"), size = as_size(length, "mlock2", "length")
    cdef int error, f = as_int(flags, "mlock2", "flags")
    check_end(address, size, "mlock2")
    with nogil:
        error = mmk_sys_mlock2(<void *>address, size, f)
    if error:
        raise failure(error, "mlock2", (address, size), (LockFlag(flags),))


def munlock(addr: int, length: int) -> None:
    """Let a range leave RAM again, however often it was locked (munlock(2)).

    References
    ----------
    munlock(2), POSIX.1-2024
    """
    cdef size_t address = as_size(addr, "munlock", "addr"), size = as_size(length, "munlock", "length")
    cdef int error
    check_end(address, size, "munlock")
    with nogil:
        error = mmk_sys_munlock(<void *>address, size)
    if error:
        raise failure(error, "munlock", (address, size))


def mlockall(flags: int) -> None:
    """Keep the whole process in RAM: `LockAllFlag` says what of it (mlockall(2)).

    Raises
    ------
    SyscallError
        ``ENOMEM``: beyond ``RLIMIT_MEMLOCK``. ``EPERM``: not allowed to lock.

    References
    ----------
    mlockall(2), POSIX.1-2024
    """
    cdef int error, f = as_int(flags, "mlockall", "flags")
    with nogil:
        error = mmk_sys_mlockall(f)
    if error:
        raise failure(error, "mlockall", None, (LockAllFlag(flags),))


def munlockall() -> None:
    """Let the whole process leave RAM again (munlockall(2)).

    References
    ----------
    munlockall(2), POSIX.1-2024
    """
    cdef int error
    with nogil:
        error = mmk_sys_munlockall()
    if error:
        raise failure(error, "munlockall")


def memfd_create(name: str | bytes, flags: int = MemfdFlag.CLOEXEC) -> int:
    """Make a file that lives in memory and has no path (memfd_create(2)).

    Parameters
    ----------
    name
        For people, in /proc/PID/fd and /proc/PID/maps; at most 249 bytes.
    flags
        `MemfdFlag`.

    Returns
    -------
    int
        A file descriptor; its size is 0.

    Raises
    ------
    SyscallError
        ``EINVAL``: name too long, or flags unknown. ``EMFILE``, ``ENFILE``, ``ENOMEM``.

    References
    ----------
    memfd_create(2)
    """
    cdef bytes text = fsencode(name)
    if b"\0" in text:
        raise ValueError("memfd_create: name must not contain a NUL byte")
    cdef int fd = mmk_sys_memfd_create(text, <unsigned int>as_int(flags, "memfd_create", "flags"))
    if fd < 0:
        raise failure(fd, "memfd_create", None, (name, MemfdFlag(flags)))
    return fd


def memfd_secret(flags: int = 0o2000000) -> int:
    """Make a file whose pages the kernel itself has not mapped (memfd_secret(2), Linux 5.14).

    Its size is set once, with `os.ftruncate`. Its pages count as locked. While it lives, the machine
    cannot hibernate.

    Parameters
    ----------
    flags
        ``os.O_CLOEXEC`` (the default) or 0.

    Returns
    -------
    int
        A file descriptor.

    Raises
    ------
    SyscallError
        ``ENOSYS``: the kernel was not booted with ``secretmem.enable=1`` (default off before 6.5).

    References
    ----------
    memfd_secret(2)
    """
    cdef int fd = mmk_sys_memfd_secret(<unsigned int>as_int(flags, "memfd_secret", "flags"))
    if fd < 0:
        raise failure(fd, "memfd_secret", None, (flags,))
    return fd


def mseal(addr: int, length: int, flags: int = 0) -> None:
    """Forbid for ever to unmap, move, reprotect or discard a range (mseal(2), Linux 6.10).

    Parameters
    ----------
    addr, length
        The range in bytes; addr page-aligned.
    flags
        0: none is defined.

    Raises
    ------
    SyscallError
        ``ENOMEM``: part of it is not mapped. ``ENOSYS``: kernel before 6.10.

    References
    ----------
    mseal(2)
    """
    cdef size_t address = as_size(addr, "mseal", "addr"), size = as_size(length, "mseal", "length")
    check_end(address, size, "mseal")
    cdef int error = mmk_sys_mseal(<void *>address, size, as_size(flags, "mseal", "flags"))
    if error:
        raise failure(error, "mseal", (address, size), (flags,))


def cachestat(fd: int, offset: int, length: int, flags: int = 0) -> CacheStat:
    """Tell what the page cache holds of a range of a file (cachestat(2), Linux 6.5).

    Parameters
    ----------
    fd
        An open file.
    offset, length
        Bytes; length 0 means to the end of the file.
    flags
        0: none is defined.

    Returns
    -------
    CacheStat
        Counts, in pages.

    Raises
    ------
    SyscallError
        ``EOPNOTSUPP``: a hugetlbfs file. ``EPERM``: not allowed to write the file. ``ENOSYS``.

    References
    ----------
    cachestat(2)
    """
    cdef mmk_cachestat_range asked
    cdef mmk_cachestat answer
    cdef unsigned int f = <unsigned int>as_int(flags, "cachestat", "flags")
    cdef int error, file = as_int(fd, "cachestat", "fd")
    asked.offset = as_size(offset, "cachestat", "offset")
    asked.length = as_size(length, "cachestat", "length")
    with nogil:
        error = mmk_sys_cachestat(file, &asked, &answer, f)
    if error:
        raise failure(error, "cachestat", None, (fd, offset, length, flags))
    return CacheStat(answer.cached, answer.dirty, answer.writeback, answer.evicted, answer.recently_evicted)


def name_anonymous(addr: int, length: int, name: bytes) -> bool:
    """Name an anonymous range in /proc/PID/maps (prctl(2), PR_SET_VMA_ANON_NAME, Linux 5.17); False if refused."""
    cdef size_t address = as_size(addr, "prctl", "addr"), size = as_size(length, "prctl", "length")
    return mmk_sys_name_anonymous(<void *>address, size, name) == 0
