"""Named segments that hold a lock or the like: made whole or not at all, and mapped once in a process.

A segment is written as a file without a name (O_TMPFILE), and gets its name when it is done. Whoever dies
half-way has made nothing, and whoever finds the name finds a lock.
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mmkit._native.descriptor import Descriptor
from mmkit._native.placed import forget_mapping, publish_mapping
from mmkit.errors import Error
from mmkit.hints import failure
from mmkit.region import Region

__all__ = ["attached_segment", "close_if_unused", "file_name", "identity", "new_segment", "remove_name"]

_DIRECTORY = Path("/dev/shm")

#: By device and inode, what is mapped. Two mappings would be two addresses of one lock, and libc knows a lock
#: that a thread holds by its address.
_mapped: dict[tuple[int, int], weakref.ref[Region]] = {}


def file_name(name: str) -> str:
    """Return the name of the file in /dev/shm, or say why there can be none of that name."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {name!r}")
    file = name.removeprefix("/")
    if not file or file in (".", "..") or "/" in file or "\0" in file or len(os.fsencode(file)) > 255:
        raise ValueError(
            f"{name!r} cannot be the name of a segment: 1 to 255 bytes, without slashes (but one in front) "
            "and NUL bytes, and not '.' or '..'"
        )
    return file


def identity(region: Region) -> tuple[int, int]:
    """Return the device and inode of what stands behind a region."""
    status = os.fstat(region.fileno())
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _refusals(call: str, *arguments: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, Error):
            raise
        raise failure(-(error.errno or 0), call, None, arguments) from None


@contextlib.contextmanager
def new_segment(name: str, size: int, mode: int) -> Iterator[Region]:
    """Make a segment; at the end of the block, if all is well, it gets its name. Nobody stands in it then."""
    if mode & 0o600 != 0o600:
        raise ValueError(f"mode must let the owner read and write, as {mode:#o} does not")
    path = _DIRECTORY / file_name(name)
    with _refusals("open", str(_DIRECTORY), "O_TMPFILE"):
        directory = Descriptor(os.open, _DIRECTORY, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        file = Descriptor(os.open, _DIRECTORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)
    with contextlib.ExitStack() as stack:
        stack.enter_context(directory)
        fd = stack.enter_context(file).fileno()
        with _refusals("posix_fallocate", str(path), size):
            os.posix_fallocate(fd, 0, size)
        region = Region.file(fd, mode="r+")
        stack.callback(region.close)
        yield region
        with _refusals("linkat", str(path)):
            # A descriptor of a directory makes Python call linkat(2), and follow the link.
            os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=directory.fileno(), follow_symlinks=True)


def close_if_unused(region: Region) -> None:
    """Close a segment's region, unless something in this process stands in it."""
    with contextlib.suppress(BufferError):
        region.close()


def attached_segment(name: str, size: int, kind: str) -> Region:
    """Map a segment that others have made, or give the mapping that is there, to take place in it.

    Until a place is taken, another thread, or a signal handler of this one, may close it: then attach again.
    """
    path = _DIRECTORY / file_name(name)
    with _refusals("open", str(path)):
        # NONBLOCK: opening a FIFO must fail later, not wait.
        file = Descriptor(os.open, path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with file:
        fd = file.fileno()
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size < size:
            raise Error(
                f"{path} is not a {kind}: that is a file of {size} bytes, this one has {status.st_size}"
            )
        region = _mapping(fd, (status.st_dev, status.st_ino))
    if len(region) < size:
        raise Error(f"{path} is not a {kind}: this process uses it as something smaller")
    return region


def _mapping(fd: int, key: tuple[int, int]) -> Region:
    """Return this process's one mapping of a file; it is made here if there is none."""
    there = _mapped.get(key)
    region = there() if there is not None else None
    if region is not None and not region.closed:
        return region
    mine = Region.file(fd, mode="r+")
    region = publish_mapping(_mapped, key, weakref.ref(mine, partial(forget_mapping, _mapped, key)))
    if region is not mine:
        mine.close()
    return region


def remove_name(name: str, inode: tuple[int, int]) -> None:
    """Take a segment's name away; who has it mapped keeps it. A name that is another's since stays."""
    path = _DIRECTORY / file_name(name)
    with _refusals("unlink", str(path)):
        status = path.lstat()
        if (status.st_dev, status.st_ino) != inode:
            raise Error(f"{path} is another segment now, made since; it was not removed")
        path.unlink()
