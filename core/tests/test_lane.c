#include <mmkit/lane.h>

#include <stdint.h>

#include "support.h"

enum { CAPACITY = 8192, LONGEST = CAPACITY / 2, SOMEBODY = 7, ME = 3, ANOTHER = 4 };

static mmk_lane lane;
static void *memory;

/* Exactly as many bytes as a lane has: a sanitizer sees each one beyond. */
static void fresh_lane(bool single)
{
    free(memory);
    size_t bytes = mmk_lane_bytes(CAPACITY);
    CHECK(posix_memalign(&memory, 64, bytes) == 0);
    memset(memory, 0, bytes);
    mmk_lane_attach(&lane, memory, CAPACITY, single);
    CHECK(mmk_lane_claim(&lane, SOMEBODY) == 0);
}

static mmk_message reserve(size_t length)
{
    mmk_message message;
    CHECK(mmk_lane_reserve(&lane, length, &message) == 0);
    CHECK(message.length == length);
    memset(message.data, (int)(message.number % 251), length);
    return message;
}

static void commit(mmk_message message)
{
    mmk_lane_commit(&lane, &message);
}

static mmk_message take(unsigned reader)
{
    mmk_message message;
    CHECK(mmk_lane_take(&lane, reader, &message) == 0);
    CHECK(all_bytes_are(message.data, message.length, (int)(message.number % 251)));
    return message;
}

static bool is_empty(void)
{
    mmk_message message;
    return mmk_lane_take(&lane, ME, &message) == -EAGAIN;
}

static void finish(mmk_message message)
{
    (void)!mmk_lane_finish(&lane, &message);
}

TEST(messages_come_out_whole_and_in_order_through_many_rounds)
{
    for (int single = 0; single < 2; single++) {
        fresh_lane(single);
        uint64_t next = 0;
        for (size_t i = 0; i < 5000; i++) {
            mmk_message message;
            size_t length = (i * 7919) % (LONGEST + 1);
            while (mmk_lane_reserve(&lane, length, &message) == -EAGAIN) {
                message = take(ME);
                CHECK(message.number == next++);
                CHECK(message.length == (message.number * 7919) % (LONGEST + 1));
                finish(message);
            }
            memset(message.data, (int)(message.number % 251), length);
            commit(message);
        }
    }
}

TEST(a_message_is_not_there_before_its_commit)
{
    fresh_lane(false);
    mmk_message first = reserve(10), second = reserve(10);
    CHECK(is_empty() && !mmk_lane_has_news(&lane));
    commit(second);
    CHECK(is_empty());
    commit(first);
    CHECK(mmk_lane_has_news(&lane));
    CHECK(take(ME).number == first.number && take(ANOTHER).number == second.number && is_empty());
}

TEST(what_is_abandoned_is_passed_over_and_its_room_used_again)
{
    fresh_lane(false);
    for (int i = 0; i < 1000; i++) {
        mmk_message given_up = reserve(LONGEST), kept = reserve(LONGEST);
        mmk_lane_abandon(&lane, &given_up);
        commit(kept);
        mmk_message message = take(ME);
        CHECK(message.number == kept.number);
        finish(message);
    }
}

static const char *place_of(mmk_lane *of, size_t length)
{
    mmk_message message;
    CHECK(mmk_lane_reserve(of, length, &message) == 0);
    mmk_lane_commit(of, &message);
    CHECK(mmk_lane_take(of, ME, &message) == 0 && message.length == length);
    (void)!mmk_lane_finish(of, &message);
    return message.data;
}

