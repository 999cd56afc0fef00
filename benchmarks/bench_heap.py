"""A heap's blocks, from Python and in C, beside bytearray, numpy, ctypes, cffi and glibc's malloc."""

from __future__ import annotations

import ctypes
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import mmkit
from peers import cffi_malloc, compiled, ctypes_libc
from runner import Contestants, Loop, Race, Statement, Target, main, race

SIZES = (16, 256, 4096, 65536)
ROOT = Path(__file__).parents[1]
PYTHON_TARGETS = (Target("mmkit.Heap", "ctypes", at_most=1),)
C_TARGETS = (Target("mmkit", "glibc", at_most=1.5),)


def size_name(size: int) -> str:
    return f"{size} B" if size < 1024 else f"{size >> 10} KiB"


# ---- from Python ------------------------------------------------------------------------------------


def statements(scope: ExitStack, size: int) -> dict[str, Statement | None]:
    # Not before: numpy starts threads, and from then on everybody locks.
    import numpy as np

    heap = scope.enter_context(mmkit.Heap())
    libc = ctypes_libc(use_errno=False)
    contestants: dict[str, Statement | None] = {
        "mmkit.Heap": Statement("alloc(size).free()", alloc=heap.alloc, size=size),
        "mmkit.Heap, dropped": Statement("alloc(size)", alloc=heap.alloc, size=size),
        "ctypes": Statement("free(malloc(size))", malloc=libc.malloc, free=libc.free, size=size),
        "cffi": None,
        "bytearray": Statement("bytearray(size)", bytearray=bytearray, size=size),
        "numpy": Statement("empty(size, uint8)", empty=np.empty, uint8=np.uint8, size=size),
    }
    if cffi := cffi_malloc():
        contestants["cffi"] = Statement("free(malloc(size))", malloc=cffi.malloc, free=cffi.free, size=size)
    return contestants


def one_thread(size: int) -> Race:
    @race(f"make and free {size_name(size)}", peer="ctypes", targets=PYTHON_TARGETS)
    def make_and_free(scope: ExitStack) -> Contestants:
        return statements(scope, size)

    return make_and_free


def in_two_threads(work: Statement) -> Loop:
    """Half of the repetitions in each of two threads, from when both are there until both are done."""

    def run(n: int) -> int:
        ready = threading.Barrier(3)

        def half() -> None:
            ready.wait()
            work((n + 1) // 2)

        threads = [threading.Thread(target=half) for _ in range(2)]
        for thread in threads:
            thread.start()
        ready.wait()
        start = time.perf_counter_ns()
        for thread in threads:
            thread.join()
        return time.perf_counter_ns() - start

    return run


def two_threads(size: int) -> Race:
    @race(f"make and free {size_name(size)}, two threads", peer="ctypes", targets=PYTHON_TARGETS)
    def make_and_free(scope: ExitStack) -> Contestants:
        found = statements(scope, size)
        return {name: in_two_threads(work) if work else None for name, work in found.items()}

    return make_and_free


# ---- in C -------------------------------------------------------------------------------------------


@cache
def library() -> ctypes.CDLL | None:
    """Return heap_race.c, linked with the core that mmkit runs on; None without a C compiler."""
    # Where the extension modules find it: beside them.
    folder = Path(str(mmkit._native.heap.__file__)).parents[1] / "_lib"
    made = compiled(
        "heap_race.c", f"-I{ROOT / 'core/include'}", f"-L{folder}", f"-Wl,-rpath,{folder}", "-lmmkit"
    )
    if made is None:
        return None
    size, count = ctypes.c_size_t, ctypes.c_int64
    made.race_pairs.argtypes, made.race_pairs.restype = [ctypes.c_int, size, count], count
    made.race_churn.argtypes, made.race_churn.restype = [ctypes.c_int, count], count
    made.race_settle.argtypes = [ctypes.c_int, size, size, size]
    made.race_latencies.argtypes = [ctypes.c_int, count, ctypes.POINTER(count)]
    if made.race_open() != 0:
        raise MemoryError("race_open")
    return made


def in_c(work: Callable[[ctypes.CDLL, int, int], int]) -> Contestants:
    made = library()
    if made is None:
        return {"mmkit": None, "glibc": None}
    return {
        "mmkit": lambda n: int(work(made, 0, n)),
        "glibc": lambda n: int(work(made, 1, n)),
    }


def pairs_in_c(size: int) -> Race:
    @race(f"in C: alloc and free {size_name(size)}", peer="glibc", targets=C_TARGETS)
    def alloc_and_free(scope: ExitStack) -> Contestants:
        return in_c(lambda made, whose, n: int(made.race_pairs(whose, size, n)))

    return alloc_and_free


def churn_in_c(live: int, least: int, most: int) -> Race:
    name = f"in C: replace one of {live} blocks of {size_name(least)} to {size_name(most)}"

    @race(name, peer="glibc", targets=C_TARGETS)
    def replace(scope: ExitStack) -> Contestants:
        contestants = in_c(lambda made, whose, n: int(made.race_churn(whose, n)))
        if made := library():
            for whose in (0, 1):
                made.race_settle(whose, live, least, most)
                scope.callback(made.race_end, whose)
        return contestants

    return replace


def print_latency_and_fragmentation(rounds: int) -> None:
    """Print what a race of means does not show: slow calls, and what is held for the live bytes."""
    made = library()
    if made is None:
        return
    live, least, most = 20_000, 16, 16_384
    print(f"\n### In C: {rounds} replacements among {live} blocks of {least} B to {most >> 10} KiB\n")
    print("| | median ns | 99.9 % ns | 99.99 % ns | slowest ns | held ÷ live |")
    print("|---|---:|---:|---:|---:|---:|")
    times = (ctypes.c_int64 * rounds)()
    if made.race_begin_anew() != 0:
        raise MemoryError("race_begin_anew")
    # What the interpreter has of glibc's heap is no loss of it. What is asked for is the same of both.
    others, asked = two_sizes(made.race_libc_footprint)[1], 0
    for whose, name in ((0, "mmkit"), (1, "glibc")):
        made.race_settle(whose, live, least, most)
        made.race_latencies(whose, rounds, times)
        if whose == 0:
            held, asked = two_sizes(made.race_footprint)
        else:
            held = two_sizes(made.race_libc_footprint)[0] - others
        ordered = sorted(times)
        figures = [
            statistics.median_low(ordered),
            ordered[rounds * 999 // 1000],
            ordered[rounds * 9999 // 10000],
            ordered[-1],
        ]
        print(f"| {name} | " + " | ".join(f"{figure:,}" for figure in figures) + f" | {held / asked:.2f} |")
        made.race_end(whose)


def two_sizes(look: Callable[..., object]) -> tuple[int, int]:
    first, second = ctypes.c_size_t(), ctypes.c_size_t()
    look(ctypes.byref(first), ctypes.byref(second))
    return first.value, second.value


if __name__ == "__main__":
    main(
        *(pairs_in_c(size) for size in (16, 64, 256, 1024, 4096, 16384, 65536)),
        churn_in_c(1000, 16, 1024),
        churn_in_c(1000, 16, 65536),
        churn_in_c(5000, 16, 65536),
        churn_in_c(50_000, 16, 1024),
        *(one_thread(size) for size in SIZES),
        *(two_threads(size) for size in SIZES),
        notes=[
            "In C: CPU time of the thread, in a process that has had no other thread yet, so nobody locks."
        ],
    )
    print_latency_and_fragmentation(20_000 if "--quick" in sys.argv else 2_000_000)
