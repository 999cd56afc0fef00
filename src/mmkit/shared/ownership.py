"""What segments of every kind have in common: a region, an owner, an end."""

from __future__ import annotations

import contextlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from mmkit.leaving import leave
from mmkit.region import Region
from mmkit.shared.record import Record, process_identity

__all__ = ["Owned", "end_block", "owns"]


def owns(owner: Record | None) -> bool:
    """Whether what was made by a process is this process's; None stands for nobody."""
    # The first is true in a child that was forked behind Python's back, too.
    return owner is not None and owner == process_identity() and owner.pid == os.getpid()


def end_block(
    owned: bool, remove: Callable[[], object], close: Callable[[], object], error: BaseException | None
) -> None:
    """End a ``with`` block: the name of what this process owns goes even where a live view refuses the rest.

    Who leaves the block has done with it, and nobody would remove the name later.
    """
    try:
        if owned:
            # Somebody else may have removed it.
            with contextlib.suppress(FileNotFoundError):
                remove()
    finally:
        leave(close, error)


class Owned(ABC):
    """A region that other processes have as well, and that one of them owns: the one that made it.

    Ownership is the process's, not the object's: a forked child has the object and owns nothing.
    """

    __slots__ = ("__weakref__", "_lives_by_views", "_owner", "_region", "_size")

    _region: Region
    _size: int
    _owner: Record | None
    #: Nobody closes it: it goes when the last view does.
    _lives_by_views: bool

    def _take(self, region: Region, *, owned: bool) -> None:
        self._size = len(region)
        self._lives_by_views = False
        self._owner = process_identity() if owned else None
        # Last: with it, it is whole.
        self._region = region

    @property
    def owned(self) -> bool:
        """Whether this process made it, and has not removed it since."""
        return owns(self._owner)

    @property
    def region(self) -> Region:
        """The memory as a `Region`: to protect, lock, advise, flush … it."""
        return self._region

    @property
    def buf(self) -> memoryview:
        """The memory as bytes: a new view each time, and the memory stays as long as any of them.

        Raises
        ------
        ClosedError
            It was closed.
        """
        return self._region.view()

    @property
    def size(self) -> int:
        """Bytes, as this process has it mapped."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether this process has given it up."""
        return self._region.closed

    @abstractmethod
    def _remove(self) -> None: ...

    def __enter__(self) -> Self:
        len(self._region)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        end_block(self.owned, self._remove, self._region.close, error)

    def __del__(self) -> None:
        region = getattr(self, "_region", None)
        if region is None or region.closed or (self._lives_by_views and not self.owned):
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)
