#include <mmkit/barrier.h>

#include "meeting.h"

typedef struct stage {
    mmk_barrier barrier;
    atomic_int answers[8];
    atomic_ulong phases;
    long plain[8];
} stage;

typedef struct party {
    stage *on;
    int number;
} party;

static stage *new_stage(uint32_t parties)
{
    stage *made = shared_zeros(sizeof *made);
    CHECK(mmk_barrier_create(&made->barrier, parties) == 0);
    return made;
}

static void drop_stage(stage *made)
{
    CHECK(munmap(made, sizeof *made) == 0);
}

static void wait_once(void *with)
{
    party *who = with;
    int answer = mmk_barrier_wait(&who->on->barrier, &forever);
    atomic_store(&who->on->answers[who->number], answer);
}

static pid_t start_party(stage *on, int number)
{
    return start(wait_once, &(party){on, number});
}

TEST(all_go_on_together_each_with_a_number_of_its_own)
{
    stage *on = new_stage(3);
    for (int round = 0; round < 50; round++) {
        pid_t first = start_party(on, 0), second = start_party(on, 1);
        int mine = mmk_barrier_wait(&on->barrier, &forever);
        ends_well(first);
        ends_well(second);
        int seen = 1 << mine | 1 << atomic_load(&on->answers[0]) | 1 << atomic_load(&on->answers[1]);
        CHECK(seen == 7);
    }
    CHECK(mmk_barrier_waiting(&on->barrier) == 0);
    drop_stage(on);
}

TEST(a_party_that_dies_waiting_breaks_it_for_all_until_it_is_reset)
{
    stage *on = new_stage(3);
    pid_t dies = start_party(on, 0), lives = start_party(on, 1);
    WAIT_UNTIL(mmk_barrier_waiting(&on->barrier) == 2);
    killed(dies);
    ends_well(lives);
    CHECK(atomic_load(&on->answers[1]) == -MMK_EBROKEN);
    CHECK(mmk_barrier_is_broken(&on->barrier));
    CHECK(mmk_barrier_wait(&on->barrier, &forever) == -MMK_EBROKEN);
    CHECK(mmk_barrier_reset(&on->barrier, &forever) == 0);
    CHECK(!mmk_barrier_is_broken(&on->barrier));
    CHECK(mmk_barrier_wait(&on->barrier, &at_once) == -ETIMEDOUT);
    drop_stage(on);
}

TEST(the_last_party_finds_out_about_the_dead_at_once)
{
    stage *on = new_stage(2);
    pid_t dies = start_party(on, 0);
    WAIT_UNTIL(mmk_barrier_waiting(&on->barrier) == 1);
    killed(dies);
    CHECK(mmk_barrier_wait(&on->barrier, &forever) == -MMK_EBROKEN);
    drop_stage(on);
}

TEST(a_party_whose_time_is_up_breaks_it)
{
    stage *on = new_stage(3);
    pid_t other = start_party(on, 0);
    WAIT_UNTIL(mmk_barrier_waiting(&on->barrier) == 1);
    mmk_wait soon = within(20);
    CHECK(mmk_barrier_wait(&on->barrier, &soon) == -ETIMEDOUT && mmk_now() >= soon.deadline);
    ends_well(other);
    CHECK(atomic_load(&on->answers[0]) == -MMK_EBROKEN);
    drop_stage(on);
}

TEST(aborting_and_resetting_send_away_who_waits)
{
    stage *on = new_stage(2);
    pid_t first = start_party(on, 0);
    WAIT_UNTIL(mmk_barrier_waiting(&on->barrier) == 1);
    CHECK(mmk_barrier_abort(&on->barrier, &forever) == 0);
    ends_well(first);
    CHECK(atomic_load(&on->answers[0]) == -MMK_EBROKEN && mmk_barrier_is_broken(&on->barrier));
    CHECK(mmk_barrier_reset(&on->barrier, &forever) == 0);
    pid_t second = start_party(on, 1);
    WAIT_UNTIL(mmk_barrier_waiting(&on->barrier) == 1);
    CHECK(mmk_barrier_reset(&on->barrier, &forever) == 0);
    ends_well(second);
    CHECK(atomic_load(&on->answers[1]) == -MMK_EBROKEN && !mmk_barrier_is_broken(&on->barrier));
    drop_stage(on);
}

static int stop_at_once(void *unused)
{
    (void)unused;
    return 1;
}

