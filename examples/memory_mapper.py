"""Utilities that work on files by mapping them: copy, search, edit, window, sparse.

Files may be far larger than the window of them that is mapped at a time (--window; 1 MiB). What goes wrong,
such as a file that is cut short, is told in one line, with exit status 2. Without a command all are shown.
In C: mmap(2), munmap(2), msync(2), lseek(2), fallocate(2). Belongs to the chapter "Mapping"
(docs/mapping.md).
"""

import contextlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import click

import mmkit
from mmkit import PAGE_SIZE, Region

Mode = Literal["r", "r+"]


class Trouble(click.ClickException):
    """What is told in one line, before the program ends."""

    exit_code = 2


class Utilities(click.Group):
    """Commands whose errors are told in one line."""

    def invoke(self, context: click.Context) -> Any:  # noqa: ANN401
        """Run a command."""
        try:
            return super().invoke(context)
        except mmkit.MemoryFault as fault:
            raise Trouble(f"a file changed while it was mapped: {fault}") from fault
        except BrokenPipeError:
            raise
        except (mmkit.Error, OSError, ValueError) as error:
            raise Trouble(str(error)) from error


a_file = click.argument("path", metavar="FILE", type=click.Path(exists=True, path_type=Path))
a_window = click.option("--window", "size", default=1 << 20, type=click.IntRange(1), help="Bytes of a map.")


def opened(path: Path, mode: Mode) -> IO[bytes]:
    """Open a file that can be mapped."""
    if not path.is_file():
        raise Trouble(f"{path} is not a regular file")
    return path.open("rb" if mode == "r" else "r+b")


def windows(
    path: Path, size: int, mode: Mode = "r", *, overlap: int = 0, skip_holes: bool = False
) -> Iterator[tuple[int, Region]]:
    """Map a file piece by piece (mmap, munmap); yield where each begins in the file, and its region."""
    # Opened once: the path may come to name another file meanwhile.
    with opened(path, mode) as file:
        fd = file.fileno()
        for start, end in data_ranges(fd) if skip_holes else [(0, os.fstat(fd).st_size)]:
            # Of an empty file no region can be made; it has no windows.
            for offset in range(start, end, size):
                if os.fstat(fd).st_size < end:
                    raise Trouble(f"{path} became shorter than {end} bytes meanwhile")
                with Region.file(fd, min(size + overlap, end - offset), offset, mode=mode) as region:
                    yield offset, region
                    if mode == "r+":
                        region.flush()  # msync(2): what is in memory is written to the disk


def data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """Yield from where to where a file has data; what lies between is holes."""
    end = 0
    while end < os.fstat(fd).st_size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole reaches to the end
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def occurrences(path: Path, wanted: bytes, size: int, mode: Mode = "r") -> Iterator[tuple[int, Region, int]]:
    """Yield where bytes stand in a file, the region that holds them, and where in that."""
    if not wanted:
        raise Trouble("there is nothing to look for")
    position = 0
    # What begins in one window may end in the next.
    for offset, region in windows(path, size, mode, overlap=len(wanted) - 1):
        while (found := region.find(wanted, max(0, position - offset))) >= 0:
            yield offset + found, region, found
            position = offset + found + len(wanted)


@click.group(cls=Utilities, invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Work on files by mapping them. Without a command: show it, on files of its own."""
    if context.invoked_subcommand is None:
        demonstrate()


@main.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@a_window
def copy(source: Path, target: Path, size: int) -> None:
    """Copy SOURCE to TARGET. What is a hole there is a hole here."""
    if target.exists() and (target.samefile(source) or not target.is_file()):
        raise Trouble(f"{target} is {source} itself, or not a regular file")
    with opened(source, "r") as file, target.open("wb") as copied:
        copied.truncate(os.fstat(file.fileno()).st_size)
    for offset, region in windows(source, size, skip_holes=True):
        with Region.file(target, len(region), offset, mode="r+") as copied_region:
            # A slice is a guarded access. A view, when the file is cut, would be a crash.
            copied_region[:] = region[:]


@main.command()
@a_file
@click.argument("text")
@a_window
@click.pass_context
def search(context: click.Context, path: Path, text: str, size: int) -> None:
    """Print the offset of each place where TEXT stands. Exit status 1 if it stands nowhere."""
    found = False
    for offset, _, _ in occurrences(path, os.fsencode(text), size):
        click.echo(offset)
        found = True
    context.exit(0 if found else 1)


@main.command()
@a_file
@click.argument("old")
@click.argument("new")
@a_window
def edit(path: Path, old: str, new: str, size: int) -> None:
    """Replace every OLD by NEW in place. They have the same length: nothing can move."""
    before, after = os.fsencode(old), os.fsencode(new)
    if len(before) != len(after):
        raise Trouble(f"{old!r} has {len(before)} bytes, and {new!r} has {len(after)}")
    count = 0
    for _, region, at in occurrences(path, before, size, "r+"):
        region[at : at + len(after)] = after
        count += 1
    click.echo(f"{count} replaced")


@main.command()
@a_file
@a_window
def window(path: Path, size: int) -> None:
    """Walk through a file map by map: lines, checksum."""
    lines = checksum = 0
    for offset, region in windows(path, size):
        contents = region[:]
        lines, checksum = lines + contents.count(b"\n"), zlib.crc32(contents, checksum)
        click.echo(f"{len(contents):>8} bytes from {offset:>12} on, mapped at {region.address:x}")
    click.echo(f"{lines} lines, checksum {checksum:08x}")


@main.command()
@a_file
@click.option("--dig", is_flag=True, help="First dig holes, by fallocate(2). Nobody else may write.")
def sparse(path: Path, dig: bool) -> None:
    """List data, and holes: zeros without a place on the disk."""
    if dig:
        for _, region in windows(path, 256 * PAGE_SIZE, "r+", skip_holes=True):
            for at in range(0, len(region), PAGE_SIZE):
                if not any(page := region[at : at + PAGE_SIZE]):
                    region.punch(at, len(page))  # fallocate(2)
    with opened(path, "r") as file:
        status, last = os.fstat(file.fileno()), 0
        for start, end in [*data_ranges(file.fileno()), (status.st_size, status.st_size)]:
            for what, first, behind in (("hole", last, start), ("data", start, end)):
                if first < behind:
                    click.echo(f"{what} {first:>12} to {behind:>12}")
            last = end
    click.echo(f"{status.st_size} bytes long, {status.st_blocks * 512} bytes on the disk")


def demonstrate() -> None:
    """Run every command on files that are gone afterwards."""
    on_lines = ("search lines 0999", "copy lines text", "edit text line LINE", "window text --window 65536")
    on_zeros = ("sparse zeros", "sparse zeros --dig", "copy zeros copied", "sparse copied")
    with tempfile.TemporaryDirectory(prefix="mmkit-example-") as folder, contextlib.chdir(folder):
        Path("lines").write_bytes(b"".join(b"line %04d of a file\n" % number for number in range(10_000)))
        Path("zeros").write_bytes(b"head" + bytes(1 << 20) + b"tail")
        for command in on_lines + on_zeros:
            click.echo(f"$ memory_mapper.py {command}")
            main(command.split(), standalone_mode=False)


if __name__ == "__main__":
    main()
