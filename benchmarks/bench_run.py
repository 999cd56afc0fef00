"""Whole programs on mmkit's malloc, beside glibc's, jemalloc, mimalloc and tcmalloc.

Each program is started with the allocator's library in LD_PRELOAD, which is what `mmkit run` does; the
start of `mmkit run` itself is left out. The figure is from its start to its end; CPU is what the kernel
counted for it and what it started. The same work each time: Python with each object from malloc
(PYTHONMALLOC=malloc), sort with two threads, a compiler with one file, and threads that do nothing but
malloc and free.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from mmkit._native import heap as native
from runner import Contestants, Race, main, race

_BESIDE = Path(native.__file__).parents[1] / "_lib"
ALLOCATORS: dict[str, str | None] = {
    "glibc": "",
    "mmkit": str(_BESIDE / "libmmkit_preload.so"),
    "jemalloc": ctypes.util.find_library("jemalloc"),
    "mimalloc": ctypes.util.find_library("mimalloc"),
    "tcmalloc": ctypes.util.find_library("tcmalloc_minimal"),
}
GUARDED = str(_BESIDE / "libmmkit_preload_guard.so")

SCRIPT = """
import json
rows = [{"name": f"row {i}", "values": [*range(i, i + 10)], "text": "x" * (i % 300)} for i in range(15_000)]
assert len(json.loads(json.dumps(rows))) == len(rows)
index = {row["name"]: row for row in sorted(rows, key=lambda row: row["text"])}
assert "".join(index).count("row") == len(rows)
"""

SOURCE = """
#include <pthread.h>
#include <stdlib.h>
static void *work(void *seed)
{
    void *blocks[64] = {0};
    unsigned long state = (unsigned long)seed;
    for (int i = 0; i < 1000000; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        void **block = &blocks[state >> 58];
        free(*block);
        *block = malloc(state >> 32 & 511);
    }
    for (int i = 0; i < 64; i++)
        free(blocks[i]);
    return NULL;
}
int main(int count, char **arguments)
{
    pthread_t threads[8];
    count = atoi(arguments[1]);
    for (long i = 0; i < count; i++)
        pthread_create(&threads[i], NULL, work, (void *)(i + 1));
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
"""


class Runs:
    """A program, run `n` times one after the other."""

    def __init__(self, command: list[str], library: str, **environment: str) -> None:
        self._command = command
        self._environment = os.environ | environment | ({"LD_PRELOAD": library} if library else {})
        self._cpu = 0.0
        self._calls = 0

    def __call__(self, n: int) -> int:
        began = time.perf_counter_ns()
        for _ in range(n):
            pid = os.posix_spawnp(self._command[0], self._command, self._environment)
            _, status, used = os.wait4(pid, 0)
            if status:
                raise RuntimeError(f"{self._command[0]}: {os.waitstatus_to_exitcode(status)}")
            self._cpu += (used.ru_utime + used.ru_stime) * 1e9
            self._calls += 1
        return time.perf_counter_ns() - began

    def cpu_per_call(self) -> float:
        """Return processor time a run, in ns."""
        return self._cpu / self._calls


def program(
    name: str, make: Callable[[Path], list[str] | None], *, guarded: bool = False, **environment: str
) -> Race:
    """Return the race of a command, which is made in a directory of its own; None: it is not installed."""

    @race(name, peer="glibc", most_rounds=12)
    def allocators(scope: ExitStack) -> Contestants:
        command = make(Path(scope.enter_context(tempfile.TemporaryDirectory())))
        libraries = ALLOCATORS | ({"mmkit, guarded": GUARDED} if guarded else {})
        return {
            name: None if command is None or library is None else Runs(command, library, **environment)
            for name, library in libraries.items()
        }

    return allocators


def python(_: Path) -> list[str]:
    return [sys.executable, "-S", "-c", SCRIPT]


def start(_: Path) -> list[str]:
    return [sys.executable, "-S", "-c", "pass"]


def sort(directory: Path) -> list[str] | None:
    numbers = directory / "numbers"
    numbers.write_text("".join(f"{i * 2654435761 % 4294967296}\n" for i in range(300_000)))
    return ["sort", "--parallel=2", "-o", str(directory / "sorted"), str(numbers)]


def compiler(directory: Path) -> list[str] | None:
    if not shutil.which("cc"):
        return None
    source = directory / "program.c"
    source.write_text(SOURCE)
    return ["cc", "-O2", "-c", str(source), "-o", str(directory / "program.o")]


def malloc_in_threads(count: int) -> Callable[[Path], list[str] | None]:
    def make(directory: Path) -> list[str] | None:
        if not shutil.which("cc"):
            return None
        source, target = directory / "program.c", directory / "program"
        source.write_text(SOURCE)
        subprocess.run(["cc", "-O2", "-pthread", "-fno-builtin", source, "-o", target], check=True)
        return [str(target), str(count)]

    return make


if __name__ == "__main__":
    main(
        program("Python starts and ends", start, guarded=True, PYTHONMALLOC="malloc"),
        program("Python, a script that allocates much", python, PYTHONMALLOC="malloc"),
        program("sort, 300,000 lines, two threads", sort),
        program("cc -O2, one file", compiler),
        program("malloc and free only, one thread", malloc_in_threads(1)),
        program("malloc and free only, two threads", malloc_in_threads(2)),
    )
