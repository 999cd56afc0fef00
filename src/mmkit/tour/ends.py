"""How a tour begins and ends on a screen: the legend, the calls that were made, and what came of it all."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from mmkit.region import PAGE_SIZE
from mmkit.tour.engine import Section
from mmkit.tour.lines import MARKS, code, prose, wrapped
from mmkit.tour.step import Outcome, Step
from mmkit.tour.summary import IMPORTS, Tally, tally
from mmkit.wording import size

__all__ = ["calls_made", "guide", "recap", "title", "verdict"]

_NAME = "mmkit tour   "


def title(width: int) -> Iterator[Text]:
    """Write where this is."""
    where = f"Linux {platform.release()} · {platform.machine()} · pages of {size(PAGE_SIZE)}"
    for number, line in enumerate(wrapped(f"{where} · process {os.getpid()}", width - len(_NAME))):
        yield Text.assemble((" " * len(_NAME) if number else _NAME, "bold"), (line, "dim"))


def guide(sections: int, width: int) -> Iterator[Text]:
    """Write what is about to be seen, and how to read it."""
    yield from prose(
        f"{sections} short sections on what a program can ask of Linux about its memory. Nothing is "
        "staged: every call is made now, in this process; every address is real; and every claim is "
        "checked (✓): through /proc, files in which the kernel tells what it knows, by another call, by "
        "another process, or by a look at the bytes. What this system refuses is marked –, and what was "
        "only seen this time •.",
        width,
    )
    yield Text()
    yield from prose(
        f"A page is {PAGE_SIZE} bytes, the kernel's unit of memory. It is drawn as a cell: on top what "
        "may be done with it (read, write, execute), below whether there is memory behind it, and often "
        "the first letters it holds:",
        width,
    )
    yield Text()
    yield from _legend()
    yield Text()
    yield from prose(
        "Where a cell says ·, nothing is mapped; where it holds 0, there are zeros. The lines in Python can "
        "be tried, section by section, after",
        width,
    )
    for statement in IMPORTS:
        yield from code("", statement, width, 2)


def _legend() -> Iterator[Text]:
    cells = [("rw-", "", "   "), ("rw-", "green", "███"), ("r--", "cyan", "░░░")]
    cells += [("rw-", "magenta", "█L█"), ("rw-", "red", "╳╳╳")]
    notes = [
        "address space only: no memory yet",
        "in RAM, and in this process",
        "only in the kernel's cache of the file",
        "locked into RAM",
        "guarded: any access raises MemoryFault",
    ]
    access, fill = Text.assemble(("  │", "dim")), Text.assemble(("  │", "dim"))
    for allowed, style, filled in cells:
        access.append(allowed).append("│", "dim")
        fill.append(filled, style).append("│", "dim")
    yield Text("  ┌───┬───┬───┬───┬───┐", "dim")
    yield from (access, fill)
    yield Text("  └─┬─┴─┬─┴─┬─┴─┬─┴─┬─┘", "dim")
    for number in reversed(range(len(notes))):
        stem = "    " + "│   " * number + "└" + "─" * (4 * (len(notes) - 1 - number) + 1) + " "
        yield Text.assemble((stem, "dim"), notes[number])


def calls_made(played: Mapping[str, Sequence[Step]], width: int) -> Iterator[Text]:
    """Write how often each call was made, and refused, in as many columns as fit; nothing without calls."""
    found = tally(played)
    if not found:
        return
    yield Text()
    yield from prose("The calls shown above: how often each was made, and how often refused (–):", width)
    yield Text()
    cells = [_tally(each) for each in found]
    each_width = max(cell.cell_len for cell in cells) + 3
    columns = max((width - 2) // each_width, 1)
    rows = -(-len(cells) // columns)
    for row in range(rows):
        line = Text("  ")
        for cell in cells[row::rows]:
            line.append_text(cell).append(" " * (each_width - cell.cell_len))
        line.rstrip()
        yield line


def _tally(each: Tally) -> Text:
    line = Text(f"{each.name:<16}").append(f"{each.made:>3}", "bold")
    return line.append(f" –{each.refused}" if each.refused else "   ", MARKS[Outcome.REFUSED][1])


def recap(sections: Sequence[Section], played: Mapping[str, Sequence[Step]], width: int) -> list[Text]:
    """Write a line for each section: how its steps ended."""
    lines = _recap(sections, played, [section.title for section in sections])
    if max(line.cell_len for line in lines) > width:
        lines = _recap(sections, played, [section.key for section in sections])
    return lines


def _recap(
    sections: Sequence[Section], played: Mapping[str, Sequence[Step]], names: Sequence[str]
) -> list[Text]:
    lines, longest = [], max(map(len, names))
    for number, (section, name) in enumerate(zip(sections, names, strict=True), 1):
        if section.key not in played:
            continue
        steps = played[section.key]
        line = Text(f"  {number:>2}  {name:<{longest}}  ")
        for step in steps:
            line.append(*MARKS[step.outcome])
        counts = [(_count(steps, outcome), outcome) for outcome in Outcome if outcome is not Outcome.DONE]
        words = [f"{count} {outcome.value}" for count, outcome in counts if count]
        lines.append(line.append("  " + ", ".join(words) if words else "", "dim"))
    return lines


def verdict(played: Mapping[str, Sequence[Step]], seconds: float, width: int) -> Iterator[Text]:
    """Write what came of it."""
    steps = [step for each in played.values() for step in each]
    checks = sum(len(step.checks) for step in steps)
    made = sum(step.reached and step.number > 0 for step in steps)
    counts = f"  {_some(made, 'step')}, {_some(checks, 'check')}, {seconds:.1f} s."
    line = Text(counts, "bold")
    for part in _judgement(steps):
        if line.cell_len + 1 + part.cell_len > width:
            yield line
            line = Text(" ")
        line.append(" ").append_text(part)
    yield line


def _judgement(steps: Sequence[Step]) -> Iterator[Text]:
    refused, failed = _count(steps, Outcome.REFUSED), _count(steps, Outcome.FAILED)
    counts = (refused, "refused here"), (_count(steps, Outcome.NOT_REACHED), "not reached")
    left_out = ", ".join(f"{count} {how}" for count, how in counts if count)
    if left_out:
        yield Text(left_out + ".", "magenta")
    if failed:
        verb = "it claims" if failed == 1 else "they claim"
        yield Text(f"{failed} did not do what {verb}.", "bold red")
    elif _count(steps, Outcome.DONE):
        what = "The rest did what they claim" if refused else "All did what they claim"
        yield Text(what, "bold").append(" ").append(*MARKS[Outcome.DONE])


def _some(count: int, name: str) -> str:
    return f"{count} {name}{'s' if count != 1 else ''}"


def _count(steps: Sequence[Step], outcome: Outcome) -> int:
    return sum(step.outcome is outcome for step in steps)
