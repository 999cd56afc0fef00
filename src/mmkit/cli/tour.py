"""``mmkit tour``: see memory calls run on this kernel, with pictures of this process."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Collection
from pathlib import Path

import click

from mmkit.cli.output import OutputConsole
from mmkit.tour import SECTIONS, AudienceLeft, Outcome, Screen, Section, Step, run
from mmkit.tour.plan import NoSuchSectionError, NoSuchStepError, chosen, listing, named
from mmkit.tour.summary import document

__all__ = ["tour"]

#: As shells have it for a command that a signal ended: 128 + SIGINT.
_EXIT_INTERRUPTED = 130


@click.command(short_help="Watch Linux manage memory, call by call.")
@click.option(
    "--section",
    "keys",
    multiple=True,
    metavar="KEY|N",
    help=f"Only this section, by its key, a beginning of it, or its number ({named(SECTIONS)}); may be given "
    "several times.",
)
@click.option(
    "--step",
    "steps",
    multiple=True,
    metavar="N|TEXT",
    help="Only this step: its number, or words of its title; may be given several times.",
)
@click.option("--list", "lists", is_flag=True, help="List sections and steps, and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Every call and check, for programs.")
@click.option("--plain", is_flag=True, help="Without colours, and in ASCII.")
@click.argument("extra", nargs=-1, metavar="")
@click.pass_context
def tour(
    context: click.Context,
    keys: tuple[str, ...],
    steps: tuple[str, ...],
    lists: bool,
    as_json: bool,
    plain: bool,
    extra: tuple[str, ...],
) -> None:
    """Watch Linux manage memory: each call made on this kernel, drawn and checked.

    Takes some seconds, changes nothing, and leaves nothing behind.

    The exit status is 1 if a step did not do what it claims. What this kernel refuses is shown as refused,
    with the reason, and is no failure.
    """
    if extra:
        raise click.UsageError(f"unexpected extra argument {extra[0]!r}: a section is chosen by --section.")
    try:
        only = chosen(SECTIONS, keys, steps)
    except NoSuchSectionError as error:
        raise click.BadParameter(str(error), param_hint="'--section'") from None
    except NoSuchStepError as error:
        raise click.BadParameter(str(error), param_hint="'--step'") from None
    if lists and as_json:
        raise click.UsageError("--list is for people: --json goes without it.")
    try:
        if lists:
            click.echo("\n".join(listing(SECTIONS, only)))
            return
        played = _play_json(only) if as_json else _play(only, plain)
    except KeyboardInterrupt:
        click.echo("\nmmkit tour: interrupted; nothing is left behind", err=True)
        context.exit(_EXIT_INTERRUPTED)
    except AudienceLeft as left:
        raise left.why from None
    if any(step.outcome is Outcome.FAILED for each in played.values() for step in each):
        context.exit(1)


def _play(only: Collection[int] | None, plain: bool) -> dict[str, list[Step]]:
    console = OutputConsole(highlight=False, color_system=None if plain else "auto")
    screen = Screen(console, plain=plain)
    screen.opening(len(SECTIONS), whole=only is None)
    begun = time.monotonic()
    played = run(SECTIONS, screen, only)
    screen.closing(SECTIONS, played, time.monotonic() - begun, _command())
    return played


class _Nobody:
    """An audience that waits for the document."""

    def section_begins(self, number: int, section: Section) -> None: ...

    def step_ended(self, step: Step) -> None: ...


def _play_json(only: Collection[int] | None) -> dict[str, list[Step]]:
    begun = time.monotonic()
    played = run(SECTIONS, _Nobody(), only)
    click.echo(json.dumps(document(SECTIONS, played, time.monotonic() - begun), indent=1))
    return played


def _command() -> str:
    """Write what to type for ``mmkit`` here: in a virtual environment it need not be on PATH."""
    if shutil.which("mmkit"):
        return "mmkit"
    script = Path(sys.argv[0])
    if script.name == "mmkit" and script.is_file():
        return shlex.quote(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m mmkit"