/* Where they lie decides what they cost, once they are larger than the nearest caches. */
TEST(in_an_emptied_lane_messages_of_pages_stay_where_they_are_and_large_ones_go_round)
{
    enum { WIDE = 8 << 20, QUARTER = 1 << 20 };
    mmk_lane wide;
    void *room;
    CHECK(posix_memalign(&room, 64, mmk_lane_bytes(WIDE)) == 0);
    memset(room, 0, mmk_lane_bytes(WIDE));
    mmk_lane_attach(&wide, room, WIDE, false);
    CHECK(mmk_lane_claim(&wide, SOMEBODY) == 0);
    const char *start = wide.data;
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 4; i++)
            CHECK(place_of(&wide, QUARTER) == start + i * QUARTER);
    CHECK(place_of(&wide, 3 * QUARTER) == start && place_of(&wide, 3 * QUARTER) == start);
    CHECK(place_of(&wide, QUARTER) == start + 3 * QUARTER);
    CHECK(place_of(&wide, 5000) == start && place_of(&wide, 16000) == start);
    free(room);
}

TEST(the_longest_message_fits_wherever_the_lane_was_left)
{
    for (size_t offset = 0; offset <= CAPACITY; offset += MMK_LANE_UNIT) {
        fresh_lane(false);
        mmk_message message;
        for (size_t done = 0; done < offset; done += MMK_LANE_UNIT) {
            commit(reserve(1));
            finish(take(ME));
        }
        message = reserve(LONGEST);
        commit(message);
        CHECK(take(ME).number == message.number);
    }
    mmk_message message;
    CHECK(mmk_lane_longest(&lane) == LONGEST);
    CHECK(mmk_lane_reserve(&lane, LONGEST + 1, &message) == -EMSGSIZE);
}

TEST(a_full_lane_takes_no_more_and_says_what_to_wait_for)
{
    fresh_lane(false);
    mmk_message message;
    size_t count = 0;
    for (; mmk_lane_reserve(&lane, 0, &message) == 0; count++)
        commit(message);
    CHECK(count == CAPACITY / MMK_LANE_UNIT);
    mmk_lane_wait wait;
    mmk_lane_plan_wait(&lane, false, &wait);
    CHECK(!mmk_lane_wait_is_over(&wait) && mmk_lane_announce_wait(&lane, &wait));
    mmk_message first = take(ME), second = take(ME);
    CHECK(!mmk_lane_finish(&lane, &second) && !mmk_lane_wait_is_over(&wait));
    CHECK(mmk_lane_finish(&lane, &first) && mmk_lane_wait_is_over(&wait));
    CHECK(mmk_lane_reserve(&lane, 0, &message) == 0);
}

TEST(a_patient_writer_is_woken_once_when_half_is_done)
{
    fresh_lane(false);
    mmk_message message;
    while (mmk_lane_reserve(&lane, 0, &message) == 0)
        commit(message);
    mmk_lane_wait wait;
    mmk_lane_plan_wait(&lane, true, &wait);
    CHECK(mmk_lane_announce_wait(&lane, &wait));
    size_t wakes = 0, done = 0;
    for (; !mmk_lane_wait_is_over(&wait); done++) {
        message = take(ME);
        wakes += mmk_lane_finish(&lane, &message);
    }
    CHECK(wakes == 1 && done == CAPACITY / MMK_LANE_UNIT / 2);
}

TEST(threads_that_wait_at_a_time_do_not_take_each_others_request_away)
{
    fresh_lane(false);
    mmk_message message;
    while (mmk_lane_reserve(&lane, 0, &message) == 0)
        commit(message);
    mmk_lane_wait soon, later;
    mmk_lane_plan_wait(&lane, false, &soon);
    mmk_lane_plan_wait(&lane, true, &later);
    /* The earlier of the two stands, in whichever order they came. */
    CHECK(mmk_lane_announce_wait(&lane, &later) == later.request);
    CHECK(mmk_lane_announce_wait(&lane, &soon) == soon.request);
    CHECK(mmk_lane_announce_wait(&lane, &later) == soon.request);
    CHECK(mmk_lane_announce_wait(&lane, &soon) == soon.request);
    message = take(ME);
    CHECK(mmk_lane_finish(&lane, &message) && mmk_lane_announce_wait(&lane, &soon) == 0);
    /* What has been done, and may be left there, is nobody's request any more. */
    CHECK(mmk_lane_announce_wait(&lane, &later) == later.request);
}

