"""Memory that processes share: POSIX and System V segments, numpy arrays in them, and what finds leaked ones.

`SharedMemory` has a name in /dev/shm, or none (`SharedMemory.memfd`); `SystemVMemory` has a number; `array`
is a numpy array by name. `segments` lists what there is on the machine, and `reap` removes what was leaked.
"""

from __future__ import annotations

from mmkit.shared.arrays import array
from mmkit.shared.holders import Holder
from mmkit.shared.listing import Segment, segments
from mmkit.shared.posix import SharedMemory
from mmkit.shared.reaping import reap
from mmkit.shared.system_v import SystemVMemory

__all__ = ["Holder", "Segment", "SharedMemory", "SystemVMemory", "array", "reap", "segments"]
