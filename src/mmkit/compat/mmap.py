"""The standard `mmap` module over `Region`: ``from mmkit.compat import mmap``.

An `mmap` here does what the one of the standard library does, with what Python 3.12 to 3.15 added, on every
Python. It is a `Region` as well, so that it can be protected, locked, guarded and looked into; and what would
be SIGBUS is `MemoryFault`. docs/compat-mmap.md lists where it differs.
"""

from __future__ import annotations

import errno
import fcntl
import io
import operator
import sys
from typing import TYPE_CHECKING, Any, NoReturn, Self

from mmkit._native.calls import PAGE_SIZE
from mmkit._native.contents import RegionContents
from mmkit._native.descriptor import Descriptor
from mmkit._native.mmap_contents import MmapContents, as_c_ints, regular_size
from mmkit._native.region import adopt_methods
from mmkit.compat import constants
from mmkit.compat.constants import *  # noqa: F403
from mmkit.compat.constants import (
    ACCESS_COPY,
    ACCESS_DEFAULT,
    ACCESS_READ,
    ACCESS_WRITE,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
)
from mmkit.errors import ClosedError, SyscallError
from mmkit.features import huge_page_size
from mmkit.flags import MapFlag, Prot
from mmkit.hints import failure
from mmkit.region import Region
from mmkit.wording import flag_names

__all__ = ["error", "mmap"]
__all__ += constants.__all__

#: What the system refuses is an `OSError`, by this name too.
error = OSError

_READ_WRITE = PROT_READ | PROT_WRITE
_MAP_TYPE = 0x0F
_HUGETLB = int(MapFlag.HUGETLB)
_FIXED = int(MapFlag.FIXED | MapFlag.FIXED_NOREPLACE)
_ACCESS_NAMES = {
    ACCESS_DEFAULT: "ACCESS_DEFAULT",
    ACCESS_READ: "ACCESS_READ",
    ACCESS_WRITE: "ACCESS_WRITE",
    ACCESS_COPY: "ACCESS_COPY",
}
#: The longest name that `set_name` takes, in bytes, as in Python 3.15.
_LONGEST_NAME = 66


class _UntrackedError(SyscallError, ValueError):
    """`mmap.size` with ``trackfd=False``: EBADF in Python 3.13, ValueError from 3.15 on, and here both."""


def _flags_of_access(access: int, flags: int, prot: int) -> tuple[int, int, int]:
    """Return the flags, the protection and the access that go together."""
    if access == ACCESS_DEFAULT:
        if not prot & PROT_WRITE:
            access = ACCESS_READ
        elif not prot & PROT_READ:
            # No processor that Linux runs on has memory that can be written and not read.
            return flags, prot | PROT_READ, ACCESS_WRITE
        return flags, prot, access
    if flags != MAP_SHARED or prot != _READ_WRITE:
        raise ValueError("mmap can't specify both access and flags, prot.")
    if access == ACCESS_READ:
        return MAP_SHARED, PROT_READ, access
    if access == ACCESS_WRITE:
        return MAP_SHARED, _READ_WRITE, access
    if access == ACCESS_COPY:
        return MAP_PRIVATE, _READ_WRITE, access
    raise ValueError(f"mmap invalid access parameter: {access}")


def _length_in_file(length: int, offset: int, size: int) -> int:
    """Return how many bytes of a file to map; 0 asks for all that there are."""
    if length == 0:
        if size == 0:
            raise ValueError("cannot mmap an empty file: give it a length with os.truncate() first")
        if offset >= size:
            raise ValueError(f"mmap offset is greater than file size: {offset} of {size} bytes")
        return size - offset
    if length > size - offset:
        raise ValueError(f"mmap length is greater than file size: {length} bytes at {offset} of {size}")
    return length


def _granule(flags: int) -> int:
    if flags & _HUGETLB:
        return MapFlag(flags).huge_page_size or huge_page_size() or PAGE_SIZE
    return PAGE_SIZE


class _Shadowed:
    """What a region has and a standard map has not: a subclass may have an attribute of that name for itself.

    Without __set__, what is set on an object hides this.
    """

    def __init__(self, attribute: Any) -> None:  # noqa: ANN401 - properties of Python's and of C
        self._get = attribute.__get__
        self.__doc__ = attribute.__doc__

    def __get__(self, memory: object, kind: type) -> Any:  # noqa: ANN401
        return self if memory is None else self._get(memory, kind)