TEST(what_was_given_back_is_taken_again_and_nothing_else_twice)
{
    for (int single = 0; single < 2; single++) {
        fresh_lane(single);
        for (int i = 0; i < 6; i++)
            commit(reserve(1));
        mmk_message first = take(ME), second = take(ME), third = take(ME);
        mmk_lane_give_back(&lane, &second);
        finish(third);
        CHECK(take(ME).number == second.number);
        CHECK(take(ME).number == 3);
        mmk_lane_give_back(&lane, &first);
        CHECK(take(ME).number == 0);
        CHECK(take(ME).number == 4);
        CHECK(take(ME).number == 5);
        CHECK(is_empty());
    }
}

TEST(a_cursor_put_back_to_what_was_done_long_ago_catches_up)
{
    fresh_lane(false);
    commit(reserve(1));
    commit(reserve(1));
    mmk_message first = take(ME);
    finish(take(ME));
    mmk_lane_give_back(&lane, &first);
    finish(take(ME));
    CHECK(mmk_lane_mend_reader(&lane, ANOTHER, true) == 0);
    mmk_message message;
    /* Two rounds without a reader's look: the writer passes over the done ones, the cursor stands before them. */
    for (int i = 0; i < 2 * CAPACITY / MMK_LANE_UNIT; i++) {
        CHECK(mmk_lane_reserve(&lane, 1, &message) == 0);
        mmk_lane_abandon(&lane, &message);
    }
    commit(reserve(1));
    CHECK(take(ME).number == 2 + 2 * CAPACITY / MMK_LANE_UNIT);
}

TEST(numbers_wrap_and_nobody_notices)
{
    const uint64_t wrap = (uint64_t)1 << 48;
    fresh_lane(false);
    uint64_t start = wrap - 1000;
    atomic_store(&lane.shared->head, start);
    atomic_store(&lane.shared->tail, start);
    atomic_store(&lane.shared->cursor, start << 16);
    mmk_lane_release(&lane);
    CHECK(mmk_lane_claim(&lane, SOMEBODY) == 0);
    for (uint64_t i = 0; i < 2000; i++) {
        commit(reserve(i % 500));
        mmk_message message = take(ME);
        CHECK(message.number == ((start + i) & (wrap - 1)));
        if (i % 3 == 0) {
            mmk_lane_give_back(&lane, &message);
            CHECK(take(ANOTHER).number == message.number);
        }
        finish(message);
    }
}

TEST(a_lane_has_one_writer_and_the_next_goes_on_where_it_left)
{
    fresh_lane(false);
    commit(reserve(100));
    commit(reserve(LONGEST - 200));
    mmk_lane next;
    mmk_lane_attach(&next, memory, CAPACITY, false);
    CHECK(mmk_lane_claim(&next, SOMEBODY + 1) == -EBUSY);
    mmk_lane_release(&lane);
    CHECK(mmk_lane_claim(&next, SOMEBODY + 1) == 0);
    lane = next;
    commit(reserve(1000));
    CHECK(take(ME).length == 100 && take(ME).length == LONGEST - 200 && take(ME).length == 1000);
}

TEST(of_a_dead_writer_only_what_was_not_committed_is_lost)
{
    fresh_lane(false);
    commit(reserve(1));
    reserve(2);
    commit(reserve(3));
    reserve(4);
    CHECK(mmk_lane_mend_writer(&lane, SOMEBODY) == 2);
    CHECK(take(ME).length == 1 && take(ME).length == 3 && is_empty());
    CHECK(mmk_lane_claim(&lane, SOMEBODY + 1) == 0);
    commit(reserve(5));
    CHECK(take(ME).length == 5);
}

TEST(what_a_dead_reader_had_taken_is_taken_again_or_gone)
{
    for (int redeliver = 0; redeliver < 2; redeliver++) {
        fresh_lane(false);
        for (int i = 0; i < 4; i++)
            commit(reserve(1));
        take(ANOTHER);
        mmk_message mine = take(ME);
        take(ANOTHER);
        CHECK(mmk_lane_mend_reader(&lane, ANOTHER, redeliver) == 2);
        finish(mine);
        if (redeliver) {
            CHECK(take(ME).number == 0);
            CHECK(take(ME).number == 2);
        }
        CHECK(take(ME).number == 3 && is_empty());
        for (int i = 0; i < CAPACITY / MMK_LANE_UNIT - 4; i++)
            reserve(1);
    }
}

