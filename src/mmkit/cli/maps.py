"""``mmkit maps``: the memory map of a process, as a table, a picture or JSON."""

from __future__ import annotations

import json
import os

import click
from rich.text import Text

from mmkit import maps as mmkit_maps
from mmkit.cli.output import OutputConsole
from mmkit.errors import Error
from mmkit.hints import size as written_size
from mmkit.maps import Area, Areas, Kind
from mmkit.maps.picture import draw, shortened

__all__ = ["maps"]

#: As pmap(1) has it.
_EXIT_GONE = 42

_COLOURS = {
    Kind.TEXT: "green",
    Kind.RODATA: "green",
    Kind.DATA: "green",
    Kind.BSS: "green",
    Kind.HEAP: "yellow",
    Kind.STACK: "yellow",
    Kind.ANONYMOUS: "yellow",
    Kind.LIBRARY: "cyan",
    Kind.FILE: "blue",
    Kind.VDSO: "bright_black",
}
_SHARED_COLOUR = "magenta"

# Widths of the columns before the path; two addresses of user space with a dash fit in 25.
_ADDRESS, _SIZE, _KIND = 25, 10, 9
_KIND_AT = _ADDRESS + 1 + _SIZE + 1 + len("rw-p") + 1
_PATH_AT = _KIND_AT + _KIND + 1


@click.command()
@click.argument("pid", type=click.IntRange(min=1), required=False)
@click.option("--layout", "style", flag_value="layout", help="The picture of the address space.")
@click.option("--json", "style", flag_value="json", help="Every area, for programs; sizes in bytes.")
@click.pass_context
def maps(context: click.Context, pid: int | None, style: str | None) -> None:
    """Show the memory map of process PID, or of this one.

    The exit status is 42 if there is no such process any more, and 1 after any other error.
    """
    try:
        areas = mmkit_maps.read(pid)
    except Error as error:
        click.echo(f"mmkit maps: {error}", err=True)
        context.exit(_EXIT_GONE if isinstance(error, ProcessLookupError) else 1)
    if style == "layout":
        click.echo(draw(areas))
    elif style == "json":
        click.echo(json.dumps(_document(areas), indent=1))
    else:
        _print_table(areas)


def _document(areas: Areas) -> dict[str, object]:
    """Lay out areas for JSON. What of a path is not UTF-8 becomes lone surrogates: see os.fsdecode."""
    return {
        "pid": areas.pid,
        "program": os.fsdecode(areas.program) if areas.program is not None else None,
        "torn": areas.torn,
        "areas": [area._asdict() | {"path": os.fsdecode(area.path)} for area in areas],
        "total": {"size": sum(areas.column("size")), "by_kind": areas.total(by="kind")},
    }


def _print_table(areas: Areas) -> None:
    console = OutputConsole(highlight=False)
    # Lines that go to a file or to grep are as long as they need to be.
    width = console.width if console.is_terminal else None
    total = written_size(sum(areas.column("size")))
    lines = [Text(_line("address", "size", "perm", "kind", "path"), "bold")]
    lines += [_area_line(area, width) for area in areas]
    lines += [Text(_line("total", total, "", "", f"{len(areas)} areas"), "bold")]
    console.print(Text("\n").join(lines), soft_wrap=True)


def _line(address: str, size: str, perms: str, kind: str, path: str) -> str:
    return f"{address:<{_ADDRESS}} {size:>{_SIZE}} {perms:<4} {kind:<{_KIND}} {path}".rstrip()


def _area_line(area: Area, width: int | None) -> Text:
    start, end, name = f"{area.start:x}", f"{area.end:x}", area.name + (" (deleted)" if area.deleted else "")
    if width is not None:
        # vsyscall alone has longer addresses.
        end = end if len(start) < 16 else f"…{end[-7:]}"
        name = shortened(name, max(width - _PATH_AT, 8))
    line = Text(_line(f"{start}-{end}", written_size(area.size), area.perms, area.kind, name))
    line.stylize(_COLOURS.get(area.kind, _SHARED_COLOUR), _KIND_AT, _KIND_AT + len(area.kind))
    return line
