"""The picture of a heap: its blocks in a row, one character for so many bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from mmkit.heap.figures import BlockInfo
from mmkit.wording import size

__all__ = ["draw"]

_HEAD = 16  # bytes, in front of each block
_LINES = 20
_FREE, _HOLE, _INTERNAL, _NOTHING = "·", "#", "%", " "
#: Colours of a terminal, by size class: from small to large.
_COLORS = (36, 32, 33, 35, 34, 31)


def _class_of(count: int) -> int:
    """Return 0 for up to 16 bytes, 1 up to 32, 2 up to 64 …."""
    return min(25, max(0, (count - 1).bit_length() - 4))


def _character(block: BlockInfo) -> str:
    if block.kind == "live":
        return chr(ord("a") + _class_of(block.size))
    return {"hole": _HOLE, "internal": _INTERNAL}.get(block.kind, _FREE)


def _cells(blocks: Sequence[BlockInfo], start: int, stop: int, scale: int) -> list[str]:
    """Return what each `scale` bytes hold: a block's letter, in upper case where a block starts."""
    cells = [_NOTHING] * (-(-(stop - start) // scale))
    for block in blocks:
        head = block.address - _HEAD
        first, end = max(head, start), min(head + block.span, stop)
        if first >= end:
            continue
        character = _character(block)
        for cell in range((first - start) // scale, -(-(end - start) // scale)):
            # A live block is not hidden by a free one in the same cell.
            if cells[cell] in (_NOTHING, _FREE) or character.isalpha():
                cells[cell] = character
        if head >= start and character.isalpha():
            cells[(head - start) // scale] = character.upper()
    return cells


def _painted(line: str) -> str:
    parts = []
    for character in line:
        if character.isalpha():
            color = _COLORS[min(len(_COLORS) - 1, (ord(character.lower()) - ord("a")) // 3)]
            parts.append(f"\x1b[{color}m{character}\x1b[0m")
        else:
            parts.append(f"\x1b[2m{character}\x1b[0m")
    return "".join(parts)


def _stretches(blocks: Sequence[BlockInfo]) -> Iterator[list[BlockInfo]]:
    """Yield the blocks of each slice: those that follow each other without a gap."""
    stretch: list[BlockInfo] = []
    for block in blocks:
        if block.kind == "large":
            continue
        if stretch and block.address != stretch[-1].address + stretch[-1].span:
            yield stretch
            stretch = []
        stretch.append(block)
    if stretch:
        yield stretch


def _legend(blocks: Sequence[BlockInfo]) -> list[str]:
    shown = sorted({_class_of(block.size) for block in blocks if block.kind == "live"})
    letters = [f"{chr(ord('a') + number)} up to {size(16 << number)}" for number in shown]
    lines = [f"{_FREE} free; upper case: a block starts" + (f"; {', '.join(letters)}" if letters else "")]
    kinds = {block.kind for block in blocks}
    if "hole" in kinds:
        lines.append(f"{_HOLE} others' part of the break")
    if "internal" in kinds:
        lines.append(f"{_INTERNAL} the heap's own records")
    return lines


def draw(
    blocks: Sequence[BlockInfo],
    start: int | None,
    stop: int | None,
    scale: int | None,
    width: int,
    color: bool | None,
) -> str:
    """Draw blocks as `mmkit.Heap.map` says."""
    if width < 1 or (scale is not None and scale < 1):
        raise ValueError(f"width and scale are at least 1, not {width} and {scale}")
    color = sys.stdout.isatty() if color is None else color
    ranges = []
    for stretch in _stretches(blocks):
        first, end = stretch[0].address - _HEAD, stretch[-1].address - _HEAD + stretch[-1].span
        first, end = max(first, start or 0), end if stop is None else min(end, stop)
        if first < end:
            ranges.append((first, end, stretch))
    if scale is None:
        # A power of two, and no less than the smallest block's head.
        wanted = sum(end - first for first, end, _ in ranges) // (width * _LINES)
        scale = max(_HEAD, 1 << max(0, wanted - 1).bit_length())
    lines = []
    for first, end, stretch in ranges:
        cells = "".join(_cells(stretch, first, end, scale))
        for at in range(0, len(cells), width):
            line = cells[at : at + width]
            lines.append(f"{first + at * scale:#14x} {_painted(line) if color else line}".rstrip())
    large = [block for block in blocks if block.kind == "large"]
    lines += [f"{block.address:#14x} a region of its own: {size(block.size)}" for block in large]
    lines.append(f"one character: {size(scale)}; " + "\n".join(_legend(blocks)))
    return "\n".join(lines)