/* Half a mending: put back in the slot, the cursor not moved, the mender dead. */
TEST(who_mends_after_a_dead_mender_finishes_its_work)
{
    fresh_lane(false);
    commit(reserve(1));
    commit(reserve(1));
    mmk_message first = take(ANOTHER);
    CHECK(take(ME).number == 1);
    atomic_store(&lane.slots[0].word, first.number << 16 | 1);
    CHECK(is_empty());
    CHECK(mmk_lane_mend_reader(&lane, ANOTHER, true) == 0);
    CHECK(take(ME).number == first.number);
}

static uint64_t pick(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 20;
}

/* Every call on contents that anybody may have written: no byte outside the lane is touched (ASan sees to that), and
 * every call comes back. */
TEST(whatever_the_memory_holds_nothing_outside_it_is_touched)
{
    uint64_t seed = 1;
    size_t bytes = mmk_lane_bytes(CAPACITY), corrupt = 0;
    for (int round = 0; round < 3000; round++) {
        fresh_lane(round % 4 == 3);
        for (int i = 0; i < 20; i++)
            commit(reserve(pick(&seed) % 300));
        uint64_t *words = memory;
        size_t harm = round % 3 ? 1 + pick(&seed) % 8 : bytes / 8;
        for (size_t i = 0; i < harm; i++) {
            /* Mostly where the lane's own words are. */
            size_t place = harm > 8 ? i : pick(&seed) % ((sizeof(mmk_lane_shared) + 2048) / 8);
            words[place] = pick(&seed) % 3 ? pick(&seed) << 24 | pick(&seed) : pick(&seed) % 64 << 16 | pick(&seed) % 4;
        }
        for (int i = 0; i < 200; i++) {
            mmk_message message;
            mmk_lane_wait wait;
            int error = mmk_lane_take(&lane, ME, &message);
            corrupt += error == -MMK_ECORRUPT;
            if (!error) {
                char sum = 0;
                for (size_t k = 0; k < message.length; k++)
                    sum ^= message.data[k];
                if (sum & 1)
                    finish(message);
                else
                    mmk_lane_give_back(&lane, &message);
            }
            error = mmk_lane_reserve(&lane, pick(&seed) % LONGEST, &message);
            corrupt += error == -MMK_ECORRUPT;
            if (!error) {
                memset(message.data, 1, message.length);
                commit(message);
            }
            mmk_lane_plan_wait(&lane, i % 2, &wait);
            (void)!mmk_lane_announce_wait(&lane, &wait);
            (void)mmk_lane_has_news(&lane);
        }
        (void)mmk_lane_mend_reader(&lane, ME, round % 2);
        (void)mmk_lane_mend_writer(&lane, SOMEBODY);
        (void)!mmk_lane_claim(&lane, SOMEBODY);
    }
    CHECK(corrupt > 0);
}

TEST(who_claims_a_lane_whose_last_message_cannot_be_is_refused_and_the_lane_stays_free)
{
    fresh_lane(false);
    mmk_message message = reserve(100);
    commit(message);
    mmk_lane_release(&lane);
    mmk_lane_slot *slot = &lane.slots[message.number];
    struct {
        uint32_t unit, length;
    } cannot_be[] = {{lane.units, 100}, {UINT32_MAX, 100}, {lane.units - 1, 65}, {0, LONGEST + 1}, {0, UINT32_MAX}};
    for (size_t i = 0; i < sizeof cannot_be / sizeof *cannot_be; i++) {
        atomic_store(&slot->unit, cannot_be[i].unit);
        atomic_store(&slot->length, cannot_be[i].length);
        CHECK(mmk_lane_claim(&lane, SOMEBODY) == -MMK_ECORRUPT && atomic_load(&lane.shared->owner) == 0);
    }
    atomic_store(&slot->unit, 0);
    atomic_store(&slot->length, 100);
    atomic_store(&lane.shared->head, lane.slot_mask + 2);
    CHECK(mmk_lane_claim(&lane, SOMEBODY) == -MMK_ECORRUPT && atomic_load(&lane.shared->owner) == 0);
    atomic_store(&lane.shared->head, 1);
    CHECK(mmk_lane_claim(&lane, SOMEBODY) == 0 && take(ME).length == 100);
}

