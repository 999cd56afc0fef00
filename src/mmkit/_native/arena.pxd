"""core/include/mmkit/arena.h, and the classes that hold an arena, its blocks and its marks."""

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


cdef class ArenaHandle:
    cdef object __weakref__
    cdef mmk_arena handle
    cdef MappedRegion region
    cdef Py_ssize_t exports
    # Every place that has an object, in the order of allocation, and so of ends. Borrowed: a place that goes leaves.
    cdef void *newest
    cdef object failure(self, int error, str call, size_t size, size_t align)
    cdef int go_back(self, size_t position) except -1


cdef class Place:
    cdef ArenaHandle arena
    cdef size_t end
    cdef void *older
    cdef void *newer
    cdef void enter(self, ArenaHandle arena) noexcept
    cdef void leave(self) noexcept


cdef class ArenaBlock(Place):
    cdef char *bytes
    cdef Py_ssize_t size
    cdef Py_ssize_t exports
    cdef int check_live(self, str call) except -1


cdef class Mark(Place):
    pass
