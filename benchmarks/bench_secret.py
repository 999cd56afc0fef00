"""Secret beside libsodium's sodium_malloc: a key of 32 bytes made, written, released, and what it locks.

    python benchmarks/bench_secret.py [--quick] [--json FILE]

libsodium is called through ctypes and through cffi. Each sodium_malloc maps, locks and protects pages of its
own, and leaves them readable and writable; a contestant that shuts them again after the write, as a Secret is
shut, is there as well. A Secret has two pairs of mprotect(2) as its floor: one to write, one to wipe.

The targets: made, opened for writing and released at most a quarter of sodium_malloc; made and released alone
a twentieth.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmkit import PAGE_SIZE, Secret
from runner import Contestants, Race, Statement, Target, main, race

LENGTH = 32
KEY = bytes(range(LENGTH))
MANY = 640

_DECLARATIONS = """
    int sodium_init(void);
    void *sodium_malloc(size_t size);
    void sodium_free(void *ptr);
    int sodium_mprotect_noaccess(void *ptr);
    int sodium_mprotect_readwrite(void *ptr);
"""


def sodium() -> str | None:
    """Return the name of libsodium's file, or None."""
    return ctypes.util.find_library("sodium")


def through_ctypes() -> Any:  # noqa: ANN401
    """Return libsodium through ctypes, or None."""
    name = sodium()
    if name is None:
        return None
    library = ctypes.CDLL(name)
    library.sodium_malloc.argtypes, library.sodium_malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    for call in (library.sodium_free, library.sodium_mprotect_noaccess, library.sodium_mprotect_readwrite):
        call.argtypes = [ctypes.c_void_p]
    library.sodium_free.restype = None
    library.sodium_init()
    return library


def through_cffi() -> Any:  # noqa: ANN401
    """Return libsodium and its ffi through cffi, or None."""
    name = sodium()
    try:
        ffi = importlib.import_module("cffi").FFI()
    except ImportError:
        return None
    if name is None:
        return None
    ffi.cdef(_DECLARATIONS)
    library = ffi.dlopen(name)
    library.sodium_init()
    return ffi, library


def lines(*statements: str) -> str:
    """Write several lines where `Statement` has one."""
    return "\n        ".join(statements)


def made_and_written() -> Race:
    @race(
        f"{LENGTH} bytes made, opened for writing, written, shut and released",
        peer="libsodium, ctypes",
        targets=(
            Target("Secret", "libsodium, ctypes", at_most=0.25),
            Target("Secret", "libsodium, cffi", at_most=0.25),
        ),
    )
    def run_it(scope: ExitStack) -> Contestants:
        write = ("with secret.open(True) as view: view[:] = key", "secret.close()")
        contestants: dict[str, Statement | None] = {
            "Secret": Statement(lines("secret = Secret(n)", *write), Secret=Secret, n=LENGTH, key=KEY),
            "Secret, isolated": Statement(
                lines("secret = Secret(n, isolated=True)", *write), Secret=Secret, n=LENGTH, key=KEY
            ),
            "libsodium, ctypes": None,
            "libsodium, ctypes, shut after the write": None,
            "libsodium, cffi": None,
        }
        if library := through_ctypes():
            names: dict[str, object] = {
                "malloc": library.sodium_malloc,
                "free": library.sodium_free,
                "move": ctypes.memmove,
                "shut": library.sodium_mprotect_noaccess,
                "open_": library.sodium_mprotect_readwrite,
                "n": LENGTH,
                "key": KEY,
            }
            contestants["libsodium, ctypes"] = Statement("p = malloc(n); move(p, key, n); free(p)", **names)
            contestants["libsodium, ctypes, shut after the write"] = Statement(
                "p = malloc(n); shut(p); open_(p); move(p, key, n); shut(p); free(p)", **names
            )
        if found := through_cffi():
            ffi, library = found
            contestants["libsodium, cffi"] = Statement(
                "p = malloc(n); move(p, key, n); free(p)",
                malloc=library.sodium_malloc,
                free=library.sodium_free,
                move=ffi.memmove,
                n=LENGTH,
                key=KEY,
            )
        return contestants

    return run_it


def made_alone() -> Race:
    @race(
        f"{LENGTH} bytes made and released",
        peer="libsodium, ctypes",
        targets=(
            Target("Secret", "libsodium, ctypes", at_most=0.05),
            Target("Secret", "libsodium, cffi", at_most=0.05),
        ),
    )
    def run_it(scope: ExitStack) -> Contestants:
        contestants: dict[str, Statement | None] = {
            "Secret": Statement("Secret(n).close()", Secret=Secret, n=LENGTH),
            "Secret, dropped": Statement("Secret(n)", Secret=Secret, n=LENGTH),
            "libsodium, ctypes": None,
            "libsodium, cffi": None,
        }
        if library := through_ctypes():
            contestants["libsodium, ctypes"] = Statement(
                "free(malloc(n))", malloc=library.sodium_malloc, free=library.sodium_free, n=LENGTH
            )
        if found := through_cffi():
            _, library = found
            contestants["libsodium, cffi"] = Statement(
                "free(malloc(n))", malloc=library.sodium_malloc, free=library.sodium_free, n=LENGTH
            )
        return contestants

    return run_it


def opened(name: str, statement: str) -> Race:
    @race(name, peer="Secret")
    def run_it(scope: ExitStack) -> Contestants:
        secret = scope.enter_context(Secret(LENGTH))
        secret.wipe()
        return {
            "Secret": Statement(statement, secret=secret, key=KEY),
            "memoryview of a bytearray": Statement("with memoryview(secret): pass", secret=bytearray(LENGTH)),
        }

    return run_it


# ---- what it costs to lock


def locked() -> int:
    """Return what this process has locked, in bytes."""
    rest = Path("/proc/self/status").read_text().partition("VmLck:")[2]
    return int(rest.split()[0]) * 1024


def lock_bytes(make: Callable[[], object], release: Callable[[Any], object]) -> float:
    """Return how many bytes of the lock limit one of many costs."""
    before = locked()
    kept = [make() for _ in range(MANY)]
    cost = (locked() - before) / MANY
    for each in kept:
        release(each)
    return cost


def lock_notes() -> str:
    """Say what a key costs of the limit, with each."""
    costs = {
        "Secret": lock_bytes(lambda: Secret(LENGTH), Secret.close),
        "Secret, isolated": lock_bytes(lambda: Secret(LENGTH, isolated=True), Secret.close),
    }
    if library := through_ctypes():
        costs["sodium_malloc"] = lock_bytes(lambda: library.sodium_malloc(LENGTH), library.sodium_free)
    written = "; ".join(f"{name} {cost:.0f}" for name, cost in costs.items())
    what = f"{MANY} keys of {LENGTH} bytes (a page is {PAGE_SIZE})"
    return f"Bytes of the lock limit for each of {what}: {written}."


if __name__ == "__main__":
    main(
        made_and_written(),
        made_alone(),
        opened("opened for reading and shut", "with secret.open(): pass"),
        notes=(lock_notes(),),
    )
