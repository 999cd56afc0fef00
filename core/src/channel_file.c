#include <mmkit/channel.h>

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <mmkit/process.h>
#include <mmkit/sys.h>

#include "channel_internal.h"
#include "steps.h"

enum { ALL_FLAGS = MMK_CHANNEL_SINGLE | MMK_CHANNEL_AT_MOST_ONCE };

static uint64_t end_of_lanes(uint64_t lane_bytes, uint64_t count)
{
    return MMK_CHANNEL_HEADER + lane_bytes * count;
}

uint64_t mmk_channel_bytes(uint64_t capacity, unsigned lanes)
{
    return end_of_lanes(mmk_lane_bytes(mmk_round_up(capacity, MMK_LANE_UNIT)), lanes);
}

static int file_size(int fd, uint64_t *size)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    if (!S_ISREG(status.st_mode))
        return -MMK_ECORRUPT;
    *size = (uint64_t)status.st_size;
    return 0;
}

static int check_size(int fd, uint64_t least)
{
    uint64_t size = 0;
    int error = file_size(fd, &size);
    return error ? error : size < least ? -EINVAL : 0;
}

static int write_whole(int fd, const void *bytes, size_t length)
{
    ssize_t written = pwrite(fd, bytes, length, 0);
    if (written < 0)
        return -errno;
    return (size_t)written == length ? 0 : -ENOSPC;
}

int mmk_channel_format(int fd, uint64_t capacity, uint32_t flags)
{
    if (capacity < MMK_LANE_CAPACITY_MIN || capacity > MMK_LANE_CAPACITY_MAX || (flags & ~(uint32_t)ALL_FLAGS))
        return -EINVAL;
    mmk_process self;
    mmk_channel_header header = {.magic = MMK_CHANNEL_MAGIC, .version = MMK_CHANNEL_VERSION, .flags = flags};
    int error = check_size(fd, mmk_channel_bytes(capacity, 1));
    if (!error)
        error = mmk_process_self(&self);
    if (!error)
        error = mmk_process_namespace(&header.namespaces);
    if (error)
        return error;
    header.creator = self.start << CLAIM_PID_BITS | self.pid;
    header.capacity = mmk_round_up(capacity, MMK_LANE_UNIT);
    header.lane_bytes = mmk_lane_bytes(header.capacity);
    header.lanes = 1;
    return write_whole(fd, &header, sizeof header);
}

/* ---- opening ------------------------------------------------------------------------------------------ */

static int map_part(int fd, uint64_t offset, size_t length, void **part)
{
    intptr_t address = mmk_sys_mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    if (address < 0 && address > -4096)
        return (int)address;
    *part = (void *)address;
    return 0;
}

/* The sizes are copied once they are checked: whoever shares the file can change them any time. */
static int check_header(mmk_channel *channel, uint64_t size)
{
    const mmk_channel_header *header = channel->header;
    if (memcmp(header->magic, MMK_CHANNEL_MAGIC, sizeof header->magic) != 0)
        return -MMK_ECORRUPT;
    if (header->version != MMK_CHANNEL_VERSION || (header->flags & ~(uint32_t)ALL_FLAGS))
        return -MMK_EFORMAT;
    channel->flags = header->flags;
    channel->capacity = header->capacity;
    channel->lane_bytes = header->lane_bytes;
    bool fits = channel->capacity >= MMK_LANE_CAPACITY_MIN && channel->capacity <= MMK_LANE_CAPACITY_MAX &&
                channel->capacity % MMK_LANE_UNIT == 0 && channel->lane_bytes == mmk_lane_bytes(channel->capacity) &&
                end_of_lanes(channel->lane_bytes, 1) <= size;
    return fits ? 0 : -MMK_ECORRUPT;
}

static int open_file(mmk_channel *channel)
{
    uint64_t size;
    int error = file_size(channel->fd, &size);
    if (!error && size < MMK_CHANNEL_HEADER)
        error = -MMK_ECORRUPT;
    if (!error)
        error = map_part(channel->fd, 0, MMK_CHANNEL_HEADER, (void **)&channel->header);
    if (!error)
        error = check_header(channel, size);
    if (!error)
        error = channel_forget_parent(channel);
    return error ? error : channel_map_lanes(channel);
}

int mmk_channel_attach(mmk_channel *channel, int fd)
{
    memset(channel, 0, sizeof *channel);
    channel->fd = fd;
    channel->lane = -1;
    channel->reader = -1;
    int error = open_file(channel);
    if (error)
        mmk_channel_close(channel);
    return error;
}

static void give_up_claims(mmk_channel *channel)
{
    /* In a child they are the parent's. */
    if (channel->generation != atomic_load(&mmk_process_generation))
        return;
    if (channel->lane >= 0)
        mmk_lane_release(&channel->lanes[channel->lane]);
    if (channel->reader >= 0)
        step_publish(&channel->header->readers[channel->reader], 0);
}

void mmk_channel_leave(mmk_channel *channel)
{
    if (channel->fd < 0)
        return;
    give_up_claims(channel);
    if (channel->header)
        (void)mmk_sys_munmap(channel->header, MMK_CHANNEL_HEADER);
    close(channel->fd);
    channel->header = NULL;
    channel->fd = -1;
}

void mmk_channel_close(mmk_channel *channel)
{
    if (channel->fd < 0)
        return;
    mmk_channel_leave(channel);
    for (unsigned i = 0; i < channel->mapped; i++)
        (void)mmk_sys_munmap(channel->lanes[i].shared, channel->lane_bytes);
}

/* ---- lanes -------------------------------------------------------------------------------------------- */

static int map_lane(mmk_channel *channel, unsigned index)
{
    void *part;
    int error = map_part(channel->fd, end_of_lanes(channel->lane_bytes, index), channel->lane_bytes, &part);
    if (!error)
        mmk_lane_attach(&channel->lanes[index], part, channel->capacity, channel->flags & MMK_CHANNEL_SINGLE);
    return error;
}

static int map_up_to(mmk_channel *channel, uint64_t count)
{
    uint64_t size;
    int error = file_size(channel->fd, &size);
    /* Of a shortened file nothing beyond its end is touched. */
    if (!error &&
        (count < channel->mapped || count > MMK_CHANNEL_WRITERS || end_of_lanes(channel->lane_bytes, count) > size))
        error = -MMK_ECORRUPT;
    while (!error && channel->mapped < count) {
        error = map_lane(channel, channel->mapped);
        if (!error)
            atomic_fetch_add_explicit(&channel->mapped, 1, memory_order_release);
    }
    return error;
}

int channel_map_lanes(mmk_channel *channel)
{
    uint64_t count = step_read(&channel->header->lanes);
    if (count == channel->mapped)
        return 0;
    /* Another thread is at it: it will be there at the next look. */
    if (atomic_exchange(&channel->mapping, true))
        return 0;
    int error = map_up_to(channel, count);
    atomic_store(&channel->mapping, false);
    return error;
}

int mmk_channel_add_lane(mmk_channel *channel, unsigned lanes)
{
    int error =
        lanes < MMK_CHANNEL_WRITERS ? check_size(channel->fd, end_of_lanes(channel->lane_bytes, lanes + 1)) : -EINVAL;
    if (error)
        return error;
    /* Or another was quicker. */
    (void)step_swap(&channel->header->lanes, lanes, lanes + 1);
    return channel_map_lanes(channel);
}
