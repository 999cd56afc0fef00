"""Pictures as data: strips of pages, bars of whole files, and the ladder of an address space."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mmkit import maps
from mmkit.maps import Areas
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.looking import area_facts, in_memory, in_this_process, peeked

__all__ = ["Bar", "Fill", "Ladder", "Picture", "Rung", "Strip", "bar", "earlier", "strip"]


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
class Bar:
    """A mapping of too many pages for a `Strip`, as it is at one moment.

    Attributes
    ----------
    caption : str
        When.
    column : int
        Bytes that stand behind one column.
    cached, resident : tuple of float
        Of each column, how much of it is in memory, and how much of it this process has: 0 to 1.
    """

    caption: str
    column: int
    cached: tuple[float, ...]
    resident: tuple[float, ...]


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


Picture = Strip | Bar | Ladder


def earlier(caption: str, areas: Areas, start: int, pages: int, *, page: int = PAGE_SIZE) -> Strip:
    """Draw addresses as a map has them that was read before anyone knew of them."""
    return Strip(caption, start, page, _access(areas, start, pages, page), (Fill.NOTHING,) * pages)


def _access(areas: Areas, start: int, pages: int, page: int) -> tuple[str, ...]:
    found = [areas.find(start + number * page) for number in range(pages)]
    return tuple(area.perms[:3] if area else "" for area in found)


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
    access = _access(areas, start, pages, page)
    locked = _locked(areas, start, start + pages * page)
    fill, texts = [], []
    for number, allowed in enumerate(access):
        address, readable = start + number * page, allowed[:1] == "r"
        each = _fill(address) if allowed else Fill.NOTHING
        if each is Fill.RESIDENT and address in locked:
            each = Fill.LOCKED
        if guards and readable and peeked(address, 1) is None:
            each = Fill.GUARD
        fill.append(each)
        texts.append(_text(address) if readable and each in (Fill.RESIDENT, Fill.LOCKED) else "")
    return Strip(caption, start, page, access, tuple(fill), tuple(texts) if holds else ())


def _fill(address: int) -> Fill:
    if in_this_process(address, 1)[0]:
        return Fill.RESIDENT
    return Fill.CACHED if in_memory(address, 1)[0] else Fill.NOTHING


def _locked(areas: Areas, start: int, end: int) -> set[int]:
    """Return the addresses of the locked pages in a range."""
    found: set[int] = set()
    for area in areas:
        inside = range(max(start, area.start), min(end, area.end), PAGE_SIZE)
        if inside and "lo" in area_facts(area.start).get("VmFlags", "").split():
            found.update(inside)
    return found


def _text(address: int) -> str:
    data = peeked(address, 3)
    if data is None:
        return ""
    if data == bytes(3):
        return "0"
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in data if byte)


#: Fits beside its labels into 80 columns, and divides the lengths that the tour maps.
_COLUMNS = 64


def bar(caption: str, region: Region) -> Bar:
    """Look at all pages of a region, of a multiple of 64 pages, as they are now."""
    pages = len(region) // PAGE_SIZE
    column = pages // _COLUMNS
    cached = in_memory(region.address, pages)
    resident = in_this_process(region.address, pages)
    starts = range(0, pages, column)
    return Bar(
        caption,
        column * PAGE_SIZE,
        tuple(sum(cached[at : at + column]) / column for at in starts),
        tuple(sum(resident[at : at + column]) / column for at in starts),
    )