/* ---- threads: one mapping, so that ThreadSanitizer sees both sides ---- */

enum { MESSAGES = 20000, READERS = 3 };

static atomic_uint received[MESSAGES];
static atomic_uint received_count;

static void *write_all(void *unused)
{
    for (unsigned i = 0; i < MESSAGES;) {
        mmk_message message;
        if (mmk_lane_reserve(&lane, 4 + i % 200, &message)) {
            sched_yield();
            continue;
        }
        memset(message.data, (int)i, message.length);
        memcpy(message.data, &i, sizeof i);
        mmk_lane_commit(&lane, &message);
        i++;
    }
    return unused;
}

static void *read_some(void *number)
{
    while (atomic_load(&received_count) < MESSAGES) {
        mmk_message message;
        unsigned value;
        if (mmk_lane_take(&lane, (unsigned)(uintptr_t)number, &message)) {
            sched_yield();
            continue;
        }
        memcpy(&value, message.data, sizeof value);
        CHECK(value < MESSAGES && message.length == 4 + value % 200);
        CHECK(all_bytes_are(message.data + 4, message.length - 4, (int)value));
        if (value % 17 == 0 && atomic_fetch_or(&received[value], 0x100) < 0x100) {
            mmk_lane_give_back(&lane, &message);
            continue;
        }
        CHECK((atomic_fetch_add(&received[value], 1) & 0xff) == 0);
        atomic_fetch_add(&received_count, 1);
        finish(message);
    }
    return NULL;
}

TEST(many_threads_take_each_message_once)
{
    fresh_lane(false);
    pthread_t threads[1 + READERS];
    CHECK(pthread_create(&threads[0], NULL, write_all, NULL) == 0);
    for (uintptr_t i = 1; i <= READERS; i++)
        CHECK(pthread_create(&threads[i], NULL, read_some, (void *)i) == 0);
    for (int i = 0; i <= READERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (unsigned i = 0; i < MESSAGES; i++)
        CHECK((atomic_load(&received[i]) & 0xff) == 1);
}

int main(void)
{
    alarm(100);
    RUN(messages_come_out_whole_and_in_order_through_many_rounds);
    RUN(a_message_is_not_there_before_its_commit);
    RUN(what_is_abandoned_is_passed_over_and_its_room_used_again);
    RUN(in_an_emptied_lane_messages_of_pages_stay_where_they_are_and_large_ones_go_round);
    RUN(the_longest_message_fits_wherever_the_lane_was_left);
    RUN(a_full_lane_takes_no_more_and_says_what_to_wait_for);
    RUN(a_patient_writer_is_woken_once_when_half_is_done);
    RUN(threads_that_wait_at_a_time_do_not_take_each_others_request_away);
    RUN(what_was_given_back_is_taken_again_and_nothing_else_twice);
    RUN(a_cursor_put_back_to_what_was_done_long_ago_catches_up);
    RUN(numbers_wrap_and_nobody_notices);
    RUN(a_lane_has_one_writer_and_the_next_goes_on_where_it_left);
    RUN(of_a_dead_writer_only_what_was_not_committed_is_lost);
    RUN(what_a_dead_reader_had_taken_is_taken_again_or_gone);
    RUN(who_mends_after_a_dead_mender_finishes_its_work);
    RUN(whatever_the_memory_holds_nothing_outside_it_is_touched);
    RUN(who_claims_a_lane_whose_last_message_cannot_be_is_refused_and_the_lane_stays_free);
    RUN(many_threads_take_each_message_once);
    free(memory);
    return 0;
}
