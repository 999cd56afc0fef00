"""A file as memory: mapped, read, written through, flushed, and mapped as a private copy.

Makes a file of 200 lines, whose length is no multiple of a page, and works on it without read() and write().
After each change the file itself is looked at, as any other program would.
In C: open(2), mmap(2), msync(2), cachestat(2), munmap(2). Belongs to the chapter "Mapping" (docs/mapping.md).
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import mmkit
from mmkit import PAGE_SIZE, Region, linux, maps


def main() -> None:
    """Show one file mapped in all the ways in which a file can be mapped."""
    with tempfile.TemporaryDirectory(prefix="mmkit-example-") as folder:
        path = Path(folder, "lines.txt")
        path.write_bytes(b"".join(b"line %03d of a file that is memory\n" % number for number in range(200)))
        read(path)
        write_through(path)
        see_what_others_write(path)
        map_a_few_bytes(path)
        lengthen(path)
        copy_on_write(path)


def read(path: Path) -> None:
    """Find a line in a file that is never read with read()."""
    print("Read it")
    with Region.file(path) as region:  # open(2) and mmap(2); munmap(2) at the end of the block
        print(f"  {len(region)} bytes of the file at {region.address:#x}, mapped for reading only")
        print(f"  region[0:8] is {region[0:8]!r}; slices, find() and readline() work as for mmap.mmap")
        region.seek(region.find(b"line 150"))
        print(f"  find(b'line 150') says {region.tell()}; readline() there: {region.readline()!r}")
        try:
            region[0:4] = b"LINE"
        except mmkit.MemoryFault as fault:
            print(f"  a write raises MemoryFault: {fault.reason}")

        area = maps.find(region.address)
        assert area is not None
        print(f"  the kernel maps whole pages: its area has {area.size} bytes")
        rest = mmkit.peek(region.address + len(region), -len(region) % PAGE_SIZE)
        print(f"  behind the end of the file are {len(rest)} more, all of them zeros: {not any(rest)}")


def write_through(path: Path) -> None:
    """Change the file by storing into memory."""
    print("\nWrite through to it")
    with Region.file(path, mode="r+") as region:
        region[0:4] = b"LINE"
        print("  region[0:4] = b'LINE', a store into memory and no call at all")
        print(f"  and the file begins with {path.read_bytes()[:8]!r}: it is the same page")
        # What is shared need not be on the disk yet: the kernel writes it back when it likes, or by msync(2).
        before, covered, after = pages_to_be_written(region), region.flush(), pages_to_be_written(region)
        print(f"  flush() covered {covered}; pages still to be written: {before} before, {after} after")


def pages_to_be_written(region: Region) -> str:
    """Ask how many pages of a file are newer in memory than on the disk: cachestat(2), Linux 6.5."""
    if not mmkit.supports("cachestat"):
        return "unknown"
    return str(linux.cachestat(region.fileno(), 0, len(region)).nr_dirty)


def see_what_others_write(path: Path) -> None:
    """Change the file with write(), and see it in memory."""
    print("\nAnd the other way round")
    with Region.file(path) as region, path.open("r+b") as file:
        file.write(b"Line")
        file.flush()
        print(f"  after file.write(b'Line') memory holds {region[0:8]!r}, without a call")


def map_a_few_bytes(path: Path) -> None:
    """Map from any byte to any other, although the kernel can only begin at a page."""
    print("\nAny length, from any offset")
    offset = 30 * len("line 000 of a file that is memory\n") + 14
    with Region.file(path, length=19, offset=offset) as region:
        print(f"  {len(region)} bytes from offset {offset}: {region[:]!r}")
        print(f"  they are at {region.address:#x}, {region.address % PAGE_SIZE} bytes into a page")
    try:
        Region.file(path, length=30, offset=path.stat().st_size)
    except ValueError:
        print("  from beyond its end: ValueError, and nothing is mapped")


def lengthen(path: Path) -> None:
    """Add a line: the file and its mapping grow together."""
    print("\nGrow")
    with Region.file(path, mode="r+") as region:
        end = len(region)
        line = b"and one line more\n"
        region.resize(end + len(line))
        region[end:] = line
    print(f"  from {end} to {path.stat().st_size} bytes; its last line is {path.read_bytes()[end:]!r}")


def copy_on_write(path: Path) -> None:
    """Change memory, and leave the file alone."""
    print("\nA private copy")
    with Region.file(path, mode="c") as region:
        region[0:4] = b"mine"
        print(f"  memory has {region[0:8]!r}, the file {path.read_bytes()[:8]!r}: the store copied the page")
        region.discard()
        print(f"  after discard() memory has {region[0:8]!r}: the copy is gone, the file shows again")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
