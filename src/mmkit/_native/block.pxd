"""What blocks of heaps, pools and arenas have in common, and what those have in common that give them."""

from libc.stdint cimport uint32_t

from mmkit._native.region cimport MappedRegion

cdef extern from "mmkit/pool.h" nogil:
    ctypedef struct mmk_pool_block:
        char *bytes
        uint32_t index
        uint32_t generation


cdef class BlockOwner:
    cdef object __weakref__
    cdef bint made
    cdef bint is_open
    # None: memory of its own.
    cdef MappedRegion region
    # What the offsets of its blocks count from; NULL: they have none.
    cdef char *origin
    # Views of its blocks, and calls that nobody may close it under.
    cdef Py_ssize_t exports
    cdef int give_back(self, Block block) except -1
    cdef int resize(self, Block block, object n) except -1
    cdef int drop(self, Block block) except -1
    cdef int check_unmade(self, MappedRegion region) except -1
    cdef int stand_in(self, MappedRegion region) except -1
    cdef object opening_failure(self, int error, MappedRegion region)
    cdef object taken(self, MappedRegion region)


# The arena's blocks with objects that were allocated before and after one. Borrowed: an object that goes leaves.
cdef struct block_neighbours:
    void *older
    void *newer


# What only the class of a block understands.
cdef union block_own:
    size_t align
    mmk_pool_block taken
    block_neighbours neighbours


# All that its subclasses have is here, nothing is virtual, and all are in one module: so they are made by the code of
# their base, and share its list of free objects. A list saves 6 ns, and Cython lets only a base have one.
cdef class Block:
    # None once an arena's block is gone.
    cdef BlockOwner owner
    # NULL: it is gone.
    cdef char *bytes
    cdef Py_ssize_t size
    # Views of it.
    cdef Py_ssize_t exports
    # When its object goes: others may have it, through shared memory or at().
    cdef bint stays
    # Another thread is resizing it.
    cdef bint is_moving
    cdef block_own own


cdef class FreeableBlock(Block):
    pass


cdef class HeapBlock(FreeableBlock):
    pass


cdef class PoolBlock(FreeableBlock):
    pass


cdef class ArenaBlock(Block):
    pass


cdef int refuse(Block block, str call) except -1


cdef inline bint is_live(Block block) noexcept:
    return block.bytes is not NULL and block.owner.is_open


cdef inline int check_live(Block block, str call) except -1:
    return 0 if is_live(block) else refuse(block, call)


cdef inline int check_unseen(Block block, str call) except -1:
    return 0 if is_live(block) and not block.exports else refuse(block, call)
