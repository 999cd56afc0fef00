"""What limits the memory of this process: resource limits, areas, shared memory."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

from mmkit._native.ipc import shmctl
from mmkit.doctor.fact import UNLIMITED, Fact, fields, kibibytes, number
from mmkit.flags import ShmCommand
from mmkit.hints import count_areas
from mmkit.wording import size

__all__ = ["process_limits", "shared_memory"]

_MIB = 1 << 20
_GIB = 1 << 30


def process_limits(may_lock: bool | None) -> Iterator[Fact]:
    """Tell the limits of this process. `may_lock`: it has CAP_IPC_LOCK, and RLIMIT_MEMLOCK is not asked."""
    status = fields("/proc/self/status")
    yield _locked(kibibytes(status, "VmLck"), may_lock)
    yield _resource(
        "RLIMIT_AS", resource.RLIMIT_AS, kibibytes(status, "VmSize"), "address space of the process",
        "raise it: `ulimit -v unlimited`, LimitAS=infinity; reserved address space counts, used or not",
    )  # fmt: skip
    yield _resource(
        "RLIMIT_DATA", resource.RLIMIT_DATA, kibibytes(status, "VmData"),
        "private writable memory, brk and mmap",
        "raise it: `ulimit -d unlimited`, LimitDATA=infinity",
    )  # fmt: skip
    yield _resource(
        "RLIMIT_STACK", resource.RLIMIT_STACK, kibibytes(status, "VmStk"), "stack of the first thread"
    )
    yield _resource(
        "RLIMIT_FSIZE", resource.RLIMIT_FSIZE, None, "largest file it may write, memory files too",
        "raise it: `ulimit -f unlimited`, LimitFSIZE=infinity",
    )  # fmt: skip
    yield _core()
    yield _open_files()
    yield _processes()
    yield _areas()


def _soft(which: int) -> int | str:
    soft = resource.getrlimit(which)[0]
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _locked(used: int | None, may_lock: bool | None) -> Fact:
    limit, change = _soft(resource.RLIMIT_MEMLOCK), ""
    if may_lock is not True and isinstance(limit, int) and limit < 64 * _MIB:
        change = (
            "locked, secret and registered memory all count: `ulimit -l unlimited`, LimitMEMLOCK=infinity, "
            "docker run --ulimit memlock=-1, or CAP_IPC_LOCK"
        )
    means = "memory it may lock into RAM" + (" (CAP_IPC_LOCK: not asked)" if may_lock else "")
    return Fact("RLIMIT_MEMLOCK", "limits", limit, means, "bytes", used, change)


def _resource(name: str, which: int, used: int | None, means: str, change: str = "") -> Fact:
    limit = _soft(which)
    return Fact(name, "limits", limit, means, "bytes", used, change if isinstance(limit, int) else "")


def _core() -> Fact:
    limit = _soft(resource.RLIMIT_CORE)
    change = "" if limit != 0 else "no core dump is written: `ulimit -c unlimited` to debug a crash"
    return Fact(
        "RLIMIT_CORE",
        "limits",
        limit,
        "largest core dump; DONTDUMP memory is left out",
        "bytes",
        None,
        change,
    )


def _open_files() -> Fact:
    limit, used = _soft(resource.RLIMIT_NOFILE), None
    with contextlib.suppress(OSError):
        # One of them is the listing's own.
        used = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - names, not paths
    few = isinstance(limit, int) and limit < 1024
    change = "raise it: `ulimit -n 65536`, LimitNOFILE=; a memfd or a segment needs one each" if few else ""
    return Fact("RLIMIT_NOFILE", "limits", limit, "open files; each memfd is one", "files", used, change)


def _processes() -> Fact:
    limit = _soft(resource.RLIMIT_NPROC)
    change = ""
    if isinstance(limit, int) and limit < 1024:
        change = "raise it: `ulimit -u 65536`, LimitNPROC=; with CAP_SYS_RESOURCE it is not asked"
    means = "processes and threads of this user"
    return Fact("RLIMIT_NPROC", "limits", limit, means, "processes", None, change)


def _areas() -> Fact:
    maximum, used, change = number("/proc/sys/vm/max_map_count"), None, ""
    with contextlib.suppress(OSError):
        used = count_areas()
    if maximum is not None and (maximum < 65530 or (used or 0) > maximum // 2):
        change = "raise it: sysctl vm.max_map_count=1048576; each change of protection can split an area"
    return Fact("vm.max_map_count", "limits", maximum, "areas a process may have", "areas", used, change)


def shared_memory() -> Iterator[Fact]:
    """Tell what POSIX and System V shared memory may take, and takes."""
    yield _dev_shm()
    page = os.sysconf("SC_PAGE_SIZE")
    shmmax, shmall, shmmni = map(_system_v_limit, ("shmmax", "shmall", "shmmni"))
    few = "raise it: sysctl kernel.{}; docker run --sysctl kernel.{}"
    yield Fact(
        "kernel.shmmax", "shared memory", shmmax, "largest System V segment", "bytes", None,
        few.format("shmmax", "shmmax") if isinstance(shmmax, int) and shmmax < _GIB else "",
    )  # fmt: skip
    used, segments = _segments()
    yield Fact(
        "kernel.shmall", "shared memory", shmall, "all System V segments together, in pages", "pages", used,
        few.format("shmall", "shmall") if isinstance(shmall, int) and shmall < _GIB // page else "",
    )  # fmt: skip
    crowded = isinstance(shmmni, int) and segments is not None and segments > shmmni // 2
    yield Fact(
        "kernel.shmmni", "shared memory", shmmni, "number of System V segments", "segments", segments,
        "remove what nobody uses (`ipcs -m`, `ipcrm`), or sysctl kernel.shmmni" if crowded else "",
    )  # fmt: skip


def _system_v_limit(name: str) -> int | str | None:
    """Read a limit; where nobody has set one the kernel has a number a little below 2**64."""
    value = number(f"/proc/sys/kernel/{name}")
    return UNLIMITED if value is not None and value >= 1 << 63 else value


def _segments() -> tuple[int | None, int | None]:
    try:
        usage = shmctl(0, ShmCommand.SHM_INFO)
    except OSError:
        return None, None
    return usage.shm_tot, usage.used_ids


def _dev_shm() -> Fact:
    means = "POSIX shared memory: size of /dev/shm"
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return Fact(
            "/dev/shm", "shared memory", None, means, "bytes", None, "mount a tmpfs on /dev/shm, mode 1777"
        )
    total, used = found.f_blocks * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize
    change = ""
    if total == 0:
        # Mounted with size=0.
        return Fact("/dev/shm", "shared memory", UNLIMITED, means, "bytes")
    if total < 256 * _MIB:
        change = (
            f"{size(total)} is soon full, and then an access is SIGBUS: docker run --shm-size, remount,size="
        )
    elif used > total * 9 // 10:
        change = "nearly full, and then an access is SIGBUS: remove what nobody uses, or remount,size="
    return Fact("/dev/shm", "shared memory", total, means, "bytes", used, change)
