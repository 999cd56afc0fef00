#include <mmkit/condition.h>

#include "meeting.h"

typedef struct stage {
    mmk_condition condition;
    atomic_int waiting;
    atomic_int notified;
    atomic_int told_of_death;
    atomic_int may_give;
    long items; /* under the lock */
    long taken;
    atomic_ulong rounds;
} stage;

static stage *new_stage(void)
{
    stage *made = shared_zeros(sizeof *made);
    CHECK(mmk_condition_create(&made->condition) == 0);
    return made;
}

static void drop_stage(stage *made)
{
    CHECK(munmap(made, sizeof *made) == 0);
}

static void take(stage *on)
{
    CHECK(mmk_lock_acquire(&on->condition.lock, &forever) == 0);
}

static void give(stage *on)
{
    CHECK(mmk_lock_release(&on->condition.lock) == 0);
}

static void wait_once(void *with)
{
    stage *on = with;
    take(on);
    atomic_fetch_add(&on->waiting, 1);
    int answer = mmk_condition_wait(&on->condition, &forever);
    if (answer == -EOWNERDEAD) {
        CHECK(!mmk_lock_is_mine(&on->condition.lock));
        atomic_fetch_add(&on->told_of_death, 1);
        return;
    }
    CHECK(answer == 0 && mmk_lock_is_mine(&on->condition.lock));
    atomic_fetch_add(&on->notified, 1);
    give(on);
}

static pid_t start_waiter(stage *on)
{
    int before = atomic_load(&on->waiting);
    pid_t waiter = start(wait_once, on);
    WAIT_UNTIL(atomic_load(&on->waiting) > before);
    take(on); /* it has released the lock, so it waits */
    give(on);
    return waiter;
}

TEST(each_notification_wakes_one_and_the_oldest_first)
{
    stage *on = new_stage();
    pid_t first = start_waiter(on), second = start_waiter(on), third = start_waiter(on);
    take(on);
    CHECK(mmk_condition_notify(&on->condition, 1) == 1);
    give(on);
    ends_well(first);
    CHECK(atomic_load(&on->notified) == 1);
    take(on);
    CHECK(mmk_condition_notify(&on->condition, 100) == 2);
    CHECK(mmk_condition_notify(&on->condition, 100) == 0);
    give(on);
    ends_well(second);
    ends_well(third);
    drop_stage(on);
}

TEST(waiting_and_notifying_need_the_lock)
{
    stage *on = new_stage();
    CHECK(mmk_condition_wait(&on->condition, &at_once) == -EPERM);
    CHECK(mmk_condition_notify(&on->condition, 1) == -EPERM);
    drop_stage(on);
}

TEST(a_wait_ends_in_time_with_the_lock_held_as_often_as_before)
{
    stage *on = new_stage();
    take(on);
    take(on);
    mmk_wait soon = within(70);
    CHECK(mmk_condition_wait(&on->condition, &soon) == -ETIMEDOUT && mmk_now() >= soon.deadline);
    CHECK(mmk_condition_wait(&on->condition, &at_once) == -ETIMEDOUT);
    give(on);
    CHECK(mmk_lock_is_mine(&on->condition.lock));
    give(on);
    CHECK(!mmk_lock_is_mine(&on->condition.lock));
    drop_stage(on);
}

static int stop_at_once(void *unused)
{
    (void)unused;
    return 1;
}

TEST(an_interrupted_wait_has_the_lock_again)
{
    stage *on = new_stage();
    take(on);
    mmk_wait wait = {.deadline = MMK_FOREVER, .interrupted = stop_at_once};
    CHECK(mmk_condition_wait(&on->condition, &wait) == -EINTR);
    CHECK(mmk_lock_is_mine(&on->condition.lock));
    CHECK(mmk_condition_notify(&on->condition, 1) == 0);
    give(on);
    drop_stage(on);
}

/* ---- notified and interrupted at once --------------------------------------------------------------- */

static void notify_one(void *with)
{
    stage *on = with;
    take(on);
    CHECK(mmk_condition_notify(&on->condition, 1) == 1);
    /* With the lock, for as long as the test wants. */
    WAIT_UNTIL(atomic_load(&on->may_give));
    give(on);
}

typedef struct interruption {
    stage *on;
    int stops; /* how often it is interrupted */
    pid_t other;
    pid_t notifier;
} interruption;

static bool was_notified(const stage *on)
{
    return atomic_load(&on->condition.waiters[0].state) == 2;
}

