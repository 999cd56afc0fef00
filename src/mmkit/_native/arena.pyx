"""An arena of the core, and its blocks and marks as Python objects."""

cimport cython

from mmkit._native.base cimport MMK_ECLOSED
from mmkit._native.buffers cimport fill_with_bytes
from mmkit._native.region cimport MappedRegion

from functools import partial

from mmkit.errors import ClosedError, Error, OutOfMemory
from mmkit.hints import failure as system_failure
from mmkit.wording import size as written_size
from mmkit.leaving import leave as leave_block

cdef enum:
    EINVAL = 22
    EACCES = 13
    ENOMEM = 12


@cython.no_gc_clear  # __dealloc__ needs the region
cdef class ArenaHandle:
    """An arena of the core. `mmkit.Arena` is the public class."""

    def __dealloc__(self):
        mmk_arena_dispose(&self.handle)

    def _open(self, MappedRegion region, size_t limit):
        if self.handle.region is not NULL:
            raise Error("an arena is opened once: make another one")
        cdef int error
        if region is None:
            error = mmk_arena_open(&self.handle, NULL, 0, limit)
        else:
            region.check_open()
            error = mmk_arena_open(&self.handle, &region.handle, region.skew, 0)
        if error == -EACCES:
            raise Error("an arena needs a region that can be written throughout: see Region.protect")
        if error:
            raise system_failure(error, "mmap", None, ("for an arena",))
        self.region = region

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
        cdef ArenaBlock block = ArenaBlock.__new__(ArenaBlock)
        cdef char *bytes = NULL
        cdef int error = mmk_arena_alloc(&self.handle, size, align, zero, &bytes)
        if error:
            raise self.failure(error, "alloc", size, align)
        block.bytes = bytes
        block.size = size
        block.enter(self)
        return block

    def mark(self):
        """Remember how far the arena is used.

        Returns
        -------
        Mark
            For `rewind`; or for a ``with`` block, whose end rewinds.
        """
        if self.handle.base is NULL:
            raise self.failure(-MMK_ECLOSED, "mark", 0, 0)
        cdef Mark mark = Mark.__new__(Mark)
        mark.enter(self)
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
        if self.handle.base is NULL:
            raise self.failure(-MMK_ECLOSED, "rewind", 0, 0)
        if mark is None:
            self.go_back(self.handle.start)
            return
        if mark.arena is None:
            raise ValueError("rewind: the arena was rewound to a point before this mark: it is no place any more")
        if mark.arena is not self:
            raise ValueError("rewind: the mark is another arena's")
        self.go_back(mark.end)

    @cython.final
    cdef int go_back(self, size_t position) except -1:
        cdef void *at = self.newest
        while at is not NULL and (<Place>at).end > position:
            if type(<object>at) is ArenaBlock and (<ArenaBlock>at).exports:
                raise BufferError(
                    "rewind: a view of a block that would go is live (memoryview, numpy array): release it first"
                )
            at = (<Place>at).older
        while self.newest is not NULL and (<Place>self.newest).end > position:
            (<Place>self.newest).leave()
        mmk_arena_rewind(&self.handle, position)
        return 0

    # ---- what it holds ------------------------------------------------------------------------------

    @property
    def used(self):
        """Bytes from the start to the end of the last block, gaps between blocks included."""
        return self.handle.used - self.handle.start if self.handle.base is not NULL else 0

    @property
    def peak(self):
        """The most that was used at one time, in bytes."""
        return self.handle.touched - self.handle.start

    @property
    def capacity(self):
        """Bytes that the arena holds, used or not."""
        return mmk_arena_capacity(&self.handle) - self.handle.start if self.handle.base is not NULL else 0

    # ---- life ---------------------------------------------------------------------------------------

    @property
    def closed(self):
        """Whether the arena was closed."""
        return self.handle.base is NULL

    def close(self):
        """Give all memory back; blocks that are left cannot be used any more.

        Closing twice does nothing.

        Raises
        ------
        BufferError
            Somebody looks at a block; nothing has changed.
        """
        if self.handle.base is NULL:
            return
        if self.exports:
            raise BufferError("close: views of blocks are live (memoryview, numpy array): release them first")
        cdef int error = mmk_arena_close(&self.handle)
        if error:
            raise system_failure(error, "mmap", None, ("to close an arena",))
        while self.newest is not NULL:
            (<Place>self.newest).leave()
        self.region = None


@cython.no_gc
cdef class Place:
    """A point of an arena that somebody remembers: the end of a block, or a mark."""

    def __init__(self):
        raise TypeError("made by Arena.alloc() and Arena.mark()")

    def __dealloc__(self):
        # The fields of the class are still there; only Python must not be called.
        if self.arena is not None:
            self.leave()

    @cython.final
    cdef void enter(self, ArenaHandle arena) noexcept:
        self.arena = arena
        self.end = arena.handle.used
        self.older = arena.newest
        self.newer = NULL
        if self.older is not NULL:
            (<Place>self.older).newer = <void *>self
        arena.newest = <void *>self

    @cython.final
    cdef void leave(self) noexcept:
        """Be no place any more."""
        if self.older is not NULL:
            (<Place>self.older).newer = self.newer
        if self.newer is not NULL:
            (<Place>self.newer).older = self.older
        else:
            self.arena.newest = self.older
        self.older = self.newer = NULL
        self.arena = None


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class ArenaBlock(Place):
    """A block of an `Arena`: writable memory, and a buffer.

    ``memoryview(block)``, ``numpy.frombuffer(block)`` and everything else that takes a buffer see its bytes
    without copying. It lives until its arena is rewound to a point before it, or closed; not alone.
    """

    @cython.final
    cdef int check_live(self, str call) except -1:
        if self.arena is None:
            raise ClosedError(f"{call}: the block is gone: its arena was rewound to a point before it, or closed")
        return 0

    @property
    def address(self):
        """Of the first byte."""
        self.check_live("address")
        return <size_t>self.bytes

    @property
    def offset(self):
        """The block's place in the arena's memory, in bytes."""
        self.check_live("offset")
        return self.bytes - self.arena.handle.base - self.arena.handle.start

    def __len__(self):
        self.check_live("len")
        return self.size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.check_live("view")
        fill_with_bytes(buffer, self, self.bytes, &self.size, flags)
        self.exports += 1
        self.arena.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1
        self.arena.exports -= 1

    def __repr__(self):
        if self.arena is None:
            return "<mmkit.heap.ArenaBlock: gone>"
        return f"<mmkit.heap.ArenaBlock: {self.size} bytes at {<size_t>self.bytes:#x}>"


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Mark(Place):
    """How far an `Arena` was used at some time; the end of its ``with`` block rewinds to it."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self.arena is not None:
            leave_block(partial(self.arena.rewind, self), error)

    def __repr__(self):
        if self.arena is None:
            return "<mmkit.heap.Mark: gone>"
        return f"<mmkit.heap.Mark at {self.end - self.arena.handle.start}>"
