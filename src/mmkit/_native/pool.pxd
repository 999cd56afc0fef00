"""core/include/mmkit/pool.h, and the class that holds a pool."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmkit._native.block cimport Block, BlockOwner, PoolBlock, mmk_pool_block
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


cdef class PoolHandle(BlockOwner):
    cdef mmk_pool handle
    cdef Py_ssize_t size
    cdef Py_ssize_t span
    cdef bint is_shared
    cdef bint waits
    cdef bint warns
    cdef size_t start_in(self, MappedRegion region) noexcept
    cdef int settle(self, MappedRegion region, int error) except -1
    cdef object failure(self, int error, str call, const mmk_pool_block *block)
    cdef int drop_warning(self, Block block) except -1
    cdef int take_late(self, mmk_pool_block *taken, int error, int64_t deadline) except -1
