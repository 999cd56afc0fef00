#include <mmkit/futex.h>

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "waiting.h"

uint64_t mmk_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NANOSECONDS + (uint64_t)now.tv_nsec;
}

uint64_t end_of_slice(const mmk_wait *wait)
{
    uint64_t end = mmk_now() + MMK_SLICE;
    return wait->deadline < end ? wait->deadline : end;
}

int slice_is_over(const mmk_wait *wait)
{
    if (wait->interrupted && wait->interrupted(wait->of))
        return -EINTR;
    return wait->deadline != MMK_FOREVER && mmk_now() >= wait->deadline ? -ETIMEDOUT : -EAGAIN;
}

int mmk_futex_wait(_Atomic uint32_t *word, uint32_t expected, const mmk_wait *wait)
{
    struct timespec end = as_timespec(end_of_slice(wait));
    /* WAIT_BITSET takes the end of the wait and not its length. */
    long result = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, &end, NULL, FUTEX_BITSET_MATCH_ANY);
    /* EAGAIN: the word was another already. EINTR: a signal, which may be what `interrupted` looks for. */
    return result == 0 || errno == EAGAIN ? 0 : slice_is_over(wait);
}

int mmk_futex_wake(_Atomic uint32_t *word, int count)
{
    long woken = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
    return woken < 0 ? 0 : (int)woken;
}
