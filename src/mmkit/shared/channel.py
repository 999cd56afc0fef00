"""Channels: bounded queues of messages between processes, by name."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from mmkit._native.channel import CAPACITY_MAX, CAPACITY_MIN, ChannelHandle, format_file
from mmkit._native.region import adopt_methods
from mmkit.hints import failure, size
from mmkit.shared.names import DIRECTORY, check_name, path_of

__all__ = ["Channel"]

#: How long a receiver looks before it sleeps, in seconds: several times what a peer needs for an answer.
SPIN = 50e-6

# NONBLOCK: a FIFO of that name must not be waited for.
_ATTACHING = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@adopt_methods
class Channel(ChannelHandle):
    """A bounded queue of messages between processes: many writers, many readers.

    Each message is a run of bytes and goes to one reader. An object becomes a writer by the first message
    it sends and a reader by the first it asks for. Messages of one writer are first delivered in the order
    in which it sent them. A process that is killed at any instant leaves the channel usable: of a writer
    nothing is lost but what it had not committed, and what a reader had taken is delivered again, or gone,
    as `delivery` says.

    Parameters
    ----------
    name
        As it appears in /dev/shm.
    capacity
        Bytes that one writer may have under way, 4096 to 4 GiB; needed when creating. A message may have
        half of it, and counts in units of 64 bytes. The segment has one and a quarter to one and a half of it
        a writer, reserved for the first when the channel is made, for each further one when it sends its
        first message.
    create
        Make the channel, which is complete when its name appears; else use one that exists.
    mode
        Permission bits, when creating; the umask does not apply.
    delivery
        When creating: what becomes of a message whose reader dies, or raises, before it has finished it.
        ``"at-least-once"``: it is delivered again. ``"at-most-once"``: it is gone.
    single
        When creating: one writer and one reader, which is faster.
    spin
        Seconds to look for a message, or for room, before sleeping, at most: where that was in vain it is
        left out. 0 saves processor time.

    Raises
    ------
    ValueError
        The name cannot be one, or `capacity` is missing or out of bounds.
    SyscallError
        ``EEXIST``: the name is taken. ``ENOENT``: no such channel. ``EACCES``: not allowed. ``ENOSPC``:
        /dev/shm is full. ``EFBIG``: beyond RLIMIT_FSIZE.
    CorruptError
        What the name stands for is no channel, or a damaged one.
    Error
        It was made in another PID namespace, or another time namespace.

    References
    ----------
    shm_overview(7), futex(2)
    """

    def __init__(
        self,
        name: str,
        capacity: int | None = None,
        create: bool = False,
        *,
        mode: int = 0o600,
        delivery: Literal["at-least-once", "at-most-once"] = "at-least-once",
        single: bool = False,
        spin: float = SPIN,
    ) -> None:
        self._name = check_name(name)
        self._creator = 0
        if not 0 <= spin <= 1:
            raise ValueError(f"spin has 0 to 1 seconds, not {spin!r}")
        if delivery not in ("at-least-once", "at-most-once"):
            raise ValueError(f"delivery is 'at-least-once' or 'at-most-once', not {delivery!r}")
        if create:
            self._create(
                _check_capacity(capacity), _check_mode(mode), single, delivery == "at-most-once", spin
            )
        elif capacity is not None:
            raise ValueError("capacity belongs to create=True: a channel that exists has one")
        else:
            self._attach(_open(path_of(self._name), _ATTACHING), self._name, spin)
        status = os.fstat(self.fileno())
        self._identity = status.st_dev, status.st_ino

    def _create(self, capacity: int, mode: int, single: bool, at_most_once: bool, spin: float) -> None:
        """Make the whole channel in a file without a name, and name it last: nobody meets half of one."""
        fd = _open(DIRECTORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
        try:
            format_file(fd, capacity, single=single, at_most_once=at_most_once)
            os.fchmod(fd, mode)
        except BaseException:
            os.close(fd)
            raise
        self._attach(fd, self._name, spin)
        try:
            # Only with a directory given does Python call linkat(2), which can follow the link.
            os.link(f"/proc/self/fd/{fd}", path_of(self._name), src_dir_fd=fd, follow_symlinks=True)
        except OSError as error:
            self.close()
            raise failure(-(error.errno or 0), "link", None, (path_of(self._name),)) from None
        self._creator = os.getpid()

    @property
    def name(self) -> str:
        """As it appears in /dev/shm."""
        return self._name

    def unlink(self) -> None:
        """Remove the name: nobody else can open the channel, and who has it keeps it.

        Raises
        ------
        SyscallError
            ``ENOENT``: it is gone already, or stands for something else now, which is left alone.
        """
        self._creator = 0
        path = Path(path_of(self._name))
        try:
            status = path.lstat()
            if (status.st_dev, status.st_ino) != self._identity:
                raise FileNotFoundError(errno.ENOENT, "")
            path.unlink()
        except OSError as error:
            raise failure(-(error.errno or 0), "shm_unlink", None, (self._name,)) from None

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._creator == os.getpid():
            with contextlib.suppress(FileNotFoundError):
                self.unlink()
        self.close()

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)

    def __repr__(self) -> str:
        if self.closed:
            return f"<Channel {self._name!r} closed>"
        return f"<Channel {self._name!r} of {size(self.capacity)}>"


def _check_capacity(capacity: int | None) -> int:
    if capacity is None:
        raise ValueError("create=True needs a capacity, in bytes")
    if not CAPACITY_MIN <= capacity <= CAPACITY_MAX:
        raise ValueError(f"a capacity has {size(CAPACITY_MIN)} to {size(CAPACITY_MAX)}, not {capacity} bytes")
    return capacity


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise failure(-(error.errno or 0), "open", None, (path,)) from None


def _check_mode(mode: int) -> int:
    if mode & ~0o777:
        raise ValueError(f"mode has the nine permission bits: {mode:#o} has more")
    return mode
