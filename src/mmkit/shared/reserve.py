"""Space that is really there: taken at creation, and never more than a control group lets the process have.

A file in memory has pages only where it was written to. Where none is left then, the writer gets SIGBUS; so
space is taken beforehand, by posix_fallocate(3). What that call takes counts as the memory of the process,
and past the limit of its control group it does not fail: the kernel kills. So the limits are looked at first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from mmkit._native.descriptor import Descriptor
from mmkit.errors import SyscallError
from mmkit.hints import failure
from mmkit.wording import size

__all__ = ["check_headroom", "lengthen", "reserve", "write"]

#: A signal ends fallocate(2) on tmpfs, and undoes what it did: in small pieces a timer cannot starve it.
_PIECE = 4 << 20
#: A look at the limits holds for so many seconds, and for so many bytes, but never for more than a 64th of
#: what was left.
_LOOK_SECONDS = 0.1
_LOOK_BYTES = 1 << 20
_ENDLESS = 1 << 62


def reserve(fd: int, start: int, end: int, what: str, *, huge: bool = False) -> None:
    """Take the space of a range of a memory file now; the file reaches to `end` afterwards, at least.

    Parameters
    ----------
    fd
        The file.
    start, end
        Bytes.
    what
        How to call it in an error.
    huge
        It has huge pages: they come from a pool of their own, which no such limit counts.

    Raises
    ------
    SyscallError
        ``ENOSPC``: the file system, or the pool of huge pages, is full. ``EFBIG``: beyond ``RLIMIT_FSIZE``.
    OutOfMemory
        A control group's limit, or the machine's memory, would not hold it.
    """
    if not huge:
        check_headroom(end - start, f"fallocate({what!r}, {size(end - start)})")
    try:
        _check_room(fd, end - start)
        for piece in range(start, end, _PIECE):
            os.posix_fallocate(fd, piece, min(_PIECE, end - piece))
    except OSError as error:
        kind = ("HUGETLB",) if huge else ()
        raise failure(-(error.errno or 0), "fallocate", None, (what, size(end - start), *kind)) from None


def _check_room(fd: int, length: int) -> None:
    """Look whether the file system has that much left: else the first pieces would fill it up for nothing."""
    room = os.fstatvfs(fd)
    # 0 blocks: without a limit.
    if length > _PIECE and room.f_blocks and room.f_bavail * room.f_frsize < length:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def lengthen(fd: int, end: int, what: str) -> None:
    """Have a memory file reach to `end`, at least, with only its last page taken.

    Unlike ftruncate(2) it cannot cut what somebody else has added meanwhile.
    """
    try:
        os.posix_fallocate(fd, end - 1, 1)
    except OSError as error:
        raise failure(-(error.errno or 0), "fallocate", None, (what, size(end))) from None


def write(fd: int, data: bytes, offset: int, what: str) -> None:
    """Write into a memory file, where a store would get SIGBUS if there is no space."""
    try:
        os.pwrite(fd, data, offset)
    except OSError as error:
        raise failure(-(error.errno or 0), "fallocate", None, (what, size(len(data)))) from None


def check_headroom(length: int, call: str) -> None:
    """Refuse what would have the kernel kill somebody; it is a look, and what others take meanwhile counts.

    Parameters
    ----------
    length
        Bytes that are to be taken.
    call
        What would take them, as an error writes it.

    Raises
    ------
    OutOfMemory
        A control group's limit, or the machine's memory, would not hold it.
    """
    if _looked.covers(length):
        return
    least = _ENDLESS
    for group in _groups():
        room = group.room(length)
        if room is not None and room < length:
            raise _too_much(call, f"the control group's limit in {group.limit}", room)
        least = min(least, room or _ENDLESS)
    fields = _fields("/proc/meminfo")
    room = 1024 * (fields.get("MemAvailable", _ENDLESS) + fields.get("SwapFree", 0))
    if room < length:
        raise _too_much(call, "the machine's memory (MemAvailable in /proc/meminfo)", room)
    _looked.at(min(least, room) - length)


class _Look:
    """What the last look found, which holds for a while and for little: looking costs as much as the rest."""

    def __init__(self) -> None:
        self._until = 0.0
        self._budget = 0

    def covers(self, length: int) -> bool:
        if length > self._budget or time.monotonic() > self._until:
            return False
        self._budget -= length
        return True

    def at(self, left: int) -> None:
        self._until = time.monotonic() + _LOOK_SECONDS
        self._budget = min(left // 64, _LOOK_BYTES)

    def forget(self) -> None:
        self._budget = 0


_looked = _Look()
# The child may be put into another control group.
os.register_at_fork(after_in_child=_looked.forget)


def _too_much(call: str, limit: str, room: int) -> SyscallError:
    return SyscallError(
        errno.ENOMEM,
        call,
        f"Not tried: {limit} leaves {size(max(room, 0))}, and beyond it the kernel would kill the process. "
        "Raise the limit, ask for less, or have a segment take space only when it is used: reserve=False.",
    )


def _number(path: str) -> int:
    """Read a file of one number; "max", and what cannot be read, is no limit."""
    try:
        with Descriptor(os.open, path, os.O_RDONLY | os.O_CLOEXEC) as file:
            return int(os.read(file.fileno(), 32))
    except (OSError, ValueError):
        return _ENDLESS


def _fields(path: str) -> dict[str, int]:
    """Read lines of a name and a number."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            name, number = line.split()[:2]
            found[name.rstrip(":")] = int(number)
    return found


