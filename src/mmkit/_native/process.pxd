"""core/include/mmkit/process.h."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "mmkit/process.h" nogil:
    ctypedef struct mmk_process:
        uint32_t pid
        uint64_t start

    ctypedef enum mmk_life:
        MMK_LIFE_UNKNOWN
        MMK_LIFE_LASTS
        MMK_LIFE_ENDED

    int mmk_process_self(mmk_process *self)
    mmk_life mmk_process_life(const mmk_process *process)
    int mmk_process_start(uint32_t pid, uint64_t *start)
    int mmk_process_boot(uint8_t *boot)
    int mmk_process_namespace(uint64_t *namespaces)
