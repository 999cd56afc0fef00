"""The raw calls that hand memory and faults to somebody, as `mmkit.linux` exports them: keys, barriers, faults."""

from mmkit._native.arguments cimport as_int, as_size, check_end
from mmkit._native.sys cimport *

from mmkit.flags import MembarrierCommand, MembarrierFlag, Prot, ProtectionKey
from mmkit.hints import Verbatim, failure


def pkey_alloc(flags: int = 0, access_rights: int = 0) -> int:
    """Take one of the process's protection keys (pkey_alloc(2), Linux 4.9).

    Parameters
    ----------
    flags
        0: none is defined.
    access_rights
        `ProtectionKey`: what the calling thread may not do with memory that has the key.

    Returns
    -------
    int
        The key.

    Raises
    ------
    SyscallError
        ``ENOSPC``: all are taken, or the processor or the kernel has none; ``EINVAL``.

    References
    ----------
    pkey_alloc(2), pkeys(7)
    """
    cdef unsigned int f = <unsigned int>as_int(flags, "pkey_alloc", "flags")
    cdef int key = mmk_sys_pkey_alloc(f, <unsigned int>as_int(access_rights, "pkey_alloc", "access_rights"))
    if key < 0:
        raise failure(key, "pkey_alloc", None, (flags, ProtectionKey(access_rights)))
    return key


def pkey_free(pkey: int) -> None:
    """Give a protection key back (pkey_free(2), Linux 4.9).

    Memory that still has the key gets the rights of whoever takes the key next.

    Raises
    ------
    SyscallError
        ``EINVAL``: no key that was taken.

    References
    ----------
    pkey_free(2), pkeys(7)
    """
    cdef int error = mmk_sys_pkey_free(as_int(pkey, "pkey_free", "pkey"))
    if error:
        raise failure(error, "pkey_free", None, (pkey,))


def pkey_mprotect(addr: int, length: int, prot: int, pkey: int) -> None:
    """Set what may be done with pages, and the key they have (pkey_mprotect(2), Linux 4.9).

    Parameters
    ----------
    addr, length
        The range in bytes; addr page-aligned.
    prot
        `Prot`.
    pkey
        From `pkey_alloc`; -1 does what `mprotect` does.

    Raises
    ------
    SyscallError
        ``EINVAL``: no key that was taken; else as for `mprotect`.

    References
    ----------
    pkey_mprotect(2), pkeys(7)
    """
    cdef size_t address = as_size(addr, "pkey_mprotect", "addr"), size = as_size(length, "pkey_mprotect", "length")
    cdef int error, p = as_int(prot, "pkey_mprotect", "prot"), key = as_int(pkey, "pkey_mprotect", "pkey")
    check_end(address, size, "pkey_mprotect")
    with nogil:
        error = mmk_sys_pkey_mprotect(<void *>address, size, p, key)
    if error:
        raise failure(error, "pkey_mprotect", (address, size), (Prot(prot), pkey))


def userfaultfd(flags: int = 0o2000001) -> int:
    """Make a descriptor that hands page faults to user space (userfaultfd(2), Linux 4.3).

    Parameters
    ----------
    flags
        ``os.O_CLOEXEC``, ``os.O_NONBLOCK`` and `UserfaultFlag`. The default is
        ``os.O_CLOEXEC | UserfaultFlag.USER_MODE_ONLY``.

    Returns
    -------
    int
        A file descriptor, to be set up with ioctl_userfaultfd(2).

    Raises
    ------
    SyscallError
        ``EPERM``: without USER_MODE_ONLY it needs CAP_SYS_PTRACE or ``vm.unprivileged_userfaultfd=1``;
        ``EINVAL``: unknown flags; ``ENOSYS``: a kernel without it.

    References
    ----------
    userfaultfd(2)
    """
    cdef int fd = mmk_sys_userfaultfd(as_int(flags, "userfaultfd", "flags"))
    if fd < 0:
        raise failure(fd, "userfaultfd", None, (Verbatim(oct(flags)),))
    return fd


def membarrier(cmd: int, flags: int = 0, cpu_id: int = 0) -> int:
    """Put a memory barrier on other threads' processors (membarrier(2), Linux 4.3).

    Parameters
    ----------
    cmd
        `MembarrierCommand`; the expedited ones need their registration first.
    flags, cpu_id
        `MembarrierFlag`, and for CPU a processor's number.

    Returns
    -------
    int
        For QUERY and GET_REGISTRATIONS a set of commands, else 0.

    Raises
    ------
    SyscallError
        ``EINVAL``: unknown to this kernel; ``EPERM``: not registered.

    References
    ----------
    membarrier(2)
    """
    cdef int result, command = as_int(cmd, "membarrier", "cmd"), cpu = as_int(cpu_id, "membarrier", "cpu_id")
    cdef unsigned int f = <unsigned int>as_int(flags, "membarrier", "flags")
    with nogil:  # GLOBAL waits for every processor
        result = mmk_sys_membarrier(command, f, cpu)
    if result < 0:
        raise failure(result, "membarrier", None, (MembarrierCommand(cmd), MembarrierFlag(flags), cpu_id))
    return result


def syscall(number: int, *arguments: int) -> int:
    """Make any system call by its number (syscall(2)): for asking whether the kernel has it.

    Parameters
    ----------
    number
        As this architecture has it.
    *arguments
        At most six.

    Returns
    -------
    int
        What the call returns.
    """
    cdef long raw[6]
    cdef size_t i
    if len(arguments) > 6:
        raise TypeError(f"syscall: at most six arguments, not {len(arguments)}")
    for i in range(6):
        raw[i] = arguments[i] if i < <size_t>len(arguments) else 0
    cdef long result, which = number
    with nogil:
        result = mmk_sys_syscall(which, raw)
    if result < 0:
        raise failure(result, "syscall", None, (number, *arguments))
    return result
