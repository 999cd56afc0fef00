"""Who made a segment: the record that lets `reap` prove that it was leaked.

The record stands in the extended attribute ``user.mmkit`` of the segment itself. Where there are none (tmpfs
before Linux 6.6, System V memory), and where others than its owner may write it, it stands in a file of its
own in /dev/shm, with `HIDDEN` in front of its name. docs/shared-memory.md draws it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from functools import cache
from typing import Literal, NamedTuple

from mmkit._native.descriptor import Descriptor
from mmkit._native.process import UNKNOWN_BOOT, lives, start_of, this_process
from mmkit.shared.names import RECORD, path_of

__all__ = [
    "Record",
    "drop_beside",
    "make_record",
    "mark",
    "process_identity",
    "read_beside",
    "read_mark",
    "read_on",
    "start_time",
    "write_beside",
    "write_on",
]

ATTRIBUTE = "user.mmkit"
_MAGIC, _VERSION = "mmkit-segment", "1"
#: Longer than any record that this version writes: what is longer is somebody else's.
_MOST = 1024


class Record(NamedTuple):
    """Who made a segment, and what for.

    Attributes
    ----------
    pid, start
        The creating process, and when it began: in clock ticks since boot, as in /proc/PID/stat. Together
        they name one process, where a pid alone is given again.
    boot
        Which boot that was (/proc/sys/kernel/random/boot_id); "unknown" where /proc/sys is hidden.
    pid_namespace, time_namespace, ipc_namespace
        In which namespaces those numbers count: inode numbers of /proc/PID/ns.
    persist
        It is meant to outlive its creator.
    """

    pid: int
    start: int
    boot: str
    pid_namespace: int
    time_namespace: int
    ipc_namespace: int
    persist: bool

    def encode(self) -> bytes:
        """Write it as it is stored: words and numbers in ASCII."""
        fields = " ".join(
            f"{name}={int(value) if name == 'persist' else value}" for name, value in self._asdict().items()
        )
        return f"{_MAGIC} {_VERSION} {fields}".encode("ascii")

    @classmethod
    def decode(cls, text: bytes) -> Record | None:
        """Read what was stored; None if this is not such a record, or one of another version."""
        try:
            magic, version, *words = text.decode("ascii").split(" ")
            if (magic, version) != (_MAGIC, _VERSION):
                return None
            fields = dict(word.split("=", 1) for word in words)
            boot = fields.pop("boot")
            numbers = {name: int(value) for name, value in fields.items()}
            return cls(boot=boot, **numbers | {"persist": bool(numbers["persist"])})  # type: ignore[arg-type]
        except (ValueError, KeyError, TypeError):
            return None

    def creator_lives(self) -> bool | None:
        """Whether the creating process is still there; None if that cannot be known from here."""
        here = process_identity()
        # First: a container may show a boot number of its own.
        if (self.pid_namespace, self.time_namespace) != (here.pid_namespace, here.time_namespace):
            return None
        if self.boot != here.boot:
            return None if UNKNOWN_BOOT in (self.boot, here.boot) else False
        return lives(self.pid, self.start) if self.start else None


def start_time(pid: int) -> float | Literal[False] | None:
    """Return when a process began, in seconds since the epoch; False if it is gone, None if nobody tells."""
    if lives(pid, 0) is False:
        return False
    start = start_of(pid)
    if not start:
        return None
    now = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return now + start / os.sysconf("SC_CLK_TCK")


@cache
def process_identity() -> Record:
    """Return what a record says of this process."""
    start, boot, pids, times = this_process()
    ipc = 0
    with contextlib.suppress(OSError):
        ipc = os.stat("/proc/self/ns/ipc").st_ino
    return Record(os.getpid(), start, boot, pids, times, ipc, persist=False)


def make_record(persist: bool) -> Record:
    """Return the record of what this process makes."""
    return process_identity()._replace(persist=persist)


@cache
def _encoded(persist: bool) -> bytes:
    return make_record(persist).encode()


def _forget() -> None:
    process_identity.cache_clear()
    _encoded.cache_clear()


os.register_at_fork(after_in_child=_forget)


# ---- on the segment ---------------------------------------------------------------------------------

_NO_ATTRIBUTES = (errno.EOPNOTSUPP, errno.ENOSPC, errno.EPERM, errno.ENOSYS)


def write_on(fd: int, persist: bool) -> bool:
    """Write this process's record on a memory file; False if this kernel has no attributes there."""
    try:
        os.setxattr(fd, ATTRIBUTE, _encoded(persist))
    except OSError as error:
        if error.errno not in _NO_ATTRIBUTES:
            raise
        return False
    return True


def read_on(file: int | str) -> Record | None:
    """Read the record of a memory file: None if it has none, or nobody may read it here."""
    try:
        return Record.decode(os.getxattr(file, ATTRIBUTE))
    except OSError:
        return None


# ---- beside it --------------------------------------------------------------------------------------


def _path_beside(kind: str, number: int) -> str:
    return path_of(f"{RECORD}{kind}-{number}")


def write_beside(kind: str, number: int, persist: bool) -> None:
    """Write this process's record of a segment into a file of its own.

    Where that is not possible, the segment is one that nobody can prove anything about.

    Parameters
    ----------
    kind, number
        What names the segment: ``"posix"`` and its inode number, ``"systemv"`` and its identifier.
    persist
        Whether it is meant to outlive the process.
    """
    path = _path_beside(kind, number)
    # What is there is about a segment that had the number before.
    drop_beside(kind, number)
    with contextlib.suppress(OSError):
        how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with Descriptor(os.open, path, how, 0o600) as file:
            os.write(file.fileno(), _encoded(persist))


def read_beside(kind: str, number: int, owner: int) -> Record | None:
    """Read the record of a segment that belongs to a user; what somebody else wrote is no proof."""
    try:
        how = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with Descriptor(os.open, _path_beside(kind, number), how) as file:
            fd = file.fileno()
            return Record.decode(os.read(fd, _MOST)) if os.fstat(fd).st_uid == owner else None
    except OSError:
        return None


def drop_beside(kind: str, number: int) -> None:
    """Remove the record of a segment that is gone, if there is one."""
    path = _path_beside(kind, number)
    # Asking is cheaper than being refused.
    if os.access(path, os.F_OK, follow_symlinks=False):
        with contextlib.suppress(OSError):
            os.unlink(path)


# ---- of a file in /dev/shm ----------------------------------------------------------------------------

#: Who may write a file may write its attributes: that somebody other than its owner did not, the mode says.
_OTHERS_WRITE = 0o022


def mark(fd: int, mode: int, persist: bool) -> None:
    """Write this process's record of a new file that is going to have a mode."""
    if mode & _OTHERS_WRITE or not write_on(fd, persist):
        write_beside("posix", os.fstat(fd).st_ino, persist)


def read_mark(file: int | str, status: os.stat_result) -> Record | None:
    """Read the record of a file, as far as only its owner can have written it."""
    record = None if status.st_mode & _OTHERS_WRITE else read_on(file)
    return record or read_beside("posix", status.st_ino, status.st_uid)
