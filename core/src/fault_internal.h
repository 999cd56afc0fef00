/* fault_internal.h: what the parts of fault handling share.
 *
 *     guarded.c           mmk_guarded_copy
 *     guarded_internal.h  what of it every access pays
 *     guarded_leaf.c      the routine that touches the memory
 *     fault.c             what to do with a fault
 *     signals.c           whose turn it is: the handlers before and after ours
 */
#ifndef MMKIT_FAULT_INTERNAL_H
#define MMKIT_FAULT_INTERNAL_H

#include <signal.h>
#include <time.h>

#include <mmkit/fault.h>
#include <mmkit/guarded.h>

/* What the handler knows of its thread. Initial-exec: anything else may call malloc on first touch. */
typedef struct fault_thread {
    int touching;          /* depth of accesses to memory that may not be there */
    int hooks;             /* depth of hooks that run */
    bool asked_last;       /* whether a handler that the last level replaced runs */
    bool was_sent;         /* whether one of these came during an access */
    bool is_message;       /* and that it is surely no handler's way of passing a fault on */
    siginfo_t segv, bus;   /* sent, not caused by the access; si_signo is 0 where none came */
    unsigned long changes; /* count_changes at its last miss */
    uintptr_t tried;       /* the address of that, and how often it was tried again in a row */
    unsigned tries;
    struct timespec checked; /* the tick in which its handlers and signal mask were last found good */
} fault_thread;

extern __thread volatile fault_thread fault_self __attribute__((tls_model("initial-exec"), visibility("hidden")));

/* The second result of guarded_leaf: never 0. */
static inline uint64_t fault_word(const siginfo_t *info, bool write)
{
    return 1 | (uint64_t)write << 1 | (uint64_t)(unsigned)info->si_signo << 8 | (uint64_t)(unsigned)info->si_code << 32;
}

/* Did an instruction cause it? Else somebody sent it. BUS_MCEERR_AO tells of memory that nobody has touched. */
static inline bool fault_is_synchronous(const siginfo_t *info)
{
    return info->si_code > 0 && !(info->si_signo == SIGBUS && info->si_code == BUS_MCEERR_AO);
}

/* A hook is about to tell that it has mended a page: a fault that others had before it did so is none. It answers
 * PASS_ON where it finds the page mended, and the instruction is tried again, a few times in a row at most.
 * Async-signal-safe. */
void fault_count_mending(void);

/* Take care of a signal if it is ours. Async-signal-safe. */
bool fault_settle(const siginfo_t *info, ucontext_t *context);

#endif
