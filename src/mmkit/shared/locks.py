"""Locks and conditions between unrelated processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from mmkit._native.lock import CONDITION_SIZE, LOCK_SIZE, ConditionObject, LockObject
from mmkit._native.region import adopt_methods
from mmkit.shared.options import MODE
from mmkit.shared.placing import Meeting

if TYPE_CHECKING:
    from mmkit.region import Region

__all__ = ["Condition", "Lock", "RLock"]

_T = TypeVar("_T")


class _PlainLock(Meeting):
    """What a `Lock` and an `RLock` have in common: how it is found."""

    SIZE: ClassVar[int] = LOCK_SIZE
    _reentrant: ClassVar[bool]

    def __init__(self, name: str, create: bool = False, *, mode: int = MODE) -> None:
        self._settle(name, create, mode, self._reentrant)

    @classmethod
    def at(cls, region: Region, offset: int = 0, *, create: bool = False) -> Self:
        """Place one in a region that processes share, or find it there.

        Parameters
        ----------
        region
            Shared and writable. It cannot be closed while this is open.
        offset
            Bytes from the start of the region, a multiple of 64; `SIZE` bytes are taken.
        create
            Make it, where the first 8 bytes are zero.

        Raises
        ------
        ValueError
            It cannot stand there.
        SyscallError
            ``EEXIST``: one is there. ``EBUSY``: somebody is making one at this moment.
        Error
            What is there is not one of this kind that this process can use: it says why.
        """
        return cls._settle_at(region, offset, create, cls._reentrant)


@adopt_methods
class Lock(_PlainLock, LockObject):
    """A lock between unrelated processes, which survives the death of its holder.

    It is held by one thread of one process, which alone releases it; ``with lock:`` does both. When a holder
    dies, every `acquire` raises `OwnerDied` until `recover`, or until ``with lock.repairing():`` has put
    right what the lock protects. A forked child does not have its parent's locks; execve(2) counts as death.

    Not for processes that distrust each other: who can write the segment can break the lock.

    Parameters
    ----------
    name
        Of the file in /dev/shm, as given; one slash in front may be there.
    create
        Make it. Otherwise it must be there.
    mode
        Permission bits of a new segment, exactly: the umask does not count. Whoever uses it must be able to
        write it.

    Raises
    ------
    SyscallError
        ``EEXIST``, ``ENOENT``, ``EACCES``; ``ENOSPC``: /dev/shm is full.
    Error
        What is there is not a lock of this kind that this process can use: it says why.
    ValueError
        There can be no such name, or something was said that is for creating.

    References
    ----------
    pthread_mutexattr_setrobust(3), futex(7), shm_overview(7)
    """

    _reentrant: ClassVar[bool] = False


@adopt_methods
class RLock(_PlainLock, LockObject):
    """A `Lock` that the thread that has it can take again; it is free when it was released as often.

    Parameters
    ----------
    name, create, mode
        As of a `Lock`, with the same errors.
    """

    _reentrant: ClassVar[bool] = True


@adopt_methods
class Condition(Meeting, ConditionObject):
    """A lock, and waiting for what happens under it, between unrelated processes.

    The lock comes with it, and is an `RLock`: ``with condition:`` holds it. `wait` releases it while it
    waits. Whoever notifies wakes who has waited longest; a notification whose receiver died is passed on.
    When a process dies holding the lock, all who wait are told `OwnerDied`.

    Parameters
    ----------
    name, create, mode
        As of a `Lock`, with the same errors. 256 threads can wait at one time.

    References
    ----------
    futex(2), pthread_mutexattr_setrobust(3)
    """

    SIZE: ClassVar[int] = CONDITION_SIZE

    def __init__(self, name: str, create: bool = False, *, mode: int = MODE) -> None:
        self._settle(name, create, mode)

    @classmethod
    def at(cls, region: Region, offset: int = 0, *, create: bool = False) -> Self:
        """Place one in a region that processes share, or find it there: as `Lock.at`."""
        return cls._settle_at(region, offset, create)

    def wait_for(self, predicate: Callable[[], _T], timeout: float | None = None) -> _T:
        """Wait until something is so.

        Parameters
        ----------
        predicate
            Called with the lock held, at once and after each notification.
        timeout
            How many seconds to wait in all; None waits for ever.

        Returns
        -------
        object
            What the predicate has returned last: false if the time is up.

        Raises
        ------
        OwnerDied, SyscallError, ClosedError
            As `wait`.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify_all(self) -> None:
        """Wake all who wait.

        Raises
        ------
        SyscallError
            ``EPERM``: this thread does not hold the lock.
        ClosedError
            It was closed.
        """
        self.notify(self.SIZE)
