"""`multiprocessing.shared_memory` on mmkit's segments: the same interface, the same behaviour.

That includes the resource tracker: by default a segment goes when the process tree that made or attached it
has ended, as the standard module has it. `mmkit.SharedMemory` is the one without that. What differs is what
nobody can have relied on: a segment appears complete, memory stays as long as any array or view on it
(`SharedMemory.close` raises BufferError where the standard module lets numpy crash), and `ShareableList`
counts bytes, not characters.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import struct
import types
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Final

from mmkit.errors import Error, SyscallError
from mmkit.hints import failure
from mmkit.region import Region
from mmkit.shared import files
from mmkit.shared.names import check_name

__all__ = ["ShareableList", "SharedMemory"]

_USE_POSIX = True
_SHM_NAME_PREFIX = "/psm_"
#: Systems there are where a name may have 14 characters.
_SHM_SAFE_NAME_LENGTH = 14
_O_CREX = os.O_CREAT | os.O_EXCL


def _make_filename() -> str:
    """Make up a name, as short as every system takes."""
    count = (_SHM_SAFE_NAME_LENGTH - len(_SHM_NAME_PREFIX)) // 2
    return _SHM_NAME_PREFIX + secrets.token_hex(count)


class SharedMemory:
    """Memory that processes share by name, as :class:`multiprocessing.shared_memory.SharedMemory`.

    Parameters
    ----------
    name
        What it is called; None makes up a name, for a new one.
    create
        Make it; else attach it.
    size
        Bytes of a new one; ignored when attaching.
    track
        Tell multiprocessing's resource tracker of it, which removes it when the processes are gone that were
        told of by one tracker: as Python 3.13 has it, and what earlier ones always do.
    """

    # Read by subclasses and by CPython's tests, as the standard module has them.
    _name: str | None = None
    _fd = -1
    _mmap: Region | None = None
    _buf: memoryview | None = None
    _flags = os.O_RDWR
    _mode = 0o600
    _prepend_leading_slash = True
    _track = True
    _size: int
    _identity: files.Identity

    def __init__(
        self, name: str | None = None, create: bool = False, size: int = 0, *, track: bool = True
    ) -> None:
        if size < 0:
            raise ValueError("'size' must be a positive integer")
        if create:
            self._flags = _O_CREX | os.O_RDWR
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")
        self._track = track
        region = self._create_named_anew(size) if name is None else self._open_named(name, size)
        self._mmap = region
        self._fd = region.fileno()
        self._size = len(region)
        self._buf = region.view()
        self._identity = files.identity_of(self._fd)
        self._tell_tracker("register")

    def _create_named_anew(self, size: int) -> Region:
        while True:
            name = _make_filename()
            with contextlib.suppress(FileExistsError):
                return self._create(name, size)

    def _open_named(self, name: str, size: int) -> Region:
        name = f"/{name}" if self._prepend_leading_slash else name
        if self._flags & os.O_EXCL:
            return self._create(name, size)
        try:
            region = files.attach(_bare(name), 0, readonly=False)
        except FileNotFoundError:
            if not self._flags & os.O_CREAT or size == 0:
                raise
            return self._create(name, size)
        except SyscallError:
            raise
        except Error as error:
            raise ValueError(str(error)) from None
        self._name = name
        return region

    def _create(self, name: str, size: int) -> Region:
        # Space is taken when it is used, as the standard module has it. And `reap` must not touch what
        # the tracker, or whoever asked for none, sees to.
        region = files.create(_bare(name), size, self._mode, lambda region: region, space=False, persist=True)
        self._name = name
        return region

    def _tell_tracker(self, what: str) -> None:
        if self._track:
            from multiprocessing import resource_tracker

            getattr(resource_tracker, what)(self._name, "shared_memory")

    @property
    def buf(self) -> memoryview | None:
        """The memory as bytes; None after `close`."""
        return self._buf

    @property
    def name(self) -> str:
        """What it is called, for other processes to attach it."""
        assert self._name is not None
        return self._name.removeprefix("/") if self._prepend_leading_slash else self._name

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def close(self) -> None:
        """Give up this process's mapping; the segment stays. Closing twice does nothing.

        Raises
        ------
        BufferError
            A view or an array is live; nothing has changed but `buf`, which may be released.
        """
        if self._buf is not None:
            self._buf.release()
            self._buf = None
        if self._mmap is not None:
            self._mmap.close()
            self._mmap = None
        self._fd = -1

    def unlink(self) -> None:
        """Remove the name.

        Raises
        ------
        FileNotFoundError
            It was removed before.
        """
        if self._name is not None:
            files.remove(_bare(self._name), self._identity)
            self._tell_tracker("unregister")

    def __del__(self) -> None:
        # Memory that somebody still looks at goes with the last view.
        try:  # noqa: SIM105 - cheaper than suppress()
            self.close()
        except (OSError, BufferError):
            pass

    def __reduce__(self) -> tuple[type[SharedMemory], tuple[str, bool, int]]:
        return self.__class__, (self.name, False, self.size)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.name!r}, size={self.size})"


def _bare(name: str) -> str:
    """Return a name as it appears in /dev/shm, or fail as shm_open(3) does."""
    try:
        return check_name(name.lstrip("/"))
    except ValueError:
        if "\0" in name:
            raise
        code = errno.ENAMETOOLONG if len(os.fsencode(name)) > 255 else errno.EINVAL
        raise failure(-code, "shm_open", None, (name,)) from None


# ---- ShareableList ------------------------------------------------------------------------------------

#: The layout that the standard module has, so that both read each other's lists:
#:
#:     int64                count
#:     int64 * (count + 1)  where each item begins, and the last one ends, from the start of the items
#:     ...                  the items, in multiples of 8 bytes
#:     char[8] * count      how each item is packed, as struct has it
#:     int8 * count         what each item is: see _Code
_WORD: Final = struct.Struct("q")
_FORMAT: Final = struct.Struct("8s")
_CODE: Final = struct.Struct("b")
_PLAIN, _TEXT, _BYTES, _NONE = range(4)

Item = int | float | bool | str | bytes | None

_FORMATS: Final[dict[type, str]] = {int: "q", float: "d", bool: "xxxxxxx?", type(None): "xxxxxx?x"}


def _packed(item: Item) -> tuple[Any, int]:
    """Return an item as struct packs it, and its code."""
    if isinstance(item, str):
        return item.encode("utf-8"), _TEXT
    if isinstance(item, bytes):
        return item, _BYTES
    if item is None:
        return False, _NONE
    if type(item) not in _FORMATS:
        kinds = ", ".join(kind.__name__ for kind in (*_FORMATS, str, bytes))
        raise TypeError(f"a ShareableList holds {kinds}; not {type(item).__name__}")
    return item, _PLAIN


def _format_of(value: Any, item: Item) -> str:  # noqa: ANN401 - what struct packs
    """Return how a new item is packed: text and bytes with room up to the next multiple of 8."""
    if not isinstance(item, str | bytes):
        return _FORMATS[type(item)]
    # The standard module counts characters, which may be fewer than bytes.
    return f"{8 * max(len(item) // 8 + 1, -(-len(value) // 8))}s"


class ShareableList:
    """A list of fixed length in shared memory, as :class:`multiprocessing.shared_memory.ShareableList`.

    It holds int, float, bool, str, bytes and None. Text and bytes have the room that they had at first, up to
    the next multiple of 8 bytes; NUL bytes at their end are not kept.

    Parameters
    ----------
    sequence
        What it holds at first; None attaches the list called `name`, or makes an empty one.
    name
        What its segment is called.
    """

    _count: int

    def __init__(self, sequence: Iterable[Item] | None = None, *, name: str | None = None) -> None:
        if sequence is None and name is not None:
            self.shm = SharedMemory(name)
            self._count = int(_WORD.unpack_from(self._memory, 0)[0])
            self._check_layout()
            return
        items = list(sequence or ())
        values = [_packed(item) for item in items]
        formats = [_format_of(value, item) for (value, _), item in zip(values, items, strict=True)]
        sizes = [struct.calcsize(form) for form in formats]
        self._count = len(items)
        total = self._items_start + sum(sizes) + (_FORMAT.size + _CODE.size) * len(items)
        self.shm = SharedMemory(name, create=True, size=total)
        self._write_header(sizes)
        for place, ((value, code), form) in enumerate(zip(values, formats, strict=True)):
            self._store(place, value, form, code)

    def _write_header(self, sizes: list[int]) -> None:
        _WORD.pack_into(self._memory, 0, self._count)
        end = 0
        for place, size in enumerate([0, *sizes]):
            end += size
            _WORD.pack_into(self._memory, _WORD.size * (1 + place), end)

    def _check_layout(self) -> None:
        needed = self._items_start + (_FORMAT.size + _CODE.size) * self._count
        if (
            self._count < 0
            or needed > len(self._memory)
            or needed + self._offset(self._count) > len(self._memory)
        ):
            raise ValueError(f"the segment {self.shm.name!r} holds no ShareableList")

    # ---- where things are -----------------------------------------------------------------------------

    @property
    def _memory(self) -> memoryview:
        memory = self.shm.buf
        if memory is None:
            raise ValueError("the shared memory of this list is closed")
        return memory

    @property
    def _items_start(self) -> int:
        return 8 * (self._count + 2)

    @property
    def _formats_start(self) -> int:
        return self._items_start + self._offset(self._count)

    @property
    def _codes_start(self) -> int:
        return self._formats_start + _FORMAT.size * self._count

    def _offset(self, place: int) -> int:
        (offset,) = _WORD.unpack_from(self._memory, _WORD.size * (1 + place))
        return int(offset)

    def _place(self, position: int) -> int:
        place = position if position >= 0 else position + self._count
        if not 0 <= place < self._count:
            raise IndexError("index out of range")
        return place

    def _get_packing_format(self, position: int) -> str:
        start = self._formats_start + _FORMAT.size * self._place(position)
        (form,) = _FORMAT.unpack_from(self._memory, start)
        return str(form.rstrip(b"\0").decode("ascii"))

    def _store(self, place: int, value: Any, form: str, code: int) -> None:  # noqa: ANN401 - what struct packs
        memory, start = self._memory, self._items_start + self._offset(place)
        # struct.pack_into writes zeros before it finds that a value does not fit.
        packed = struct.pack(form, value)
        memory[start : start + len(packed)] = packed
        _FORMAT.pack_into(memory, self._formats_start + _FORMAT.size * place, form.encode("ascii"))
        _CODE.pack_into(memory, self._codes_start + _CODE.size * place, code)

    # ---- a list ---------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> Item:
        place = self._place(position)
        (value,) = struct.unpack_from(
            self._get_packing_format(place), self._memory, self._items_start + self._offset(place)
        )
        (code,) = _CODE.unpack_from(self._memory, self._codes_start + _CODE.size * place)
        if code == _NONE:
            return None
        if code == _PLAIN:
            return value  # type: ignore[no-any-return]
        contents = bytes(value).rstrip(b"\0")
        return contents.decode("utf-8") if code == _TEXT else contents

    def __setitem__(self, position: int, item: Item) -> None:
        place = self._place(position)
        value, code = _packed(item)
        if not isinstance(value, bytes):
            self._store(place, value, _FORMATS[type(item)], code)
            return
        room = self._offset(place + 1) - self._offset(place)
        if len(value) > room:
            raise ValueError("bytes/str item exceeds available storage")
        form = self._get_packing_format(place)
        self._store(place, value, form if form.endswith("s") else f"{room}s", code)

    def __iter__(self) -> Iterator[Item]:
        return (self[place] for place in range(self._count))

    def count(self, value: object) -> int:
        """Return how many items are equal to a value."""
        return sum(value == item for item in self)

    def index(self, value: object) -> int:
        """Return where the first item is that is equal to a value.

        Raises
        ------
        ValueError
            There is none.
        """
        for place, item in enumerate(self):
            if value == item:
                return place
        raise ValueError(f"{value!r} not in this container")

    @property
    def format(self) -> str:
        """How all items are packed, as :mod:`struct` has it."""
        return "".join(self._get_packing_format(place) for place in range(self._count))

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return partial(self.__class__, name=self.shm.name), ()

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({list(self)}, name={self.shm.name!r})"

    def __class_getitem__(cls, item: Any) -> types.GenericAlias:  # noqa: ANN401 - as list has it
        return types.GenericAlias(cls, item)
