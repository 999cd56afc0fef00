"""``mmkit tour``: see memory calls run on this kernel, with pictures of this process."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from mmkit.tour import SECTIONS, Outcome, Screen, run

__all__ = ["tour"]

#: As shells have it for a command that was interrupted: 128 + SIGINT.
_EXIT_INTERRUPTED = 130


@click.command()
@click.pass_context
def tour(context: click.Context) -> None:
    """Watch Linux manage memory: each call made on this kernel, drawn and checked.

    Takes a second or two, changes nothing, and leaves nothing behind.

    The exit status is 1 if a step did not do what it claims. What this kernel refuses is shown as refused,
    with the reason, and is no failure.
    """
    screen = Screen(Console(highlight=False))
    screen.opening(SECTIONS)
    begun = time.monotonic()
    try:
        played = run(SECTIONS, screen)
    except KeyboardInterrupt:
        click.echo("\nmmkit tour: interrupted; nothing is left behind", err=True)
        context.exit(_EXIT_INTERRUPTED)
    screen.closing(SECTIONS, played, time.monotonic() - begun, _command())
    if any(step.outcome is Outcome.FAILED for steps in played.values() for step in steps):
        context.exit(1)


def _command() -> str:
    """Write what to type for ``mmkit`` here: in a virtual environment it need not be on PATH."""
    if shutil.which("mmkit"):
        return "mmkit"
    script = Path(sys.argv[0])
    if script.name == "mmkit" and script.is_file():
        return shlex.quote(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m mmkit"
