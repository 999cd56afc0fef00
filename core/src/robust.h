/* robust.h: the mutex that everything in shared memory stands on: pthread's, robust and process-shared.
 *
 * pthread and no futex word of our own: the kernel marks the words of a dead thread that it finds on that thread's
 * list, there is one list a thread, and it is libc's. What libc does not give, nobody else adds to that list safely.
 *
 * A mutex whose holder died is taken all the same, and made consistent at once: unlocked without that, it would be
 * dead for ever. What the death means for what the mutex protects is the caller's to say, before robust_settled.
 */
#ifndef MMKIT_ROBUST_H
#define MMKIT_ROBUST_H

#include <errno.h>
#include <pthread.h>

#include <mmkit/futex.h>

/* 64 bytes, whatever libc needs of them. */
typedef union robust_mutex {
    pthread_mutex_t mutex;
    char room[64];
} robust_mutex;

_Static_assert(sizeof(robust_mutex) == 64, "the layouts of lock.h, semaphore.h and barrier.h are drawn with 64");

MMK_MUST_CHECK int robust_init(robust_mutex *mutex);

/* Take it.
 * returns  0
 *          -EOWNERDEAD  taken, from somebody who died with it: robust_settled is to be called before it is unlocked
 *          -EBUSY       (robust_try) somebody has it
 *          -EDEADLK     this thread has it
 *          -ETIMEDOUT, -EINTR  as mmk_futex_wait, without it */
static inline MMK_MUST_CHECK int robust_try(robust_mutex *mutex)
{
    return -pthread_mutex_trylock(&mutex->mutex);
}

MMK_MUST_CHECK int robust_wait(robust_mutex *mutex, const mmk_wait *wait);

static inline MMK_MUST_CHECK int robust_take(robust_mutex *mutex, const mmk_wait *wait)
{
    int error = robust_try(mutex);
    return __builtin_expect(error == -EBUSY, 0) ? robust_wait(mutex, wait) : error;
}

/* The same for a mutex that is only ever held for an instant: waits for it a slice at least, so that somebody else's
 * instant does not make a caller fail who gave no time. */
MMK_MUST_CHECK int robust_take_briefly(robust_mutex *mutex, const mmk_wait *wait);

/* All that the death of the holder before means is written down. pre: this thread took it with -EOWNERDEAD. */
static inline void robust_settled(robust_mutex *mutex)
{
    pthread_mutex_consistent(&mutex->mutex);
}

/* returns 0, or -EPERM: this thread has not got it. */
static inline int robust_release(robust_mutex *mutex)
{
    return -pthread_mutex_unlock(&mutex->mutex);
}

#endif
