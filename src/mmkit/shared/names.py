"""Names of POSIX shared memory: what may be one, where it appears, and names made up."""

from __future__ import annotations

import os
import secrets

__all__ = ["DIRECTORY", "HIDDEN", "check_name", "make_name", "path_of"]

#: Where the C library's shm_open(3) has its objects, on every Linux.
DIRECTORY = "/dev/shm"

#: How the names begin of what mmkit keeps there for itself.
HIDDEN = ".mmkit-"

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


def make_name() -> str:
    """Make up a name that nobody can guess, and nobody has."""
    return f"mmkit_{secrets.token_hex(8)}"
