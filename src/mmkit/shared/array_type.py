"""`SharedArray`: a numpy array that stands in a segment."""

from __future__ import annotations

import contextlib
import pickle
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mmkit.shared.pickling import announce
from mmkit.shared.posix import SharedMemory

if TYPE_CHECKING:
    from mmkit.shared.files import Identity

__all__ = ["SharedArray", "array_in"]


class SharedArray(np.ndarray[Any, np.dtype[Any]]):
    """A numpy array in memory that other processes share. Made by `mmkit.shared.array`.

    It is an array like any other, and what is computed from it is plain arrays. The memory stays as long as
    any array on it; nothing needs to be closed.

    As a context manager, in the process that made it, it removes its name at the end of the block; ``unlink``
    of its `segment` does so at any time. An array that its maker let go of without that is warned about,
    unless it was made to persist: its memory stays taken.

    Through :mod:`multiprocessing` the whole array travels by its name, and is the same memory there; parts of
    it, and anything through plain :mod:`pickle`, travel as contents and arrive as plain arrays.
    """

    _segment: SharedMemory | None = None

    @property
    def segment(self) -> SharedMemory | None:
        """The memory that it stands in; None for a part of an array, or for what was copied from one."""
        return self._segment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        segment = self._segment
        if segment is not None and segment.owned:
            with contextlib.suppress(FileNotFoundError):
                segment.unlink()

    def __array_wrap__(
        self, array: np.ndarray[Any, Any], context: object = None, return_scalar: bool = False
    ) -> Any:  # noqa: ANN401
        if array is self:
            return self  # computed in place
        plain = array.view(np.ndarray)
        return plain[()] if return_scalar or plain.shape == () else plain

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401
        return self.view(np.ndarray).__reduce_ex__(protocol)


def array_in(segment: SharedMemory, dtype: np.dtype[Any], shape: tuple[int, ...]) -> SharedArray:
    """Return the array at the beginning of a segment; the segment lives by it from then on."""
    announce(SharedArray, _send_array, at_once=True)
    array = SharedArray(shape, dtype, buffer=segment.buf)
    array._segment = segment
    segment._lives_by_views = True
    return array


def _send_array(array: SharedArray) -> Any:  # noqa: ANN401 - what pickle takes
    segment = array.segment
    if segment is None or segment.name is None:
        return array.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    return _attach_same, (segment.name, segment._identity, segment._readonly)


def _attach_same(name: str, identity: Identity, readonly: bool) -> SharedArray:
    from mmkit.shared.arrays import attach_array

    return attach_array(name, readonly=readonly, identity=identity)
