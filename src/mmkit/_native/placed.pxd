"""core/include/mmkit/futex.h, process.h and placed.h; and the class of what is placed in shared memory."""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from mmkit._native.region cimport MappedRegion, mmk_view

cdef extern from "mmkit/futex.h" nogil:
    uint64_t MMK_FOREVER

    ctypedef struct mmk_wait:
        uint64_t deadline
        int (*interrupted)(void *of) noexcept nogil
        void *of

    uint64_t mmk_now()

cdef extern from "mmkit/process.h" nogil:
    uint32_t mmk_process_generation

cdef extern from "mmkit/placed.h" nogil:
    int MMK_PLACED_ALIGNMENT
    int MMK_ENOTHING
    int MMK_EALIEN
    int MMK_EHALFMADE
    int MMK_EKIND
    int MMK_EBOOT
    int MMK_EABI

    ctypedef enum mmk_placed_kind:
        MMK_LOCK
        MMK_RLOCK
        MMK_CONDITION
        MMK_SEMAPHORE
        MMK_EVENT
        MMK_BARRIER

    ctypedef struct mmk_placed:
        pass

    int mmk_placed_check(const mmk_placed *placed, mmk_placed_kind kind, size_t size)
    void mmk_placed_remove(mmk_placed *placed)


# How long a call may wait, and what a signal handler raised meanwhile.
cdef struct patience:
    mmk_wait wait
    PyObject *problem


cdef uint64_t as_deadline(object timeout) except? 1
cdef void have_patience(patience *call, uint64_t deadline) noexcept
cdef int check_patience(patience *call) except -1


cdef class Placed:
    cdef MappedRegion region
    cdef mmk_view *view
    cdef void *at
    cdef uint32_t generation
    cdef uint32_t waiting
    cdef readonly str _label

    cdef int settle(self, MappedRegion region, size_t offset, size_t size, str label) except -1
    cdef int check_made(self, int error) except -1
    cdef int find(self, mmk_placed_kind kind, size_t size) except -1
    cdef int check_open(self) except -1
    cdef int check_generation(self) except -1
    cdef int leave(self) except -1
    cdef bint must_stay(self) noexcept
    cdef mmk_placed_kind kind(self) noexcept
    cdef size_t size(self) noexcept
    cdef object failure(self, int error, str call)
