"""Pool and Arena: a block taken and given back, beside what else gives a Python program a block.

`bytearray(n)`, ``numpy.empty(n, uint8)``, malloc and free through ctypes and through cffi; from 16 bytes to
64 KiB; by one thread, and by two at once. The bytes are not touched: what is compared is the taking and
giving. `numpy.empty` and cffi's `new` free when their object goes, as a pool's block may.

The targets: a pool at most half of ctypes, and no more than `bytearray(256)`.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import mmkit
from peers import cffi_libc
from runner import Contestants, Race, Statement, Target, main, race

SIZES = (16, 64, 256, 1024, 4096, 65536)
BLOCKS = 64
#: What starting two threads costs must not show, nor who first gets the GIL: it changes hands every 5 ms.
LEAST_TIMES = 100_000
TARGETS = (
    Target("Pool", "ctypes malloc, free", at_most=0.5),
    Target("Pool", "bytearray(256)", at_most=1.0),
)


class TwoThreads:
    """A statement in two threads at once: the time until both have done it `n` times, by both's number."""

    def __init__(self, statement: Statement, other: Statement) -> None:
        self._statements = (statement, other)

    def __call__(self, n: int) -> int:
        start, times = threading.Barrier(3), max(n, LEAST_TIMES)

        def work(statement: Statement) -> None:
            start.wait()
            statement(times)

        threads = [threading.Thread(target=work, args=(statement,)) for statement in self._statements]
        for thread in threads:
            thread.start()
        start.wait()
        began = time.perf_counter_ns()
        for thread in threads:
            thread.join()
        return (time.perf_counter_ns() - began) * n // (2 * times)


def c_malloc() -> tuple[Callable[..., int], Callable[..., None]]:
    libc = ctypes.CDLL(None)
    malloc, free = libc.malloc, libc.free
    malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    free.argtypes, free.restype = [ctypes.c_void_p], None
    return malloc, free


def block_of(size: int, scope: ExitStack) -> dict[str, Callable[[], Statement] | None]:
    """Return who gives blocks of a size: each makes statements with names of their own."""
    pool = scope.enter_context(mmkit.Pool(size, BLOCKS))
    arena = scope.enter_context(mmkit.Arena())
    malloc, free = c_malloc()
    contestants: dict[str, Callable[[], Statement] | None] = {
        "Pool": lambda: Statement("give(take())", take=pool.take, give=pool.give),
        "Pool, block dropped": lambda: Statement("take()", take=pool.take),
        "bytearray(n)": lambda: Statement("bytearray(n)", bytearray=bytearray, n=size),
        "bytearray(256)": lambda: Statement("bytearray(n)", bytearray=bytearray, n=256),
        "ctypes malloc, free": lambda: Statement("free(malloc(n))", malloc=malloc, free=free, n=size),
        "numpy.empty": None,
        "cffi malloc, free": None,
        "cffi new": None,
    }
    # Sixteen blocks, and back to the start: an arena that only grew would be something else.
    sixteen = "; ".join(["alloc(n)"] * 16)
    contestants["Arena, 16 blocks and rewind"] = lambda: Statement(
        f"{sixteen}; rewind()", alloc=arena.alloc, rewind=arena.rewind, n=size
    )
    if numpy := imported("numpy"):
        contestants["numpy.empty"] = lambda: Statement(
            "empty(n, u8)", empty=numpy.empty, n=size, u8=numpy.uint8
        )
    if cffi := cffi_libc():
        lib, new, kind = cffi.lib, cffi.ffi.new_allocator(should_clear_after_alloc=False), f"char[{size}]"
        contestants["cffi malloc, free"] = lambda: Statement(
            "free(malloc(n))", malloc=lib.malloc, free=lib.free, n=size
        )
        contestants["cffi new"] = lambda: Statement("new(kind)", new=new, kind=cffi.ffi.typeof(kind))
    return contestants


def imported(name: str) -> Any:  # noqa: ANN401
    """Return a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def take_and_give(size: int) -> Race:
    @race(f"a block of {size} bytes", peer="ctypes malloc, free", targets=TARGETS)
    def one_thread(scope: ExitStack) -> Contestants:
        return {name: make and make() for name, make in block_of(size, scope).items()}

    return one_thread


def in_two_threads(size: int) -> Race:
    @race(f"two threads: {size} bytes", peer="ctypes malloc, free", targets=TARGETS, most_rounds=20)
    def two_threads(scope: ExitStack) -> Contestants:
        # An arena is one thread's.
        contestants = {
            name: make for name, make in block_of(size, scope).items() if not name.startswith("Arena")
        }
        return {name: make and TwoThreads(make(), make()) for name, make in contestants.items()}

    return two_threads


if __name__ == "__main__":
    main(
        *map(take_and_give, SIZES),
        *map(in_two_threads, SIZES),
        notes=(
            "Two threads share the GIL and one pool: the figure is the time until both are done, by the "
            "calls of both, with the empty loop, which is not subtracted there.",
        ),
    )
