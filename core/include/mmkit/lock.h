/* lock.h: a lock between unrelated processes that survives the death of whoever holds it.
 *
 *     offset  bytes
 *          0     64  header, placed.h
 *         64     64  robust mutex: libc's pthread_mutex_t, 40 bytes on x86-64, 48 on aarch64
 *        128      4  abandoned: 1 from the discovery of a holder's death until the lock is recovered
 *        132      4  thread that holds it, by its id; 0: nobody
 *        136      4  the process of that thread
 *        140      4  how many times that thread has taken it (RLock)
 *        144      4  the process that died with it last; 0: none yet
 *        148     44  0
 *
 *                        take                     the holder dies
 *             free ────────────────▶ held ─────────────────────────────▶ held by the dead
 *              ▲ ◀────────────────────┘                                       │ the next taker finds out: it marks,
 *              │       release                                                │ releases, and is told -EOWNERDEAD
 *              │                        recover                               ▼
 *              └─────────────────────────────────────────────────────── abandoned ◀─┐
 *              ▲                                                              │      │ end_repair(false),
 *              └──────────────── under repair ◀───────────────────────────────┘      │ or the death of
 *                end_repair(true)      │               begin_repair                  │ who repairs
 *                                      └─────────────────────────────────────────────┘
 *
 * The mutex itself is made consistent at once, so it lives on; that it was abandoned is the word at 128, which
 * nobody's death takes back. It is written while the mutex is held, and before the mutex is made consistent: who
 * dies between two of these steps is a dead holder to the next taker, who does all of them again.
 *
 * A lock belongs to the thread that took it, and is released by that thread. A thread that ends with it is a dead
 * holder, and so is one that calls execve(2). A forked child does not have its parent's locks.
 * Whoever holds a lock has libc point to it, from the thread's list: the memory must stay mapped, at that address.
 * A process should have it mapped once: that is the address under which a thread that holds it is known.
 *
 * Threads: any call from any thread. Fork: see above. Signals: no.
 */
#ifndef MMKIT_LOCK_H
#define MMKIT_LOCK_H

#include <stdbool.h>

#include <mmkit/futex.h>
#include <mmkit/placed.h>

enum {
    /* The kernel looks after this many robust mutexes of a thread, ROBUST_LIST_LIMIT of linux/futex.h, less some
     * for others: what a thread held beyond them would stay locked for ever if it died. */
    MMK_LOCKS_OF_A_THREAD = 2000,
};

typedef struct mmk_lock {
    _Alignas(MMK_PLACED_ALIGNMENT) mmk_placed placed;
    char mutex[64]; /* src/robust.h */
    _Atomic uint32_t abandoned;
    _Atomic uint32_t holder_thread; /* written by the holder only, read by anybody */
    _Atomic uint32_t holder_process;
    uint32_t depth; /* of the holder's */
    _Atomic uint32_t last_dead;
    char unused[44];
} mmk_lock;

/* Make a lock at this place, MMK_LOCK or MMK_RLOCK.
 *
 * pre:     size of the place, shared memory that can be written; aligned.
 * returns  0; -EEXIST, -EBUSY, -MMK_EALIEN, -errno: nothing has changed (src/placed_internal.h) */
MMK_API MMK_MUST_CHECK int mmk_lock_create(mmk_lock *lock, mmk_placed_kind kind);

/* Take the lock; mmk_lock_try does not wait. An RLock that this thread has is taken once more.
 *
 * returns  0
 *          -EBUSY       (mmk_lock_try) somebody holds it
 *          -ETIMEDOUT   the time is up
 *          -EINTR       wait->interrupted says so
 *          -EOWNERDEAD  a holder died, and nobody has recovered the lock since
 *          -EDEADLK     this thread has it
 *          -ENOLCK      this thread holds MMK_LOCKS_OF_A_THREAD
 *          -EOVERFLOW   this thread has taken it 2**32 - 1 times
 * Whatever is returned but 0, the lock was not taken. */
MMK_API MMK_MUST_CHECK int mmk_lock_try(mmk_lock *lock);
MMK_API MMK_MUST_CHECK int mmk_lock_acquire(mmk_lock *lock, const mmk_wait *wait);

/* returns  0; -EPERM: this thread does not hold it */
MMK_API MMK_MUST_CHECK int mmk_lock_release(mmk_lock *lock);

/* Does the calling thread hold it? */
MMK_API bool mmk_lock_is_mine(const mmk_lock *lock);

/* Clear the mark, without taking the lock; wait for a repair that is under way.
 * returns  1 if the lock was abandoned, 0 if not; -ETIMEDOUT, -EINTR, -EDEADLK, -ENOLCK */
MMK_API MMK_MUST_CHECK int mmk_lock_recover(mmk_lock *lock, const mmk_wait *wait);

/* Take the lock to repair what it protects: the mark stays until the end.
 * returns  1 if the lock was abandoned, 0 if not: taken in both cases; else as mmk_lock_acquire, never -EOWNERDEAD */
MMK_API MMK_MUST_CHECK int mmk_lock_begin_repair(mmk_lock *lock, const mmk_wait *wait);

/* Release it; the mark is cleared if all is well.
 * returns  0; -EPERM */
MMK_API MMK_MUST_CHECK int mmk_lock_end_repair(mmk_lock *lock, bool repaired);

/* Does a living thread of this process hold it? Then its memory must stay. Finds out about a dead one on the way. */
MMK_API bool mmk_lock_is_held_here(mmk_lock *lock);

/* The process whose thread died with it last, by its pid; 0: none yet, or not known. */
MMK_API uint32_t mmk_lock_last_dead(const mmk_lock *lock);

#endif
