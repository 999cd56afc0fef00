"""The `Arena`: memory allocated by moving a pointer, and freed all at once."""

from __future__ import annotations

from mmkit._native.arena import ArenaHandle
from mmkit._native.region import adopt_methods
from mmkit.errors import OutOfMemory
from mmkit.leaving import Closing
from mmkit.region import Region
from mmkit.wording import size

__all__ = ["Arena"]

# Address space to hold where nobody says how much: the most of these that there is.
_LIMITS = (16 << 30, 1 << 30, 64 << 20)


@adopt_methods
class Arena(ArenaHandle, Closing):
    """Blocks of any size, allocated one behind the other and never freed alone.

    Parameters
    ----------
    source
        A `Region` to allocate from, from its start and over what was there (but not what stands in this
        region object), which stays open as long as the arena. None: private memory of its own, which grows in
        place as it is needed.
    limit
        The most bytes that memory of its own can have: address space is held for them, memory is not. None:
        16 GiB, or 1 GiB or 64 MiB where the process may not have that much address space (RLIMIT_AS).

    Raises
    ------
    OutOfMemory
        No address space.
    ValueError
        A limit below 1, or one for a region.
    Error
        A heap, a pool or another arena stands in the region.

    Notes
    -----
    For what lives and dies together: allocate through a request, a frame, a parse; `rewind` at its end. That
    gives no memory back: the next round finds it warm. `close` does.

    An arena is one thread's at a time. In a shared region others may look at what was allocated, but one
    allocates.

    Examples
    --------
    >>> import mmkit
    >>> with mmkit.Arena() as arena:
    ...     header = arena.alloc(16, zero=True)
    ...     with arena.mark():
    ...         scratch = arena.alloc(1000)
    ...         print(arena.used)
    ...     print(arena.used)
    1016
    16
    """

    __slots__ = ()

    def __init__(self, source: Region | None = None, *, limit: int | None = None) -> None:
        if limit is not None and source is not None:
            raise ValueError("limit is for memory of the arena's own: a region has its size")
        if limit is not None and not 0 < limit < 1 << 63:
            raise ValueError(f"limit is a number of bytes, at least 1, or None: {limit} is not possible")
        if source is not None or limit is not None:
            self._open(source, limit or 0)
        else:
            self._open_as_large_as_can_be()

    def _open_as_large_as_can_be(self) -> None:
        for limit in _LIMITS[:-1]:
            try:
                return self._open(None, limit)
            except OutOfMemory:
                continue
        return self._open(None, _LIMITS[-1])

    def __repr__(self) -> str:
        if self.closed:
            return "<mmkit.Arena: closed>"
        return f"<mmkit.Arena: {size(self.used)} used of {size(self.capacity)}>"
