/* futex.h: waiting for a word of shared memory to change, in slices.
 *
 * Nobody here sleeps for longer than a slice without looking around. What a slice bounds:
 *
 *   - a wake that was lost, because who was woken, or who was to wake, was killed first;
 *   - a signal that another thread took: Ctrl-C reaches the waiter when its slice is over;
 *   - the death of somebody whom nobody waits for in the kernel.
 *
 * Threads, fork: nothing is kept. Signals: mmk_futex_wake only.
 */
#ifndef MMKIT_FUTEX_H
#define MMKIT_FUTEX_H

#include <stdatomic.h>

#include <mmkit/base.h>

#define MMK_FOREVER UINT64_MAX

enum {
    MMK_SLICE = 50 * 1000 * 1000, /* nanoseconds */
};

/* How long to wait, and for what to give up. */
typedef struct mmk_wait {
    uint64_t deadline; /* of mmk_now, in nanoseconds; MMK_FOREVER; 0 looks once and does not wait */
    /* Asked after each slice, with no mutex held: not 0 ends the wait by -EINTR. Or NULL. */
    int (*interrupted)(void *of);
    void *of;
} mmk_wait;

/* clock_gettime(2), CLOCK_MONOTONIC, in nanoseconds. */
MMK_API uint64_t mmk_now(void);

/* Sleep while *word is `expected`, for a slice at most, or until the deadline. futex(2), FUTEX_WAIT.
 *
 * returns  0           somebody woke us, or *word is another: look at it
 *          -EAGAIN     a slice is over: look around
 *          -ETIMEDOUT  the deadline has passed
 *          -EINTR      wait->interrupted says so */
MMK_API MMK_MUST_CHECK int mmk_futex_wait(_Atomic uint32_t *word, uint32_t expected, const mmk_wait *wait);

/* Wake up to `count` sleepers, in any process that has the word mapped. futex(2), FUTEX_WAKE.
 * returns how many were woken. */
MMK_API int mmk_futex_wake(_Atomic uint32_t *word, int count);

#endif
