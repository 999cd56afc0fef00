"""core/include/mmkit/lock.h and condition.h."""

from libc.stdint cimport uint32_t

from mmkit._native.placed cimport mmk_placed_kind, mmk_wait

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint bool "bool"

cdef extern from "mmkit/lock.h" nogil:
    ctypedef struct mmk_lock:
        pass

    int mmk_lock_create(mmk_lock *lock, mmk_placed_kind kind)
    int mmk_lock_try(mmk_lock *lock)
    int mmk_lock_acquire(mmk_lock *lock, const mmk_wait *wait)
    int mmk_lock_release(mmk_lock *lock)
    bool mmk_lock_is_mine(const mmk_lock *lock)
    int mmk_lock_recover(mmk_lock *lock, const mmk_wait *wait)
    int mmk_lock_begin_repair(mmk_lock *lock, const mmk_wait *wait)
    int mmk_lock_end_repair(mmk_lock *lock, bool repaired)
    bool mmk_lock_is_held_here(mmk_lock *lock)
    uint32_t mmk_lock_last_dead(const mmk_lock *lock)

cdef extern from "mmkit/condition.h" nogil:
    ctypedef struct mmk_condition:
        pass

    int mmk_condition_create(mmk_condition *condition)
    int mmk_condition_wait(mmk_condition *condition, const mmk_wait *wait)
    int mmk_condition_notify(mmk_condition *condition, uint32_t count)
