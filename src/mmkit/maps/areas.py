"""The areas of a process: rows that are made when looked at, over columns."""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from operator import itemgetter, sub
from typing import Literal, NamedTuple, overload

from mmkit._native.maps import DELETED, Columns, parse
from mmkit.flags import Prot
from mmkit.hints import size as written_size
from mmkit.maps.kinds import CODES, Kind, classify

__all__ = ["Area", "Areas"]

_KINDS = tuple(Kind)
_KIND_NAMES = tuple(kind.value for kind in Kind)
_LETTERS = "rwxs"
SHARED = 8


def perms_text(bits: int) -> str:
    """Write permission bits as maps does: ``rw-p``."""
    return "".join(letter if bits >> place & 1 else "---p"[place] for place, letter in enumerate(_LETTERS))


_PERMS = tuple(perms_text(bits) for bits in range(16))


class Area(NamedTuple):
    """A range of the address space that the kernel treats alike: one line of /proc/PID/maps.

    Attributes
    ----------
    start, end : int
        Addresses of the first byte, and after the last.
    size : int
        Bytes of address space; how much of it is in memory is another question.
    perms : str
        ``r``, ``w``, ``x`` or dashes, then ``p`` (private, copy-on-write) or ``s`` (shared).
    offset : int
        Bytes into the file at which the area begins.
    device, inode : int
        The file, as ``st_dev`` and ``st_ino`` of stat(2) name it; 0 without one.
    path : bytes
        The file's path, or what the kernel calls the area (``[heap]``); empty where it says nothing.
    deleted : bool
        Nobody can open the path any more. It ends with " (deleted)" in maps, and here without.
    kind : Kind
        What it is for.

    References
    ----------
    proc_pid_maps(5)
    """

    start: int
    end: int
    size: int
    perms: str
    offset: int
    device: int
    inode: int
    path: bytes
    deleted: bool
    kind: Kind

    def __repr__(self) -> str:
        deleted = " (deleted)" if self.deleted else ""
        name = f" {self.name}{deleted}" if self.path else ""
        return f"<Area {self.start:x}-{self.end:x} {self.perms} {self.kind}{name}>"

    @property
    def name(self) -> str:
        r"""The path for people: what cannot be printed, or is not UTF-8, is escaped (``\n``, ``\xff``)."""
        return printable(self.path)

    @property
    def prot(self) -> Prot:
        """The permissions as mprotect(2) takes them."""
        return Prot(sum(1 << place for place, letter in enumerate("rwx") if letter in self.perms))

    @property
    def shared(self) -> bool:
        """Do others see what is written there? The mapping was made with ``MAP_SHARED``."""
        return self.perms[3] == "s"


