#include <mmkit/channel.h>

#include <errno.h>
#include <limits.h>

#include "channel_internal.h"
#include "steps.h"

static bool enter_mending(mmk_channel *channel)
{
    _Atomic uint64_t *mender = &channel->header->mender;
    uint64_t holder = step_read(mender);
    if (holder && !step_is_gone(holder))
        return false;
    return step_swap(mender, holder, channel->owner);
}

static void leave_mending(mmk_channel *channel)
{
    step_publish(&channel->header->mender, 0);
}

/* The number is free for somebody else only when nothing bears it any more. */
static unsigned mend_reader(mmk_channel *channel, unsigned reader, unsigned lanes)
{
    uint64_t owner = step_read(&channel->header->readers[reader]);
    if (!owner || !step_is_gone(owner))
        return 0;
    for (unsigned i = 0; i < lanes; i++)
        (void)mmk_lane_mend_reader(&channel->lanes[i], reader, !(channel->flags & MMK_CHANNEL_AT_MOST_ONCE));
    step_publish(&channel->header->readers[reader], 0);
    return 1;
}

static unsigned mend_writer(mmk_lane *lane)
{
    uint64_t owner = step_read(&lane->shared->owner);
    if (!owner || !step_is_gone(owner))
        return 0;
    (void)mmk_lane_mend_writer(lane, owner);
    return 1;
}

static void wake_writer(mmk_lane *lane)
{
    if (step_exchange32(&lane->shared->room, 0))
        step_wake(&lane->shared->room, INT_MAX);
}

int mmk_channel_mend(mmk_channel *channel)
{
    int error = channel_map_lanes(channel);
    if (error)
        return error;
    if (!enter_mending(channel))
        return -EAGAIN;
    unsigned lanes = atomic_load_explicit(&channel->mapped, memory_order_acquire), gone = 0;
    for (unsigned i = 0; i < MMK_CHANNEL_READERS; i++)
        gone += mend_reader(channel, i, lanes);
    for (unsigned i = 0; i < lanes; i++)
        gone += mend_writer(&channel->lanes[i]);
    leave_mending(channel);
    if (gone) {
        channel_ring(channel, INT_MAX);
        for (unsigned i = 0; i < lanes; i++)
            wake_writer(&channel->lanes[i]);
    }
    return (int)gone;
}
