"""Pictures as data: strips of pages and the ladder of a whole address space, read from the kernel."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mmkit import linux, maps
from mmkit.errors import SyscallError
from mmkit.maps import Areas
from mmkit.region import PAGE_SIZE, Region

__all__ = [
    "Fill",
    "Ladder",
    "Picture",
    "Rung",
    "Strip",
    "area_facts",
    "earlier",
    "peeked",
    "permissions",
    "strip",
]


class Fill(Enum):
    """What is behind a page: the value is how its cell is filled."""

    NOTHING = "   "
    #: In the kernel's page cache, but not in this process.
    CACHED = "░░░"
    RESIDENT = "███"
    LOCKED = "█L█"
    GUARD = "╳╳╳"


@dataclass(frozen=True)
class Strip:
    """A few pages side by side, as they are at one moment.

    Attributes
    ----------
    caption : str
        When, or where.
    start : int
        Address of the first.
    page : int
        Bytes in each.
    access : tuple of str
        Of each page what maps says, in three letters; empty where nothing is mapped.
    fill : tuple of Fill
    holds : tuple of str
        The first three bytes of each page; empty if nobody looked.
    """

    caption: str
    start: int
    page: int
    access: tuple[str, ...]
    fill: tuple[Fill, ...]
    holds: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """Address after the last page."""
        return self.start + len(self.access) * self.page


@dataclass(frozen=True)
class Rung:
    """Part of a `Ladder`: from `start` up to `end`; a gap has no name."""

    start: int
    end: int
    name: str = ""
    note: str = ""


@dataclass(frozen=True)
class Ladder:
    """The whole address space, highest address first."""

    rungs: tuple[Rung, ...]


Picture = Strip | Ladder


def permissions(address: int) -> str:
    """Return what /proc/self/maps says of an address (``rw-p``); empty if nothing is mapped there."""
    area = maps.find(address)
    return area.perms if area else ""


def earlier(caption: str, areas: Areas, start: int, pages: int, *, page: int = PAGE_SIZE) -> Strip:
    """Draw addresses as a map has them that was read before anyone knew of them."""
    found = [areas.find(start + number * page) for number in range(pages)]
    access = tuple(area.perms[:3] if area else "" for area in found)
    return Strip(caption, start, page, access, (Fill.NOTHING,) * pages)


def strip(
    caption: str,
    memory: Region | int,
    pages: int | None = None,
    *,
    page: int = PAGE_SIZE,
    holds: bool = False,
    guards: bool = False,
) -> Strip:
    """Look at pages as they are now.

    Parameters
    ----------
    caption
        When, or where.
    memory
        A region, or the address of the first page.
    pages
        How many; None for all of the region.
    page
        Bytes in each.
    holds
        Look into those that are in RAM (the look would bring in others).
    guards
        Look for guards too; all pages must be in RAM, for the same reason.

    Returns
    -------
    Strip
    """
    start = memory if isinstance(memory, int) else memory.address
    if pages is None:
        assert not isinstance(memory, int)
        pages = -(-len(memory) // page)
    areas = maps.read()
    found = [areas.find(start + number * page) for number in range(pages)]
    access = tuple(area.perms[:3] if area else "" for area in found)
    fill = [_fill(memory, number, page) if access[number] else Fill.NOTHING for number in range(pages)]
    if Fill.RESIDENT in fill:
        locked = {
            area.start: "lo" in area_facts(area.start).get("VmFlags", "").split() for area in found if area
        }
        for number, area in enumerate(found):
            if area and fill[number] is Fill.RESIDENT and locked[area.start]:
                fill[number] = Fill.LOCKED
    if guards:
        fill = [
            Fill.GUARD if access[number][:1] == "r" and peeked(start + number * page, 1) is None else each
            for number, each in enumerate(fill)
        ]
    texts = tuple(
        _text(memory, number * page)
        if fill[number] in (Fill.RESIDENT, Fill.LOCKED) and access[number][:1] == "r"
        else ""
        for number in range(pages)
    )
    return Strip(caption, start, page, access, tuple(fill), texts if holds else ())


def _fill(memory: Region | int, number: int, page: int) -> Fill:
    if isinstance(memory, int):
        # Right for memory without a file, where nothing can be cached but not mapped.
        return Fill.RESIDENT if linux.mincore(memory + number * page, page)[0] & 1 else Fill.NOTHING
    length = min(page, len(memory) - number * page)
    if memory.resident(number * page, length):
        return Fill.RESIDENT
    with contextlib.suppress(SyscallError):
        if memory.cached(number * page, length):
            return Fill.CACHED
    return Fill.NOTHING


def peeked(address: int, length: int) -> bytes | None:
    """Read memory of this process, or None if it cannot be read: no crash, whatever is there."""
    try:
        return linux.process_vm_readv(os.getpid(), [(address, length)])
    except SyscallError as error:
        if error.errno != errno.EFAULT:
            raise
        return None


def _text(memory: Region | int, offset: int) -> str:
    data = peeked(memory + offset, 3) if isinstance(memory, int) else memory[offset : offset + 3]
    if data is None:
        return ""
    if data == bytes(3):
        return "0"
    return "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in data if byte)


def area_facts(address: int) -> dict[str, str]:
    """Read what /proc/self/smaps says of the area at an address, by the names of its fields."""
    facts: dict[str, str] = {}
    inside = False
    # Line by line: all of it at once is large enough to move the break, which the tour is looking at.
    with Path("/proc/self/smaps").open(errors="replace") as lines:
        for line in lines:
            first = line.split(maxsplit=1)[0]
            if not first.endswith(":"):
                if inside:
                    break
                start, _, end = first.partition("-")
                inside = int(start, 16) <= address < int(end, 16)
            elif inside:
                facts[first[:-1]] = line.partition(":")[2].strip()
    return facts
