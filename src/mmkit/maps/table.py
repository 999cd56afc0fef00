"""All that one reading tells of the areas of a process, as columns."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from operator import add, sub

from mmkit._native.maps import BYTES, DELETED, TEXT, Columns
from mmkit.maps.kinds import classify
from mmkit.maps.lazy import lazy
from mmkit.maps.paths import as_linked

__all__ = ["Table"]

AREA_COLUMNS = ("start", "end", "size", "offset", "device", "inode", "perms", "kind")

#: The pages that nobody else has mapped: together they are the USS.
_PRIVATE = ("private_clean", "private_dirty", "private_hugetlb")
#: Fields that have kB, but are no amounts of memory.
_NOT_AMOUNTS = frozenset({"kernelpagesize", "mmupagesize"})


class Table:
    """The areas of one process; `Areas` are selections of its rows.

    Parameters
    ----------
    columns
        What the text said.
    pid
        Whose it was; 0 if that is not known.
    program
        Target of /proc/PID/exe; None if it is not known.
    corrections
        Paths (rows of the path columns) that the text told wrongly, with whether they were deleted.
    stacks
        An address in the stack of each thread but the main one; None where that is not known.
    """

    def __init__(
        self,
        columns: Columns,
        pid: int,
        program: bytes | None,
        corrections: dict[int, tuple[bytes, bool]],
        stacks: Sequence[int] | None,
    ) -> None:
        self.columns = columns
        self.pid = pid
        self.program = program
        self._corrections = corrections
        self._stacks = stacks
        self._made: dict[str, memoryview[int]] = {}

    def __len__(self) -> int:
        return self.columns.areas

    def column(self, name: str) -> memoryview[int]:
        """Give a column by its name in `AREA_COLUMNS`, or "path"."""
        column = self._made.get(name)
        if column is None:
            column = self._made[name] = self._make(name)
        return column

    def _make(self, name: str) -> memoryview[int]:
        if name == "size":
            return memoryview(array("Q", map(sub, self.column("end"), self.column("start")))).toreadonly()
        if name == "kind":
            codes = classify(self.columns, self.paths, self._program_rows(), self._stacks)
            return memoryview(codes).toreadonly()
        return self.columns.column(name)

    def cost(self, name: str) -> memoryview[int]:
        """Give the column of one of `fields`. A kernel may call a field as a column of areas is called."""
        place = self._told.get(name)
        return self._uss if place is None else self.columns.field(place)

    @lazy
    def _uss(self) -> memoryview[int]:
        parts = [self.cost(part) for part in _PRIVATE if self.fields.get(part) == BYTES]
        whole = array("Q", parts[0])
        for part in parts[1:]:
            whole = array("Q", map(add, whole, part))
        return memoryview(whole).toreadonly()

    def _program_rows(self) -> set[int]:
        return {row for row, path in enumerate(self.paths) if path[0] and as_linked(*path) == self.program}

    @lazy
    def _told(self) -> dict[str, int]:
        """Fields of smaps by their names here, and their places; of two that are one here, the first."""
        places: dict[str, int] = {}
        for place, name in enumerate(self.columns.units):
            places.setdefault(name.lower(), place)
        places.pop("size", None)  # an area has one already
        return places

    @lazy
    def fields(self) -> dict[str, int]:
        """The costs that the text told, and the unit of each; the USS, too, unless a kernel tells it."""
        units = list(self.columns.units.values())
        fields = [(name, units[place]) for name, place in self._told.items()]
        if "uss" not in self._told and any(name in _PRIVATE and unit == BYTES for name, unit in fields):
            names = list(self._told)
            fields.insert(names.index("pss") + 1 if "pss" in names else 0, ("uss", BYTES))
        return dict(fields)

    @lazy
    def places(self) -> dict[str, int]:
        """Where in the costs of an area each field is."""
        return {name: place for place, name in enumerate(self.fields)}

    @lazy
    def amounts(self) -> tuple[str, ...]:
        """The fields that can be added up."""
        return tuple(name for name, unit in self.fields.items() if unit == BYTES and name not in _NOT_AMOUNTS)

    def values(self, name: str, numbers: memoryview[int]) -> Sequence[int] | list[str]:
        """Turn what a column has for a field into its values."""
        if self.fields[name] != TEXT:
            return numbers
        # A number is a place in the text, and a length: MMK_TEXT_START, MMK_TEXT_LENGTH.
        text = self.columns.text
        pieces = [text[number >> 16 : (number >> 16) + (number & 0xFFFF)] for number in numbers]
        known = {piece: piece.decode("utf-8", "backslashreplace") for piece in set(pieces)}
        return [known[piece] for piece in pieces]

    @lazy
    def paths(self) -> list[tuple[bytes, bool]]:
        """Each row of the path columns: the path, and whether it was deleted."""
        text = self.columns.text
        rows = zip(
            self.columns.column("path_start"),
            self.columns.column("path_length"),
            self.columns.column("path_facts"),
            strict=True,
        )
        paths = [(text[start : start + length], bool(facts & DELETED)) for start, length, facts in rows]
        for row, correction in self._corrections.items():
            paths[row] = correction
        return paths

    def row_at(self, address: int) -> int | None:
        """Tell which row holds an address."""
        row = bisect_right(self.column("start"), address) - 1
        return row if row >= 0 and address < self.column("end")[row] else None
