"""core/include/mmkit/semaphore.h, event.h and barrier.h."""

from libc.stdint cimport int64_t, uint32_t

from mmkit._native.placed cimport mmk_wait

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint bool "bool"

cdef extern from "mmkit/semaphore.h" nogil:
    ctypedef struct mmk_semaphore:
        pass

    int mmk_semaphore_create(mmk_semaphore *semaphore, uint32_t permits, bool are_held)
    int mmk_semaphore_try(mmk_semaphore *semaphore)
    int mmk_semaphore_acquire(mmk_semaphore *semaphore, const mmk_wait *wait)
    int mmk_semaphore_release(mmk_semaphore *semaphore, const mmk_wait *wait)
    int64_t mmk_semaphore_recover(mmk_semaphore *semaphore, const mmk_wait *wait)
    uint32_t mmk_semaphore_value(const mmk_semaphore *semaphore)

cdef extern from "mmkit/event.h" nogil:
    ctypedef struct mmk_event:
        pass

    int mmk_event_create(mmk_event *event)
    void mmk_event_set(mmk_event *event)
    void mmk_event_clear(mmk_event *event)
    bool mmk_event_is_set(const mmk_event *event)
    int mmk_event_wait(mmk_event *event, const mmk_wait *wait)

cdef extern from "mmkit/barrier.h" nogil:
    int MMK_EBROKEN
    int MMK_BARRIER_PARTIES

    ctypedef struct mmk_barrier:
        uint32_t parties

    int mmk_barrier_create(mmk_barrier *barrier, uint32_t parties)
    int mmk_barrier_wait(mmk_barrier *barrier, const mmk_wait *wait)
    int mmk_barrier_abort(mmk_barrier *barrier, const mmk_wait *wait)
    int mmk_barrier_reset(mmk_barrier *barrier, const mmk_wait *wait)
    bool mmk_barrier_is_broken(const mmk_barrier *barrier)
    uint32_t mmk_barrier_waiting(const mmk_barrier *barrier)
