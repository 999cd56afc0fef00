"""How many elements of a numpy type there are in a piece of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike


def elements(
    who: str, length: int, dtype: DTypeLike, shape: int | tuple[int, ...] | None, offset: int
) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Check what an array on memory is to be.

    Parameters
    ----------
    who
        The method that was called, for messages.
    length
        Bytes of memory.
    dtype
        Of the elements.
    shape
        In elements; None takes as many as there are from `offset` on, in one dimension.
    offset
        Bytes from the start of the memory.

    Returns
    -------
    dtype, shape, length
        The type, the shape, and the bytes they take.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise ImportError(f"{who} needs numpy: pip install 'mmkit[numpy]'") from error

    kind = np.dtype(dtype)
    if not 0 <= offset <= length:
        raise ValueError(f"offset {offset} is not inside the {length} bytes")
    if shape is None:
        shape = ((length - offset) // kind.itemsize,)
    elif isinstance(shape, int):
        shape = (shape,)
    if any(extent < 0 for extent in shape):
        raise ValueError(f"a shape has no negative extents, as {shape} has")
    count = 1
    for extent in shape:
        count *= extent
    if offset + count * kind.itemsize > length:
        raise ValueError(
            f"{shape} elements of {kind} at offset {offset} need {offset + count * kind.itemsize} bytes: "
            f"there are {length}"
        )
    return kind, shape, count * kind.itemsize
