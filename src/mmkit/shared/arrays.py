"""numpy arrays by name: `array` makes and attaches them."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from mmkit.errors import CorruptError, Error
from mmkit.shared.description import describe, read_description
from mmkit.shared.options import MODE, check_options
from mmkit.shared.posix import SharedMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

    from mmkit.shared.array_type import SharedArray
    from mmkit.shared.files import Identity

__all__ = ["array", "attach_array"]


def array(
    name: str | None,
    shape: int | tuple[int, ...] | None = None,
    dtype: DTypeLike | None = None,
    create: bool = False,
    *,
    mode: int = MODE,
    readonly: bool = False,
    reserve: bool = True,
    persist: bool = False,
) -> SharedArray:
    """Make a numpy array that other processes attach by name, or attach one.

    Parameters
    ----------
    name
        What its segment is called in /dev/shm; None makes up a name, for a new one.
    shape, dtype
        Of a new one; None is float64, as numpy has it. When attaching they come from the segment: what is
        given must agree with what is there.
    create
        Make it, of zeros, and own it. Else attach what is there.
    mode, readonly, reserve, persist
        As for `SharedMemory`.

    Returns
    -------
    SharedArray
        On the memory itself: nothing is copied.

    Raises
    ------
    ValueError
        The array that is there has another shape or dtype, or something was said that is for a new one.
    TypeError
        `dtype` holds references to objects.
    Error
        The segment holds no array of mmkit's.
    CorruptError
        What describes the array is damaged.
    SyscallError, OutOfMemory
        As `SharedMemory`.

    Examples
    --------
    >>> from mmkit import shared
    >>> with shared.array(None, (2, 3), "int16", create=True) as ours:
    ...     theirs = shared.array(ours.segment.name)
    ...     ours[1, 2] = 7
    ...     print(theirs.dtype, theirs.shape, theirs.sum())
    int16 (2, 3) 7
    """
    np = _numpy()
    extents = (shape,) if isinstance(shape, int) else shape
    check_options(create, f"array {name!r}", mode=mode, reserve=reserve, persist=persist)
    if create:
        if readonly:
            raise ValueError("a new array holds zeros: reading only makes sense for one that is there")
        if extents is None:
            raise ValueError("a new array needs a shape")
        return _make_array(name, tuple(extents), np.dtype(dtype), mode, reserve, persist)
    if name is None:
        raise ValueError("without a name there is nothing to attach: give one, or create=True")
    found = attach_array(name, readonly=readonly)
    if extents is not None and tuple(extents) != found.shape:
        raise ValueError(f"the array {name!r} has the shape {found.shape}, not {tuple(extents)}")
    if dtype is not None and np.dtype(dtype) != found.dtype:
        raise ValueError(f"the array {name!r} has the dtype {found.dtype}, not {np.dtype(dtype)}")
    return found


def _numpy() -> Any:  # noqa: ANN401 - the module
    try:
        import numpy as np
    except ImportError as error:
        raise ImportError("shared.array needs numpy: pip install 'mmkit[numpy]'") from error
    return np


def _make_array(
    name: str | None, shape: tuple[int, ...], dtype: np.dtype[Any], mode: int, reserve: bool, persist: bool
) -> SharedArray:
    from mmkit.shared.array_type import array_in

    if any(extent < 0 for extent in shape):
        raise ValueError(f"a shape has no negative extents, as {shape} has")
    length = math.prod(shape) * dtype.itemsize
    description = describe(dtype, shape, length)
    total = length + len(description)
    use = partial(array_in, dtype=dtype, shape=shape)
    return SharedMemory._ending_with(name, total, description, mode, use, reserve=reserve, persist=persist)


def attach_array(name: str, *, readonly: bool, identity: Identity | None = None) -> SharedArray:
    """Attach the array of a name; with `identity`, that very one."""
    from mmkit.shared.array_type import array_in

    segment = SharedMemory(name, readonly=readonly)
    try:
        if identity not in (None, segment._identity):
            raise Error(
                f"the array {name!r} that was pickled has been removed: another segment has its name now"
            )
        dtype, shape = read_description(segment.region, name)
        try:
            return array_in(segment, dtype, shape)
        except ValueError as error:
            # More dimensions, or longer ones beside an empty one, than numpy has.
            raise CorruptError(
                f"the array in the segment {name!r} is none that numpy can have: {error}"
            ) from None
    except BaseException:
        segment.close()
        raise
