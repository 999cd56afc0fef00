"""The kernel's flags as Python types: one type an argument, prefixes dropped.

``PROT_READ`` is `Prot.READ`, ``MADV_DONTNEED`` is `Advice.DONTNEED`. The values are mmkit's own and
reach to Linux 6.18; headers, glibc and the :mod:`mmap` module are older than kernels. Kernels grow, so
every type accepts bits it has no name for.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import KEEP, IntEnum, IntFlag

__all__ = [
    "Advice",
    "BindFlag",
    "IpcFlag",
    "LockAllFlag",
    "LockFlag",
    "MapFlag",
    "MapType",
    "MembarrierCommand",
    "MembarrierFlag",
    "MemfdFlag",
    "Policy",
    "PolicyFlag",
    "PolicyQuery",
    "Prot",
    "ProtectionKey",
    "RemapFlag",
    "Seal",
    "ShmAttachFlag",
    "ShmCommand",
    "SyncFlag",
    "UserfaultFlag",
]


class _OpenEnum(IntEnum):
    """An `IntEnum` that takes values it does not know."""

    @classmethod
    def _missing_(cls, value: object) -> _OpenEnum | None:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value
        return member


class Prot(IntFlag, boundary=KEEP):
    """What may be done with pages: ``PROT_*`` of mprotect(2)."""

    NONE = 0
    READ = 0x1
    WRITE = 0x2
    EXEC = 0x4
    SEM = 0x8
    #: aarch64: pages whose indirect branches must land on a BTI instruction.
    BTI = 0x10
    #: aarch64: pages with memory tags.
    MTE = 0x20
    GROWSDOWN = 0x01000000
    GROWSUP = 0x02000000


class MapType(_OpenEnum):
    """Who sees a change: the type field of the mmap(2) flags (``MAP_TYPE``)."""

    SHARED = 0x01
    PRIVATE = 0x02
    #: Shared, and flags that the kernel does not know are refused. Linux 4.15.
    SHARED_VALIDATE = 0x03
    #: Private, never swapped or dumped; may be zeroed under memory pressure. Linux 6.11.
    DROPPABLE = 0x08


_TYPE_MASK = 0x0F
_HUGE_SHIFT = 26
_HUGE_MASK = 0x3F << _HUGE_SHIFT


def _size_name(size: int) -> str:
    for unit, name in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if size >= unit:
            return f"{size // unit}{name}"
    return f"{size}B"


class MapFlag(IntFlag, boundary=KEEP):
    """``MAP_*`` of mmap(2).

    Two parts of the word are fields, not bits: the mapping type (`type`: ``SHARED_VALIDATE`` is not
    ``SHARED | PRIVATE``) and the huge page size (`huge_page_size`). Decoding, membership and iteration
    treat them so.
    """

    SHARED = 0x01
    PRIVATE = 0x02
    SHARED_VALIDATE = 0x03
    DROPPABLE = 0x08
    FIXED = 0x10
    ANONYMOUS = 0x20
    GROWSDOWN = 0x0100
    DENYWRITE = 0x0800
    EXECUTABLE = 0x1000
    LOCKED = 0x2000
    NORESERVE = 0x4000
    POPULATE = 0x8000
    NONBLOCK = 0x10000
    STACK = 0x20000
    HUGETLB = 0x40000
    SYNC = 0x80000
    FIXED_NOREPLACE = 0x100000
    UNINITIALIZED = 0x4000000
    HUGE_16KB = 14 << _HUGE_SHIFT
    HUGE_64KB = 16 << _HUGE_SHIFT
    HUGE_512KB = 19 << _HUGE_SHIFT
    HUGE_1MB = 20 << _HUGE_SHIFT
    HUGE_2MB = 21 << _HUGE_SHIFT
    HUGE_8MB = 23 << _HUGE_SHIFT
    HUGE_16MB = 24 << _HUGE_SHIFT
    HUGE_32MB = 25 << _HUGE_SHIFT
    HUGE_256MB = 28 << _HUGE_SHIFT
    HUGE_512MB = 29 << _HUGE_SHIFT
    HUGE_1GB = 30 << _HUGE_SHIFT
    HUGE_2GB = 31 << _HUGE_SHIFT
    HUGE_16GB = 34 << _HUGE_SHIFT

    @property
    def type(self) -> MapType:
        """The mapping type field."""
        return MapType(int(self) & _TYPE_MASK)

    @property
    def huge_page_size(self) -> int | None:
        """The huge page size field in bytes; None where it names none, which means the default size."""
        mask = self._huge_mask()
        return 1 << ((int(self) & mask) >> _HUGE_SHIFT) if mask else None

    def _huge_mask(self) -> int:
        # No page is smaller than 4 KiB, so a small number there is MAP_UNINITIALIZED, which shares a bit.
        return _HUGE_MASK if (int(self) & _HUGE_MASK) >> _HUGE_SHIFT >= 12 else 0

    def __contains__(self, other: MapFlag) -> bool:
        fields = 0
        for mask in (_TYPE_MASK, other._huge_mask()):
            if int(other) & mask:
                fields |= mask
                if int(other) & mask != int(self) & mask:
                    return False
        return int(other) & ~fields & ~int(self) == 0

    def __iter__(self) -> Iterator[MapFlag]:
        value = int(self)
        huge = value & self._huge_mask()
        if value & _TYPE_MASK:
            yield MapFlag(value & _TYPE_MASK)
        bits = value & ~_TYPE_MASK & ~huge
        while bits > 0:
            bit = bits & -bits
            yield MapFlag(bit)
            bits ^= bit
        if huge:
            yield MapFlag(huge)

    def __str__(self) -> str:
        return "|".join(part._part_name() for part in self) or "0"

    def _part_name(self) -> str:
        if size := self.huge_page_size:
            return f"HUGE_{_size_name(size)}"
        return self.name or f"{int(self):#x}"

    def __repr__(self) -> str:
        return f"<MapFlag {self}: {int(self):#x}>"


class RemapFlag(IntFlag, boundary=KEEP):
    """``MREMAP_*`` of mremap(2)."""

    MAYMOVE = 1
    FIXED = 2
    #: Leave the old range mapped, empty. Linux 5.7; shared and file mappings: 5.13.
    DONTUNMAP = 4


class SyncFlag(IntFlag, boundary=KEEP):
    """``MS_*`` of msync(2)."""

    ASYNC = 1
    INVALIDATE = 2
    SYNC = 4


class Advice(_OpenEnum):
    """``MADV_*`` of madvise(2)."""

    NORMAL = 0
    RANDOM = 1
    SEQUENTIAL = 2
    WILLNEED = 3
    DONTNEED = 4
    FREE = 8
    REMOVE = 9
    DONTFORK = 10
    DOFORK = 11
    MERGEABLE = 12
    UNMERGEABLE = 13
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    DONTDUMP = 16
    DODUMP = 17
    WIPEONFORK = 18
    KEEPONFORK = 19
    COLD = 20
    PAGEOUT = 21
    POPULATE_READ = 22
    POPULATE_WRITE = 23
    DONTNEED_LOCKED = 24
    COLLAPSE = 25
    HWPOISON = 100
    SOFT_OFFLINE = 101
    GUARD_INSTALL = 102
    GUARD_REMOVE = 103


class LockFlag(IntFlag, boundary=KEEP):
    """``MLOCK_*`` of mlock2(2)."""

    ONFAULT = 1


class LockAllFlag(IntFlag, boundary=KEEP):
    """``MCL_*`` of mlockall(2)."""

    CURRENT = 1
    FUTURE = 2
    ONFAULT = 4


class MemfdFlag(IntFlag, boundary=KEEP):
    """``MFD_*`` of memfd_create(2). The huge page size is a field, as in `MapFlag`."""

    CLOEXEC = 0x1
    ALLOW_SEALING = 0x2
    HUGETLB = 0x4
    #: Never executable, and sealed so. Linux 6.3.
    NOEXEC_SEAL = 0x8
    EXEC = 0x10
    HUGE_64KB = 16 << _HUGE_SHIFT
    HUGE_2MB = 21 << _HUGE_SHIFT
    HUGE_1GB = 30 << _HUGE_SHIFT


class Seal(IntFlag, boundary=KEEP):
    """``F_SEAL_*`` of fcntl(2): what nobody may do to a memfd any more."""

    SEAL = 0x1
    SHRINK = 0x2
    GROW = 0x4
    #: Refused with EBUSY while a writable shared mapping lives: see FUTURE_WRITE.
    WRITE = 0x8
    #: No new writable mappings; those that live stay writable. Linux 5.1.
    FUTURE_WRITE = 0x10
    #: Linux 6.3.
    EXEC = 0x20


class IpcFlag(IntFlag, boundary=KEEP):
    """Flags of shmget(2), beside the nine permission bits."""

    CREAT = 0o1000
    EXCL = 0o2000
    HUGETLB = 0o4000
    NORESERVE = 0o10000
    HUGE_2MB = 21 << _HUGE_SHIFT
    HUGE_1GB = 30 << _HUGE_SHIFT


class ShmAttachFlag(IntFlag, boundary=KEEP):
    """Flags of shmat(2)."""

    RDONLY = 0o10000
    #: Round the address down to a multiple of ``SHMLBA``.
    RND = 0o20000
    REMAP = 0o40000
    EXEC = 0o100000


class ShmCommand(_OpenEnum):
    """Commands of shmctl(2)."""

    RMID = 0
    SET = 1
    STAT = 2
    INFO = 3
    LOCK = 11
    UNLOCK = 12
    SHM_STAT = 13
    SHM_INFO = 14
    #: As SHM_STAT, without asking for read permission. Linux 4.17.
    SHM_STAT_ANY = 15


class ProtectionKey(IntFlag, boundary=KEEP):
    """``PKEY_*`` of pkey_alloc(2): what the key takes from the thread that holds it."""

    DISABLE_ACCESS = 1
    DISABLE_WRITE = 2


class UserfaultFlag(IntFlag, boundary=KEEP):
    """Flags of userfaultfd(2), beside ``os.O_CLOEXEC`` and ``os.O_NONBLOCK``."""

    #: Catch no fault that the kernel itself meets: this much needs no privilege. Linux 5.11.
    USER_MODE_ONLY = 1


class MembarrierCommand(_OpenEnum):
    """``MEMBARRIER_CMD_*`` of membarrier(2). QUERY and GET_REGISTRATIONS answer with a set of the others."""

    QUERY = 0
    GLOBAL = 0x1
    GLOBAL_EXPEDITED = 0x2
    REGISTER_GLOBAL_EXPEDITED = 0x4
    PRIVATE_EXPEDITED = 0x8
    REGISTER_PRIVATE_EXPEDITED = 0x10
    PRIVATE_EXPEDITED_SYNC_CORE = 0x20
    REGISTER_PRIVATE_EXPEDITED_SYNC_CORE = 0x40
    #: Linux 5.10.
    PRIVATE_EXPEDITED_RSEQ = 0x80
    REGISTER_PRIVATE_EXPEDITED_RSEQ = 0x100
    #: Linux 6.3.
    GET_REGISTRATIONS = 0x200


class MembarrierFlag(IntFlag, boundary=KEEP):
    """``MEMBARRIER_CMD_FLAG_*`` of membarrier(2)."""

    #: Only on the CPU named by cpu_id; with PRIVATE_EXPEDITED_RSEQ. Linux 5.10.
    CPU = 1


class Policy(_OpenEnum):
    """``MPOL_*`` of set_mempolicy(2): from which NUMA nodes memory comes."""

    DEFAULT = 0
    PREFERRED = 1
    BIND = 2
    INTERLEAVE = 3
    LOCAL = 4
    #: Linux 5.15.
    PREFERRED_MANY = 5
    #: Linux 6.9.
    WEIGHTED_INTERLEAVE = 6


class PolicyFlag(IntFlag, boundary=KEEP):
    """``MPOL_F_*`` that go with a `Policy`: how its nodes are meant."""

    #: Linux 5.12; for PREFERRED_MANY 5.15.
    NUMA_BALANCING = 1 << 13
    RELATIVE_NODES = 1 << 14
    STATIC_NODES = 1 << 15


class PolicyQuery(IntFlag, boundary=KEEP):
    """``MPOL_F_*`` of get_mempolicy(2): what is asked for."""

    NODE = 1
    ADDR = 2
    MEMS_ALLOWED = 4


class BindFlag(IntFlag, boundary=KEEP):
    """``MPOL_MF_*`` of mbind(2) and move_pages(2)."""

    STRICT = 1
    MOVE = 2
    #: Also pages that other processes use: needs CAP_SYS_NICE.
    MOVE_ALL = 4
