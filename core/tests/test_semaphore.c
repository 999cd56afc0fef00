#include <mmkit/semaphore.h>

#include "meeting.h"

typedef struct stage {
    mmk_semaphore semaphore;
    atomic_int step;
    atomic_ulong rounds;
    long plain;
} stage;

static stage *new_stage(uint32_t permits, bool are_held)
{
    stage *made = shared_zeros(sizeof *made);
    CHECK(mmk_semaphore_create(&made->semaphore, permits, are_held) == 0);
    return made;
}

static void drop_stage(stage *made)
{
    CHECK(munmap(made, sizeof *made) == 0);
}

static void take_and_stay(void *with)
{
    stage *on = with;
    CHECK(mmk_semaphore_acquire(&on->semaphore, &forever) == 0);
    atomic_fetch_add(&on->step, 1);
    for (;;)
        pause();
}

TEST(so_many_permits_and_no_more)
{
    stage *on = new_stage(2, true);
    CHECK(mmk_semaphore_try(&on->semaphore) == 0);
    CHECK(mmk_semaphore_acquire(&on->semaphore, &at_once) == 0);
    CHECK(mmk_semaphore_value(&on->semaphore) == 0);
    CHECK(mmk_semaphore_try(&on->semaphore) == -EBUSY);
    mmk_wait soon = within(70);
    CHECK(mmk_semaphore_acquire(&on->semaphore, &soon) == -ETIMEDOUT && mmk_now() >= soon.deadline);
    CHECK(mmk_semaphore_release(&on->semaphore, &forever) == 0);
    CHECK(mmk_semaphore_release(&on->semaphore, NULL) == 0);
    CHECK(mmk_semaphore_release(&on->semaphore, &forever) == -EPERM);
    CHECK(mmk_semaphore_value(&on->semaphore) == 2);
    drop_stage(on);
}

TEST(a_permit_of_a_killed_process_comes_back_to_who_waits)
{
    stage *on = new_stage(1, true);
    pid_t holder = start(take_and_stay, on), waiter;
    WAIT_UNTIL(atomic_load(&on->step) == 1);
    CHECK(mmk_semaphore_acquire(&on->semaphore, &at_once) == -ETIMEDOUT);
    CHECK(mmk_semaphore_recover(&on->semaphore, &forever) == 0);
    waiter = start(take_and_stay, on);
    WAIT_UNTIL(sleeps(waiter));
    killed(holder);
    WAIT_UNTIL(atomic_load(&on->step) == 2);
    killed(waiter);
    CHECK(mmk_semaphore_recover(&on->semaphore, &forever) == 1);
    CHECK(mmk_semaphore_try(&on->semaphore) == 0);
    drop_stage(on);
}

TEST(a_zombie_holds_nothing)
{
    stage *on = new_stage(1, true);
    pid_t holder = start(take_and_stay, on);
    WAIT_UNTIL(atomic_load(&on->step) == 1);
    CHECK(kill(holder, SIGKILL) == 0);
    CHECK(mmk_semaphore_acquire(&on->semaphore, &forever) == 0);
    CHECK(waitpid(holder, NULL, 0) == holder);
    drop_stage(on);
}

static void release_as_child(void *with)
{
    stage *on = with;
    CHECK(mmk_semaphore_release(&on->semaphore, &forever) == -EPERM);
}

TEST(a_forked_child_holds_none_of_its_parents_permits)
{
    stage *on = new_stage(1, true);
    CHECK(mmk_semaphore_try(&on->semaphore) == 0);
    ends_well(start(release_as_child, on));
    CHECK(mmk_semaphore_recover(&on->semaphore, &forever) == 0);
    CHECK(mmk_semaphore_value(&on->semaphore) == 0);
    drop_stage(on);
}

TEST(a_counted_permit_is_gone_with_who_took_it_and_anybody_adds_one)
{
    stage *on = new_stage(1, false);
    pid_t holder = start(take_and_stay, on);
    WAIT_UNTIL(atomic_load(&on->step) == 1);
    killed(holder);
    CHECK(mmk_semaphore_recover(&on->semaphore, &forever) == 0);
    CHECK(mmk_semaphore_acquire(&on->semaphore, &at_once) == -ETIMEDOUT);
    CHECK(mmk_semaphore_release(&on->semaphore, &forever) == 0);
    CHECK(mmk_semaphore_release(&on->semaphore, &forever) == 0);
    CHECK(mmk_semaphore_value(&on->semaphore) == 2);
    drop_stage(on);
}

TEST(a_pid_that_was_given_to_somebody_else_holds_nothing)
{
    stage *on = new_stage(1, true);
    CHECK(mmk_semaphore_try(&on->semaphore) == 0);
    /* As if a process of our pid had taken it and died before we were started. */
    on->semaphore.holders[0].start--;
    CHECK(mmk_semaphore_release(&on->semaphore, &forever) == -EPERM);
    CHECK(mmk_semaphore_acquire(&on->semaphore, &forever) == 0);
    drop_stage(on);
}

static void die_in_the_middle_of_taking(void *with)
{
    mmk_semaphore *semaphore = &((stage *)with)->semaphore;
    mmk_process self;
    CHECK(mmk_process_self(&self) == 0);
    CHECK(pthread_mutex_lock((pthread_mutex_t *)semaphore->mutex) == 0);
    /* As `take` does, but for the last store. */
    semaphore->holders_in_use = 1;
    semaphore->holders[0] = (mmk_permit_holder){.pid = self.pid, .held = 1, .start = self.start};
    atomic_store(&((stage *)with)->step, 1);
    for (;;)
        pause();
}

