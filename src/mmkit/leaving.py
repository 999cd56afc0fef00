"""The end of ``with`` blocks: what is closed there, and who is heard when that is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

__all__ = ["Closing", "leave"]


def leave(end: Callable[[], object], error: BaseException | None) -> None:
    """End something, as a ``with`` block does.

    Parameters
    ----------
    end
        What ends it. It raises BufferError where somebody still looks.
    error
        What the block raises. It matters more than a refusal, which becomes a note of it.
    """
    try:
        end()
    except BufferError as refusal:
        if error is None:
            raise
        error.add_note(f"mmkit: {refusal}")


class _Closable(Protocol):
    def close(self) -> None: ...


class Closing:
    """A base of what a ``with`` block closes."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self: _Closable, kind: object, error: BaseException | None, traceback: object) -> None:
        leave(self.close, error)
