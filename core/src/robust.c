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

/* In slices: pthread does not come back for a signal. And a waiter that was woken and killed before it took the
 * mutex has used up the wake, if somebody else had the mutex meanwhile: the kernel passes it on only if not. */
int robust_wait(robust_mutex *mutex, const mmk_wait *wait)
{
    for (;;) {
        struct timespec end = as_timespec(end_of_slice(wait));
        int error = -pthread_mutex_clocklock(&mutex->mutex, CLOCK_MONOTONIC, &end);
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
