/* meeting.h: what the tests of locks and the like share: memory that processes share, children that are killed.
 *
 * Deaths are real: a child is killed by SIGKILL where it stands. Nothing sleeps for luck: what is waited for is a
 * word of the shared memory, or the state of a thread in /proc.
 */
#ifndef MMKIT_TEST_MEETING_H
#define MMKIT_TEST_MEETING_H

#include <signal.h>
#include <time.h>

#include <mmkit/futex.h>
#include <mmkit/process.h>

#include "support.h"

enum { MILLISECOND = 1000 * 1000 };

static const mmk_wait forever __attribute__((unused)) = {.deadline = MMK_FOREVER};
static const mmk_wait at_once __attribute__((unused)) = {.deadline = 0};

static inline mmk_wait within(unsigned milliseconds)
{
    return (mmk_wait){.deadline = mmk_now() + (uint64_t)milliseconds * MILLISECOND};
}

/* Zeros that the children have too. */
static inline void *shared_zeros(size_t length)
{
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

static inline void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = MILLISECOND / 5}, NULL);
}

/* Wait for what others bring about; it fails after CHILD_SECONDS. */
#define WAIT_UNTIL(condition)                                                                                          \
    do {                                                                                                               \
        uint64_t end_of_wait = mmk_now() + (uint64_t)CHILD_SECONDS * 1000 * MILLISECOND;                               \
        while (!(condition)) {                                                                                         \
            CHECK(mmk_now() < end_of_wait);                                                                            \
            nap();                                                                                                     \
        }                                                                                                              \
    } while (0)

/* Start a child; it ends well or is killed. */
static inline pid_t start(void body(void *), void *with)
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* A test that fails leaves nobody behind. */
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
        alarm(CHILD_SECONDS);
        body(with);
        _exit(0);
    }
    return child;
}

static inline void killed(pid_t child)
{
    int status;
    CHECK(kill(child, SIGKILL) == 0);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Does the thread sleep in futex(2)? */
static inline bool sleeps(pid_t thread)
{
    return call_of(thread) == SYS_futex;
}

/* A wait that counts the slices at whose end there was what it waits for: each is a wake that was lost, or one that
 * was still on its way. If all are lost there is one for each wait; however slow the machine, few are on their way. */
typedef struct watched_wait {
    mmk_wait wait;
    bool (*is_there)(void *of);
    void *of;
    unsigned late;
} watched_wait;

static inline int count_late_slice(void *with)
{
    watched_wait *watch = with;
    watch->late += watch->is_there(watch->of);
    return 0;
}

static inline void watch_wait(watched_wait *watch, bool is_there(void *), void *of)
{
    *watch = (watched_wait){{MMK_FOREVER, count_late_slice, watch}, is_there, of, 0};
}

static inline unsigned random_number(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(*seed >> 33);
}

/* How long a storm lasts: MMKIT_STRESS_SECONDS, by default 1. */
static inline uint64_t end_of_storm(void)
{
    const char *asked = getenv("MMKIT_STRESS_SECONDS");
    return mmk_now() + (uint64_t)((asked ? atof(asked) : 1.0) * 1000) * MILLISECOND;
}

#endif
