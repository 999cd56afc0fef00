"""From a negative return of the core to the exception a person can act on.

Everything here runs after something has failed, so it asks the system for facts (limits, what is used)
only where they explain the failure, and never fails itself.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

from mmkit.errors import ClosedError, CorruptError, Error, MemoryFault, SyscallError
from mmkit.flags import Advice
from mmkit.wording import address, flag_names, size

__all__ = [
    "Verbatim",
    "count_areas",
    "failure",
    "memory_fault",
    "placed_failure",
    "status_value",
]

# core/include/mmkit/base.h
_ECLOSED, _EPINNED, _EOVERLAP, _EUNSUPPORTED, _ESHRUNK, _EFOREIGN, _ETHREADS = range(4097, 4104)
_ECORRUPT, _EFORMAT, _EOTHERPIDS = range(4110, 4113)
# core/include/mmkit/placed.h
_ENOTHING, _EALIEN, _EHALFMADE, _EKIND, _EBOOT, _EABI = 4128, 4129, 4130, 4132, 4134, 4135


class Verbatim(str):
    """An argument of a call as it shall be written; other texts are names, and get quotes."""

    __slots__ = ()


def status_value(field: str) -> int | None:
    """Read a kB field of /proc/self/status, in bytes; None where it does not say."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _limit(which: int) -> int | None:
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _lock_limit_hint(_call: str) -> str:
    limit, used = _limit(resource.RLIMIT_MEMLOCK), status_value("VmLck")
    if limit is None:
        return (
            "The range holds a page that cannot be brought in: a hole, a guard, or past the end of the file."
        )
    return (
        f"RLIMIT_MEMLOCK is {size(limit)}, {size(used or 0)} of it is used.\n"
        f"Raise it with `ulimit -l` or LimitMEMLOCK= in the service, or lock less. If the limit is not "
        "reached, the range holds a hole, a guard, or pages past the end of the file."
    )


def count_areas() -> int:
    """Return how many areas this process has, as ``vm.max_map_count`` counts them."""
    # In small pieces: at the limit, malloc cannot map a larger one.
    count = 0
    fd = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while piece := os.read(fd, 4096):
            count += piece.count(b"\n")
    finally:
        os.close(fd)
    return count


def _address_space_hint(_call: str) -> str:
    limit, used = _limit(resource.RLIMIT_AS), status_value("VmSize")
    if limit is not None:
        return (
            f"RLIMIT_AS is {size(limit)}, {size(used or 0)} of it is used. "
            "Raise it with `ulimit -v`, or map less."
        )
    maximum = int(Path("/proc/sys/vm/max_map_count").read_text())
    areas = count_areas()
    if areas > maximum * 9 // 10:
        return f"The process has {areas} areas and vm.max_map_count is {maximum}: raise it, or split less."
    return (
        "No memory or address space is left; with vm.overcommit_memory=2, see CommitLimit in /proc/meminfo."
    )


def _huge_page_hint(_call: str) -> str:
    return (
        "Not enough free huge pages: see HugePages_Free in /proc/meminfo, and reserve more with "
        "`sysctl vm.nr_hugepages=N`."
    )


def _mapping_hint(call: str) -> str:
    return _huge_page_hint(call) if "HUGETLB" in call else _address_space_hint(call)


def _full_hint(call: str) -> str:
    if "HUGE" in call:
        return _huge_page_hint(call)
    room = os.statvfs("/dev/shm")
    return (
        f"/dev/shm has {size(room.f_bavail * room.f_frsize)} left of "
        f"{size(room.f_blocks * room.f_frsize)}. Remove what was leaked (`mmkit shm reap`), mount it larger "
        "(`mount -o remount,size=`; containers: --shm-size), or ask for less. A SharedMemory or an array can "
        "take space only when it is used: reserve=False."
    )


def _text(hint: str) -> Callable[[str], str]:
    return lambda _call: hint


def _create(call: str, flag: str) -> str:
    """Name what makes a segment in the caller's words: mmkit.linux, which alone takes a mode, has flags."""
    return "create=True" if call.endswith("')") else flag


