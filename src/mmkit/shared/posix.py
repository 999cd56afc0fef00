"""`SharedMemory`: POSIX shared memory, with a name in /dev/shm or with a descriptor only."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Self, TypeVar

from mmkit._native.calls import PAGE_SIZE
from mmkit.backing import open_file, sized_memfd
from mmkit.errors import Error
from mmkit.features import huge_page_size
from mmkit.flags import MemfdFlag, Prot, Seal
from mmkit.making import Demand, check_length, warn_of_ordinary_pages
from mmkit.region import Region
from mmkit.shared import files
from mmkit.shared.names import check_name, make_name
from mmkit.shared.options import MODE, check_options
from mmkit.shared.ownership import Owned
from mmkit.shared.pickling import announce, reduce_file, send_file
from mmkit.shared.record import write_on
from mmkit.shared.reserve import lengthen
from mmkit.shared.reserve import reserve as take_space

__all__ = ["SharedMemory"]

_READ_WRITE = Prot.READ | Prot.WRITE

T = TypeVar("T")


class SharedMemory(Owned):
    """Memory that unrelated processes share, by a name in /dev/shm; `memfd` makes one without a name.

    Parameters
    ----------
    name
        What it is called in /dev/shm; None makes up a name, for a new one.
    create
        Make it, and own it: `unlink`, or the end of this process's ``with`` block, removes it. Else attach
        what is there, whoever made it: C programs, posix_ipc, :mod:`multiprocessing.shared_memory`.
    size
        Bytes of a new one, exactly: not rounded to pages. When attaching, how many there must be at least.
    mode
        Permission bits of a new one, exactly: the umask does not count.
    readonly
        Attach for reading only.
    reserve
        Take the space of a new one now, so that no later access can find /dev/shm full; else pages are taken
        as they are written to, and an access gets SIGBUS when there are none.
    persist
        A new one is to outlive this process: it has no owner, only `unlink` removes it, and
        `mmkit.shared.reap` leaves it alone.

    Raises
    ------
    SyscallError
        ``ENOENT`` (a `FileNotFoundError`), ``EEXIST`` (a `FileExistsError`), ``EACCES`` (a
        `PermissionError`); ``ENOSPC``: /dev/shm is full; ``EFBIG``: beyond ``RLIMIT_FSIZE``.
    OutOfMemory
        A control group's limit would not hold it (the kernel would kill), or no address space is left.
    ValueError
        No name can be like this, the segment has fewer bytes than `size`, or something was said that is for
        a new one.
    Error
        What has the name is no shared memory, or has no bytes: its maker has not finished it, or died.

    Notes
    -----
    Data begins at offset 0, and there is nothing else. A new segment appears under its name when it is
    complete; if its maker dies before, nothing is left. A segment stays until it is removed: neither the end
    of a process that attached it, nor that of its owner, removes it.

    A forked child has the same memory, and does not own it. Pickled, a segment travels by its name (without
    one by its descriptor, which :mod:`multiprocessing` passes on); with pickle protocol 5 its contents travel
    too, out of band where the pickler asks so, and become a segment of their own where the name is not.

    References
    ----------
    shm_overview(7), shm_open(3), memfd_create(2), posix_fallocate(3)

    Examples
    --------
    >>> import mmkit
    >>> with mmkit.SharedMemory(create=True, size=10) as ours:
    ...     theirs = mmkit.SharedMemory(ours.name)
    ...     ours.buf[:5] = b"hello"
    ...     print(bytes(theirs.buf[:5]))
    ...     theirs.close()
    b'hello'
    """

    __slots__ = ("_identity", "_name", "_readonly")

    _name: str | None
    _identity: files.Identity
    _readonly: bool

    def __init__(
        self,
        name: str | None = None,
        create: bool = False,
        size: int = 0,
        *,
        mode: int = MODE,
        readonly: bool = False,
        reserve: bool = True,
        persist: bool = False,
    ) -> None:
        given = None if name is None else check_name(name)
        check_options(create, f"segment {given!r}", mode=mode, reserve=reserve, persist=persist)
        if create:
            if readonly:
                raise ValueError("a new segment holds zeros: reading only makes sense for one that is there")
            hold = partial(self._hold_new, persist=persist)
            _create(given, size, mode, hold, space=reserve, persist=persist)
        elif given is None:
            raise ValueError("without a name there is nothing to attach: give one, or create=True")
        else:
            if size < 0:
                raise ValueError(f"size must not be negative, as {size} is")
            region = files.attach(given, size, readonly=readonly)
            self._hold(region, region.name, readonly, owned=False)

    @classmethod
    def _ending_with(
        cls,
        name: str | None,
        size: int,
        end: bytes,
        mode: int,
        use: Callable[[Self], T],
        *,
        reserve: bool,
        persist: bool,
    ) -> T:
        """Make a segment whose last bytes are there by the time it has its name, and what is wanted of it."""

        def hold(region: Region) -> T:
            segment = cls.__new__(cls)
            segment._hold_new(region, persist)
            return use(segment)

        given = None if name is None else check_name(name)
        return _create(given, size, mode, hold, space=reserve, persist=persist, end=end)

    def _hold_new(self, region: Region, persist: bool) -> None:
        self._hold(region, region.name, readonly=False, owned=not persist)

    def _hold(self, region: Region, name: str | None, readonly: bool, *, owned: bool) -> None:
        announce(type(self), send_file)
        self._name = name
        self._readonly = readonly
        self._identity = files.identity_of(region._fd)
        self._take(region, owned=owned)

    # ---- without a name -----------------------------------------------------------------------------

    @classmethod
    def memfd(
        cls,
        size: int,
        *,
        name: str = "mmkit",
        seals: Seal = Seal.SHRINK,
        hugepages: Demand = "off",
        reserve: bool = True,
    ) -> Self:
        """Make shared memory that has no name: it goes when nobody holds it any more (``memfd_create(2)``).

        Another process gets it by fork, by its descriptor (`fd`, `from_fd`), or as an argument of
        :class:`multiprocessing.Process` and what goes through its queues and pipes.

        Parameters
        ----------
        size
            Bytes.
        name
            For people: in ``repr``, /proc/PID/fd and `mmkit.shared.segments`.
        seals
            What nobody may do to it any more. Nobody may cut it by default: who maps it cannot get SIGBUS
            through the fault of another.
        hugepages
            Take huge pages of the default size from the system's pool: ``"require"`` raises where there are
            not enough, ``"warn"`` takes ordinary pages and warns.
        reserve
            Take the space now.

        Returns
        -------
        SharedMemory

        Raises
        ------
        OutOfMemory
            No memory, not enough huge pages, or a control group's limit would not hold it.
        SyscallError
            Another refusal of the kernel.

        References
        ----------
        memfd_create(2), fcntl(2) ``F_ADD_SEALS``
        """
        check_length(size, "size")
        if hugepages not in ("require", "warn", "off"):
            raise ValueError(f"hugepages must be 'require', 'warn' or 'off', not {hugepages!r}")
        if hugepages != "off":
            try:
                page = huge_page_size()
                if page is None:
                    raise Error("this kernel has no huge pages")
                return cls._make_memfd(size, name, seals, page, reserve)
            except Error as error:
                warn_of_ordinary_pages(hugepages, error)
        return cls._make_memfd(size, name, seals, PAGE_SIZE, reserve)

    @classmethod
    def _make_memfd(cls, size: int, name: str, seals: Seal, page: int, reserve: bool) -> Self:
        huge = page != PAGE_SIZE
        kind = MemfdFlag.CLOEXEC | MemfdFlag.ALLOW_SEALING | (MemfdFlag.HUGETLB if huge else MemfdFlag(0))
        with sized_memfd(name, kind, size, page) as file:
            fd = file.fileno()
            if reserve:
                take_space(fd, 0, os.fstat(fd).st_size, f"memfd:{name}", huge=huge)
            # Nobody finds a memfd that nobody holds: without attributes nothing needs to stand beside it.
            write_on(fd, persist=False)
            region = Region._of_segment(f"memfd:{name}", size, _READ_WRITE, file=file, page=page)
        segment = cls.__new__(cls)
        segment._hold(region, None, readonly=False, owned=False)
        if seals:
            try:
                region._add_seals(seals)
            except BaseException:
                region.close()
                raise
        return segment

    @classmethod
    def from_fd(cls, fd: int, *, readonly: bool = False) -> Self:
        """Map shared memory by its descriptor, as another process made it.

        Parameters
        ----------
        fd
            Of a memfd, or of what shm_open(3) opened; it stays the caller's, and may be closed.
        readonly
            Map it for reading only.

        Returns
        -------
        SharedMemory
            Without a name.

        Raises
        ------
        SyscallError
            ``EBADF``; ``EACCES``: the descriptor cannot write, and `readonly` is false; ``EPERM``: sealed.
        """
        with open_file(int(fd), "r+") as own:
            length = files.check_file(own.fileno(), f"descriptor {fd}", 0)
            page = _page_of(own.fileno())
            prot = Prot.READ if readonly else _READ_WRITE
            region = Region._of_segment(f"descriptor {fd}", length, prot, file=own, page=page)
        segment = cls.__new__(cls)
        segment._hold(region, None, readonly, owned=False)
        return segment

    # ---- what it is ---------------------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """What it is called in /dev/shm, without a slash; None without a name."""
        return self._name

    @property
    def fd(self) -> int:
        """The descriptor of its file: the segment's own, closed with it.

        Raises
        ------
        ClosedError
            It was closed.
        """
        return self._region.fileno()

    # ---- growing ------------------------------------------------------------------------------------

    def resize(self, size: int | None = None, *, reserve: bool = True) -> None:
        """Make the segment longer, and map what is new.

        It never becomes shorter: who has it mapped would get SIGBUS. Others see the new part when they call
        this without a size.

        Parameters
        ----------
        size
            Bytes; None maps what others have added.
        reserve
            Take the space of the new part now.

        Raises
        ------
        ValueError
            It would become shorter.
        BufferError
            It would have to move under a live view.
        SyscallError
            ``ENOSPC``, ``EFBIG``; ``EPERM``: sealed; ``EBADF``: attached for reading only.
        OutOfMemory
            A control group's limit would not hold it, or no address space is left.
        """
        # Under a view no other thread closes the file, whose number a foreign one would get.
        with self._region.view(0, 0):
            there = os.fstat(self.fd).st_size
            if size is not None:
                if size < there:
                    raise ValueError(
                        f"a segment never becomes shorter, and this one has {there} bytes: whoever has "
                        f"mapped more than {size} would get SIGBUS. resize() without a size maps what others "
                        "have added"
                    )
                if size > there:
                    self._lengthen(there, size, reserve)
                    there = size
        if there != self._size:
            self._region._resize(there)
            self._size = there

    def _lengthen(self, there: int, size: int, reserve: bool) -> None:
        if self._readonly:
            raise Error("resize: the segment is attached for reading only")
        page = self._region._page_size
        huge = page != PAGE_SIZE
        # Behind the end of its file, part of a huge page is none.
        end = -(-size // page) * page if huge else size
        what = self._region.name or ""
        if reserve:
            take_space(self.fd, there, end, what, huge=huge)
        else:
            lengthen(self.fd, end, what)

    # ---- life ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give up this process's mapping; the segment stays. Closing twice does nothing.

        Raises
        ------
        BufferError
            A view is live (a memoryview, a numpy array on one), or an operation is running in another thread;
            nothing has changed.
        """
        self._region.close()

    def unlink(self) -> None:
        """Remove the name: who has the memory keeps it, and nobody else can attach it.

        Before or after `close`, by any process that may. A segment that has taken the name since is left
        alone.

        Raises
        ------
        SyscallError
            ``ENOENT`` (a `FileNotFoundError`): it was removed before. ``EPERM``, ``EACCES``: not allowed.
        Error
            It has no name.

        References
        ----------
        shm_unlink(3)
        """
        if self._name is None:
            raise Error("unlink: this segment has no name; it goes when nobody holds it any more")
        self._owner = None
        files.remove(self._name, self._identity)

    def _remove(self) -> None:
        self.unlink()

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401
        return reduce_file(self, int(protocol))

    def __repr__(self) -> str:
        name = repr(self._name) if self._name else self._region.name
        state = "closed" if self.closed else f"{self.size} bytes" + (", read-only" if self._readonly else "")
        return f"<SharedMemory {name} {state}>"


def _create(
    name: str | None,
    size: int,
    mode: int,
    use: Callable[[Region], T],
    *,
    space: bool,
    persist: bool,
    end: bytes = b"",
) -> T:
    check_length(size, "size")
    files.check_mode(mode)
    while name is None:
        try:
            return files.create(make_name(), size, mode, use, space=space, persist=persist, end=end)
        except FileExistsError:
            continue
    return files.create(name, size, mode, use, space=space, persist=persist, end=end)


def _page_of(fd: int) -> int:
    """Return the size of the pages behind a descriptor."""
    # Other files name their favourite size of a read there.
    is_memory = os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
    return os.statvfs(fd).f_bsize if is_memory else PAGE_SIZE
