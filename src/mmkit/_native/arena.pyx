"""An arena of the core, and its blocks and marks as Python objects."""

cimport cython

from mmkit._native.base cimport MMK_ECLOSED
from mmkit._native.block cimport ArenaBlock, Block, BlockOwner
from mmkit._native.region cimport MappedRegion

from functools import partial

from mmkit.errors import ClosedError, OutOfMemory
from mmkit.hints import failure as system_failure
from mmkit.wording import size as written_size
from mmkit.leaving import leave as leave_block

cdef enum:
    EINVAL = 22
    ENOMEM = 12


@cython.no_gc_clear  # __dealloc__ needs the region
cdef class ArenaHandle(BlockOwner):
    """An arena of the core. `mmkit.Arena` is the public class."""

    _kind = "an arena"

    def __dealloc__(self):
        mmk_arena_dispose(&self.handle)

    cdef int drop(self, Block block) except -1:
        """Forget a block. In __dealloc__ its fields are still there; only Python must not be called."""
        cdef void *older = block.own.neighbours.older
        cdef void *newer = block.own.neighbours.newer
        if older is not NULL:
            (<Block>older).own.neighbours.newer = newer
        if newer is not NULL:
            (<Block>newer).own.neighbours.older = older
        else:
            self.newest = older
        block.bytes = NULL
        # Last: it may have been what kept the arena.
        block.owner = None
        return 0

    def _open(self, MappedRegion region, size_t limit):
        self.check_unmade(region)
        cdef int error
        if region is None:
            error = mmk_arena_open(&self.handle, NULL, 0, limit)
        else:
            error = mmk_arena_open(&self.handle, &region.handle, region.skew, 0)
        if error:
            raise self.opening_failure(error, region)
        self.stand_in(region)
        self.origin = self.handle.base + self.handle.start

    @cython.final
    cdef object failure(self, int error, str call, size_t size, size_t align):
        if error == -MMK_ECLOSED:
            return ClosedError(f"{call}: the arena is closed")
        if error == -ENOMEM:
            return OutOfMemory(
                f"{call}: no room for a block of {written_size(size)}: the arena's limit, its region, or the system's "
                "memory is exhausted. rewind() makes room"
            )
        if error == -EINVAL and size == 0:
            return ValueError(f"{call}: a block has at least one byte")
        if error == -EINVAL:
            return ValueError(f"{call}: an alignment is a power of two, which {align} is not")
        return system_failure(error, call)

    def alloc(self, Py_ssize_t size, Py_ssize_t align=16, bint zero=False):
        """Allocate a block: move the arena's end.

        Parameters
        ----------
        size : int
            Bytes, at least one.
        align : int
            The block's address is a multiple of it: any power of two.
        zero : bool
            The block's bytes are 0. Memory that the arena never gave out is not touched for that. Else they are
            what was there before.

        Returns
        -------
        ArenaBlock
            Writable memory, until the arena is rewound to a point before the block, or closed.

        Raises
        ------
        ValueError
            `size` or `align` make no sense.
        OutOfMemory
            The limit, the region or the system's memory is exhausted; nothing has changed.
        ClosedError
            The arena was closed.
        """
        if size <= 0 or align <= 0:
            raise ValueError(
                f"alloc: a block has at least one byte, and an alignment is a power of two: {size} bytes aligned to "
                f"{align} are not possible"
            )
        cdef ArenaBlock block = <ArenaBlock>ArenaBlock.__new__(ArenaBlock)
        cdef char *bytes = NULL
        cdef int error = mmk_arena_alloc(&self.handle, size, align, zero, &bytes)
        if error:
            raise self.failure(error, "alloc", size, align)
        self.enter(block, bytes, size)
        return block

    def mark(self):
        """Remember how far the arena is used.

        Returns
        -------
        Mark
            For `rewind`; or for a ``with`` block, whose end rewinds.
        """
        if not self.is_open:
            raise self.failure(-MMK_ECLOSED, "mark", 0, 0)
        cdef Mark mark = Mark.__new__(Mark)
        self.enter(mark.place, self.handle.base + self.handle.used, 0)
        return mark

    def rewind(self, Mark mark=None):
        """Forget every block that was allocated since a mark was set. The memory stays with the arena.

        Parameters
        ----------
        mark : Mark, optional
            What `mark` returned; None: forget all blocks.

        Raises
        ------
        BufferError
            A view of such a block is live (memoryview, numpy array); nothing has changed.
        ValueError
            The mark is another arena's; or the arena was rewound to a point before it since.
        ClosedError
            The arena was closed.
        """
        if not self.is_open:
            raise self.failure(-MMK_ECLOSED, "rewind", 0, 0)
        if mark is None:
            self.go_back(self.handle.start)
            return
        if mark.place.bytes is NULL:
            raise ValueError("rewind: the arena was rewound to a point before this mark: it is no place any more")
        if mark.place.owner is not self:
            raise ValueError("rewind: the mark is another arena's")
        self.go_back(mark.place.bytes - self.handle.base)

    @cython.final
    cdef void enter(self, ArenaBlock block, char *bytes, size_t size) noexcept:
        """Be the arena of a block that begins behind all others."""
        block.owner = self
        block.bytes = bytes
        block.size = size
        block.own.neighbours.older = self.newest
        if self.newest is not NULL:
            (<Block>self.newest).own.neighbours.newer = <void *>block
        self.newest = <void *>block

    @cython.final
    cdef bint is_behind(self, void *block, size_t position) noexcept:
        return block is not NULL and <size_t>(
            (<Block>block).bytes + (<Block>block).size - self.handle.base
        ) > position

    @cython.final
    cdef int go_back(self, size_t position) except -1:
        cdef void *block = self.newest
        while self.is_behind(block, position):
            if (<Block>block).exports:
                raise BufferError(
                    "rewind: a view of a block that would go is live (memoryview, numpy array): release it first"
                )
            block = (<Block>block).own.neighbours.older
        while self.is_behind(self.newest, position):
            self.drop(<Block>self.newest)
        mmk_arena_rewind(&self.handle, position)
        return 0

    # ---- what it holds ------------------------------------------------------------------------------

    @property
    def used(self):
        """Bytes from the start to the end of the last block, gaps between blocks included."""
        return self.handle.used - self.handle.start if self.is_open else 0

    @property
    def peak(self):
        """The most that was used at one time, in bytes."""
        return self.handle.touched - self.handle.start

    @property
    def capacity(self):
        """Bytes that the arena holds, used or not."""
        return mmk_arena_capacity(&self.handle) - self.handle.start if self.is_open else 0

    # ---- life ---------------------------------------------------------------------------------------

    def close(self):
        """Give all memory back; blocks that are left cannot be used any more.

        Closing twice does nothing.

        Raises
        ------
        BufferError
            Somebody looks at a block; nothing has changed.
        """
        if not self.is_open:
            return
        if self.exports:
            raise BufferError("close: views of blocks are live (memoryview, numpy array): release them first")
        cdef int error = mmk_arena_close(&self.handle)
        if error:
            raise system_failure(error, "mmap", None, ("to close an arena",))
        self.is_open = False
        while self.newest is not NULL:
            self.drop(<Block>self.newest)
        self.region = None


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Mark:
    """How far an `Arena` was used at some time; the end of its ``with`` block rewinds to it."""

    def __cinit__(self):
        # Of no bytes: it goes when a block there would.
        self.place = ArenaBlock.__new__(ArenaBlock)

    def __init__(self):
        raise TypeError("a mark is made by Arena.mark()")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self.place.bytes is not NULL:
            leave_block(partial(self.place.owner.rewind, self), error)

    def __repr__(self):
        if self.place.bytes is NULL:
            return "<mmkit.heap.Mark: gone>"
        return f"<mmkit.heap.Mark at {self.place.bytes - self.place.owner.origin}>"
