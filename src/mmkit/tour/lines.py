"""Lines of text for a terminal: wrapped, folded, and in the letters that it knows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rich.text import Text

from mmkit.tour.step import Outcome

__all__ = ["INDENT", "MARKS", "NOTE", "code", "in_ascii", "marked", "named", "prose", "wrapped"]

INDENT = 2
#: Longer lines of prose are hard to read.
_PROSE = 78
_NAME_WIDTH = 8

#: How steps and checks ended, and what is only said.
MARKS = {
    Outcome.DONE: ("✓", "green"),
    Outcome.REFUSED: ("–", "magenta"),
    Outcome.FAILED: ("✗", "bold red"),
    Outcome.NOT_REACHED: ("○", "dim"),
}
NOTE = ("•", "")

_ASCII: dict[int, str | int | None] = {
    **dict.fromkeys(map(ord, "┌┬┐├┼┤└┴┘"), "+"),
    **dict.fromkeys(map(ord, "│┊"), "|"),
    **dict.fromkeys(map(ord, "─╌━"), "-"),
    **dict(zip(map(ord, "▁▂▃▄▅▆▇"), "1234567", strict=True)),
    **dict(zip(map(ord, "█░╳✓✗–○•▸·↓↑…×"), "#.X+x-o*>.v^~x", strict=True)),
}


def in_ascii(text: str) -> str:
    """Write a text, of as many columns, for those who know no other letters."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def wrapped(text: str, width: int) -> list[str]:
    """Break a text at spaces: names and numbers stay whole, if they fit at all."""
    return textwrap.wrap(text, width, break_on_hyphens=False)


def prose(text: str, width: int) -> Iterator[Text]:
    """Write a paragraph, indented."""
    for line in wrapped(text, min(width, _PROSE) - INDENT):
        yield Text(" " * INDENT + line)


def named(name: str, text: str, width: int) -> Iterator[Text]:
    """Write what somebody says: the name in a column of its own, the text beside it."""
    lines = [line for part in text.split("\n") for line in wrapped(part, width - INDENT - _NAME_WIDTH)]
    for number, line in enumerate(lines):
        yield _beside("" if number else name, _NAME_WIDTH).append(line, "bold")


def code(name: str, statement: str, width: int, name_width: int = _NAME_WIDTH) -> Iterator[Text]:
    """Write a statement, with a name before it, broken after commas where it is too long."""
    folded = (part for line in statement.split("\n") for part in _folded(line, width - INDENT - name_width))
    for number, line in enumerate(folded):
        yield _beside("" if number else name, name_width).append(line)


def marked(mark: str, style: str, text: str, width: int) -> Iterator[Text]:
    """Write a result: a mark, and the text beside it."""
    for number, line in enumerate(wrapped(text, width - 2 * INDENT)):
        yield Text(" " * INDENT).append(" " if number else mark, style).append(" " + line)


def _beside(name: str, width: int) -> Text:
    # Text in colours is hard to read on some grounds or others: colour is for what is no text.
    return Text(" " * INDENT).append(f"{name:<{width}}", "bold" if name == "mmkit" else "dim")


def _folded(statement: str, width: int) -> list[str]:
    """Break a line after a comma, else at any space, and align what follows with its first argument."""
    lines = []
    indent = statement.find("(") + 1
    while len(statement) > width:
        at = statement.rfind(", ", 0, width) + 1
        if at <= indent:
            at = statement.rfind(" ", 0, width)
        if at <= indent:
            indent, at = 0, width
        lines.append(statement[:at].rstrip())
        statement = " " * indent + statement[at:].lstrip()
    return [*lines, statement]
