#include <mmkit/semaphore.h>

#include <mmkit/process.h>

#include "placed_internal.h"
#include "robust.h"

_Static_assert(sizeof(mmk_semaphore) == 192 + 16 * MMK_SEMAPHORE_HOLDERS, "drawn in semaphore.h");
_Static_assert(offsetof(mmk_semaphore, freed) == 140 && offsetof(mmk_semaphore, holders) == 192, "likewise");

static robust_mutex *mutex_of(mmk_semaphore *semaphore)
{
    return (robust_mutex *)semaphore->mutex;
}

static uint32_t get_free(const mmk_semaphore *semaphore)
{
    return __atomic_load_n(&semaphore->free, __ATOMIC_RELAXED);
}

/* Read by mmk_semaphore_value without the mutex. */
static void set_free(mmk_semaphore *semaphore, uint32_t free)
{
    __atomic_store_n(&semaphore->free, free, __ATOMIC_RELAXED);
}

int mmk_semaphore_create(mmk_semaphore *semaphore, uint32_t permits, bool are_held)
{
    int error = placed_begin(&semaphore->placed, MMK_SEMAPHORE, sizeof *semaphore);
    if (!error)
        error = robust_init(mutex_of(semaphore));
    if (error)
        return error;
    semaphore->permits = permits;
    semaphore->are_held = are_held;
    set_free(semaphore, permits);
    placed_publish(&semaphore->placed);
    return 0;
}

uint32_t mmk_semaphore_value(const mmk_semaphore *semaphore)
{
    return get_free(semaphore);
}

/* ---- under the mutex -------------------------------------------------------------------------------- */

/* What is free is what nobody holds. */
static void count_anew(mmk_semaphore *semaphore)
{
    if (!semaphore->are_held)
        return;
    uint32_t held = 0;
    for (uint32_t i = 0; i < semaphore->holders_in_use; i++)
        held += semaphore->holders[i].held;
    set_free(semaphore, semaphore->permits - held);
}

/* Who died with the mutex had changed one word of two, or none. pre: taken with `error`. */
static int mend(mmk_semaphore *semaphore, int error)
{
    if (__builtin_expect(error != -EOWNERDEAD, true))
        return error;
    count_anew(semaphore);
    robust_settled(mutex_of(semaphore));
    return 0;
}

/* wait: NULL does not. */
static int enter(mmk_semaphore *semaphore, const mmk_wait *wait)
{
    robust_mutex *mutex = mutex_of(semaphore);
    return mend(semaphore, wait ? robust_take_briefly(mutex, wait) : robust_try(mutex));
}

static void leave(mmk_semaphore *semaphore)
{
    robust_release(mutex_of(semaphore));
}

/* A permit became free. returns the mark of who sleeps, for `wake`. Nobody else counts meanwhile, and a locked addition
 * would cost a tenth of the call. */
static uint32_t note_freed(mmk_semaphore *semaphore)
{
    uint32_t freed = atomic_load_explicit(&semaphore->freed, memory_order_relaxed);
    atomic_store_explicit(&semaphore->freed, freed + 1, memory_order_relaxed);
    return atomic_load_explicit(&semaphore->sleeping, memory_order_relaxed);
}

/* Best without the mutex, which who wakes up wants. A wake that found nobody says that nobody sleeps, and the mark
 * goes; but not that of somebody who was about to sleep meanwhile: it is another, because `freed` was another. */
static void wake(mmk_semaphore *semaphore, uint32_t count, uint32_t sleeping)
{
    if (sleeping && mmk_futex_wake(&semaphore->freed, (int)count) == 0)
        atomic_compare_exchange_strong(&semaphore->sleeping, &sleeping, 0);
}

/* Say that somebody is going to sleep until `freed` changes. returns what it is. */
static uint32_t announce_sleep(mmk_semaphore *semaphore)
{
    uint32_t freed = atomic_load_explicit(&semaphore->freed, memory_order_relaxed);
    atomic_store_explicit(&semaphore->sleeping, freed << 1 | 1, memory_order_relaxed);
    return freed;
}

static bool is_other(const mmk_permit_holder *holder, const mmk_process *self)
{
    return holder->pid != self->pid || holder->start != self->start;
}

static bool is_gone(const mmk_permit_holder *holder)
{
    return mmk_process_is_gone(&(mmk_process){holder->pid, holder->start});
}

static uint32_t free_permits_of_the_dead(mmk_semaphore *semaphore)
{
    uint32_t freed = 0;
    for (uint32_t i = 0; i < semaphore->holders_in_use; i++) {
        mmk_permit_holder *holder = &semaphore->holders[i];
        if (holder->held && is_gone(holder)) {
            freed += holder->held;
            holder->held = 0;
        }
    }
    if (freed) {
        count_anew(semaphore);
        wake(semaphore, freed, note_freed(semaphore));
    }
    return freed;
}

