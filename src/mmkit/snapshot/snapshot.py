"""The `Snapshot` of a region: pages as they were before somebody wrote to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from mmkit._native.calls import PAGE_SIZE
from mmkit._native.snapshot import SnapshotHandle
from mmkit.elements import elements
from mmkit.wording import size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

__all__ = ["Snapshot"]


class Snapshot(SnapshotHandle):
    """A region as it was when `Region.snapshot` was called.

    The region is written to as ever, by anybody in the process: its own methods, views, numpy, C code. The
    first write to each page costs a signal and a copy of the page; reading costs nothing.

    System calls that write to memory are the exception. They get no signal: ``file.readinto(region)`` into a
    page that nobody has written yet fails with ``EFAULT`` (Bad address). ``region.populate(write=True)`` over
    the range first: its pages are kept then, as if they were written to.

    While it lives, the region cannot be closed, made shorter, moved, discarded, punched, guarded or sealed. A
    forked child has the snapshot as well, and both go on by themselves. It is released at the end of a
    ``with`` block.
    """

    __slots__ = ()

    def read(self, offset: int = 0, n: int | None = None) -> bytes:
        """Return bytes as they were.

        Parameters
        ----------
        offset
            Bytes from the start of the region.
        n
            How many; None reaches to the end.

        Raises
        ------
        ValueError
            The range is not inside the snapshot.
        MemoryFault
            A page that nobody wrote to cannot be read now: see `Region.protect`.
        ClosedError
            The snapshot was released.
        """
        count = len(self) - offset if n is None else n
        if offset < 0 or count < 0 or offset + count > len(self):
            raise ValueError(
                f"{count} bytes at offset {offset} are not inside the snapshot, which has {len(self)} bytes"
            )
        return self._read(offset, count)

    def array(
        self, dtype: DTypeLike, shape: int | tuple[int, ...] | None = None, offset: int = 0
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Return a numpy array of what was there: a copy, read-only.

        Parameters
        ----------
        dtype, shape, offset
            As for `Region.array`.

        Raises
        ------
        ValueError
            It does not fit.
        ClosedError
            The snapshot was released.
        """
        kind, extents, length = elements("Snapshot.array", len(self), dtype, shape, offset)
        import numpy as np

        return np.frombuffer(self.read(offset, length), dtype=kind).reshape(extents)

    @property
    def dirty_pages(self) -> int:
        """How many pages were written to since it was taken: each takes a page of memory."""
        return sum(-(-length // PAGE_SIZE) for _, length in self.dirty_ranges())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.release()

    def __repr__(self) -> str:
        if self.released:
            return "<Snapshot released>"
        pages = self.dirty_pages
        return f"<Snapshot of {size(len(self))}, {pages} {'page' if pages == 1 else 'pages'} written since>"
