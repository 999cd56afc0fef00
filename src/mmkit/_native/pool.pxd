"""core/include/mmkit/pool.h, and the classes that hold a pool and its blocks."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmkit._native.region cimport MappedRegion, bool, mmk_region, mmk_view

cdef extern from "mmkit/pool.h" nogil:
    unsigned MMK_POOL_PADDED
    unsigned MMK_POOL_ZERO
    unsigned MMK_POOL_POISONED
    size_t MMK_POOL_LINE

    ctypedef struct mmk_pool_geometry:
        size_t block_size
        uint32_t count
        uint32_t limit
        unsigned flags

    ctypedef struct mmk_pool:
        void *header
        char *blocks
        size_t block_size
        size_t stride
        uint32_t limit

    ctypedef struct mmk_pool_block:
        char *bytes
        uint32_t index
        uint32_t generation

    ctypedef struct mmk_pool_stats:
        uint32_t count
        uint32_t limit
        uint32_t live
        uint32_t peak
        uint32_t quarantined
        uint64_t takes
        uint64_t refusals
        uint64_t waits

    size_t mmk_pool_size(const mmk_pool_geometry *geometry)
    int mmk_pool_create(
        mmk_pool *pool, mmk_region *region, size_t offset, const mmk_pool_geometry *geometry, bool zeros
    )
    int mmk_pool_attach(mmk_pool *pool, mmk_region *region, size_t offset)
    void mmk_pool_close(mmk_pool *pool)
    int mmk_pool_take(mmk_pool *pool, mmk_pool_block *block)
    int mmk_pool_take_until(mmk_pool *pool, mmk_pool_block *block, int64_t deadline_ns)
    int mmk_pool_give(mmk_pool *pool, const mmk_pool_block *block)
    int mmk_pool_find(mmk_pool *pool, size_t offset, mmk_pool_block *block)
    int mmk_pool_next_live(mmk_pool *pool, uint32_t start, mmk_pool_block *block)
    int mmk_pool_statistics(mmk_pool *pool, mmk_pool_stats *stats)
    int mmk_pool_check(mmk_pool *pool, uint32_t *lost, uint32_t *damaged)
    int mmk_pool_repair(mmk_pool *pool)


cdef class PoolHandle:
    cdef object __weakref__
    cdef mmk_pool handle
    cdef MappedRegion region
    cdef Py_ssize_t exports
    cdef Py_ssize_t size
    cdef Py_ssize_t span
    cdef bint is_shared
    cdef bint waits
    cdef bint warns
    cdef int check_unmade(self, MappedRegion region) except -1
    cdef size_t start_in(self, MappedRegion region) noexcept
    cdef int settle(self, MappedRegion region, int error) except -1
    cdef object failure(self, int error, str call, mmk_pool_block *block)
    cdef object take_late(self, PoolBlock block, int error, int64_t deadline)
    cdef int give_back(self, PoolBlock block) except -1


cdef class PoolBlock:
    cdef PoolHandle pool
    cdef mmk_pool_block block
    cdef Py_ssize_t exports
    cdef bint is_borrowed
    cdef int check_live(self, str call) except -1
