#include "readers.h"

#include <stdatomic.h>
#include <time.h>

enum {
    SPINS = 200, /* a reader takes some 100 ns */
};

static struct {
    atomic_uint current; /* the counter for newcomers, 0 or 1 */
    atomic_uint inside[2];
} readers;

/* The increment, both looks at `current`, the flip and the waiter's look at the counter are seq_cst: they have one
 * order. Take the waiter's last look, which found his counter 0, and a reader that was let in on that counter:
 *
 * - Its increment came before that look: then it has left. Its release, read through the additions of others,
 *   orders all its reads before whatever the waiter does next.
 * - Its increment came after, and so after the flip: then its second look met this flip and sent it away; or a
 *   later flip back, and with that it acquired all that was published before this one.
 *
 * Without the second look it could stay in a counter that the next waiter does not look at. */
unsigned readers_enter(void)
{
    for (;;) {
        unsigned counter = atomic_load(&readers.current);
        atomic_fetch_add(&readers.inside[counter], 1);
        if (atomic_load(&readers.current) == counter)
            return counter;
        readers_leave(counter);
    }
}

void readers_leave(unsigned counter)
{
    atomic_fetch_sub_explicit(&readers.inside[counter], 1, memory_order_release);
}

void readers_wait(void)
{
    unsigned old = atomic_load_explicit(&readers.current, memory_order_relaxed);
    atomic_store(&readers.current, !old);
    for (unsigned turn = 0; atomic_load(&readers.inside[old]); turn++)
        /* Not sched_yield: the reader may have a lower real-time priority. */
        if (turn >= SPINS)
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

void readers_forget(void)
{
    atomic_store(&readers.inside[0], 0);
    atomic_store(&readers.inside[1], 0);
}
