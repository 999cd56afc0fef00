"""What blocks of heaps, pools and arenas have in common, and what those have in common that give them."""

cimport cython

from mmkit._native.base cimport MMK_ETAKEN
from mmkit._native.buffers cimport fill_with_bytes
from mmkit._native.region cimport MappedRegion, mmk_region_tenant

from mmkit.errors import ClosedError, Error
from mmkit.hints import failure as system_failure
from mmkit.wording import size as written_size
from mmkit.leaving import leave as leave_block

cdef enum:
    EACCES = 13
    MAP_SHARED = 1


@cython.no_gc_clear  # __dealloc__ of the subclasses needs the region
cdef class BlockOwner:
    """What gives blocks: a heap, a pool or an arena."""

    # What a class says it is.
    _kind = ""

    cdef int give_back(self, Block block) except -1:
        """Free a live block that nobody looks at."""
        return 0

    cdef int resize(self, Block block, object n) except -1:
        """Resize a live block, if nobody looks at it."""
        return 0

    cdef int drop(self, Block block) except -1:
        """Free a block whose object goes. The owner may be closed by now."""
        return 0

    @cython.final
    cdef int check_unmade(self, MappedRegion region) except -1:
        if self.made:
            raise Error(f"{self._kind} is made once: make another one")
        if region is not None:
            region.check_open()
        return 0

    @cython.final
    cdef int stand_in(self, MappedRegion region) except -1:
        """Be made, in a region or in memory of its own."""
        self.made = self.is_open = True
        self.region = region
        if region is not None:
            self.origin = region.handle.base + region.skew
        return 0

    cdef object opening_failure(self, int error, MappedRegion region):
        if error == -MMK_ETAKEN:
            return self.taken(region)
        if error == -EACCES:
            return Error(f"{self._kind} needs a region that can be written throughout: see Region.protect")
        return system_failure(error, "mmap", None, (f"for {self._kind}",))

    @cython.final
    cdef object taken(self, MappedRegion region):
        cdef const char *found = mmk_region_tenant(&region.handle)
        # It may have been closed meanwhile.
        tenant = self._kind if found is NULL else found.decode()
        joins = region.handle.flags & MAP_SHARED and tenant == self._kind and hasattr(self, "attach")
        return Error(
            f"{self._kind} would overwrite {tenant} that stands in the region at "
            f"{<size_t>region.handle.base + region.skew:#x} ({written_size(region.size())}): close that first, "
            f"{f'or join it ({type(self).__name__}.attach joins), ' if joins else ''}or take another region"
        )

    @property
    def closed(self):
        """Whether it was closed, in this process."""
        return not self.is_open

    @property
    def _where(self):
        return self.region


cdef int refuse(Block block, str call) except -1:
    """Say why a block cannot be used, or not while somebody looks at it."""
    if block.bytes is NULL:
        raise ClosedError(f"{call}: the block {block._end}")
    if not block.owner.is_open:
        raise ClosedError(f"{call}: the block's {block._owner} is closed")
    raise BufferError(f"{call}: a view of the block is live (memoryview, numpy array): release it first")


