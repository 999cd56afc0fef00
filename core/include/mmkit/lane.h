/* lane.h: a bounded queue of messages in shared memory: one writer, any number of readers, no lock.
 *
 *     shared        [ owner | head tail | cursor | room ]             a cache line for each side
 *     slots         [ word where length ][ word where length ] …      a message each, in the writer's order
 *     data          [ message ......][ message ][ free ........ ]     whole cache lines; no message wraps
 *
 * A message's slot goes through the states by single atomic steps on its word, which also holds the message's
 * number and its reader, so that whoever looks at it, at any instant, knows whose move is next:
 *
 *                reserve                 commit                 take                  finish
 *     (older) ------------> (older) ----------------> COMMITTED ------------> TAKEN ------------> DONE
 *                              '--- abandon ---> DONE      ^---- give back ----'
 *
 * Commit is one release store: before it the message is not there, after it it is whole. A writer that dies loses
 * what it has not committed, a reader that dies leaves its name in what it had taken; recovery mends both. Memory of
 * zeros is a fresh lane. docs/channel.md draws it byte by byte.
 *
 * Order:   messages are first taken in the order in which they were reserved.
 * Trust:   whatever the shared memory holds, nothing outside the lane is touched. Contents that no lane can have
 *          are answered -MMK_ECORRUPT where they are met.
 * Threads: the writer's calls but commit and abandon are serialised by the caller; the readers' are free, except
 *          with `single`, where one reader at a time is the caller's promise and saves the compare-and-swap.
 * Fork:    the handle is plain memory; a child must not use its parent's claim.
 * Signals: all calls are async-signal-safe, but not one inside the other on one handle.
 */
#ifndef MMKIT_LANE_H
#define MMKIT_LANE_H

#include <stdatomic.h>
#include <stdbool.h>

#include <mmkit/base.h>

enum {
    MMK_LANE_UNIT = 64,      /* a message takes whole units, and begins on one */
    MMK_LANE_READERS = 4096, /* a reader's number is less */
    MMK_LANE_CAPACITY_MIN = 4096,
};

#define MMK_LANE_CAPACITY_MAX ((uint64_t)1 << 32)

/* What stands in front of the slots. Only zeros are needed of fresh memory. */
typedef struct mmk_lane_shared {
    _Alignas(64) _Atomic uint64_t owner;  /* the writer (process.h); 0: nobody */
    _Alignas(64) _Atomic uint64_t head;   /* number of the next message to be reserved */
    _Atomic uint64_t tail;                /* all before it are done; what the writer last noticed */
    _Alignas(64) _Atomic uint64_t cursor; /* number << 16 | times put back: no committed message is before it */
    _Alignas(64) _Atomic uint32_t room;   /* futex: 0, or number << 1 | 1 of the message whose end the writer awaits */
} mmk_lane_shared;

typedef struct mmk_lane_slot {
    _Atomic uint64_t word;   /* number << 16 | reader << 4 | state */
    _Atomic uint32_t unit;   /* where the message begins */
    _Atomic uint32_t length; /* in bytes */
} mmk_lane_slot;

_Static_assert(sizeof(mmk_lane_shared) == 256 && sizeof(mmk_lane_slot) == 16, "the format is fixed");

/* A process's handle. What its user may look at is in the calls. */
typedef struct mmk_lane {
    mmk_lane_shared *shared;
    mmk_lane_slot *slots;
    char *data;
    uint64_t slot_mask;
    uint32_t units;
    bool single;
    /* The writer's own: */
    uint32_t next_unit;
    uint64_t head;
    uint64_t tail;
} mmk_lane;

/* A message on its way. */
typedef struct mmk_message {
    char *data;
    size_t length; /* bytes */
    uint64_t number;
} mmk_message;

/* Shared memory that a lane takes, in bytes: a multiple of 4096, 1.25 to 1.5 times the capacity.
 * pre: MMK_LANE_CAPACITY_MIN <= capacity <= MMK_LANE_CAPACITY_MAX, a multiple of MMK_LANE_UNIT. */
MMK_API size_t mmk_lane_bytes(uint64_t capacity);

/* The longest message: half the capacity, so that it finds room in one piece once the lane is empty. */
MMK_API size_t mmk_lane_longest(const mmk_lane *lane);

