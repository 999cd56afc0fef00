"""The memory of a process as something to be searched."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmkit import maps
from mmkit._native.calls import PAGE_SIZE
from mmkit.errors import SyscallError
from mmkit.maps import Area, Kind
from mmkit.secret.copies import KERNELS_OWN, Unread
from mmkit.secret.target import Part, Target

__all__ = ["opened_process"]

#: From here on addresses are the kernel's: vsyscall, which is the same in every process, and cannot be read.
_KERNEL_SPACE = 1 << 63

_PAST_THE_END = "it is past the end of the file"


@contextmanager
def opened_process(pid: int | None) -> Iterator[Target]:
    """Open the memory of a process (None: this one).

    Who opens it needs the permission; who reads it then needs none. It stays that of the same process, or is
    empty: a number that is used anew cannot be confused.
    """
    areas = maps.read(pid)
    number = os.getpid() if pid is None else pid
    folder = _folder(number)
    descriptors: list[int] = []
    try:
        descriptors.append(_opened_memory(number, folder))
        # Without it, everything is read.
        with suppress(OSError):
            descriptors.append(os.open(f"{folder}/pagemap", os.O_RDONLY | os.O_CLOEXEC))
        memory, pagemap = descriptors[0], descriptors[1] if descriptors[1:] else -1
        parts: list[Part] = []
        skipped: list[Unread] = []
        for area in areas:
            _lay_out(area, folder, parts, skipped)
        yield Target(memory, parts, pagemap, number, skipped)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _folder(pid: int) -> str:
    """Find the way to the memory of a process: where its main thread has ended, through another one."""
    folder = f"/proc/{pid}"
    with suppress(OSError):
        for thread in (pid, *map(int, os.listdir(f"{folder}/task"))):  # noqa: PTH208
            with suppress(OSError):
                if not Path(f"/proc/{thread}/statm").read_text().startswith("0 "):
                    return f"/proc/{thread}"
    return folder


# ---- what is where -----------------------------------------------------------------------------------


def _lay_out(area: Area, folder: str, parts: list[Part], skipped: list[Unread]) -> None:
    if area.start >= _KERNEL_SPACE:
        skipped.append(Unread(area.start, area.size, area, KERNELS_OWN))
        return
    file = _opened_file(area, folder) if area.inode else None
    if file is None:
        # What the kernel maps without a file has pages that pagemap does not tell of.
        is_private = not area.inode and not area.shared and area.kind is not Kind.VDSO
        parts.append(Part(area.start, area.size, area.start, area, is_private))
        return
    try:
        end = _lay_out_file(area, file, parts)
    finally:
        os.close(file)
    if end < area.end:
        skipped.append(Unread(end, area.end - end, area, _PAST_THE_END))


def _opened_file(area: Area, folder: str) -> int | None:
    """Open what an area maps; None if this process may not, or if it is no ordinary file."""
    linked = f"{folder}/map_files/{area.start:x}-{area.end:x}".encode()
    named = f"{folder}/root".encode() + area.path
    # The first is for who has CAP_CHECKPOINT_RESTORE; the other may lead to another file by now.
    for path in (linked, named):
        with suppress(OSError):
            facts = os.stat(path)  # noqa: PTH116 - bytes
            is_it = path == linked or (facts.st_dev, facts.st_ino) == (area.device, area.inode)
            if is_it and stat.S_ISREG(facts.st_mode):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    return None


def _lay_out_file(area: Area, file: int, parts: list[Part]) -> int:
    """Tell what of a file has data from its holes, which a reader would fill: in a tmpfs, each takes a page.

    Of a hole only those pages are read that the process has, written in a private mapping for instance.
    Returns where the file ends.
    """
    shift = area.start - area.offset
    end = max(area.start, min(area.end, shift + _page_up(os.fstat(file).st_size)))
    place = area.start
    while place < end:
        data = min(end, max(place, shift + _page_down(_next_data(file, place - shift, end - shift))))
        hole = min(end, shift + _page_up(_next_hole(file, data - shift, end - shift)))
        if place < data:
            parts.append(Part(place, data - place, place, area, is_private=True))
        if data < hole:
            parts.append(Part(data, hole - data, data, area))
        place = hole
    return end


def _next_data(file: int, offset: int, end: int) -> int:
    try:
        return os.lseek(file, offset, os.SEEK_DATA)
    except OSError as refused:
        return end if refused.errno == errno.ENXIO else offset


def _next_hole(file: int, offset: int, end: int) -> int:
    try:
        return max(os.lseek(file, offset, os.SEEK_HOLE), offset + 1)
    except OSError:
        return end


def _page_down(offset: int) -> int:
    return offset // PAGE_SIZE * PAGE_SIZE


def _page_up(offset: int) -> int:
    return _page_down(offset + PAGE_SIZE - 1)


# ---- the permission ----------------------------------------------------------------------------------


def _opened_memory(pid: int, folder: str) -> int:
    path = f"{folder}/mem"
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
