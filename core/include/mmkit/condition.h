/* condition.h: a lock, and waiting until somebody who has held it says that something changed.
 *
 *     offset  bytes
 *          0    192  lock, lock.h; taken several times by its holder, as an RLock
 *        192      8  tickets given to waiters so far
 *        200     56  0
 *        256  32 × 256  waiters: 4 bytes state (that the waiter sleeps on), 4 bytes pid, 8 bytes start, as in
 *                       process.h, 8 bytes ticket, 8 bytes tickets given when it was notified
 *
 *                 wait: by the waiter,             notify: by a holder of the lock,
 *                 holding the lock                 the oldest first
 *         free ─────────────────────────▶ waiting ─────────────────────────────────▶ notified
 *          ▲ ◀──────────────────────────────┘                                           │
 *          │       time is up, interrupted, or the lock was abandoned                   │
 *          └────────────────────────────────────────────────────────────────────────────┘
 *                                    the waiter, holding the lock again
 *
 * Each waiter sleeps on a word of its own, so one is woken for each notification, and nobody in vain. A notification
 * whose waiter died before it had the lock again is passed on to who waited then, by any waiter at the end of a slice.
 * When a holder of the lock died, all who wait find out at the end of their slices and are told -EOWNERDEAD: nobody
 * may be left to notify them.
 *
 * Threads: any call from any thread. Fork: a child does not have its parent's locks. Signals: no.
 */
#ifndef MMKIT_CONDITION_H
#define MMKIT_CONDITION_H

#include <mmkit/lock.h>

enum {
    MMK_CONDITION_WAITERS = 256, /* at one time */
};

typedef struct mmk_waiter {
    _Atomic uint32_t state;
    _Atomic uint32_t pid;
    uint64_t start;
    uint64_t ticket;
    uint64_t notified_at;
} mmk_waiter;

typedef struct mmk_condition {
    mmk_lock lock;
    uint64_t tickets;
    char unused[56];
    mmk_waiter waiters[MMK_CONDITION_WAITERS];
} mmk_condition;

/* Make a condition at this place. As mmk_lock_create. */
MMK_API MMK_MUST_CHECK int mmk_condition_create(mmk_condition *condition);

/* Release the lock, however often it was taken; wait for a notification; take the lock again, as often.
 *
 * returns  0           notified
 *          -ETIMEDOUT  the time is up
 *          -EINTR      wait->interrupted says so; asked a second time while the lock is taken again, it ends that too
 *          -EOWNERDEAD a holder died: the lock is not held
 *          -EPERM      this thread does not hold the lock
 *          -ENOSPC     MMK_CONDITION_WAITERS wait already
 *          -errno      /proc/self cannot be read
 * The lock is held again, but where the list says otherwise: ask mmk_lock_is_mine. */
MMK_API MMK_MUST_CHECK int mmk_condition_wait(mmk_condition *condition, const mmk_wait *wait);

/* Notify up to `count` waiters, the oldest first.
 * returns  how many; -EPERM: this thread does not hold the lock */
MMK_API MMK_MUST_CHECK int mmk_condition_notify(mmk_condition *condition, uint32_t count);

#endif
