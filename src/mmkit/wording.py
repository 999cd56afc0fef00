"""How sizes, addresses and flags are written for people: everywhere alike."""

from __future__ import annotations

from mmkit.flags import MapFlag

__all__ = ["address", "flag_names", "size"]


def size(count: int) -> str:
    """Write a number of bytes as people do: exact where that is short, else with one decimal."""
    if count < 10 << 10 and count % 1024:
        return f"{count} B"
    for unit, name in (
        (1 << 60, "EiB"),
        (1 << 50, "PiB"),
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ):
        if count >= unit:
            return f"{count // unit} {name}" if count % unit == 0 else f"{count / unit:.1f} {name}"
    return f"{count} B"


def address(value: int) -> str:
    """Write an address as the kernel does in /proc/PID/maps, with 0x in front."""
    return f"{value:#x}"


def flag_names(flags: int) -> str:
    """Write flags as C does, without prefixes: ``READ|WRITE``."""
    if isinstance(flags, MapFlag):
        return str(flags)
    name = getattr(flags, "name", None)
    return name if name and not name.startswith("UNKNOWN") else f"{int(flags):#x}"
