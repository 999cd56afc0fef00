/* barrier.h: a place where a number of parties, in any processes, wait until all are there.
 *
 *     offset  bytes
 *          0     64  header, placed.h
 *         64     64  robust mutex, over all below but the state, and a party's leaving of its place
 *        128      8  state, changed by one compare-and-swap: bits 0 to 31 phase, that waiters sleep on; bit 32 broken;
 *                    bits 33 to 63 how the last 31 phases ended, the newest lowest: 0 all were there, 1 broken
 *        136      4  parties
 *        140      4  places that were used, from the first on
 *        144      8  when the waiters were last looked at for dead ones, CLOCK_MONOTONIC nanoseconds
 *        152     40  0
 *        192  16 × 256  who waits: 8 bytes of pid, in the lower half (0: nobody), and phase; 8 bytes start, as in
 *                       process.h
 *
 * A phase ends when the last party comes, and the next begins. How many have come is not kept: it is the number of
 * places that bear the present phase. So the one change of `state` is all that ends a phase, and whoever dies with the
 * mutex leaves nothing to be mended. Whoever is stopped with it lets nobody come, but who waits can still break the
 * phase, or go.
 *
 * A party that dies while it waits breaks the barrier, and so does one whose time is up, and mmk_barrier_abort: all
 * who wait are told -MMK_EBROKEN, and all who come, until mmk_barrier_reset. A party that dies before it comes is not
 * known to the barrier: give the wait a deadline.
 *
 * Threads: any call from any thread; each is a party of its own. Fork: a child is no party. Signals: no.
 */
#ifndef MMKIT_BARRIER_H
#define MMKIT_BARRIER_H

#include <stdbool.h>

#include <mmkit/futex.h>
#include <mmkit/placed.h>

enum {
    MMK_EBROKEN = 4136,
    MMK_BARRIER_PARTIES = 256, /* at most */
};

typedef struct mmk_party {
    _Atomic uint64_t who;
    uint64_t start;
} mmk_party;

typedef struct mmk_barrier {
    _Alignas(MMK_PLACED_ALIGNMENT) mmk_placed placed;
    char mutex[64]; /* src/robust.h */
    _Atomic uint64_t state;
    uint32_t parties;
    uint32_t places_used;
    uint64_t looked_after;
    char unused[40];
    mmk_party places[MMK_BARRIER_PARTIES];
} mmk_barrier;

/* Make a barrier for so many parties, 1 to MMK_BARRIER_PARTIES. As mmk_lock_create; -EINVAL. */
MMK_API MMK_MUST_CHECK int mmk_barrier_create(mmk_barrier *barrier, uint32_t parties);

/* Wait for the others.
 *
 * returns  0 to parties - 1, another number for each party of a phase
 *          -MMK_EBROKEN  the barrier is broken, or was while we waited
 *          -ETIMEDOUT    the time is up: the barrier is broken by that, unless another process held its mutex all the
 *                        while and this party never came
 *          -EINTR        wait->interrupted says so: this party has gone again, the barrier is as before. If the phase
 *                        ended first, the answer is how. If a process is stopped with the mutex, the last party may
 *                        have counted this one all the same
 *          -errno        /proc/self cannot be read */
MMK_API MMK_MUST_CHECK int mmk_barrier_wait(mmk_barrier *barrier, const mmk_wait *wait);

/* Break it; make it whole again, where those who wait are told that it was broken. returns 0, -EINTR, -ETIMEDOUT */
MMK_API MMK_MUST_CHECK int mmk_barrier_abort(mmk_barrier *barrier, const mmk_wait *wait);
MMK_API MMK_MUST_CHECK int mmk_barrier_reset(mmk_barrier *barrier, const mmk_wait *wait);

/* Snapshots. */
MMK_API bool mmk_barrier_is_broken(const mmk_barrier *barrier);
MMK_API uint32_t mmk_barrier_waiting(const mmk_barrier *barrier);

#endif
