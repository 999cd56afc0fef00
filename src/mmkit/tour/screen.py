"""The tour as people see it in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from mmkit.tour.drawing import draw
from mmkit.tour.ends import calls_made, guide, recap, title, verdict
from mmkit.tour.engine import AudienceLeft, Section
from mmkit.tour.lines import INDENT, MARKS, NOTE, code, in_ascii, marked, named, prose, wrapped
from mmkit.tour.step import Call, Outcome, Step

__all__ = ["Screen"]

#: Longer lines are hard to read, however wide the terminal.
_WIDEST = 112
#: As long as paragraphs are wide.
_RULE = 80
_PREPARED = "prepared:"
#: Lines that flow are easier to follow than lines that are suddenly there. Seconds a step.
_PACE = 0.04


class Screen:
    """Draws a tour on a console, as it goes.

    Parameters
    ----------
    console
        Without colours and control codes where it is no terminal: rich sees to that.
    plain
        In ASCII, also where the console knows more.
    """

    def __init__(self, console: Console, *, plain: bool = False) -> None:
        self._console = console
        self._width = min(console.width, _WIDEST)
        self._rule = min(console.width, _RULE)
        self._is_ascii = plain or not console.encoding.lower().startswith("utf")
        self._pace = _PACE if console.is_terminal else 0.0

    # ---- the parts, from the first line to the last -------------------------------------------------

    def opening(self, sections: int, *, whole: bool) -> None:
        """Say what is about to be seen; before the whole tour also how to read it."""
        self._lines([Text(), *title(self._width)])
        if whole:
            self._lines([Text(), *guide(sections, self._width)])

    def section_begins(self, number: int, section: Section) -> None:
        """Draw the head of a section, and what it is about."""
        head = Text.assemble(("━━ ", "dim"), (f"{number} · {section.title} ", "bold"))
        head.append("━" * max(self._rule - head.cell_len, 0), "dim")
        self._lines([Text(), head, Text(), *prose(section.introduction, self._width)])

    def step_ended(self, step: Step) -> None:
        """Draw a step: what was done, what the kernel said, how memory looks now, and what was checked."""
        width = self._width
        self._lines([Text(), *self._title(step)])
        for number, statement in enumerate(step.prepared):
            self._lines(code("" if number else _PREPARED, statement, width, len(_PREPARED) + 1))
        for call in step.calls:
            self._call(call)
        if step.pictures:
            drawn = draw(step.pictures, width - 2 * INDENT)
            self._lines([Text(), *(Text(" " * INDENT).append_text(line) if line else line for line in drawn)])
        for check in step.checks:
            self._lines(marked(*MARKS[Outcome.DONE if check.holds else Outcome.FAILED], check.claim, width))
        for note in step.notes:
            self._lines(marked(*NOTE, note, width))
        if step.refusal:
            text = f"refused, {step.refusal.error}. {step.refusal.why}"
            self._lines(marked(*MARKS[Outcome.REFUSED], text, width))
        if step.mistake:
            self._lines(marked(*MARKS[Outcome.FAILED], f"this went wrong: {step.mistake}", width))
        if self._pace:
            time.sleep(self._pace)

    def closing(
        self,
        sections: Sequence[Section],
        played: Mapping[str, Sequence[Step]],
        seconds: float,
        command: str,
    ) -> None:
        """Draw what came of it; after the whole tour also where to go from here with `command`."""
        self._lines([Text(), Text("━" * self._rule, "dim"), *calls_made(played, self._width)])
        if len(played) > 1:
            self._lines([Text(), *recap(sections, played, self._width)])
        self._lines([Text(), *verdict(played, seconds, self._width), Text()])
        if len(played) == len(sections):
            # Commands have a line each: they are there to be copied, and may hold a long path.
            self._lines(
                map(
                    Text,
                    (
                        "  Look closer at one section or step, or read at leisure:",
                        f"    {command} tour --list",
                        f"    {command} tour | less",
                        f"    FORCE_COLOR=1 {command} tour | less -R",
                        "  The picture of a process:",
                        f"    {command} maps --layout PID",
                        "",
                    ),
                )
            )

    # ---- lines --------------------------------------------------------------------------------------

    def _lines(self, lines: Iterable[Text]) -> None:
        for line in lines:
            if self._is_ascii:
                line.plain = in_ascii(line.plain)
            try:
                self._console.print(line, soft_wrap=True)
            except OSError as error:
                raise AudienceLeft(error) from None

    def _title(self, step: Step) -> list[Text]:
        lead = Text.assemble(("▸ ", "cyan"), (f"{step.number} " if step.number else "", "dim"))
        lines = wrapped(step.title, self._width - lead.cell_len)
        indent = " " * lead.cell_len
        drawn = [lead.append(lines[0], "bold"), *(Text(indent + line, "bold") for line in lines[1:])]
        if step.outcome is Outcome.NOT_REACHED:
            text = "not reached: it needs what was not to be had before"
            drawn += marked(*MARKS[Outcome.NOT_REACHED], text, self._width)
        return drawn

    def _call(self, call: Call) -> None:
        self._lines(code("C", call.c, self._width))
        self._lines(code("mmkit", call.python, self._width))
        if call.death and call.death.processor:
            self._lines(named("CPU", call.death.processor, self._width))
        answer = call.kernel + (f"   mmkit: {call.result}" if call.result else "")
        self._lines(named("kernel", answer, self._width))
        self._lines(named("raises", call.raised, self._width))
