"""What mmkit has put into a segment, told by its magic number: a look from outside, which trusts nothing."""

from __future__ import annotations

import os
import stat
import struct

from mmkit._native.descriptor import Descriptor
from mmkit.shared.description import END_BYTES, ends_an_array
from mmkit.shared.files import Identity
from mmkit.shared.names import DIRECTORY

__all__ = ["look_into"]

#: As core/include/mmkit/channel.h, core/src/pool_internal.h and core/src/heap_shared.c have them.
_MAGICS = {b"mmkchan\n": "channel", b"mmkpool\0": "pool", b"mmk-heap": "heap"}
#: As core/include/mmkit/placed.h has it: magic, version, kind.
_PLACED = struct.Struct("=8sHH")
_PLACED_MAGIC = b"mmk-sync"
#: As mmk_placed_kind counts them, from 1 on.
_PLACED_KINDS = ("lock", "rlock", "condition", "semaphore", "event", "barrier")


def look_into(path: str, identity: Identity) -> str | None:
    """Tell what is in a file of memory, by its first bytes and its last.

    They are read, not mapped: a hole takes no page, and a file that is cut meanwhile raises no signal. What
    is no regular file, or another one by now, is not opened: to open a FIFO would wait, and some devices act.

    Parameters
    ----------
    path
        In /dev/shm, or a link in /proc that leads to the file.
    identity
        Which file it must be.

    Returns
    -------
    str or None
        ``"lock"``, ``"channel"`` …; "" for what bears no mark of mmkit's; None if it cannot be read.
    """
    # In /dev/shm anybody can put a symbolic link, which could lead into a file system that never answers.
    how = os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if path.startswith(DIRECTORY) else 0)
    try:
        with Descriptor(os.open, path, how) as place:
            status = os.fstat(place.fileno())
            if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != identity:
                return None
            # Under somebody's lease O_NONBLOCK is refused, where it would wait.
            way = f"/proc/self/fd/{place.fileno()}"
            with Descriptor(os.open, way, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) as file:
                fd = file.fileno()
                first = os.pread(fd, _PLACED.size, 0)
                last = os.pread(fd, END_BYTES, max(0, status.st_size - END_BYTES))
    except OSError:
        return None
    # The last bytes first: those of an array must fit its length, while its first are anybody's.
    return "array" if ends_an_array(last, status.st_size) else _kind_of(first)


def _kind_of(first: bytes) -> str:
    if len(first) < _PLACED.size:
        return ""
    magic, _, kind = _PLACED.unpack(first)
    if magic == _PLACED_MAGIC and 1 <= kind <= len(_PLACED_KINDS):
        return _PLACED_KINDS[kind - 1]
    return _MAGICS.get(magic, "")
