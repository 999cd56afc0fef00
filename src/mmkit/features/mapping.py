"""Features of mapping, protecting, advising on and locking a process's own memory."""

from __future__ import annotations

import errno
import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmkit._native import calls, control, ipc
from mmkit.features.feature import Absent, Feature, NeverTried, memory, memory_file
from mmkit.flags import Advice, LockAllFlag, LockFlag, MapFlag, Prot, RemapFlag

__all__ = ["FEATURES", "huge_page_size", "probe_advice"]

_PAGE = calls.PAGE_SIZE

_RAISE_MEMLOCK = "raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK=, docker run --ulimit memlock=-1)"
_LOCKING = {
    errno.ENOMEM: _RAISE_MEMLOCK,
    errno.EAGAIN: _RAISE_MEMLOCK,
    errno.EPERM: _RAISE_MEMLOCK + ", or give CAP_IPC_LOCK",
}


def _maps(flags: MapFlag, length: int = _PAGE) -> None:
    with memory(length, prot=Prot.NONE, flags=flags | MapFlag.ANONYMOUS):
        pass


def _validates_flags() -> None:
    with memory_file() as fd, memory(flags=MapFlag.SHARED_VALIDATE, fd=fd):
        pass


def _grow_break() -> None:
    calls.sbrk(_PAGE)


def _maps_synchronously() -> None:
    # Whether a file can be mapped so is a matter of its file system: the one of temporary files is asked. The
    # file stays empty, which mmap allows, so that no limit on files comes in the way.
    try:
        # Without a folder tempfile looks for one by writing, and calls whatever comes in the way ENOENT.
        file = tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or "/tmp")  # noqa: SIM115
    except OSError as error:
        raise NeverTried(error.errno) from None
    with file, memory(flags=MapFlag.SHARED_VALIDATE | MapFlag.SYNC, fd=file.fileno()):
        pass


def _knows_fixed_noreplace() -> None:
    with memory(prot=Prot.NONE) as address:
        flags = MapFlag.FIXED_NOREPLACE | MapFlag.PRIVATE | MapFlag.ANONYMOUS
        try:
            elsewhere = calls.mmap(address, _PAGE, Prot.NONE, flags)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return
            raise
        # Before 4.17 the flag was unknown, and the address a hint.
        calls.munmap(elsewhere, _PAGE)
        raise Absent


def _locks_what_it_maps() -> None:
    # With a limit in the way mmap says EAGAIN; that pages did not come it would not say.
    with memory(flags=MapFlag.PRIVATE | MapFlag.ANONYMOUS | MapFlag.LOCKED):
        pass


def huge_page_size() -> int | None:
    """Return the default huge page size in bytes; None if the kernel has no huge pages, or does not say."""
    try:
        return _default_huge_page_size()
    except OSError:
        return None


def _default_huge_page_size() -> int | None:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) * 1024
    return None


def _reserves_huge_page(size: int | None = None) -> None:
    """Map one huge page, and touch nothing: the kernel sets a page of its pool aside, and takes it back."""
    flags = MapFlag.PRIVATE | MapFlag.HUGETLB
    if size is None:
        try:
            size = _default_huge_page_size()
        except OSError as error:
            raise NeverTried(error.errno) from None
        if size is None:
            raise OSError(errno.EINVAL, "no default huge page size")
    else:
        flags |= MapFlag(size.bit_length() - 1 << 26)
    _maps(flags, size)


def _shrinks() -> None:
    address = calls.mmap(0, 2 * _PAGE, Prot.NONE, MapFlag.PRIVATE | MapFlag.ANONYMOUS)
    rest = 2 * _PAGE
    try:
        calls.mremap(address, 2 * _PAGE, _PAGE)
        rest = _PAGE
    finally:
        calls.munmap(address, rest)


def _moves_and_leaves() -> None:
    with memory() as address:
        moved = calls.mremap(address, _PAGE, _PAGE, RemapFlag.MAYMOVE | RemapFlag.DONTUNMAP)
        calls.munmap(moved, _PAGE)


def _protects(prot: Prot) -> None:
    with memory() as address:
        calls.mprotect(address, _PAGE, prot)


def _take_key() -> int:
    try:
        return control.pkey_alloc()
    except OSError as refusal:
        # Where the processor has no keys, x86 answers so once, and ENOSPC from then on.
        if refusal.errno != errno.EINVAL:
            raise
        return control.pkey_alloc()


def _gives_memory_a_key() -> None:
    key = _take_key()
    try:
        with memory() as address:
            control.pkey_mprotect(address, _PAGE, Prot.READ, key)
    finally:
        control.pkey_free(key)


