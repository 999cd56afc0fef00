"""What the dynamic loader will do with a program: whether LD_PRELOAD counts for it."""

from __future__ import annotations

import enum
import os
import stat
import struct
from pathlib import Path

__all__ = ["Refusal", "refusal"]

_ELF, _SCRIPT = b"\x7fELF", b"#!"
_ELF_HEADER = 64
_PT_INTERP = 3
#: ``#!`` lines that lead to another script: the kernel follows no more.
_MOST_SCRIPTS = 5


class Refusal(enum.Enum):
    """Why a program would not use what is preloaded."""

    STATIC = "is statically linked: it has its own malloc, and the loader that reads LD_PRELOAD never runs"
    PRIVILEGED = (
        "has more rights than its user (set-uid, set-gid or capabilities): the loader ignores LD_PRELOAD "
        "then. Run it as the user it belongs to"
    )
    FOREIGN = "is for another kind of processor than this mmkit"


def refusal(program: str) -> Refusal | None:
    """Return why LD_PRELOAD would do nothing for a program, as far as its file tells; else None."""
    for _ in range(_MOST_SCRIPTS):
        try:
            head = _head(program)
            # The kernel ignores the bits of scripts; those of what runs them count.
            if not head.startswith(_SCRIPT):
                return Refusal.PRIVILEGED if _gains_rights(program) else _of_elf(program, head)
        except OSError:
            return None  # The kernel will say.
        interpreter = head.partition(b"\n")[0].removeprefix(_SCRIPT).split()
        if not interpreter:
            return None
        program = os.fsdecode(interpreter[0])
    return None


def _head(program: str) -> bytes:
    try:
        with Path(program).open("rb") as file:
            return file.read(256)
    except PermissionError:
        return b""  # To be executed, and not to be read.


def _gains_rights(program: str) -> bool:
    found = Path(program).stat()
    if found.st_mode & stat.S_ISUID and found.st_uid != os.getuid():
        return True
    if found.st_mode & stat.S_ISGID and found.st_mode & stat.S_IXGRP and found.st_gid != os.getgid():
        return True
    return os.getuid() != 0 and "security.capability" in os.listxattr(program)


def _of_elf(program: str, head: bytes) -> Refusal | None:
    """Look for the name of a dynamic loader in the program headers. elf(5)."""
    if len(head) < _ELF_HEADER or not head.startswith(_ELF):
        return None
    # Class, byte order, machine.
    ours = _head("/proc/self/exe")
    if head[4:6] != ours[4:6] or head[18:20] != ours[18:20]:
        return Refusal.FOREIGN
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    with Path(program).open("rb") as file:
        file.seek(offset)
        table = file.read(size * count)
    starts = range(0, len(table) - 3, size) if size else ()
    kinds = {struct.unpack_from("<I", table, start)[0] for start in starts}
    return None if _PT_INTERP in kinds else Refusal.STATIC
