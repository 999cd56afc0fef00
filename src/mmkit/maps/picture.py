"""The picture of a process that every textbook has, with the addresses that this one really has."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from mmkit.maps.areas import Area, Areas
from mmkit.maps.kinds import Kind
from mmkit.maps.paths import printable
from mmkit.maps.process import read
from mmkit.wording import size as written_size

__all__ = ["draw", "layout", "shortened"]

#   ffffffffffffffff ├──────────── _BOX ────────────┤ 1023.9 GiB
_ADDRESS, _BOX, _SIZE = 18, 46, 11
_LIBRARIES_NAMED = 4
_MOST_SEGMENTS = 12

_PROGRAM = {
    Kind.BSS: "variables that begin as zeros",
    Kind.DATA: "variables with a first value",
    Kind.RODATA: "constants",
    Kind.TEXT: "machine code",
}
_GROUPS = {
    "libraries": (Kind.LIBRARY,),
    "anonymous": (Kind.ANONYMOUS,),
    "stacks of threads": (Kind.THREAD_STACK,),
    "mmkit": (Kind.MMKIT,),
    "files": (Kind.FILE,),
    "shared memory": (Kind.SHM, Kind.SYSTEMV, Kind.MEMFD),
    "huge pages": (Kind.HUGETLB,),
    "devices": (Kind.DEVICE,),
    "vdso, vvar": (Kind.VDSO,),
}


@dataclass
class _Row:
    """A line of the picture: text at the left, a note at the right, and a size beside the box."""

    text: str
    note: str = ""
    size: int | None = None


@dataclass
class _Segment:
    """A stretch of the address space drawn as one box."""

    start: int
    end: int
    rows: list[_Row]
    is_free: bool = False
    areas: list[Area] = field(default_factory=list)


def layout(pid: int | None = None) -> str:
    """Draw the address space of a process, highest address on top.

    Parameters
    ----------
    pid
        The process; None for this one.

    Returns
    -------
    str
        Lines of at most 80 columns, with box-drawing characters and no colour.

    Raises
    ------
    SyscallError, Error
        As `read`.

    References
    ----------
    proc_pid_maps(5)
    """
    return draw(read(pid))


def draw(areas: Areas) -> str:
    """Draw areas that were read before: see `layout`."""
    kernel_start, user_end = _halves(areas)
    user = _segments([area for area in areas if area.end <= user_end])
    kernel = [area for area in areas if area.start >= kernel_start]
    lines = [*_title(areas), *_kernel_box(kernel_start, kernel)]
    lines += [_line("", " ", "no pointer can hold these addresses".center(_BOX), " ")]
    lines += _user_boxes(_with_gaps(user, user_end), user_end)
    return "\n".join(line.rstrip() for line in lines)


def _halves(areas: Areas) -> tuple[int, int]:
    """Where kernel space begins and user space ends: each has half of what addresses can express."""
    highest = max((area.end for area in areas if area.end < 1 << 63), default=0)
    bits = max((highest - 1).bit_length() if highest else 0, 47 if platform.machine() == "x86_64" else 39)
    return (1 << 64) - (1 << bits), 1 << bits


def _title(areas: Areas) -> list[str]:
    program = shortened(printable(areas.program), _BOX) if areas.program else "program unknown"
    owner = f"process {areas.pid}" if areas.pid else "a process"
    total = written_size(sum(areas.column("size")))
    return [_line("", "", program, ""), _line("", "", f"{owner}: {len(areas)} areas, {total} mapped", ""), ""]


def shortened(path: str, width: int) -> str:
    """Cut a path to a width in columns: its folders first, then the middle of its last part."""
    if _columns(path) <= width:
        return path
    last = path.rpartition("/")[2]
    if _columns(last) + 2 <= width:
        return "…" + _end(path, width - 1)
    tail = min(8, width // 3)
    return _beginning(last, width - 1 - tail) + "…" + _end(last, tail)


def _columns(text: str) -> int:
    """Tell how many columns of a terminal a text takes: one letter takes two, one or none."""
    # Who draws nothing need not wait for this table.
    from rich.cells import cell_len

    return cell_len(text)


def _beginning(text: str, width: int) -> str:
    text = text[:width]
    while _columns(text) > width:
        text = text[:-1]
    return text


def _end(text: str, width: int) -> str:
    text = text[-width:]
    while _columns(text) > width:
        text = text[1:]
    return text


def _line(address: str, left: str, inside: str, right: str, size: int | None = None) -> str:
    written = written_size(size) if size is not None else ""
    return f"{address:>{_ADDRESS}} {left}{inside}{right} {written:>{_SIZE}}"


def _edge(address: int, left: str, middle: str, right: str) -> str:
    return _line(f"{address:x}", left, middle * _BOX, right)


def _row_line(row: _Row, side: str) -> str:
    space = " " * (_BOX - 2 - _columns(row.text) - len(row.note))
    inside = f" {row.text}{space}{row.note} "
    return _line("", side, inside, side, row.size)


def _kernel_box(start: int, areas: list[Area]) -> list[str]:
    rows = [_Row("kernel space", "", (1 << 64) - start)]
    rows += [
        _Row(f"  {shortened(area.name, 18)} at {area.start:x}", area.perms[:3], area.size) for area in areas
    ]
    lines = [_edge((1 << 64) - 1, "┏", "━", "┓")]
    lines += [_row_line(row, "┃") for row in rows]
    return [*lines, _edge(start, "┗", "━", "┛")]


def _user_boxes(segments: Iterable[_Segment], end: int) -> Iterator[str]:
    left, right, bottom = "┌", "┐", end
    for segment in segments:
        yield _edge(segment.end, left, "─", right)
        for row in segment.rows:
            yield _row_line(row, "┊" if segment.is_free else "│")
        left, right, bottom = "├", "┤", segment.start
    yield _edge(bottom, "└", "─", "┘")


def _with_gaps(segments: list[_Segment], end: int) -> Iterator[_Segment]:
    """Go through segments from the top down, and through what is free above, between and below them."""
    for segment in [*reversed(segments), None]:
        below = segment.end if segment else 0
        if below < end:
            yield _Segment(below, end, [_Row("free", "", end - below)], is_free=True)
        if segment:
            yield segment
            end = segment.start


def _segments(areas: list[Area]) -> list[_Segment]:
    """Cut the address space into boxes, from the bottom up."""
    widest_gap = 1 << 30
    while len(segments := _cut(areas, widest_gap)) > _MOST_SEGMENTS and widest_gap < 1 << 63:
        widest_gap *= 4
    return [_drawn(segment) for segment in segments]


def _zone(area: Area) -> str:
    """Name the part of the picture that an area belongs to: neighbours of one zone share a box."""
    if area.kind in _PROGRAM or area.kind in (Kind.HEAP, Kind.STACK):
        return area.kind
    return "mmap"


def _cut(areas: list[Area], widest_gap: int) -> list[_Segment]:
    """Put neighbours of one zone into one segment, unless there is a wide gap between them."""
    segments: list[_Segment] = []
    for zone, group in groupby(areas, _zone):
        begins = True
        for area in group:
            gap = 0 if begins else area.start - segments[-1].end
            if begins or gap > (widest_gap if zone == "mmap" else 0):
                segments.append(_Segment(area.start, area.end, []))
            segments[-1].areas.append(area)
            segments[-1].end = area.end
            begins = False
    return segments


def _drawn(segment: _Segment) -> _Segment:
    kind, size = segment.areas[0].kind, segment.end - segment.start
    if kind is Kind.STACK:
        segment.rows = [_Row("stack", "↓ grows down", size)]
    elif kind is Kind.HEAP:
        segment.rows = [_Row("heap (brk)", "↑ grows up", size)]
    elif kind in _PROGRAM:
        perms = segment.areas[-1].perms[:3]
        segment.rows = [_Row(f"{kind:<8}{_PROGRAM[kind]}", perms, size)]
    else:
        segment.rows = list(_mapped_rows(segment))
    return segment


def _mapped_rows(segment: _Segment) -> Iterator[_Row]:
    areas = segment.areas
    # The kernel puts new mappings below these, in the highest gap that fits.
    is_main = any(area.kind in (Kind.LIBRARY, Kind.VDSO) for area in areas)
    # What is free in between is not mapped: boxes and the title count what is.
    size = sum(area.size for area in areas)
    yield _Row(f"mmap area: {_count(len(areas), 'area')}", "↓ grows down" if is_main else "", size)
    for name, kinds in _GROUPS.items():
        members = [area for area in areas if area.kind in kinds]
        if not members:
            continue
        yield _Row(f"  {name}", _note(members), sum(area.size for area in members))
        if Kind.LIBRARY in kinds:
            yield from _library_rows(members)
    if unused := segment.end - segment.start - size:
        yield _Row("  free between them, not counted", "", unused)


def _note(members: list[Area]) -> str:
    if members[0].kind in (Kind.LIBRARY, Kind.FILE):
        return _count(len({area.path for area in members}), "file")
    return _count(len(members), "area")


def _library_rows(members: list[Area]) -> Iterator[_Row]:
    sizes: dict[bytes, int] = {}
    for area in members:
        sizes[area.path] = sizes.get(area.path, 0) + area.size
    largest = sorted(sizes.items(), key=lambda item: -item[1])
    for path, size in largest[:_LIBRARIES_NAMED]:
        name = shortened(printable(path.rpartition(b"/")[2]), _BOX - 6)
        yield _Row(f"    {name}", "", size)
    if rest := largest[_LIBRARIES_NAMED:]:
        yield _Row(f"    and {len(rest)} more", "", sum(size for _, size in rest))


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