def _mincore() -> None:
    with memory() as address:
        calls.mincore(address, _PAGE)


def _seals_memory() -> None:
    # For ever: the page stays mapped until the process ends.
    address = calls.mmap(0, _PAGE, Prot.NONE, MapFlag.PRIVATE | MapFlag.ANONYMOUS)
    calls.mseal(address, _PAGE)
    try:
        calls.munmap(address, _PAGE)
    except PermissionError:
        return
    raise Absent


def _names_memory() -> None:
    with memory() as address:
        if not calls.name_anonymous(address, _PAGE, b"probe"):
            raise OSError(errno.EINVAL, "prctl")


def probe_advice(advice: Advice) -> None:
    """Ask whether the kernel knows some advice."""
    if advice in (Advice.HWPOISON, Advice.SOFT_OFFLINE):
        raise NeverTried
    with memory(prot=Prot.NONE) as address:
        # The kernel looks at the advice before it finds that the range is empty.
        calls.madvise(address, 0, advice)


def _advises_by_descriptor(advice: Advice) -> None:
    with memory(prot=Prot.NONE) as address:
        itself = os.pidfd_open(os.getpid())
        try:
            ipc.process_madvise(itself, [(address, 0)], advice)
        finally:
            os.close(itself)


def _locks_page() -> None:
    with memory() as address:
        calls.mlock(address, _PAGE)
        calls.munlock(address, _PAGE)


def _locks_everything() -> None:
    # ONFAULT brings nothing in: a child of a large process would copy all of it.
    calls.mlockall(LockAllFlag.CURRENT | LockAllFlag.FUTURE | LockAllFlag.ONFAULT)


_POOL = "reserve some: sysctl vm.nr_hugepages=N, or nr_hugepages in /sys/kernel/mm/hugepages/*"
_HUGE = {
    errno.ENOMEM: _POOL,
    errno.ENOENT: "mount /proc: the default size is in /proc/meminfo",
    errno.EINVAL: "the processor or the kernel has no huge pages of that size; see the pools below",
}
_HUGE_SIZES: dict[str, tuple[MapFlag, ...]] = {
    "x86_64": (MapFlag.HUGE_2MB, MapFlag.HUGE_1GB),
    "aarch64": (MapFlag.HUGE_64KB, MapFlag.HUGE_2MB, MapFlag.HUGE_32MB, MapFlag.HUGE_1GB),
}


def _huge_size(flag: MapFlag) -> Feature:
    size = flag.huge_page_size
    assert size is not None
    return Feature(f"MAP_{flag}", "mapping", "3.8", partial(_reserves_huge_page, size), flag, _HUGE)


def _mapping(
    name: str, since: str, probe: Callable[[], object], key: MapFlag | str | None = None, **changes: str
) -> Feature:
    return Feature(
        name,
        "mapping",
        since,
        probe,
        key or name,
        {getattr(errno, code): text for code, text in changes.items()},
    )


_MAPPING = (
    Feature(
        "brk", "mapping", "2.4", _grow_break, "brk", {errno.ENOMEM: "raise RLIMIT_DATA (`ulimit -d`)"}, True
    ),
    _mapping("mmap", "2.4", lambda: _maps(MapFlag.PRIVATE), ENOMEM="raise RLIMIT_AS (`ulimit -v`)"),
    _mapping("MAP_POPULATE", "2.6", lambda: _maps(MapFlag.PRIVATE | MapFlag.POPULATE), MapFlag.POPULATE),
    Feature("MAP_LOCKED", "mapping", "2.6", _locks_what_it_maps, MapFlag.LOCKED, _LOCKING),
    _mapping("MAP_SHARED_VALIDATE", "4.15", _validates_flags, MapFlag.SHARED_VALIDATE),
    _mapping(
        "MAP_SYNC",
        "4.15",
        _maps_synchronously,
        MapFlag.SYNC,
        EOPNOTSUPP="temporary files are not on persistent memory: it takes a file system mounted with -o dax",
        **dict.fromkeys(("ENOENT", "EACCES", "EROFS"), "set TMPDIR to a folder where files can be made"),
    ),
    _mapping("MAP_FIXED_NOREPLACE", "4.17", _knows_fixed_noreplace, MapFlag.FIXED_NOREPLACE),
    _mapping("MAP_DROPPABLE", "6.11", lambda: _maps(MapFlag.DROPPABLE), MapFlag.DROPPABLE),
    Feature("MAP_HUGETLB", "mapping", "2.6.32", _reserves_huge_page, MapFlag.HUGETLB, _HUGE),
    *map(_huge_size, _HUGE_SIZES.get(platform.machine(), ())),
    _mapping("mremap", "2.4", _shrinks),
    _mapping("MREMAP_DONTUNMAP", "5.7", _moves_and_leaves),
    _mapping("mprotect", "2.4", lambda: _protects(Prot.READ)),
    _mapping(
        "mprotect, PROT_EXEC",
        "2.4",
        lambda: _protects(Prot.READ | Prot.EXEC),
        EACCES="a security module or PR_SET_MDWE (MemoryDenyWriteExecute=) forbids code in written memory",
    ),
    _mapping(
        "pkey_alloc",
        "4.9",
        _gives_memory_a_key,
        ENOSPC="the processor has none, or this process has taken them all; /proc/cpuinfo says ospke or poe",
        ENOSYS="the kernel was built without CONFIG_ARCH_HAS_PKEYS, or is older than 4.9",
    ),
    Feature("mseal", "mapping", "6.10", _seals_memory, "mseal", {}, True),
    _mapping("mincore", "2.4", _mincore),
    _mapping(
        "anonymous VMA names",
        "5.17",
        _names_memory,
        EINVAL="a kernel with CONFIG_ANON_VMA_NAME; regions have no names in /proc/PID/maps without it",
    ),
)


