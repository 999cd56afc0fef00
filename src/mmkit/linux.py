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
from mmkit._native.control import (
    membarrier,
    pkey_alloc,
    pkey_free,
    pkey_mprotect,
    userfaultfd,
)
from mmkit._native.ipc import (
    ftok,
    process_madvise,
    process_mrelease,
    process_vm_readv,
    process_vm_writev,
    shm_open,
    shm_unlink,
    shmat,
    shmctl,
    shmdt,
    shmget,
)
from mmkit._native.numa import get_mempolicy, mbind, move_pages, set_mempolicy
from mmkit.structs import CacheStat, IpcPerm, MemPolicy, ShmidDs, ShmInfo, ShmUsage

__all__ = [
    "CacheStat",
    "IpcPerm",
    "MemPolicy",
    "ShmInfo",
    "ShmUsage",
    "ShmidDs",
    "brk",
    "cachestat",
    "ftok",
    "get_mempolicy",
    "madvise",
    "mbind",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "move_pages",
    "mprotect",
    "mremap",
    "mseal",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "process_madvise",
    "process_mrelease",
    "process_vm_readv",
    "process_vm_writev",
    "sbrk",
    "set_mempolicy",
    "shm_open",
    "shm_unlink",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
    "userfaultfd",
]
