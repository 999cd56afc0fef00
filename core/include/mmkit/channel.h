/* channel.h: a bounded queue of messages between processes that share a file: many writers, many readers.
 *
 *     file   [ header, 1 page | lane 0 | lane 1 | … ]      a lane (lane.h) for each writer there ever was at one time
 *
 * A handle becomes a writer, with a lane of its own, by its first reservation, and a reader by its first take.
 * Both claims name the process (process.h): a claim whose process has ended is void, and what its holder left is
 * mended by whoever waits or reads next. docs/channel.md draws the format and gives the promises.
 *
 *     writer   reserve ─> write the bytes ─> commit ─> is somebody parked? wake ONE
 *     reader   take ─> read the bytes ─> finish ─> does this lane's writer await just that? wake it
 *              nothing there: spin, then say so in `bell`, look again, futex(2)-wait a slice
 *
 * No call but the waits sleeps, and but for claims, wakes and mending (by whoever takes, some 40 times a second at
 * most) none makes a system call.
 *
 * Threads: reserve, plan_wait, attach and close are serialised by the caller, and so is take where it may make a claim
 *          (the first in a process) or the channel is SINGLE; all else is free.
 * Fork:    a child inherits the mapping and no claim: its first use makes claims of its own. In another PID namespace
 *          than the channel's reserve and take are refused: -MMK_EOTHERPIDS.
 * Signals: none.
 */
#ifndef MMKIT_CHANNEL_H
#define MMKIT_CHANNEL_H

#include <mmkit/lane.h>

enum {
    MMK_CHANNEL_VERSION = 1,
    MMK_CHANNEL_HEADER = 4096,
    MMK_CHANNEL_WRITERS = 256, /* at one time */
    MMK_CHANNEL_READERS = 256,
    /* flags */
    MMK_CHANNEL_SINGLE = 1,       /* one writer, one reader */
    MMK_CHANNEL_AT_MOST_ONCE = 2, /* what a dead reader had taken is gone, not delivered again */
};

/* Why there is no writing: every lane has a living writer, and there may be one lane more. */
enum { MMK_ENOLANE = 4140 };

#define MMK_CHANNEL_MAGIC "mmkchan\n"

typedef struct mmk_channel_header {
    char magic[8];
    uint32_t version;
    uint32_t flags;
    uint64_t capacity;   /* of each lane, in bytes */
    uint64_t lane_bytes; /* from one lane to the next */
    uint64_t namespaces; /* of pids and of time (process.h): claims mean something only there */
    uint64_t creator;
    _Alignas(64) _Atomic uint64_t lanes;                        /* how many the file holds */
    _Atomic uint64_t mender;                                    /* who mends */
    _Alignas(64) _Atomic uint32_t bell;                         /* futex: rings << 1 | readers may be parked */
    _Alignas(64) _Atomic uint64_t readers[MMK_CHANNEL_READERS]; /* who reads; an index is a reader's number */
} mmk_channel_header;

_Static_assert(sizeof(mmk_channel_header) <= MMK_CHANNEL_HEADER, "the header is one page");

/* A process's handle. */
typedef struct mmk_channel {
    mmk_channel_header *header; /* NULL: closed */
    uint64_t capacity;          /* the header's, as they were checked */
    uint64_t lane_bytes;
    uint32_t flags;
    int fd;                     /* owned */
    uint32_t generation;        /* mmk_process_generation of whoever made the claims */
    int lane;                   /* the writer's; -1: none */
    atomic_int reader;          /* -1: none */
    uint64_t owner;             /* what is written into claims */
    _Atomic uint64_t last_mend; /* nanoseconds */
    atomic_size_t last_length;  /* of the message taken last */
    atomic_uint takes_left;     /* before the next look at the clock */
    atomic_uint takes_a_clock;
    atomic_uint next; /* the lane to look at first */
    atomic_uint in_a_row;
    atomic_uint vain_message_spins;
    atomic_uint vain_room_spins;
    atomic_bool was_woken;
    atomic_bool mapping;
    atomic_uint mapped; /* lanes[0 .. mapped) are there */
    mmk_lane lanes[MMK_CHANNEL_WRITERS];
} mmk_channel;

typedef struct mmk_channel_message {
    mmk_message message;
    unsigned lane;
} mmk_channel_message;

/* How many bytes the file of a channel has with so many lanes. The caller reserves them (fallocate(2)), since it takes
 * long, and knows what limits there are: where a store finds no space left, the process gets SIGBUS.
 * pre: capacity is within MMK_LANE_CAPACITY_MIN and _MAX */
MMK_API uint64_t mmk_channel_bytes(uint64_t capacity, unsigned lanes);

/* Make a file of this process's into a channel of one lane: write the header.
 *
 * fd       open for reading and writing, mmk_channel_bytes(capacity, 1) zeros, and no name yet (O_TMPFILE): a creator
 *          that dies here leaves nothing, and nobody meets half a channel
 * returns  0, or what pwrite(2) says
 *          -EINVAL  capacity outside MMK_LANE_CAPACITY_MIN and _MAX, unknown flags, or a shorter file
 *          -ENOENT, …  /proc is not there
 * The capacity is rounded up to whole units. */
