"""``mmkit shm``: the machine's shared memory: list it, who has it, remove it, reap what was leaked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from mmkit import linux
from mmkit.cli.output import plain_table, print_table
from mmkit.errors import Error
from mmkit.flags import ShmCommand
from mmkit.maps.paths import printable
from mmkit.shared import Segment, reap, segments
from mmkit.shared.names import path_of
from mmkit.shared.reaping import remove_name
from mmkit.shared.record import drop_beside
from mmkit.wording import size as written_size

__all__ = ["shm"]

_EXIT_NONE = 1
_NOT_THERE = "there is no such segment: `mmkit shm list` shows those that are there"
_HAS_NO_NAME = "it has no name in /dev/shm: it goes with its last holder, which `mmkit shm attached` shows"


@click.group(short_help="List, find and remove shared memory of this machine.")
def shm() -> None:
    """Shared memory of this machine: what there is, who has it, what was leaked."""


def _number(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """Read a key as ipcs writes it, or as a decimal number."""
    if value is None:
        return None
    try:
        return int(value, 0)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no number") from None


_by_id = click.option("--id", "identifier", type=int, help="A System V segment, by its identifier.")
_by_key = click.option("--key", callback=_number, help="A System V segment, by its key: 0x1234 or decimal.")


@shm.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="For programs: every field, sizes in bytes.")
@click.option("--leaked", is_flag=True, help="Only what `mmkit shm reap` would remove.")
def list_(as_json: bool, leaked: bool) -> None:
    """Show every POSIX, System V, memfd and anonymous shared segment."""
    found = reap(dry_run=True) if leaked else segments()
    if as_json:
        click.echo(json.dumps([_document(segment) for segment in found], indent=1))
        return
    print_table(_listing(found))
    total = sum(segment.resident or 0 for segment in found)
    count = "1 segment" if len(found) == 1 else f"{len(found)} segments"
    click.echo(f"{count}, {written_size(total)} resident")


@shm.command(short_help="Show which processes have a segment.")
@click.argument("name", required=False)
@_by_id
@_by_key
def attached(name: str | None, identifier: int | None, key: int | None) -> None:
    """Show which processes have a segment: one in /dev/shm or a memfd by NAME, a System V one by number.

    What is in /dev/shm may be written with its path, too.
    """
    found = [segment for segment in segments() if _is_named(segment, name, identifier, key)]
    if not found:
        _fail(_NOT_THERE)
    for segment in found:
        click.echo(f"{segment.kind} {_name(segment)}: {_verdict(segment)}")
        table = plain_table("pid", "mapped", "open", "command")
        for holder in segment.holders:
            mapped = written_size(holder.mapped) if holder.mapped else "-"
            table.add_row(
                str(holder.pid), mapped, "yes" if holder.opened else "no", Text(_command(holder.pid))
            )
        if segment.holders:
            print_table(table)


@shm.command(short_help="Remove a segment, whoever made it.")
@click.argument("name", required=False)
@_by_id
@_by_key
def remove(name: str | None, identifier: int | None, key: int | None) -> None:
    """Remove a segment, whoever made it: who has it keeps it, and nobody else can attach it.

    NAME is one in /dev/shm, with that path or without. A memfd has none there, and goes with its last holder.
    """
    if sum(value is not None for value in (name, identifier, key)) != 1:
        raise click.UsageError("give one NAME, or --id, or --key")
    try:
        if name is not None:
            remove_name(_bare(name))
        else:
            if key is not None:
                identifier = linux.shmget(_signed(key), 0, 0)
            assert identifier is not None
            linux.shmctl(identifier, ShmCommand.RMID)
            drop_beside("systemv", identifier)
    except FileNotFoundError:
        is_held = any(_is_named(each, name, identifier, key) for each in segments())
        _fail(_HAS_NO_NAME if is_held else _NOT_THERE)
    except (Error, ValueError) as error:
        _fail(str(error))


@shm.command(name="reap", short_help="Remove what is provably leaked.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
def reap_(dry_run: bool) -> None:
    """Remove what is provably leaked: made by mmkit, not to persist, its creator dead, and nobody has it."""
    found = reap(dry_run)
    for segment in found:
        freed = written_size(segment.resident or 0)
        click.echo(f"{'would remove' if dry_run else 'removed'} {segment.kind} {_name(segment)} ({freed})")
    if not found:
        click.echo("nothing is provably leaked")


def _fail(message: str) -> None:
    click.echo(f"mmkit shm: {message}", err=True)
    click.get_current_context().exit(_EXIT_NONE)


# ---- which -------------------------------------------------------------------------------------------


def _signed(key: int) -> int:
    return key - (1 << 32) if key >= 1 << 31 else key


def _is_named(segment: Segment, name: str | None, identifier: int | None, key: int | None) -> bool:
    if identifier is not None:
        return segment.kind == "systemv" and segment.id == identifier
    if key is not None:
        return segment.kind == "systemv" and segment.name == f"{key & 0xFFFFFFFF:#010x}"
    if name is None:
        raise click.UsageError("give a NAME, or --id, or --key")
    # A memfd may have any name.
    return segment.kind != "systemv" and segment.name in (name, _bare(name))


def _bare(name: str) -> str:
    """Read a name that may be written as shm_open(3) has it, or as the file that it is."""
    return name.removeprefix(path_of("")).removeprefix("/")


# ---- how it looks ------------------------------------------------------------------------------------


def _document(segment: Segment) -> dict[str, object]:
    holders = [holder._asdict() for holder in segment.holders]
    return segment._asdict() | {"holders": holders}


def _name(segment: Segment) -> str:
    """Write the name so that no terminal is misled."""
    name = printable(os.fsencode(segment.name))
    if segment.kind == "systemv":
        name = f"id {segment.id}" + (f" key {name}" if name else "")
    return f"{name} (removed)" if segment.removed else name or "-"


def _verdict(segment: Segment) -> str:
    if segment.attached is None:
        return "nobody was found that has it, but not every process could be looked at"
    if not segment.attached:
        return "nobody has it"
    if not segment.holders:
        return "somebody has it whom this user may not look at"
    count = len(segment.holders)
    return "1 process has it" if count == 1 else f"{count} processes have it"


def _command(pid: int) -> str:
    try:
        # Not the command line: passwords stand there.
        return printable(Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n"))
    except OSError:
        return "?"


def _creator(segment: Segment) -> str:
    alive = {True: "alive", False: "dead", None: "unknown"}[segment.creator_alive]
    return alive if segment.creator is None else f"{segment.creator} {alive}"


def _holders(segment: Segment) -> str:
    if segment.attached is None:
        return "unknown"
    pids = [str(holder.pid) for holder in segment.holders]
    if segment.attached and not pids:
        return "unknown"
    return " ".join(pids[:4]) + (f" +{len(pids) - 4}" if len(pids) > 4 else "") if pids else "nobody"


def _listing(found: Iterable[Segment]) -> Table:
    table = plain_table(
        "kind", "name", "contents", "size", "resident", "owner", "mode", "creator", "attached"
    )
    for segment in found:
        table.add_row(
            segment.kind,
            Text(_name(segment)),
            "?" if segment.contents is None else segment.contents or "-",
            written_size(segment.size),
            "?" if segment.resident is None else written_size(segment.resident),
            "?" if segment.owner is None else str(segment.owner),
            "?" if segment.mode is None else f"{segment.mode:04o}",
            _creator(segment),
            _holders(segment),
        )
    return table
