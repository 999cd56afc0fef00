"""Attributes that are made when they are first looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

__all__ = ["lazy"]

_Made = TypeVar("_Made")


class lazy(Generic[_Made]):  # noqa: N801 - used as a decorator, as property is
    """A functools.cached_property without a lock, which before Python 3.12 a forked child may inherit held.

    Two threads may both make the value; one of the two stays. So it must not matter which.
    """

    def __init__(self, make: Callable[[Any], _Made]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> _Made: ...
    def __get__(self, instance: object | None, owner: type) -> Self | _Made:
        if instance is None:
            return self
        made = self._make(instance)
        instance.__dict__[self._make.__name__] = made
        return made
