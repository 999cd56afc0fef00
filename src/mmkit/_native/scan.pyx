"""The way of a needle to the scanner: from the buffer that holds it straight into a file, with no copy in between."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport uintptr_t
from posix.unistd cimport write

from mmkit._native.scan cimport MMK_SCAN_NEEDLE_MAX, MMK_SCAN_NEEDLE_MIN

from mmkit.hints import failure

NEEDLE_MIN = MMK_SCAN_NEEDLE_MIN
NEEDLE_MAX = MMK_SCAN_NEEDLE_MAX


def hand_over(needle, int fd):
    """Write a buffer to a file, as one call of the kernel's does: it leaves nothing in vector registers.

    Returns
    -------
    address, length : int
        Where the buffer is.
    """
    cdef Py_buffer buffer
    cdef Py_ssize_t done = 0, got
    PyObject_GetBuffer(needle, &buffer, PyBUF_SIMPLE)
    try:
        if not MMK_SCAN_NEEDLE_MIN <= buffer.len <= MMK_SCAN_NEEDLE_MAX:
            return <uintptr_t>buffer.buf, buffer.len
        while done < buffer.len:
            got = write(fd, <const char *>buffer.buf + done, buffer.len - done)
            if got < 0 and errno == EINTR:
                continue
            if got <= 0:
                raise failure(-errno if got else -EIO, "write", (<uintptr_t>buffer.buf, buffer.len), (fd,))
            done += got
        return <uintptr_t>buffer.buf, buffer.len
    finally:
        PyBuffer_Release(&buffer)
