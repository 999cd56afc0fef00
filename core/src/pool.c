/* Taking and giving blocks of one size. */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pool_internal.h"

enum { LONGEST_SLEEP_NS = 100 * 1000 * 1000 };

/* ---- taking ---- */

/* Take the first block off the list. */
static MMK_MUST_CHECK int pop(const mmk_pool *pool, uint32_t *index)
{
    uint64_t head = atomic_load(&pool->header->head), changed;
    do {
        if ((uint32_t)head == 0)
            return -ENOMEM;
        *index = (uint32_t)head - 1;
        if (*index >= pool->limit)
            return -MMK_ECORRUPT;
        /* Somebody may have taken the block meanwhile: then this is anything, and the tag another. */
        uint32_t next = atomic_load_explicit(&pool_cell_of(pool, *index)->next, memory_order_relaxed);
        changed = ((head >> 32) + 1) << 32 | next;
    } while (!atomic_compare_exchange_weak(&pool->header->head, &head, changed));
    return 0;
}

/* Have more blocks, up to the limit: twice as many. */
static bool grow(const mmk_pool *pool, uint32_t count)
{
    if (count >= pool->limit)
        return false;
    uint32_t more = count > pool->limit / 2 ? pool->limit : count * 2;
    atomic_compare_exchange_strong(&pool->header->count, &count, more);
    return true;
}

/* Take a block that nobody ever took. */
static MMK_MUST_CHECK int take_fresh(const mmk_pool *pool, uint32_t *index)
{
    uint32_t fresh = atomic_load(&pool->header->fresh);
    for (;;) {
        uint32_t count = atomic_load_explicit(&pool->header->count, memory_order_relaxed);
        if (count > pool->limit)
            return -MMK_ECORRUPT;
        if (fresh < count) {
            if (atomic_compare_exchange_weak(&pool->header->fresh, &fresh, fresh + 1)) {
                *index = fresh;
                return 0;
            }
        } else if (!grow(pool, count)) {
            return -ENOMEM;
        }
    }
}

static MMK_MUST_CHECK int find_free(const mmk_pool *pool, uint32_t *index)
{
    for (;;) {
        int error = pop(pool, index);
        if (error != -ENOMEM)
            return error;
        error = take_fresh(pool, index);
        if (error != -ENOMEM)
            return error;
        /* Exhausted only if the list is empty after the last fresh block went: one may have come back meanwhile. */
        if ((uint32_t)atomic_load(&pool->header->head) == 0)
            return -ENOMEM;
    }
}

static bool is_poisoned(const char *bytes, size_t length)
{
    return (unsigned char)bytes[0] == MMK_POOL_POISON && memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* What the policy wants of a block before it is handed out. Returns false where it was written to while it was free. */
static bool prepare(const mmk_pool *pool, const mmk_pool_block *block)
{
    bool is_fresh = block->generation == 1;
    if (pool->flags & MMK_POOL_POISONED)
        return is_fresh || is_poisoned(block->bytes, pool->block_size);
    if (pool->flags & MMK_POOL_ZERO && is_fresh && !pool->was_zeros)
        memset(block->bytes, 0, pool->block_size);
    return true;
}

static inline MMK_MUST_CHECK int take(const mmk_pool *pool, mmk_pool_block *block)
{
    block->bytes = NULL;
    if (!pool->header)
        return -MMK_ECLOSED;
    uint32_t index;
    int error = find_free(pool, &index);
    if (error)
        return error;
    pool_cell *cell = pool_cell_of(pool, index);
    uint32_t state = atomic_load_explicit(&cell->state, memory_order_relaxed);
    if ((state & POOL_STATE) != POOL_FREE)
        return -MMK_ECORRUPT;
    block->bytes = pool_bytes_of(pool, index);
    block->index = index;
    block->generation = ((state >> POOL_GENERATION_SHIFT) + 1) & (UINT32_MAX >> POOL_GENERATION_SHIFT);
    if (block->generation == 1 && !pool_back(pool, block->bytes, pool->block_size)) {
        block->bytes = NULL;
        pool_push(pool, index);
        return -ENODATA;
    }
    if (pool->flags && !prepare(pool, block)) {
        atomic_store_explicit(&cell->state, state | POOL_QUARANTINED, memory_order_release);
        return -MMK_ECORRUPT;
    }
    atomic_store_explicit(&cell->state, pool_state_word(block->generation, POOL_LIVE), memory_order_release);
    return 0;
}

static int refused(const mmk_pool *pool, int error)
{
    atomic_fetch_add_explicit(&pool->header->refusals, 1, memory_order_relaxed);
    return error;
}

int mmk_pool_take(mmk_pool *pool, mmk_pool_block *block)
{
    int error = take(pool, block);
    return error == -ENOMEM ? refused(pool, error) : error;
}

/* ---- sleeping for a block ---- */

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Sleep until somebody gives a block, for a while. A private futex would not do: the region may be shared. */
static int sleep_while(_Atomic uint32_t *word, uint32_t value, int64_t until_ns)
{
    struct timespec until = {until_ns / 1000000000, until_ns % 1000000000};
    long result = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, &until, NULL, FUTEX_BITSET_MATCH_ANY);
    return result < 0 && errno == EINTR ? -EINTR : 0;
}

