/* held_up.h: races that are staged: one thread is held in the middle of something, and another has to wait for it.
 *
 *     holder   |-- start_and_hold ... stand_still            ... let_go_on --|
 *     waiter                           |-- start_waiting ... sleeps ...      |-- goes on, join_waiting
 *
 * Where a thread is to stand, something that the code meets there anyway calls stand_still: a hook, a handler, the
 * judge of a system call (support.h). That the other waits is seen, not guessed: it has called nanosleep(2), by which
 * all waiting without a lock goes. However slow the machine, that is not missed.
 */
#ifndef MMKIT_TEST_HELD_UP_H
#define MMKIT_TEST_HELD_UP_H

#include <sched.h>
#include <signal.h>
#include <time.h>

#include "support.h"

/* ---- who stands still ---- */

static atomic_bool standing, go_on;

static inline void stand_still(void)
{
    atomic_store(&standing, true);
    while (!atomic_load(&go_on))
        sched_yield();
}

/* Start a thread, and return when it stands still. */
static inline pthread_t start_and_hold(void *body(void *), void *with)
{
    pthread_t thread;
    atomic_store(&standing, false), atomic_store(&go_on, false);
    CHECK(pthread_create(&thread, NULL, body, with) == 0);
    while (!atomic_load(&standing))
        sched_yield();
    return thread;
}

static inline void let_go_on(pthread_t thread)
{
    atomic_store(&go_on, true);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* In front of mmkit's handler: it has the fault until it is let go. */
static struct sigaction behind_held_faults;

static inline void stand_with_a_fault(int signal, siginfo_t *info, void *context)
{
    stand_still();
    behind_held_faults.sa_sigaction(signal, info, context);
}

static inline void hold_faults(void)
{
    struct sigaction in_front = {.sa_sigaction = stand_with_a_fault, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSEGV, &in_front, &behind_held_faults) == 0);
}

/* ---- who has to wait ---- */

static struct {
    pthread_t thread;
    void (*act)(void);
    atomic_bool sleeps, ended;
    atomic_bool is_deaf; /* to signals, where it slept first */
} waiting;

static __thread bool has_to_wait;

/* In place of the C library's: what the library under test calls, too. */
__attribute__((visibility("default"))) int nanosleep(const struct timespec *time, struct timespec *left)
{
    if (has_to_wait && !atomic_load(&waiting.sleeps)) {
        sigset_t blocked;
        CHECK(pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0);
        atomic_store(&waiting.is_deaf, sigismember(&blocked, SIGUSR1));
        atomic_store(&waiting.sleeps, true);
    }
    int error = clock_nanosleep(CLOCK_MONOTONIC, 0, time, left);
    errno = error ? error : errno;
    return error ? -1 : 0;
}

static inline void *act_and_end(void *unused)
{
    has_to_wait = true;
    waiting.act();
    atomic_store(&waiting.ended, true);
    return unused;
}

/* Start it, and return when it either waits or has ended. returns whether it waits */
static inline bool start_waiting(void act(void))
{
    waiting.act = act;
    atomic_store(&waiting.sleeps, false), atomic_store(&waiting.ended, false);
    CHECK(pthread_create(&waiting.thread, NULL, act_and_end, NULL) == 0);
    while (!atomic_load(&waiting.sleeps) && !atomic_load(&waiting.ended))
        sched_yield();
    return !atomic_load(&waiting.ended);
}

static inline bool still_waits(void)
{
    return !atomic_load(&waiting.ended);
}

static inline void join_waiting(void)
{
    CHECK(pthread_join(waiting.thread, NULL) == 0 && atomic_load(&waiting.ended));
}

#endif
