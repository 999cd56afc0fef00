"""A file descriptor that somebody owns at every moment, so that nobody closes it twice and nobody forgets it."""

cimport cython
from posix.unistd cimport close as c_close


@cython.auto_pickle(False)
@cython.final
cdef class Descriptor:
    """What a call opened: closed with this object, unless a region has taken it over.

    Between a call that returns a number and the ``try`` that would close it, a signal handler can raise, and after
    a close it can too. So Python code never has a number that it must close: it is in an object before any of that.

    Parameters
    ----------
    opener : callable
        Implemented in C; returns a new descriptor.
    *arguments
        Its arguments.
    """

    def __cinit__(self, opener, *arguments):
        self.fd = -1
        self.fd = opener(*arguments)

    def __dealloc__(self):
        self.end()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.end()

    def fileno(self):
        """Return the number; -1 once it is closed or somebody else's."""
        return self.fd

    def close(self):
        """Close it, if it is still this object's."""
        self.end()

    cdef void end(self) noexcept:
        cdef int fd = self.give_up()
        if fd >= 0:
            c_close(fd)

    cdef int give_up(self) noexcept:
        cdef int fd = self.fd
        self.fd = -1
        return fd