/* Somebody else waits as well, the older one is notified, and is interrupted before it knows. */
static int stop_when_notified(void *with)
{
    interruption *this = with;
    if (!this->other) {
        this->other = start_waiter(this->on);
        this->notifier = start(notify_one, this->on);
        WAIT_UNTIL(was_notified(this->on));
    }
    return this->stops-- > 0;
}

TEST(an_interrupted_waiter_passes_its_notification_on)
{
    stage *on = new_stage();
    interruption this = {.on = on, .stops = 1};
    mmk_wait wait = {.deadline = MMK_FOREVER, .interrupted = stop_when_notified, .of = &this};
    atomic_store(&on->may_give, 1);
    take(on);
    CHECK(mmk_condition_wait(&on->condition, &wait) == -EINTR);
    CHECK(mmk_lock_is_mine(&on->condition.lock));
    give(on);
    ends_well(this.notifier);
    ends_well(this.other);
    CHECK(atomic_load(&on->notified) == 1);
    drop_stage(on);
}

TEST(a_waiter_that_goes_without_the_lock_leaves_its_notification_to_others)
{
    stage *on = new_stage();
    interruption this = {.on = on, .stops = 2};
    mmk_wait wait = {.deadline = MMK_FOREVER, .interrupted = stop_when_notified, .of = &this};
    take(on);
    CHECK(mmk_condition_wait(&on->condition, &wait) == -EINTR);
    CHECK(!mmk_lock_is_mine(&on->condition.lock));
    atomic_store(&on->may_give, 1);
    ends_well(this.notifier);
    ends_well(this.other);
    CHECK(atomic_load(&on->notified) == 1);
    drop_stage(on);
}

static void take_and_stay(void *with)
{
    stage *on = with;
    take(on);
    atomic_store(&on->waiting, 100);
    for (;;)
        pause();
}

TEST(all_who_wait_are_told_when_a_holder_of_the_lock_dies)
{
    stage *on = new_stage();
    pid_t first = start_waiter(on), second = start_waiter(on);
    pid_t holder = start(take_and_stay, on);
    WAIT_UNTIL(atomic_load(&on->waiting) == 100);
    killed(holder);
    ends_well(first);
    ends_well(second);
    CHECK(atomic_load(&on->told_of_death) == 2);
    CHECK(mmk_lock_recover(&on->condition.lock, &forever) == 1);
    take(on);
    CHECK(mmk_condition_notify(&on->condition, 1) == 0);
    give(on);
    drop_stage(on);
}

TEST(a_notification_whose_receiver_was_killed_is_passed_on)
{
    stage *on = new_stage();
    pid_t dies = start_waiter(on), lives = start_waiter(on);
    killed(dies);
    take(on);
    CHECK(mmk_condition_notify(&on->condition, 1) == 1);
    give(on);
    ends_well(lives);
    CHECK(atomic_load(&on->notified) == 1);
    drop_stage(on);
}

TEST(a_notification_is_not_passed_on_to_who_came_after_it)
{
    stage *on = new_stage();
    pid_t dies = start_waiter(on);
    killed(dies);
    take(on);
    CHECK(mmk_condition_notify(&on->condition, 1) == 1);
    mmk_wait soon = within(3 * MMK_SLICE / MILLISECOND);
    CHECK(mmk_condition_wait(&on->condition, &soon) == -ETIMEDOUT);
    give(on);
    drop_stage(on);
}

TEST(places_of_the_dead_are_given_to_others)
{
    stage *on = new_stage();
    for (int i = 0; i < MMK_CONDITION_WAITERS; i++)
        killed(start_waiter(on));
    pid_t lives = start_waiter(on);
    take(on);
    CHECK(mmk_condition_notify(&on->condition, 1) == 1);
    give(on);
    ends_well(lives);
    drop_stage(on);
}

/* ---- threads ---------------------------------------------------------------------------------------- */

enum { THREADS = 4, ITEMS = 3000, TURNS = 500 };

static void *take_items(void *with)
{
    stage *on = with;
    for (int i = 0; i < ITEMS; i++) {
        take(on);
        while (on->items == 0)
            CHECK(mmk_condition_wait(&on->condition, &forever) == 0);
        on->items--;
        on->taken++;
        give(on);
    }
    return NULL;
}

static void *make_items(void *with)
{
    stage *on = with;
    for (int i = 0; i < ITEMS; i++) {
        take(on);
        on->items++;
        CHECK(mmk_condition_notify(&on->condition, 1) >= 0);
        give(on);
    }
    return NULL;
}

TEST(no_notification_is_lost_between_threads)
{
    stage *on = new_stage();
    pthread_t threads[2 * THREADS];
    for (int i = 0; i < 2 * THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, i % 2 ? make_items : take_items, on) == 0);
    for (int i = 0; i < 2 * THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(on->items == 0 && on->taken == (long)THREADS * ITEMS);
    drop_stage(on);
}

