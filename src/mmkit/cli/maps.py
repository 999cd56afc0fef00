"""``mmkit maps``: the memory map of a process, as a table, a tree, a picture or JSON; or watched."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import click
from click.core import ParameterSource
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from mmkit import maps as mmkit_maps
from mmkit.cli.documents import area_document, path_document
from mmkit.cli.output import OutputConsole
from mmkit.errors import Error
from mmkit.maps import Area, Areas, Kind, Total, Totals
from mmkit.maps.paths import printable
from mmkit.maps.picture import draw, shortened
from mmkit.maps.process import start_time
from mmkit.wording import size as written_size

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
    Kind.THREAD_STACK: "yellow",
    Kind.ANONYMOUS: "yellow",
    Kind.LIBRARY: "cyan",
    Kind.FILE: "blue",
    Kind.VDSO: "bright_black",
}
_SHARED_COLOUR = "magenta"

# Widths of the columns before the path; two addresses of user space with a dash fit in 25.
_ADDRESS, _SIZE, _KIND = 25, 10, 12
_KIND_AT = _ADDRESS + 1 + _SIZE + 1 + len("rw-p") + 1
_PATH_AT = _KIND_AT + _KIND + 1

#: What -x shows of the costs, as far as the kernel tells it.
_FEW_COSTS = ("rss", "pss", "uss", "private_dirty", "swap")
#: What of the file -X shows, as /proc/PID/maps writes it.
_PLACE: dict[str, Callable[[Area], str]] = {
    "offset": lambda area: f"{area.offset:08x}",
    "device": lambda area: f"{os.major(area.device):02x}:{os.minor(area.device):02x}",
    "inode": lambda area: str(area.inode),
}
#: What --watch shows.
_WATCHED = ("size", "rss", "pss", "uss", "swap")
_KIB = 1024

_KINDS = click.Choice([kind.value for kind in Kind])


class _ProcessId(click.IntRange):
    name = "process id"


@click.command()
@click.argument("pid", type=_ProcessId(min=1), required=False)
@click.option("-x", "detail", flag_value="x", help="With what each area costs: resident, dirty, swapped.")
@click.option("-X", "detail", flag_value="X", help="With everything that the kernel tells in smaps.")
@click.option("--kind", "kinds", multiple=True, type=_KINDS, help="Only these areas; may be repeated.")
@click.option("--tree", is_flag=True, help="By kind, then by file; with -x what each branch costs.")
@click.option("--layout", is_flag=True, help="The picture of the address space.")
@click.option("--json", is_flag=True, help="Every area, for programs; sizes in bytes. With costs by -x.")
@click.option("--watch", is_flag=True, help="What each kind costs, and how that changes, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Seconds between two looks of --watch.",
)
@click.pass_context
def maps(
    context: click.Context,
    /,
    pid: int | None,
    detail: str | None,
    kinds: tuple[str, ...],
    interval: float,
    **styles: bool,
) -> None:
    """Show the memory map of process PID, or of this one.

    In the tables of -x and -X numbers are KiB. The sums in the last row are those of smaps_rollup: RSS
    exactly, PSS less what each area was rounded down by. The exit status is 42 if there is no such process
    any more, and 1 after any other error.
    """
    style = _style(context, styles, detail, kinds)

    def read() -> Areas:
        areas = mmkit_maps.read(pid, costs=detail is not None or style == "watch")
        return areas.where(kind=kinds) if kinds else areas

    try:
        areas = read()
        if style == "watch":
            _watch_until_its_end(areas, read, interval)
            context.exit(_EXIT_GONE)
        _show(areas, style, detail)
    except Error as error:
        click.echo(f"mmkit maps: {error}", err=True)
        context.exit(_EXIT_GONE if isinstance(error, ProcessLookupError) else 1)


def _style(
    context: click.Context, styles: dict[str, bool], detail: str | None, kinds: tuple[str, ...]
) -> str | None:
    """Return how to show it; refuse options that do not go together."""
    chosen = [name for name, given in styles.items() if given]
    if len(chosen) > 1:
        raise click.UsageError(f"--{chosen[0]} and --{chosen[1]} are two ways to show it: choose one")
    style = chosen[0] if chosen else None
    if style == "layout" and kinds:
        raise click.UsageError("--layout draws the whole address space: leave out --kind")
    if style == "layout" and detail:
        raise click.UsageError(f"--layout draws no costs: leave out -{detail}")
    if style == "watch" and detail:
        raise click.UsageError(f"--watch shows the costs of each kind by itself: leave out -{detail}")
    if style == "tree" and detail == "X":
        raise click.UsageError("--tree has no room for all that -X shows: use -x")
    if style != "watch" and context.get_parameter_source("interval") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--interval goes with --watch only")
    return style


def _show(areas: Areas, style: str | None, detail: str | None) -> None:
    if style == "layout":
        click.echo(draw(areas))
    elif style == "json":
        click.echo(json.dumps(_document(areas), indent=1))
    elif style == "tree":
        _console().print(_tree(areas))
    elif detail:
        _print_costs(areas, *((_FEW_COSTS, ()) if detail == "x" else (areas.costs, tuple(_PLACE))))
    else:
        _print_table(areas)
    if areas.torn:
        click.echo(
            "mmkit maps: the process changed its areas meanwhile: some were told twice, and cut", err=True
        )


def _console() -> OutputConsole:
    console = OutputConsole(highlight=False)
    if not console.is_terminal:
        # Lines that go to a file or to grep are as long as they need to be.
        console.width = 1 << 16
    return console


# ---- JSON -------------------------------------------------------------------------------------------


#: Raised when a field changes its meaning or goes; new ones may come without.
_FORMAT = 1


def _document(areas: Areas) -> dict[str, object]:
    """Lay out areas for JSON, as docs/maps.md describes it."""
    totals = areas.total(by="kind")
    program, mark = areas.program, b" (deleted)"
    fields = {"program": None} if program is None else path_document("program", program.removesuffix(mark))
    return {
        "format": _FORMAT,
        "pid": areas.pid,
        **fields,
        "program_deleted": program is not None and program.endswith(mark),
        "torn": areas.torn,
        "areas": [area_document(area) for area in areas],
        "total": _total_document(totals.sum)
        | {"by_kind": {kind: _total_document(total) for kind, total in totals.items()}},
    }


def _total_document(total: Total) -> dict[str, int]:
    return {"size": total.size, "areas": total.areas, **total.costs}


# ---- tables -----------------------------------------------------------------------------------------


def _print_table(areas: Areas) -> None:
    console = _console()
    width = console.width if console.is_terminal else None
    total = written_size(sum(areas.column("size")))
    lines = [Text(_line("address", "size", "perm", "kind", "path"), "bold")]
    lines += [_area_line(area, width) for area in areas]
    lines += [Text(_line("total", total, "", "", _count(len(areas))), "bold")]
    console.print(Text("\n").join(lines), soft_wrap=True)


def _count(areas: int) -> str:
    return "1 area" if areas == 1 else f"{areas} areas"


def _line(address: str, size: str, perms: str, kind: str, path: str) -> str:
    return f"{address:<{_ADDRESS}} {size:>{_SIZE}} {perms:<4} {kind:<{_KIND}} {path}".rstrip()


def _written_path(area: Area) -> str:
    return area.name + (" (deleted)" if area.deleted else "")


def _area_line(area: Area, width: int | None) -> Text:
    start, end, name = f"{area.start:x}", f"{area.end:x}", _written_path(area)
    if width is not None:
        # vsyscall alone has longer addresses.
        end = end if len(start) < 16 else f"…{end[-7:]}"
        name = shortened(name, max(width - _PATH_AT, 8))
    line = Text(_line(f"{start}-{end}", written_size(area.size), area.perms, area.kind, name))
    line.stylize(_COLOURS.get(area.kind, _SHARED_COLOUR), _KIND_AT, _KIND_AT + len(area.kind))
    return line


def _print_costs(areas: Areas, names: tuple[str, ...], places: tuple[str, ...]) -> None:
    """Print a column for the size and one for each cost: amounts in KiB, what is none as it is."""
    whole = areas.total().sum
    names = tuple(name for name in names if name in areas.costs)
    rows = [["address", "size", *names, "perm", *places, "kind", "path"]]
    for area in areas:
        costs = [_written_cost(area.costs or {}, name, whole) for name in names]
        written = [f"{area.start:x}-{area.end:x}", str(area.size // _KIB), *costs]
        where = [_PLACE[place](area) for place in places]
        rows.append([*written, area.perms, *where, area.kind, _written_path(area)])
    sums = [str(whole.costs[name] // _KIB) if name in whole.costs else "" for name in names]
    rows.append(["total", str(whole // _KIB), *sums, "", *("" for _ in places), "", _count(len(areas))])
    numbers = range(1, len(names) + 2)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    styles = ["bold", *[""] * len(areas), "bold"]
    text = [Text(line, style) for line, style in zip(lines, styles, strict=True)]
    _console().print(Text("\n").join(text), soft_wrap=True)


def _written_cost(costs: Mapping[str, int | str], name: str, whole: Total) -> str:
    value = costs.get(name, "")
    is_amount = name in whole.costs or name.endswith("pagesize")
    return str(value // _KIB) if is_amount and isinstance(value, int) else str(value)


# ---- the tree ---------------------------------------------------------------------------------------


def _tree(areas: Areas) -> Tree:
    program = printable(areas.program) if areas.program else "program unknown"
    root = Tree(
        Text(f"{program}, process {areas.pid}: {_summary(areas.total().sum)}", "bold"), guide_style="dim"
    )
    for kind, total in areas.total(by="kind").items():
        members = areas.where(kind=kind)
        branch = root.add(Text(f"{kind}: {_summary(total)}", _COLOURS.get(Kind(kind), _SHARED_COLOUR)))
        for path, of_path in members.total(by="path").items():
            leaf = branch
            if path:
                leaf = branch.add(Text(f"{printable(os.fsencode(path))}: {_summary(of_path)}"))
            for area in members.where(path=path):
                leaf.add(Text(_leaf(area)))
    return root


def _summary(total: Total) -> str:
    return f"{written_size(total)} in {_count(total.areas)}{_branch_costs(total.costs)}"


def _leaf(area: Area) -> str:
    costs = _branch_costs(area.costs or {})
    return f"{area.start:x}-{area.end:x} {area.perms} {written_size(area.size)}{costs}"


def _branch_costs(costs: Mapping[str, int | str]) -> str:
    known = ((name, costs.get(name)) for name in _FEW_COSTS)
    return "".join(f", {name} {written_size(value)}" for name, value in known if isinstance(value, int))


# ---- watching ---------------------------------------------------------------------------------------


def _watch_until_its_end(areas: Areas, read: Callable[[], Areas], interval: float) -> None:
    """Watch a process; return when it has ended. Ctrl-C ends the command, and well."""
    try:
        _watch(areas, read, interval)
    except KeyboardInterrupt:
        click.get_current_context().exit()
    except ProcessLookupError:
        click.echo(f"mmkit maps: process {areas.pid} has ended", err=True)


def _watch(areas: Areas, read: Callable[[], Areas], interval: float) -> NoReturn:
    """Show the totals again and again."""
    console, began = _console(), time.monotonic()
    before, started = areas.total(), start_time(areas.pid)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            seconds = time.monotonic() - began
            title = f"process {areas.pid}, after {seconds:.1f} s; in parentheses: since the start"
            text = Text("\n").join([Text(title, "bold"), *_changes(before, areas.total())])
            if console.is_terminal:
                text.no_wrap, text.overflow = True, "ellipsis"
                live.update(text, refresh=True)
            else:
                console.print(text, end="\n\n", soft_wrap=True)
            time.sleep(interval)
            areas = read()
            if start_time(areas.pid) != started:
                raise ProcessLookupError  # another process has its number


def _changes(before: Totals, now: Totals) -> Iterator[Text]:
    """Make the table of what each kind costs, and how much more that is than before."""
    nothing = Total(0)
    kinds = [*now, *(kind for kind in before if kind not in now)]
    pairs = [(kind, before.get(kind, nothing), now.get(kind, nothing)) for kind in kinds]
    names = [name for name in _WATCHED if name == "size" or name in now.sum.costs]
    rows = [["kind", *names]]
    for kind, old, new in [*pairs, ("total", before.sum, now.sum)]:
        rows.append([kind, *(_changed(_part(old, name), _part(new, name)) for name in names)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for place, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        yield Text("  ".join(cells).rstrip(), "bold" if place in (0, len(rows) - 1) else "")


def _part(total: Total, name: str) -> int:
    return total.size if name == "size" else total.costs.get(name, 0)


def _changed(old: int, new: int) -> str:
    if new == old:
        return written_size(new)
    sign = "+" if new > old else "-"
    return f"{written_size(new)} ({sign}{written_size(abs(new - old))})"
