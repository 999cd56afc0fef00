#include <mmkit/channel.h>

#include <errno.h>
#include <limits.h>
#include <sched.h>

#include "channel_internal.h"
#include "steps.h"

enum {
    BURST = 32,               /* messages in a row from one lane while others may have some */
    VAIN_SPINS = 3,           /* so many in a row, and spinning is given up … */
    TRY_AGAIN = 16,           /* … but for every so many-th wait */
    LOOKS_A_CLOCK = 16,       /* looks between two looks at the clock: reading it takes as long as several */
    TAKES_A_CLOCK = 63,       /* takes between two looks at it, at most */
    SHORT_SLEEP = 1000000,    /* ns: somebody mends, or adds a lane */
    BYTES_A_NS = 8,           /* that a peer reads and writes, when it has to do with large messages … */
    LONGER_AT_MOST = 1000000, /* … ns, whatever their size */
};

int channel_forget_parent(mmk_channel *channel)
{
    mmk_process self;
    uint64_t namespace;
    int error = mmk_process_self(&self);
    if (!error)
        error = mmk_process_namespace(&namespace);
    if (error)
        return error;
    /* Also of a channel that was open before: a parent may have called unshare(2). */
    if (channel->header->namespaces != namespace)
        return -MMK_EOTHERPIDS;
    channel->owner = self.start << CLAIM_PID_BITS | self.pid;
    channel->generation = atomic_load(&mmk_process_generation);
    channel->lane = -1;
    channel->reader = -1;
    /* The thread that was at it is not here. */
    atomic_store(&channel->mapping, false);
    return 0;
}

static int know_self(mmk_channel *channel)
{
    uint32_t generation = atomic_load_explicit(&mmk_process_generation, memory_order_relaxed);
    return __builtin_expect(channel->generation == generation, true) ? 0 : channel_forget_parent(channel);
}

static unsigned mapped(mmk_channel *channel)
{
    return atomic_load_explicit(&channel->mapped, memory_order_acquire);
}

static bool has_unmapped_lanes(mmk_channel *channel)
{
    return step_read_ordered(&channel->header->lanes) != mapped(channel);
}

/* ---- the bell ----------------------------------------------------------------------------------------- */

/* The bell is a count of rings, times two, and whether somebody may be parked. Who is about to park waits for the count
 * that it saw before it looked for messages: were it a flag only, another who parks after a ring would make it look as
 * if there had been none. */
static uint32_t announce_parking(mmk_channel *channel)
{
    _Atomic uint32_t *bell = &channel->header->bell;
    uint32_t seen = step_read32_ordered(bell);
    while (!(seen & 1) && !step_swap32(bell, seen, seen | 1))
        seen = step_read32_ordered(bell);
    return seen | 1;
}

/* pre: what is to be noticed was published by a sequentially consistent step. */
void channel_ring(mmk_channel *channel, int count)
{
    _Atomic uint32_t *bell = &channel->header->bell;
    for (uint32_t seen = step_read32_ordered(bell); seen & 1; seen = step_read32_ordered(bell))
        if (step_swap32(bell, seen, seen + 1)) {
            step_wake(bell, count);
            return;
        }
}

static bool has_news(mmk_channel *channel)
{
    if (has_unmapped_lanes(channel))
        return true;
    unsigned count = mapped(channel);
    for (unsigned i = 0; i < count; i++)
        if (mmk_lane_has_news(&channel->lanes[i]))
            return true;
    return false;
}

/* A ring wakes one reader. That one sees to it that no other sleeps while there is more. */
static void pass_on(mmk_channel *channel)
{
    atomic_store_explicit(&channel->was_woken, false, memory_order_relaxed);
    if (has_news(channel))
        channel_ring(channel, 1);
}

/* ---- writing ------------------------------------------------------------------------------------------ */

static int claim_free_lane(mmk_channel *channel)
{
    int error = channel_map_lanes(channel);
    if (error)
        return error;
    unsigned count = mapped(channel);
    for (unsigned i = 0; i < count; i++) {
        error = mmk_lane_claim(&channel->lanes[i], channel->owner);
        if (!error)
            channel->lane = (int)i;
        if (error != -EBUSY)
            return error;
    }
    return -EBUSY;
}

static bool may_have_more_lanes(mmk_channel *channel)
{
    return !(channel->flags & MMK_CHANNEL_SINGLE) && mapped(channel) < MMK_CHANNEL_WRITERS;
}

static int become_writer(mmk_channel *channel)
{
    int error = claim_free_lane(channel);
    if (error != -EBUSY)
        return error;
    int mended = mmk_channel_mend(channel);
    if (mended >= 0)
        error = claim_free_lane(channel);
    if (error == -EBUSY && may_have_more_lanes(channel))
        return -MMK_ENOLANE;
    /* Who is mending may free one. */
    return error == -EBUSY && mended < 0 ? mended : error;
}

