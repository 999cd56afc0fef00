"""Heaps, pools and arenas: blocks allocated from memory of your choice.

`Heap` is malloc on the program break, on mmap, or inside any `Region`. `Pool` has blocks of one size, taken
and given back without a lock, by threads and by processes. `Arena` allocates by moving a pointer and frees
all at once. Their blocks are buffers.
"""

from __future__ import annotations

from mmkit._native.arena import Mark
from mmkit._native.block import ArenaBlock, Block, HeapBlock, PoolBlock
from mmkit.heap.arena import Arena
from mmkit.heap.figures import BlockInfo, HeapStats, Leak, SizeClass
from mmkit.heap.malloc import Heap
from mmkit.heap.pool import Pool, PoolStats

__all__ = [
    "Arena",
    "ArenaBlock",
    "Block",
    "BlockInfo",
    "Heap",
    "HeapBlock",
    "HeapStats",
    "Leak",
    "Mark",
    "Pool",
    "PoolBlock",
    "PoolStats",
    "SizeClass",
]
