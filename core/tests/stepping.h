/* stepping.h: a child that is stopped after any one of its instructions. */
#ifndef MMKIT_TEST_STEPPING_H
#define MMKIT_TEST_STEPPING_H

#include <sys/ptrace.h>

#include "support.h"

/* Start a child that does it, and stop it after so many instructions. returns false if it ended, or stopped itself by
 * SIGSTOP, before. */
static inline bool stops_after(void act(void), unsigned steps, pid_t *child)
{
    fflush(NULL);
    *child = fork();
    CHECK(*child >= 0);
    if (*child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0) < 0)
            _exit(3);
        raise(SIGSTOP);
        act();
        _exit(0);
    }
    int status;
    CHECK(waitpid(*child, &status, 0) == *child && WIFSTOPPED(status));
    for (unsigned i = 0; i < steps; i++) {
        CHECK(ptrace(PTRACE_SINGLESTEP, *child, 0, 0) == 0);
        CHECK(waitpid(*child, &status, 0) == *child);
        if (WIFEXITED(status) || WSTOPSIG(status) == SIGSTOP)
            return false;
    }
    return true;
}

#endif
