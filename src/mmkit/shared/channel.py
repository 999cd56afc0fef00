"""Channels: bounded queues of messages between processes, by name."""

from __future__ import annotations

import warnings
from functools import partial
from types import TracebackType
from typing import Literal, NoReturn, Self

from mmkit._native.channel import CAPACITY_MAX, CAPACITY_MIN, ChannelHandle, channel_bytes, format_file
from mmkit._native.descriptor import Descriptor
from mmkit._native.region import adopt_methods
from mmkit.shared import files
from mmkit.shared.names import check_name
from mmkit.shared.options import MODE, check_options
from mmkit.shared.ownership import end_block, owns
from mmkit.shared.record import Record, process_identity
from mmkit.shared.reserve import reserve
from mmkit.wording import size

__all__ = ["Channel"]

#: How long a receiver looks before it sleeps, in seconds: several times what a peer needs for an answer.
SPIN = 50e-6


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
        ``"at-least-once"``, as it is if nothing is said: it is delivered again. ``"at-most-once"``: it is
        gone.
    single
        When creating: one writer and one reader, which is faster.
    spin
        Seconds to look for a message, or for room, before sleeping, at most, and up to 1 ms more for a
        message where the last was a large one; where that was in vain it is left out. 0, not to look at all,
        saves processor time.
    persist
        When creating: it is to outlive this process, with what was sent. It has no owner, only `unlink`
        removes it, and `mmkit.shared.reap` leaves it alone.

    Raises
    ------
    ValueError
        The name cannot be one, `capacity` is missing or out of bounds, or something was said that is for
        creating.
    SyscallError
        ``EEXIST``: the name is taken. ``ENOENT``: no such channel. ``EACCES``: not allowed. ``ENOSPC``:
        /dev/shm is full. ``EFBIG``: beyond RLIMIT_FSIZE.
    OutOfMemory
        A control group's limit would not hold it (the kernel would kill), or no address space is left.
    CorruptError
        What the name stands for is no channel, or a damaged one.
    Error
        It was made in another PID namespace, or another time namespace.

    References
    ----------
    shm_overview(7), futex(2)
    """

    _identity: files.Identity
    _owner: Record | None = None

    def __init__(
        self,
        name: str,
        capacity: int | None = None,
        create: bool = False,
        *,
        mode: int = MODE,
        delivery: Literal["at-least-once", "at-most-once"] | None = None,
        single: bool = False,
        spin: float = SPIN,
        persist: bool = False,
    ) -> None:
        name = check_name(name)
        if not 0 <= spin <= 1:
            raise ValueError(f"spin has 0 to 1 seconds, not {spin!r}")
        if delivery not in (None, "at-least-once", "at-most-once"):
            raise ValueError(f"delivery is 'at-least-once' or 'at-most-once', not {delivery!r}")
        makers = {"capacity": capacity, "mode": mode, "delivery": delivery, "single": single}
        check_options(create, f"channel {name!r}", **makers, persist=persist)
        if not create:
            self._use(name, spin, None, files.open_named(name))
            return
        bytes_ = _check_capacity(capacity)

        def complete(fd: int) -> None:
            reserve(fd, 0, channel_bytes(bytes_), name)
            format_file(fd, bytes_, single=single, at_most_once=delivery == "at-most-once")

        use = partial(self._use, name, spin, None if persist else process_identity())
        files.make(name, files.check_mode(mode), complete, use, persist=persist)

    def _use(self, name: str, spin: float, owner: Record | None, file: Descriptor) -> None:
        identity = files.identity_of(file.fileno())
        self._attach(file, name, spin, reserve)
        self._identity, self._owner = identity, owner

    def unlink(self) -> None:
        """Remove the name: nobody else can open the channel, and who has it keeps it.

        Raises
        ------
        SyscallError
            ``ENOENT``: it is gone already, or stands for something else now, which is left alone.
        """
        self._owner = None
        files.remove(self.name, self._identity)

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end_block(owns(self._owner), self.unlink, self.close, error)

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"channel {self.name!r} cannot be pickled: send its name, and open Channel({self.name!r}) there"
        )

    def __repr__(self) -> str:
        if self.closed:
            return f"<Channel {self.name!r} closed>"
        return f"<Channel {self.name!r} of {size(self.capacity)}>"


def _check_capacity(capacity: int | None) -> int:
    if capacity is None:
        raise ValueError("create=True needs a capacity, in bytes")
    if not CAPACITY_MIN <= capacity <= CAPACITY_MAX:
        raise ValueError(f"a capacity has {size(CAPACITY_MIN)} to {size(CAPACITY_MAX)}, not {capacity} bytes")
    return capacity
