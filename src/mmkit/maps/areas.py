"""The areas of a process: rows that are made when looked at, over columns."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Literal, NamedTuple, overload

from mmkit._native.maps import TEXT, parse, sums
from mmkit.flags import Prot
from mmkit.maps.costs import Costs, Total, Totals
from mmkit.maps.kinds import CODES, Kind
from mmkit.maps.paths import printable
from mmkit.maps.table import AREA_COLUMNS, Table
from mmkit.wording import size as written_size

__all__ = ["Area", "Areas"]

_KINDS = tuple(Kind)
_KIND_NAMES = tuple(kind.value for kind in Kind)
_LETTERS = "rwxs"


def _perms_text(bits: int) -> str:
    return "".join(letter if bits >> place & 1 else "---p"[place] for place, letter in enumerate(_LETTERS))


#: Permission bits as maps writes them: ``rw-p``.
PERMS = tuple(_perms_text(bits) for bits in range(16))


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
    costs : Costs or None
        What it costs, if that was read. Each field of it is an attribute, too: ``rss``, ``pss``, ``uss``,
        ``swap``, ``private_dirty`` and whatever else the kernel's smaps has, in bytes.

    References
    ----------
    proc_pid_maps(5), proc_pid_smaps(5)
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
    costs: Costs | None = None

    def __getattr__(self, name: str) -> int:
        # Of the fields that are text there is one, which has a property.
        if self.costs is not None and name in self.costs:
            return self.costs[name]  # type: ignore[return-value]
        if self.costs is None:
            raise AttributeError(f"an Area has no {name!r}; what areas cost comes with read(costs=True)")
        raise AttributeError(f"an Area has no {name!r}; this kernel's smaps tells {', '.join(self.costs)}")

    def __repr__(self) -> str:
        deleted = " (deleted)" if self.deleted else ""
        name = f" {self.name}{deleted}" if self.path else ""
        rss = f", {written_size(self.rss)} resident" if self.costs and "rss" in self.costs else ""
        return f"<Area {self.start:x}-{self.end:x} {self.perms} {self.kind}{name}{rss}>"

    @property
    def vmflags(self) -> str:
        """The kernel's own flags, two letters each: ``rd wr mr mw me ac``. Of areas read with costs."""
        flags = self.costs.get("vmflags") if self.costs else None
        return self.__getattr__("vmflags") if flags is None else str(flags)  # type: ignore[return-value]

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
        self._rows = range(len(table)) if rows is None else rows

    @classmethod
    def parse(cls, text: bytes, *, pid: int = 0, program: bytes | None = None) -> Areas:
        """Read the text of a maps or smaps file that was saved, on any machine.

        Parameters
        ----------
        text
            As read from /proc/PID/maps, or with costs from /proc/PID/smaps. Lines that are not of their kind
            are skipped: see `malformed`.
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
        proc_pid_maps(5), proc_pid_smaps(5)
        """
        return cls(Table(parse(text), pid, program, {}, None))

    @property
    def pid(self) -> int:
        """The process; 0 if that is not known."""
        return self._table.pid

    @property
    def program(self) -> bytes | None:
        """Path of the executable, with " (deleted)" at its end if it was; None if it is not known.

        It is not known of a process without one, and where the path is longer than ``PATH_MAX``.
        """
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
        return self._area(self._rows[index])

    def _area(self, row: int) -> Area:
        table = self._table
        column = table.column
        start, end = column("start")[row], column("end")[row]
        path, deleted = table.paths[column("path")[row]]
        costs = None
        if table.fields:
            values = (table.values(name, table.cost(name)[row : row + 1])[0] for name in table.fields)
            costs = Costs(table.places, tuple(values))
        return Area(
            start,
            end,
            end - start,
            PERMS[column("perms")[row]],
            column("offset")[row],
            column("device")[row],
            column("inode")[row],
            path,
            deleted,
            _KINDS[column("kind")[row]],
            costs,
        )

    def __iter__(self) -> Iterator[Area]:
        # As `_area` for each row, but column by column.
        paths = [self._table.paths[row] for row in self._selected("path")]
        return map(
            Area,
            self._selected("start"),
            self._selected("end"),
            self._selected("size"),
            map(PERMS.__getitem__, self._selected("perms")),
            self._selected("offset"),
            self._selected("device"),
            self._selected("inode"),
            map(itemgetter(0), paths),
            map(itemgetter(1), paths),
            map(_KINDS.__getitem__, self._selected("kind")),
            self._costs(),
        )

    def _costs(self) -> Iterator[Costs | None]:
        table = self._table
        if not table.fields:
            return repeat(None)
        columns = [table.values(name, self._chosen(table.cost(name))) for name in table.fields]
        return map(Costs, repeat(table.places), zip(*columns, strict=True))

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
        return None if row is None or row not in self._rows else self._area(row)

    @property
    def costs(self) -> tuple[str, ...]:
        """The names of what is known of each area's costs, as columns have them; empty without costs."""
        return tuple(self._table.fields)

    def column(self, name: str) -> memoryview[int]:
        """Export one field of every area.

        Parameters
        ----------
        name
            ``start``, ``end``, ``size``, ``offset``, ``device``, ``inode``: as `Area` has them.
            ``perms``: bits, 1 for r, 2 for w, 4 for x (as `Prot`), 8 for s.
            ``kind``: the position of the kind in `Kind`: ``list(Kind)[number]``.
            And the fields of smaps, for areas read with costs, as far as they are numbers: see `costs`.
            Should a kernel call a field as one of the columns above, that is in `Area.costs` only.

        Returns
        -------
        memoryview
            Read-only, unsigned: 8 bytes an area, or 1 for perms and kind. ``numpy.asarray`` takes it
            without a copy.
        """
        if name in AREA_COLUMNS:
            return self._selected(name)
        if self._table.fields.get(name, TEXT) == TEXT:
            numbers = [each for each, unit in self._table.fields.items() if unit != TEXT]
            more = "" if numbers else "; costs come with read(costs=True)"
            raise ValueError(f"no column {name!r}: there are {', '.join([*AREA_COLUMNS, *numbers])}{more}")
        return self._chosen(self._table.cost(name))

    def _selected(self, name: str) -> memoryview[int]:
        return self._chosen(self._table.column(name))

    def _chosen(self, column: memoryview[int]) -> memoryview[int]:
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
            kinds, wanted = self._table.column("kind"), _kind_codes(kind)
            rows = [row for row in rows if kinds[row] in wanted]
        if path is not None:
            path_rows = self._table.column("path")
            fitting = [_fits(path, each) for each, _ in self._table.paths]
            rows = [row for row in rows if fitting[path_rows[row]]]
        if perms is not None:
            bits, allowed = self._table.column("perms"), _allowed_perms(perms)
            rows = [row for row in rows if bits[row] in allowed]
        return self if rows is self._rows else Areas(self._table, array("Q", rows))

    def total(self, by: GroupName = "kind") -> Totals:
        """Add up what areas have, by groups.

        Parameters
        ----------
        by
            ``kind``, ``path`` (as ``os.fsdecode`` makes it, and "" for areas without one) or ``perms``.

        Returns
        -------
        Totals
            A dict: for each group a `Total`, the largest first. That is a number, the bytes of address
            space; for areas read with costs it has the sum of each as an attribute (``rss``, ``pss``, …).
        """
        if by not in ("kind", "path", "perms"):
            raise ValueError(f"cannot group by {by!r}: by kind, path or perms")
        names: Sequence[str]
        if by == "kind":
            names = _KIND_NAMES
        elif by == "perms":
            names = PERMS
        else:
            names = [os.fsdecode(path) for path, _ in self._table.paths]
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        place_of = [places[name] for name in names]
        groups = array("I", [place_of[number] for number in self._selected(by)])
        sizes = self._sums(groups, self._table.column("size"), len(places))
        costs = {
            name: self._sums(groups, self._table.cost(name), len(places)) for name in self._table.amounts
        }
        counts = [0] * len(places)
        for group in groups:
            counts[group] += 1
        return Totals(
            {
                name: Total(sizes[place], counts[place], {each: costs[each][place] for each in costs})
                for name, place in places.items()
                if counts[place]
            }
        )

    def _sums(self, groups: array[int], column: memoryview[int], count: int) -> list[int]:
        chosen = self._chosen(column)
        return sums(groups, chosen if chosen.c_contiguous else array("Q", chosen), count)


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
    if perms in PERMS:
        return {PERMS.index(perms)}
    if not perms or set(perms) - set("rwxsp"):
        raise ValueError(f"perms must be letters of 'rwxsp', or four places as in 'r--p', not {perms!r}")
    return {bits for bits, text in enumerate(PERMS) if set(perms) <= set(text)}