_NO_LOCKING = "RLIMIT_MEMLOCK is 0: raise it with `ulimit -l`, or give CAP_IPC_LOCK."
_LIKE_PTRACE = (
    "Another process's memory needs what ptrace needs: the same user, or CAP_SYS_PTRACE "
    "(see kernel.yama.ptrace_scope)."
)
_ADVISE_OTHERS = "Another process's memory needs CAP_SYS_NICE, and what ptrace needs."

_HINTS: dict[tuple[str, int], Callable[[str], str]] = {
    ("mlock", errno.ENOMEM): _lock_limit_hint,
    ("mlock2", errno.ENOMEM): _lock_limit_hint,
    ("mlockall", errno.ENOMEM): _lock_limit_hint,
    ("mlock", errno.EPERM): _text(_NO_LOCKING),
    ("mmap", errno.ENOMEM): _mapping_hint,
    ("mlock2", errno.EPERM): _text(_NO_LOCKING),
    ("mlockall", errno.EPERM): _text(_NO_LOCKING),
    ("mmap", errno.EAGAIN): _text(
        "The memory would be locked (MAP_LOCKED, mlockall, secret memory) beyond RLIMIT_MEMLOCK: "
        "see `ulimit -l`."
    ),
    ("mmap", errno.EBADF): _text("Without a file (fd=-1) flags need MapFlag.ANONYMOUS."),
    ("mmap", errno.EINVAL): _text(
        "length is 0, addr (with FIXED) or offset is not a multiple of the page size, or flags lack a "
        "mapping type (SHARED, PRIVATE)."
    ),
    ("munmap", errno.EINVAL): _text("addr is not a multiple of the page size, or length is 0."),
    ("shm_open", errno.EINVAL): _text("A name is one slash and up to 254 further bytes without a slash."),
    ("mmap", errno.EACCES): _text("The file was not opened for what prot and flags ask of it."),
    ("mmap", errno.ENODEV): _text(
        "Only regular files, memory files and some devices can be mapped; what is in /proc and /sys cannot."
    ),
    ("mmap", errno.EPERM): _text("A seal, a noexec mount, or an address below vm.mmap_min_addr forbids it."),
    ("mmap", errno.EOVERFLOW): _text("offset + length is beyond what a file can have."),
    ("mremap", errno.ENOMEM): _address_space_hint,
    ("mprotect", errno.ENOMEM): _address_space_hint,
    ("mprotect", errno.EINVAL): _text(
        "addr is not a multiple of the page size, or prot has a bit that this machine does not know."
    ),
    ("mprotect", errno.EACCES): _text(
        "The file was not opened for what prot asks: map it with mode='r+', or mode='c' for a private copy."
    ),
    ("msync", errno.ENOMEM): _text("Part of the range is not mapped."),
    ("msync", errno.EBUSY): _text("INVALIDATE does not go with locked pages: unlock the range first."),
    ("madvise", errno.EFAULT): _text(
        "An access there would get a signal: past the end of the file, a guard, or no page to be had for it."
    ),
    ("open", errno.EACCES): lambda call: (
        "A process that changed its user may not look at itself: prctl(PR_SET_DUMPABLE, 1) allows it again."
        if "/proc/self" in call
        else ""
    ),
    ("ftruncate", errno.EPERM): _text("A seal forbids it: see add_seals()."),
    ("ftruncate", errno.EFBIG): _text("Beyond RLIMIT_FSIZE (`ulimit -f`) or what the file system can hold."),
    ("ftruncate", errno.EINVAL): _text("The file was opened for reading only, or its size is set for good."),
    ("memfd_secret", errno.ENOSYS): _text("Secret memory is off: boot with secretmem.enable=1 (Linux 5.14)."),
    ("mseal", errno.ENOSYS): _text("mseal(2) came with Linux 6.10."),
    ("cachestat", errno.ENOSYS): _text("cachestat(2) came with Linux 6.5."),
    ("cachestat", errno.EPERM): _text("Only who could write the file may know what is cached of it."),
    ("F_ADD_SEALS", errno.EBUSY): _text(
        "Seal.WRITE is refused while a writable shared mapping lives: use Seal.FUTURE_WRITE."
    ),
    ("F_ADD_SEALS", errno.EPERM): _text(
        "The file was made without MemfdFlag.ALLOW_SEALING, or is sealed by Seal.SEAL."
    ),
    ("shm_open", errno.ENOENT): lambda call: (
        "No segment has this name: `mmkit shm list` shows those that are there, "
        f"{_create(call, 'O_CREAT')} makes one."
    ),
    ("shm_open", errno.EEXIST): lambda call: (
        f"A segment has this name: attach it without {_create(call, 'O_EXCL')}, or remove it with "
        "`mmkit shm remove`."
    ),
    ("shm_open", errno.EACCES): _text(
        "Its owner and mode do not allow it; where reading is enough, attach with readonly=True."
    ),
    ("shm_open", errno.ELOOP): _text("A symbolic link has this name, which shared memory never is."),
    ("shm_open", errno.EISDIR): _text("A directory has this name, which shared memory never is."),
    ("shm_unlink", errno.ENOENT): _text("It was removed before, or there never was one."),
    ("shm_unlink", errno.EPERM): _text("Only its owner or root may remove it from /dev/shm."),
    ("shm_unlink", errno.EACCES): _text("Only its owner or root may remove it from /dev/shm."),
    ("fallocate", errno.ENOSPC): _full_hint,
    ("fallocate", errno.EFBIG): _text("Beyond RLIMIT_FSIZE (`ulimit -f`) or what the file system can hold."),
    ("ftok", errno.ENOENT): _text(
        "A key that is text is the path of a file that is there; else give a number."
    ),
    ("shmget", errno.ENOENT): _text("No segment has this key: create it, or see `mmkit shm list`."),
    ("shmget", errno.EEXIST): _text(
        "A segment has this key: attach it without create=True, or remove it with `mmkit shm remove`."
    ),
    ("shmget", errno.EACCES): _text(
        "Its owner and mode do not allow it; where reading is enough, attach with readonly=True."
    ),
    ("shmat", errno.EACCES): _text(
        "Its owner and mode do not allow it; where reading is enough, attach with readonly=True."
    ),
    ("shmat", errno.EINVAL): _text("There is no such segment, or no more; or the address cannot be used."),
    ("shmat", errno.EIDRM): _text("The segment was removed."),
    ("shmat", errno.ENOMEM): _address_space_hint,
    ("shmctl", errno.EINVAL): _text("There is no such segment, or no more; or the command is unknown."),
    ("shmctl", errno.EIDRM): _text("The segment was removed."),
    ("shmctl", errno.EACCES): _text("Looking at it needs permission to read it."),
    ("shmctl", errno.EPERM): _text("Only its owner, its creator or root may do that."),
    ("shmget", errno.ENOSPC): _text("kernel.shmmni segments exist, or kernel.shmall pages are in use."),
    ("shmget", errno.EINVAL): _text(
        "The size is 0 or beyond kernel.shmmax, or the segment exists and is smaller than asked."
    ),
    ("pkey_alloc", errno.ENOSPC): _text("All keys of the process are taken, or the processor has none."),
    ("userfaultfd", errno.EPERM): _text(
        "Without UserfaultFlag.USER_MODE_ONLY it needs CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1."
    ),
    ("process_madvise", errno.EPERM): _text(_ADVISE_OTHERS),
    ("process_madvise", errno.EACCES): _text(_ADVISE_OTHERS),
    ("process_mrelease", errno.EINVAL): _text("The process is not dying: send it SIGKILL first."),
    ("membarrier", errno.EPERM): _text("Register first: MembarrierCommand.REGISTER_…"),
    ("mbind", errno.EIO): _text("STRICT: pages are on other nodes, or could not be moved."),
    ("process_vm_readv", errno.EPERM): _text(_LIKE_PTRACE),
    ("process_vm_writev", errno.EPERM): _text(_LIKE_PTRACE),
    ("process_vm_readv", errno.EFAULT): _text("Nothing readable is at the first remote address."),
    ("process_vm_writev", errno.EFAULT): _text("Nothing writable is at the first remote address."),
}

