#include <mmkit/event.h>

#include "meeting.h"

typedef struct stage {
    mmk_event event;
    mmk_event back;
    long plain;
    atomic_int awake;
    atomic_int step;
} stage;

static stage *new_stage(void)
{
    stage *made = shared_zeros(sizeof *made);
    CHECK(mmk_event_create(&made->event) == 0);
    CHECK(mmk_event_create(&made->back) == 0);
    return made;
}

static void wait_for_event(void *with)
{
    stage *on = with;
    CHECK(mmk_event_wait(&on->event, &forever) == 0);
    atomic_fetch_add(&on->awake, 1);
}

TEST(a_set_event_lets_everybody_through_and_a_cleared_one_nobody)
{
    stage *on = new_stage();
    CHECK(!mmk_event_is_set(&on->event));
    CHECK(mmk_event_wait(&on->event, &at_once) == -ETIMEDOUT);
    mmk_event_set(&on->event);
    mmk_event_set(&on->event);
    CHECK(mmk_event_is_set(&on->event));
    CHECK(mmk_event_wait(&on->event, &at_once) == 0);
    mmk_event_clear(&on->event);
    mmk_wait soon = within(20);
    CHECK(mmk_event_wait(&on->event, &soon) == -ETIMEDOUT && mmk_now() >= soon.deadline);
    CHECK(munmap(on, sizeof *on) == 0);
}

TEST(all_who_sleep_awake_though_it_is_cleared_at_once)
{
    enum { WAITERS = 5 };
    stage *on = new_stage();
    pid_t waiters[WAITERS];
    for (int i = 0; i < WAITERS; i++)
        waiters[i] = start(wait_for_event, on);
    for (int i = 0; i < WAITERS; i++)
        WAIT_UNTIL(sleeps(waiters[i]));
    /* Stopped, they are woken, and do not look before it is cleared. */
    for (int i = 0; i < WAITERS; i++)
        CHECK(kill(waiters[i], SIGSTOP) == 0 && waitpid(waiters[i], NULL, WUNTRACED) == waiters[i]);
    mmk_event_set(&on->event);
    mmk_event_clear(&on->event);
    for (int i = 0; i < WAITERS; i++)
        CHECK(kill(waiters[i], SIGCONT) == 0);
    for (int i = 0; i < WAITERS; i++)
        ends_well(waiters[i]);
    CHECK(atomic_load(&on->awake) == WAITERS);
    CHECK(munmap(on, sizeof *on) == 0);
}

/* ---- threads ---------------------------------------------------------------------------------------- */

enum { ROUNDS = 1000 };

static bool is_set(void *event)
{
    return mmk_event_is_set(event);
}

static void *answer(void *with)
{
    stage *on = with;
    watched_wait watch;
    watch_wait(&watch, is_set, &on->event);
    for (long i = 0; i < ROUNDS; i++) {
        CHECK(mmk_event_wait(&on->event, &watch.wait) == 0);
        /* Looked at before the event is cleared, which would order more than the wait. */
        CHECK(on->plain == 2 * i + 1);
        on->plain++;
        mmk_event_clear(&on->event);
        mmk_event_set(&on->back);
    }
    CHECK(watch.late < ROUNDS / 4);
    return NULL;
}

TEST(what_was_written_before_it_was_set_is_seen_by_who_waited_and_no_wake_is_lost)
{
    stage *on = new_stage();
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, answer, on) == 0);
    watched_wait watch;
    watch_wait(&watch, is_set, &on->back);
    for (long i = 0; i < ROUNDS; i++) {
        on->plain++;
        mmk_event_set(&on->event);
        CHECK(mmk_event_wait(&on->back, &watch.wait) == 0);
        CHECK(on->plain == 2 * i + 2);
        mmk_event_clear(&on->back);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(watch.late < ROUNDS / 4);
    CHECK(munmap(on, sizeof *on) == 0);
}

int main(void)
{
    alarm(100);
    RUN(a_set_event_lets_everybody_through_and_a_cleared_one_nobody);
    RUN(all_who_sleep_awake_though_it_is_cleared_at_once);
    RUN(what_was_written_before_it_was_set_is_seen_by_who_waited_and_no_wake_is_lost);
    return 0;
}
