"""What happens behind mmkit's back: memory calls straight to the C library, mounts and children of one's own."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmkit import MapFlag, Prot
from support import in_child

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_CLONE_NEWNS = 0x20000
_MS_PRIVATE_FOR_ALL = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC
_PR_SET_PDEATHSIG = 1


def _checked(result: int) -> int:
    if result in (-1, None, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def mprotect(address: int, length: int, prot: int) -> None:
    """mprotect(2), of which mmkit learns nothing."""
    _checked(_libc.mprotect(address, length, prot))


def munmap(address: int, length: int) -> None:
    """munmap(2), of which mmkit learns nothing."""
    _checked(_libc.munmap(address, length))


def map_at(address: int, length: int, prot: int = Prot.NONE) -> None:
    """Map anonymous memory at an address that is free."""
    flags = MapFlag.PRIVATE | MapFlag.ANONYMOUS | MapFlag.FIXED_NOREPLACE
    _checked(_libc.mmap(address, length, prot, flags, -1, 0))


def mount(directory: Path, kind: str, options: str) -> None:
    """mount(2) of something that has no device."""
    _checked(_libc.mount(kind.encode(), os.fsencode(directory), kind.encode(), 0, options.encode()))


def in_mount(function: Callable[[Path], Any], directory: Path, kind: str, options: str) -> Any:
    """Run a function in a child that has a file system of its own on a directory; skip where it cannot.

    Needs root. The mount is seen by the child and its children only, and goes with them.
    """

    def run() -> Any:
        try:
            _checked(_libc.unshare(_CLONE_NEWNS))
            _checked(_libc.mount(b"none", b"/", None, _MS_PRIVATE_FOR_ALL, None))
            mount(directory, kind, options)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EINVAL, errno.ENODEV):
                return False, f"cannot mount {kind} with {options} here: {error}"
            raise
        return True, function(directory)

    mounted, answer = in_child(run)
    if not mounted:
        pytest.skip(answer)
    return answer


@contextlib.contextmanager
def process(function: Callable[[], Any]) -> Iterator[int]:
    """Have a function run in another process for as long as the block; yields its id."""
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        pid = os.fork()
    if pid == 0:
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == parent:
                function()
        finally:
            os._exit(1)
    try:
        yield pid
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the other process has died"
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
