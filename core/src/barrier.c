#include <mmkit/barrier.h>

#include <errno.h>
#include <limits.h>

#include <mmkit/process.h>

#include "placed_internal.h"
#include "robust.h"

#define BROKEN (UINT64_C(1) << 32)

enum {
    PHASE_BITS = 32,
    ENDS_SHIFT = 33,
    ENDS = 31, /* phases whose ends are remembered */
};

_Static_assert(sizeof(mmk_barrier) == 192 + 16 * MMK_BARRIER_PARTIES, "drawn in barrier.h");
_Static_assert(offsetof(mmk_barrier, state) == 128 && offsetof(mmk_barrier, places) == 192, "likewise");

static robust_mutex *mutex_of(mmk_barrier *barrier)
{
    return (robust_mutex *)barrier->mutex;
}

/* The half of the state that holds the phase: the kernel compares 32 bits. */
static _Atomic uint32_t *phase_word(mmk_barrier *barrier)
{
    _Atomic uint32_t *halves = (_Atomic uint32_t *)&barrier->state;
    return halves + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
}

static uint64_t state_of(const mmk_barrier *barrier)
{
    return atomic_load_explicit(&((mmk_barrier *)barrier)->state, memory_order_acquire);
}

int mmk_barrier_create(mmk_barrier *barrier, uint32_t parties)
{
    if (parties < 1 || parties > MMK_BARRIER_PARTIES)
        return -EINVAL;
    int error = placed_begin(&barrier->placed, MMK_BARRIER, sizeof *barrier);
    if (!error)
        error = robust_init(mutex_of(barrier));
    if (error)
        return error;
    barrier->parties = parties;
    placed_publish(&barrier->placed);
    return 0;
}

bool mmk_barrier_is_broken(const mmk_barrier *barrier)
{
    return state_of(barrier) & BROKEN;
}

/* ---- places ----------------------------------------------------------------------------------------- */

static uint64_t as_party(const mmk_process *process, uint32_t phase)
{
    return (uint64_t)phase << PHASE_BITS | process->pid;
}

static uint64_t who_is_at(const mmk_party *place)
{
    return atomic_load_explicit(&((mmk_party *)place)->who, memory_order_acquire);
}

static bool is_waiting(const mmk_party *place, uint32_t phase)
{
    uint64_t who = who_is_at(place);
    return (uint32_t)who && who >> PHASE_BITS == phase;
}

static uint32_t count_waiting(const mmk_barrier *barrier, uint32_t phase)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < MMK_BARRIER_PARTIES && i < barrier->parties; i++)
        count += is_waiting(&barrier->places[i], phase);
    return count;
}

uint32_t mmk_barrier_waiting(const mmk_barrier *barrier)
{
    return count_waiting(barrier, (uint32_t)state_of(barrier));
}

/* pre: the mutex is held; a place is free, since fewer than all wait. */
static uint32_t take_place(mmk_barrier *barrier, const mmk_process *self, uint32_t phase)
{
    uint32_t i = 0;
    while (is_waiting(&barrier->places[i], phase))
        i++;
    mmk_party *place = &barrier->places[i];
    place->start = self->start;
    atomic_store_explicit(&place->who, as_party(self, phase), memory_order_release);
    return i;
}

/* pre: the mutex is held. */
static bool somebody_is_gone(const mmk_barrier *barrier, uint32_t phase)
{
    for (uint32_t i = 0; i < barrier->parties; i++) {
        const mmk_party *place = &barrier->places[i];
        if (is_waiting(place, phase) && mmk_process_is_gone(&(mmk_process){(uint32_t)who_is_at(place), place->start}))
            return true;
    }
    return false;
}

/* ---- phases ----------------------------------------------------------------------------------------- */

/* End the phase for all who wait, if the state is still what was seen. A waiter breaks its phase without the mutex. */
static bool end_phase(mmk_barrier *barrier, uint64_t seen, bool well, bool broken)
{
    uint64_t ends = (seen >> ENDS_SHIFT << 1 | !well) & ((UINT64_C(1) << ENDS) - 1);
    uint64_t after = ends << ENDS_SHIFT | (broken ? BROKEN : 0) | (uint32_t)(seen + 1);
    if (!atomic_compare_exchange_strong(&barrier->state, &seen, after))
        return false;
    mmk_futex_wake(phase_word(barrier), INT_MAX);
    return true;
}

/* 0 if the phase has ended well, -MMK_EBROKEN if not, -EAGAIN while it lasts. */
static int how_it_ended(const mmk_barrier *barrier, uint32_t phase)
{
    uint64_t state = state_of(barrier);
    uint32_t later = (uint32_t)state - phase;
    if (later == 0)
        return -EAGAIN;
    /* Who slept through 31 phases was not missed in them: the barrier has more users than parties. */
    return later <= ENDS && state >> (ENDS_SHIFT + later - 1) & 1 ? -MMK_EBROKEN : 0;
}

/* What the mutex protects is whole at any instant: a death with it says nothing. */
static int enter(mmk_barrier *barrier, const mmk_wait *wait)
{
    int error = robust_take_briefly(mutex_of(barrier), wait);
    if (error != -EOWNERDEAD)
        return error;
    robust_settled(mutex_of(barrier));
    return 0;
}

