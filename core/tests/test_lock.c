#include <mmkit/lock.h>

#include "meeting.h"

typedef struct stage {
    mmk_lock lock;
    atomic_int step;
    atomic_int answer;
} stage;

static stage *new_stage(mmk_placed_kind kind)
{
    stage *made = shared_zeros(sizeof *made);
    CHECK(mmk_lock_create(&made->lock, kind) == 0);
    return made;
}

static void drop_stage(stage *made)
{
    CHECK(munmap(made, sizeof *made) == 0);
}

static void take_and_stay(void *with)
{
    stage *on = with;
    CHECK(mmk_lock_acquire(&on->lock, &forever) == 0);
    atomic_store(&on->step, 1);
    for (;;)
        pause();
}

/* A lock whose holder was killed. */
static stage *new_abandoned(mmk_placed_kind kind)
{
    stage *made = new_stage(kind);
    pid_t holder = start(take_and_stay, made);
    WAIT_UNTIL(atomic_load(&made->step) == 1);
    killed(holder);
    return made;
}

TEST(a_lock_that_one_holds_is_busy_for_others_until_released)
{
    stage *on = new_stage(MMK_LOCK);
    pid_t holder = start(take_and_stay, on);
    WAIT_UNTIL(atomic_load(&on->step) == 1);
    CHECK(mmk_lock_try(&on->lock) == -EBUSY);
    mmk_wait soon = within(20);
    CHECK(mmk_lock_acquire(&on->lock, &soon) == -ETIMEDOUT);
    CHECK(mmk_now() >= soon.deadline);
    CHECK(mmk_lock_acquire(&on->lock, &at_once) == -ETIMEDOUT);
    killed(holder);
    drop_stage(on);
}

TEST(every_taker_is_told_of_the_death_until_it_is_recovered)
{
    stage *on = new_abandoned(MMK_LOCK);
    for (int i = 0; i < 3; i++) {
        CHECK(mmk_lock_try(&on->lock) == -EOWNERDEAD);
        CHECK(mmk_lock_acquire(&on->lock, &forever) == -EOWNERDEAD);
        CHECK(!mmk_lock_is_mine(&on->lock));
        CHECK(mmk_lock_release(&on->lock) == -EPERM);
    }
    CHECK(mmk_lock_last_dead(&on->lock) != 0);
    CHECK(mmk_lock_recover(&on->lock, &forever) == 1);
    CHECK(mmk_lock_recover(&on->lock, &forever) == 0);
    CHECK(!mmk_lock_is_mine(&on->lock));
    CHECK(mmk_lock_try(&on->lock) == 0);
    CHECK(mmk_lock_release(&on->lock) == 0);
    drop_stage(on);
}

static void wait_for_it(void *with)
{
    stage *on = with;
    atomic_fetch_add(&on->step, 1);
    int error = mmk_lock_acquire(&on->lock, &forever);
    CHECK(error == -EOWNERDEAD);
    atomic_fetch_add(&on->answer, 1);
}

TEST(all_who_wait_when_the_holder_dies_are_told)
{
    enum { WAITERS = 5 };
    stage *on = new_stage(MMK_LOCK);
    pid_t holder = start(take_and_stay, on), waiters[WAITERS];
    WAIT_UNTIL(atomic_load(&on->step) == 1);
    for (int i = 0; i < WAITERS; i++)
        waiters[i] = start(wait_for_it, on);
    for (int i = 0; i < WAITERS; i++)
        WAIT_UNTIL(UNDER_TSAN || sleeps(waiters[i]));
    killed(holder);
    for (int i = 0; i < WAITERS; i++)
        ends_well(waiters[i]);
    CHECK(atomic_load(&on->answer) == WAITERS);
    drop_stage(on);
}

