"""How a region is made: the factories of `mmkit.Region`, and what they take."""

from __future__ import annotations

import os
import stat
import sys
import warnings
import weakref
from functools import partial
from typing import Any, Literal, Self

from mmkit._native.calls import PAGE_SIZE, memfd_secret
from mmkit._native.contents import RegionContents
from mmkit._native.descriptor import Descriptor
from mmkit.backing import length_in_file, open_file, set_size, sized_memfd
from mmkit.errors import Error, OutOfMemory, SyscallError
from mmkit.features import huge_page_size
from mmkit.flags import MapFlag, MemfdFlag, Prot, Seal
from mmkit.wording import size

__all__ = [
    "Demand",
    "RegionFactories",
    "check_demand",
    "check_length",
    "live_regions",
    "warn_of_ordinary_pages",
]

#: What to do when something asked for cannot be had: fail, go on without it and warn, or do not ask.
Demand = Literal["require", "warn", "off"]
#: How a file is mapped: read-only, read and write, or private copy-on-write.
FileMode = Literal["r", "r+", "c"]

_READ_WRITE = Prot.READ | Prot.WRITE

# Plain ints: one `|` of IntFlags costs as much as the system call.
_SHARED = int(MapFlag.SHARED)
_PRIVATE = int(MapFlag.PRIVATE)
_ANONYMOUS = int(MapFlag.ANONYMOUS)
_NORESERVE = int(MapFlag.NORESERVE)
_HUGETLB = int(MapFlag.HUGETLB)

# By identity: a dict is copied in one step, where a set of weak references changes under its iterator.
_live: dict[int, weakref.ref[RegionFactories]] = {}


def live_regions() -> list[RegionFactories]:
    """Return what was made and not closed, in no order."""
    found = (reference() for reference in list(_live.values()))
    return [region for region in found if region is not None and not region.closed]


def _huge_page_size() -> int:
    page = huge_page_size()
    if page is None:
        raise Error("this kernel has no huge pages: /proc/meminfo does not give a Hugepagesize")
    return page


def check_length(length: int, argument: str = "length") -> None:
    """Refuse what cannot be the length of a region; `argument` is what its caller calls it."""
    if not hasattr(length, "__index__"):
        mode = "; a file's mode is given by name: mode='r+'" if argument == "length" else ""
        raise TypeError(f"{argument} must be an int, not {length!r}{mode}")
    if length <= 0:
        raise ValueError(f"{argument} must be at least one byte, not {length}")
    if length > sys.maxsize:
        raise OutOfMemory(f"{size(length)} are more than any address space has")


def check_demand(argument: str, demand: str) -> None:
    """Refuse what is no `Demand`."""
    if demand not in ("require", "warn", "off"):
        raise ValueError(f"{argument} must be 'require', 'warn' or 'off', not {demand!r}")


def warn_of_ordinary_pages(hugepages: Demand, error: Error) -> None:
    """Say that huge pages could not be had, or raise why if they must be."""
    if hugepages == "require":
        raise error
    warnings.warn(f"ordinary pages instead of huge ones: {error}", RuntimeWarning, stacklevel=3)


class RegionFactories(RegionContents):
    """The part of `mmkit.Region` that makes one."""

    __slots__ = ("_backing", "_name", "_resizable")

    _backing: str
    _name: str | None
    _resizable: bool

    def __init__(self) -> None:
        raise TypeError("a Region is made by Region.anonymous(), Region.file() or Region.memfd()")

    @classmethod
    def _make(cls, backing: str, name: str | None, length: int, prot: int, flags: int, **how: Any) -> Self:  # noqa: ANN401
        region = cls.__new__(cls)
        region._begin(backing, name, length, prot, flags, **how)
        return region

    def _begin(self, backing: str, name: str | None, length: int, prot: int, flags: int, **how: Any) -> None:  # noqa: ANN401
        self._backing = backing
        self._name = name
        self._resizable = True
        # In C throughout: an exception that a signal handler raised in it would be lost.
        _live[id(self)] = weakref.ref(self, partial(_live.pop, id(self)))
        self._map(length, int(prot), int(flags), **how)

    @classmethod
    def _of_segment(
        cls,
        name: str | None,
        length: int,
        prot: Prot,
        *,
        file: Descriptor | None = None,
        shmid: int = -1,
        page: int = PAGE_SIZE,
    ) -> Self:
        """Map shared memory whose name and end are somebody else's care: a file of memory, or System V's."""
        flags = _SHARED | (_HUGETLB if page != PAGE_SIZE else 0)
        region = cls._make(
            "segment",
            name,
            length,
            prot,
            flags,
            file=file,
            shmid=shmid,
            granule=page,
            may_shrink=file is not None,
        )
        region._resizable = file is not None and Prot.WRITE in prot
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
        check_length(length)
        check_demand("hugepages", hugepages)
        check_demand("lock", lock)
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
                warn_of_ordinary_pages(hugepages, error)
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
        file = sized_memfd(name or "mmkit", MemfdFlag.CLOEXEC | huge, length, page)
        return cls._make(
            "shared", name, length, prot, flags, file=file, reserve=reserve, guard=edge, granule=page
        )

    def _prepare(self, populate: bool, lock: str, prot: Prot) -> None:
        try:
            if populate:
                self._populate(0, None, Prot.WRITE in Prot(prot))
            if lock != "off":
                self._lock_or_warn(lock)
        except BaseException:
            self.close()
            raise

    def _lock_or_warn(self, lock: str) -> None:
        try:
            self._lock(0, None)
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
            check_length(length)
        if offset < 0:
            raise ValueError(f"offset must not be negative, as {offset} is")
        with open_file(path_or_fd, mode) as file:
            status = os.fstat(file.fileno())
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
                file=file,
                offset=offset,
                may_shrink=mode != "c" and stat.S_ISREG(status.st_mode),
            )
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
        check_length(length)
        check_demand("hugepages", hugepages)
        if secret:
            if seals or hugepages != "off":
                raise ValueError("secret memory has neither seals nor huge pages")
            return cls._make_secret(length, name)
        if hugepages != "off":
            try:
                return cls._make_sealable(length, name, seals, _huge_page_size())
            except Error as error:
                warn_of_ordinary_pages(hugepages, error)
        return cls._make_sealable(length, name, seals, PAGE_SIZE)

    @classmethod
    def _make_secret(cls, length: int, name: str) -> Self:
        with Descriptor(memfd_secret) as file:
            fd = file.fileno()
            set_size(fd, length)
            # Whoever has the descriptor can map the pages: let nobody have it.
            return cls._make("secret", name, length, _READ_WRITE, _SHARED, borrowed=fd, always_locked=True)

    @classmethod
    def _make_sealable(cls, length: int, name: str, seals: Seal, page: int) -> Self:
        huge = page != PAGE_SIZE
        kind = MemfdFlag.CLOEXEC | MemfdFlag.ALLOW_SEALING | (MemfdFlag.HUGETLB if huge else MemfdFlag(0))
        flags = _SHARED | (_HUGETLB if huge else 0)
        file = sized_memfd(name, kind, length, page)
        region = cls._make(
            "memfd", name, length, _READ_WRITE, flags, file=file, granule=page, may_shrink=True
        )
        if seals:
            try:
                region._add_seals(seals)
            except BaseException:
                region.close()
                raise
        return region
