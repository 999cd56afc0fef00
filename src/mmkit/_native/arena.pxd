"""core/include/mmkit/arena.h, and the classes that hold an arena, and its marks."""

from mmkit._native.block cimport ArenaBlock, BlockOwner
from mmkit._native.region cimport MappedRegion, bool, mmk_region

cdef extern from "mmkit/arena.h" nogil:
    ctypedef struct mmk_arena:
        char *base
        size_t start
        size_t used
        size_t touched
        mmk_region *region

    int mmk_arena_open(mmk_arena *arena, mmk_region *region, size_t offset, size_t limit)
    int mmk_arena_close(mmk_arena *arena)
    void mmk_arena_dispose(mmk_arena *arena)
    int mmk_arena_alloc(mmk_arena *arena, size_t size, size_t align, bool zero, char **block)
    int mmk_arena_rewind(mmk_arena *arena, size_t mark)
    size_t mmk_arena_capacity(const mmk_arena *arena)


cdef class ArenaHandle(BlockOwner):
    cdef mmk_arena handle
    # The last block that has an object. Borrowed, as its neighbours are: they lead to all others, by their ends.
    cdef void *newest
    cdef object failure(self, int error, str call, size_t size, size_t align)
    cdef void enter(self, ArenaBlock block, char *bytes, size_t size) noexcept
    cdef bint is_behind(self, void *block, size_t position) noexcept
    cdef int go_back(self, size_t position) except -1


cdef class Mark:
    cdef ArenaBlock place
