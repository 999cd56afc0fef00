"""What becomes of a command whose output cannot be written: its reader left, or the disk is full."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from mmkit.errors import Error

__all__ = ["Commands", "OutputConsole", "plain_table", "print_table"]

#: Columns of numbers and sizes.
_TO_THE_RIGHT = ("size", "resident", "mapped", "found", "bytes")

#: As shells have it for a command that SIGPIPE ended: 128 + 13.
_EXIT_NOBODY_READS = 141


class Commands(click.Group):
    """A group of commands that end in silence when nobody reads on, and with one line when writing fails."""

    def main(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as click has it
        """Run what the command line asks for. Help, too, is output."""
        if sys.stdout is None:
            _complain("standard output is closed")
        with _ending_well():
            return super().main(*arguments, **options)

    def invoke(self, context: click.Context) -> Any:  # noqa: ANN401
        """Run a command. This comes before click, for which a reader that left is a failure."""
        with _ending_well():
            return super().invoke(context)


@contextlib.contextmanager
def _ending_well() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Commands open no files by themselves, and what mmkit refuses they tell: the rest is output.
        if isinstance(error, Error) or error.filename is not None:
            raise
        # What Python has not written yet must not fail once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(_EXIT_NOBODY_READS)
        _complain(error.strerror)


def _complain(why: str | None) -> NoReturn:
    click.echo(f"mmkit: the output cannot be written: {why}", err=True)
    sys.exit(1)


class OutputConsole(Console):
    """A console that says when nobody reads on."""

    def on_broken_pipe(self) -> None:
        """Raise. Newer versions of rich would end the process here, as if something had failed."""
        raise BrokenPipeError


def plain_table(*columns: str) -> Table:
    """Make a table without lines."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in _TO_THE_RIGHT else "left", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Print a table: as wide as a terminal, or as it needs to be."""
    console = OutputConsole(highlight=False)
    if not console.is_terminal:
        # Lines that go to a file or to grep are as long as they need to be.
        console.width = 10_000
    console.print(table)
