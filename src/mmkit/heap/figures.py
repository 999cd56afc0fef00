"""What a heap says of itself."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["BlockInfo", "BlockKind", "HeapStats", "Leak", "SizeClass"]

BlockKind = Literal["live", "free", "hole", "internal", "large"]


class BlockInfo(NamedTuple):
    """One block of a heap, as `Heap.blocks` finds it."""

    #: Of its first byte.
    address: int
    #: Bytes that were asked for; of a block that is not live, all there are.
    size: int
    #: Bytes from the head of this block to the next.
    span: int
    #: ``"live"``; ``"large"``: live, in a region of its own; ``"free"``; ``"hole"``: others' part of the
    #: break; ``"internal"``: the heap's own records.
    kind: BlockKind


class SizeClass(NamedTuple):
    """The blocks whose size in bytes is from `least` to below twice that."""

    least: int
    live_blocks: int
    live_bytes: int
    free_blocks: int
    free_bytes: int


class HeapStats(NamedTuple):
    """What a heap holds. Sizes are in bytes."""

    #: Asked for and not freed.
    live_bytes: int
    live_blocks: int
    #: The most that was live at one time.
    peak_bytes: int
    #: Held from the source.
    mapped_bytes: int
    #: What of it this process has in RAM.
    resident_bytes: int
    #: The largest block that can be had without asking the source.
    largest_free: int
    free_bytes: int
    #: The share of the RAM that no live byte is in: 1 - live / resident, and never below 0.
    fragmentation: float
    #: A row for each power of two that has blocks.
    classes: tuple[SizeClass, ...]


class Leak(NamedTuple):
    """A live block, and who allocated it."""

    address: int
    size: int
    #: The calls that led there, innermost first: file, line, function.
    frames: tuple[tuple[str, int, str], ...]

    def __str__(self) -> str:
        calls = "".join(f"\n  {file}:{line} in {function}" for file, line, function in self.frames)
        return f"{self.size} bytes at {self.address:#x}{calls}"
