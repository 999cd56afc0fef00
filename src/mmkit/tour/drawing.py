"""From pictures to lines of text, in characters that draw boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from mmkit.tour.pictures import Bar, Fill, Ladder, Picture, Rung, Strip
from mmkit.wording import size

__all__ = ["draw"]

#: Names of the rows, left of the first strip.
_LABELS = ("access", "in RAM", "holds")
_LABEL_WIDTH = 7
_GAP = 3
#: Cells as wide as this are easier to read where there is room.
_CELL, _WIDE_CELL = 3, 5

# Of the sixteen colours of terminals, those that can be read on light and on dark ground.
_FRAME = "dim"
_FILLS = {
    Fill.NOTHING: "",
    Fill.CACHED: "cyan",
    Fill.RESIDENT: "green",
    Fill.LOCKED: "magenta",
    Fill.GUARD: "red",
}


def draw(pictures: Sequence[Picture], width: int) -> list[Text]:
    """Draw pictures, side by side as far as they fit into a width.

    Returns
    -------
    list of Text
        Lines of at most `width` columns; wider only where a single strip does not fit.
    """
    lines: list[Text] = []
    for ladder in (picture for picture in pictures if isinstance(picture, Ladder)):
        lines += _ladder(ladder, width)
    lines += _bars([picture for picture in pictures if isinstance(picture, Bar)], width)
    strips = [picture for picture in pictures if isinstance(picture, Strip)]
    for row in _rows_that_fit(strips, width):
        lines += [Text(), *row] if lines else row
    return lines


def _rows_that_fit(strips: Sequence[Strip], width: int) -> Iterator[list[Text]]:
    cell = _WIDE_CELL if _how_many(strips, _WIDE_CELL, width) == len(strips) else _CELL
    while strips:
        count = _how_many(strips, cell, width)
        yield _side_by_side(strips[:count], cell)
        strips = strips[count:]


def _how_many(strips: Sequence[Strip], cell: int, width: int) -> int:
    used = _LABEL_WIDTH - _GAP
    for number, strip in enumerate(strips):
        used += _GAP + _block_width(strip, cell)
        if used > width:
            return max(number, 1)
    return len(strips)


def _block_width(strip: Strip, cell: int) -> int:
    return max(len(strip.access) * (cell + 1) + 1, len(strip.caption), len(_addresses(strip, 0)))


def _side_by_side(strips: Sequence[Strip], cell: int) -> list[Text]:
    has_holds = any(strip.holds for strip in strips)
    labels = ["", "", *_LABELS[: 3 if has_holds else 2], "", ""]
    blocks = [_block(strip, cell, has_holds) for strip in strips]
    lines = []
    for label, parts in zip(labels, zip(*blocks, strict=True), strict=True):
        line = Text.assemble((f"{label:<{_LABEL_WIDTH}}", _FRAME))
        line.append_text(Text(" " * _GAP).join(parts))
        line.rstrip()
        lines.append(line)
    return lines


def _block(strip: Strip, cell: int, has_holds: bool) -> list[Text]:
    """Draw a strip as a block of lines of one width."""
    inner = len(strip.access) * (cell + 1) - 1
    lines = [Text(strip.caption, "bold")]
    if not any(strip.access):
        lines += _nothing(inner, 3 if has_holds else 2)
    else:
        lines.append(_edge(strip, cell, *"┌┬┐"))
        lines.append(_cells([(each or " · ", "" if each else _FRAME) for each in strip.access], cell))
        lines.append(_cells([(_filled(each, cell), _FILLS[each]) for each in strip.fill], cell))
        if has_holds:
            lines.append(_cells([(each, "bold") for each in strip.holds or ("",) * len(strip.access)], cell))
        lines.append(_edge(strip, cell, *"└┴┘"))
    lines.append(Text(_addresses(strip, inner + 2), _FRAME))
    width = _block_width(strip, cell)
    for line in lines:
        line.pad_right(width - line.cell_len)
    return lines


def _addresses(strip: Strip, width: int) -> str:
    """Write where a strip begins and ends, under its edges; the end as a distance where that is too long."""
    start, end = f"{strip.start:x}", f"{strip.end:x}"
    if len(start) + len(end) + 1 <= width:
        return start + end.rjust(width - len(start))
    return f"{start} +{size(strip.end - strip.start).replace(' ', '').removesuffix('iB')}"


def _edge(strip: Strip, cell: int, left: str, middle: str, right: str) -> Text:
    return Text(left + middle.join("─" * cell for _ in strip.access) + right, _FRAME)


def _cells(texts: Sequence[tuple[str, str]], cell: int) -> Text:
    line = Text.assemble(("│", _FRAME))
    for text, style in texts:
        line.append(f"{text:^{cell}.{cell}}", style)
        line.append("│", _FRAME)
    return line


def _filled(fill: Fill, cell: int) -> str:
    edge = fill.value[0]
    return fill.value.center(cell, edge)


def _nothing(inner: int, height: int) -> list[Text]:
    texts = [
        "nothing mapped" if inner >= 16 else "nothing",
        "at this address" if inner >= 16 else "mapped",
        "",
    ]
    lines = [Text("┌" + "╌" * inner + "┐", _FRAME)]
    lines += [Text("┊" + text.center(inner) + "┊", _FRAME) for text in texts[:height]]
    return [*lines, Text("└" + "╌" * inner + "┘", _FRAME)]


#: From nothing to all of a column.
_LEVELS = " ▁▂▃▄▅▆▇█"


def _bars(bars: Sequence[Bar], width: int) -> list[Text]:
    """Draw bars one below the other in one frame, with a scale."""
    if not bars:
        return []
    merge = 1
    while len(bars[0].cached) // merge + _LABEL_WIDTH + 2 > width:
        merge *= 2
    columns = len(bars[0].cached) // merge
    lines = []
    for number, bar in enumerate(bars):
        left, right = "├┤" if number else "┌┐"
        head = Text(" " * _LABEL_WIDTH).append(f"{left}─ ", _FRAME).append(bar.caption, "bold")
        head.append(" " + "─" * (columns - len(bar.caption) - 3) + right, _FRAME)
        lines.append(head)
        for label, shares, fill in (
            ("cached", bar.cached, Fill.CACHED),
            ("in RAM", bar.resident, Fill.RESIDENT),
        ):
            line = Text.assemble((f"{label:<{_LABEL_WIDTH}}│", _FRAME))
            line.append(_levels(shares, merge), _FILLS[fill])
            lines.append(line.append("│", _FRAME))
    lines.append(Text(" " * _LABEL_WIDTH + "└" + "─" * columns + "┘", _FRAME))
    column = bars[0].column * merge
    end = size(column * columns)
    scale = "0" + f"{size(column)} a column, ▁ a part".center(columns - len(end)) + f" {end}"
    return [*lines, Text(" " * _LABEL_WIDTH + scale, _FRAME)]


def _levels(shares: Sequence[float], merge: int) -> str:
    return "".join(_level(sum(shares[at : at + merge]) / merge) for at in range(0, len(shares), merge))


def _level(share: float) -> str:
    full = len(_LEVELS) - 1
    # What is there at all is seen, and only what is all there looks full.
    return _LEVELS[min(max(round(share * full), 1), full - 1) if 0 < share < 1 else int(share) * full]


_RUNG = 20


def _ladder(ladder: Ladder, width: int) -> list[Text]:
    rungs = ladder.rungs
    lines = [_ladder_edge(rungs[0].end, "┌", "┐")]
    for number, rung in enumerate(rungs):
        lines.append(_rung(rung, width))
        last = number == len(rungs) - 1
        lines.append(_ladder_edge(rung.start, *("└┘" if last else "├┤")))
    return lines


def _ladder_edge(address: int, left: str, right: str) -> Text:
    return Text(f"{address:>14x} {left}{'─' * _RUNG}{right}", _FRAME)


def _rung(rung: Rung, width: int) -> Text:
    side = "│" if rung.name else "┊"
    line = Text(" " * 15).append(side, _FRAME)
    line.append(f" {rung.name:<{_RUNG - 1}}", "bold").append(side, _FRAME)
    line.append(f" {size(rung.end - rung.start):>10}", "bold" if rung.name else _FRAME)
    if rung.note and line.cell_len + 2 + len(rung.note) <= width:
        line.append(f"  {rung.note}")
    return line