# A block refers to its owner only, and that has no attributes: no garbage is a circle of blocks, and the collector need
# not know them. (A class derived from an owner, which keeps blocks of its own, is not collected until it drops them.)
@cython.no_gc
@cython.freelist(256)
cdef class Block:
    """A block of a `Heap`, a `Pool` or an `Arena`: writable memory, and a buffer.

    ``memoryview(block)``, ``numpy.frombuffer(block)`` and everything else that takes a buffer see its bytes without
    copying. What it can do beside that is its own class's: `HeapBlock`, `PoolBlock`, `ArenaBlock`.
    """

    # What a class says of a block that is gone: in short, in a sentence; and what it was of.
    _state = "gone"
    _end = "is gone"
    _owner = ""
    # Why it is not freed alone, and not resized.
    _lasts = ""
    _length = ""

    # With any arguments: else Cython makes objects by a vectorcall, and goes a longer way to it from other modules.
    def __init__(self, *args, **kwargs):
        raise TypeError("a block is made by Heap.alloc(), Pool.take() or Arena.alloc()")

    def __dealloc__(self):
        if self.bytes is not NULL and not self.stays:
            self.owner.drop(self)

    @property
    def address(self):
        """Of the first byte."""
        check_live(self, "address")
        return <size_t>self.bytes

    @property
    def offset(self):
        """The block's place, in bytes from the start of its region: it is the same in every process.

        In an arena with memory of its own, from the start of that.
        """
        check_live(self, "offset")
        if self.owner.origin is NULL:
            raise Error("only the blocks of a heap in a region have offsets")
        return self.bytes - self.owner.origin

    def __len__(self):
        check_live(self, "len")
        return self.size

    def free(self):
        """Give it back, which blocks of an arena cannot: theirs is an Error."""
        check_live(self, "free")
        raise Error(f"free: {self._lasts}")

    def resize(self, n):
        """Make it `n` bytes long, which only blocks of a heap can: the others' is an Error."""
        check_live(self, "resize")
        raise Error(f"resize: {self._length}")

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        check_live(self, "view")
        if self.is_moving:
            raise BufferError("view: another thread is resizing the block")
        fill_with_bytes(buffer, self, self.bytes, &self.size, flags)
        self.exports += 1
        self.owner.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1
        self.owner.exports -= 1

    def __repr__(self):
        name = f"mmkit.heap.{type(self).__name__}"
        if self.bytes is NULL:
            return f"<{name}: {self._state}>"
        if not self.owner.is_open:
            return f"<{name} of a closed {self._owner}>"
        number = f" {self.own.taken.index}" if isinstance(self, PoolBlock) else ""
        return f"<{name}{number}: {self.size} bytes at {<size_t>self.bytes:#x}>"


@cython.no_gc
cdef class FreeableBlock(Block):
    """A block that goes alone: by the `free` of its class, and at the end of a ``with`` block."""

    def __enter__(self):
        check_live(self, "with")
        return self

    def __exit__(self, kind, error, traceback):
        if not is_live(self):
            return
        if error is None:
            self.free()
        else:
            leave_block(self.free, error)


@cython.final
@cython.no_gc
cdef class HeapBlock(FreeableBlock):
    """A block of a `Heap`, which can be resized.

    It is freed by `free`, at the end of a ``with`` block, or, unless its heap is shared, when the object goes.
    """

    _state = "freed"
    _end = "was freed already"
    _owner = "heap"

    def free(self):
        """Give the block back to its heap (free(3)).

        Raises
        ------
        ClosedError
            It was freed already, or its heap is closed.
        BufferError
            Somebody looks at it; nothing has changed.
        ValueError
            Somebody else has freed it, through a block borrowed by `Heap.at`.
        CorruptError
            The heap is shared, and damaged; nothing has changed.
        """
        check_unseen(self, "free")
        self.owner.give_back(self)

    def resize(self, n):
        """Make the block `n` bytes long (realloc(3)); its `address` may change.

        It stays where it is if it shrinks, or if the memory behind it is free. Bytes behind the old length are
        undefined.

        Parameters
        ----------
        n : int
            Bytes, at least one.

        Raises
        ------
        OutOfMemory
            No room; the block is as it was.
        BufferError
            Somebody looks at it; who tries to while it is resized in another thread gets this, too.
        ClosedError
            It was freed, or its heap is closed.
        """
        check_live(self, "resize")
        self.owner.resize(self, n)


@cython.final
@cython.no_gc
cdef class PoolBlock(FreeableBlock):
    """A block of a `Pool`, all of which have one size.

    It goes back by `Pool.give` or `free`, at the end of a ``with`` block, or, unless its pool is shared, when the
    object goes.
    """

    _state = "given back"
    _end = "was given back already"
    _owner = "pool"
    _length = "all blocks of a pool have one size: take what is longer from a heap"

    @property
    def index(self):
        """The block's number in the pool: its element of `Pool.array`."""
        check_live(self, "index")
        return self.own.taken.index

    def free(self):
        """Give the block back to its pool: the same as `Pool.give`."""
        check_unseen(self, "free")
        self.owner.give_back(self)


@cython.final
@cython.no_gc
cdef class ArenaBlock(Block):
    """A block of an `Arena`: it lives until its arena is rewound to a point before it, or closed; not alone."""

    _end = "is gone: its arena was rewound to a point before it, or closed"
    _lasts = "a block of an arena goes when that is rewound to a point before it, or closed"
    _length = "a block of an arena keeps its length: allocate another one"
