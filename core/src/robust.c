#include "robust.h"

#include "waiting.h"

int robust_init(robust_mutex *mutex)
{
    pthread_mutexattr_t attributes;
    int error = -pthread_mutexattr_init(&attributes);
    if (error)
        return error;
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    error = -pthread_mutex_init(&mutex->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return error;
}

/* Wait for the mutex until a moment of CLOCK_MONOTONIC. ThreadSanitizer (of gcc 12) does not know the call, nor what
 * EOWNERDEAD means of its relatives that wait, and would take what was locked for not locked. */
static int lock_until(pthread_mutex_t *mutex, uint64_t end)
{
#ifdef __SANITIZE_THREAD__
    int error;
    while ((error = pthread_mutex_trylock(mutex)) == EBUSY && mmk_now() < end)
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    return error == EBUSY ? ETIMEDOUT : error;
#else
    struct timespec at = as_timespec(end);
    return pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &at);
#endif
}

/* In slices: pthread does not come back for a signal. And a waiter that was woken and killed before it took the
 * mutex has used up the wake, if somebody else had the mutex meanwhile: the kernel passes it on only if not. */
int robust_wait(robust_mutex *mutex, const mmk_wait *wait)
{
    for (;;) {
        int error = -lock_until(&mutex->mutex, end_of_slice(wait));
        if (error != -ETIMEDOUT)
            return error;
        error = slice_is_over(wait);
        if (error != -EAGAIN)
            return error;
    }
}

int robust_take_briefly(robust_mutex *mutex, const mmk_wait *wait)
{
    int error = robust_try(mutex);
    if (__builtin_expect(error != -EBUSY, 1))
        return error;
    mmk_wait longer = *wait;
    uint64_t end = mmk_now() + MMK_SLICE;
    if (longer.deadline < end)
        longer.deadline = end;
    return robust_wait(mutex, &longer);
}
