"""core/include/mmkit/secret.h and secret_prompt.h, and the class that holds a secret."""

from libc.stdint cimport uint32_t, uint64_t

from mmkit._native.region cimport bool

cdef extern from "mmkit/secret.h" nogil:
    ctypedef enum mmk_secret_kind:
        MMK_SECRET_LOCKED
        MMK_SECRET_UNLOCKED
        MMK_SECRET_MEMFD

    ctypedef struct mmk_secret:
        void *area
        char *bytes
        size_t length
        size_t readers
        size_t writers

    ctypedef struct mmk_secret_refusal:
        const char *call
        size_t length

    int mmk_secret_take(
        mmk_secret *secret, size_t length, mmk_secret_kind kind, bool alone, mmk_secret_refusal *refusal
    )
    int mmk_secret_open(mmk_secret *secret, bool write)
    int mmk_secret_shut(mmk_secret *secret, bool write)
    int mmk_secret_give(mmk_secret *secret)
    bool mmk_secret_is_closed(const mmk_secret *secret)
    int mmk_secret_wipe(mmk_secret *secret)
    int mmk_secret_randomize(mmk_secret *secret)
    size_t mmk_secret_footprint()
    void mmk_secret_copy(void *to, const void *source, size_t length)
    void mmk_secret_erase(void *bytes, size_t length)
    bool mmk_secret_equal(const void *one, const void *other, size_t length)
    void mmk_secret_scrub()

cdef extern from "mmkit/secret_prompt.h" nogil:
    ssize_t mmk_secret_prompt(int terminal, const char *text, bool again, char *line, size_t room)


cdef class SecretHandle:
    cdef object __weakref__
    cdef mmk_secret handle
    cdef Py_ssize_t size
    cdef object failure(self, int error, str call)
    cdef int open_now(self, bint write, str call) except -1
    cdef int shut_now(self, bint write, str call) except -1
    cdef bint equals_secret(self, SecretHandle other) except -1
    cdef bint equals_buffer(self, object other) except -1


cdef class OpenSecret:
    cdef SecretHandle secret
    cdef object view
    cdef Py_ssize_t exports
    cdef bint write
    cdef bint entering
