/* waiting.h: slices of a wait, for whoever sleeps otherwise than in mmk_futex_wait. */
#ifndef MMKIT_WAITING_H
#define MMKIT_WAITING_H

#include <time.h>

#include <mmkit/futex.h>

#define NANOSECONDS UINT64_C(1000000000)

static inline struct timespec as_timespec(uint64_t nanoseconds)
{
    return (struct timespec){(time_t)(nanoseconds / NANOSECONDS), (long)(nanoseconds % NANOSECONDS)};
}

/* When to wake up and look around: a slice from now, or at the deadline. CLOCK_MONOTONIC. */
uint64_t end_of_slice(const mmk_wait *wait);

/* What to do then. returns -EAGAIN (sleep on), -ETIMEDOUT or -EINTR. */
int slice_is_over(const mmk_wait *wait);

#endif
