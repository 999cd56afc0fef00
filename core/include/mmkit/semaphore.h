/* semaphore.h: a number of permits that unrelated processes take and give back.
 *
 *     offset  bytes
 *          0     64  header, placed.h
 *         64     64  robust mutex, over all below
 *        128      4  permits that there are
 *        132      4  1: permits are held, 0: they are only counted
 *        136      4  permits that are free
 *        140      4  how many times a permit became free: sleepers wait for it to change
 *        144      4  0: nobody sleeps; else twice the number above, as the last who went to sleep saw it, plus 1
 *        148      4  holders that are in use, from the first on
 *        152      8  when the holders were last looked at for dead ones, CLOCK_MONOTONIC nanoseconds
 *        160     32  0
 *        192  16 × 256  holders: 4 bytes pid (0: free), 4 bytes permits that it holds, 8 bytes start, as in process.h
 *
 * A semaphore has no owner. What a death means is chosen when it is made:
 *
 *   held     A permit belongs to the process that took it (to any of its threads). Permits of a process that is gone
 *            are free again: at most a slice after somebody wants one. Free permits are those that nobody holds, so
 *            the word at 136 is counted anew when somebody died while changing it.
 *   counted  A permit is a number: any process may take one and any may add one, as with sem_post(3). One that was
 *            taken by a process that died is gone, as the work it stood for may be done or not.
 *
 * A forked child holds none of its parent's permits. execve(2) keeps them: the process is the same.
 *
 * Threads: any call from any thread. Signals: no.
 */
#ifndef MMKIT_SEMAPHORE_H
#define MMKIT_SEMAPHORE_H

#include <stdbool.h>

#include <mmkit/futex.h>
#include <mmkit/placed.h>

enum {
    MMK_SEMAPHORE_HOLDERS = 256, /* processes that can hold permits at one time */
};

typedef struct mmk_permit_holder {
    uint32_t pid;
    uint32_t held;
    uint64_t start;
} mmk_permit_holder;

typedef struct mmk_semaphore {
    _Alignas(MMK_PLACED_ALIGNMENT) mmk_placed placed;
    char mutex[64]; /* src/robust.h */
    uint32_t permits;
    uint32_t are_held;
    uint32_t free;
    _Atomic uint32_t freed;
    _Atomic uint32_t sleeping;
    uint32_t holders_in_use;
    uint64_t looked_after;
    char unused[32];
    mmk_permit_holder holders[MMK_SEMAPHORE_HOLDERS];
} mmk_semaphore;

/* Make a semaphore at this place with so many permits, all free. As mmk_lock_create. */
MMK_API MMK_MUST_CHECK int mmk_semaphore_create(mmk_semaphore *semaphore, uint32_t permits, bool are_held);

/* Take a permit; mmk_semaphore_try does not wait, not even for another that is just taking one.
 *
 * returns  0
 *          -EBUSY      (mmk_semaphore_try) ask mmk_semaphore_acquire
 *          -ETIMEDOUT  the time is up
 *          -EINTR      wait->interrupted says so
 *          -ENOSPC     MMK_SEMAPHORE_HOLDERS processes hold permits
 *          -errno      /proc/self cannot be read */
MMK_API MMK_MUST_CHECK int mmk_semaphore_try(mmk_semaphore *semaphore);
MMK_API MMK_MUST_CHECK int mmk_semaphore_acquire(mmk_semaphore *semaphore, const mmk_wait *wait);

/* Give a permit back, or add one where they are counted.
 *
 * returns  0
 *          -EPERM      this process holds none
 *          -EOVERFLOW  2**32 - 1 are free
 *          -EINTR, -ETIMEDOUT  as above: another process, stopped perhaps, is in the middle of a change
 *          -EBUSY      the same, where wait is NULL
 *          -errno */
MMK_API MMK_MUST_CHECK int mmk_semaphore_release(mmk_semaphore *semaphore, const mmk_wait *wait);

/* Free the permits of processes that are gone, now.
 * returns  how many there were; -EINTR, -ETIMEDOUT */
MMK_API MMK_MUST_CHECK int64_t mmk_semaphore_recover(mmk_semaphore *semaphore, const mmk_wait *wait);

/* Free permits: a snapshot. */
MMK_API uint32_t mmk_semaphore_value(const mmk_semaphore *semaphore);

#endif
