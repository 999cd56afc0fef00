"""Heaps: blocks of any size, allocated from memory of your choice.

`Heap` is malloc on the program break, on mmap, or inside any `Region`; its blocks are buffers.
"""

from __future__ import annotations

from mmkit._native.heap import Block
from mmkit.heap.figures import BlockInfo, HeapStats, Leak, SizeClass
from mmkit.heap.malloc import Heap

__all__ = ["Block", "BlockInfo", "Heap", "HeapStats", "Leak", "SizeClass"]