_ADVICE_SINCE = {
    **dict.fromkeys(("NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTNEED"), "2.4"),
    **dict.fromkeys(("REMOVE", "DONTFORK", "DOFORK"), "2.6.16"),
    **dict.fromkeys(("MERGEABLE", "UNMERGEABLE", "HWPOISON"), "2.6.32"),
    "SOFT_OFFLINE": "2.6.33",
    **dict.fromkeys(("HUGEPAGE", "NOHUGEPAGE"), "2.6.38"),
    **dict.fromkeys(("DONTDUMP", "DODUMP"), "3.4"),
    "FREE": "4.5",
    **dict.fromkeys(("WIPEONFORK", "KEEPONFORK"), "4.14"),
    **dict.fromkeys(("COLD", "PAGEOUT"), "5.4"),
    **dict.fromkeys(("POPULATE_READ", "POPULATE_WRITE"), "5.14"),
    "DONTNEED_LOCKED": "5.18",
    "COLLAPSE": "6.1",
    **dict.fromkeys(("GUARD_INSTALL", "GUARD_REMOVE"), "6.13"),
}
_KSM = {errno.EINVAL: "a kernel with CONFIG_KSM"}
_THP = {errno.EINVAL: "a kernel with CONFIG_TRANSPARENT_HUGEPAGE"}
_DAMAGE = {0: "nothing: it takes memory from the machine, for tests of the kernel"}
_GUARDS = {errno.EINVAL: "Linux 6.13 or later; until then mmkit's guards are mprotect's, two areas each"}
_ADVICE_CHANGES = {
    **dict.fromkeys(("MERGEABLE", "UNMERGEABLE"), _KSM),
    **dict.fromkeys(("HUGEPAGE", "NOHUGEPAGE", "COLLAPSE"), _THP),
    **dict.fromkeys(("HWPOISON", "SOFT_OFFLINE"), _DAMAGE),
    **dict.fromkeys(("GUARD_INSTALL", "GUARD_REMOVE"), _GUARDS),
}


def _advice(advice: Advice) -> Feature:
    name, since = advice.name, _ADVICE_SINCE[advice.name]
    probe = partial(probe_advice, advice)
    return Feature(f"MADV_{name}", "advice", since, probe, advice, _ADVICE_CHANGES.get(name, {}))


_ADVISING = (
    *map(_advice, Advice),
    Feature(
        "process_madvise",
        "advice",
        "5.10",
        partial(_advises_by_descriptor, Advice.COLD),
        "process_madvise",
        {errno.EPERM: "CAP_SYS_NICE: before Linux 6.13 even for oneself; or a seccomp profile refuses it"},
    ),
    Feature(
        "process_madvise, any advice",
        "advice",
        "6.13",
        partial(_advises_by_descriptor, Advice.DONTNEED),
        "process_madvise, any advice",
        {errno.EINVAL: "Linux 6.13 or later: until then hints only, even for oneself"},
    ),
)

_LOCKS = (
    Feature("mlock", "locking", "2.4", _locks_page, "mlock", _LOCKING),
    # An empty range: whether the kernel has it is no matter of how much is locked already.
    Feature("mlock2", "locking", "4.4", lambda: calls.mlock2(0, 0, LockFlag.ONFAULT), "mlock2", _LOCKING),
    Feature("mlockall", "locking", "2.4", _locks_everything, "mlockall", _LOCKING, True),
)

FEATURES = _MAPPING + _ADVISING + _LOCKS
