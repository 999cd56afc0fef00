"""The `Region`: a range of memory that this process made, owns and can name."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import stat
import sys
import warnings
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from mmkit._native.calls import PAGE_SIZE, memfd_secret
from mmkit._native.contents import RegionContents
from mmkit._native.region import Protection, adopt_methods
from mmkit.backing import length_in_file, open_file, set_size, sized_memfd
from mmkit.errors import ClosedError, Error, OutOfMemory, SyscallError
from mmkit.features import huge_page_size
from mmkit.flags import MapFlag, MemfdFlag, Prot, Seal
from mmkit.hints import failure, size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

__all__ = ["PAGE_SIZE", "Region", "regions"]

#: What to do when something asked for cannot be had: fail, go on without it and warn, or do not ask.
Demand = Literal["require", "warn", "off"]
#: How a file is mapped: read-only, read and write, or private copy-on-write.
FileMode = Literal["r", "r+", "c"]

_F_ADD_SEALS = 1033
_READ_WRITE = Prot.READ | Prot.WRITE

# Plain ints: one `|` of IntFlags costs as much as the system call.
_SHARED = int(MapFlag.SHARED)
_PRIVATE = int(MapFlag.PRIVATE)
_ANONYMOUS = int(MapFlag.ANONYMOUS)
_NORESERVE = int(MapFlag.NORESERVE)
_HUGETLB = int(MapFlag.HUGETLB)

# By identity: a dict is copied in one step, where a set of weak references changes under its iterator.
_live: dict[int, weakref.ref[Region]] = {}


def regions() -> list[Region]:
    """Return the regions that are live in this process, by address: what has not been closed."""
    found = [
        region
        for reference in list(_live.values())
        if (region := reference()) is not None and not region.closed
    ]
    return sorted(found, key=lambda region: region._range)


def _huge_page_size() -> int:
    page = huge_page_size()
    if page is None:
        raise Error("this kernel has no huge pages: /proc/meminfo does not give a Hugepagesize")
    return page


def _check_length(length: int) -> None:
    if not hasattr(length, "__index__"):
        raise TypeError(f"length must be an int, not {length!r}; a file's mode is given by name: mode='r+'")
    if length <= 0:
        raise ValueError(f"a region needs at least one byte, not {length}")
    if length > sys.maxsize:
        raise OutOfMemory(f"{size(length)} are more than any address space has")


def _check_demand(argument: str, demand: str) -> None:
    if demand not in ("require", "warn", "off"):
        raise ValueError(f"{argument} must be 'require', 'warn' or 'off', not {demand!r}")


def _warn_of_ordinary_pages(hugepages: Demand, error: Error) -> None:
    """Say that huge pages could not be had, or raise why if they must be."""
    if hugepages == "require":
        raise error
    warnings.warn(f"ordinary pages instead of huge ones: {error}", RuntimeWarning, stacklevel=3)


@adopt_methods
class Region(RegionContents):
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

    __slots__ = ("_backing", "_name", "_resizable")

    _backing: str
    _name: str | None
    _resizable: bool

    def __init__(self) -> None:
        raise TypeError("a Region is made by Region.anonymous(), Region.file() or Region.memfd()")

    @classmethod
    def _make(cls, backing: str, name: str | None, length: int, prot: int, flags: int, **how: Any) -> Self:  # noqa: ANN401
        region = cls.__new__(cls)
        region._backing = backing
        region._name = name
        region._resizable = True
        region._map(length, int(prot), int(flags), **how)
        key = id(region)
        _live[key] = weakref.ref(region, lambda _: _live.pop(key, None))
        return region

    @classmethod
    def anonymous(
        cls,
        length: int,
        *,
        prot: Prot = _READ_WRITE,
        shared: bool = False,
        hugepages: Demand = "off",
        populate: bool = False,
        lock: Demand = "off",
        noreserve: bool = False,
        guard: bool = False,
        name: str | None = None,
        reserve: int = 0,
    ) -> Self:
        """Make a region of zeros that no file stands behind (``mmap(2)``, ``MAP_ANONYMOUS``).

        Parameters
        ----------
        length
            Bytes, at least one.
        prot
            What may be done with it.
        shared
            Forked children see the same memory; else each has its own copy.
        hugepages
            Take huge pages of the default size from the system's pool (``MAP_HUGETLB``): ``"require"``
            raises where there are not enough, ``"warn"`` takes ordinary pages and warns.
        populate
            Bring all pages in now, so that no later access can find memory short.
        lock
            Keep it in RAM: ``"require"`` raises where that is refused, ``"warn"`` goes on and warns.
        noreserve
            Do not count it against the commit limit (``MAP_NORESERVE``): memory is found, or not, on access.
        guard
            Put a page without access before and after it, so that overruns fault.
        name
            For people: in ``repr`` and, where the kernel can, in /proc/PID/maps.
        reserve
            Bytes of address space to hold for it, so that it can grow in place under live views.

        Returns
        -------
        Region

        Raises
        ------
        OutOfMemory
            No memory, no address space, or not enough huge pages.
        SyscallError
            Another refusal of the kernel, or of `lock` or `populate`; nothing stays mapped.

        References
        ----------
        mmap(2), POSIX.1-2024
        """
        _check_length(length)
        _check_demand("hugepages", hugepages)
        _check_demand("lock", lock)
        kernel_name = b"" if name is None else b"mmkit:" + os.fsencode(name)
        if b"\0" in kernel_name:
            raise ValueError("name must not contain a NUL byte")
        if reserve and reserve < length:
            raise ValueError(f"reserve ({reserve}) is the address space to hold: at least length ({length})")
        make = cls._make_growing_shared if shared and reserve else cls._make_anonymous
        flags = (_SHARED if shared else _PRIVATE) | (_NORESERVE if noreserve else 0)
        region = None
        if hugepages != "off":
            try:
                region = make(name, length, prot, flags | _HUGETLB, _huge_page_size(), reserve, guard)
            except Error as error:
                _warn_of_ordinary_pages(hugepages, error)
        if region is None:
            region = make(name, length, prot, flags, PAGE_SIZE, reserve, guard)
        if kernel_name:
            region._name_for_kernel(kernel_name)
        if populate or lock != "off":
            region._prepare(populate, lock, prot)
        return region

    @classmethod
    def _make_anonymous(
        cls, name: str | None, length: int, prot: int, flags: int, page: int, reserve: int, guard: bool
    ) -> Self:
        backing = "shared" if flags & _SHARED else "anonymous"
        edge = page if guard else 0
        return cls._make(
            backing, name, length, prot, flags | _ANONYMOUS, reserve=reserve, guard=edge, granule=page
        )

    @classmethod
    def _make_growing_shared(
        cls, name: str | None, length: int, prot: int, flags: int, page: int, reserve: int, guard: bool
    ) -> Self:
        # It needs a file: mremap(2) of plain shared memory "succeeds", and its new part gets SIGBUS.
        edge = page if guard else 0
        huge = MemfdFlag.HUGETLB if flags & _HUGETLB else MemfdFlag(0)
        with sized_memfd(name or "mmkit", MemfdFlag.CLOEXEC | huge, length, page) as fd:
            return cls._make(
                "shared", name, length, prot, flags, fd=fd, reserve=reserve, guard=edge, granule=page
            )

    def _prepare(self, populate: bool, lock: str, prot: Prot) -> None:
        try:
            if populate:
                self.populate(write=Prot.WRITE in Prot(prot))
            if lock != "off":
                self._lock_or_warn(lock)
        except BaseException:
            self.close()
            raise

    def _lock_or_warn(self, lock: str) -> None:
        try:
            self.lock()
        except SyscallError as error:
            if lock == "require":
                raise
            warnings.warn(f"the region is not locked into RAM: {error}", RuntimeWarning, stacklevel=4)

    @classmethod
    def file(
        cls,
        path_or_fd: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int,
        length: int | None = None,
        offset: int = 0,
        *,
        mode: FileMode = "r",
    ) -> Self:
        """Map part of a file (``mmap(2)``).

        Parameters
        ----------
        path_or_fd
            A path, or an open descriptor (the region keeps a duplicate of its own).
        length
            Bytes; None reaches to the end of the file.
        offset
            Where in the file to start, in bytes; any number.
        mode
            ``"r"`` read only; ``"r+"`` read and write; ``"c"`` read and write a private copy, which never
            reaches the file.

        Returns
        -------
        Region

        Raises
        ------
        ValueError
            The file is empty there, or shorter than asked.
        SyscallError
            The file cannot be opened (`FileNotFoundError`, `PermissionError` …) or mapped.

        References
        ----------
        mmap(2), POSIX.1-2024
        """
        if mode not in ("r", "r+", "c"):
            raise ValueError(f"mode must be 'r', 'r+' or 'c', not {mode!r}")
        if length is not None:
            _check_length(length)
        if offset < 0:
            raise ValueError(f"offset must not be negative, as {offset} is")
        fd = open_file(path_or_fd, mode)
        try:
            status = os.fstat(fd)
            length = length_in_file(path_or_fd, status, length, offset)
            prot = Prot.READ if mode == "r" else _READ_WRITE
            flags = _PRIVATE if mode == "c" else _SHARED
            name = None if isinstance(path_or_fd, int) else os.fsdecode(path_or_fd)
            region = cls._make(
                "file",
                name,
                length,
                prot,
                flags,
                fd=fd,
                offset=offset,
                may_shrink=mode != "c" and stat.S_ISREG(status.st_mode),
            )
        except BaseException:
            os.close(fd)
            raise
        region._resizable = mode == "r+"
        return region

    @classmethod
    def memfd(
        cls,
        length: int,
        *,
        name: str = "mmkit",
        seals: Seal = Seal(0),
        secret: bool = False,
        hugepages: Demand = "off",
    ) -> Self:
        """Make a shared region on a file in memory, to be passed by descriptor (``memfd_create(2)``).

        Parameters
        ----------
        length
            Bytes, at least one.
        name
            For people: in ``repr``, /proc/PID/fd and /proc/PID/maps.
        seals
            What nobody may do to it any more; see `add_seals`.
        secret
            Pages that the kernel itself has not mapped (``memfd_secret(2)``). Such a region has no
            descriptor, no seals and a fixed length, and is locked by nature. While one lives, the machine
            cannot hibernate.
        hugepages
            As for `anonymous`.

        Returns
        -------
        Region

        Raises
        ------
        OutOfMemory
            No memory, no address space, or not enough huge pages.
        SyscallError
            Another refusal of the kernel.

        References
        ----------
        memfd_create(2), memfd_secret(2)
        """
        _check_length(length)
        _check_demand("hugepages", hugepages)
        if secret:
            if seals or hugepages != "off":
                raise ValueError("secret memory has neither seals nor huge pages")
            return cls._make_secret(length, name)
        if hugepages != "off":
            try:
                return cls._make_sealable(length, name, seals, _huge_page_size())
            except Error as error:
                _warn_of_ordinary_pages(hugepages, error)
        return cls._make_sealable(length, name, seals, PAGE_SIZE)

    @classmethod
    def _make_secret(cls, length: int, name: str) -> Self:
        fd = memfd_secret()
        try:
            set_size(fd, length)
            region = cls._make("secret", name, length, _READ_WRITE, _SHARED, fd=fd, always_locked=True)
            # Whoever has the descriptor can map the pages: let nobody have it.
            region._forget_file()
            return region
        finally:
            os.close(fd)

    @classmethod
    def _make_sealable(cls, length: int, name: str, seals: Seal, page: int) -> Self:
        huge = page != PAGE_SIZE
        kind = MemfdFlag.CLOEXEC | MemfdFlag.ALLOW_SEALING | (MemfdFlag.HUGETLB if huge else MemfdFlag(0))
        flags = _SHARED | (_HUGETLB if huge else 0)
        with sized_memfd(name, kind, length, page) as fd:
            region = cls._make(
                "memfd", name, length, _READ_WRITE, flags, fd=fd, granule=page, may_shrink=True
            )
        if seals:
            try:
                region.add_seals(seals)
            except BaseException:
                region.close()
                raise
        return region

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
        try:
            import numpy as np
        except ImportError as error:
            raise ImportError("Region.array needs numpy: pip install 'mmkit[numpy]'") from error

        kind = np.dtype(dtype)
        if not 0 <= offset <= len(self):
            raise ValueError(f"offset {offset} is not inside the region's {len(self)} bytes")
        if shape is None:
            shape = ((len(self) - offset) // kind.itemsize,)
        elif isinstance(shape, int):
            shape = (shape,)
        if any(extent < 0 for extent in shape):
            raise ValueError(f"a shape has no negative extents, as {shape} has")
        count = 1
        for extent in shape:
            count *= extent
        end = offset + count * kind.itemsize
        if end > len(self):
            raise ValueError(
                f"{shape} elements of {kind} at offset {offset} need {end} bytes: the region has {len(self)}"
            )
        return np.frombuffer(self.view(offset, end), dtype=kind).reshape(shape)

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
            As if written to: private pages are allocated or copied, file pages made dirty.
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
        _check_length(n)
        if not self._resizable:
            raise Error("resize: of files, only one mapped with mode='r+' can be resized")
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
        fd = self.fileno()
        try:
            fcntl.fcntl(fd, _F_ADD_SEALS, int(seals))
        except OSError as error:
            raise failure(-(error.errno or 0), "F_ADD_SEALS", None, (fd, seals)) from None
        if Seal.SHRINK in Seal(seals):
            self._keeps_size()

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
        try:
            self.close()
        except BufferError as refusal:
            # The exception under way matters more: it must not be replaced.
            if error is None:
                raise
            error.add_note(f"mmkit: {refusal}")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Region cannot be pickled or copied: a child gets it by fork, another process by the "
            "descriptor of a Region.memfd()"
        )

    def __del__(self) -> None:
        # A file stays open, or memory with a name stays taken: worth a word. Plain memory is just freed.
        if not self.closed and (self._backing in ("file", "memfd") or self._name):
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
