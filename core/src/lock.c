#include <mmkit/lock.h>

#include <stddef.h>

#include "lock_internal.h"
#include "placed_internal.h"
#include "process_internal.h"
#include "robust.h"

_Static_assert(sizeof(mmk_lock) == 192, "drawn in lock.h");
_Static_assert(offsetof(mmk_lock, mutex) == 64 && offsetof(mmk_lock, abandoned) == 128, "likewise");
_Static_assert(offsetof(mmk_lock, last_dead) == 144, "likewise");
_Static_assert(sizeof(((mmk_lock *)0)->mutex) == sizeof(robust_mutex), "likewise");

static robust_mutex *mutex_of(mmk_lock *lock)
{
    return (robust_mutex *)lock->mutex;
}

static void set(_Atomic uint32_t *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

static uint32_t get(const _Atomic uint32_t *word)
{
    return atomic_load_explicit((_Atomic uint32_t *)word, memory_order_relaxed);
}

int lock_init(mmk_lock *lock)
{
    return robust_init(mutex_of(lock));
}

int mmk_lock_create(mmk_lock *lock, mmk_placed_kind kind)
{
    int error = placed_begin(&lock->placed, kind, sizeof *lock);
    if (!error)
        error = lock_init(lock);
    if (!error)
        placed_publish(&lock->placed);
    return error;
}

/* ---- holding ---------------------------------------------------------------------------------------- */

static void become_holder(mmk_lock *lock)
{
    set(&lock->holder_thread, thread_id());
    set(&lock->holder_process, process_id());
    lock->depth = 1;
    this_thread.locks_held++;
}

/* The thread's id may be a dead thread's, who held the lock: then the mutex refuses, and all that is lost is the name
 * of the dead. */
static int drop(mmk_lock *lock)
{
    set(&lock->holder_process, 0);
    set(&lock->holder_thread, 0);
    int error = robust_release(mutex_of(lock));
    if (!error)
        this_thread.locks_held--;
    return error;
}

/* Write down that the holder before died. pre: the mutex was taken with -EOWNERDEAD. */
static void mark_abandoned(mmk_lock *lock)
{
    set(&lock->abandoned, 1);
    set(&lock->last_dead, get(&lock->holder_process));
    set(&lock->holder_process, 0);
    set(&lock->holder_thread, 0);
    robust_settled(mutex_of(lock));
}

bool mmk_lock_is_mine(const mmk_lock *lock)
{
    return get(&lock->holder_thread) == thread_id();
}

/* What a thread that has the lock gets when it asks again. */
static int take_again(mmk_lock *lock)
{
    if (lock->placed.kind == MMK_LOCK)
        return -EDEADLK;
    if (lock->depth == UINT32_MAX)
        return -EOVERFLOW;
    lock->depth++;
    return 0;
}

/* What the taking of the mutex came to, for who wants the lock in good order. */
static int settle(mmk_lock *lock, int error)
{
    if (__builtin_expect(error && error != -EOWNERDEAD, false))
        return error;
    if (__builtin_expect(error, false))
        mark_abandoned(lock);
    if (__builtin_expect(get(&lock->abandoned), false)) {
        robust_release(mutex_of(lock));
        return -EOWNERDEAD;
    }
    become_holder(lock);
    return 0;
}

static bool may_take_more(void)
{
    return this_thread.locks_held < MMK_LOCKS_OF_A_THREAD;
}

int mmk_lock_try(mmk_lock *lock)
{
    if (__builtin_expect(!may_take_more(), false))
        return -ENOLCK;
    int error = robust_try(mutex_of(lock));
    return __builtin_expect(error == -EDEADLK, false) ? take_again(lock) : settle(lock, error);
}

int mmk_lock_acquire(mmk_lock *lock, const mmk_wait *wait)
{
    int error = mmk_lock_try(lock);
    return error == -EBUSY ? settle(lock, robust_wait(mutex_of(lock), wait)) : error;
}

int mmk_lock_release(mmk_lock *lock)
{
    if (__builtin_expect(!mmk_lock_is_mine(lock), false))
        return -EPERM;
    if (lock->depth > 1) {
        lock->depth--;
        return 0;
    }
    return drop(lock);
}

/* Does a living thread hold it? A dead one's lock is marked on the way. */
static bool is_held(mmk_lock *lock)
{
    int error = robust_try(mutex_of(lock));
    if (error == -EBUSY || error == -EDEADLK)
        return true;
    if (error == -EOWNERDEAD)
        mark_abandoned(lock);
    robust_release(mutex_of(lock));
    return false;
}

bool mmk_lock_is_held_here(mmk_lock *lock)
{
    return get(&lock->holder_process) == process_id() && is_held(lock);
}

uint32_t mmk_lock_last_dead(const mmk_lock *lock)
{
    return get(&lock->last_dead);
}

/* ---- recovering ------------------------------------------------------------------------------------- */

/* Take the mutex whatever the state of the lock; the mark tells it then. */
static int take_marked(mmk_lock *lock, const mmk_wait *wait)
{
    int error = robust_take(mutex_of(lock), wait);
    if (error == -EOWNERDEAD) {
        mark_abandoned(lock);
        return 0;
    }
    return error;
}

int mmk_lock_recover(mmk_lock *lock, const mmk_wait *wait)
{
    /* A lock in good order may be held for long: there is nothing to wait for. */
    if (!get(&lock->abandoned) && is_held(lock))
        return 0;
    int error = take_marked(lock, wait);
    if (error)
        return error;
    int was_abandoned = (int)get(&lock->abandoned);
    set(&lock->abandoned, 0);
    robust_release(mutex_of(lock));
    return was_abandoned;
}

int mmk_lock_begin_repair(mmk_lock *lock, const mmk_wait *wait)
{
    if (!may_take_more())
        return -ENOLCK;
    int error = take_marked(lock, wait);
    if (error)
        return error;
    become_holder(lock);
    return (int)get(&lock->abandoned);
}

int mmk_lock_end_repair(mmk_lock *lock, bool repaired)
{
    if (!mmk_lock_is_mine(lock))
        return -EPERM;
    if (repaired)
        set(&lock->abandoned, 0);
    return drop(lock);
}