TEST(an_interrupted_party_goes_and_the_barrier_stays_whole)
{
    stage *on = new_stage(2);
    mmk_wait wait = {.deadline = MMK_FOREVER, .interrupted = stop_at_once};
    CHECK(mmk_barrier_wait(&on->barrier, &wait) == -EINTR);
    CHECK(!mmk_barrier_is_broken(&on->barrier) && mmk_barrier_waiting(&on->barrier) == 0);
    pid_t other = start_party(on, 0);
    CHECK(mmk_barrier_wait(&on->barrier, &forever) >= 0);
    ends_well(other);
    drop_stage(on);
}

/* ---- whoever has the mutex -------------------------------------------------------------------------- */

static void take_the_mutex_and_stay(void *with)
{
    stage *on = with;
    int error = pthread_mutex_lock((pthread_mutex_t *)on->barrier.mutex);
    CHECK(error == 0 || error == EOWNERDEAD);
    atomic_store(&on->answers[7], 1);
    for (;;)
        pause();
}

static pid_t start_holder(stage *on)
{
    atomic_store(&on->answers[7], 0);
    pid_t holder = start(take_the_mutex_and_stay, on);
    WAIT_UNTIL(atomic_load(&on->answers[7]) == 1);
    return holder;
}

typedef struct interruption {
    stage *on;
    int asked;
    pid_t holder;
    pid_t next;
} interruption;

/* First somebody has the mutex, for whom the waiter must not wait; then its phase ends, and the next begins. */
static int stop_in_the_next_phase(void *with)
{
    interruption *this = with;
    if (this->asked++ == 0) {
        this->holder = start_holder(this->on);
        return 0;
    }
    if (this->asked == 2) {
        killed(this->holder);
        CHECK(mmk_barrier_wait(&this->on->barrier, &forever) >= 0);
        this->next = start_party(this->on, 0);
        WAIT_UNTIL(mmk_barrier_waiting(&this->on->barrier) == 1);
    }
    return 1;
}

TEST(a_party_that_is_interrupted_as_its_phase_ends_was_there_and_leaves_the_next_alone)
{
    stage *on = new_stage(2);
    interruption this = {.on = on};
    mmk_wait wait = {.deadline = MMK_FOREVER, .interrupted = stop_in_the_next_phase, .of = &this};
    CHECK(mmk_barrier_wait(&on->barrier, &wait) >= 0);
    CHECK(mmk_barrier_waiting(&on->barrier) == 1);
    CHECK(mmk_barrier_wait(&on->barrier, &forever) >= 0);
    ends_well(this.next);
    CHECK(atomic_load(&on->answers[0]) >= 0);
    drop_stage(on);
}

static void wait_shortly(void *with)
{
    party *who = with;
    mmk_wait wait = within(300);
    atomic_store(&who->on->answers[who->number], mmk_barrier_wait(&who->on->barrier, &wait));
}

TEST(a_party_whose_time_is_up_breaks_it_whoever_is_stopped_with_its_mutex)
{
    stage *on = new_stage(3);
    pid_t other = start_party(on, 0), late = start(wait_shortly, &(party){on, 1});
    WAIT_UNTIL(mmk_barrier_waiting(&on->barrier) == 2 || mmk_barrier_is_broken(&on->barrier));
    pid_t holder = start_holder(on);
    ends_well(late);
    ends_well(other);
    CHECK(atomic_load(&on->answers[1]) == -ETIMEDOUT && atomic_load(&on->answers[0]) == -MMK_EBROKEN);
    CHECK(mmk_barrier_is_broken(&on->barrier) && mmk_barrier_waiting(&on->barrier) == 0);
    killed(holder);
    CHECK(mmk_barrier_reset(&on->barrier, &forever) == 0 && !mmk_barrier_is_broken(&on->barrier));
    drop_stage(on);
}

static int stop_after_the_mutex_was_taken(void *with)
{
    interruption *this = with;
    if (!this->holder)
        this->holder = start_holder(this->on);
    return 1;
}

TEST(an_interrupted_party_goes_whoever_is_stopped_with_the_mutex)
{
    stage *on = new_stage(2);
    interruption this = {.on = on};
    mmk_wait wait = {.deadline = MMK_FOREVER, .interrupted = stop_after_the_mutex_was_taken, .of = &this};
    CHECK(mmk_barrier_wait(&on->barrier, &wait) == -EINTR);
    CHECK(mmk_barrier_waiting(&on->barrier) == 0 && !mmk_barrier_is_broken(&on->barrier));
    killed(this.holder);
    drop_stage(on);
}

TEST(there_are_between_one_and_so_many_parties)
{
    stage *on = shared_zeros(sizeof *on);
    CHECK(mmk_barrier_create(&on->barrier, 0) == -EINVAL);
    CHECK(mmk_barrier_create(&on->barrier, MMK_BARRIER_PARTIES + 1) == -EINVAL);
    CHECK(mmk_barrier_create(&on->barrier, 1) == 0);
    CHECK(mmk_barrier_wait(&on->barrier, &forever) == 0);
    CHECK(mmk_barrier_wait(&on->barrier, &forever) == 0);
    drop_stage(on);
}

