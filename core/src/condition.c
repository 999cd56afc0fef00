#include <mmkit/condition.h>

#include <errno.h>

#include <mmkit/process.h>

#include "lock_internal.h"
#include "placed_internal.h"

enum { FREE, WAITING, NOTIFIED };

_Static_assert(sizeof(mmk_condition) == 256 + 32 * MMK_CONDITION_WAITERS, "drawn in condition.h");
_Static_assert(offsetof(mmk_condition, tickets) == 192 && offsetof(mmk_condition, waiters) == 256, "likewise");

int mmk_condition_create(mmk_condition *condition)
{
    int error = placed_begin(&condition->lock.placed, MMK_CONDITION, sizeof *condition);
    if (!error)
        error = lock_init(&condition->lock);
    if (!error)
        placed_publish(&condition->lock.placed);
    return error;
}

static uint32_t state_of(const mmk_waiter *waiter)
{
    return atomic_load_explicit(&((mmk_waiter *)waiter)->state, memory_order_acquire);
}

static void set_state(mmk_waiter *waiter, uint32_t state)
{
    atomic_store_explicit(&waiter->state, state, memory_order_release);
}

/* pid 0: who waited is not dead, but has gone without what it was notified of. */
static bool is_gone(const mmk_waiter *waiter)
{
    uint32_t pid = atomic_load_explicit(&((mmk_waiter *)waiter)->pid, memory_order_relaxed);
    return pid == 0 || mmk_process_is_gone(&(mmk_process){pid, waiter->start});
}

/* ---- notifying: under the lock ---------------------------------------------------------------------- */

/* The oldest waiter, if it had its ticket when no more than so many were given. */
static mmk_waiter *oldest(mmk_condition *condition, uint64_t tickets)
{
    mmk_waiter *found = NULL;
    for (mmk_waiter *waiter = condition->waiters; waiter < condition->waiters + MMK_CONDITION_WAITERS; waiter++)
        if (state_of(waiter) == WAITING && waiter->ticket <= tickets) {
            found = waiter;
            tickets = waiter->ticket;
        }
    return found;
}

/* Notify up to `count` of those who waited when no more than so many tickets were given. */
static uint32_t notify(mmk_condition *condition, uint32_t count, uint64_t tickets)
{
    uint32_t notified = 0;
    for (mmk_waiter *waiter; notified < count && (waiter = oldest(condition, tickets));) {
        waiter->notified_at = tickets;
        uint32_t expected = WAITING;
        /* A waiter whose lock was abandoned goes without the lock, at any time. */
        if (!atomic_compare_exchange_strong(&waiter->state, &expected, NOTIFIED))
            continue;
        mmk_futex_wake(&waiter->state, 1);
        notified++;
    }
    return notified;
}

int mmk_condition_notify(mmk_condition *condition, uint32_t count)
{
    return mmk_lock_is_mine(&condition->lock) ? (int)notify(condition, count, condition->tickets) : -EPERM;
}

/* Those who died waiting are forgotten. What those were notified of who died before they had the lock is passed on. */
static void free_places_of_the_dead(mmk_condition *condition, uint32_t state)
{
    for (mmk_waiter *waiter = condition->waiters; waiter < condition->waiters + MMK_CONDITION_WAITERS; waiter++)
        if (state_of(waiter) == state && is_gone(waiter)) {
            set_state(waiter, FREE);
            if (state == NOTIFIED)
                notify(condition, 1, waiter->notified_at);
        }
}

/* ---- waiting ---------------------------------------------------------------------------------------- */

static mmk_waiter *free_place(mmk_condition *condition)
{
    for (mmk_waiter *waiter = condition->waiters; waiter < condition->waiters + MMK_CONDITION_WAITERS; waiter++)
        if (state_of(waiter) == FREE)
            return waiter;
    return NULL;
}

/* pre: the lock is held. returns NULL if there is no place. */
static mmk_waiter *take_place(mmk_condition *condition, const mmk_process *self)
{
    mmk_waiter *waiter = free_place(condition);
    if (!waiter) {
        free_places_of_the_dead(condition, WAITING);
        free_places_of_the_dead(condition, NOTIFIED);
        waiter = free_place(condition);
    }
    if (waiter) {
        waiter->start = self->start;
        waiter->ticket = ++condition->tickets;
        atomic_store_explicit(&waiter->pid, self->pid, memory_order_relaxed);
        set_state(waiter, WAITING);
    }
    return waiter;
}

/* At the end of a slice: has a holder died; did somebody who was notified?
 * returns 0; -EOWNERDEAD; -ENOLCK */
static int look_after_the_dead(mmk_condition *condition)
{
    int error = mmk_lock_try(&condition->lock);
    if (error)
        return error == -EBUSY ? 0 : error;
    free_places_of_the_dead(condition, NOTIFIED);
    return mmk_lock_release(&condition->lock);
}

static int sleep_until_notified(mmk_condition *condition, mmk_waiter *waiter, const mmk_wait *wait)
{
    while (state_of(waiter) != NOTIFIED) {
        int error = mmk_futex_wait(&waiter->state, WAITING, wait);
        if (error == -EAGAIN)
            error = look_after_the_dead(condition);
        if (error)
            return error;
    }
    return 0;
}

/* Give the place up without the lock. If it was notified, another waiter will find that, and pass it on. */
static void abandon_place(mmk_waiter *waiter)
{
    uint32_t expected = WAITING;
    if (!atomic_compare_exchange_strong(&waiter->state, &expected, FREE))
        atomic_store_explicit(&waiter->pid, 0, memory_order_relaxed);
}

/* With the lock: who was notified after all was not late; who was interrupted passes it on. */
static int give_up_place(mmk_condition *condition, mmk_waiter *waiter, int error)
{
    bool notified = state_of(waiter) == NOTIFIED;
    set_state(waiter, FREE);
    if (!notified || error == 0)
        return error;
    if (error == -ETIMEDOUT)
        return 0;
    notify(condition, 1, waiter->notified_at);
    return error;
}

int mmk_condition_wait(mmk_condition *condition, const mmk_wait *wait)
{
    mmk_lock *lock = &condition->lock;
    mmk_process self;
    if (!mmk_lock_is_mine(lock))
        return -EPERM;
    int error = mmk_process_self(&self);
    if (error)
        return error;
    mmk_waiter *waiter = take_place(condition, &self);
    if (!waiter)
        return -ENOSPC;
    uint32_t depth = lock->depth;
    lock->depth = 1;
    error = mmk_lock_release(lock);
    if (!error)
        error = sleep_until_notified(condition, waiter, wait);
    mmk_wait again = {.deadline = MMK_FOREVER, .interrupted = wait->interrupted, .of = wait->of};
    /* Told of a death, the caller has not got the lock, be it recovered meanwhile. */
    int refused = error == -EOWNERDEAD ? error : mmk_lock_acquire(lock, &again);
    if (refused) {
        abandon_place(waiter);
        return refused;
    }
    lock->depth = depth;
    return give_up_place(condition, waiter, error);
}