int mmk_channel_reserve(mmk_channel *channel, size_t length, mmk_channel_message *message)
{
    int error = know_self(channel);
    if (!error && channel->lane < 0)
        error = become_writer(channel);
    if (error)
        return error;
    message->lane = (unsigned)channel->lane;
    return mmk_lane_reserve(&channel->lanes[channel->lane], length, &message->message);
}

void mmk_channel_commit(mmk_channel *channel, const mmk_channel_message *message)
{
    mmk_lane_commit_ordered(&channel->lanes[message->lane], &message->message);
    channel_ring(channel, 1);
}

void mmk_channel_abandon(mmk_channel *channel, const mmk_channel_message *message)
{
    mmk_lane_abandon(&channel->lanes[message->lane], &message->message);
    channel_ring(channel, 1);
}

/* ---- reading ------------------------------------------------------------------------------------------ */

static int claim_free_reader(mmk_channel *channel)
{
    unsigned most = channel->flags & MMK_CHANNEL_SINGLE ? 1 : MMK_CHANNEL_READERS;
    for (unsigned i = 0; i < most; i++)
        if (step_swap(&channel->header->readers[i], 0, channel->owner)) {
            channel->reader = (int)i;
            return 0;
        }
    return -EBUSY;
}

static int become_reader(mmk_channel *channel)
{
    int error = claim_free_reader(channel);
    if (!error)
        return 0;
    int mended = mmk_channel_mend(channel);
    return mended < 0 ? mended : claim_free_reader(channel);
}

/* Lanes take turns; one that is found empty passes its turn on at once. */
static int take_from_lanes(mmk_channel *channel, mmk_channel_message *message)
{
    unsigned count = mapped(channel);
    unsigned lane = atomic_load_explicit(&channel->next, memory_order_relaxed);
    for (unsigned looks = 0; looks <= count; looks++) {
        if (lane >= count)
            lane = 0;
        unsigned in_a_row = atomic_load_explicit(&channel->in_a_row, memory_order_relaxed);
        if (in_a_row < BURST) {
            int error = mmk_lane_take(&channel->lanes[lane], (unsigned)channel->reader, &message->message);
            if (error != -EAGAIN) {
                message->lane = lane;
                atomic_store_explicit(&channel->last_length, message->message.length, memory_order_relaxed);
                atomic_store_explicit(&channel->in_a_row, in_a_row + 1, memory_order_relaxed);
                return error;
            }
        }
        atomic_store_explicit(&channel->in_a_row, 0, memory_order_relaxed);
        atomic_store_explicit(&channel->next, ++lane, memory_order_relaxed);
    }
    return -EAGAIN;
}

/* returns whether it was. */
static bool mend_when_due(mmk_channel *channel)
{
    uint64_t now = step_now();
    /* A signal ends a slice, too, and there may be many. */
    if (now - atomic_load_explicit(&channel->last_mend, memory_order_relaxed) < MMK_SLICE / 2)
        return false;
    atomic_store_explicit(&channel->last_mend, now, memory_order_relaxed);
    (void)mmk_channel_mend(channel);
    return true;
}

/* Who always finds a message never sleeps, and has to look around all the same. Reading the clock takes a quarter of
 * the time of taking a message: where messages follow each other quickly, it is read for every 64th. */
static void look_around(mmk_channel *channel)
{
    unsigned left = atomic_load_explicit(&channel->takes_left, memory_order_relaxed);
    if (__builtin_expect(left > 0, true)) {
        atomic_store_explicit(&channel->takes_left, left - 1, memory_order_relaxed);
        return;
    }
    unsigned pause = atomic_load_explicit(&channel->takes_a_clock, memory_order_relaxed);
    pause = mend_when_due(channel) ? 0 : pause < TAKES_A_CLOCK ? 2 * pause + 1 : pause;
    atomic_store_explicit(&channel->takes_a_clock, pause, memory_order_relaxed);
    atomic_store_explicit(&channel->takes_left, pause, memory_order_relaxed);
}

int mmk_channel_take(mmk_channel *channel, mmk_channel_message *message)
{
    int error = know_self(channel);
    if (!error && channel->reader < 0)
        error = become_reader(channel);
    if (!error)
        look_around(channel);
    if (!error && has_unmapped_lanes(channel))
        error = channel_map_lanes(channel);
    if (!error)
        error = take_from_lanes(channel, message);
    if (!error && atomic_load_explicit(&channel->was_woken, memory_order_relaxed))
        pass_on(channel);
    return error;
}

void mmk_channel_finish(mmk_channel *channel, const mmk_channel_message *message)
{
    mmk_lane *lane = &channel->lanes[message->lane];
    if (mmk_lane_finish(lane, &message->message))
        step_wake(&lane->shared->room, INT_MAX);
}