int mmk_pool_take_until(mmk_pool *pool, mmk_pool_block *block, int64_t deadline_ns)
{
    for (;;) {
        int error = take(pool, block);
        if (error != -ENOMEM)
            return error;
        int64_t now = monotonic_ns();
        if (now >= deadline_ns)
            return refused(pool, -ETIMEDOUT);
        uint32_t asleep = atomic_fetch_or(&pool->header->sleepers, 1) | 1;
        error = take(pool, block);
        if (error != -ENOMEM)
            return error;
        atomic_fetch_add_explicit(&pool->header->waits, 1, memory_order_relaxed);
        int64_t slice = deadline_ns - now < LONGEST_SLEEP_NS ? deadline_ns : now + LONGEST_SLEEP_NS;
        error = sleep_while(&pool->header->sleepers, asleep, slice);
        if (error)
            return error;
    }
}

static void wake_sleepers(mmk_pool *pool)
{
    uint32_t asleep = atomic_load(&pool->header->sleepers);
    /* The bit goes and the rest changes, in one addition. Who is still without a block sets it again. */
    if (asleep & 1 && atomic_compare_exchange_strong(&pool->header->sleepers, &asleep, asleep + 1))
        syscall(SYS_futex, &pool->header->sleepers, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* ---- giving ---- */

int mmk_pool_give(mmk_pool *pool, const mmk_pool_block *block)
{
    if (!pool->header)
        return -MMK_ECLOSED;
    if (block->index >= pool->limit)
        return -MMK_ENOTBLOCK;
    pool_cell *cell = pool_cell_of(pool, block->index);
    uint32_t live = pool_state_word(block->generation, POOL_LIVE);
    bool wipes = pool->flags & (MMK_POOL_ZERO | MMK_POOL_POISONED);
    uint32_t then = pool_state_word(block->generation, wipes ? POOL_GIVING : POOL_FREE);
    if (!atomic_compare_exchange_strong_explicit(&cell->state, &live, then, memory_order_acq_rel, memory_order_relaxed))
        return -MMK_ENOTBLOCK;
    if (wipes) {
        memset(pool_bytes_of(pool, block->index), pool->flags & MMK_POOL_ZERO ? 0 : MMK_POOL_POISON, pool->block_size);
        atomic_store_explicit(&cell->state, pool_state_word(block->generation, POOL_FREE), memory_order_release);
    }
    pool_push(pool, block->index);
    if (atomic_load(&pool->header->sleepers) & 1)
        wake_sleepers(pool);
    return 0;
}
