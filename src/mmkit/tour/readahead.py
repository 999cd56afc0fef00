"""How much the kernel reads ahead of a program, and a file that is larger than that."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["file_length", "fill", "read_ahead"]

#: What Linux takes where nobody has said otherwise.
_USUAL = 128 * 1024
_DEVICES = Path("/sys/class/bdi")


def read_ahead(fd: int) -> tuple[int, str]:
    """Find out how much the kernel reads ahead of a file.

    Parameters
    ----------
    fd
        Of the file.

    Returns
    -------
    length : int
        In bytes.
    source : str
        Where it says so; what was assumed, if nothing does.
    """
    device = os.fstat(fd).st_dev
    ours = _DEVICES / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb"
    length = _kilobytes(ours)
    if length:
        return length, str(ours)
    # A file system that stands on another, as in containers, has no device of its own.
    found = [_kilobytes(each) for each in _DEVICES.glob("*/read_ahead_kb")]
    return max(found, default=0) or _USUAL, "assumed: this file system does not say"


def _kilobytes(path: Path) -> int:
    try:
        return int(path.read_text()) * 1024
    except (OSError, ValueError):
        return 0


_SMALLEST, _LARGEST = 1 << 20, 32 << 20


def file_length(ahead: int) -> int:
    """Return a length of which the read-ahead is a quarter, within what is quickly written."""
    # A power of two: it is divided into columns.
    return min(max(1 << (4 * ahead - 1).bit_length(), _SMALLEST), _LARGEST)


def fill(fd: int, length: int) -> None:
    """Write zeros to an empty file, as far as to the disk."""
    left = memoryview(bytes(length))
    while left:
        left = left[os.write(fd, left) :]
    os.fsync(fd)
