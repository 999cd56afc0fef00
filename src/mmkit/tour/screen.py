"""The tour as people see it in a terminal."""

from __future__ import annotations

import os
import platform
import textwrap
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from mmkit.hints import size
from mmkit.region import PAGE_SIZE
from mmkit.tour.drawing import draw
from mmkit.tour.engine import Call, Outcome, Section, Step

__all__ = ["Screen"]

#: Longer lines are hard to read, however wide the terminal.
_WIDEST = 112
_PROSE = 78
_INDENT = 2
_NAME_WIDTH = 8
_PREPARED = "prepared:"
#: Lines that flow are easier to follow than lines that are suddenly there. Seconds a step.
_PACE = 0.04

_MARKS = {Outcome.DONE: ("✓", "green"), Outcome.REFUSED: ("–", "magenta"), Outcome.FAILED: ("✗", "bold red")}


#: For terminals that know no other letters.
_ASCII: dict[int, str | int | None] = {
    **dict.fromkeys(map(ord, "┌┬┐├┼┤└┴┘"), "+"),
    **dict.fromkeys(map(ord, "│┊"), "|"),
    **dict.fromkeys(map(ord, "─╌━"), "-"),
    **dict(zip(map(ord, "█░╳✓✗–▸·↓↑…"), "#.X+x->.v^~", strict=True)),
}