def printable(path: bytes) -> str:
    r"""Write a path so that no terminal is misled: ``new\nline``, ``not-utf8-\xff``, ``\u202e``."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


class Table:
    """All that is known of the areas of one process; `Areas` are selections of its rows.

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
    """

    def __init__(
        self, columns: Columns, pid: int, program: bytes | None, corrections: dict[int, tuple[bytes, bool]]
    ) -> None:
        self.columns = columns
        self.pid = pid
        self.program = program
        self._corrections = corrections

    @cached_property
    def paths(self) -> list[tuple[bytes, bool]]:
        """Each row of the path columns: the path, and whether it was deleted."""
        text = self.columns.path_bytes
        rows = zip(self.columns.path_start, self.columns.path_length, self.columns.path_facts, strict=True)
        paths = [(text[start : start + length], bool(facts & DELETED)) for start, length, facts in rows]
        for row, correction in self._corrections.items():
            paths[row] = correction
        return paths

    @cached_property
    def kinds(self) -> memoryview[int]:
        """For each area the position of its kind in `Kind`."""
        program = {row for row, path in enumerate(self.paths) if path[0] and as_linked(*path) == self.program}
        return memoryview(classify(self.columns, self.paths, program)).toreadonly()

    def area(self, row: int) -> Area:
        columns = self.columns
        start, end = columns.start[row], columns.end[row]
        path, deleted = self.paths[columns.path[row]]
        return Area(
            start,
            end,
            end - start,
            _PERMS[columns.perms[row]],
            columns.offset[row],
            columns.device[row],
            columns.inode[row],
            path,
            deleted,
            _KINDS[self.kinds[row]],
        )

    def row_at(self, address: int) -> int | None:
        row = bisect_right(self.columns.start, address) - 1
        return row if row >= 0 and address < self.columns.end[row] else None


def as_linked(path: bytes, deleted: bool) -> bytes:
    """Write a path as /proc/PID/exe has it."""
    return path + b" (deleted)" if deleted else path


ColumnName = Literal["start", "end", "size", "offset", "device", "inode", "perms", "kind"]
GroupName = Literal["kind", "path", "perms"]
PathFilter = str | bytes | os.PathLike[str] | os.PathLike[bytes] | re.Pattern[str] | re.Pattern[bytes]


class Areas(Sequence[Area]):
    """Areas of one process, in ascending order of address. Made by `mmkit.maps.read`.

    A sequence whose rows are made when they are looked at. Slices and `where` select rows and copy nothing;
    `column` gives one field of all rows as a buffer, for :mod:`numpy` and the like.
    """

    __slots__ = ("_rows", "_table")

    def __init__(self, table: Table, rows: Sequence[int] | None = None) -> None:
        self._table = table
        self._rows = range(len(table.columns.start)) if rows is None else rows

    @classmethod
    def parse(cls, text: bytes, *, pid: int = 0, program: bytes | None = None) -> Areas:
        """Read the text of a maps file that was saved, on any machine.

        Parameters
        ----------
        text
            As read from /proc/PID/maps. Lines that are not of its kind are skipped: see `malformed`.
        pid
            Whose it was.
        program
            Target of its /proc/PID/exe: without it the executable counts as a library.

        Returns
        -------
        Areas
            Paths as far as the text tells them.

        References
        ----------
        proc_pid_maps(5)
        """
        return cls(Table(parse(text), pid, program, {}))

    @property
    def pid(self) -> int:
        """The process; 0 if that is not known."""
        return self._table.pid

    @property
    def program(self) -> bytes | None:
        """Path of the executable, with " (deleted)" at its end if it was; None if it is not known."""
        return self._table.program

    @property
    def torn(self) -> bool:
        """Whether the process is known to have changed its areas while they were read.

        An area was told twice then; the later one was cut to what lies above the earlier. What changed
        without such a trace cannot be known. A stopped process is never torn.
        """
        return self._table.columns.torn > 0

    @property
    def malformed(self) -> int:
        """How many lines of the text could not be understood."""
        return self._table.columns.malformed

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Area: ...
    @overload
    def __getitem__(self, index: slice) -> Areas: ...
    def __getitem__(self, index: int | slice) -> Area | Areas:
        if isinstance(index, slice):
            return Areas(self._table, self._rows[index])
        return self._table.area(self._rows[index])

    def __iter__(self) -> Iterator[Area]:
        # As `Table.area` for each row, but column by column.
        paths = [self._table.paths[row] for row in self._selected(self._table.columns.path)]
        return map(
            Area,
            self.column("start"),
            self.column("end"),
            self.column("size"),
            map(_PERMS.__getitem__, self.column("perms")),
            self.column("offset"),
            self.column("device"),
            self.column("inode"),
            map(itemgetter(0), paths),
            map(itemgetter(1), paths),
            map(_KINDS.__getitem__, self.column("kind")),
        )

    def __contains__(self, area: object) -> bool:
        return isinstance(area, Area) and self.find(area.start) == area

    def __repr__(self) -> str:
        bytes_ = written_size(sum(self.column("size")))
        areas = "1 area" if len(self) == 1 else f"{len(self)} areas"
        owner = f" of process {self.pid}" if self.pid else ""
        return f"<Areas{owner}: {areas}, {bytes_} of address space>"

    def find(self, address: int) -> Area | None:
        """Find the area that holds an address.

        Returns
        -------
        Area or None
            None if none of these areas does.
        """
        row = self._table.row_at(address)
        return None if row is None or row not in self._rows else self._table.area(row)

    def column(self, name: ColumnName) -> memoryview[int]:
        """Export one field of every area.

        Parameters
        ----------
        name
            ``start``, ``end``, ``size``, ``offset``, ``device``, ``inode``: as `Area` has them.
            ``perms``: bits, 1 for r, 2 for w, 4 for x (as `Prot`), 8 for s.
            ``kind``: the position of the kind in `Kind`: ``list(Kind)[number]``.

        Returns
        -------
        memoryview
            Read-only, unsigned: 8 bytes an area, or 1 for perms and kind. ``numpy.asarray`` takes it
            without a copy.
        """
        if name == "size":
            return memoryview(array("Q", map(sub, self.column("end"), self.column("start")))).toreadonly()
        if name not in _COLUMNS:
            raise ValueError(f"no column {name!r}: there are {', '.join(_COLUMNS)}")
        column = self._table.kinds if name == "kind" else getattr(self._table.columns, name)
        return self._selected(column)

    def _selected(self, column: memoryview[int]) -> memoryview[int]:
        if isinstance(self._rows, range):
            rows = self._rows
            # Counting down to row 0 ends at -1, which a slice takes for the last row.
            stop = rows.stop if rows.stop >= 0 else None
            return column[rows.start : stop : rows.step] if rows else column[:0]
        chosen = array(column.format, map(column.__getitem__, self._rows))
        return memoryview(chosen).toreadonly()

    def where(
        self,
        *,
        kind: Kind | str | Iterable[Kind | str] | None = None,
        path: PathFilter | None = None,
        perms: str | None = None,
    ) -> Areas:
        """Select areas for which everything holds that is asked.

        Parameters
        ----------
        kind
            A kind, or several of which one is enough.
        path
            The whole path, or a compiled pattern that is searched in it. A pattern of str sees
            paths as ``os.fsdecode`` makes them.
        perms
            Letters of ``rwxsp`` that must all be there: ``"wx"``. Or all four places as maps writes
            them, dashes included: ``"r--p"``.

        Returns
        -------
        Areas
            In the same order.

        Raises
        ------
        ValueError
            No such kind, or no such permission letter.
        """
        rows: Iterable[int] = self._rows
        if kind is not None:
            kinds, wanted = self._table.kinds, _kind_codes(kind)
            rows = [row for row in rows if kinds[row] in wanted]
        if path is not None:
            path_rows = self._table.columns.path
            fitting = [_fits(path, each) for each, _ in self._table.paths]
            rows = [row for row in rows if fitting[path_rows[row]]]
        if perms is not None:
            bits, allowed = self._table.columns.perms, _allowed_perms(perms)
            rows = [row for row in rows if bits[row] in allowed]
        return self if rows is self._rows else Areas(self._table, array("Q", rows))

    def total(self, by: GroupName = "kind") -> dict[str, int]:
        """Add up sizes by groups.

        Parameters
        ----------
        by
            ``kind``, ``path`` (as ``os.fsdecode`` makes it, and "" for areas without one) or ``perms``.

        Returns
        -------
        dict
            Bytes of address space for each group, the largest first.
        """
        if by not in ("kind", "path", "perms"):
            raise ValueError(f"cannot group by {by!r}: by kind, path or perms")
        names: Sequence[str]
        if by == "kind":
            names, groups = _KIND_NAMES, self.column("kind")
        elif by == "perms":
            names, groups = _PERMS, self.column("perms")
        else:
            names = [os.fsdecode(path) for path, _ in self._table.paths]
            groups = self._selected(self._table.columns.path)
        sums: dict[str, int] = {}
        for group, size in zip(groups, self.column("size"), strict=True):
            name = names[group]
            sums[name] = sums.get(name, 0) + size
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


_COLUMNS = ("start", "end", "size", "offset", "device", "inode", "perms", "kind")


def _kind_codes(kind: Kind | str | Iterable[Kind | str]) -> set[int]:
    kinds = [kind] if isinstance(kind, str) else kind
    return {CODES[Kind(each)] for each in kinds}


def _fits(wanted: PathFilter, path: bytes) -> bool:
    if isinstance(wanted, re.Pattern):
        if isinstance(wanted.pattern, bytes):
            return wanted.search(path) is not None
        return wanted.search(os.fsdecode(path)) is not None
    return os.fsencode(wanted) == path


def _allowed_perms(perms: str) -> set[int]:
    if perms in _PERMS:
        return {_PERMS.index(perms)}
    if not perms or set(perms) - set("rwxsp"):
        raise ValueError(f"perms must be letters of 'rwxsp', or four places as in 'r--p', not {perms!r}")
    return {bits for bits, text in enumerate(_PERMS) if set(perms) <= set(text)}
