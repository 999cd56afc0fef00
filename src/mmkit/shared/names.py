"""Names of POSIX shared memory: what may be one, where it appears, and names made up."""

from __future__ import annotations

import os
import secrets

__all__ = [
    "ASIDE",
    "DIRECTORY",
    "HIDDEN",
    "MAKING",
    "RECORD",
    "check_name",
    "make_name",
    "name_aside",
    "name_before",
    "path_of",
]

#: Where the C library's shm_open(3) has its objects, on every Linux.
DIRECTORY = "/dev/shm"

#: How the names begin of what mmkit keeps there for itself.
HIDDEN = ".mmkit-"
#: What is not complete yet; what was to be removed, or came in between; what is known about a segment.
MAKING, ASIDE, RECORD = (f"{HIDDEN}{what}-" for what in ("making", "removing", "record"))

_LONGEST = 255


def check_name(name: str) -> str:
    """Return a name as it appears in /dev/shm, or say why it cannot be one.

    A slash in front is taken off, as shm_open(3) does: ``/frames``, as C programs and posix_ipc write it, is
    ``frames``.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a segment is a str, not {name!r}")
    bare = name.removeprefix("/")
    if bare in ("", ".", ".."):
        raise ValueError(f"{name!r} cannot name a segment: it would be no file of its own in {DIRECTORY}")
    if "/" in bare:
        raise ValueError(f"{name!r} cannot name a segment: slashes inside a name would be directories")
    if "\0" in bare:
        raise ValueError(f"{name!r} cannot name a segment: it holds a NUL character")
    try:
        length = len(os.fsencode(bare))
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} cannot name a segment: it cannot be encoded as a file name") from None
    if length > _LONGEST:
        raise ValueError(
            f"{bare[:20]!r}… cannot name a segment: it has {length} bytes, and {_LONGEST} are the most"
        )
    if bare.startswith(HIDDEN):
        raise ValueError(f"{name!r} cannot name a segment: mmkit keeps names that begin with {HIDDEN!r}")
    return bare


def path_of(name: str) -> str:
    """Return where a name appears."""
    return f"{DIRECTORY}/{name}"


def name_aside(name: str, inode: int) -> str:
    """Return what to call a file that is removed: with its name, which who has it sees in /proc/PID/maps."""
    return os.fsdecode(os.fsencode(f"{ASIDE}{inode}-{secrets.token_hex(4)}-{name}")[:_LONGEST])


def name_before(name: str) -> str:
    """Return what a file was called, before `name_aside` if it was set aside."""
    return name.removeprefix(ASIDE).split("-", 2)[-1] if name.startswith(ASIDE) else name


def make_name() -> str:
    """Make up a name that nobody can guess, and nobody has."""
    return f"mmkit_{secrets.token_hex(8)}"
