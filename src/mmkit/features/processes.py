"""Features of looking at and acting on processes, their faults, their nodes and their threads."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmkit._native import calls, control, ipc, numa
from mmkit.features.feature import Absent, Feature, memory, taking
from mmkit.flags import MembarrierCommand, Policy, UserfaultFlag

__all__ = ["FEATURES"]

_PAGE = calls.PAGE_SIZE
_BAD_FD = -1

# System calls that mmkit's C makes, or libc for it, and that have no function in mmkit.linux.
_NUMBERS = {
    "x86_64": {"futex": 202, "get_robust_list": 274, "rseq": 334},
    "aarch64": {"futex": 98, "get_robust_list": 100, "rseq": 293},
}.get(platform.machine(), {})
_FUTEX_WAITV = 449
_FUTEX_WAKE = 1

# ---- other processes


def _reads_memory() -> None:
    with memory() as address:
        ipc.process_vm_readv(os.getpid(), [(address, 8)])


def _writes_memory() -> None:
    with memory() as address:
        ipc.process_vm_writev(os.getpid(), [bytes(8)], [(address, 8)])


def _names_process() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _reaps_memory() -> None:
    # Who has the call looks for the process first.
    with taking(errno.EBADF):
        ipc.process_mrelease(_BAD_FD)


def _reads(path: str) -> None:
    with Path(path).open("rb", buffering=0) as file:
        file.read(8)


def _query_of_maps() -> None:
    # _IOWR('f', 17, struct procmap_query): who knows the call refuses a structure that says it has size 0.
    with Path("/proc/self/maps").open("rb") as maps, taking(errno.EINVAL):
        fcntl.ioctl(maps, 0xC0686611, bytearray(104))


def _scan_of_pages() -> None:
    # _IOWR('f', 16, struct pm_scan_arg): which pages of the range are present?
    present = 1 << 3
    with Path("/proc/self/pagemap").open("rb") as pagemap, memory() as address:
        request = struct.pack(
            "12Q", 96, 0, address, address + _PAGE, 0, address, 1, 0, 0, present, 0, present
        )
        fcntl.ioctl(pagemap, 0xC0606610, bytearray(request))


def _soft_dirty_bit() -> None:
    # All of a new area counts as written since.
    soft_dirty = 1 << 55
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap, memory() as address:
        entry = os.pread(pagemap.fileno(), 8, address // _PAGE * 8)
    if not struct.unpack("Q", entry)[0] & soft_dirty:
        raise Absent


# ---- faults and barriers


def _catches_faults(flags: int) -> None:
    os.close(control.userfaultfd(os.O_CLOEXEC | flags))


def _catches_with(feature: int) -> None:
    # _IOWR(0xAA, 0x3F, struct uffdio_api): the kernel answers with all it has.
    fd = control.userfaultfd(os.O_CLOEXEC | UserfaultFlag.USER_MODE_ONLY)
    try:
        api = bytearray(struct.pack("3Q", 0xAA, 0, 0))
        fcntl.ioctl(fd, 0xC018AA3F, api)
    finally:
        os.close(fd)
    if not struct.unpack("3Q", api)[1] & feature:
        raise Absent


def _has_barrier(command: MembarrierCommand) -> None:
    if not control.membarrier(MembarrierCommand.QUERY) & command:
        raise Absent


# ---- NUMA


def _keeps_policy() -> None:
    # What is set is what was set.
    policy = numa.get_mempolicy()
    numa.set_mempolicy(policy.mode, policy.nodemask)


def _binds(policy: Policy) -> None:
    # All nodes this process may use.
    nodes = 0 if policy is Policy.DEFAULT else numa.get_mempolicy(0, 4).nodemask
    with memory() as address:
        numa.mbind(address, _PAGE, policy, nodes)


def _finds_nodes() -> None:
    with memory() as address:
        numa.move_pages(0, [address])


# ---- threads that wait


def _call(name: str, *arguments: int) -> int:
    if name not in _NUMBERS:
        raise OSError(errno.ENOSYS, name)
    return control.syscall(_NUMBERS[name], *arguments)


def _wakes() -> None:
    with memory() as address:
        _call("futex", address, _FUTEX_WAKE, 1)


def _waits_for_many() -> None:
    with taking(errno.EINVAL):
        control.syscall(_FUTEX_WAITV, 0, 0, 0, 0, 0)


def _has_robust_list() -> None:
    with memory() as address:
        _call("get_robust_list", 0, address, address + 8)


def _has_restartable_sequences() -> None:
    # libc has registered this thread's; something else than that is refused.
    with taking(errno.EINVAL, errno.EBUSY):
        _call("rseq", 0, 0, 0, 0)


_PTRACE = {
    errno.EPERM: "give CAP_SYS_PTRACE, or loosen the seccomp profile",
    errno.ENOSYS: "a kernel with CONFIG_CROSS_MEMORY_ATTACH",
}
_PROC = {
    errno.ENOENT: "mount /proc",
    errno.EACCES: "a process that changed its user needs prctl(PR_SET_DUMPABLE, 1)",
    errno.EPERM: "a process that changed its user needs prctl(PR_SET_DUMPABLE, 1)",
}
_USERFAULT = {
    errno.EPERM: "CAP_SYS_PTRACE or sysctl vm.unprivileged_userfaultfd=1; UFFD_USER_MODE_ONLY needs neither",
    errno.ENOSYS: "a kernel with CONFIG_USERFAULTFD; or a seccomp profile refuses it",
}
_NUMA = {
    errno.ENOSYS: "a kernel with CONFIG_NUMA; or a seccomp profile refuses it",
    errno.EPERM: "a seccomp profile refuses it: Docker's wants CAP_SYS_NICE",
}

_OTHERS, _FAULTS, _NODES, _WAITING = "processes", "faults and barriers", "NUMA", "threads"


def _uffd(name: str, since: str, bit: int) -> Feature:
    name = f"userfaultfd {name}"
    return Feature(name, _FAULTS, since, partial(_catches_with, 1 << bit), name, _USERFAULT)


def _barrier(command: MembarrierCommand, since: str) -> Feature:
    name = f"membarrier {command.name}"
    return Feature(name, _FAULTS, since, partial(_has_barrier, command), name)


def _named(
    name: str, group: str, since: str, probe: Callable[[], object], changes: dict[int, str] | None = None
) -> Feature:
    return Feature(name, group, since, probe, name, changes or {})


FEATURES = (
    _named("process_vm_readv", _OTHERS, "3.2", _reads_memory, _PTRACE),
    _named("process_vm_writev", _OTHERS, "3.2", _writes_memory, _PTRACE),
    _named("pidfd_open", _OTHERS, "5.3", _names_process),
    _named("process_mrelease", _OTHERS, "5.15", _reaps_memory),
    _named("/proc/PID/maps", _OTHERS, "2.4", partial(_reads, "/proc/self/maps"), _PROC),
    _named("/proc/PID/smaps_rollup", _OTHERS, "4.14", partial(_reads, "/proc/self/smaps_rollup"), _PROC),
    _named("/proc/PID/pagemap", _OTHERS, "2.6.25", partial(_reads, "/proc/self/pagemap"), _PROC),
    _named(
        "PROCMAP_QUERY",
        _OTHERS,
        "6.11",
        _query_of_maps,
        {**_PROC, errno.ENOTTY: "Linux 6.11 or later; maps.find reads maps until then"},
    ),
    _named("PAGEMAP_SCAN", _OTHERS, "6.7", _scan_of_pages, _PROC),
    _named(
        "soft-dirty pages",
        _OTHERS,
        "3.11",
        _soft_dirty_bit,
        {**_PROC, 0: "a kernel with CONFIG_MEM_SOFT_DIRTY (x86-64, not aarch64)"},
    ),
    _named("userfaultfd", _FAULTS, "4.3", partial(_catches_faults, 0), _USERFAULT),
    _named(
        "UFFD_USER_MODE_ONLY",
        _FAULTS,
        "5.11",
        partial(_catches_faults, UserfaultFlag.USER_MODE_ONLY),
        _USERFAULT,
    ),
    _uffd("PAGEFAULT_FLAG_WP", "5.7", 0),
    _uffd("WP_UNPOPULATED", "6.4", 13),
    _uffd("WP_ASYNC", "6.7", 15),
    _uffd("MOVE", "6.8", 16),
    _barrier(MembarrierCommand.GLOBAL, "4.3"),
    _barrier(MembarrierCommand.PRIVATE_EXPEDITED, "4.14"),
    _barrier(MembarrierCommand.PRIVATE_EXPEDITED_RSEQ, "5.10"),
    _named("get_mempolicy", _NODES, "2.6.7", numa.get_mempolicy, _NUMA),
    _named("set_mempolicy", _NODES, "2.6.7", _keeps_policy, _NUMA),
    _named("mbind", _NODES, "2.6.7", partial(_binds, Policy.DEFAULT), _NUMA),
    _named("MPOL_PREFERRED_MANY", _NODES, "5.15", partial(_binds, Policy.PREFERRED_MANY), _NUMA),
    _named("MPOL_WEIGHTED_INTERLEAVE", _NODES, "6.9", partial(_binds, Policy.WEIGHTED_INTERLEAVE), _NUMA),
    _named("move_pages", _NODES, "2.6.18", _finds_nodes, _NUMA),
    _named("futex", _WAITING, "2.6", _wakes),
    _named("futex_waitv", _WAITING, "5.16", _waits_for_many),
    _named(
        "robust futexes", _WAITING, "2.6.17", _has_robust_list, {errno.EPERM: "a seccomp profile refuses it"}
    ),
    _named(
        "rseq",
        _WAITING,
        "4.18",
        _has_restartable_sequences,
        {errno.ENOSYS: "a kernel with CONFIG_RSEQ; or seccomp refuses it"},
    ),
)
