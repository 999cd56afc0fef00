"""``mmkit doctor``: what of the kernel works here, what limits it, and what to change."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby

import click
from rich.text import Text

from mmkit.cli.output import OutputConsole
from mmkit.doctor import Examination, Fact, Finding, document, examine
from mmkit.wording import size as written_size

__all__ = ["doctor"]

# Widths of columns; with two spaces between them a line has at most 80.
_FEATURE, _ANSWER, _SINCE = 36, 11, 7
_FACT, _VALUE = 25, 14
_WIDTH = 80
_INDENT = "    -> "


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs; sizes in bytes.")
def doctor(as_json: bool) -> None:
    """Tell what works here, what limits it, and what to change.

    Every feature of the kernel that mmkit stands on is tried, as this user, with these limits. Nothing is
    changed, and nothing is left behind.

    The exit status is 0 whatever is missing, 1 if the report cannot be written, 141 if nobody reads it, and
    2 if the command is not understood.
    """
    found = examine()
    if as_json:
        click.echo(json.dumps(document(found), indent=1))
    else:
        OutputConsole(highlight=False).print(Text("\n").join(_report(found)), soft_wrap=True)


def _report(found: Examination) -> Iterator[Text]:
    yield Text(_columns(("feature", _FEATURE), ("here", _ANSWER), ("since Linux", 0)), "bold")
    for group, findings in groupby(found.findings, lambda finding: finding.feature.group):
        yield from _heading(group)
        for finding in findings:
            yield from _feature_lines(finding)
    yield Text()
    yield Text(_columns(("limit or fact", _FACT), ("value", _VALUE), ("what it means", 0)), "bold")
    for group, facts in groupby(found.facts, lambda fact: fact.group):
        yield from _heading(group)
        for fact in facts:
            yield from _fact_lines(fact)
    yield Text()
    yield from _summary(found)


def _heading(group: str) -> Iterator[Text]:
    yield Text()
    yield Text(group, "bold")


def _columns(*cells: tuple[str, int]) -> str:
    return "  ".join(f"{text:<{width}}" for text, width in cells).rstrip()


def _feature_lines(finding: Finding) -> Iterator[Text]:
    feature, answer, change = finding
    line = Text(_columns((feature.name, _FEATURE), (answer.word, _ANSWER), (feature.since, _SINCE)))
    style = "green" if answer.works else "bright_black" if answer.works is None else "red"
    line.stylize(style, _FEATURE + 2, _FEATURE + 2 + len(answer.word))
    yield line
    yield from _change_lines(change)


def _fact_lines(fact: Fact) -> Iterator[Text]:
    value = _written(fact.value, fact.unit)
    used = "" if fact.used is None else f"{_written(fact.used, fact.unit)} used; "
    means = used + fact.means
    column = _FACT + 2 + _VALUE + 2
    if len(value) > _VALUE:
        yield from _wrapped(_columns((fact.name, _FACT), (value, 0)), _FACT + 2)
        yield from _wrapped(" " * column + means, column)
    else:
        yield from _wrapped(_columns((fact.name, _FACT), (value, _VALUE), (means, 0)), column)
    yield from _change_lines(fact.change)


def _change_lines(change: str) -> Iterator[Text]:
    if change:
        for line in _wrapped(_INDENT + change, len(_INDENT)):
            line.stylize("yellow")
            yield line


def _wrapped(line: str, indent: int) -> Iterable[Text]:
    """Break what comes after a column so that it stays in it; what cannot be broken there is cut."""
    head, tail = line[:indent], line[indent:]
    pieces = textwrap.wrap(tail, _WIDTH - indent) or [""]
    return [Text(((head if not i else " " * indent) + piece).rstrip()) for i, piece in enumerate(pieces)]


def _written(value: int | str | None, unit: str) -> str:
    if value is None:
        return "not told"
    return written_size(value) if unit == "bytes" and isinstance(value, int) else str(value)


def _summary(found: Examination) -> Iterator[Text]:
    answers = [finding.answer.works for finding in found.findings]
    works, untried = answers.count(True), answers.count(None)
    advice = sum(bool(fact.change) for fact in found.facts)
    untold = sum(fact.value is None for fact in found.facts)
    not_tried = f", {untried} not tried" if untried else ""
    yield Text(
        f"{works} of {len(answers)} features work here{not_tried}; "
        f"advice comes with {_counted(advice, 'fact')}.",
        "bold",
    )
    if untold:
        yield from _wrapped(
            f"Not told here: {_counted(untold, 'fact')}. The kernel has no file for it, /proc or /sys is "
            "closed, or no descriptor was left.",
            0,
        )


def _counted(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"