/* Only a hint, so read without the lock: hidden from ThreadSanitizer. */
static bool has_items(void *items)
{
    return !UNDER_TSAN && *(volatile long *)items > 0;
}

static void *take_one_by_one(void *with)
{
    stage *on = with;
    watched_wait watch;
    watch_wait(&watch, has_items, &on->items);
    take(on);
    for (int i = 0; i < TURNS; i++) {
        while (on->items == 0)
            CHECK(mmk_condition_wait(&on->condition, &watch.wait) == 0);
        on->items--;
        CHECK(mmk_condition_notify(&on->condition, 1) >= 0);
    }
    give(on);
    CHECK(watch.late < TURNS / 4);
    return NULL;
}

TEST(who_is_notified_wakes_at_once)
{
    stage *on = new_stage();
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, take_one_by_one, on) == 0);
    take(on);
    for (int i = 0; i < TURNS; i++) {
        on->items++;
        CHECK(mmk_condition_notify(&on->condition, 1) >= 0);
        while (on->items)
            CHECK(mmk_condition_wait(&on->condition, &forever) == 0);
    }
    give(on);
    CHECK(pthread_join(thread, NULL) == 0);
    drop_stage(on);
}

/* ---- deaths ----------------------------------------------------------------------------------------- */

enum { WORKERS = 4, DEATHS = 100 };

static bool take_or_repair(stage *on)
{
    int error = mmk_lock_acquire(&on->condition.lock, &forever);
    if (error == 0)
        return true;
    CHECK(error == -EOWNERDEAD);
    int abandoned = mmk_lock_begin_repair(&on->condition.lock, &forever);
    CHECK(abandoned >= 0);
    /* Whoever waits for an item must not wait for one that the dead took: start anew. */
    on->items = 0;
    CHECK(mmk_lock_end_repair(&on->condition.lock, true) == 0);
    return false;
}

static void take_items_for_ever(void *with)
{
    stage *on = with;
    alarm(0);
    for (;;) {
        int answer = 0;
        if (!take_or_repair(on))
            continue;
        while (on->items == 0 && answer == 0)
            answer = mmk_condition_wait(&on->condition, &forever);
        if (answer == -EOWNERDEAD)
            continue;
        CHECK(answer == 0);
        on->items--;
        atomic_fetch_add(&on->rounds, 1);
        give(on);
    }
}

TEST(a_storm_of_deaths_loses_no_notification)
{
    stage *on = new_stage();
    pid_t workers[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        workers[i] = start(take_items_for_ever, on);
    uint64_t seed = mmk_now(), end = end_of_storm();
    unsigned deaths = 0;
    for (; deaths < DEATHS || mmk_now() < end; deaths++) {
        int victim = (int)(random_number(&seed) % WORKERS);
        for (unsigned i = random_number(&seed) % 20; i; i--)
            if (take_or_repair(on)) {
                on->items++;
                CHECK(mmk_condition_notify(&on->condition, 1) >= 0);
                give(on);
            }
        killed(workers[victim]);
        workers[victim] = start(take_items_for_ever, on);
        /* Whatever was notified to the dead, somebody takes what is there. */
        long left = 1;
        WAIT_UNTIL((take_or_repair(on) && (left = on->items, give(on), true)) && left == 0);
    }
    for (int i = 0; i < WORKERS; i++)
        killed(workers[i]);
    printf("  %u deaths, %lu items taken\n", deaths, atomic_load(&on->rounds));
    drop_stage(on);
}

int main(void)
{
    RUN(each_notification_wakes_one_and_the_oldest_first);
    RUN(waiting_and_notifying_need_the_lock);
    RUN(a_wait_ends_in_time_with_the_lock_held_as_often_as_before);
    RUN(an_interrupted_wait_has_the_lock_again);
    RUN(an_interrupted_waiter_passes_its_notification_on);
    RUN(a_waiter_that_goes_without_the_lock_leaves_its_notification_to_others);
    RUN(all_who_wait_are_told_when_a_holder_of_the_lock_dies);
    RUN(a_notification_whose_receiver_was_killed_is_passed_on);
    RUN(a_notification_is_not_passed_on_to_who_came_after_it);
    RUN(places_of_the_dead_are_given_to_others);
    RUN(no_notification_is_lost_between_threads);
    RUN(who_is_notified_wakes_at_once);
    RUN(a_storm_of_deaths_loses_no_notification);
    return 0;
}
