"""Owned file descriptors."""


cdef class Descriptor:
    cdef int fd

    cdef void end(self) noexcept
    cdef int give_up(self) noexcept
