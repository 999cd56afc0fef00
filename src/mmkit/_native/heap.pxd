"""core/include/mmkit/heap.h, and the class that holds a heap."""

from libc.stdint cimport uint64_t, uintptr_t

from mmkit._native.block cimport Block, BlockOwner
from mmkit._native.region cimport MappedRegion, mmk_region

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint bool "bool"

cdef extern from "mmkit/heap.h" nogil:
    int MMK_HEAP_SIZE_CLASSES
    int MMK_HEAP_MMAP
    int MMK_HEAP_SBRK
    int MMK_HEAP_REGION
    int MMK_BLOCK_LIVE
    int MMK_BLOCK_FREE
    int MMK_BLOCK_HOLE
    int MMK_BLOCK_INTERNAL
    int MMK_BLOCK_LARGE

    ctypedef int mmk_heap_source
    ctypedef int mmk_heap_kind

    ctypedef struct mmk_heap_damage:
        const char *what
        uintptr_t address
        uintptr_t before
        uintptr_t after

    ctypedef struct mmk_heap:
        bool open
        mmk_heap_source source
        mmk_region *region
        void *shared

    ctypedef struct mmk_heap_request:
        mmk_heap_source source
        mmk_region *region
        size_t offset
        size_t limit
        bool guard

    ctypedef struct mmk_heap_stats:
        size_t live_bytes
        size_t live_blocks
        size_t peak_bytes
        size_t mapped_bytes
        size_t largest_free
        size_t free_bytes
        size_t slices
        size_t large_blocks

    ctypedef struct mmk_heap_class:
        size_t live_blocks
        size_t live_bytes
        size_t free_blocks
        size_t free_bytes

    ctypedef struct mmk_heap_block:
        uintptr_t address
        size_t size
        size_t span
        mmk_heap_kind kind

    int mmk_heap_open(mmk_heap *heap, const mmk_heap_request *request)
    int mmk_heap_attach(mmk_heap *heap, mmk_region *region, size_t offset)
    int mmk_heap_close(mmk_heap *heap)
    void mmk_heap_dispose(mmk_heap *heap)
    int mmk_heap_alloc(mmk_heap *heap, size_t size, size_t align, bool zero, void **block)
    int mmk_heap_free(mmk_heap *heap, void *block)
    int mmk_heap_resize(mmk_heap *heap, void **block, size_t size, size_t align)
    ssize_t mmk_heap_size(mmk_heap *heap, const void *block)
    int mmk_heap_trim(mmk_heap *heap)
    int mmk_heap_check(mmk_heap *heap, mmk_heap_damage *damage)
    int mmk_heap_statistics(mmk_heap *heap, mmk_heap_stats *stats)
    int mmk_heap_classes(mmk_heap *heap, mmk_heap_class *classes)
    int mmk_heap_resident(mmk_heap *heap, int pagemap, size_t *bytes)
    ssize_t mmk_heap_blocks(mmk_heap *heap, mmk_heap_block *blocks, size_t capacity)


cdef class HeapHandle(BlockOwner):
    cdef mmk_heap handle
    cdef bint warns
    cdef int frames
    cdef dict origins
    cdef object failure(self, int error, str call, size_t size, Py_ssize_t align)
    cdef int settle(self, MappedRegion region, int error, int frames) except -1
    cdef int drop_warning(self, Block block) except -1
    cdef void enter(self) noexcept
    cdef void leave(self) noexcept
