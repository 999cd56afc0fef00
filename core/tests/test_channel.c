#include <mmkit/channel.h>

#include <sched.h>
#include <signal.h>
#include <stdint.h>

#include <mmkit/futex.h>

#include "channels.h"
#include "support.h"

enum { CAPACITY = 8192, MESSAGES = UNDER_TSAN ? 3000 : 20000 };

static mmk_channel channel;

static void fresh_channel(uint32_t flags)
{
    CHECK(mmk_channel_attach(&channel, fresh_file(CAPACITY, flags)) == 0);
}

static mmk_channel_message reserve(mmk_channel *from, size_t length)
{
    mmk_channel_message message;
    int error;
    bool patient = true;
    while ((error = reserve_now(from, length, &message)) == -EAGAIN) {
        mmk_channel_wait wait;
        mmk_channel_plan_wait(from, patient, &wait);
        (void)!mmk_channel_await_room(from, &wait, 0, MMK_FOREVER);
        patient = false;
    }
    CHECK(error == 0);
    return message;
}

static void send_number(mmk_channel *to, unsigned number, size_t length)
{
    mmk_channel_message message = reserve(to, sizeof number + length);
    memcpy(message.message.data, &number, sizeof number);
    memset(message.message.data + sizeof number, (int)number, length);
    mmk_channel_commit(to, &message);
}

static mmk_channel_message take(mmk_channel *from)
{
    mmk_channel_message message;
    int error;
    while ((error = mmk_channel_take(from, &message)) == -EAGAIN)
        (void)!mmk_channel_await_message(from, 0, MMK_FOREVER);
    CHECK(error == 0);
    return message;
}

static unsigned number_of(const mmk_channel_message *message)
{
    unsigned number;
    memcpy(&number, message->message.data, sizeof number);
    CHECK(all_bytes_are(message->message.data + sizeof number, message->message.length - sizeof number, (int)number));
    return number;
}

static unsigned receive_number(mmk_channel *from)
{
    mmk_channel_message message = take(from);
    unsigned number = number_of(&message);
    mmk_channel_finish(from, &message);
    return number;
}

/* ---- threads on one handle: one mapping, so that ThreadSanitizer sees both sides ---- */

enum { READERS = 3 };

static atomic_uchar received[MESSAGES];

static void *receive_until_told(void *unused)
{
    unsigned number;
    while ((number = receive_number(&channel)) != UINT32_MAX)
        CHECK(atomic_fetch_add(&received[number], 1) == 0);
    return unused;
}

static void run_threads(uint32_t flags, int readers)
{
    fresh_channel(flags);
    memset((void *)received, 0, sizeof received);
    pthread_t threads[READERS];
    /* The first take makes the claim: before there are threads. */
    mmk_channel_message message;
    CHECK(mmk_channel_take(&channel, &message) == -EAGAIN);
    for (int i = 0; i < readers; i++)
        CHECK(pthread_create(&threads[i], NULL, receive_until_told, NULL) == 0);
    for (unsigned i = 0; i < MESSAGES; i++)
        send_number(&channel, i, i % 700);
    for (int i = 0; i < readers; i++)
        send_number(&channel, UINT32_MAX, 0);
    for (int i = 0; i < readers; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (unsigned i = 0; i < MESSAGES; i++)
        CHECK(atomic_load(&received[i]) == 1);
    mmk_channel_close(&channel);
}

TEST(threads_receive_each_message_once_and_sleep_and_wake_each_other)
{
    run_threads(0, READERS);
}

TEST(a_single_channel_does_the_same_with_one_reader)
{
    run_threads(MMK_CHANNEL_SINGLE, 1);
}

/* ---- processes ---- */

static pid_t fork_child(void body(void))
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(CHILD_SECONDS);
        body();
        _exit(0);
    }
    return child;
}

