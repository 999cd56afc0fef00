"""A snapshot of the core as a Python object."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from mmkit._native.base cimport MMK_ECLOSED, MMK_EUNSUPPORTED
from mmkit._native.fault cimport mmk_fault
from mmkit._native.region cimport MappedRegion
from mmkit._native.snapshot cimport (
    mmk_snapshot,
    mmk_snapshot_faults,
    mmk_snapshot_next_dirty,
    mmk_snapshot_read,
    mmk_snapshot_release,
    mmk_snapshot_restore,
    mmk_snapshot_take,
)

from mmkit.errors import ClosedError, Error
from mmkit.flags import Prot
from mmkit.hints import failure as system_failure

cdef enum:
    EBUSY = 16
    EFAULT = 14
    AT_ONCE = 64


@cython.no_gc_clear  # __dealloc__ needs the region
cdef class SnapshotHandle:
    """A region as it was. `mmkit.snapshot.Snapshot` is the public class."""

    cdef mmk_snapshot handle
    cdef MappedRegion region
    cdef size_t length
    cdef bint ended

    def __cinit__(self, MappedRegion region not None):
        region.check_open()
        cdef int error
        with nogil:
            error = mmk_snapshot_take(&self.handle, &region.handle)
        if error == -EBUSY:
            raise Error("the region has a snapshot already: release() that one first")
        if error == -MMK_EUNSUPPORTED:
            raise Error(
                "only private anonymous memory can have a snapshot: others write to shared memory and to files without "
                "this process noticing. Use Region.anonymous(n)"
            )
        self.length = region.size()
        if error:
            raise system_failure(error, "mprotect", (<size_t>region.handle.base, self.length), (Prot.READ,))
        self.region = region

    def __dealloc__(self):
        mmk_snapshot_release(&self.handle)

    @cython.final
    cdef object failure(self, long code, const mmk_fault *fault):
        if code == -MMK_ECLOSED:
            return ClosedError("the snapshot was released, or this process is a child that has not got its region")
        if code == -EFAULT:
            return self.region.bad_access(fault)
        return system_failure(code, "snapshot")

    def _read(self, size_t offset, size_t length):
        cdef bytes data = PyBytes_FromStringAndSize(NULL, length)
        cdef char *into = PyBytes_AS_STRING(data)
        cdef mmk_fault fault
        cdef int error
        with nogil:
            error = mmk_snapshot_read(&self.handle, offset, into, length, &fault)
        if error:
            raise self.failure(error, &fault)
        return data

    def restore(self):
        """Write back every page that was written since. The snapshot stays, and those pages stay kept.

        What another thread writes meanwhile may stay.

        Raises
        ------
        MemoryFault
            A page may not be written now: see `Region.protect`. If its protection says so, nothing has changed.
        ClosedError
            The snapshot was released.
        """
        cdef mmk_fault fault
        cdef int error
        with nogil:
            error = mmk_snapshot_restore(&self.handle, &fault)
        if error:
            raise self.failure(error, &fault)

    def dirty_ranges(self):
        """Return which bytes lie on pages written since it was taken: a list of (offset, length), by offset.

        Whole pages, clipped to the region. Pages populated for writing count as written.

        Raises
        ------
        ClosedError
            The snapshot was released.
        """
        cdef list ranges = []
        cdef size_t offset = 0, length = 0
        cdef int found
        while True:
            with nogil:
                found = mmk_snapshot_next_dirty(&self.handle, &offset, &length)
            if found < 0:
                raise self.failure(found, NULL)
            if not found:
                return ranges
            ranges.append((offset, min(length, self.length - offset)))
            offset += length

    def faults(self):
        """Return where each first write to a page hit, in their order: offsets in bytes.

        Raises
        ------
        ClosedError
            The snapshot was released.
        """
        cdef list offsets = []
        cdef size_t some[AT_ONCE]
        cdef Py_ssize_t got = AT_ONCE, i
        while got == AT_ONCE:
            got = mmk_snapshot_faults(&self.handle, <size_t>len(offsets), some, AT_ONCE)
            if got < 0:
                raise self.failure(got, NULL)
            for i in range(got):
                offsets.append(some[i])
        return offsets

    def release(self):
        """End it: no write is caught any more, and what it kept is gone. Releasing twice does nothing."""
        self.ended = True
        with nogil:
            mmk_snapshot_release(&self.handle)

    @property
    def released(self):
        """Whether it was released."""
        return self.ended

    def __len__(self):
        return self.length