/* ---- threads ---------------------------------------------------------------------------------------- */

enum { THREADS = 4, PHASES = 500 };

typedef struct phase_seen {
    mmk_barrier *barrier;
    uint32_t phase;
} phase_seen;

static bool has_ended(void *with)
{
    const phase_seen *seen = with;
    return (uint32_t)atomic_load(&seen->barrier->state) != seen->phase;
}

static void *go_through_phases(void *with)
{
    party *who = with;
    mmk_barrier *barrier = &who->on->barrier;
    phase_seen seen = {barrier, 0};
    watched_wait watch;
    watch_wait(&watch, has_ended, &seen);
    for (long phase = 1; phase <= PHASES; phase++) {
        who->on->plain[who->number] = phase;
        CHECK(mmk_barrier_wait(barrier, &watch.wait) >= 0);
        seen.phase++;
        for (int i = 0; i < THREADS; i++)
            CHECK(who->on->plain[i] == phase);
        CHECK(mmk_barrier_wait(barrier, &watch.wait) >= 0);
        seen.phase++;
    }
    CHECK(watch.late < 2 * PHASES / 4);
    return NULL;
}

TEST(what_each_wrote_before_is_seen_by_all_after_and_no_wake_is_lost)
{
    stage *on = new_stage(THREADS);
    pthread_t threads[THREADS];
    party parties[THREADS];
    for (int i = 0; i < THREADS; i++) {
        parties[i] = (party){on, i};
        CHECK(pthread_create(&threads[i], NULL, go_through_phases, &parties[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    drop_stage(on);
}

/* ---- deaths ----------------------------------------------------------------------------------------- */

enum { WORKERS = 4, DEATHS = 60 };

static void meet_for_ever(void *with)
{
    stage *on = with;
    alarm(0);
    for (;;) {
        int answer = mmk_barrier_wait(&on->barrier, &forever);
        if (answer == 0)
            atomic_fetch_add(&on->phases, 1);
        if (answer == -MMK_EBROKEN)
            nap();
        else
            CHECK(answer >= 0 && answer < WORKERS);
    }
}

TEST(a_storm_of_deaths_hangs_nobody_and_a_reset_makes_it_whole)
{
    stage *on = new_stage(WORKERS);
    pid_t workers[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        workers[i] = start(meet_for_ever, on);
    uint64_t seed = mmk_now(), end = end_of_storm();
    unsigned deaths = 0, broken = 0;
    for (; deaths < DEATHS || mmk_now() < end; deaths++) {
        unsigned long phases = atomic_load(&on->phases);
        WAIT_UNTIL(atomic_load(&on->phases) > phases + 2);
        int victim = (int)(random_number(&seed) % WORKERS);
        killed(workers[victim]);
        workers[victim] = start(meet_for_ever, on);
        phases = atomic_load(&on->phases);
        /* Killed as it waited, it has broken the barrier; else its successor takes its place. */
        WAIT_UNTIL(mmk_barrier_is_broken(&on->barrier) || atomic_load(&on->phases) > phases + 2);
        if (mmk_barrier_is_broken(&on->barrier)) {
            broken++;
            CHECK(mmk_barrier_reset(&on->barrier, &forever) == 0);
        }
    }
    for (int i = 0; i < WORKERS; i++)
        killed(workers[i]);
    printf("  %u deaths, %u broke the barrier, %lu phases\n", deaths, broken, atomic_load(&on->phases));
    drop_stage(on);
}

int main(void)
{
    RUN(all_go_on_together_each_with_a_number_of_its_own);
    RUN(a_party_that_dies_waiting_breaks_it_for_all_until_it_is_reset);
    RUN(the_last_party_finds_out_about_the_dead_at_once);
    RUN(a_party_whose_time_is_up_breaks_it);
    RUN(aborting_and_resetting_send_away_who_waits);
    RUN(an_interrupted_party_goes_and_the_barrier_stays_whole);
    RUN(a_party_that_is_interrupted_as_its_phase_ends_was_there_and_leaves_the_next_alone);
    RUN(a_party_whose_time_is_up_breaks_it_whoever_is_stopped_with_its_mutex);
    RUN(an_interrupted_party_goes_whoever_is_stopped_with_the_mutex);
    RUN(there_are_between_one_and_so_many_parties);
    RUN(what_each_wrote_before_is_seen_by_all_after_and_no_wake_is_lost);
    RUN(a_storm_of_deaths_hangs_nobody_and_a_reset_makes_it_whole);
    return 0;
}