class _Group(NamedTuple):
    """The files of a control group that tell of its memory."""

    limit: str
    usage: str
    swap_limit: str
    swap_usage: str
    statistics: str
    prefix: str

    def room(self, length: int) -> int | None:
        """Return how many bytes it has left, at least as far as `length` matters; None without a limit."""
        limit = _number(self.limit)
        if limit >= _ENDLESS:
            return None
        room = limit - _number(self.usage)
        if room >= length:
            return room
        # Before it kills, the kernel drops what it can read again, and swaps.
        fields = _fields(self.statistics)
        room += sum(fields.get(self.prefix + name, 0) for name in ("inactive_file", "active_file"))
        swap = 1024 * _fields("/proc/meminfo").get("SwapFree", 0)
        return room + max(min(swap, _number(self.swap_limit) - _number(self.swap_usage)), 0) if swap else room


def _groups() -> tuple[_Group, ...]:
    try:
        file = Descriptor(os.open, "/proc/self/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ()
    with file:
        return _find_groups(os.read(file.fileno(), 1 << 16))


@lru_cache(maxsize=4)
def _find_groups(membership: bytes) -> tuple[_Group, ...]:
    """Return the groups that limit the process, innermost first, of both versions."""
    found: list[_Group] = []
    for line in os.fsdecode(membership).splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        is_second = hierarchy == "0" and not controllers
        if is_second or "memory" in controllers.split(","):
            for mount, root in _mounts("cgroup2" if is_second else "cgroup"):
                found += [_group(folder, is_second) for folder in _chain(mount, root, path)]
    return tuple(group for group in found if Path(group.limit).exists())


def _mounts(kind: str) -> Iterator[tuple[str, str]]:
    """Yield where control groups are mounted, and which of them is on top there."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
            before, _, after = line.partition(" - ")
            fields = after.split()
            if fields[0] == kind and (kind == "cgroup2" or "memory" in fields[2].split(",")):
                _, _, _, root, mount, *_ = before.split()
                yield _unescaped(mount), _unescaped(root)


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _chain(mount: str, root: str, path: str) -> Iterator[str]:
    """Yield the folders of a group and of all that it is in."""
    inside = path.removeprefix(root) if root != "/" and (path + "/").startswith(root + "/") else path
    parts = [part for part in inside.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        yield "/".join([mount, *parts[:count]])


def _group(folder: str, is_second: bool) -> _Group:
    if is_second:
        names = ("max", "current", "swap.max", "swap.current")
    else:
        names = ("limit_in_bytes", "usage_in_bytes", "memsw.limit_in_bytes", "memsw.usage_in_bytes")
    limit, usage, swap_limit, swap_usage = (f"{folder}/memory.{name}" for name in names)
    statistics = f"{folder}/memory.stat"
    return _Group(limit, usage, swap_limit, swap_usage, statistics, "" if is_second else "total_")
