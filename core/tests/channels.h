/* channels.h: what those who test channels do as the callers of one do: reserve its space. */
#ifndef MMKIT_TEST_CHANNELS_H
#define MMKIT_TEST_CHANNELS_H

#include <fcntl.h>
#include <sys/mman.h>

#include <mmkit/channel.h>
#include <mmkit/sys.h>

#include "check.h"

static inline int fresh_file(uint64_t capacity, uint32_t flags)
{
    int fd = mmk_sys_memfd_create("channel", MFD_CLOEXEC);
    CHECK(fd >= 0 && posix_fallocate(fd, 0, (off_t)mmk_channel_bytes(capacity, 1)) == 0);
    CHECK(mmk_channel_format(fd, capacity, flags) == 0);
    return fd;
}

/* mmk_channel_reserve, with one lane more where it needs one. */
static inline int reserve_now(mmk_channel *from, size_t length, mmk_channel_message *message)
{
    int error;
    while ((error = mmk_channel_reserve(from, length, message)) == -MMK_ENOLANE) {
        unsigned lanes = from->mapped;
        CHECK(posix_fallocate(from->fd, 0, (off_t)mmk_channel_bytes(from->capacity, lanes + 1)) == 0);
        error = mmk_channel_add_lane(from, lanes);
        if (error)
            return error;
    }
    return error;
}

#endif