TEST(a_change_that_a_death_cut_off_is_mended)
{
    stage *on = new_stage(2, true);
    pid_t dies = start(die_in_the_middle_of_taking, on);
    WAIT_UNTIL(atomic_load(&on->step) == 1);
    CHECK(mmk_semaphore_value(&on->semaphore) == 2);
    killed(dies);
    /* One is the dead one's still, until somebody looks for it. */
    CHECK(mmk_semaphore_try(&on->semaphore) == 0);
    CHECK(mmk_semaphore_value(&on->semaphore) == 0);
    CHECK(mmk_semaphore_recover(&on->semaphore, &forever) == 1);
    CHECK(mmk_semaphore_release(&on->semaphore, &forever) == 0);
    CHECK(mmk_semaphore_value(&on->semaphore) == 2);
    drop_stage(on);
}

static void fill_a_place(void *with)
{
    stage *on = with;
    CHECK(mmk_semaphore_acquire(&on->semaphore, &forever) == 0);
}

TEST(places_of_the_dead_are_given_to_others)
{
    stage *on = new_stage(1000, true);
    for (int i = 0; i < MMK_SEMAPHORE_HOLDERS + 5; i++)
        ends_well(start(fill_a_place, on));
    CHECK(mmk_semaphore_recover(&on->semaphore, &forever) > 0);
    CHECK(mmk_semaphore_value(&on->semaphore) == 1000);
    drop_stage(on);
}

/* ---- threads ---------------------------------------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = 5000 };

static void *add_with_permit(void *with)
{
    stage *on = with;
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(mmk_semaphore_acquire(&on->semaphore, &forever) == 0);
        on->plain++;
        CHECK(mmk_semaphore_release(&on->semaphore, &forever) == 0);
    }
    return NULL;
}

TEST(one_permit_excludes_threads_from_each_other)
{
    stage *on = new_stage(1, true);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, add_with_permit, on) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(on->plain == (long)THREADS * ROUNDS);
    drop_stage(on);
}

static bool has_permits(void *semaphore)
{
    return mmk_semaphore_value(semaphore) > 0;
}

static void *take_all(void *with)
{
    stage *on = with;
    watched_wait watch;
    watch_wait(&watch, has_permits, &on->semaphore);
    for (int i = 0; i < ROUNDS; i++)
        CHECK(mmk_semaphore_acquire(&on->semaphore, &watch.wait) == 0);
    CHECK(watch.late < ROUNDS / 8 / 4);
    return NULL;
}

TEST(no_wake_is_lost_between_who_adds_and_who_takes)
{
    stage *on = new_stage(0, false);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, take_all, on) == 0);
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(mmk_semaphore_release(&on->semaphore, &forever) == 0);
        if (i % 8 == 0)
            WAIT_UNTIL(mmk_semaphore_value(&on->semaphore) == 0);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    drop_stage(on);
}

/* ---- deaths ----------------------------------------------------------------------------------------- */

enum { WORKERS = 6, PERMITS = 2, DEATHS = 150 };

static void take_and_give(void *with)
{
    stage *on = with;
    alarm(0);
    for (;;) {
        CHECK(mmk_semaphore_acquire(&on->semaphore, &forever) == 0);
        atomic_fetch_add(&on->rounds, 1);
        CHECK(mmk_semaphore_release(&on->semaphore, &forever) == 0);
    }
}

TEST(a_storm_of_deaths_neither_loses_permits_nor_makes_any)
{
    stage *on = new_stage(PERMITS, true);
    pid_t workers[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        workers[i] = start(take_and_give, on);
    uint64_t seed = mmk_now(), end = end_of_storm();
    unsigned deaths = 0;
    for (; deaths < DEATHS || mmk_now() < end; deaths++) {
        int victim = (int)(random_number(&seed) % WORKERS);
        nanosleep(&(struct timespec){.tv_nsec = random_number(&seed) % MILLISECOND}, NULL);
        killed(workers[victim]);
        unsigned long rounds = atomic_load(&on->rounds);
        WAIT_UNTIL(atomic_load(&on->rounds) > rounds);
        workers[victim] = start(take_and_give, on);
        CHECK(mmk_semaphore_value(&on->semaphore) <= PERMITS);
    }
    for (int i = 0; i < WORKERS; i++)
        killed(workers[i]);
    int64_t lost = mmk_semaphore_recover(&on->semaphore, &forever);
    printf("  %u deaths, %lu rounds; %ld permits were left by the last\n", deaths, atomic_load(&on->rounds),
           (long)lost);
    CHECK(mmk_semaphore_value(&on->semaphore) == PERMITS);
    drop_stage(on);
}

int main(void)
{
    RUN(so_many_permits_and_no_more);
    RUN(a_permit_of_a_killed_process_comes_back_to_who_waits);
    RUN(a_zombie_holds_nothing);
    RUN(a_forked_child_holds_none_of_its_parents_permits);
    RUN(a_counted_permit_is_gone_with_who_took_it_and_anybody_adds_one);
    RUN(a_pid_that_was_given_to_somebody_else_holds_nothing);
    RUN(a_change_that_a_death_cut_off_is_mended);
    RUN(places_of_the_dead_are_given_to_others);
    RUN(one_permit_excludes_threads_from_each_other);
    RUN(no_wake_is_lost_between_who_adds_and_who_takes);
    RUN(a_storm_of_deaths_neither_loses_permits_nor_makes_any);
    return 0;
}
