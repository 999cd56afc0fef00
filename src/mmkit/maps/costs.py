"""What areas cost: the fields of /proc/PID/smaps, for one area and added up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from mmkit.maps.paths import printable
from mmkit.wording import size as written_size

__all__ = ["Costs", "Total", "Totals"]

#: What a table of totals shows, as far as the kernel tells it.
SHOWN = ("rss", "pss", "uss", "swap")


class Costs(Mapping[str, int | str]):
    """What one area costs: every field that smaps has for it, by its lower-case name; sizes in bytes.

    Of an `Area` with costs each is an attribute as well: ``area.private_dirty`` is
    ``area.costs["private_dirty"]``. Values are text where the kernel writes text (``vmflags``). The same
    fields are there whatever the area, in the kernel's order. ``uss``, what only this process has
    (private_clean, private_dirty and private_hugetlb together), is mmkit's own sum.

    References
    ----------
    proc_pid_smaps(5)
    """

    __slots__ = ("_places", "_values")

    def __init__(self, places: Mapping[str, int], values: tuple[int | str, ...]) -> None:
        self._places = places
        self._values = values

    def __getitem__(self, name: str) -> int | str:
        return self._values[self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __hash__(self) -> int:
        return hash(self._values)

    def __repr__(self) -> str:
        return f"<Costs {', '.join(f'{name} {value}' for name, value in self.items() if value)}>"


class Total(int):
    """What a group of areas has together: its bytes of address space as a number, each cost as an attribute.

    Attributes
    ----------
    size : int
        Bytes of address space, as the number itself.
    areas : int
        How many areas there are.
    costs : dict of str to int
        For areas read with costs each field of smaps that is a number of bytes, by its lower-case name, and
        `uss`; each is an attribute as well.
    """

    areas: int
    costs: dict[str, int]

    def __new__(cls, size: int, areas: int = 0, costs: Mapping[str, int] | None = None) -> Total:  # noqa: D102
        total = super().__new__(cls, size)
        total.areas = areas
        total.costs = dict(costs or {})
        return total

    @property
    def size(self) -> int:
        """Bytes of address space."""
        return int(self)

    def __getattr__(self, name: str) -> int:
        if not name.startswith("_") and name in self.costs:
            return self.costs[name]
        raise AttributeError(f"no total of {name!r}: there are {', '.join(['size', 'areas', *self.costs])}")

    def __repr__(self) -> str:
        shown = "".join(f", {name} {written_size(self.costs[name])}" for name in SHOWN if name in self.costs)
        areas = "1 area" if self.areas == 1 else f"{self.areas} areas"
        return f"<Total {written_size(self)} in {areas}{shown}>"

    # Without it str() is __repr__, which formats the number, which is str().
    __str__ = int.__repr__


class Totals(dict[str, Total]):
    """The totals of groups of areas by the name of the group, the largest first. Printed, it is a table.

    "The largest" has the most memory resident, if costs were read, else the most address space.
    """

    def __init__(self, groups: Mapping[str, Total]) -> None:
        def largest_first(item: tuple[str, Total]) -> tuple[int, int, str]:
            name, total = item
            return -total.costs.get("rss", 0), -total, name

        super().__init__(sorted(groups.items(), key=largest_first))

    @property
    def sum(self) -> Total:
        """All groups together."""
        names = dict.fromkeys(name for total in self.values() for name in total.costs)
        return Total(
            sum(self.values()),
            sum(total.areas for total in self.values()),
            {name: sum(total.costs.get(name, 0) for total in self.values()) for name in names},
        )

    def __repr__(self) -> str:
        whole = self.sum
        columns = ["areas", "size", *(name for name in SHOWN if name in whole.costs)]
        rows = [["", *columns]]
        for name, total in [*self.items(), ("total", whole)]:
            values = [written_size(getattr(total, column)) for column in columns[1:]]
            rows.append([printable(os.fsencode(name)) or "(no path)", str(total.areas), *values])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

        def line(row: list[str]) -> str:
            return "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()

        return "\n".join(map(line, rows))