/* Looking is some 10 µs a holder: once a slice is enough, whoever does it. */
static void look_after_the_dead(mmk_semaphore *semaphore)
{
    uint64_t now = mmk_now();
    /* Another time namespace has another clock: what lies ahead counts as long ago. */
    if (now - semaphore->looked_after < MMK_SLICE / 2)
        return;
    semaphore->looked_after = now;
    free_permits_of_the_dead(semaphore);
}

/* This process's entry; NULL if it has none. */
static mmk_permit_holder *find(mmk_semaphore *semaphore, const mmk_process *self)
{
    for (uint32_t i = 0; i < semaphore->holders_in_use; i++)
        if (!is_other(&semaphore->holders[i], self))
            return &semaphore->holders[i];
    return NULL;
}

/* An entry for this process: one of its own, one that holds nothing, or a new one. NULL if all hold something. */
static mmk_permit_holder *find_or_take(mmk_semaphore *semaphore, const mmk_process *self)
{
    mmk_permit_holder *holder = find(semaphore, self);
    for (uint32_t i = 0; i < semaphore->holders_in_use && !holder; i++)
        if (!semaphore->holders[i].held)
            holder = &semaphore->holders[i];
    if (!holder && semaphore->holders_in_use < MMK_SEMAPHORE_HOLDERS)
        holder = &semaphore->holders[semaphore->holders_in_use++];
    if (holder) {
        holder->pid = self->pid;
        holder->start = self->start;
    }
    return holder;
}

/* returns 0, -EBUSY where no permit is free, -ENOSPC. */
static int take(mmk_semaphore *semaphore, const mmk_process *self)
{
    if (get_free(semaphore) == 0)
        return -EBUSY;
    if (semaphore->are_held) {
        mmk_permit_holder *holder = find_or_take(semaphore, self);
        if (!holder && free_permits_of_the_dead(semaphore))
            holder = find_or_take(semaphore, self);
        if (!holder)
            return -ENOSPC;
        /* Whose permit it is comes first, whatever the compiler prefers: who is killed in between has none. */
        atomic_signal_fence(memory_order_seq_cst);
        holder->held++;
    }
    set_free(semaphore, get_free(semaphore) - 1);
    return 0;
}

static int give(mmk_semaphore *semaphore, const mmk_process *self, uint32_t *sleeping)
{
    if (semaphore->are_held) {
        mmk_permit_holder *holder = find(semaphore, self);
        if (!holder || !holder->held)
            return -EPERM;
        holder->held--;
    }
    if (get_free(semaphore) == UINT32_MAX)
        return -EOVERFLOW;
    set_free(semaphore, get_free(semaphore) + 1);
    *sleeping = note_freed(semaphore);
    return 0;
}

/* ---- the calls -------------------------------------------------------------------------------------- */

int mmk_semaphore_try(mmk_semaphore *semaphore)
{
    mmk_process self;
    int error = mmk_process_self(&self);
    if (!error)
        error = enter(semaphore, NULL);
    if (error)
        return error;
    error = take(semaphore, &self);
    leave(semaphore);
    return error;
}

/* Take a permit, or make known that somebody sleeps, and since when. */
static int take_or_announce(mmk_semaphore *semaphore, const mmk_process *self, const mmk_wait *wait, uint32_t *seen)
{
    int error = enter(semaphore, wait);
    if (error)
        return error;
    if (get_free(semaphore) == 0)
        look_after_the_dead(semaphore);
    error = take(semaphore, self);
    if (error)
        *seen = announce_sleep(semaphore);
    leave(semaphore);
    return error;
}

int mmk_semaphore_acquire(mmk_semaphore *semaphore, const mmk_wait *wait)
{
    mmk_process self;
    int error = mmk_process_self(&self);
    while (!error) {
        uint32_t seen = 0;
        error = take_or_announce(semaphore, &self, wait, &seen);
        if (error != -EBUSY)
            return error;
        error = mmk_futex_wait(&semaphore->freed, seen, wait);
        if (error == -EAGAIN)
            error = 0;
    }
    return error;
}

int mmk_semaphore_release(mmk_semaphore *semaphore, const mmk_wait *wait)
{
    mmk_process self;
    int error = mmk_process_self(&self);
    if (!error)
        error = enter(semaphore, wait);
    if (error)
        return error;
    uint32_t sleeping = 0;
    error = give(semaphore, &self, &sleeping);
    leave(semaphore);
    wake(semaphore, 1, sleeping);
    return error;
}

int64_t mmk_semaphore_recover(mmk_semaphore *semaphore, const mmk_wait *wait)
{
    int error = enter(semaphore, wait);
    if (error)
        return error;
    uint32_t freed = free_permits_of_the_dead(semaphore);
    leave(semaphore);
    return freed;
}