/* Make a handle on mmk_lane_bytes(capacity) bytes of shared memory at base, aligned to 64. */
MMK_API void mmk_lane_attach(mmk_lane *lane, void *base, uint64_t capacity, bool single);

/* ---- the writer ---- */

/* Become the writer. owner: who (mmk_process_self). returns 0, or -EBUSY: there is one. */
MMK_API MMK_MUST_CHECK int mmk_lane_claim(mmk_lane *lane, uint64_t owner);

/* Stop being the writer; what was committed stays. pre: every reservation was committed or abandoned. */
MMK_API void mmk_lane_release(mmk_lane *lane);

/* Get room for a message. Any number of messages may be reserved and not yet committed.
 *
 * returns  0             with *message filled
 *          -EAGAIN       no room now
 *          -EMSGSIZE     longer than mmk_lane_longest
 *          -MMK_ECORRUPT somebody else wrote where only the writer may */
MMK_API MMK_MUST_CHECK int mmk_lane_reserve(mmk_lane *lane, size_t length, mmk_message *message);

/* Make a message visible: one release store. */
MMK_API void mmk_lane_commit(mmk_lane *lane, const mmk_message *message);

/* The same, sequentially consistent: a later look for parked readers cannot come before it. */
MMK_API void mmk_lane_commit_ordered(mmk_lane *lane, const mmk_message *message);

/* Give up a reservation: readers pass over it. Sequentially consistent, since it may uncover messages behind it. */
MMK_API void mmk_lane_abandon(mmk_lane *lane, const mmk_message *message);

/* What a writer without room waits for: that one message is done. */
typedef struct mmk_lane_wait {
    _Atomic uint64_t *word; /* NULL: there may be room, try again */
    uint64_t done;          /* what the word will be */
    uint32_t request;       /* its number, as it stands in lane->shared->room */
} mmk_lane_wait;

/* Choose what to wait for; -EAGAIN came before. One of the calls that the caller serialises.
 *
 * patient  until half of what is under way is done, which spares wakes; else the oldest message only */
MMK_API void mmk_lane_plan_wait(mmk_lane *lane, bool patient, mmk_lane_wait *wait);

/* Has it happened? */
MMK_API bool mmk_lane_wait_is_over(const mmk_lane_wait *wait);

/* Tell the readers that the writer is about to sleep for it. Where another thread of the writer waits for an earlier
 * message already, that one's request stays: its end wakes all, and there is no room before it.
 *
 * returns  0: it has happened meanwhile; else the value to futex-wait for at &lane->shared->room, in slices: a reader
 *          may die between finishing and waking */
MMK_API MMK_MUST_CHECK uint32_t mmk_lane_announce_wait(mmk_lane *lane, const mmk_lane_wait *wait);

/* ---- readers ---- */

/* Take the next message.
 *
 * pre      reader < MMK_LANE_READERS, the caller's alone
 * returns  0             with *message filled; its bytes stay until finish or give_back
 *          -EAGAIN       nothing is there
 *          -MMK_ECORRUPT the lane holds what no lane can hold */
MMK_API MMK_MUST_CHECK int mmk_lane_take(mmk_lane *lane, unsigned reader, mmk_message *message);

/* Would take find something to do? Never misses a message that was committed, in the order of sequentially
 * consistent operations, before the call. */
MMK_API bool mmk_lane_has_news(const mmk_lane *lane);

/* Be done with a message that was taken: its room is free. returns whether the writer waits: wake it
 * (all waiters at &lane->shared->room). */
MMK_API MMK_MUST_CHECK bool mmk_lane_finish(mmk_lane *lane, const mmk_message *message);

/* Put a message that was taken back: it will be taken again, by anybody, perhaps after later ones. */
MMK_API void mmk_lane_give_back(mmk_lane *lane, const mmk_message *message);

/* ---- after deaths ---- */

/* Mend what a dead reader has left: what it had taken is put back (redeliver) or done.
 *
 * pre      the reader is dead; one caller at a time, and whoever comes after a caller that died calls again
 * returns  the number of messages mended; whoever may wait for them or for room is to be woken */
MMK_API size_t mmk_lane_mend_reader(mmk_lane *lane, unsigned reader, bool redeliver);

/* Mend what a dead writer has left, and make the lane free: reservations are passed over.
 * pre: as above. returns the number of reservations that were never committed. */
MMK_API size_t mmk_lane_mend_writer(mmk_lane *lane, uint64_t owner);

#endif
