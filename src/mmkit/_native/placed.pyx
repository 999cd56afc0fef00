"""What is placed in shared memory for processes to meet at: where it stands, who may use it, how long to wait."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.weakref cimport PyWeakref_GetObject
from libc.math cimport isnan

from mmkit._native.region cimport mmk_region_is_closed, mmk_view_close, mmk_view_open

from mmkit.errors import ClosedError
from mmkit.hints import failure as call_failure
from mmkit.hints import placed_failure

cdef enum:
    MAP_SHARED = 1
    EACCES = 13
    # Longer than any process lives, and fewer nanoseconds than fit.
    FOREVER_SECONDS = 2_000_000_000


cdef uint64_t as_deadline(object timeout) except? 1:
    """The moment at which a wait of so many seconds ends; None never does."""
    if timeout is None:
        return MMK_FOREVER
    if isinstance(timeout, bool):
        raise TypeError(f"timeout is in seconds, and 0 does not wait; {timeout} is neither")
    cdef double seconds = timeout
    if isnan(seconds) or seconds < 0:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    if seconds >= FOREVER_SECONDS:
        return MMK_FOREVER
    return mmk_now() + <uint64_t>(seconds * 1e9) if seconds else 0


cdef int look_for_signals(void *problem) noexcept with gil:
    """Run Python's signal handlers; what one raises ends the wait, and is raised when the core has come back."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        Py_XDECREF((<PyObject **>problem)[0])
        Py_INCREF(error)
        (<PyObject **>problem)[0] = <PyObject *>error
        return 1
    return 0


cdef void have_patience(patience *call, uint64_t deadline) noexcept:
    call.wait.deadline = deadline
    call.wait.interrupted = look_for_signals
    call.wait.of = &call.problem
    call.problem = NULL


cdef int check_patience(patience *call) except -1:
    """Raise what a signal handler has raised."""
    if call.problem == NULL:
        return 0
    problem = <object>call.problem
    Py_XDECREF(call.problem)
    call.problem = NULL
    raise problem


def publish_mapping(dict mapped not None, tuple key not None, object reference not None):
    """Give the mapping of a key that others stand on, or make this one, by its weak reference, what they stand on.

    Nothing of Python's runs in between: no other thread, no signal handler, no garbage collector. A lock around the
    same in Python would be taken twice by a thread whose signal handler or `__del__` closes something.
    """
    there = mapped.get(key)
    cdef MappedRegion region = None if there is None else <object>PyWeakref_GetObject(there)
    if region is not None and not mmk_region_is_closed(&region.handle):
        return region
    mapped[key] = reference
    return <object>PyWeakref_GetObject(reference)


def forget_mapping(dict mapped not None, tuple key not None, object reference not None):
    """Drop the weak reference to a mapping that is gone, unless the key has another since."""
    if mapped.get(key) is reference:
        del mapped[key]


@cython.no_gc_clear  # __dealloc__ needs the region
cdef class Placed:
    """An object at an offset of a shared region, which it pins. The public classes are in `mmkit.shared`."""

    def __dealloc__(self):
        if self.view == NULL:
            return
        if self.must_stay():
            # libc points to it from the list of the thread that holds it: it stays for as long as the process does.
            Py_INCREF(self.region)
            return
        mmk_view_close(&self.region.handle, self.view)
        PyMem_Free(self.view)

    @cython.final
    cdef int settle(self, MappedRegion region, size_t offset, size_t size, str label) except -1:
        """Find the place: aligned, inside, shared, writable; and pin it."""
        if self.view != NULL:
            raise ValueError(f"{self._label} is placed already")
        cdef size_t place = region.skew + offset
        region.check_open()
        if place % MMK_PLACED_ALIGNMENT:
            raise ValueError(
                f"{label}: the offset must be a multiple of {MMK_PLACED_ALIGNMENT} bytes"
                + (f" less {region.skew % MMK_PLACED_ALIGNMENT}, since the region starts within a page"
                   if region.skew % MMK_PLACED_ALIGNMENT else "")
            )
        if offset > region.size() or size > region.size() - offset:
            raise ValueError(
                f"{label}: {size} bytes at offset {offset} are not inside the region, which has {region.size()}"
            )
        if not region.handle.flags & MAP_SHARED:
            raise ValueError(
                f"{label}: the region is private, so no other process would see it; "
                "use Region.memfd(), Region.file(mode='r+') or Region.anonymous(shared=True)"
            )
        self.view = <mmk_view *>PyMem_Malloc(sizeof(mmk_view))
        if self.view == NULL:
            raise MemoryError
        cdef int error = mmk_view_open(&region.handle, self.view, place, size, True)
        if error:
            PyMem_Free(self.view)
            self.view = NULL
            if error == -EACCES:
                raise ValueError(f"{label}: the region cannot be written there, and taking a lock is writing")
            raise call_failure(error, "view")
        self.region = region
        self.at = region.handle.base + place
        self.generation = mmk_process_generation
        self._label = label
        return 0

    @cython.final
    cdef int check_made(self, int error) except -1:
        """Go on with what was made or found, or give up the place and say why there is nothing."""
        if error:
            self.leave()
            raise self.failure(error, "create" if error > -4096 else "attach")
        return 0

    @cython.final
    cdef int find(self, mmk_placed_kind kind, size_t size) except -1:
        return self.check_made(mmk_placed_check(<mmk_placed *>self.at, kind, size))

    @cython.final
    cdef int check_open(self) except -1:
        if self.at == NULL:
            raise ClosedError(f"{self._label or type(self).__name__} is closed")
        if self.generation != mmk_process_generation:
            self.check_generation()
        return 0

    @cython.final
    cdef int check_generation(self) except -1:
        """In a forked child: pids may mean something else here, and the memory may not have come along."""
        if mmk_region_is_closed(&self.region.handle):
            raise ClosedError(f"{self._label} is not there in this forked child (MADV_DONTFORK)")
        cdef int error = mmk_placed_check(<mmk_placed *>self.at, self.kind(), self.size())
        if error:
            raise self.failure(error, "attach")
        self.generation = mmk_process_generation
        self.waiting = 0
        return 0

    cdef bint must_stay(self) noexcept:
        return False

    cdef mmk_placed_kind kind(self) noexcept:
        return MMK_LOCK

    cdef size_t size(self) noexcept:
        return 0

    @cython.final
    cdef int leave(self) except -1:
        """Unpin the place."""
        mmk_view_close(&self.region.handle, self.view)
        PyMem_Free(self.view)
        self.view = NULL
        self.at = NULL
        self.region = None
        return 0

    @cython.final
    cdef object failure(self, int error, str call):
        return placed_failure(error, call, self._label)

    def _remove(self):
        """Make the place empty."""
        self.check_open()
        mmk_placed_remove(<mmk_placed *>self.at)

    def _leave(self):
        """Unpin the place, unless somebody in this process needs it."""
        if self.at == NULL:
            return
        # Of the parent's threads none is here.
        if self.waiting and self.generation == mmk_process_generation:
            raise BufferError(f"{self._label}: a thread is waiting here")
        if self.must_stay():
            raise BufferError(f"{self._label}: a thread of this process holds it; release it first")
        self.leave()

    @property
    def closed(self):
        """Whether it was closed in this process."""
        return self.at == NULL
