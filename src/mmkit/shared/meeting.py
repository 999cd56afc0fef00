"""Semaphores, events and barriers between unrelated processes."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from mmkit._native.region import adopt_methods
from mmkit._native.semaphore import (
    BARRIER_SIZE,
    EVENT_SIZE,
    SEMAPHORE_SIZE,
    BarrierObject,
    EventObject,
    SemaphoreObject,
)
from mmkit.shared.options import MODE
from mmkit.shared.placing import Meeting

if TYPE_CHECKING:
    from mmkit.region import Region

__all__ = ["Barrier", "Event", "Semaphore"]

_MOST_PERMITS = 2**32 - 1
_MOST_PARTIES = 256


@adopt_methods
class Semaphore(Meeting, SemaphoreObject):
    """A number of permits, between unrelated processes.

    A permit is held by the process that took it, and given back by it; ``with semaphore:`` does both. The
    permits of a process that is gone are free again, at most 50 ms after somebody wants one. With
    ``held=False`` permits are only counted: any process may take one or add one, and what a dead process has
    taken is gone.

    A forked child holds none of its parent's permits. execve(2) keeps them.

    Parameters
    ----------
    name, create, mode
        As of a `Lock`, with the same errors.
    value
        How many permits there are, of a new semaphore: 1 if nothing is said. All are free.
    held
        Whether permits belong to who took them, of a new semaphore, as they do if nothing is said. 256
        processes can hold permits at one time.

    References
    ----------
    sem_overview(7), pidfd_open(2)
    """

    SIZE: ClassVar[int] = SEMAPHORE_SIZE

    def __init__(
        self,
        name: str,
        create: bool = False,
        *,
        value: int | None = None,
        held: bool | None = None,
        mode: int = MODE,
    ) -> None:
        self._settle(name, create, mode, *_permits(value, held), value=value, held=held)

    @classmethod
    def at(
        cls,
        region: Region,
        offset: int = 0,
        *,
        create: bool = False,
        value: int | None = None,
        held: bool | None = None,
    ) -> Self:
        """Place one in a region that processes share, or find it there: as `Lock.at`."""
        return cls._settle_at(region, offset, create, *_permits(value, held), value=value, held=held)


def _permits(value: int | None, held: bool | None) -> tuple[int, bool]:
    value = 1 if value is None else value
    if not 0 <= value <= _MOST_PERMITS:
        raise ValueError(f"value must be between 0 and {_MOST_PERMITS} permits, not {value}")
    return value, held is None or held


class _Closing(Meeting):
    """Closes at the end of a ``with`` block: there is nothing to hold."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@adopt_methods
class Event(_Closing, EventObject):
    """A flag that one process sets and others wait for.

    Nobody owns it, so no death changes it. It closes at the end of a ``with`` block.

    Parameters
    ----------
    name, create, mode
        As of a `Lock`, with the same errors. A new event is not set.

    References
    ----------
    futex(2)
    """

    SIZE: ClassVar[int] = EVENT_SIZE

    def __init__(self, name: str, create: bool = False, *, mode: int = MODE) -> None:
        self._settle(name, create, mode)

    @classmethod
    def at(cls, region: Region, offset: int = 0, *, create: bool = False) -> Self:
        """Place one in a region that processes share, or find it there: as `Lock.at`."""
        return cls._settle_at(region, offset, create)


@adopt_methods
class Barrier(_Closing, BarrierObject):
    """A place where a number of parties wait until all are there. Each thread that waits is a party.

    A party that dies while it waits breaks the barrier: all others get a `BrokenBarrierError`, until `reset`.
    One that dies before it comes is not known: give `wait` a timeout. A ``with`` block closes it at its end.

    Parameters
    ----------
    name, create, mode
        As of a `Lock`, with the same errors.
    parties
        How many must come, 1 to 256, of a new barrier: 2 if nothing is said.

    References
    ----------
    futex(2), pthread_barrier_wait(3)
    """

    SIZE: ClassVar[int] = BARRIER_SIZE

    def __init__(
        self, name: str, create: bool = False, *, parties: int | None = None, mode: int = MODE
    ) -> None:
        self._settle(name, create, mode, _party_count(parties), parties=parties)

    @classmethod
    def at(cls, region: Region, offset: int = 0, *, create: bool = False, parties: int | None = None) -> Self:
        """Place one in a region that processes share, or find it there: as `Lock.at`."""
        return cls._settle_at(region, offset, create, _party_count(parties), parties=parties)


def _party_count(parties: int | None) -> int:
    if parties is None:
        return 2
    if not 1 <= parties <= _MOST_PARTIES:
        raise ValueError(f"parties must be between 1 and {_MOST_PARTIES}, not {parties}")
    return parties
