"""One mapping a process of what holds a lock or the like.

Two mappings would be two addresses of one lock, and libc knows a lock that a thread holds by its address.
"""

from __future__ import annotations

import contextlib
import weakref
from functools import partial

from mmkit._native.placed import forget_mapping, publish_mapping
from mmkit.errors import Error
from mmkit.region import Region
from mmkit.shared.files import Identity, check_kind, identity_of

__all__ = ["close_if_unused", "mapping"]

_mapped: dict[Identity, weakref.ref[Region]] = {}


def close_if_unused(region: Region) -> None:
    """Close a segment's region, unless something in this process stands in it."""
    with contextlib.suppress(BufferError):
        region.close()


def mapping(fd: int, least: int, label: str) -> Region:
    """Return this process's one mapping of a file; it is made here if there is none.

    Until a place is taken, another thread, or a signal handler of this one, may close it: then ask again.
    """
    there = check_kind(fd, label).st_size
    if there < least:
        raise Error(f"{label}: something else is there, a file of {there} bytes, where one has {least}")
    region = _mapping(fd, identity_of(fd))
    if len(region) < least:
        raise Error(f"{label}: something else is there, which this process uses as something smaller")
    return region


def _mapping(fd: int, key: Identity) -> Region:
    there = _mapped.get(key)
    region = there() if there is not None else None
    if region is not None and not region.closed:
        return region
    mine = Region.file(fd, mode="r+")
    region = publish_mapping(_mapped, key, weakref.ref(mine, partial(forget_mapping, _mapped, key)))
    if region is not mine:
        mine.close()
    return region