MMK_API MMK_MUST_CHECK int mmk_channel_format(int fd, uint64_t capacity, uint32_t flags);

/* Open a channel. The handle owns fd from then on; where this fails, fd is closed.
 *
 * returns  0, or what fstat(2), mmap(2) say
 *          -MMK_ECORRUPT    it is no channel: no magic, or sizes that do not fit the file
 *          -MMK_EFORMAT     made by a version that this one does not know
 *          -MMK_EOTHERPIDS  made in another PID namespace, or another time namespace */
MMK_API MMK_MUST_CHECK int mmk_channel_attach(mmk_channel *channel, int fd);

/* Give up the claims and unmap. pre: no message is reserved or taken, no call runs. Harmless when closed. */
MMK_API void mmk_channel_close(mmk_channel *channel);

/* The same, but the messages stay mapped until the process ends: for a child in which views that its parent's
 * threads made may still be looked at. */
MMK_API void mmk_channel_leave(mmk_channel *channel);

/* ---- writing ---- */

/* Get room for a message; the first call claims a lane.
 *
 * returns  as mmk_lane_reserve, and
 *          -EBUSY  every lane has a living writer (one, with SINGLE)
 *          -EAGAIN also: there was none to be had just now, since somebody mends
 *          -MMK_ENOLANE  there is none, but may be: mmk_channel_add_lane, and try again */
MMK_API MMK_MUST_CHECK int mmk_channel_reserve(mmk_channel *channel, size_t length, mmk_channel_message *message);
/* Have one lane more than `lanes`, of which the caller has reserved the space, up to mmk_channel_bytes(capacity,
 * lanes + 1). Any number of threads and processes at a time: they add one lane. Who dies before has left space that
 * the next one uses.
 *
 * lanes    channel->mapped, as it was before the space was reserved
 * returns  0: there is one more, or another was quicker; or what fstat(2), mmap(2) say
 *          -EINVAL  the file is too short, or the channel has MMK_CHANNEL_WRITERS lanes */
MMK_API MMK_MUST_CHECK int mmk_channel_add_lane(mmk_channel *channel, unsigned lanes);
/* The message is there for readers once this has begun; wakes a parked one. */
MMK_API void mmk_channel_commit(mmk_channel *channel, const mmk_channel_message *message);
MMK_API void mmk_channel_abandon(mmk_channel *channel, const mmk_channel_message *message);

/* ---- reading ---- */

/* Take the next message of any lane; lanes take turns. The first call claims a reader's number.
 *
 * returns  as mmk_lane_take, and
 *          -EBUSY  every number has a living reader (one, with SINGLE)
 *          -EAGAIN also: none was free, and somebody mends */
MMK_API MMK_MUST_CHECK int mmk_channel_take(mmk_channel *channel, mmk_channel_message *message);
MMK_API void mmk_channel_finish(mmk_channel *channel, const mmk_channel_message *message);
MMK_API void mmk_channel_give_back(mmk_channel *channel, const mmk_channel_message *message);

/* ---- waiting ---- */

/* Wait until take, or reserve, is worth trying again: spin, then sleep for at most a slice (futex.h). Whoever has slept
 * a slice for nothing looks for the dead and mends what they left.
 *
 * spin_ns      how long to look before sleeping, at most: after spins in vain only now and then, and for a message
 *              longer, where the last was a large one; 0: not at all
 * deadline_ns  of mmk_now; MMK_FOREVER: none
 * returns  0           try
 *          -EAGAIN     a slice has passed, or a signal came: try, and wait again
 *          -ETIMEDOUT  the deadline has passed. futex(2) */
MMK_API MMK_MUST_CHECK int mmk_channel_await_message(mmk_channel *channel, uint64_t spin_ns, uint64_t deadline_ns);

/* What to wait for when reserve answered -EAGAIN; one of the serialised calls. patient: as mmk_lane_plan_wait, for a
 * first wait; a second one, when the first did not help, is not. */
typedef struct mmk_channel_wait {
    mmk_lane_wait wait;
    int lane; /* -1: there was none to be had */
} mmk_channel_wait;

MMK_API void mmk_channel_plan_wait(mmk_channel *channel, bool patient, mmk_channel_wait *wait);
MMK_API MMK_MUST_CHECK int mmk_channel_await_room(mmk_channel *channel, const mmk_channel_wait *wait, uint64_t spin_ns,
                                                  uint64_t deadline_ns);

/* ---- after deaths ---- */

/* Look for claims of processes that have ended, and mend what they left. At most one process mends at a time; a
 * mender that dies is succeeded.
 *
 * returns  how many claims were void
 *          -EAGAIN  another process mends, which lives, if only stopped
 *          -MMK_ECORRUPT, or as mmap(2): lanes that others added could not be mapped */
MMK_API int mmk_channel_mend(mmk_channel *channel);

#endif
