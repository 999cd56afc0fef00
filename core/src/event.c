#include <mmkit/event.h>

#include <errno.h>
#include <limits.h>

#include "placed_internal.h"

enum { SET = 1, ONE_TIME = 2 };

_Static_assert(sizeof(mmk_event) == 128 && offsetof(mmk_event, word) == 64, "drawn in event.h");

int mmk_event_create(mmk_event *event)
{
    int error = placed_begin(&event->placed, MMK_EVENT, sizeof *event);
    if (!error)
        placed_publish(&event->placed);
    return error;
}

void mmk_event_set(mmk_event *event)
{
    uint32_t before = atomic_load_explicit(&event->word, memory_order_relaxed), after;
    /* Also where it is set already: what the caller wrote before is to be seen by who finds it set. */
    do
        after = before & SET ? before : (before + ONE_TIME) | SET;
    while (!atomic_compare_exchange_weak(&event->word, &before, after));
    if (after != before)
        mmk_futex_wake(&event->word, INT_MAX);
}

void mmk_event_clear(mmk_event *event)
{
    atomic_fetch_and(&event->word, ~(uint32_t)SET);
}

bool mmk_event_is_set(const mmk_event *event)
{
    return atomic_load_explicit(&((mmk_event *)event)->word, memory_order_acquire) & SET;
}

int mmk_event_wait(mmk_event *event, const mmk_wait *wait)
{
    uint32_t first = atomic_load_explicit(&event->word, memory_order_acquire);
    for (uint32_t now = first; !(now & SET) && now == first;) {
        int error = mmk_futex_wait(&event->word, now, wait);
        now = atomic_load_explicit(&event->word, memory_order_acquire);
        if ((error == -ETIMEDOUT || error == -EINTR) && now == first)
            return error;
    }
    return 0;
}
