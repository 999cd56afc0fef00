"""The memory of a process as something to be searched."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmkit import maps
from mmkit.errors import SyscallError
from mmkit.maps import Area, Kind
from mmkit.secret.copies import Unread
from mmkit.secret.target import KERNELS_OWN, Part, Target

__all__ = ["opened_process"]

#: From here on addresses are the kernel's: vsyscall, which is the same in every process, and cannot be read.
_KERNEL_SPACE = 1 << 63


@contextmanager
def opened_process(pid: int | None) -> Iterator[Target]:
    """Open the memory of a process (None: this one).

    Who opens it needs the permission; who reads it then needs none. It stays that of the same process, or is
    empty: a number that is used anew cannot be confused.
    """
    areas = maps.read(pid)
    number = os.getpid() if pid is None else pid
    descriptors: list[int] = []
    try:
        descriptors.append(_opened_memory(number))
        # Without it, everything is read.
        with suppress(OSError):
            descriptors.append(os.open(f"/proc/{number}/pagemap", os.O_RDONLY | os.O_CLOEXEC))
        memory, pagemap = descriptors[0], descriptors[1] if descriptors[1:] else -1
        yield Target(
            memory,
            [_part(area) for area in areas if area.start < _KERNEL_SPACE],
            pagemap,
            number,
            [_unreadable(area) for area in areas if area.start >= _KERNEL_SPACE],
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _part(area: Area) -> Part:
    # What the kernel maps without a file has pages that pagemap does not tell of.
    is_private = not area.inode and not area.shared and area.kind is not Kind.VDSO
    return Part(area.start, area.size, area.start, area, is_private)


def _unreadable(area: Area) -> Unread:
    return Unread(area.start, area.size, area, KERNELS_OWN)


def _opened_memory(pid: int) -> int:
    path = f"/proc/{pid}/mem"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as refused:
        error, hint = refused.errno or errno.EIO, ""
        if error in (errno.ENOENT, errno.ESRCH):
            error, hint = errno.ESRCH, f"There is no process {pid}: it has ended."
        elif error in (errno.EACCES, errno.EPERM):
            error, hint = errno.EACCES, _permission_hint(pid)
        raise SyscallError(error, f"open('{path}')", hint) from None


def _permission_hint(pid: int) -> str:
    if pid == os.getpid():
        return (
            "This process has shielded itself (prctl(2), PR_SET_DUMPABLE): search before it does, or as root "
            "from another one."
        )
    scope = _ptrace_scope()
    hint = "Memory of another process needs what ptrace(2) needs: the same user, or CAP_SYS_PTRACE."
    if scope:
        hint += (
            f"\nkernel.yama.ptrace_scope is {scope}, for which the same user is not enough: search as root, "
            "or have the process allow it (prctl(2), PR_SET_PTRACER)."
        )
    return hint


def _ptrace_scope() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return 0
