"""Features of files in memory and of shared memory."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmkit._native import calls, ipc
from mmkit.features.feature import Feature, memory, memory_file
from mmkit.flags import IpcFlag, MapFlag, MemfdFlag, Seal, ShmCommand

__all__ = ["FEATURES", "probe_memfd_flag"]

_PAGE = calls.PAGE_SIZE
# linux/fcntl.h
_F_ADD_SEALS = 1033
_SHARED_MEMORY = Path("/dev/shm")


def probe_memfd_flag(flag: MemfdFlag) -> None:
    """Ask whether memfd_create(2) takes a flag."""
    with memory_file(flag, 0):
        pass


def _maps_secretly() -> None:
    fd = calls.memfd_secret()
    try:
        os.ftruncate(fd, _PAGE)
        with memory(flags=MapFlag.SHARED, fd=fd):
            pass
    finally:
        os.close(fd)


def _seals(seal: Seal) -> None:
    with memory_file(MemfdFlag.CLOEXEC | MemfdFlag.ALLOW_SEALING) as fd:
        fcntl.fcntl(fd, _F_ADD_SEALS, seal)


def _attributes_of_memfd() -> None:
    with memory_file() as fd:
        os.setxattr(fd, "user.probe", b"1")


def _attributes_of_shared_memory() -> None:
    fd = os.open(_SHARED_MEMORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.setxattr(fd, "user.probe", b"1")
    finally:
        os.close(fd)


def _counts_cache() -> None:
    with memory_file() as fd:
        calls.cachestat(fd, 0, _PAGE)


def _shares_by_name() -> None:
    name = f"/mmkit-probe-{os.getpid()}-{secrets.token_hex(8)}"
    fd = ipc.shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        ipc.shm_unlink(name)
        os.ftruncate(fd, _PAGE)
        with memory(flags=MapFlag.SHARED, fd=fd):
            pass
    finally:
        os.close(fd)


def _with_segment(use: Callable[[int], None]) -> None:
    """Make a System V segment, attach it, and mark it for removal, so that it goes whatever happens."""
    segment = ipc.shmget(0, _PAGE, 0o600 | IpcFlag.CREAT)
    try:
        address = ipc.shmat(segment)
    finally:
        ipc.shmctl(segment, ShmCommand.RMID)
    try:
        use(segment)
    finally:
        ipc.shmdt(address)


def _walks_segments(_segment: int) -> None:
    highest = ipc.shmctl(0, ShmCommand.SHM_INFO).highest_index
    for index in range(highest + 1):
        try:
            ipc.shmctl(index, ShmCommand.SHM_STAT_ANY)
        except OSError as error:
            # EINVAL: nothing at this index, or no such command.
            if error.errno != errno.EINVAL:
                raise
        else:
            return
    raise OSError(errno.EINVAL, "shmctl")


_NO_EXEC = {
    errno.EACCES: "sysctl vm.memfd_noexec=0 or 1: at 2 a memory file must be made with MFD_NOEXEC_SEAL"
}
_XATTR = {
    errno.EOPNOTSUPP: "Linux 6.6 or later with CONFIG_TMPFS_XATTR",
    errno.ENOENT: "mount a tmpfs on /dev/shm",
    errno.EACCES: "make /dev/shm writable for everybody: mode 1777",
}
_SHM = {
    errno.ENOENT: "mount a tmpfs on /dev/shm",
    errno.EACCES: "make /dev/shm writable for everybody: mode 1777",
    errno.ENOSPC: "enlarge /dev/shm: mount -o remount,size=SIZE, docker run --shm-size",
    errno.EROFS: "mount a writable tmpfs on /dev/shm",
}
_SYSTEM_V = {
    errno.ENOSPC: "raise kernel.shmmni or kernel.shmall, or remove segments (`ipcs -m`, `ipcrm`)",
    errno.ENOSYS: "a kernel with CONFIG_SYSVIPC; or a seccomp profile refuses it",
}
_GROUP = "files in memory"


def _memfd(name: str, since: str, flag: MemfdFlag, **changes: str) -> Feature:
    by_errno = {getattr(errno, code): text for code, text in changes.items()}
    return Feature(name, _GROUP, since, partial(probe_memfd_flag, flag), flag, by_errno | _NO_EXEC)


def _seal(name: str, since: str, seal: Seal) -> Feature:
    return Feature(f"F_SEAL_{name}", _GROUP, since, partial(_seals, seal), f"F_SEAL_{name}")


FEATURES = (
    Feature(
        "memfd_create", _GROUP, "3.17", partial(probe_memfd_flag, MemfdFlag.CLOEXEC), "memfd_create", _NO_EXEC
    ),
    _memfd("MFD_ALLOW_SEALING", "3.17", MemfdFlag.ALLOW_SEALING),
    _memfd("MFD_HUGETLB", "4.14", MemfdFlag.HUGETLB, EINVAL="a kernel with CONFIG_HUGETLBFS"),
    _memfd("MFD_NOEXEC_SEAL", "6.3", MemfdFlag.NOEXEC_SEAL),
    _memfd("MFD_EXEC", "6.3", MemfdFlag.EXEC),
    _seal("WRITE", "3.17", Seal.WRITE),
    _seal("FUTURE_WRITE", "5.1", Seal.FUTURE_WRITE),
    _seal("EXEC", "6.3", Seal.EXEC),
    Feature(
        "memfd_secret",
        _GROUP,
        "5.14",
        _maps_secretly,
        "memfd_secret",
        {
            errno.ENOSYS: "boot with secretmem.enable=1 (default since 6.5); or a seccomp profile refuses it",
            errno.EAGAIN: "raise RLIMIT_MEMLOCK (`ulimit -l`): secret pages count as locked",
        },
    ),
    Feature("user xattr on memfd", _GROUP, "6.6", _attributes_of_memfd, "user xattr on memfd", _XATTR),
    Feature(
        "user xattr on /dev/shm",
        _GROUP,
        "6.6",
        _attributes_of_shared_memory,
        "user xattr on /dev/shm",
        _XATTR,
    ),
    Feature("cachestat", _GROUP, "6.5", _counts_cache, "cachestat"),
    Feature("shm_open", "shared memory", "2.4", _shares_by_name, "shm_open", _SHM),
    Feature(
        "shmget",
        "shared memory",
        "2.4",
        partial(_with_segment, lambda _: None),
        "shmget",
        _SYSTEM_V,
    ),
    Feature(
        "SHM_STAT_ANY",
        "shared memory",
        "4.17",
        partial(_with_segment, _walks_segments),
        "SHM_STAT_ANY",
        _SYSTEM_V,
    ),
)
