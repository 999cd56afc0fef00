/* pool_internal.h: what stands in a pool's region. docs/pool.md draws it. */
#ifndef MMKIT_POOL_INTERNAL_H
#define MMKIT_POOL_INTERNAL_H

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include <mmkit/pool.h>
#include <mmkit/sys.h>

/* "mmkpool" and a NUL, where bytes stand as they do here. */
#define POOL_MAGIC UINT64_C(0x006c6f6f706b6d6d)

typedef struct pool_header {
    /* Written once; the magic last. */
    _Atomic uint64_t magic;
    uint32_t version;
    uint32_t flags;
    uint64_t block_size;
    uint32_t limit;
    uint32_t zeros;
    uint64_t size; /* of the whole pool, in bytes */
    char unused[24];

    /* Every take and every give. The low half is the number of the list's first block plus 1, or 0; the high half is
     * the tag. */
    _Alignas(MMK_POOL_LINE) _Atomic uint64_t head;

    /* First takes, and takes that found no block. */
    _Alignas(MMK_POOL_LINE) _Atomic uint32_t fresh; /* blocks [fresh, count) were never taken */
    _Atomic uint32_t count;
    _Atomic uint64_t refusals;
    _Atomic uint64_t waits;

    /* Bit 0: somebody may be asleep; the rest changes with every waking. */
    _Alignas(MMK_POOL_LINE) _Atomic uint32_t sleepers;
} pool_header;

static_assert(sizeof(pool_header) == 256, "the format says so");
static_assert(offsetof(pool_header, head) == 64 && offsetof(pool_header, fresh) == 128 &&
                  offsetof(pool_header, sleepers) == 192,
              "the format says so");

typedef struct pool_cell {
    _Atomic uint32_t next;  /* on the list: the number of the next block plus 1, or 0 */
    _Atomic uint32_t state; /* enum pool_state, and above it the generation */
} pool_cell;

/* The two low bits of pool_cell.state. */
enum pool_state {
    POOL_FREE,        /* on the list; or never taken, or lost */
    POOL_LIVE,        /* taken */
    POOL_GIVING,      /* being wiped, by who gives it; or lost */
    POOL_QUARANTINED, /* written to while it was free */
    POOL_STATE = 3,
    POOL_GENERATION_SHIFT = 2,
};

static inline pool_cell *pool_cell_of(const mmk_pool *pool, uint32_t index)
{
    return (pool_cell *)(pool->cells + (size_t)index * pool->cell_stride);
}

static inline char *pool_bytes_of(const mmk_pool *pool, uint32_t index)
{
    return pool->blocks + (size_t)index * pool->stride;
}

static inline uint32_t pool_state_word(uint32_t generation, enum pool_state state)
{
    return generation << POOL_GENERATION_SHIFT | (uint32_t)state;
}

/* Put a block on the list. pre: its state is POOL_FREE, and it is not on it. */
static inline void pool_push(const mmk_pool *pool, uint32_t index)
{
    pool_cell *cell = pool_cell_of(pool, index);
    uint64_t head = atomic_load_explicit(&pool->header->head, memory_order_relaxed), changed;
    do {
        atomic_store_explicit(&cell->next, (uint32_t)head, memory_order_relaxed);
        changed = (head & ~(uint64_t)UINT32_MAX) | (index + 1);
        /* In one order with what pool_take_until does: it sees the block, or its bit is seen. */
    } while (!atomic_compare_exchange_weak_explicit(&pool->header->head, &head, changed, memory_order_seq_cst,
                                                    memory_order_relaxed));
}

/* Make sure that bytes that nobody wrote to before can be: a full tmpfs would answer with a signal. returns false where
 * they cannot. Kernels before 5.14 do not say. madvise(2) MADV_POPULATE_WRITE */
static inline bool pool_back(const mmk_pool *pool, const char *bytes, size_t length)
{
    if (__builtin_expect(!pool->may_lack, true))
        return true;
    uintptr_t from = mmk_round_down((uintptr_t)bytes, pool->region->granule);
    uintptr_t to = mmk_round_up((uintptr_t)bytes + length, pool->region->granule);
    int error = mmk_sys_madvise((void *)from, to - from, MMK_MADV_POPULATE_WRITE);
    return error == 0 || error == -EINVAL;
}

/* Blocks that were ever taken, whatever the region says. */
static inline uint32_t pool_fresh(const mmk_pool *pool)
{
    uint32_t fresh = atomic_load_explicit(&pool->header->fresh, memory_order_acquire);
    return fresh < pool->limit ? fresh : pool->limit;
}

#endif