class Screen:
    """Draws a tour on a console, as it goes.

    Parameters
    ----------
    console
        Without colours and control codes where it is no terminal: rich sees to that.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width = min(console.width, _WIDEST)
        self._is_ascii = not console.encoding.lower().startswith("utf")
        self._pace = _PACE if console.is_terminal else 0.0

    # ---- the parts, from the first line to the last -------------------------------------------------

    def opening(self, sections: Sequence[Section]) -> None:
        """Say what is about to be seen, and how to read it."""
        where = f"Linux {platform.release()} · {platform.machine()} · pages of {size(PAGE_SIZE)}"
        self._line()
        self._line(Text.assemble(("mmkit tour", "bold"), (f"   {where} · process {os.getpid()}", "dim")))
        self._line()
        self._prose(
            f"{len(sections)} short sections on what a program can ask of Linux about its memory. Nothing is "
            "staged: every call is made now, in this process; every address is real; and every claim is "
            "checked: by a second process, or through /proc, files in which the kernel tells what it knows."
        )
        self._line()
        self._prose(
            f"A page is {PAGE_SIZE} bytes, the kernel's unit of memory. It is drawn as a cell: on top what "
            "may be done with it (read, write, execute), below whether there is memory behind it, and often "
            "the first letters it holds:"
        )
        self._line()
        for line in _legend():
            self._line(Text("  ").append_text(line))

    def section_begins(self, number: int, section: Section) -> None:
        """Draw the head of a section, and what it is about."""
        head = Text.assemble(("━━ ", "dim"), (f"{number} · {section.title} ", "bold"))
        head.append("━" * max(self._width - head.cell_len, 0), "dim")
        self._line()
        self._line(head)
        self._line()
        self._prose(section.introduction)

    def step_ended(self, step: Step) -> None:
        """Draw a step: what was done, what the kernel said, how memory looks now, and what was checked."""
        mark, style = _MARKS[step.outcome]
        self._line()
        self._line(Text.assemble(("▸ ", "cyan"), (step.title, "bold")))
        for number, statement in enumerate(step.prepared):
            self._code("" if number else _PREPARED, statement, "cyan", len(_PREPARED) + 1)
        for call in step.calls:
            self._call(call)
        if step.pictures:
            self._line()
            for line in draw(step.pictures, self._width - 2 * _INDENT):
                self._line(Text(" " * _INDENT).append_text(line))
        for check in step.checks:
            self._result("✓" if check.holds else "✗", "green" if check.holds else "bold red", check.claim)
        if step.refusal:
            self._result(mark, style, f"refused, {step.refusal.error}. {step.refusal.why}")
        if step.mistake:
            self._result(mark, style, f"this went wrong: {step.mistake}")
        if self._pace:
            time.sleep(self._pace)

    def closing(
        self, sections: Sequence[Section], played: Mapping[str, Sequence[Step]], seconds: float, command: str
    ) -> None:
        """Draw what came of it: a line a section, and where to go from here with `command`."""
        steps = [step for each in played.values() for step in each]
        self._line()
        self._line(Text("━" * self._width, "dim"))
        self._line()
        width = max(len(section.title) for section in sections)
        for number, section in enumerate(sections, 1):
            self._line(_recap(number, section, played[section.key], width))
        self._line()
        self._line(_verdict(steps, seconds))
        self._line()
        # Commands have a line each: they are there to be copied, and may hold a long path.
        self._line(Text("  Scroll up to look closer, or read at leisure:"))
        self._line(Text(f"    {command} tour | less"))
        self._line(Text("  The picture of this process, or of any other:"))
        self._line(Text(f"    {command} maps --layout [PID]"))
        self._line()

    # ---- lines --------------------------------------------------------------------------------------

    def _line(self, line: Text | None = None) -> None:
        line = line or Text()
        if self._is_ascii:
            line.plain = line.plain.translate(_ASCII)
        self._console.print(line, soft_wrap=True)

    def _prose(self, text: str) -> None:
        for line in _wrapped(text, min(self._width, _PROSE) - _INDENT):
            self._line(Text(" " * _INDENT + line))

    def _call(self, call: Call) -> None:
        self._code("C", call.c, "")
        self._code("mmkit", call.python, "cyan")
        answer = call.answer + (f"   mmkit: {call.result}" if call.result else "")
        for number, line in enumerate(_wrapped(answer, self._width - _INDENT - _NAME_WIDTH)):
            self._line(self._named("" if number else "kernel").append(line, "bold"))

    def _named(self, name: str, width: int = _NAME_WIDTH) -> Text:
        return Text(" " * _INDENT).append(f"{name:<{width}}", "dim")

    def _code(self, name: str, code: str, style: str, name_width: int = _NAME_WIDTH) -> None:
        for number, line in enumerate(_folded(code, self._width - _INDENT - name_width)):
            self._line(self._named("" if number else name, name_width).append(line, style))

    def _result(self, mark: str, style: str, text: str) -> None:
        for number, line in enumerate(_wrapped(text, self._width - 2 * _INDENT)):
            self._line(Text(" " * _INDENT).append(" " if number else mark, style).append(" " + line))


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _folded(code: str, width: int) -> list[str]:
    """Break a statement after a comma, and align what follows with its first argument."""
    lines = []
    indent = code.find("(") + 1
    while len(code) > width:
        at = code.rfind(", ", 0, width) + 1
        if at <= indent:
            break
        lines.append(code[:at])
        code = " " * indent + code[at + 1 :]
    return [*lines, code]


def _legend() -> list[Text]:
    frame = "dim"
    notes = [
        (("┌───┬───┬───┬───┬───┐", frame),),
        (
            ("│", frame),
            ("rw-", ""),
            ("│", frame),
            ("rw-", ""),
            ("│", frame),
            ("r--", ""),
            ("│", frame),
            ("rw-", ""),
            ("│", frame),
            ("rw-", ""),
            ("│", frame),
        ),
        (
            ("│   │", frame),
            ("███", "green"),
            ("│", frame),
            ("░░░", "cyan"),
            ("│", frame),
            ("█L█", "magenta"),
            ("│", frame),
            ("╳╳╳", "red"),
            ("│", frame),
        ),
        (("└─┬─┴─┬─┴─┬─┴─┬─┴─┬─┘", frame),),
        (("  │   │   │   │   └─ ", frame), ("guarded: any access ends the process", "")),
        (("  │   │   │   └───── ", frame), ("locked into RAM", "")),
        (("  │   │   └───────── ", frame), ("only in the kernel's cache of the file", "")),
        (("  │   └───────────── ", frame), ("in RAM, and in this process", "")),
        (("  └───────────────── ", frame), ("address space only: no memory behind it yet", "")),
    ]
    return [Text.assemble(*parts) for parts in notes]


def _count(steps: Sequence[Step], outcome: Outcome) -> int:
    return sum(step.outcome is outcome for step in steps)


def _recap(number: int, section: Section, steps: Sequence[Step], width: int) -> Text:
    line = Text(f"  {number:>2}  {section.title:<{width}}  ")
    for step in steps:
        mark, style = _MARKS[step.outcome]
        line.append(mark, style)
    words = [
        f"{count} {outcome.value}"
        for outcome in (Outcome.REFUSED, Outcome.FAILED)
        if (count := _count(steps, outcome))
    ]
    return line.append("  " + ", ".join(words) if words else "", "dim")


def _verdict(steps: Sequence[Step], seconds: float) -> Text:
    checks = sum(len(step.checks) for step in steps)
    line = Text.assemble((f"  {len(steps)} steps, {checks} checks, {seconds:.1f} s. ", "bold"))
    refused, failed = _count(steps, Outcome.REFUSED), _count(steps, Outcome.FAILED)
    if refused:
        line.append(f"{refused} refused by this system. ", "magenta")
    if failed:
        verb = "it claims" if failed == 1 else "they claim"
        return line.append(f"{failed} did not do what {verb}.", "bold red")
    line.append("The rest did what they claim." if refused else "All did what they claim.", "green")
    return line
