/* Pools in their regions: made, found again, counted, checked and repaired. */
#include <errno.h>

#include "pool_internal.h"
#include "region_internal.h"

enum {
    ALIGNMENT = 16,
    PAGE = 4096, /* blocks of a page and more start on one */
    FLAGS = MMK_POOL_PADDED | MMK_POOL_ZERO | MMK_POOL_POISONED,
};

/* ---- geometry ---- */

/* Where things are, from the start of the pool. Returns -EINVAL where the numbers make no sense. */
static MMK_MUST_CHECK int lay_out(mmk_pool *pool, const mmk_pool_geometry *geometry, size_t *blocks, size_t *size)
{
    bool padded = geometry->flags & MMK_POOL_PADDED;
    if (geometry->block_size == 0 || geometry->block_size > PTRDIFF_MAX / 2 || geometry->count == 0 ||
        geometry->limit < geometry->count || geometry->limit == UINT32_MAX || geometry->flags & ~(unsigned)FLAGS ||
        (geometry->flags & (MMK_POOL_ZERO | MMK_POOL_POISONED)) == (MMK_POOL_ZERO | MMK_POOL_POISONED))
        return -EINVAL;
    pool->block_size = geometry->block_size;
    pool->stride = mmk_round_up(geometry->block_size, padded ? MMK_POOL_LINE : ALIGNMENT);
    pool->cell_stride = padded ? MMK_POOL_LINE : sizeof(pool_cell);
    pool->flags = geometry->flags;
    pool->limit = geometry->limit;
    size_t cells = (size_t)geometry->limit * pool->cell_stride;
    *blocks = mmk_round_up(sizeof(pool_header) + cells, pool->stride >= PAGE ? PAGE : MMK_POOL_LINE);
    size_t bytes;
    if (__builtin_mul_overflow(pool->stride, (size_t)geometry->limit, &bytes) ||
        __builtin_add_overflow(bytes, *blocks, size) || *size > PTRDIFF_MAX)
        return -EINVAL;
    return 0;
}

size_t mmk_pool_size(const mmk_pool_geometry *geometry)
{
    mmk_pool pool;
    size_t blocks, size;
    return lay_out(&pool, geometry, &blocks, &size) ? 0 : size;
}

/* ---- begin and end ---- */

static MMK_MUST_CHECK int pin(mmk_pool *pool, mmk_region *region, size_t offset, size_t size, bool joins)
{
    int error = mmk_view_settle(region, &pool->view, offset, size, "a pool", joins);
    if (error)
        return error;
    pool->region = region;
    pool->may_lack = region_may_lack_memory(region);
    region->exposed = true;
    return 0;
}

static void settle(mmk_pool *pool, size_t offset, size_t blocks)
{
    char *base = pool->region->base + offset;
    pool->header = (pool_header *)base;
    pool->cells = base + sizeof(pool_header);
    pool->blocks = base + blocks;
}

int mmk_pool_create(mmk_pool *pool, mmk_region *region, size_t offset, const mmk_pool_geometry *geometry, bool zeros)
{
    memset(pool, 0, sizeof *pool);
    size_t blocks, size;
    int error = lay_out(pool, geometry, &blocks, &size);
    if (error || offset % MMK_POOL_LINE)
        return -EINVAL;
    size_t length = mmk_region_length(region);
    if (mmk_region_is_closed(region))
        return -MMK_ECLOSED;
    if (offset > length || size > length - offset)
        return -ENOSPC;
    error = pin(pool, region, offset, size, false);
    if (error)
        return error;
    settle(pool, offset, blocks);
    if (!pool_back(pool, (char *)pool->header, blocks)) {
        mmk_pool_close(pool);
        return -ENOMEM;
    }
    pool->was_zeros = zeros;

    pool_header *header = pool->header;
    memset(header, 0, sizeof *header);
    if (!zeros)
        memset(pool->cells, 0, (size_t)pool->limit * pool->cell_stride);
    header->version = MMK_POOL_VERSION;
    header->flags = geometry->flags;
    header->block_size = geometry->block_size;
    header->limit = geometry->limit;
    header->zeros = zeros;
    header->size = size;
    atomic_store_explicit(&header->count, geometry->count, memory_order_relaxed);
    /* Who finds the magic finds the rest. */
    atomic_store_explicit(&header->magic, POOL_MAGIC, memory_order_release);
    return 0;
}

/* What a header says, if it can be. */
static MMK_MUST_CHECK int read_header(mmk_pool *pool, pool_header *header, size_t room, size_t *blocks, size_t *size)
{
    if (atomic_load_explicit(&header->magic, memory_order_acquire) != POOL_MAGIC)
        return -MMK_ECORRUPT;
    if (header->version != MMK_POOL_VERSION)
        return -MMK_EFORMAT;
    /* Before the count, which grows first. */
    uint32_t fresh = atomic_load(&header->fresh);
    mmk_pool_geometry geometry = {.block_size = header->block_size,
                                  .count = atomic_load(&header->count),
                                  .limit = header->limit,
                                  .flags = header->flags};
    if (lay_out(pool, &geometry, blocks, size) || *size != header->size || *size > room || header->zeros > 1 ||
        fresh > geometry.count)
        return -MMK_ECORRUPT;
    pool->was_zeros = header->zeros;
    return 0;
}

