"""The process that searches: starting it, what it is given, and what its answer means."""

from __future__ import annotations

import errno
import struct
import subprocess
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from mmkit._native import scan as native
from mmkit.errors import Error, SyscallError
from mmkit.hints import failure

__all__ = ["Answer", "Found", "Missed", "scan", "wrong_length"]

#: core/scanner/report.h
_RECORD = struct.Struct("=IIqQQQQ")
_HIT, _UNREAD, _DONE, _MANY, _FAILED = range(1, 6)
_NEEDLE, _LENGTH, _MEMORY, _RANGES = range(1, 5)

_PROGRAM = Path(native.__file__).parents[1] / "_lib" / "mmkit-scan"


class Found(NamedTuple):
    """A hit: its form as mmk_scan_form counts them, and `length` of `whole` bytes."""

    form: int
    address: int
    length: int
    whole: int


class Missed(NamedTuple):
    """A range that could not be read, and the errno: ``ENODATA`` where the file or the process has ended."""

    address: int
    length: int
    error: int


class Answer(NamedTuple):
    """All that the scanner told."""

    found: list[Found]
    missed: list[Missed]
    looked_at: int
    needle_length: int
    truncated: bool
    locked: bool


def scan(needle: int, is_line: bool, target: int, pagemap: int, ranges: array[int]) -> Answer:
    """Search ranges of a file for a needle, in a process of its own.

    Parameters
    ----------
    needle
        A descriptor that it is read from.
    is_line
        A newline at its end does not belong to it.
    target, pagemap
        Descriptors of what is searched, and of its /proc/PID/pagemap; -1 without one.
    ranges
        Four numbers each: address, length, offset in the target, whether it is private anonymous memory.
    """
    inherited = {needle, target, *([pagemap] if pagemap >= 0 else [])}
    command = [_PROGRAM, *map(str, (needle, target, pagemap)), "line" if is_line else "exact"]
    with ExitStack() as scope:
        # Without the environment: it may hold secrets, and libraries to be preloaded.
        process = scope.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=inherited, env={}
            )
        )
        # A pending exception must not leave it waiting for more; to one that has ended this does nothing.
        scope.callback(process.kill)
        output, _ = process.communicate(ranges.tobytes())
    return _understood(output, process.returncode)


def wrong_length(length: int | None) -> ValueError:
    """Say why a needle cannot be searched for."""
    given = "" if length is None else f"; this has {length}"
    return ValueError(
        f"a needle, the secret to look for, has {native.NEEDLE_MIN} to {native.NEEDLE_MAX} bytes: fewer are "
        f"everywhere by chance, and of more look for a part{given}"
    )


def _understood(output: bytes, status: int) -> Answer:
    found, missed = [], []
    for kind, form, error, address, length, _start, whole in _records(output):
        if kind == _HIT:
            found.append(Found(form, address, length, whole))
        elif kind == _UNREAD:
            missed.append(Missed(address, length, error))
        elif kind == _FAILED:
            raise _failure(form, error)
        else:
            return Answer(found, missed, length, whole, kind == _MANY, not error)
    raise Error(f"{_PROGRAM.name} ended before it was done (status {status}): was it killed?")


def _records(output: bytes) -> Iterator[tuple[int, ...]]:
    return _RECORD.iter_unpack(output[: len(output) // _RECORD.size * _RECORD.size])


def _failure(step: int, error: int) -> Exception:
    if step == _LENGTH:
        return wrong_length(None)
    if step == _NEEDLE:
        return SyscallError(error, "read(needle)", "The descriptor that it comes from cannot be read.")
    if step == _MEMORY:
        return failure(-error, "mmap")
    assert step == _RANGES
    return SyscallError(error or errno.EIO, "read(ranges)")
