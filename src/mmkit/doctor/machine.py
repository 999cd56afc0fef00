"""The machine: versions, pages, memory, huge pages, nodes, and policies of the kernel."""

from __future__ import annotations

import os
import platform
import re
import resource
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from mmkit.doctor.fact import Fact, chosen, fields, kibibytes, number, text
from mmkit.wording import size

__all__ = ["huge_pages", "memory", "policies", "versions"]

_THP = Path("/sys/kernel/mm/transparent_hugepage")
_POOLS = Path("/sys/kernel/mm/hugepages")


def versions() -> Iterator[Fact]:
    """Tell what runs here."""
    system = os.uname()
    yield Fact("kernel", "machine", system.release, f"{system.sysname} on {system.machine}")
    yield Fact(
        "libc", "machine", " ".join(platform.libc_ver()).strip() or None, "the C library Python runs on"
    )
    yield Fact("Python", "machine", platform.python_version(), platform.python_implementation())
    yield Fact("mmkit", "machine", _version(), "this library")
    yield Fact("page size", "machine", resource.getpagesize(), "what protections and maps come in", "bytes")
    yield Fact("processors", "machine", os.cpu_count(), "that are online", "processors")
    yield Fact("NUMA nodes", "machine", _nodes(), "and their numbers; with one, policies change nothing")


def _nodes() -> str | None:
    numbers = text("/sys/devices/system/node/online")
    if not numbers:
        return None
    ends = [list(map(int, part.split("-"))) for part in numbers.split(",")]
    return f"{sum(end[-1] - end[0] + 1 for end in ends)} ({numbers})"


def _version() -> str | None:
    try:
        return version("mmkit")
    except (ImportError, OSError):
        # PackageNotFoundError is an ImportError.
        return None


def memory() -> Iterator[Fact]:
    """Tell how much memory there is, and how much may be promised."""
    found = fields("/proc/meminfo")
    total, available = kibibytes(found, "MemTotal"), kibibytes(found, "MemAvailable")
    used = total - available if total is not None and available is not None else None
    yield Fact("RAM", "memory", total, "of the machine", "bytes", used)
    swap, free = kibibytes(found, "SwapTotal"), kibibytes(found, "SwapFree")
    yield Fact(
        "swap", "memory", swap, "where pages go that RAM has no room for", "bytes",
        swap - free if swap is not None and free is not None else None,
        "none: PAGEOUT finds no place for anonymous memory, and nothing leaves RAM that is not a file's"
        if swap == 0 else "",
    )  # fmt: skip
    policy = number("/proc/sys/vm/overcommit_memory")
    words = {0: "0 (guess)", 1: "1 (always)", 2: "2 (never)"}
    yield Fact(
        "vm.overcommit_memory", "memory", None if policy is None else words.get(policy, str(policy)),
        "whether more may be promised than there is", "", None,
        "at 2 large writable mappings fail: reserve with PROT_NONE, or sysctl vm.overcommit_memory=0"
        if policy == 2 else "",
    )  # fmt: skip
    limit, committed = kibibytes(found, "CommitLimit"), kibibytes(found, "Committed_AS")
    counts = "" if policy == 2 else " (asked at policy 2 only)"
    yield Fact("commit limit", "memory", limit, f"what may be promised{counts}", "bytes", committed)


def huge_pages() -> Iterator[Fact]:
    """Tell the pools of huge pages by size, and what transparent huge pages are allowed to do."""
    yield from _pools()
    yield Fact(
        "THP enabled", "huge pages", setting := chosen(_THP / "enabled"),
        "transparent huge pages: for whom", "", None,
        "off: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled" if setting == "never" else "",
    )  # fmt: skip
    yield Fact("THP defrag", "huge pages", chosen(_THP / "defrag"), "whether a fault waits for a huge page")
    yield Fact(
        "THP shmem_enabled", "huge pages", setting := chosen(_THP / "shmem_enabled"),
        "the same for shared memory and memfds", "", None,
        "off for shared memory: echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
        if setting in ("never", "deny") else "",
    )  # fmt: skip
    yield Fact("THP sizes", "huge pages", _sizes_by_setting(), "sizes in KiB, by what each is set to")


