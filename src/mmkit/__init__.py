"""mmkit: complete, safe and fast control over the memory of a Linux process.

>>> import mmkit
>>> with mmkit.Region.anonymous(1 << 20) as region:
...     region[:5] = b"hello"
...     region.protect(mmkit.Prot.READ)
(0, 1048576)
"""

from __future__ import annotations

from mmkit import compat, heap, linux, maps, secret, shared, snapshot
from mmkit.errors import (
    BrokenBarrierError,
    ClosedError,
    CorruptError,
    Error,
    MemoryFault,
    OutOfMemory,
    OwnerDied,
    SyscallError,
)
from mmkit.faults import peek, poke
from mmkit.features import supports
from mmkit.flags import Advice, MapFlag, Prot
from mmkit.heap import Arena, Block, Heap, Pool
from mmkit.region import PAGE_SIZE, Region, regions
from mmkit.secret import Secret
from mmkit.shared import Channel, SharedMemory, SystemVMemory

__all__ = [
    "PAGE_SIZE",
    "Advice",
    "Arena",
    "Block",
    "BrokenBarrierError",
    "Channel",
    "ClosedError",
    "CorruptError",
    "Error",
    "Heap",
    "MapFlag",
    "MemoryFault",
    "OutOfMemory",
    "OwnerDied",
    "Pool",
    "Prot",
    "Region",
    "Secret",
    "SharedMemory",
    "SyscallError",
    "SystemVMemory",
    "compat",
    "heap",
    "linux",
    "maps",
    "peek",
    "poke",
    "regions",
    "secret",
    "shared",
    "snapshot",
    "supports",
]