static int end_of(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

enum { CHILDREN = 2, OF_EACH = 3000 };

static unsigned child_number;

static void send_thousands(void)
{
    for (unsigned i = 0; i < OF_EACH; i++)
        send_number(&channel, child_number << 16 | i, i % 500);
}

TEST(messages_of_several_processes_arrive_each_process_in_order)
{
    fresh_channel(0);
    pid_t children[CHILDREN];
    for (child_number = 0; child_number < CHILDREN; child_number++)
        children[child_number] = fork_child(send_thousands);
    unsigned next[CHILDREN] = {0};
    for (unsigned i = 0; i < CHILDREN * OF_EACH; i++) {
        unsigned number = receive_number(&channel);
        CHECK(number >> 16 < CHILDREN && (number & 0xffff) == next[number >> 16]++);
    }
    for (unsigned i = 0; i < CHILDREN; i++)
        CHECK(end_of(children[i]) == 0);
    mmk_channel_close(&channel);
}

static void take_and_be_killed(void)
{
    (void)take(&channel);
    reserve(&channel, 10);
    kill(getpid(), SIGKILL);
}

TEST(the_killed_are_found_and_what_they_had_is_mended)
{
    fresh_channel(0);
    send_number(&channel, 1, 100);
    send_number(&channel, 2, 100);
    CHECK(end_of(fork_child(take_and_be_killed)) == SIGKILL);
    CHECK(mmk_channel_mend(&channel) == 2);
    CHECK(mmk_channel_mend(&channel) == 0);
    unsigned first = receive_number(&channel), second = receive_number(&channel);
    CHECK(first + second == 3);
    mmk_channel_close(&channel);
}

/* Slices of their sleep would end, too, but what was mended is there now. */
TEST(whoever_mends_wakes_readers_and_writers_that_sleep)
{
    fresh_channel(0);
    send_number(&channel, 1, 100);
    CHECK(end_of(fork_child(take_and_be_killed)) == SIGKILL);
    enum { SOMEBODY_SLEEPS = 1, FIRST_IS_AWAITED = 1 };
    atomic_store(&channel.header->bell, SOMEBODY_SLEEPS);
    atomic_store(&channel.lanes[0].shared->room, FIRST_IS_AWAITED);
    CHECK(mmk_channel_mend(&channel) == 2);
    CHECK(atomic_load(&channel.header->bell) == 2);
    CHECK(atomic_load(&channel.lanes[0].shared->room) == 0);
    mmk_channel_close(&channel);
}

static void use_the_parents_handle(void)
{
    CHECK(receive_number(&channel) == 7);
    send_number(&channel, 8, 0);
    mmk_channel_close(&channel);
}

TEST(a_child_makes_claims_of_its_own_and_gives_up_only_those)
{
    fresh_channel(0);
    send_number(&channel, 6, 0);
    CHECK(receive_number(&channel) == 6);
    uint64_t writer = channel.lanes[0].shared->owner, reader = channel.header->readers[0];
    send_number(&channel, 7, 0);
    CHECK(end_of(fork_child(use_the_parents_handle)) == 0);
    CHECK(writer && channel.lanes[0].shared->owner == writer);
    CHECK(reader && channel.header->readers[0] == reader && channel.header->readers[1] == 0);
    CHECK(receive_number(&channel) == 8);
    CHECK(channel.lanes[1].shared->owner == 0);
    mmk_channel_close(&channel);
}

static void find_a_lane_that_came_later(void)
{
    mmk_channel later;
    CHECK(mmk_channel_attach(&later, dup(channel.fd)) == 0);
    send_number(&later, 1, 0);
    mmk_channel_message message;
    int error;
    for (int i = 0; i < 10 && (error = mmk_channel_take(&channel, &message)) == -EAGAIN; i++)
        (void)!mmk_channel_await_message(&channel, 0, MMK_FOREVER);
    CHECK(error == 0 && number_of(&message) == 1);
}

TEST(a_child_forked_while_a_thread_mapped_lanes_maps_them_itself)
{
    fresh_channel(0);
    mmk_channel_message message = reserve(&channel, 1);
    atomic_store(&channel.mapping, true);
    CHECK(end_of(fork_child(find_a_lane_that_came_later)) == 0);
    atomic_store(&channel.mapping, false);
    mmk_channel_abandon(&channel, &message);
    mmk_channel_close(&channel);
}

/* ---- files ---- */

static int attach(int fd)
{
    mmk_channel other;
    int error = mmk_channel_attach(&other, fd);
    if (!error)
        mmk_channel_close(&other);
    return error;
}

TEST(what_is_no_channel_is_refused)
{
    CHECK(attach(memory_file(0)) == -MMK_ECORRUPT);
    CHECK(attach(memory_file(1 << 20)) == -MMK_ECORRUPT);
    int ends[2];
    CHECK(pipe(ends) == 0 && attach(ends[0]) == -MMK_ECORRUPT && close(ends[1]) == 0);
    CHECK(attach(-1) == -EBADF);
    int fd = fresh_file(CAPACITY, 0);
    CHECK(ftruncate(fd, (off_t)size_of(fd) - 1) == 0 && attach(fd) == -MMK_ECORRUPT);
    fd = fresh_file(CAPACITY, 0);
    uint32_t version = MMK_CHANNEL_VERSION + 1;
    CHECK(pwrite(fd, &version, sizeof version, 8) == sizeof version && attach(fd) == -MMK_EFORMAT);
    CHECK(attach(fresh_file(CAPACITY, 0)) == 0);
}

TEST(a_capacity_or_flags_out_of_bounds_are_refused)
{
    int fd = memory_file(0);
    CHECK(mmk_channel_format(fd, 0, 0) == -EINVAL);
    CHECK(mmk_channel_format(fd, MMK_LANE_CAPACITY_MIN - 1, 0) == -EINVAL);
    CHECK(mmk_channel_format(fd, MMK_LANE_CAPACITY_MAX + 1, 0) == -EINVAL);
    CHECK(mmk_channel_format(fd, CAPACITY, 4) == -EINVAL);
    CHECK(size_of(fd) == 0);
    CHECK(mmk_channel_format(fd, MMK_LANE_CAPACITY_MIN, 0) == -EINVAL);
    CHECK(ftruncate(fd, (off_t)mmk_channel_bytes(MMK_LANE_CAPACITY_MIN + 1, 1)) == 0);
    CHECK(mmk_channel_format(fd, MMK_LANE_CAPACITY_MIN + 1, 0) == 0);
    CHECK(mmk_channel_attach(&channel, fd) == 0);
    CHECK(channel.capacity == MMK_LANE_CAPACITY_MIN + MMK_LANE_UNIT);
    mmk_channel_close(&channel);
}

TEST(a_file_that_was_shortened_gets_no_further_lane)
{
    fresh_channel(0);
    mmk_channel other;
    CHECK(mmk_channel_attach(&other, dup(channel.fd)) == 0);
    atomic_store(&channel.header->lanes, 2);
    mmk_channel_message message;
    CHECK(mmk_channel_take(&other, &message) == -MMK_ECORRUPT);
    CHECK(mmk_channel_reserve(&other, 1, &message) == -MMK_ECORRUPT);
    mmk_channel_close(&other);
    mmk_channel_close(&channel);
}

int main(void)
{
    alarm(110);
    RUN(threads_receive_each_message_once_and_sleep_and_wake_each_other);
    RUN(a_single_channel_does_the_same_with_one_reader);
    RUN(messages_of_several_processes_arrive_each_process_in_order);
    RUN(the_killed_are_found_and_what_they_had_is_mended);
    RUN(whoever_mends_wakes_readers_and_writers_that_sleep);
    RUN(a_child_makes_claims_of_its_own_and_gives_up_only_those);
    RUN(a_child_forked_while_a_thread_mapped_lanes_maps_them_itself);
    RUN(what_is_no_channel_is_refused);
    RUN(a_capacity_or_flags_out_of_bounds_are_refused);
    RUN(a_file_that_was_shortened_gets_no_further_lane);
    return 0;
}
