"""How things are written in C, and how numbers and errors are written for people."""

from __future__ import annotations

import errno

from mmkit.flags import (
    Advice,
    IpcFlag,
    LockFlag,
    MapFlag,
    MemfdFlag,
    Prot,
    RemapFlag,
    Seal,
    ShmAttachFlag,
    ShmCommand,
    SyncFlag,
)
from mmkit.wording import flag_names

__all__ = ["argument", "errno_name", "raised"]

_PREFIXES: dict[type, str] = {
    Advice: "MADV_",
    IpcFlag: "IPC_",
    LockFlag: "MLOCK_",
    MapFlag: "MAP_",
    MemfdFlag: "MFD_",
    Prot: "PROT_",
    RemapFlag: "MREMAP_",
    Seal: "F_SEAL_",
    ShmAttachFlag: "SHM_",
    ShmCommand: "IPC_",
    SyncFlag: "MS_",
}


def argument(value: object) -> str:
    """Write an argument as C does: flags with their prefixes, joined by bars; the rest as it is."""
    prefix = _PREFIXES.get(type(value))
    if prefix is None or not isinstance(value, int):
        return str(value)
    return "|".join(prefix + name for name in flag_names(value).split("|"))


def errno_name(error: OSError) -> str:
    """Write errno as errno(3) names it."""
    number = error.errno or 0
    return errno.errorcode.get(number, str(number))


def raised(error: Exception) -> str:
    """Write an exception as the last lines of a traceback do."""
    return f"{type(error).__name__}: {error}"