TEST(a_repair_holds_the_lock_and_clears_the_mark_when_it_is_done)
{
    stage *on = new_abandoned(MMK_LOCK);
    CHECK(mmk_lock_begin_repair(&on->lock, &forever) == 1);
    CHECK(mmk_lock_is_mine(&on->lock));
    CHECK(mmk_lock_begin_repair(&on->lock, &forever) == -EDEADLK);
    CHECK(mmk_lock_recover(&on->lock, &forever) == -EDEADLK);
    CHECK(mmk_lock_end_repair(&on->lock, false) == 0);
    CHECK(mmk_lock_try(&on->lock) == -EOWNERDEAD);
    CHECK(mmk_lock_begin_repair(&on->lock, &forever) == 1);
    CHECK(mmk_lock_end_repair(&on->lock, true) == 0);
    CHECK(mmk_lock_end_repair(&on->lock, true) == -EPERM);
    CHECK(mmk_lock_begin_repair(&on->lock, &forever) == 0);
    CHECK(mmk_lock_end_repair(&on->lock, false) == 0);
    CHECK(mmk_lock_try(&on->lock) == 0);
    CHECK(mmk_lock_release(&on->lock) == 0);
    drop_stage(on);
}

static void repair_and_stay(void *with)
{
    stage *on = with;
    CHECK(mmk_lock_begin_repair(&on->lock, &forever) == 1);
    atomic_store(&on->step, 2);
    for (;;)
        pause();
}

TEST(who_dies_repairing_leaves_it_abandoned)
{
    stage *on = new_abandoned(MMK_LOCK);
    pid_t repairer = start(repair_and_stay, on);
    WAIT_UNTIL(atomic_load(&on->step) == 2);
    CHECK(mmk_lock_try(&on->lock) == -EBUSY);
    mmk_wait soon = within(20);
    CHECK(mmk_lock_recover(&on->lock, &soon) == -ETIMEDOUT);
    killed(repairer);
    CHECK(mmk_lock_try(&on->lock) == -EOWNERDEAD);
    CHECK(mmk_lock_recover(&on->lock, &forever) == 1);
    drop_stage(on);
}

TEST(recovering_does_not_wait_for_a_lock_in_good_order)
{
    stage *on = new_stage(MMK_LOCK);
    pid_t holder = start(take_and_stay, on);
    WAIT_UNTIL(atomic_load(&on->step) == 1);
    CHECK(mmk_lock_recover(&on->lock, &forever) == 0);
    CHECK(mmk_lock_try(&on->lock) == -EBUSY);
    killed(holder);
    CHECK(mmk_lock_recover(&on->lock, &forever) == 1);
    drop_stage(on);
}

