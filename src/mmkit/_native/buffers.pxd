"""The buffer of a block: plain bytes."""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES


cdef inline void fill_with_bytes(Py_buffer *buffer, object exporter, char *bytes, Py_ssize_t *size, int flags) noexcept:
    """Fill in a writable buffer of `size` bytes. pre: `size` stays where it is as long as the exporter."""
    buffer.buf = bytes
    buffer.len = size[0]
    buffer.readonly = False
    buffer.itemsize = 1
    buffer.format = <char *>b"B" if flags & PyBUF_FORMAT else NULL
    buffer.ndim = 1
    buffer.shape = size if flags & PyBUF_ND else NULL
    buffer.strides = &buffer.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
    buffer.suboffsets = NULL
    buffer.internal = NULL
    buffer.obj = exporter
