"""``mmkit secret``: where a key or a password has been left."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click
from rich.text import Text

from mmkit.cli.documents import area_document
from mmkit.cli.output import plain_table, print_table
from mmkit.errors import Error
from mmkit.maps import Area
from mmkit.secret import Copies, CoreNote, Secret
from mmkit.secret.scanning import handed_over, opened_target
from mmkit.wording import size as written_size

__all__ = ["secret"]

#: As grep(1), turned round: here it is good to find nothing.
_EXIT_FOUND, _EXIT_ERROR = 1, 2
#: As pmap(1) and `mmkit maps` have it.
_EXIT_GONE = 42
#: As shells have it for a command that SIGINT ended: 128 + 2.
_EXIT_INTERRUPTED = 130

#: Raised when a field changes its meaning or goes; new ones may come without.
_FORMAT = 1


class _ProcessId(click.IntRange):
    name = "process id"


@click.group()
def secret() -> None:
    """Keys and passwords in memory."""


@secret.command(short_help="Search a process, or a core file, for copies of a secret.")
@click.argument("pid", type=_ProcessId(min=1), required=False)
@click.option("--core", type=click.Path(dir_okay=False), help="Search a core file instead of a process.")
@click.option("--fd", type=click.IntRange(min=0), help="Read the secret from this descriptor.")
@click.option("--json", "as_json", is_flag=True, help="Every hit, for programs.")
@click.pass_context
def scan(context: click.Context, pid: int | None, core: str | None, fd: int | None, as_json: bool) -> None:
    """Search the memory of process PID for copies of a secret, whole or in part.

    The secret (8 to 4,096 bytes) is asked for without echo if standard input is a terminal, and else read
    from it, without a newline at its end. It is never an argument: everyone sees those of every process.

    The exit status is 0 if no copy was found, 1 if there are some, 42 if there is no such process any more,
    and 2 after any other error.
    """
    if (pid is None) == (core is None):
        raise click.UsageError("give a PID, or --core FILE")
    try:
        # In this order: what the process maps while somebody types is searched as well.
        with _needle(fd) as descriptor, opened_target(pid, core) as target:
            found = target.search(descriptor, is_line=True)
    except KeyboardInterrupt:
        context.exit(_EXIT_INTERRUPTED)
    except (Error, ValueError, EOFError) as error:
        click.echo(f"mmkit secret scan: {error}", err=True)
        context.exit(_EXIT_GONE if isinstance(error, ProcessLookupError) else _EXIT_ERROR)
    if as_json:
        click.echo(json.dumps(_document(found, pid, core), indent=1))
    else:
        _print(found)
    context.exit(_EXIT_FOUND if found else 0)


# ---- the secret --------------------------------------------------------------------------------------


@contextmanager
def _needle(fd: int | None) -> Iterator[int]:
    """Open what the secret comes from: the scanner reads it, this process does no more than ask for it."""
    given = sys.stdin.fileno() if fd is None else fd
    try:
        descriptor = os.dup(given)
    except OSError:
        raise click.BadParameter(f"{given} is no open descriptor", param_hint="--fd") from None
    with ExitStack() as scope:
        scope.callback(os.close, descriptor)
        if os.isatty(descriptor):
            typed = scope.enter_context(Secret.prompt("Secret: ", lock="warn"))
            descriptor, _ = scope.enter_context(handed_over(typed))
        yield descriptor


# ---- how it looks ------------------------------------------------------------------------------------


def _document(found: Copies, pid: int | None, core: str | None) -> dict[str, object]:
    return {
        "format": _FORMAT,
        "pid": pid,
        "core": core,
        "looked_at": found.looked_at,
        "truncated": found.truncated,
        "locked": found.locked,
        "hits": [hit._asdict() | _place_document(hit.area) for hit in found],
        "unread": [
            each._asdict() | _place_document(each.area) | {"by_nature": each.by_nature}
            for each in found.unread
        ],
    }


def _place_document(place: Area | CoreNote) -> dict[str, object]:
    if isinstance(place, CoreNote):
        return {"area": None, "note": place._asdict()}
    return {"area": area_document(place), "note": None}


def _print(found: Copies) -> None:
    if found:
        table = plain_table("address", "form", "found", "bytes", "perm", "kind", "offset", "where")
        for hit in found:
            # Rounded down: 100% is all of it.
            part = f"{int(100 * hit.fraction)}%"
            row = f"{hit.address:x}", hit.form, part, str(hit.length), *_place(hit.area, hit.address)
            table.add_row(*map(Text, row))
        print_table(table)
    click.echo(found.summary())
    for each in found.unread:
        if each.by_nature:
            continue
        where = " ".join(filter(None, _place(each.area, each.address)))
        click.echo(
            f"not looked at: {each.address:x}, {written_size(each.length)}, {where}: {each.reason}", err=True
        )
    if not found.locked:
        click.echo("mmkit secret scan: the scanner's memory was not locked (RLIMIT_MEMLOCK)", err=True)


def _place(place: Area | CoreNote, address: int) -> tuple[str, str, str, str]:
    """Return permissions, kind, offset in the file that is mapped, and name."""
    if isinstance(place, CoreNote):
        return "", "note", "", place.name
    offset = f"{place.offset + address - place.start:x}" if place.path.startswith(b"/") else ""
    return place.perms, place.kind, offset, place.name
