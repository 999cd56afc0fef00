"""The memory-management calls of Linux: one function per man page, same names, same argument order.

Addresses, lengths, descriptors and flags are plain ints in and out. Where C returns 0 for success and
nothing else, the function returns None; where the man page fills a structure or a vector, it returns a
named tuple or bytes. Whatever the kernel refuses raises `mmkit.SyscallError`, which is an `OSError`.

The calls are passed through as they are. Two things are checked before the kernel sees them: arguments
that cannot be meant (negative lengths, ranges that wrap past the address space), and ranges of a live
`mmkit.Region`, which a raw munmap, mremap or ``MAP_FIXED`` must not pull away.
"""

from __future__ import annotations

from mmkit._native.calls import (
    brk,
    cachestat,
    madvise,
    memfd_create,
    memfd_secret,
    mincore,
    mlock,
    mlock2,
    mlockall,
    mmap,
    mprotect,
    mremap,
    mseal,
    msync,
    munlock,
    munlockall,
    munmap,
    sbrk,
)
from mmkit._native.ipc import (
    ftok,
    process_vm_readv,
    process_vm_writev,
    shm_open,
    shm_unlink,
    shmat,
    shmctl,
    shmdt,
    shmget,
)
from mmkit.structs import CacheStat, IpcPerm, ShmidDs, ShmInfo, ShmUsage

__all__ = [
    "CacheStat",
    "IpcPerm",
    "ShmInfo",
    "ShmUsage",
    "ShmidDs",
    "brk",
    "cachestat",
    "ftok",
    "madvise",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "mprotect",
    "mremap",
    "mseal",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "process_vm_readv",
    "process_vm_writev",
    "sbrk",
    "shm_open",
    "shm_unlink",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
]