int mmk_pool_attach(mmk_pool *pool, mmk_region *region, size_t offset)
{
    memset(pool, 0, sizeof *pool);
    if (offset % MMK_POOL_LINE)
        return -EINVAL;
    if (mmk_region_is_closed(region))
        return -MMK_ECLOSED;
    size_t length = mmk_region_length(region), blocks, size;
    if (offset > length || length - offset < sizeof(pool_header))
        return -MMK_ECORRUPT;
    mmk_view reading;
    int error = mmk_view_open(region, &reading, offset, sizeof(pool_header), true);
    if (error)
        return error;
    error = read_header(pool, (pool_header *)(region->base + offset), length - offset, &blocks, &size);
    if (!error)
        error = pin(pool, region, offset, size, true);
    mmk_view_close(region, &reading);
    if (!error)
        settle(pool, offset, blocks);
    return error;
}

void mmk_pool_close(mmk_pool *pool)
{
    if (!pool->header)
        return;
    pool->header = NULL;
    mmk_view_close(pool->region, &pool->view);
}

/* ---- looking ---- */

static uint32_t state_of(const mmk_pool *pool, uint32_t index)
{
    return atomic_load_explicit(&pool_cell_of(pool, index)->state, memory_order_acquire);
}

/* Describe a block, if it is live. */
static bool describe(const mmk_pool *pool, uint32_t index, mmk_pool_block *block)
{
    uint32_t state = state_of(pool, index);
    if ((state & POOL_STATE) != POOL_LIVE)
        return false;
    *block = (mmk_pool_block){pool_bytes_of(pool, index), index, state >> POOL_GENERATION_SHIFT};
    return true;
}

int mmk_pool_next_live(mmk_pool *pool, uint32_t from, mmk_pool_block *block)
{
    if (!pool->header)
        return -MMK_ECLOSED;
    for (uint32_t index = from, fresh = pool_fresh(pool); index < fresh; index++)
        if (describe(pool, index, block))
            return 0;
    return -MMK_ENOTBLOCK;
}

int mmk_pool_find(mmk_pool *pool, size_t offset, mmk_pool_block *block)
{
    if (!pool->header)
        return -MMK_ECLOSED;
    size_t first = (size_t)(pool->blocks - pool->region->base);
    if (offset < first || (offset - first) % pool->stride || (offset - first) / pool->stride >= pool_fresh(pool))
        return -MMK_ENOTBLOCK;
    return describe(pool, (uint32_t)((offset - first) / pool->stride), block) ? 0 : -MMK_ENOTBLOCK;
}

int mmk_pool_statistics(mmk_pool *pool, mmk_pool_stats *stats)
{
    if (!pool->header)
        return -MMK_ECLOSED;
    *stats = (mmk_pool_stats){.count = atomic_load(&pool->header->count),
                              .limit = pool->limit,
                              .peak = pool_fresh(pool),
                              .refusals = atomic_load(&pool->header->refusals),
                              .waits = atomic_load(&pool->header->waits)};
    for (uint32_t index = 0; index < stats->peak; index++) {
        uint32_t state = state_of(pool, index);
        stats->live += (state & POOL_STATE) == POOL_LIVE;
        stats->quarantined += (state & POOL_STATE) == POOL_QUARANTINED;
        stats->takes += state >> POOL_GENERATION_SHIFT;
    }
    return 0;
}

/* ---- checking and repairing ---- */

/* A list that is longer than there are blocks goes in a circle. */
static MMK_MUST_CHECK int walk_list(const mmk_pool *pool, uint32_t fresh, uint32_t *length, uint32_t *damaged)
{
    uint32_t link = (uint32_t)atomic_load(&pool->header->head);
    *damaged = 0;
    for (*length = 0; link; ++*length) {
        if (link > fresh || *length == fresh)
            return -MMK_ECORRUPT;
        *damaged = link - 1;
        if ((state_of(pool, link - 1) & POOL_STATE) != POOL_FREE)
            return -MMK_ECORRUPT;
        link = atomic_load(&pool_cell_of(pool, link - 1)->next);
    }
    return 0;
}

int mmk_pool_check(mmk_pool *pool, uint32_t *lost, uint32_t *damaged)
{
    if (!pool->header)
        return -MMK_ECLOSED;
    uint32_t fresh = atomic_load(&pool->header->fresh), count = atomic_load(&pool->header->count);
    *damaged = 0;
    if (count > pool->limit || fresh > count)
        return -MMK_ECORRUPT;
    uint32_t listed, idle = 0;
    int error = walk_list(pool, fresh, &listed, damaged);
    if (error)
        return error;
    for (uint32_t index = 0; index < fresh; index++) {
        uint32_t state = state_of(pool, index) & POOL_STATE;
        idle += state == POOL_FREE || state == POOL_GIVING;
    }
    /* The list is no circle and holds free blocks only, so it holds no more than are idle. */
    *lost = idle - listed;
    return 0;
}

int mmk_pool_repair(mmk_pool *pool)
{
    if (!pool->header)
        return -MMK_ECLOSED;
    uint32_t fresh = atomic_load(&pool->header->fresh);
    if (atomic_load(&pool->header->count) > pool->limit || fresh > atomic_load(&pool->header->count))
        return -MMK_ECORRUPT;
    uint64_t tag = (atomic_load(&pool->header->head) >> 32) + 1;
    atomic_store(&pool->header->head, tag << 32);
    for (uint32_t index = fresh; index-- > 0;) {
        pool_cell *cell = pool_cell_of(pool, index);
        uint32_t state = atomic_load(&cell->state);
        if ((state & POOL_STATE) == POOL_LIVE || (state & POOL_STATE) == POOL_QUARANTINED)
            continue;
        if ((state & POOL_STATE) == POOL_GIVING && pool->flags & (MMK_POOL_ZERO | MMK_POOL_POISONED))
            memset(pool_bytes_of(pool, index), pool->flags & MMK_POOL_ZERO ? 0 : MMK_POOL_POISON, pool->block_size);
        atomic_store(&cell->state, state & ~(uint32_t)POOL_STATE);
        pool_push(pool, index);
    }
    return 0;
}
