"""core/include/mmkit/region.h and how a region's contents are reached; and the class that holds one."""

cimport cython
from libc.stdint cimport uint64_t

from mmkit._native.base cimport mmk_range
from mmkit._native.fault cimport mmk_fault

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint bool "bool"

cdef extern from "mmkit/region.h" nogil:
    ctypedef struct mmk_view:
        pass

    ctypedef struct mmk_cover:
        pass

    ctypedef struct mmk_region:
        char *base
        size_t asked
        size_t granule
        mmk_range outer
        int prot
        int flags
        int fd
        uint64_t file_offset
        bool exposed
        bool sealed

    ctypedef struct mmk_request:
        size_t length
        size_t reserve
        size_t guard
        size_t granule
        int prot
        int flags
        int fd
        uint64_t file_offset
        bool may_shrink
        bool always_locked
        bool system_v
        int shmid

    int mmk_region_map(mmk_region *region, const mmk_request *request)
    int mmk_region_close(mmk_region *region)
    void mmk_region_dispose(mmk_region *region)
    int mmk_view_open(mmk_region *region, mmk_view *view, size_t offset, size_t length, bool writable)
    void mmk_view_close(mmk_region *region, mmk_view *view)
    int mmk_region_seal(mmk_region *region)
    size_t mmk_region_length(const mmk_region *region)
    bool mmk_region_is_closed(const mmk_region *region)
    bool mmk_region_has_views(mmk_region *region)
    const char *mmk_region_tenant(mmk_region *region)

cdef extern from "mmkit/protect.h" nogil:
    int mmk_region_prot_of_range(mmk_region *region, size_t offset, size_t length)

cdef extern from "mmkit/storage.h" nogil:
    int mmk_region_file_size(mmk_region *region, uint64_t *size)
    int mmk_region_add_seals(mmk_region *region, int seals)

cdef extern from "mmkit/access.h" nogil:
    int mmk_access_load(mmk_region *region, size_t offset, void *into, size_t length, mmk_fault *fault)
    int mmk_access_store(mmk_region *region, size_t offset, const void *source, size_t length, mmk_fault *fault)
    int mmk_access_move(mmk_region *region, size_t to, size_t offset, size_t length, mmk_fault *fault)
    ssize_t mmk_access_find(
        mmk_region *region, size_t offset, size_t length, const void *needle, size_t needle_length, mmk_fault *fault
    )
    ssize_t mmk_access_rfind(
        mmk_region *region, size_t offset, size_t length, const void *needle, size_t needle_length, mmk_fault *fault
    )


# Part of a region, twice: as pages, from the region's base, for the kernel; and as data, for the caller.
cdef struct span:
    size_t start
    size_t length
    size_t offset
    size_t covered


cdef class MappedRegion:
    cdef object __weakref__
    cdef mmk_region handle
    cdef size_t skew
    cdef bint slow_storage
    cdef mmk_range *vacated
    cdef size_t vacated_count
    cdef size_t resizing
    cdef tuple whole
    cdef size_t whole_size
    cdef object observer

    @cython.final
    cdef inline size_t size(self) noexcept:
        return self.handle.asked - self.skew
    cdef object closed_error(self)
    cdef int check_open(self) except -1
    cdef int check_range(self, Py_ssize_t offset, object length, size_t *count) except -1
    cdef int widen(self, Py_ssize_t offset, object length, span *pages) except -1
    cdef int shrink(self, Py_ssize_t offset, object length, span *pages) except -1
    cdef void clip(self, span *pages, size_t end) noexcept
    cdef tuple covered(self, span pages)
    cdef object fail(self, long code, str call, span pages, tuple arguments=*)
    cdef object answer(self, long error, str call, span pages, tuple arguments=*)
    cdef object bad_access(self, const mmk_fault *fault)
    cdef mmk_view *open_view(self, size_t offset, size_t length, bint must_write, bint *writable) except NULL
    cdef void close_view(self, mmk_view *view) noexcept
    cdef object denied(self, str what, size_t offset, size_t length)
    cdef void fill_buffer(
        self, Py_buffer *buffer, int flags, object exporter, size_t offset, size_t length, bint writable
    ) noexcept
