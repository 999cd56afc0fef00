"""The `Heap`: malloc, with its memory chosen by the caller."""

from __future__ import annotations

from typing import Literal, Self

from mmkit._native.heap import HeapHandle
from mmkit._native.region import adopt_methods
from mmkit.errors import CorruptError
from mmkit.heap.figures import BlockInfo, HeapStats, Leak, SizeClass
from mmkit.heap.picture import draw
from mmkit.leaving import Closing
from mmkit.region import Region
from mmkit.wording import size

__all__ = ["Heap"]

# enum mmk_heap_source
_SOURCES = {"mmap": 0, "sbrk": 1}
_REGION = 2


@adopt_methods
class Heap(HeapHandle, Closing):
    r"""Blocks of any size out of one source of memory.

    Parameters
    ----------
    source
        ``"mmap"``: regions of its own, and one for each block from 8 MiB on. ``"sbrk"``: the program break,
        as in the textbooks; it is malloc's, too (see the notes). A `Region`: the heap lies inside it, over
        what was there (but a heap in shared memory, and what stands in this region object, are refused, not
        overwritten), and the region stays open as long as the heap. In a shared region other processes can
        `attach` to it, and only `HeapBlock.free` frees.
    limit
        The most bytes to take from the source; None: as many as there are.
    guard
        Have each block end at a page without access, and freed blocks stay without access until 256 MiB more
        were freed: C code that runs past a block, or into a freed one, ends the process with SIGSEGV there,
        after one line on standard error that names the block; `mmkit.peek` raises `MemoryFault`. Bytes that
        share a block's pages are looked at when it is freed. For finding mistakes: it takes two system calls
        and 8 KiB of addresses for the smallest block.
    track
        How many Python frames to remember of each allocation, for `leaks`; 0: none.
    warn
        Issue a `ResourceWarning` for each block that is dropped without `HeapBlock.free`. Python shows these
        with ``-X dev`` or ``-W default``.

    Raises
    ------
    OutOfMemory
        No memory for the heap itself.
    ValueError
        The region is too small for a block; or guarded blocks were asked of another source than ``"mmap"``.
    Error
        A pool, an arena or another heap stands in the region; or the region is not writable.

    Notes
    -----
    With ``"sbrk"`` the break moves through libc, in steps of 256 KiB and more, while the GIL is held. glibc's
    malloc takes no lock around the same number: a thread that is inside malloc without the GIL, and grows its
    own heap at that moment, corrupts memory. Use it in programs without such threads.

    A forked child has a copy of a heap in private memory, and the same heap where the region is shared.

    See Also
    --------
    mmkit.Region : memory without an allocator.

    References
    ----------
    malloc(3), sbrk(2), mmap(2); M. Masmano et al., "TLSF: a new dynamic memory allocator for real-time
    systems", 2004.

    Examples
    --------
    >>> import mmkit
    >>> with mmkit.Heap() as heap:
    ...     block = heap.alloc(5, zero=True)
    ...     memoryview(block)[:2] = b"hi"
    ...     print(bytes(block))
    b'hi\x00\x00\x00'
    """

    __slots__ = ()

    def __init__(
        self,
        source: Literal["mmap", "sbrk"] | Region = "mmap",
        *,
        limit: int | None = None,
        guard: bool = False,
        track: int = 0,
        warn: bool = False,
    ) -> None:
        if limit is not None and not 0 < limit < 1 << 63:
            raise ValueError(f"limit is a number of bytes, at least 1, or None: {limit} is not possible")
        if not 0 <= track <= 1000:
            raise ValueError(f"track is a number of frames from 0 to 1000, not {track}")
        if guard and source != "mmap":
            raise ValueError("guarded blocks need pages of their own: guard=True goes with source='mmap'")
        if isinstance(source, Region):
            self._open(_REGION, source, limit or 0, guard, track, warn)
        elif isinstance(source, str) and source in _SOURCES:
            self._open(_SOURCES[source], None, limit or 0, guard, track, warn)
        else:
            raise ValueError(f"source must be 'mmap', 'sbrk' or a Region, not {source!r}")

    @classmethod
    def attach(cls, region: Region, *, track: int = 0) -> Self:
        """Join the heap that is in a shared region: another process's, or one that a file has kept.

        All processes allocate, free and borrow (`at`) from it, each at its own address, under one robust
        lock. A process that is killed inside a call is undone by the next one. `close` leaves the heap; its
        blocks stay.

        Parameters
        ----------
        region
            Mapped from the same memory as the one that ``Heap(region)`` was made in.
        track
            As for the class.

        Raises
        ------
        CorruptError
            No heap is there, or it is damaged, or another version's.
        Error
            The region is private, or not writable; or a pool or an arena stands in it.
        """
        heap = cls.__new__(cls)
        heap._attach(region, track)
        return heap

    # ---- what it holds ------------------------------------------------------------------------------

    def stats(self) -> HeapStats:
        """Return what the heap holds, in bytes and blocks.

        It walks all blocks and reads the page table of the process: for looking, not for every allocation.
        """
        live_bytes, live_blocks, peak, mapped, largest, free = self._stats()
        resident = self._resident()
        return HeapStats(
            live_bytes,
            live_blocks,
            peak,
            mapped,
            resident,
            largest,
            free,
            max(0.0, 1 - live_bytes / resident) if resident else 0.0,
            tuple(SizeClass(*row) for row in self._classes()),
        )

    def blocks(self) -> list[BlockInfo]:
        """Return every block, free ones included: by address within a slice, large ones last."""
        return [BlockInfo(*block) for block in self._blocks()]

    def leaks(self, frames: int = 8) -> list[Leak]:
        """Return the live blocks with who allocated them, the largest first.

        Parameters
        ----------
        frames
            How many calls to show of each, at most.

        Raises
        ------
        ValueError
            The heap was made without ``track=``.
        """
        origins = self._origins()
        if origins is None:
            raise ValueError("who allocated what is not known: make the heap with track=, a number of frames")
        live = [block for block in self.blocks() if block.kind in ("live", "large")]
        live.sort(key=lambda block: -block.size)
        return [Leak(block.address, block.size, origins.get(block.address, ())[:frames]) for block in live]

    def map(
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        scale: int | None = None,
        width: int = 64,
        color: bool | None = None,
    ) -> str:
        """Draw the blocks, one character for each `scale` bytes.

        Parameters
        ----------
        start, stop
            Addresses of what to draw; None: all of it, large blocks apart.
        scale
            Bytes a character stands for; None: as many as make about twenty lines.
        width
            Characters a line.
        color
            Whether to colour blocks by size; None: if the standard output is a terminal.

        Returns
        -------
        str
            Lines, each with the address where it starts, and a legend.
        """
        return draw(self.blocks(), start, stop, scale, width, color)

    def check(self) -> None:
        """Walk every head, list and bitmap of the heap, to see that all is as it should be.

        Raises
        ------
        CorruptError
            Something is not: what, at which address, and between which good heads.
        """
        damage = self._check()
        if damage is not None:
            what, address, before, after = damage
            where = f". The next good head behind it is at {after:#x}" if after else ""
            if before:
                where += (
                    f". The last good head in front of it is at {before:#x}: most likely that block was "
                    "written past its end"
                )
            raise CorruptError(f"the heap is damaged at {address:#x}: {what}{where}")

    def trim(self) -> int:
        """Give free pages back: the end of the heap to its source, those in the middle by madvise(2).

        Returns
        -------
        int
            Bytes of RAM that the process has less of the heap.

        References
        ----------
        malloc_trim(3), madvise(2), sbrk(2)
        """
        before = self._resident()
        self._trim()
        return max(0, before - self._resident())

    # ---- life ---------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        if self.closed:
            return "<mmkit.Heap: closed>"
        try:
            live_bytes, live_blocks, _, mapped, _, _ = self._stats()
        except CorruptError:
            return "<mmkit.Heap: damaged>"
        blocks = "1 block" if live_blocks == 1 else f"{live_blocks} blocks"
        return f"<mmkit.Heap: {blocks}, {size(live_bytes)} live of {size(mapped)}>"