TEST(a_thread_takes_a_lock_once_and_an_rlock_many_times)
{
    stage *once = new_stage(MMK_LOCK), *many = new_stage(MMK_RLOCK);
    CHECK(mmk_lock_try(&once->lock) == 0);
    CHECK(mmk_lock_try(&once->lock) == -EDEADLK);
    CHECK(mmk_lock_acquire(&once->lock, &forever) == -EDEADLK);
    CHECK(mmk_lock_release(&once->lock) == 0);
    CHECK(mmk_lock_release(&once->lock) == -EPERM);
    for (int i = 0; i < 3; i++)
        CHECK(mmk_lock_acquire(&many->lock, &forever) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(mmk_lock_release(&many->lock) == 0);
    CHECK(mmk_lock_release(&many->lock) == -EPERM);
    drop_stage(once);
    drop_stage(many);
}

static void *try_release(void *with)
{
    stage *on = with;
    CHECK(mmk_lock_release(&on->lock) == -EPERM);
    CHECK(mmk_lock_try(&on->lock) == -EBUSY);
    return NULL;
}

TEST(only_the_thread_that_took_it_releases_it)
{
    stage *on = new_stage(MMK_LOCK);
    pthread_t thread;
    CHECK(mmk_lock_try(&on->lock) == 0);
    CHECK(pthread_create(&thread, NULL, try_release, on) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(mmk_lock_is_held_here(&on->lock));
    CHECK(mmk_lock_release(&on->lock) == 0);
    CHECK(!mmk_lock_is_held_here(&on->lock));
    drop_stage(on);
}

static void *take_and_end(void *with)
{
    stage *on = with;
    CHECK(mmk_lock_try(&on->lock) == 0);
    return NULL;
}

TEST(a_thread_that_ends_with_it_is_a_dead_holder)
{
    stage *on = new_stage(MMK_LOCK);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, take_and_end, on) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(!mmk_lock_is_held_here(&on->lock));
    CHECK(mmk_lock_try(&on->lock) == -EOWNERDEAD);
    drop_stage(on);
}

static void use_as_child(void *with)
{
    stage *on = with;
    CHECK(!mmk_lock_is_mine(&on->lock));
    CHECK(mmk_lock_release(&on->lock) == -EPERM);
    CHECK(mmk_lock_try(&on->lock) == -EBUSY);
    CHECK(!mmk_lock_is_held_here(&on->lock));
}

TEST(a_forked_child_does_not_have_its_parents_lock_and_its_end_releases_nothing)
{
    stage *on = new_stage(MMK_LOCK);
    CHECK(mmk_lock_try(&on->lock) == 0);
    ends_well(start(use_as_child, on));
    CHECK(mmk_lock_is_mine(&on->lock));
    CHECK(mmk_lock_release(&on->lock) == 0);
    CHECK(mmk_lock_try(&on->lock) == 0);
    CHECK(mmk_lock_release(&on->lock) == 0);
    drop_stage(on);
}

static void take_and_execute(void *with)
{
    stage *on = with;
    CHECK(mmk_lock_try(&on->lock) == 0);
    atomic_store(&on->step, 1);
    execl("/bin/sleep", "sleep", "60", (char *)NULL);
    _exit(1);
}

TEST(who_executes_another_program_is_a_dead_holder)
{
    stage *on = new_stage(MMK_LOCK);
    pid_t holder = start(take_and_execute, on);
    WAIT_UNTIL(atomic_load(&on->step) == 1);
    CHECK(mmk_lock_acquire(&on->lock, &forever) == -EOWNERDEAD);
    killed(holder);
    drop_stage(on);
}

/* ---- waking ----------------------------------------------------------------------------------------- */

enum { TURNS = 40 };

static bool was_released(void *with)
{
    stage *on = with;
    return atomic_load(&on->answer) == atomic_load(&on->step);
}

static void take_when_released(void *with)
{
    stage *on = with;
    watched_wait watch;
    watch_wait(&watch, was_released, on);
    for (int i = 1; i <= TURNS; i++) {
        WAIT_UNTIL(atomic_load(&on->step) == i);
        CHECK(mmk_lock_acquire(&on->lock, &watch.wait) == 0);
        CHECK(mmk_lock_release(&on->lock) == 0);
        atomic_store(&on->step, -i);
    }
    CHECK(watch.late < TURNS / 4);
}

TEST(who_waits_is_woken_by_a_release_in_another_process)
{
    if (UNDER_TSAN)
        SKIP("under ThreadSanitizer nobody sleeps for a lock");
    stage *on = new_stage(MMK_LOCK);
    pid_t waiter = start(take_when_released, on);
    for (int i = 1; i <= TURNS; i++) {
        CHECK(mmk_lock_acquire(&on->lock, &forever) == 0);
        atomic_store(&on->step, i);
        WAIT_UNTIL(sleeps(waiter));
        CHECK(mmk_lock_release(&on->lock) == 0);
        atomic_store(&on->answer, i);
        WAIT_UNTIL(atomic_load(&on->step) == -i);
    }
    ends_well(waiter);
    drop_stage(on);
}

static int count_and_stop(void *with)
{
    return ++*(int *)with == 3;
}

TEST(a_wait_asks_after_each_slice_whether_to_go_on)
{
    stage *on = new_stage(MMK_LOCK);
    pid_t holder = start(take_and_stay, on);
    WAIT_UNTIL(atomic_load(&on->step) == 1);
    int asked = 0;
    mmk_wait wait = {.deadline = MMK_FOREVER, .interrupted = count_and_stop, .of = &asked};
    uint64_t began = mmk_now();
    CHECK(mmk_lock_acquire(&on->lock, &wait) == -EINTR);
    CHECK(asked == 3 && mmk_now() - began >= 3 * (uint64_t)MMK_SLICE);
    CHECK(!mmk_lock_is_mine(&on->lock));
    killed(holder);
    drop_stage(on);
}

static void hold_as_many_as_the_kernel_looks_after(void *with)
{
    mmk_lock *locks = with;
    for (int i = 0; i < MMK_LOCKS_OF_A_THREAD; i++)
        CHECK(mmk_lock_try(&locks[i]) == 0);
    CHECK(mmk_lock_try(&locks[MMK_LOCKS_OF_A_THREAD]) == -ENOLCK);
    CHECK(mmk_lock_begin_repair(&locks[MMK_LOCKS_OF_A_THREAD], &forever) == -ENOLCK);
}

TEST(no_more_locks_than_the_kernel_looks_after_and_of_those_every_death_is_seen)
{
    if (UNDER_TSAN)
        SKIP("ThreadSanitizer follows 64 locks of a thread");
    size_t length = sizeof(mmk_lock) * (MMK_LOCKS_OF_A_THREAD + 1);
    mmk_lock *locks = shared_zeros(length);
    for (int i = 0; i <= MMK_LOCKS_OF_A_THREAD; i++)
        CHECK(mmk_lock_create(&locks[i], MMK_LOCK) == 0);
    ends_well(start(hold_as_many_as_the_kernel_looks_after, locks));
    for (int i = 0; i < MMK_LOCKS_OF_A_THREAD; i++)
        CHECK(mmk_lock_try(&locks[i]) == -EOWNERDEAD);
    CHECK(munmap(locks, length) == 0);
}

/* ---- threads ---------------------------------------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = 20000 };

static struct {
    mmk_lock lock;
    long plain; /* a race here is one that ThreadSanitizer sees */
} guarded;