def _pools() -> Iterator[Fact]:
    pools = _by_size(_POOLS)
    if not pools:
        yield Fact("huge page pools", "huge pages", None, "none, or /sys is closed here")
    for pool in pools:
        total, free, reserved = (
            number(pool / name) for name in ("nr_hugepages", "free_hugepages", "resv_hugepages")
        )
        used = total - free if total is not None and free is not None else None
        means = "reserved huge pages" + (f"; {reserved} promised" if reserved else "")
        change = f"for MAP_HUGETLB: echo N > {pool}/nr_hugepages" if total == 0 else ""
        yield Fact(f"pool of {size(_pool_size(pool))}", "huge pages", total, means, "pages", used, change)


def _by_size(directory: Path) -> list[Path]:
    """List the directories that a directory has for sizes of pages, the smallest first."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names, to choose among
    except OSError:
        return []
    return sorted((directory / name for name in names if name.startswith("hugepages-")), key=_pool_size)


def _pool_size(pool: Path) -> int:
    return int(re.sub(r"\D", "", pool.name)) * 1024


def _sizes_by_setting() -> str | None:
    settings: dict[str, list[int]] = {}
    for directory in _by_size(_THP):
        if (setting := chosen(directory / "enabled")) is not None:
            settings.setdefault(setting, []).append(_pool_size(directory) // 1024)
    listed = (f"{setting}: {', '.join(map(str, sizes))}" for setting, sizes in sorted(settings.items()))
    return "; ".join(listed) or None


def policies() -> Iterator[Fact]:
    """Tell what the kernel lets processes do to each other and see of addresses."""
    scope = number("/proc/sys/kernel/yama/ptrace_scope")
    words = {0: "0 (own user)", 1: "1 (descendants)", 2: "2 (CAP_SYS_PTRACE)", 3: "3 (nobody)"}
    yield Fact(
        "yama.ptrace_scope", "policies", None if scope is None else words.get(scope, str(scope)),
        "whose memory may be read by process_vm_readv", "", None,
        "to look at others: sysctl kernel.yama.ptrace_scope=0, or CAP_SYS_PTRACE" if scope else "",
    )  # fmt: skip
    aslr = number("/proc/sys/kernel/randomize_va_space")
    words = {0: "0 (off)", 1: "1 (all but brk)", 2: "2 (full)"}
    yield Fact(
        "randomize_va_space", "policies", None if aslr is None else words.get(aslr, str(aslr)),
        "whether addresses differ in each process (ASLR)", "", None,
        "sysctl kernel.randomize_va_space=2" if aslr == 0 else "",
    )  # fmt: skip
    yield Fact(
        "kptr_restrict", "policies", _plain("kernel/kptr_restrict"), "whether kernel addresses are hidden"
    )
    yield Fact(
        "perf_event_paranoid", "policies", _plain("kernel/perf_event_paranoid"), "what may be profiled"
    )
    yield Fact(
        "unprivileged_userfaultfd",
        "policies",
        _plain("vm/unprivileged_userfaultfd"),
        "1: faults in the kernel too",
    )
    yield Fact("memfd_noexec", "policies", _plain("vm/memfd_noexec"), "2: memory files are never executable")
    yield Fact("core_pattern", "policies", text("/proc/sys/kernel/core_pattern"), "where core dumps go")
    yield Fact(
        "mmap_min_addr", "policies", number("/proc/sys/vm/mmap_min_addr"), "lowest address to map", "bytes"
    )


def _plain(path: str) -> str | None:
    value = number(f"/proc/sys/{path}")
    return None if value is None else str(value)
