"""core/include/mmkit/channel.h and what it stands on."""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "mmkit/process.h" nogil:
    uint32_t mmk_process_generation

cdef extern from "mmkit/lane.h" nogil:
    uint64_t MMK_LANE_CAPACITY_MIN
    uint64_t MMK_LANE_CAPACITY_MAX

    ctypedef struct mmk_lane:
        uint32_t units

    ctypedef struct mmk_message:
        char *data
        size_t length
        uint64_t number

    size_t mmk_lane_longest(const mmk_lane *lane)

cdef extern from "mmkit/channel.h" nogil:
    int MMK_ENOLANE
    int MMK_CHANNEL_WRITERS
    int MMK_CHANNEL_READERS
    int MMK_CHANNEL_SINGLE
    int MMK_CHANNEL_AT_MOST_ONCE

    ctypedef struct mmk_channel_header:
        uint64_t creator

    ctypedef struct mmk_channel:
        mmk_channel_header *header
        uint64_t capacity
        uint32_t flags
        int fd
        uint32_t generation
        int lane
        int reader
        unsigned mapped
        mmk_lane *lanes

    ctypedef struct mmk_channel_message:
        mmk_message message
        unsigned lane

    ctypedef struct mmk_channel_wait:
        pass

    uint64_t mmk_channel_bytes(uint64_t capacity, unsigned lanes)
    int mmk_channel_add_lane(mmk_channel *channel, unsigned lanes)
    int mmk_channel_format(int fd, uint64_t capacity, uint32_t flags)
    int mmk_channel_attach(mmk_channel *channel, int fd)
    void mmk_channel_close(mmk_channel *channel)
    void mmk_channel_leave(mmk_channel *channel)
    int mmk_channel_reserve(mmk_channel *channel, size_t length, mmk_channel_message *message)
    void mmk_channel_commit(mmk_channel *channel, const mmk_channel_message *message)
    void mmk_channel_abandon(mmk_channel *channel, const mmk_channel_message *message)
    int mmk_channel_take(mmk_channel *channel, mmk_channel_message *message)
    void mmk_channel_finish(mmk_channel *channel, const mmk_channel_message *message)
    void mmk_channel_give_back(mmk_channel *channel, const mmk_channel_message *message)
    void mmk_channel_plan_wait(mmk_channel *channel, bint patient, mmk_channel_wait *wait)
    int mmk_channel_await_room(mmk_channel *channel, const mmk_channel_wait *wait, uint64_t spin_ns,
                               uint64_t deadline_ns)
    int mmk_channel_await_message(mmk_channel *channel, uint64_t spin_ns, uint64_t deadline_ns)
