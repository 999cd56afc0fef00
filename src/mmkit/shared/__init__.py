"""Memory that processes share, meeting points in it, and what finds segments that were leaked.

`SharedMemory` has a name in /dev/shm, or none (`SharedMemory.memfd`); `SystemVMemory` has a number; `array`
is a numpy array by name. `Lock`, `RLock`, `Condition`, `Semaphore`, `Event` and `Barrier` work between
unrelated processes; a `Channel` carries messages between them. `segments` lists what there is on the
machine, and `reap` removes what was leaked.
"""

from __future__ import annotations

from mmkit.shared.arrays import array
from mmkit.shared.channel import Channel
from mmkit.shared.holders import Holder
from mmkit.shared.listing import Segment, segments
from mmkit.shared.locks import Condition, Lock, RLock
from mmkit.shared.meeting import Barrier, Event, Semaphore
from mmkit.shared.posix import SharedMemory
from mmkit.shared.reaping import reap
from mmkit.shared.system_v import SystemVMemory

__all__ = [
    "Barrier",
    "Channel",
    "Condition",
    "Event",
    "Holder",
    "Lock",
    "RLock",
    "Segment",
    "Semaphore",
    "SharedMemory",
    "SystemVMemory",
    "array",
    "reap",
    "segments",
]
