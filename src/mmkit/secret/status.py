"""What the kernel says of the memory that a secret stands in."""

from __future__ import annotations

import resource
from typing import NamedTuple

from mmkit import maps
from mmkit._native.secret import footprint
from mmkit.hints import status_value
from mmkit.wording import size

__all__ = ["SecretStatus", "status_of"]


class SecretStatus(NamedTuple):
    """What is so, by /proc/PID/smaps and getrlimit(2), whatever was asked for. Sizes are in bytes.

    Attributes
    ----------
    length : int
        Of the secret.
    address : int
        Of its first byte.
    perms : str
        Of its pages now: ``---p`` while nobody has it or a slab-mate open.
    locked : bool
        It is never written to swap (``lo``).
    not_dumped : bool
        No core dump has it (``dd``).
    wiped_on_fork : bool
        A forked child has zeros in its place (``wf``).
    not_forked : bool
        A forked child has nothing in its place (``dc``).
    vmflags : str
        All that the kernel tells, by two letters each.
    locked_in_ram : int
        Bytes of its slab, or of its own pages, that are locked and in RAM (``Locked``).
    area : int
        Bytes of its slab, or of its own pages, which is what it costs of the limit with all its slab-mates.
    footprint : int
        Bytes of all slabs and pages of all secrets.
    lock_limit : int or None
        RLIMIT_MEMLOCK; None if it is unlimited.
    lock_used : int
        What the process has locked of it (``VmLck``).
    """

    length: int
    address: int
    perms: str
    locked: bool
    not_dumped: bool
    wiped_on_fork: bool
    not_forked: bool
    vmflags: str
    locked_in_ram: int
    area: int
    footprint: int
    lock_limit: int | None
    lock_used: int

    def __str__(self) -> str:
        facts = [
            f"{self.length} bytes at {self.address:#x}, {self.perms}",
            "locked" if self.locked else "may be written to swap",
            "in no core dump" if self.not_dumped else "in core dumps",
            "zeros in a child"
            if self.wiped_on_fork
            else "not in a child"
            if self.not_forked
            else "in children",
            f"{size(self.locked_in_ram)} of {size(self.area)} locked",
        ]
        return "; ".join(facts)


def status_of(address: int, length: int) -> SecretStatus | None:
    """Ask the kernel about a secret; None if nothing is mapped there any more."""
    area = maps.read(costs=True).find(address)
    if area is None:
        return None
    flags = area.vmflags.split()
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return SecretStatus(
        length=length,
        address=address,
        perms=area.perms,
        locked="lo" in flags,
        not_dumped="dd" in flags,
        wiped_on_fork="wf" in flags,
        not_forked="dc" in flags,
        vmflags=" ".join(flags),
        locked_in_ram=area.locked,
        area=area.size,
        footprint=footprint(),
        lock_limit=None if soft == resource.RLIM_INFINITY else soft,
        lock_used=status_value("VmLck") or 0,
    )
