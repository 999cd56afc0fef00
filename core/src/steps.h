/* steps.h: each thing that a process does to memory it shares with others, as one step with its memory order.
 *
 * Code that stands on these alone can be run by a test which stops between any two steps, keeps stores back as a
 * processor does, and lets processes die: core/tests/test_channel_schedules.c does, with MMK_STEPS set to its own.
 */
#ifndef MMKIT_STEPS_H
#define MMKIT_STEPS_H

#ifdef MMK_STEPS
#include MMK_STEPS
#else

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <mmkit/futex.h>
#include <mmkit/process.h>

#include "channel_internal.h"

static inline uint64_t step_read(const _Atomic uint64_t *place)
{
    return atomic_load_explicit(place, memory_order_acquire);
}

static inline uint64_t step_read_ordered(const _Atomic uint64_t *place)
{
    return atomic_load_explicit(place, memory_order_seq_cst);
}

static inline uint32_t step_read32(const _Atomic uint32_t *place)
{
    return atomic_load_explicit(place, memory_order_relaxed);
}

static inline uint32_t step_read32_ordered(const _Atomic uint32_t *place)
{
    return atomic_load_explicit(place, memory_order_seq_cst);
}

static inline void step_write(_Atomic uint64_t *place, uint64_t value)
{
    atomic_store_explicit(place, value, memory_order_relaxed);
}

static inline void step_write32(_Atomic uint32_t *place, uint32_t value)
{
    atomic_store_explicit(place, value, memory_order_relaxed);
}

static inline void step_publish(_Atomic uint64_t *place, uint64_t value)
{
    atomic_store_explicit(place, value, memory_order_release);
}

static inline void step_publish_ordered(_Atomic uint64_t *place, uint64_t value)
{
    atomic_store_explicit(place, value, memory_order_seq_cst);
}

static inline bool step_swap(_Atomic uint64_t *place, uint64_t old, uint64_t new)
{
    return atomic_compare_exchange_strong_explicit(place, &old, new, memory_order_seq_cst, memory_order_acquire);
}

static inline bool step_swap32(_Atomic uint32_t *place, uint32_t old, uint32_t new)
{
    return atomic_compare_exchange_strong_explicit(place, &old, new, memory_order_seq_cst, memory_order_acquire);
}

static inline uint32_t step_exchange32(_Atomic uint32_t *place, uint32_t value)
{
    return atomic_exchange_explicit(place, value, memory_order_seq_cst);
}

static inline int step_sleep(_Atomic uint32_t *word, uint32_t expected, uint64_t deadline)
{
    return mmk_futex_wait(word, expected, &(mmk_wait){.deadline = deadline});
}

static inline void step_wake(_Atomic uint32_t *word, int count)
{
    (void)mmk_futex_wake(word, count);
}

static inline uint64_t step_now(void)
{
    return mmk_now();
}

static inline bool step_is_gone(uint64_t claim)
{
    return mmk_process_is_gone(&(mmk_process){claim & CLAIM_PID, claim >> CLAIM_PID_BITS});
}

#endif
#endif