@adopt_methods
class mmap(MmapContents, Region):  # noqa: N801 - the standard module's name
    """A file or anonymous memory as bytes, as the standard library's `mmap.mmap`; and a `Region`.

    Parameters
    ----------
    fileno
        Descriptor of the file; -1 for anonymous memory.
    length
        Bytes; 0 reaches to the end of the file.
    flags
        MAP_*, of mmap(2).
    prot
        PROT_*. Without PROT_WRITE the map is read-only.
    access
        ACCESS_READ, ACCESS_WRITE (through to the file) or ACCESS_COPY (a private copy), instead of `flags`
        and `prot`.
    offset
        Where in the file to start: a multiple of ALLOCATIONGRANULARITY.
    trackfd
        Keep a duplicate of the descriptor. Without one, `size` and `resize` cannot work.

    Raises
    ------
    ValueError
        The file is empty or shorter than asked, or the arguments do not go together.
    OverflowError
        `length` or `offset` is negative, or too large.
    OSError
        The kernel refuses.

    References
    ----------
    mmap(2), POSIX.1-2024
    """

    __slots__ = ("_access", "_offset", "_tracks_file")
    _closed_text = "mmap closed or invalid"

    _access: int
    _offset: int
    _tracks_file: bool

    def __new__(  # noqa: D102
        cls,
        fileno: int,
        length: int,
        flags: int = MAP_SHARED,
        prot: int = _READ_WRITE,
        access: int = ACCESS_DEFAULT,
        offset: int = 0,
        *,
        trackfd: bool = True,
    ) -> Self:
        fileno, length, flags, prot, access, offset = as_c_ints(fileno, length, flags, prot, access, offset)
        if length < 0:
            raise OverflowError(f"memory mapped length must not be negative, as {length} is")
        if offset < 0:
            raise OverflowError(f"memory mapped offset must not be negative, as {offset} is")
        flags, prot, access = _flags_of_access(access, flags, prot)
        sys.audit("mmap.__new__", fileno, length, access, offset)

        self = RegionContents.__new__(cls)
        self._access = access
        self._offset = offset
        self._tracks_file = bool(trackfd)
        if fileno == -1 or flags & MAP_ANONYMOUS:
            self._map_memory(length, flags | MAP_ANONYMOUS, prot, offset)
        else:
            self._map_file(fileno, length, flags, prot, offset)
        return self

    if not TYPE_CHECKING:
        # Arguments have been taken; a subclass may have others.
        __init__ = object.__init__

        address = _Shadowed(Region.address)
        flags = _Shadowed(Region.flags)
        name = _Shadowed(Region.name)
        prot = _Shadowed(Region.prot)

    def _map_memory(self, length: int, flags: int, prot: int, offset: int) -> None:
        self._check_request(length, flags, prot, -1, offset)
        backing = "shared" if flags & _MAP_TYPE == MAP_SHARED else "anonymous"
        self._begin(backing, None, length, prot, flags, granule=_granule(flags))

    def _map_file(self, fileno: int, length: int, flags: int, prot: int, offset: int) -> None:
        size = regular_size(fileno)
        if size is not None:
            length = _length_in_file(length, offset, size)
        self._check_request(length, flags, prot, fileno, offset)
        # What is not tracked is the caller's, who may close it at once.
        tracked = Descriptor(fcntl.fcntl, fileno, fcntl.F_DUPFD_CLOEXEC, 0) if self._tracks_file else None
        self._begin(
            "file",
            None,
            length,
            prot,
            flags,
            file=tracked,
            borrowed=fileno,
            offset=offset,
            granule=_granule(flags),
            # Without a descriptor nobody can look.
            may_shrink=size is not None and self._tracks_file and flags & _MAP_TYPE != MAP_PRIVATE,
        )

    def _check_request(self, length: int, flags: int, prot: int, fd: int, offset: int) -> None:
        """Refuse as the kernel does what a region would take: no bytes, and an offset within a page."""
        call = f"mmap({fd}, {length}, flags={MapFlag(flags)}, prot={flag_names(Prot(prot))}, offset={offset})"
        if length == 0:
            raise SyscallError(
                errno.EINVAL, call, "Length must be at least 1; only a regular file tells its own."
            )
        if offset % PAGE_SIZE:
            hint = f"Offset must be a multiple of ALLOCATIONGRANULARITY, which is {PAGE_SIZE}."
            raise SyscallError(errno.EINVAL, call, hint)
        if flags & _FIXED:
            hint = "MAP_FIXED wants an address, for which there is no argument here: see mmkit.linux.mmap."
            raise SyscallError(errno.EPERM, call, hint)

    def _mapped_with(self) -> int:
        """Return the flags, whatever a subclass calls by that name."""
        return int(Region.flags.__get__(self))

    @classmethod
    def _make(cls, *_: object, **__: object) -> NoReturn:
        raise TypeError("an mmap is made as mmap(fileno, length); Region has the other ways")

    def fileno(self) -> int:
        """Return the descriptor of the file; it belongs to the map.

        Raises
        ------
        io.UnsupportedOperation
            No file stands behind it, or it was made with ``trackfd=False``.
        ValueError
            The map was closed.
        """
        if not self._tracks_file and not self._mapped_with() & MAP_ANONYMOUS:
            Region.__len__(self)
            raise io.UnsupportedOperation("the map has no descriptor: it was made with trackfd=False")
        return super().fileno()

    def size(self) -> int:
        """Return the length of the file, which can be more than the map's; of anonymous memory its length.

        Raises
        ------
        OSError
            ``EBADF``, and a ValueError as well: made with ``trackfd=False``.
        """
        length = Region.__len__(self)
        if not self._tracks_file:
            raise _UntrackedError(errno.EBADF, "fstat(-1)", "can't get size with trackfd=False")
        return self._file_size() if self._backing == "file" else length

    def resize(self, n: int, /) -> None:
        """Make the map, and the file behind it, `n` bytes long (``mremap(2)``, ``ftruncate(2)``).

        Parameters
        ----------
        n
            Bytes.

        Raises
        ------
        BufferError
            A buffer is exported.
        TypeError
            The map is read-only or copy-on-write.
        ValueError
            Made with ``trackfd=False``; or shared anonymous memory would have to grow, which Linux cannot do.
        OSError
            The kernel refuses; nothing has changed.
        """
        length = Region.__len__(self)
        n = operator.index(n)
        if self._viewed:
            raise BufferError("mmap can't resize with extant buffers exported.")
        if not self._tracks_file:
            raise ValueError("mmap can't resize with trackfd=False.")
        private = self._mapped_with() & _MAP_TYPE == MAP_PRIVATE
        if self._access in (ACCESS_READ, ACCESS_COPY) or (private and self._backing == "file"):
            raise TypeError("mmap can't resize a read-only or copy-on-write memory map.")
        if n < 0 or n > sys.maxsize - self._offset:
            raise ValueError(f"new size out of range: {n}")
        if n == 0:
            raise failure(-errno.EINVAL, "mremap", (self._range[0], length), (n,))
        if n > length and self._backing == "shared":
            raise ValueError("mmap: can't expand a shared anonymous mapping on Linux; a memfd can grow")
        self._resize(n, with_file=True)

    def set_name(self, name: str, /) -> None:
        """Name anonymous memory for people: in /proc/PID/maps, where the kernel can (Linux 5.17).

        Parameters
        ----------
        name
            At most 66 bytes of UTF-8.

        Raises
        ------
        ValueError
            A file stands behind the map, or the name is too long or has a NUL in it.
        """
        Region.__len__(self)
        if not isinstance(name, str):
            raise TypeError(f"set_name() argument must be str, not {type(name).__name__}")
        text = name.encode()
        if b"\0" in text:
            raise ValueError("embedded null character")
        if len(text) > _LONGEST_NAME:
            raise ValueError(f"name is too long: {len(text)} bytes, and {_LONGEST_NAME} are possible")
        if not self._mapped_with() & MAP_ANONYMOUS:
            raise ValueError("Cannot set annotation on non-anonymous mappings")
        self._name_for_kernel(b"mmkit:" + text)
        self._name = name

    def __del__(self) -> None:
        # Programs leave a standard map to the collector: no warning.
        pass

    def __repr__(self) -> str:
        name = "mmap.mmap" if type(self) is mmap else type(self).__name__
        try:
            # As it is, whatever a subclass says of itself.
            length, position = Region.__len__(self), Region.tell(self)
        except ClosedError:
            return f"<{name} closed=True>"
        return (
            f"<{name} closed=False, access={_ACCESS_NAMES[self._access]}, length={length}, "
            f"pos={position}, offset={self._offset}>"
        )
