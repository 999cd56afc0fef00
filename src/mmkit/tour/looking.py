"""What the kernel says of addresses: the map, the page table, the page cache, and the bytes."""

from __future__ import annotations

import os
from pathlib import Path

from mmkit import linux, maps, supports
from mmkit.errors import MemoryFault
from mmkit.faults import peek
from mmkit.region import PAGE_SIZE

__all__ = ["area_facts", "in_memory", "in_this_process", "peeked", "permissions", "to_be_written"]

_ENTRY = 8
_PRESENT = 1 << 63


def permissions(address: int) -> str:
    """Return what /proc/self/maps says of an address (``rw-p``); empty if nothing is mapped there."""
    area = maps.find(address)
    return area.perms if area else ""


def in_this_process(address: int, pages: int) -> list[bool]:
    """Tell of each page whether this process has it in RAM (/proc/self/pagemap)."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as table:
        entries = os.pread(table.fileno(), pages * _ENTRY, address // PAGE_SIZE * _ENTRY)
    # Pages beyond the end of user space have no entries.
    found = [
        int.from_bytes(entries[at : at + _ENTRY], "little") & _PRESENT != 0
        for at in range(0, len(entries), _ENTRY)
    ]
    return found + [False] * (pages - len(found))


def in_memory(address: int, pages: int) -> list[bool]:
    """Tell of each page of a mapping whether it is in memory, for this process or for others (mincore(2)).

    Not by `Region.cached`: on a file system that stands on another, as containers have it, cachestat(2)
    looks at the upper file, and finds none of its pages.
    """
    start = address // PAGE_SIZE * PAGE_SIZE
    return [byte & 1 == 1 for byte in linux.mincore(start, pages * PAGE_SIZE)]


def to_be_written(fd: int, length: int) -> int:
    """Count the pages of a file that are not on disk yet; 0 also where kernel or file system do not tell."""
    return linux.cachestat(fd, 0, length).nr_dirty if supports("cachestat") else 0


def peeked(address: int, length: int) -> bytes | None:
    """Read memory of this process, or None if it cannot be read: no crash, whatever is there."""
    try:
        return peek(address, length)
    except MemoryFault:
        return None


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
