"""The class through which a region's contents are read and written."""

from mmkit._native.fault cimport mmk_fault
from mmkit._native.pages cimport RegionPages


cdef class RegionContents(RegionPages):
    cdef Py_ssize_t position

    cdef object refusal(self, long code, size_t offset, const mmk_fault *fault)
    cdef Py_ssize_t unpack(self, object key, Py_ssize_t *start, Py_ssize_t *step) except -1
    cdef int load(self, size_t offset, void *into, size_t length) except -1
    cdef int store(self, size_t offset, const void *source, size_t length) except -1
    cdef bytes load_bytes(self, size_t offset, size_t length)
    cdef bytes load_stepped(self, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count)
    cdef Py_ssize_t checked_index(self, object key) except -1
    cdef int set_item(self, object key, object value) except -1
    cdef int store_slice(
        self, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count, const char *source, Py_ssize_t length
    ) except -1
    cdef int move_bytes(self, Py_ssize_t dest, Py_ssize_t src, Py_ssize_t count) except -1
    cdef Py_ssize_t write_on(self, object data) except -1
    cdef Py_ssize_t search(self, object needle, Py_ssize_t start, Py_ssize_t end, bint backwards) except -2
    cdef object search_slice(self, object sub, object start, object end, bint backwards)