static void *add_under_lock(void *unused)
{
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(mmk_lock_acquire(&guarded.lock, &forever) == 0);
        guarded.plain++;
        CHECK(mmk_lock_release(&guarded.lock) == 0);
    }
    return unused;
}

TEST(what_a_lock_protects_is_never_seen_half_changed_by_threads)
{
    pthread_t threads[THREADS];
    CHECK(mmk_lock_create(&guarded.lock, MMK_RLOCK) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, add_under_lock, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(guarded.plain == (long)THREADS * ROUNDS);
}

int main(void)
{
    alarm(100);
    RUN(a_lock_that_one_holds_is_busy_for_others_until_released);
    RUN(every_taker_is_told_of_the_death_until_it_is_recovered);
    RUN(all_who_wait_when_the_holder_dies_are_told);
    RUN(a_repair_holds_the_lock_and_clears_the_mark_when_it_is_done);
    RUN(who_dies_repairing_leaves_it_abandoned);
    RUN(recovering_does_not_wait_for_a_lock_in_good_order);
    RUN(a_thread_takes_a_lock_once_and_an_rlock_many_times);
    RUN(only_the_thread_that_took_it_releases_it);
    RUN(a_thread_that_ends_with_it_is_a_dead_holder);
    RUN(a_forked_child_does_not_have_its_parents_lock_and_its_end_releases_nothing);
    RUN(who_executes_another_program_is_a_dead_holder);
    RUN(who_waits_is_woken_by_a_release_in_another_process);
    RUN(a_wait_asks_after_each_slice_whether_to_go_on);
    RUN(no_more_locks_than_the_kernel_looks_after_and_of_those_every_death_is_seen);
    RUN(what_a_lock_protects_is_never_seen_half_changed_by_threads);
    return 0;
}