static void leave(mmk_barrier *barrier)
{
    robust_release(mutex_of(barrier));
}

/* Break the phase unless it has ended. returns -ETIMEDOUT, or how it ended. */
static int break_phase(mmk_barrier *barrier, uint32_t phase)
{
    uint64_t seen = state_of(barrier);
    return (uint32_t)seen == phase && end_phase(barrier, seen, false, true) ? -ETIMEDOUT : how_it_ended(barrier, phase);
}

/* Look, once a slice for all who wait, whether one of them is dead. Who has the mutex is not waited for: it may be
 * stopped, and the phase ends all the same. */
static void look_after_the_dead(mmk_barrier *barrier, uint32_t phase)
{
    int error = robust_try(mutex_of(barrier));
    if (error == -EOWNERDEAD)
        robust_settled(mutex_of(barrier));
    else if (error)
        return;
    uint64_t now = mmk_now(), seen = state_of(barrier);
    /* A moment that lies ahead counts as long ago. */
    if ((uint32_t)seen == phase && now - barrier->looked_after >= MMK_SLICE / 2) {
        barrier->looked_after = now;
        if (somebody_is_gone(barrier, phase))
            end_phase(barrier, seen, false, true);
    }
    leave(barrier);
}

/* ---- the calls -------------------------------------------------------------------------------------- */

/* Come to the barrier. returns the place's number, or an error; *last says whether that has ended the phase. */
static int come(mmk_barrier *barrier, const mmk_process *self, uint32_t *phase, bool *last)
{
    uint64_t seen = state_of(barrier);
    if (seen & BROKEN)
        return -MMK_EBROKEN;
    *phase = (uint32_t)seen;
    *last = count_waiting(barrier, *phase) + 1 >= barrier->parties;
    if (!*last)
        return (int)take_place(barrier, self, *phase);
    bool all_live = !somebody_is_gone(barrier, *phase);
    int place = all_live ? (int)take_place(barrier, self, *phase) : -MMK_EBROKEN;
    return end_phase(barrier, seen, all_live, !all_live) ? place : -MMK_EBROKEN;
}

/* returns 0 when the phase has ended well; -MMK_EBROKEN; -ETIMEDOUT, and it is broken; -EINTR while it lasts. */
static int wait_for_end(mmk_barrier *barrier, uint32_t phase, const mmk_wait *wait)
{
    for (;;) {
        int error = mmk_futex_wait(phase_word(barrier), phase, wait);
        int end = how_it_ended(barrier, phase);
        if (end != -EAGAIN)
            return end;
        if (error == -ETIMEDOUT)
            return break_phase(barrier, phase);
        if (error == -EAGAIN)
            look_after_the_dead(barrier, phase);
        else if (error)
            return error;
    }
}

/* Go before the phase has ended. With the mutex no last party is counting; who is stopped with it is not waited for,
 * and then the place may be another's at any instant, since the phase may have ended.
 * returns -EINTR, or how the phase has ended. */
static int give_up_place(mmk_barrier *barrier, mmk_party *place, uint64_t mine)
{
    int error = enter(barrier, &(mmk_wait){.deadline = 0}); /* a slice */
    uint32_t phase = (uint32_t)(mine >> PHASE_BITS);
    int end = how_it_ended(barrier, phase);
    if (end == -EAGAIN)
        end = atomic_compare_exchange_strong(&place->who, &mine, 0) ? -EINTR : how_it_ended(barrier, phase);
    if (!error)
        leave(barrier);
    return end;
}

int mmk_barrier_wait(mmk_barrier *barrier, const mmk_wait *wait)
{
    mmk_process self;
    uint32_t phase;
    bool last;
    int error = mmk_process_self(&self);
    if (!error)
        error = enter(barrier, wait);
    if (error)
        return error;
    int place = come(barrier, &self, &phase, &last);
    leave(barrier);
    if (place < 0 || last)
        return place;
    error = wait_for_end(barrier, phase, wait);
    if (error == -EINTR)
        error = give_up_place(barrier, &barrier->places[place], as_party(&self, phase));
    return error ? error : place;
}

int mmk_barrier_abort(mmk_barrier *barrier, const mmk_wait *wait)
{
    int error = enter(barrier, wait);
    if (error)
        return error;
    uint64_t seen = state_of(barrier);
    while (!(seen & BROKEN) && !end_phase(barrier, seen, false, true))
        seen = state_of(barrier);
    leave(barrier);
    return 0;
}

int mmk_barrier_reset(mmk_barrier *barrier, const mmk_wait *wait)
{
    int error = enter(barrier, wait);
    if (error)
        return error;
    bool is_whole = false;
    while (!is_whole) {
        uint64_t seen = state_of(barrier);
        bool nobody_waits = count_waiting(barrier, (uint32_t)seen) == 0;
        is_whole = (nobody_waits && !(seen & BROKEN)) || end_phase(barrier, seen, nobody_waits, false);
    }
    leave(barrier);
    return 0;
}
