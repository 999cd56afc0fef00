"""What the running kernel can do, found by asking it.

Version numbers do not tell: distributions backport, build options and boot parameters switch off. Each
probe is a call that changes nothing, because it asks for nothing (a length of 0), asks for something
impossible, or undoes itself. Advice that destroys pages to simulate damage is never tried.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mmkit._native import calls, ipc
from mmkit.errors import SyscallError
from mmkit.flags import Advice, MapFlag, MemfdFlag, Prot

__all__ = ["supports"]

_BAD_FD = -1


def _refusal(probe: Callable[[], object]) -> int:
    """Return the errno with which the kernel refuses a probe; 0 if it does not."""
    try:
        probe()
    except SyscallError as error:
        return error.errno or 0
    return 0


def _is_there(probe: Callable[[], object]) -> bool:
    """Tell whether a call exists and may be made: another refusal is about the probe's arguments."""
    return _refusal(probe) not in (errno.ENOSYS, errno.EPERM)


@contextlib.contextmanager
def _page() -> Iterator[int]:
    address = calls.mmap(0, calls.PAGE_SIZE, Prot.NONE, MapFlag.PRIVATE | MapFlag.ANONYMOUS)
    try:
        yield address
    finally:
        calls.munmap(address, calls.PAGE_SIZE)


def _knows_advice(advice: Advice) -> bool:
    if advice in (Advice.HWPOISON, Advice.SOFT_OFFLINE):
        raise ValueError(f"Advice.{advice.name} is not tried: it takes memory from the machine")
    with _page() as address:
        # The kernel looks at the advice before it finds that the range is empty.
        return _refusal(lambda: calls.madvise(address, 0, advice)) == 0


def _maps_with(flags: MapFlag, length: int = 0) -> bool:
    length = length or calls.PAGE_SIZE
    try:
        address = calls.mmap(0, length, Prot.NONE, flags | MapFlag.ANONYMOUS)
    except SyscallError:
        return False
    calls.munmap(address, length)
    return True


def _knows_fixed_noreplace() -> bool:
    with _page() as address:
        flags = MapFlag.FIXED_NOREPLACE | MapFlag.PRIVATE | MapFlag.ANONYMOUS
        try:
            elsewhere = calls.mmap(address, calls.PAGE_SIZE, Prot.NONE, flags)
        except SyscallError as error:
            return error.errno == errno.EEXIST
        # Before 4.17 the flag was unknown, and the address a hint.
        calls.munmap(elsewhere, calls.PAGE_SIZE)
        return False


def _has_free_huge_page() -> bool:
    size = huge_page_size()
    return size is not None and _maps_with(MapFlag.PRIVATE | MapFlag.HUGETLB, size)


def huge_page_size() -> int | None:
    """Return the default huge page size in bytes; None if the kernel has no huge pages."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) * 1024
    return None


#: Flags that a plain mmap(2) swallows unknown, or that depend on more than the kernel's version.
_MAP_FLAGS: dict[MapFlag, Callable[[], bool]] = {
    MapFlag.SHARED_VALIDATE: lambda: _maps_with(MapFlag.SHARED_VALIDATE),
    MapFlag.DROPPABLE: lambda: _maps_with(MapFlag.DROPPABLE),
    MapFlag.FIXED_NOREPLACE: _knows_fixed_noreplace,
    MapFlag.HUGETLB: _has_free_huge_page,
    # For kernels without an MMU only.
    MapFlag.UNINITIALIZED: lambda: False,
}


def _knows_memfd_flag(flag: MemfdFlag) -> bool:
    try:
        os.close(calls.memfd_create("probe", flag))
    except SyscallError as error:
        return error.errno not in (errno.EINVAL, errno.ENOSYS)
    return True


def _query_of_maps() -> bool:
    # _IOWR('f', 17, struct procmap_query): who knows the call refuses a structure that says it has size 0.
    with Path("/proc/self/maps").open("rb") as maps:
        try:
            fcntl.ioctl(maps, 0xC0686611, bytearray(104))
        except OSError as error:
            return error.errno != errno.ENOTTY
    return True


def _names_anonymous_memory() -> bool:
    with _page() as address:
        return calls.name_anonymous(address, calls.PAGE_SIZE, b"probe")


_NAMED: dict[str, Callable[[], bool]] = {
    "memfd_create": lambda: _knows_memfd_flag(MemfdFlag.CLOEXEC),
    "memfd_secret": lambda: _is_there(lambda: calls.memfd_secret(1)),
    "mseal": lambda: _is_there(lambda: calls.mseal(0, 0)),
    "cachestat": lambda: _is_there(lambda: calls.cachestat(_BAD_FD, 0, 0)),
    "mlock2": lambda: _is_there(lambda: calls.mlock2(0, 0)),
    "process_vm_readv": lambda: _is_there(lambda: ipc.process_vm_readv(os.getpid(), [])),
    "process_vm_writev": lambda: _is_there(lambda: ipc.process_vm_writev(os.getpid(), [], [])),
    "shmget": lambda: _is_there(lambda: ipc.shmget(0, 0)),
    "anonymous VMA names": _names_anonymous_memory,
    "PROCMAP_QUERY": _query_of_maps,
}


@functools.lru_cache(maxsize=None, typed=True)  # Advice(8) == MapFlag(8)
def supports(feature: str | Advice | MapFlag | MemfdFlag) -> bool:
    """Tell whether the running kernel has something, by trying it (once a process).

    Parameters
    ----------
    feature
        An `Advice`, a single `MapFlag` or `MemfdFlag`; or a name: ``"memfd_create"``,
        ``"memfd_secret"``, ``"mseal"``, ``"cachestat"``, ``"mlock2"``, ``"process_vm_readv"``,
        ``"process_vm_writev"``, ``"shmget"``, ``"anonymous VMA names"``, ``"PROCMAP_QUERY"``.

    Returns
    -------
    bool
        ``supports(MapFlag.HUGETLB)`` means that a huge page of the default size was free when first
        asked.

    Raises
    ------
    ValueError
        A feature without a probe.

    Examples
    --------
    >>> import mmkit
    >>> mmkit.supports(mmkit.Advice.WILLNEED)
    True
    """
    if isinstance(feature, Advice):
        return _knows_advice(feature)
    if isinstance(feature, MapFlag) and feature in _MAP_FLAGS:
        return _MAP_FLAGS[feature]()
    if isinstance(feature, MemfdFlag):
        return _knows_memfd_flag(feature)
    if isinstance(feature, str) and feature in _NAMED:
        return _NAMED[feature]()
    raise ValueError(f"there is no probe for {feature!r}; names that have one: {', '.join(sorted(_NAMED))}")
