"""Memory that processes share: POSIX and System V segments, and numpy arrays in them.

`SharedMemory` has a name in /dev/shm, or none (`SharedMemory.memfd`); `SystemVMemory` has a number.
"""

from __future__ import annotations

from mmkit.shared.arrays import array
from mmkit.shared.posix import SharedMemory
from mmkit.shared.system_v import SystemVMemory

__all__ = ["SharedMemory", "SystemVMemory", "array"]