_ADVICE_EINVAL = {
    Advice.DONTNEED: "The range holds locked pages: unlock it first.",
    Advice.FREE: "FREE wants private anonymous memory.",
    Advice.WIPEONFORK: "WIPEONFORK wants private anonymous memory.",
    Advice.REMOVE: "REMOVE wants shared memory that is writable and not locked: unlock the range first.",
    Advice.GUARD_INSTALL: "Guards do not go on locked pages: unlock the range first. Linux 6.13 has them.",
    Advice.COLLAPSE: "COLLAPSE wants a range that holds a whole aligned huge page (Linux 6.1).",
}


def _advice_hint(call: str) -> str:
    for advice, hint in _ADVICE_EINVAL.items():
        if call.endswith(f", {advice.name})"):
            return hint
    return "This kernel does not know the advice, or it does not go with this kind of memory."


_HINTS["madvise", errno.EINVAL] = _advice_hint


def _hint(name: str, number: int, call: str) -> str:
    find = _HINTS.get((name, number))
    try:
        return find(call) if find else ""
    except (OSError, ValueError, MemoryError):
        return ""


def _written(argument: object) -> str:
    if isinstance(argument, Verbatim):
        return argument
    if isinstance(argument, int) and type(argument).__module__ == "mmkit.flags":
        return flag_names(argument)
    return repr(argument)


