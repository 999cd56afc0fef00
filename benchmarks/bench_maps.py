"""maps: reading /proc/PID/maps and smaps, and finding one address.

The floor is reading the same file with read(2) into a buffer, in C: the kernel makes the text meanwhile, and
nobody who reads it can be faster. The target: at most 1.3 times that, with every area parsed into columns.
"""

from __future__ import annotations

import importlib
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from ctypes import addressof, c_char, c_size_t
from typing import Any

from mmkit import linux, maps
from peers import bare
from runner import Contestants, Loop, Race, Statement, Target, main, race

PAGE = mmap.PAGESIZE
FEW, MANY = 300, 20_000
FLOOR = "read(2) in C"
TARGETS = (Target("mmkit", FLOOR, at_most=1.3),)

# Neighbours differ in what they allow, so that the kernel keeps them apart. Each has one page, in memory.
CHILD = """
import sys
sys.path[:0] = sys.argv[2:]
from bench_maps import make_areas
areas = make_areas(int(sys.argv[1]))
print(flush=True)
input()
"""


def make_areas(count: int) -> mmap.mmap:
    """Map memory that consists of so many private areas."""
    memory = mmap.mmap(-1, count * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(memory)
    for page in range(count):
        memory[page * PAGE] = 1
        if page % 2:
            linux.mprotect(start + page * PAGE, PAGE, mmap.PROT_READ)
    return memory


def address_of(memory: mmap.mmap) -> int:
    return addressof(c_char.from_buffer(memory))


def process_of(scope: ExitStack, count: int) -> int:
    """Start a process that has so many private areas, beside those of a Python."""
    command = [sys.executable, "-c", CHILD, str(count), *sys.path]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    scope.callback(child.communicate, b"\n")
    assert child.stdout
    child.stdout.readline()
    return child.pid


def floor(scope: ExitStack, path: str) -> Loop | None:
    """Return who only reads a file that the kernel makes."""
    descriptor = os.open(path, os.O_RDONLY)
    scope.callback(os.close, descriptor)
    memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    buffer = (c_char * len(memory)).from_buffer(memory)
    return bare("read_whole", descriptor, buffer, c_size_t(len(memory)))


def module(name: str) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# ---- as it is often written -------------------------------------------------------------------------


def plain_maps(pid: int) -> list[tuple[int, int, bytes, int, bytes, int, bytes]]:
    areas = []
    with open(f"/proc/{pid}/maps", "rb") as text:  # noqa: PTH123
        for line in text:
            span, perms, offset, device, inode, *path = line.split(None, 5)
            start, end = span.split(b"-")
            areas.append(
                (
                    int(start, 16),
                    int(end, 16),
                    perms,
                    int(offset, 16),
                    device,
                    int(inode),
                    path[0] if path else b"",
                )
            )
    return areas


def plain_smaps(pid: int) -> list[dict[str, Any]]:
    areas: list[dict[str, Any]] = []
    with open(f"/proc/{pid}/smaps", "rb") as text:  # noqa: PTH123
        for line in text:
            first, *rest = line.split()
            if not first.endswith(b":"):
                start, end = first.split(b"-")
                areas.append(
                    {"start": int(start, 16), "end": int(end, 16), "perms": rest[0], "path": rest[4:]}
                )
            elif rest[-1:] == [b"kB"]:
                areas[-1][first.decode()] = int(rest[0]) * 1024
            else:
                areas[-1][first.decode()] = rest
    return areas


def plain_find(address: int) -> bytes | None:
    with open("/proc/self/maps", "rb") as text:  # noqa: PTH123
        for line in text:
            start, end = line.split(None, 1)[0].split(b"-")
            if int(start, 16) <= address < int(end, 16):
                return line
    return None


# ---- the races --------------------------------------------------------------------------------------


def race_of_maps(count: int) -> Race:
    @race(
        f"maps, {count:,} private areas", peer=FLOOR, targets=TARGETS, most_rounds=100 if count == FEW else 30
    )
    def enter(scope: ExitStack) -> Contestants:
        pid = process_of(scope, count)
        procmaps = module("procmaps")
        return {
            FLOOR: floor(scope, f"/proc/{pid}/maps"),
            "mmkit": Statement("read(pid)", read=maps.read, pid=pid),
            "mmkit, and every row": Statement("list(read(pid))", read=maps.read, pid=pid),
            "procmaps": procmaps and Statement("read(pid)", read=procmaps.from_pid, pid=pid),
            "plain Python": Statement("read(pid)", read=plain_maps, pid=pid),
        }

    return enter


def race_of_smaps(count: int) -> Race:
    @race(
        f"smaps, {count:,} private areas", peer=FLOOR, targets=TARGETS, most_rounds=50 if count == FEW else 10
    )
    def enter(scope: ExitStack) -> Contestants:
        pid = process_of(scope, count)
        psutil = module("psutil")
        return {
            FLOOR: floor(scope, f"/proc/{pid}/smaps"),
            "mmkit": Statement("read(pid, True)", read=maps.read, pid=pid),
            "mmkit, and totals": Statement("read(pid, True).total()", read=maps.read, pid=pid),
            "mmkit, and every row": Statement("list(read(pid, True))", read=maps.read, pid=pid),
            "psutil": psutil and Statement("maps(False)", maps=psutil.Process(pid).memory_maps),
            "pmap -X": pmap(pid),
            "plain Python": Statement("read(pid)", read=plain_smaps, pid=pid),
        }

    return enter


def pmap(pid: int) -> Loop | None:
    """Return a process that reads and prints: starting it is in its time."""
    if shutil.which("pmap") is None:
        return None
    command = ["pmap", "-X", str(pid)]
    return Statement(
        "run(command, stdout=null, check=True)", run=subprocess.run, command=command, null=subprocess.DEVNULL
    )


def race_of_find(count: int) -> Race:
    linear = "linear search in areas read before"

    @race(
        f"find, {count:,} private areas",
        peer=linear,
        targets=(Target("mmkit", linear, at_most=1.0),),
        most_rounds=100 if count == FEW else 20,
    )
    def enter(scope: ExitStack) -> Contestants:
        memory = make_areas(count)
        scope.callback(memory.close)
        address = address_of(memory) + len(memory) // 2
        areas = maps.read()
        search: Callable[..., Statement] = lambda source: Statement(  # noqa: E731
            f"next(area for area in {source} if area.start <= address < area.end)",
            areas=areas,
            rows=list(areas),
            read=maps.read,
            address=address,
        )
        return {
            "mmkit": Statement("find(address)", find=maps.find, address=address),
            linear: search("rows"),
            "reading, then linear search": search("read()"),
            "reading, then Areas.find": Statement("read().find(address)", read=maps.read, address=address),
            "Areas.find in areas read before": Statement("find(address)", find=areas.find, address=address),
            "plain Python, line by line": Statement("find(address)", find=plain_find, address=address),
        }

    return enter


if __name__ == "__main__":
    main(
        *(make(count) for make in (race_of_maps, race_of_smaps, race_of_find) for count in (FEW, MANY)),
        notes=(
            "The floor leaves out open(2), which all others call, and closing. procmaps knows no smaps, "
            "psutil no maps alone. The process has the areas of a Python beside the private ones. Races "
            "that would take minutes have fewer rounds: 30, 20 or 10 of 20,000 areas, 50 of smaps of 300.",
        ),
    )
