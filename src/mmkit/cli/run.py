"""``mmkit run``: any program on the mmkit heap."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import NoReturn

import click

from mmkit._native import heap as native
from mmkit.cli.executable import refusal

__all__ = ["run"]

# As shells have it.
_EXIT_CANNOT_EXECUTE = 126
_EXIT_NOT_FOUND = 127
# Ours, where nothing was tried.
_EXIT_REFUSED = 125


@click.command(
    short_help="Run any program on the mmkit heap.",
    context_settings={"allow_interspersed_args": False},
    epilog="Example: mmkit run --guard -- gcc -O2 -c program.c",
)
@click.option(
    "--guard",
    is_flag=True,
    help="Have each block end at a page without access, and freed blocks stay without access for a while: a "
    "wrong access ends the program there, after one line that names the block. Slow.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PROGRAM [ARGS]...")
def run(guard: bool, command: tuple[str, ...]) -> None:
    """Run PROGRAM, and what it starts, with mmkit's heap as its malloc (LD_PRELOAD).

    The program takes this command's place: its exit status, its process, its files. 127: there is no such
    program; 126: it cannot be executed; 125: it would not use the heap, because it is statically linked, or
    has more rights than who runs it (set-uid), where the loader ignores LD_PRELOAD.
    """
    program = _found(command[0])
    refused = refusal(program)
    if refused:
        _fail(f"{program}: {refused.value}", _EXIT_REFUSED)
    library = _library(guard)
    environment = os.environ | {"LD_PRELOAD": _in_front(library, os.environ.get("LD_PRELOAD", ""))}
    # Python ignores them, and what is ignored stays so.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(program, list(command), environment)
    except OSError as error:
        status = _EXIT_NOT_FOUND if error.errno == errno.ENOENT else _EXIT_CANNOT_EXECUTE
        _fail(f"{program}: {error.strerror}", status)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"mmkit run: {message}", err=True)
    raise click.exceptions.Exit(status)


def _found(name: str) -> str:
    """Return the program's path, as a shell would find it."""
    found = shutil.which(name)
    if found:
        return found
    if os.sep not in name:
        _fail(f"{name}: there is no such program on PATH", _EXIT_NOT_FOUND)
    if not Path(name).exists():
        _fail(f"{name}: {os.strerror(errno.ENOENT)}", _EXIT_NOT_FOUND)
    why = "is a directory" if Path(name).is_dir() else "is not executable"
    _fail(f"{name}: {why}", _EXIT_CANNOT_EXECUTE)


def _library(guard: bool) -> Path:
    """Return the library's path: it is installed with the extension modules, which need not lie here."""
    name = "libmmkit_preload_guard.so" if guard else "libmmkit_preload.so"
    return Path(native.__file__).parents[1] / "_lib" / name


def _in_front(library: Path, others: str) -> str:
    # ld.so(8) knows no way to write them in a path.
    if any(separator in str(library) for separator in " :"):
        _fail(
            f"mmkit is installed in {library.parent}: LD_PRELOAD cannot name a path with a space or a colon",
            _EXIT_REFUSED,
        )
    return f"{library}:{others}" if others else str(library)
