"""The `Region`: a range of memory that this process made, owns and can name."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn, Self

from mmkit._native.calls import PAGE_SIZE
from mmkit._native.pages import Protection
from mmkit._native.region import adopt_methods
from mmkit.elements import elements
from mmkit.errors import ClosedError, Error
from mmkit.flags import Prot, Seal
from mmkit.leaving import leave
from mmkit.making import RegionFactories, check_length, live_regions
from mmkit.snapshot import Snapshot
from mmkit.wording import size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

__all__ = ["PAGE_SIZE", "Region", "regions"]


def regions() -> list[Region]:
    """Return the regions that are live in this process, by address: what has not been closed."""
    found = [region for region in live_regions() if isinstance(region, Region)]
    return sorted(found, key=lambda region: region._range)


@adopt_methods
class Region(RegionFactories):
    """A range of memory, made by `anonymous`, `file` or `memfd`.

    It is a buffer: ``memoryview(region)`` and everything that takes one see its bytes without copying.
    ``region[i]``, ``region[a:b]`` and the file methods (`read`, `write`, `seek`, `find` …) work as those of
    :class:`mmap.mmap`. It closes at the end of a ``with`` block.

    Offsets and lengths are bytes. `protect`, `lock`, `advise` and `flush` widen a range to whole pages;
    `discard` and `guard` shrink it inward; `punch` zeroes its edges. Each returns the offset and length
    that it covered.

    A forked child has its parent's regions: shared ones shared, private ones as copies. What a child
    closes is its own.
    """

    __slots__ = ()

    # ---- what is in it, seen otherwise --------------------------------------------------------------

    def array(
        self, dtype: DTypeLike, shape: int | tuple[int, ...] | None = None, offset: int = 0
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Return a numpy array on the region's memory, without copying.

        Parameters
        ----------
        dtype
            Of the elements.
        shape
            In elements; None takes as many as there are from `offset` on, in one dimension.
        offset
            Bytes from the start of the region.

        Returns
        -------
        numpy.ndarray
            Writable if the memory is. It keeps the region open.

        Raises
        ------
        ValueError
            It does not fit.
        """
        kind, extents, length = elements("Region.array", len(self), dtype, shape, offset)
        import numpy as np

        return np.frombuffer(self.view(offset, offset + length), dtype=kind).reshape(extents)

    def snapshot(self) -> Snapshot:
        """Keep what is in the region now, while it goes on being written to (``mprotect(2)``, ``SIGSEGV``).

        Every page is write-protected; the first write to each is caught, the page kept, and the write let go
        on, whoever writes. It is one instant for all threads.

        Returns
        -------
        Snapshot
            To read from, compare with, go back to; a context manager. One at a time.

        Raises
        ------
        Error
            The region has a snapshot already, or is not private anonymous memory.
        OutOfMemory
            No address space for as much again, or too many areas (``vm.max_map_count``).

        Examples
        --------
        >>> import mmkit
        >>> with mmkit.Region.anonymous(8192) as region, region.snapshot() as before:
        ...     region[:5] = b"hello"
        ...     print(any(before.read(0, 5)), before.dirty_ranges())
        False [(0, 4096)]
        """
        return Snapshot(self)

    # ---- giving pages back, guarding ----------------------------------------------------------------

    def discard(self, offset: int = 0, length: int | None = None, *, force: bool = False) -> tuple[int, int]:
        """Give pages back to the system (``madvise(2)``, ``MADV_DONTNEED``).

        Private anonymous memory reads as zeros then, a private file mapping as the file. What is shared
        keeps its contents: only this process's hold on the pages goes (see `punch`).

        Parameters
        ----------
        offset, length
            Bytes from the start of the region, shrunk to the whole pages inside; ``None`` reaches to its end.
        force
            Go on even if a live view sees the range.

        Returns
        -------
        offset, length
            What was covered, in bytes; a length of 0 if no whole page was inside.

        Raises
        ------
        BufferError
            A live view sees the range, or an operation runs in another thread, and `force` is false.
        SyscallError
            ``EINVAL``: the range holds locked pages.

        References
        ----------
        madvise(2)
        """
        return self._discard(offset, length, force)

    def punch(self, offset: int = 0, length: int | None = None, *, force: bool = False) -> tuple[int, int]:
        """Make a range read as zeros and give back the memory or disk space behind its whole pages.

        Parameters
        ----------
        offset, length
            Bytes from the start of the region, covered exactly: the edges within a page are written with
            zeros. ``None`` reaches to the end.
        force
            Go on even if a live view sees the range.

        Returns
        -------
        offset, length
            What was covered, in bytes.

        Raises
        ------
        BufferError
            A live view sees the range, or an operation runs in another thread, and `force` is false.
        Error
            A private file region: its pages come from the file.
        SyscallError
            ``EBADF``: the file was opened for reading only. ``EOPNOTSUPP``: its file system cannot.
            ``EPERM``: it is sealed. ``EINVAL``: the range holds locked pages.

        References
        ----------
        fallocate(2) ``FALLOC_FL_PUNCH_HOLE``, madvise(2) ``MADV_REMOVE``
        """
        return self._punch(offset, length, force)

    def guard(self, offset: int = 0, length: int | None = None, *, force: bool = False) -> tuple[int, int]:
        """Make any access to a range fault, until `unguard` (``madvise(2)``, ``MADV_GUARD_INSTALL``).

        Private anonymous contents are lost. Any number of guards costs nothing but page-table entries; on
        kernels before 6.13 (for files: 6.15) each is a protection, and costs up to two areas.

        Parameters
        ----------
        offset, length
            Bytes from the start of the region, shrunk to the whole pages inside; ``None`` reaches to its end.
        force
            Go on even if a live view sees the range: its next access is then a crash.

        Returns
        -------
        offset, length
            What was covered, in bytes; a length of 0 if no whole page was inside.

        Raises
        ------
        BufferError
            A live view sees the range, or an operation runs in another thread, and `force` is false.
        SyscallError
            ``EINVAL``: the range holds locked pages.

        References
        ----------
        madvise(2)
        """
        return self._guard(offset, length, force)

    def unguard(self, offset: int = 0, length: int | None = None) -> tuple[int, int]:
        """Take the guards out of a range; its other pages are left alone (``MADV_GUARD_REMOVE``).

        Parameters
        ----------
        offset, length
            As for `guard`.

        Returns
        -------
        offset, length
            What was covered, in bytes.
        """
        return self._unguard(offset, length)

    def protected(
        self, prot: Prot, offset: int = 0, length: int | None = None, *, force: bool = False
    ) -> Protection:
        """Protect part of the region for the length of a ``with`` block.

        Blocks may nest, overlap and end in any order, in several threads: on each page the one entered last
        is in force, and when all have ended, what `protect` set last.

        Parameters
        ----------
        prot, offset, length, force
            As for `protect`.

        Returns
        -------
        Protection
            A context manager; it yields the offset and length covered. Its end raises `BufferError`, and
            leaves the protection in force, when a live view made inside the block would lose access: release
            the view, then call ``release()``.

        Examples
        --------
        >>> import mmkit
        >>> with mmkit.Region.anonymous(8192) as region:
        ...     with region.protected(mmkit.Prot.READ, 0, 100) as covered:
        ...         print(covered)
        (0, 4096)
        """
        return Protection(self, prot, offset, length, force)

    # ---- RAM ----------------------------------------------------------------------------------------

    def populate(self, write: bool = False, offset: int = 0, length: int | None = None) -> tuple[int, int]:
        """Bring pages in now (``madvise(2)``, ``MADV_POPULATE_READ`` or ``_WRITE``, Linux 5.14).

        Parameters
        ----------
        write
            As if written to: private pages are allocated or copied, file pages made dirty; a snapshot keeps
            them, so that system calls may write there.
        offset, length
            Bytes from the start of the region, widened to whole pages; ``None`` reaches to its end.

        Returns
        -------
        offset, length
            What was covered, in bytes, clipped to the region.

        Raises
        ------
        SyscallError
            ``EFAULT``: an access would get a signal: past the end of the file, a guard, or no page to be had.
            ``ENOMEM``: no memory. ``EINVAL``: kernel before 5.14, or `prot` forbids it.

        References
        ----------
        madvise(2)
        """
        return self._populate(offset, length, write)

    def lock(self, offset: int = 0, length: int | None = None) -> tuple[int, int]:
        """Keep pages in RAM (``mlock(2)``). Locks nest: each page stays until it is unlocked as often.

        A forked child does not inherit locks.

        Parameters
        ----------
        offset, length
            Bytes from the start of the region, widened to whole pages; ``None`` reaches to its end.

        Returns
        -------
        offset, length
            What was covered, in bytes, clipped to the region.

        Raises
        ------
        SyscallError
            ``ENOMEM``: beyond ``RLIMIT_MEMLOCK``, or a page that cannot be brought in; ``EPERM``: the
            limit is 0. No page is locked then that was not before.

        See Also
        --------
        locked : the same for the length of a ``with`` block.

        References
        ----------
        mlock(2), POSIX.1-2024
        """
        return self._lock(offset, length)

    def unlock(self, offset: int = 0, length: int | None = None) -> tuple[int, int]:
        """Take one lock off each page of a range; pages that have none are left alone (``munlock(2)``).

        Parameters
        ----------
        offset, length
            As for `lock`.

        Returns
        -------
        offset, length
            What was covered, in bytes, clipped to the region.
        """
        return self._unlock(offset, length)

    @contextlib.contextmanager
    def locked(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int]]:
        """Keep pages in RAM for the length of a ``with`` block.

        Parameters
        ----------
        offset, length
            As for `lock`.

        Yields
        ------
        offset, length
            What is covered, in bytes.
        """
        start, count = self.lock(offset, length)
        try:
            yield start, count
        finally:
            # The region may have been closed or cut since, and its locks with it.
            with contextlib.suppress(ClosedError):
                self.unlock(min(start, len(self)), max(0, min(count, len(self) - start)))

    def resident(self, offset: int = 0, length: int | None = None) -> int:
        """Return how much of the region this process has in RAM, in bytes of whole pages.

        Parameters
        ----------
        offset, length
            Bytes from the start of the region, widened to whole pages.

        Notes
        -----
        Read from the page table (/proc/self/pagemap). mincore(2) answers for the page cache: for a file it
        says "resident" of pages that this process has never touched.
        """
        return self._resident(offset, length)

    def cached(self, offset: int = 0, length: int | None = None) -> int:
        """Return how much of the region the page cache holds, whoever brought it in, in bytes of whole pages.

        0 for private anonymous memory, which has no page cache.

        Parameters
        ----------
        offset, length
            Bytes from the start of the region, widened to whole pages.

        Raises
        ------
        SyscallError
            ``EPERM``: only who could write the file may know.

        References
        ----------
        cachestat(2), mincore(2)
        """
        return self._cached(offset, length)

    # ---- size, seals --------------------------------------------------------------------------------

    def resize(self, n: int) -> None:
        """Make the region `n` bytes long (``mremap(2)``, and ``ftruncate(2)`` for a file).

        It grows in place inside its reservation or into free space behind it, and live views stay valid;
        else its pages move to another address, without copying. New bytes are zeros, or what the file has
        there; they have the protection that the region as a whole was last given, and are neither locked
        nor advised.

        A file that ends within the region ends at its new end; a longer one keeps its size.

        Parameters
        ----------
        n
            Bytes, at least one.

        Raises
        ------
        BufferError
            It would have to move, or be cut, under a live view.
        Error
            It cannot be resized: a file mapped ``"r"`` or ``"c"``, secret memory, growing shared memory made
            without `reserve`, or moving locked pages.
        OutOfMemory
            No memory or address space.
        SyscallError
            The file refused: ``EPERM`` sealed, ``ENOSPC``, ``EFBIG``.

        References
        ----------
        mremap(2), ftruncate(2)
        """
        check_length(n)
        if not self._resizable:
            raise Error(
                "resize: of files, only one mapped with mode='r+' can be resized; of System V memory, none"
            )
        self._resize(n)

    def add_seals(self, seals: Seal) -> None:
        """Forbid growing, shrinking, writing … to everybody, for ever (``fcntl(2)``, ``F_ADD_SEALS``).

        Parameters
        ----------
        seals
            What to forbid. `Seal.WRITE` is refused while a writable shared mapping lives, as this one does:
            `Seal.FUTURE_WRITE` forbids new ones.

        Raises
        ------
        SyscallError
            ``EBUSY``: see above. ``EPERM``: sealed by `Seal.SEAL`.
        UnsupportedOperation
            The region has no descriptor.

        References
        ----------
        fcntl(2), memfd_create(2)
        """
        self.fileno()
        self._add_seals(seals)

    def mseal(self) -> None:
        """Forbid for ever to unmap, move, protect or discard this memory (``mseal(2)``, Linux 6.10).

        It stays mapped until the process ends: `close` only marks it closed.

        Raises
        ------
        SyscallError
            ``ENOSYS``: kernel before 6.10.

        References
        ----------
        mseal(2)
        """
        self._seal()

    def fileno(self) -> int:
        """Return the descriptor of the file behind the region: the region's own, closed with it.

        Raises
        ------
        UnsupportedOperation
            No file stands behind it.
        ClosedError
            The region was closed.
        """
        len(self)
        if self._fd < 0:
            raise io.UnsupportedOperation(f"no file stands behind this region: it is {self._backing} memory")
        return self._fd

    @property
    def name(self) -> str | None:
        """The name it was given, or the path of its file."""
        return self._name

    # ---- life ---------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        len(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        leave(self.close, error)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: a child gets it by fork, another process by "
            "the descriptor of a Region.memfd()"
        )

    def __del__(self) -> None:
        # A file stays open, or memory with a name stays taken: worth a word. Plain memory is just freed, and
        # of a segment the object that holds it tells.
        if self.closed or self._backing == "segment":
            return
        if self._backing in ("file", "memfd") or self._name:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)

    def __repr__(self) -> str:
        name = f" {self._name!r}" if self._name else ""
        if self.closed:
            return f"<Region{name} closed>"
        prot = "".join(
            letter if bit in self.prot else "-" for letter, bit in zip("rwx", Prot(7), strict=True)
        )
        start, end = self._range
        share = size(len(self))
        with contextlib.suppress(OSError):
            share = f"{size(self.resident())} of {share} resident"
        return f"<Region{name} {start:#x}-{end:#x} {prot} {self._backing}, {share}>"
