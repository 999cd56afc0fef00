"""core/include/mmkit/guarded.h and fault.h."""

from libc.stdint cimport uintptr_t

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint bool "bool"

cdef extern from "mmkit/guarded.h" nogil:
    ctypedef struct mmk_fault:
        uintptr_t address
        int reason
        bool write

    int MMK_FAULT_PROTECTION

    int mmk_guarded_copy(void *to, const void *source, size_t length, mmk_fault *fault)

cdef extern from "mmkit/fault.h" nogil:
    void mmk_fault_come_first()
    void mmk_fault_interpreter(const void *function)
