"""What stands behind a region: files that are opened to be mapped, and files that live in memory."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from mmkit._native.calls import PAGE_SIZE, memfd_create
from mmkit._native.descriptor import Descriptor
from mmkit.flags import MemfdFlag
from mmkit.hints import failure

__all__ = ["length_in_file", "open_file", "set_size", "sized_memfd"]


def open_file(path_or_fd: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int, mode: str) -> Descriptor:
    """Return a descriptor of our own for a file to be mapped."""
    if isinstance(path_or_fd, int):
        try:
            return Descriptor(fcntl.fcntl, path_or_fd, fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError as error:
            raise failure(-(error.errno or 0), "dup", None, (path_or_fd,)) from None
    if hasattr(path_or_fd, "fileno"):
        raise TypeError(f"give a path or a descriptor, not {path_or_fd!r}: its descriptor is fileno()")
    # NONBLOCK: opening a FIFO must fail at mmap(2), not wait for a writer.
    flags = (os.O_RDWR if mode == "r+" else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        return Descriptor(os.open, path_or_fd, flags)
    except OSError as error:
        raise failure(-(error.errno or 0), "open", None, (os.fsdecode(path_or_fd),)) from None


def set_size(fd: int, length: int) -> None:
    """Set a memory file's size (ftruncate(2))."""
    try:
        os.ftruncate(fd, length)
    except OSError as error:
        raise failure(-(error.errno or 0), "ftruncate", None, (fd, length)) from None


def sized_memfd(name: str, flags: MemfdFlag, length: int, page: int) -> Descriptor:
    """Make a memory file of whole pages of its kind."""
    file = Descriptor(memfd_create, name, flags)
    set_size(file.fileno(), -(-length // page) * page if page != PAGE_SIZE else length)
    return file


def length_in_file(path_or_fd: object, status: os.stat_result, length: int | None, offset: int) -> int:
    """Return how many bytes to map, or say why the file has not that many."""
    name = f"descriptor {path_or_fd}" if isinstance(path_or_fd, int) else repr(path_or_fd)
    if not stat.S_ISREG(status.st_mode):
        if length is None:
            raise ValueError(f"{name} is not a regular file and has no length: give one")
        return length
    if status.st_size == 0:
        raise ValueError(f"{name} {_why_empty(status.st_dev)}")
    left = status.st_size - offset
    if left <= 0 or (length is not None and length > left):
        raise ValueError(
            f"{name} has {status.st_size} bytes: fewer than offset {offset}"
            + ("" if length is None else f" + length {length}")
            + ". Lengthen it with os.truncate() or resize() first"
        )
    return left if length is None else length


#: File systems in which the kernel writes a file while somebody reads it.
_OF_THE_KERNEL = frozenset({"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs"})


def _why_empty(device: int) -> str:
    kind = _file_system(device)
    if kind in _OF_THE_KERNEL:
        return f"has no length and cannot be mapped, as files of {kind} cannot: read() it instead"
    return "is empty: there is nothing to map. Give it a length with os.truncate() first"


def _file_system(device: int) -> str:
    """Return what kind of file system a device number belongs to; empty where that is not known."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            mount, _, rest = line.partition(" - ")
            if mount.split()[2] == wanted:
                return rest.split()[0]
    except (OSError, IndexError):
        pass
    return ""