def _written_call(name: str, range_: tuple[int, int] | None, arguments: tuple[object, ...]) -> str:
    parts = [f"{address(range_[0])}, {size(range_[1])}"] if range_ else []
    parts += map(_written, arguments)
    return f"{name}({', '.join(parts)})"


def failure(
    code: int, name: str, range_: tuple[int, int] | None = None, arguments: tuple[object, ...] = ()
) -> Exception:
    """Make the exception for a negative return of the core.

    Parameters
    ----------
    code
        Negative: ``-errno``, or one of mmkit's own codes below ``-4096``.
    name
        The call that failed, as its man page is named.
    range_
        Address and length in bytes that it was about.
    arguments
        What else it was given; flags are decoded.

    Returns
    -------
    Exception
        To be raised by the caller.
    """
    call = _written_call(name, range_, arguments)
    number = -code
    if number < 4096:
        return SyscallError(number, call, _hint(name, number, call))
    return _OWN.get(number, _unknown)(call)


def _closed(call: str) -> Exception:
    return ClosedError(f"{call}: the region is closed")


def _pinned(call: str) -> Exception:
    return BufferError(
        f"{call}: a live view (memoryview, numpy array), something made in it (a heap, a lock, a snapshot) "
        "or a running operation needs this memory. Release or close it first."
    )


def _overlap(call: str) -> Exception:
    return Error(f"{call}: the range overlaps a live mmkit.Region. Close that, or use its own methods.")


def _unsupported(call: str) -> Exception:
    return Error(f"{call}: not possible for this kind of region")


def _shrunk(call: str) -> Exception:
    return SyscallError(
        errno.EIO, call, "The file now ends before this range does: what was written beyond its end is lost."
    )


def _foreign(call: str) -> Exception:
    return SyscallError(
        errno.EBUSY,
        call,
        "malloc or another library owns memory just below the break, or has moved it since: only what was "
        "taken last, through mmkit, can be given back.",
    )


def _threads(call: str) -> Exception:
    return SyscallError(
        errno.EBUSY,
        call,
        "The process has other threads, and a malloc in one of them may be using the break.",
    )


def _corrupt(call: str) -> Exception:
    return CorruptError(f"{call}: it does not hold what it should: it is something else, or was damaged")


def _version(call: str) -> Exception:
    return CorruptError(f"{call}: it was made by a version of mmkit whose format this one does not know")


def _namespace(call: str) -> Exception:
    return Error(
        f"{call}: it was made in another PID namespace, or another time namespace (another container). "
        "Nobody here could tell which of its users are alive: run them in one (docker run --pid=container:…)."
    )


def _unknown(call: str) -> Exception:
    return Error(f"{call}: failed for a reason this version does not know")


def _says(text: str) -> Callable[[str], Exception]:
    return lambda call: Error(f"{call}: {text}")


