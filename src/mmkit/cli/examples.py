"""``mmkit examples``: programs of a page each, to read and to run."""

from __future__ import annotations

import ast
import difflib
import os
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import click

__all__ = ["examples"]

PACKAGE = Path(__file__).parents[1]
#: In the source tree beside src/; in an installed package inside it.
PLACES = (PACKAGE.parents[1] / "examples", PACKAGE / "examples")

#: In the order in which one learns.
CHAPTERS = (
    "Layout",
    "Mapping",
    "Protection",
    "Advice",
    "Locking",
    "Secrets",
    "Memory",
    "Heap",
    "Pools",
    "Shared memory",
    "Channels",
    "Snapshots",
    "Best practices",
)
LAST_LINES = re.compile(r'In C: (?P<calls>.+)\. Belongs to the chapter "(?P<chapter>.+)" \((?P<page>\S+)\)\.')


@dataclass(frozen=True)
class Example:
    """A program, and what its docstring says of it."""

    path: Path
    title: str
    calls: str
    chapter: str
    page: str

    @property
    def name(self) -> str:
        """What it is called."""
        return self.path.stem


def place_of(chapter: str) -> tuple[int, str]:
    """Return where a chapter stands; one that is not among them comes last."""
    return (CHAPTERS.index(chapter) if chapter in CHAPTERS else len(CHAPTERS), chapter)


def read_examples() -> list[Example]:
    """Return all of them, in the order in which one learns."""
    folder = next((place for place in PLACES if (place / "process_layout.py").exists()), None)
    if folder is None:
        raise click.ClickException(
            f"the examples are not installed: they are neither {PLACES[0]} nor {PLACES[1]}"
        )
    found = []
    for path in folder.glob("*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        said = LAST_LINES.search(" ".join(docstring.split()))
        if said:
            found.append(
                Example(path, docstring.partition("\n")[0], said["calls"], said["chapter"], said["page"])
            )
    return sorted(found, key=lambda example: (*place_of(example.chapter), example.name))


def list_examples(found: list[Example]) -> None:
    """Print what there is."""
    width = min(shutil.get_terminal_size().columns, 100)
    chapter = ""
    for example in found:
        if example.chapter != chapter:
            click.secho(f"{example.chapter}  ({example.page})", bold=True)
            chapter = example.chapter
        name = f"  {example.name:<24}"
        click.echo(
            textwrap.fill(example.calls, width, initial_indent=name, subsequent_indent=" " * len(name))
        )
        click.echo(textwrap.fill(example.title, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
    click.echo("\nmmkit examples NAME runs one, mmkit examples NAME --source shows its source.")


@click.command(
    short_help="List, show and run programs of a page each.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--source", is_flag=True, help="Print the program instead of running it.")
def examples(name: str | None, arguments: tuple[str, ...], source: bool) -> None:
    """List the examples, or run the one called NAME.

    Each is a program of a page, to be read from top to bottom. It runs by itself in about a second, prints
    what it does, and leaves nothing behind. ARGUMENTS, all that follows NAME, are the program's own; but
    --source may stand behind it, too.
    """
    if arguments == ("--source",):
        source = True
    found = read_examples()
    if name is None:
        if source:
            raise click.UsageError("--source is about one example: name it.")
        list_examples(found)
        return
    by_name = {example.name: example for example in found}
    example = by_name.get(name.removesuffix(".py"))
    if example is None:
        near = difflib.get_close_matches(name, by_name, n=3)
        hint = f"perhaps {' or '.join(near)}" if near else "`mmkit examples` lists them"
        raise click.BadParameter(f"there is no example {name!r}: {hint}.", param_hint="NAME")
    if source:
        click.echo(example.path.read_text(encoding="utf-8"), nl=False)
        return
    sys.stdout.flush()
    # In an interpreter of its own: some look at the whole process.
    os.execv(sys.executable, [sys.executable, str(example.path), *arguments])