void mmk_channel_give_back(mmk_channel *channel, const mmk_channel_message *message)
{
    mmk_lane_give_back(&channel->lanes[message->lane], &message->message);
    channel_ring(channel, 1);
}

/* ---- waiting ------------------------------------------------------------------------------------------ */

static void pause_a_moment(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

typedef bool looks_good(mmk_channel *channel, const mmk_channel_wait *wait);

static bool look_until(looks_good *is_so, mmk_channel *channel, const mmk_channel_wait *wait, uint64_t end)
{
    do
        for (int looks = 0; looks < LOOKS_A_CLOCK; looks++) {
            if (is_so(channel, wait))
                return true;
            pause_a_moment();
        }
    while (mmk_now() < end);
    return false;
}

/* Look again and again for so long, unless that was in vain lately: a peer on this very processor cannot do anything
 * while we spin, and one that takes its time is better waited for asleep. */
static bool spin(looks_good *is_so, mmk_channel *channel, const mmk_channel_wait *wait, uint64_t spin_ns,
                 uint64_t deadline_ns)
{
    if (!spin_ns)
        return false;
    atomic_uint *in_vain = wait ? &channel->vain_room_spins : &channel->vain_message_spins;
    unsigned before = atomic_load_explicit(in_vain, memory_order_relaxed);
    uint64_t now = mmk_now(), left = deadline_ns > now ? deadline_ns - now : 0;
    bool found = false;
    if (before < VAIN_SPINS || before % TRY_AGAIN == 0)
        found = look_until(is_so, channel, wait, now + (spin_ns < left ? spin_ns : left));
    atomic_store_explicit(in_vain, found ? 0 : before + 1, memory_order_relaxed);
    return found;
}

static int after_sleep(mmk_channel *channel, int error)
{
    if (error == -EAGAIN)
        (void)mend_when_due(channel);
    return error;
}

/* Nobody says when a lane has been added, or a claim set free. */
static int sleep_briefly(uint64_t deadline_ns)
{
    _Atomic uint32_t nobody_wakes_us = 0;
    uint64_t soon = mmk_now() + SHORT_SLEEP;
    int error = step_sleep(&nobody_wakes_us, 0, soon < deadline_ns ? soon : deadline_ns);
    return error == -ETIMEDOUT && soon < deadline_ns ? -EAGAIN : error;
}

static bool message_is_there(mmk_channel *channel, const mmk_channel_wait *unused)
{
    (void)unused;
    return has_news(channel);
}

/* The next message is taken to be like the last: who makes a large one, perhaps of one that it reads, is at it for
 * longer than the time in which a small one is answered. */
static uint64_t spin_for_message(const mmk_channel *channel, uint64_t spin_ns)
{
    uint64_t longer = atomic_load_explicit(&channel->last_length, memory_order_relaxed) / BYTES_A_NS;
    return spin_ns ? spin_ns + (longer < LONGER_AT_MOST ? longer : LONGER_AT_MOST) : 0;
}

int mmk_channel_await_message(mmk_channel *channel, uint64_t spin_ns, uint64_t deadline_ns)
{
    if (channel->reader < 0)
        return sleep_briefly(deadline_ns);
    if (spin(message_is_there, channel, NULL, spin_for_message(channel, spin_ns), deadline_ns))
        return 0;
    uint32_t seen = announce_parking(channel);
    if (has_news(channel))
        return 0;
    int error = step_sleep(&channel->header->bell, seen, deadline_ns);
    if (!error && !(channel->flags & MMK_CHANNEL_SINGLE)) {
        /* Others may sleep on, and nobody would know. */
        (void)announce_parking(channel);
        atomic_store_explicit(&channel->was_woken, true, memory_order_relaxed);
    }
    return after_sleep(channel, error);
}

void mmk_channel_plan_wait(mmk_channel *channel, bool patient, mmk_channel_wait *wait)
{
    wait->lane = channel->lane;
    if (channel->lane >= 0)
        mmk_lane_plan_wait(&channel->lanes[channel->lane], patient, &wait->wait);
}

static bool room_is_there(mmk_channel *unused, const mmk_channel_wait *wait)
{
    (void)unused;
    return mmk_lane_wait_is_over(&wait->wait);
}

int mmk_channel_await_room(mmk_channel *channel, const mmk_channel_wait *wait, uint64_t spin_ns, uint64_t deadline_ns)
{
    if (wait->lane < 0)
        return sleep_briefly(deadline_ns);
    if (room_is_there(channel, wait) || spin(room_is_there, channel, wait, spin_ns, deadline_ns))
        return 0;
    mmk_lane *lane = &channel->lanes[wait->lane];
    uint32_t request = mmk_lane_announce_wait(lane, &wait->wait);
    if (!request)
        return 0;
    return after_sleep(channel, step_sleep(&lane->shared->room, request, deadline_ns));
}
