"""What stands behind an array's data in its segment: dtype and shape, for who attaches.

docs/shared-memory.md draws it. It stands at the end, so that data begins at offset 0 for programs that know
nothing of it; its last bytes say where it begins.
"""

from __future__ import annotations

import ast
import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mmkit.errors import CorruptError, Error
from mmkit.region import Region

if TYPE_CHECKING:
    import numpy as np

__all__ = ["END_BYTES", "describe", "ends_an_array", "read_description"]

_MAGIC = b"mmkarray"
_VERSION = 1
#: Magic, version, length of the text, length of the data, CRC-32 of the text, zeros.
_END = struct.Struct("<8sIIQII")
#: How many bytes those have.
END_BYTES = _END.size
_ALIGNMENT = 64
#: Longer than what any sane dtype needs.
_LONGEST = 1 << 16
#: What Python's parser and numpy raise for a text that describes no array.
_DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    SyntaxError,
    MemoryError,
    RecursionError,
)


def describe(dtype: np.dtype[Any], shape: tuple[int, ...], length: int) -> bytes:
    """Return what is to stand behind `length` bytes of data, with the padding in front of it."""
    from numpy.lib import format as npy

    if dtype.hasobject:
        raise TypeError(f"{dtype} holds references to objects of this process, which mean nothing in another")
    text = repr({"descr": npy.dtype_to_descr(dtype), "shape": shape}).encode("ascii")
    if len(text) > _LONGEST:
        raise ValueError(f"the description of {dtype} has {len(text)} bytes, and {_LONGEST} are the most")
    padding = -(length + len(text) + _END.size) % _ALIGNMENT
    return bytes(padding) + text + _END.pack(_MAGIC, _VERSION, len(text), length, zlib.crc32(text), 0)


def read_description(region: Region, name: str | None) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read the dtype and the shape of the array in a segment, and make sure that its data is there.

    Raises
    ------
    Error
        It holds no array, or one that a later version has written.
    CorruptError
        What describes it is damaged.
    """
    total = len(region)
    end = region[max(0, total - _END.size) :]
    if len(end) < _END.size or not end.startswith(_MAGIC):
        raise Error(
            f"the segment {name!r} holds no array of mmkit's. "
            "np.ndarray(shape, dtype, buffer=SharedMemory(…).buf) makes one of its bytes"
        )
    _, version, text_length, length, checksum, _ = _END.unpack(end)
    if version != _VERSION:
        raise Error(f"the array in the segment {name!r} has format {version}: this mmkit reads {_VERSION}")
    start = total - _END.size - text_length
    if start < length or text_length > _LONGEST:
        raise CorruptError(
            f"the description of the array in the segment {name!r} says more bytes than there are"
        )
    text = region[start : start + text_length]
    if zlib.crc32(text) != checksum:
        raise CorruptError(
            f"the description of the array in the segment {name!r} is damaged: its checksum is wrong"
        )
    try:
        dtype, shape = _parsed(text)
    except _DAMAGED as error:
        raise CorruptError(
            f"the description of the array in the segment {name!r} is damaged: {error}"
        ) from None
    if dtype.itemsize * _product(shape) != length:
        raise CorruptError(
            f"the array in the segment {name!r} has {length} bytes: {shape} of {dtype} need others"
        )
    return dtype, shape


def ends_an_array(end: bytes, total: int) -> bool:
    """Whether a segment's last bytes are those of a description that fits its length, of whatever version."""
    if len(end) != _END.size:
        return False
    magic, _, text_length, length, _, _ = _END.unpack(end)
    return bool(magic == _MAGIC and 0 <= total - _END.size - text_length - length < _ALIGNMENT)


@lru_cache(maxsize=64)
def _parsed(text: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    from numpy.lib import format as npy

    fields = ast.literal_eval(text.decode("ascii"))
    dtype, shape = npy.descr_to_dtype(fields["descr"]), fields["shape"]
    if dtype.hasobject or not all(type(extent) is int and extent >= 0 for extent in shape):
        raise ValueError("no dtype and shape of shared memory")
    return dtype, tuple(shape)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product
