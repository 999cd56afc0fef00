"""A fact about the machine or the process, and how files that may not be there are read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["UNLIMITED", "Fact", "chosen", "fields", "kibibytes", "number", "text"]

#: The value of a limit that is none.
UNLIMITED = "unlimited"


class Fact(NamedTuple):
    """Something that was read, what it means, and what to change where it hurts."""

    name: str
    group: str
    #: None where it cannot be told here.
    value: int | str | None
    #: What the value means, in a short phrase.
    means: str
    #: ``bytes``, ``pages`` or a word for what is counted; empty for text.
    unit: str = ""
    #: How much of a limit is used, in the same unit.
    used: int | None = None
    #: What to change; empty where it is fine as it is.
    change: str = ""


def text(path: str | Path) -> str | None:
    """Read a small file without its last newline; None where it is not there or closed to us."""
    try:
        return Path(path).read_bytes().decode(errors="backslashreplace").rstrip("\n\0")
    except OSError:
        return None


def number(path: str | Path) -> int | None:
    """Read a file that holds one number."""
    content = text(path)
    try:
        return int(content) if content else None
    except ValueError:
        return None


def fields(path: str | Path, separator: str = ":") -> dict[str, str]:
    """Read lines of a name and a value, as in /proc/meminfo and /proc/PID/status; none without the file."""
    lines = (line.partition(separator) for line in (text(path) or "").splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def kibibytes(found: dict[str, str], name: str) -> int | None:
    """Return a field such as ``VmLck: 16 kB`` in bytes."""
    value = found.get(name, "").split()
    return int(value[0]) * 1024 if value and value[0].isdigit() else None


def chosen(path: str | Path) -> str | None:
    """Read a setting that lists what can be chosen, the choice in brackets: ``always [madvise] never``."""
    content = text(path)
    if content is None:
        return None
    return content.partition("[")[2].partition("]")[0] or content
