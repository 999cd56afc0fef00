/* scenes.h: what the tests of signal handlers share: scenes that may end in a signal, what was seen in them, and
 * handlers that note what they get.
 */
#ifndef MMKIT_TEST_SCENES_H
#define MMKIT_TEST_SCENES_H

#include <signal.h>

#include <mmkit/fault.h>

#include "support.h"

/* Each scene plays in a child that starts as a new process does, and what it saw is here when it is dead. */
typedef struct sight {
    int calls;
    int signal, code;
    pid_t sender;
    char *address;
    uint64_t blocked; /* signal n is bit n - 1 */
} sight;

static struct {
    sight earlier; /* of the handler that was there before mmkit */
    sight later;   /* of the one that was installed after */
    int dumps;
    bool has_met; /* in the scenes of meet_copies */
} *seen;

static char *forbidden, *beyond; /* SIGSEGV, SIGBUS */

typedef struct sigaction action;
typedef void handler(int signal, siginfo_t *info, void *context);

static inline int end_of(void scene(void))
{
    fflush(NULL);
    memset(seen, 0, sizeof *seen);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        limit(RLIMIT_CORE, 0);
        alarm(CHILD_SECONDS);
        /* ASan has handlers of its own. */
        CHECK(signal(SIGSEGV, SIG_DFL) != SIG_ERR && signal(SIGBUS, SIG_DFL) != SIG_ERR);
        scene();
        fflush(NULL);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

/* ---- what happens in scenes ---- */

/* The compiler does not know what else a store may change. */
static inline void touch(char *address)
{
    *(volatile char *)address = 1;
    __asm__ volatile("" ::: "memory");
}

static inline void make_guarded_copies(void)
{
    char byte = 0;
    CHECK(mmk_guarded_copy(&byte, forbidden, 1, &fault) == -EFAULT && fault.reason == MMK_FAULT_PROTECTION);
    CHECK(mmk_guarded_copy(beyond, &byte, 1, &fault) == -EFAULT && fault.reason == MMK_FAULT_NOT_BACKED);
    CHECK(mmk_guarded_copy(&byte, "x", 1, &fault) == 0 && byte == 'x');
}

static inline uint64_t blocked_signals(void)
{
    sigset_t set;
    uint64_t bits = 0;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &set) == 0);
    for (int signal = 1; signal < NSIG; signal++)
        bits |= (uint64_t)(sigismember(&set, signal) == 1) << (signal - 1);
    return bits;
}

static inline uint64_t bit_of(int signal)
{
    return (uint64_t)1 << (signal - 1);
}

static inline void note(sight *where, int signal, const siginfo_t *info)
{
    *where = (sight){where->calls + 1, signal, info->si_code, info->si_pid, info->si_addr, blocked_signals()};
}

static inline void install_with(int signal, handler *function, int flags, action *replaced)
{
    action new = {.sa_sigaction = function, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&new.sa_mask);
    CHECK(sigaction(signal, &new, replaced) == 0);
}

static inline void install(handler *function)
{
    install_with(SIGSEGV, function, 0, NULL);
}

static inline void forbid_again(void)
{
    CHECK(mprotect(forbidden, pages(1), PROT_NONE) == 0);
}

static inline void mend(void)
{
    CHECK(mprotect(forbidden, pages(1), RW) == 0);
}

static inline void earlier_that_mends(int signal, siginfo_t *info, void *context)
{
    (void)context;
    note(&seen->earlier, signal, info);
    errno = EDOM;
    mend();
}

static inline void earlier_that_returns(int signal, siginfo_t *info, void *context)
{
    (void)context;
    note(&seen->earlier, signal, info);
}

static inline void later_that_mends(int signal, siginfo_t *info, void *context)
{
    (void)context;
    note(&seen->later, signal, info);
    mend();
}

static inline void leave_well(int signal, siginfo_t *info, void *context)
{
    (void)context;
    note(&seen->earlier, signal, info);
    _exit(0);
}

/* pre: called first in main. */
static inline void set_the_scenes(void)
{
    seen = mmap(NULL, sizeof *seen, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    forbidden = mmap(NULL, pages(1), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    beyond = mmap(NULL, pages(1), RW, MAP_SHARED, memory_file(0), 0);
    CHECK(seen != MAP_FAILED && forbidden != MAP_FAILED && beyond != MAP_FAILED);
}

#endif