_OWN: dict[int, Callable[[str], Exception]] = {
    _ECLOSED: _closed,
    _EPINNED: _pinned,
    _EOVERLAP: _overlap,
    _EUNSUPPORTED: _unsupported,
    _ESHRUNK: _shrunk,
    _EFOREIGN: _foreign,
    _ETHREADS: _threads,
    _ECORRUPT: _corrupt,
    _EFORMAT: _version,
    _EOTHERPIDS: _namespace,
    _ENOTHING: _says(
        "nothing of the kind is there. In a region, make it with create=True; a name in /dev/shm is another "
        "segment's: take another"
    ),
    _EALIEN: _says("something else is there, which mmkit has not made and does not overwrite"),
    _EHALFMADE: _says("whoever was making it died before it was done; make it with create=True"),
    _EKIND: _says("another kind of thing is there"),
    _EBOOT: _says("it was made before this machine was started last; remove it, and make it anew"),
    _EABI: _says("a program with another libc made it, whose mutexes are not like those of this one"),
}


# ---- bad accesses -----------------------------------------------------------------------------------


#: As MMK_FAULT_* in core/include/mmkit/guarded.h: why, and what to do or know.
_REASONS = (
    ("unknown", "the kernel does not say why"),
    ("protection", "the memory does not allow it; see protect()"),
    ("unmapped or guard", "nothing is mapped there, or a guard stands there"),
    ("not an address", "no page table can hold such an address"),
    ("protection key", "a protection key does not allow it"),
    (
        "not backed",
        "no page stands behind it: the file ends before it, or did a moment ago, or cannot be read",
    ),
    ("beyond end of file", "the file ends before it: somebody made it shorter"),
    ("no memory", "no page, huge page or disk space is left to back it"),
    ("I/O error", "the file behind it cannot be read or written"),
    ("poisoned", "the hardware has lost what was there"),
)


def memory_fault(
    address: int, offset: int | None, write: bool, reason: int, cure: str | None = None
) -> MemoryFault:
    """Return the exception for a bad access.

    Parameters
    ----------
    address
        First byte that could not be accessed.
    offset
        The same, in bytes from the start of the region; None outside any region.
    write
        Whether it was to be written.
    reason
        MMK_FAULT_*.
    cure
        What to say instead of what is always said of that reason.
    """
    word, explanation = _REASONS[reason]
    access = "write" if write else "read"
    place = f"{address:#x}" if offset is None else f"{address:#x} (offset {offset:#x})"
    return MemoryFault(f"{access} at {place}: {word}: {cure or explanation}", address, offset, access, word)


# ---- locks and the like -----------------------------------------------------------------------------

_NO_BOOT = (
    "It must tell which process and boot this is, and /proc/sys/kernel/random/boot_id, or /proc itself, is "
    "not there: ProcSubset=pid hides the former from a service."
)
_PLACED_HINTS = {
    ("acquire", errno.EDEADLK): "This thread has it already; an RLock can be taken again.",
    ("recover", errno.EDEADLK): "This thread holds it; the end of its repairing() block clears the mark.",
    ("repairing", errno.EDEADLK): "This thread has it already.",
    ("release", errno.EPERM): (
        "This thread does not hold it: it is released by the thread (a permit: by the process) that took it, "
        "and a forked child has none of its parent's."
    ),
    ("wait", errno.EPERM): "This thread does not hold the lock of the condition.",
    ("notify", errno.EPERM): "This thread does not hold the lock of the condition.",
    ("wait", errno.ENOSPC): "256 threads wait already.",
    ("acquire", errno.ENOSPC): "256 processes hold permits.",
    ("create", errno.EBUSY): "Another process is making it at this moment.",
    ("attach", errno.EBUSY): "Another process is making it at this moment; try again.",
    ("create", errno.ENOENT): _NO_BOOT,
    ("attach", errno.ENOENT): _NO_BOOT,
    ("create", errno.EEXIST): "One is there already; attach to it without create=True, or unlink() it first.",
}


def placed_failure(code: int, call: str, label: str) -> Exception:
    """Return the exception for a lock, or another thing that processes meet at.

    Parameters
    ----------
    code
        Negative: ``-errno``, or one of ``core/include/mmkit/placed.h``.
    call
        The method that failed.
    label
        Which thing: its class and name or place.
    """
    number = -code
    if number in _OWN:
        return _OWN[number](label)
    hint = _PLACED_HINTS.get((call, number), "")
    if number == errno.ENOLCK:
        hint = "This thread holds 2000 locks; the kernel looks after no more of a thread that dies."
    return SyscallError(number, f"{call} of {label}", hint)
