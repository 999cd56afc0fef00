/* process_internal.h: what locks want to know on every call, without a call. */
#ifndef MMKIT_PROCESS_INTERNAL_H
#define MMKIT_PROCESS_INTERNAL_H

#include <mmkit/process.h>

typedef struct thread_facts {
    uint32_t id;         /* 0: not asked for yet, in this thread of this process */
    uint32_t locks_held; /* see MMK_LOCKS_OF_A_THREAD */
} thread_facts;

/* initial-exec: no call to find it. The loader keeps room for such small ones of libraries loaded late. */
extern _Thread_local thread_facts this_thread __attribute__((tls_model("initial-exec")));

uint32_t thread_id_late(void);

static inline uint32_t thread_id(void)
{
    return __builtin_expect(this_thread.id != 0, true) ? this_thread.id : thread_id_late();
}

/* getpid(2), without the call. */
uint32_t process_id(void);

#endif
