"""A region of the core as a Python object: how it begins and ends, which ranges it has, buffers of it."""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from posix.unistd cimport close as c_close

from mmkit._native.base cimport MMK_ECLOSED, mmk_page_size
from mmkit._native.descriptor cimport Descriptor
from mmkit._native.fault cimport MMK_FAULT_PROTECTION, mmk_fault
from mmkit._native.sys cimport mmk_registry_release, mmk_sys_munmap, mmk_sys_name_anonymous

from mmkit.errors import ClosedError
from mmkit.flags import MapFlag, Prot
from mmkit.hints import failure, memory_fault

cdef extern from "Python.h":
    size_t PY_SSIZE_T_MAX

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs:
        long f_type

    int fstatfs(int fd, statfs *buf)

cdef enum:
    PROT_WRITE = 2
    EACCES = 13
    ERANGE = 34
    TMPFS_MAGIC = 0x01021994
    HUGETLBFS_MAGIC = 0x958458F6


cdef inline size_t round_down(size_t value, size_t granule) noexcept:
    return value & ~(granule - 1)


cdef inline size_t round_up(size_t value, size_t granule) noexcept:
    return (value + granule - 1) & ~(granule - 1)


cdef extern from "Python.h":
    ctypedef struct PyMethodDef:
        pass

    ctypedef struct PyMethodDescrObject:
        PyMethodDef *d_method

    object PyDescr_NewMethod(type cls, PyMethodDef *method)


def adopt_methods(cls: type) -> type:
    """Class decorator: make inherited C methods the class's own.

    CPython calls a C method directly only where the receiver's type is exactly the type that the method
    belongs to; for an inherited one it takes the general way, which costs 10 to 15 ns more.
    """
    for base in cls.__mro__[1:]:
        for name, method in vars(base).items():
            if type(method) is type(str.join) and not name.startswith("__") and name not in vars(cls):
                setattr(cls, name, PyDescr_NewMethod(cls, (<PyMethodDescrObject *>method).d_method))
    return cls


cdef bint is_on_slow_storage(int fd):
    """Can writing this file back block? Memory files have nothing to write back to."""
    cdef statfs status
    if fd < 0:
        return False
    return fstatfs(fd, &status) < 0 or status.f_type not in (TMPFS_MAGIC, HUGETLBFS_MAGIC)


cdef class MappedRegion:
    """The life of a region, its ranges and its views. `mmkit.Region` is the public class."""

    # What a class says of what is closed.
    _closed_text = "the region is closed"

    def __cinit__(self, *args, **kwargs):
        # A zeroed handle is a closed region, until _map.
        self.handle.fd = -1

    def __dealloc__(self):
        cdef size_t i
        mmk_region_dispose(&self.handle)
        for i in range(self.vacated_count):
            mmk_registry_release(self.vacated[i])
            mmk_sys_munmap(self.vacated[i].base, self.vacated[i].length)
        PyMem_Free(self.vacated)
        if self.handle.fd >= 0:
            c_close(self.handle.fd)

    def _map(
        self, size_t length, int prot, int flags, *, Descriptor file=None, int borrowed=-1, size_t offset=0,
        size_t reserve=0, size_t guard=0, size_t granule=0, bint may_shrink=False, bint always_locked=False,
        int shmid=-1
    ):
        """Map, or attach a System V segment.

        A file that is mapped becomes the region's, which closes it; one that is not is closed. One that is borrowed
        instead is forgotten once it is mapped.
        """
        cdef mmk_request request
        cdef int fd = borrowed if file is None else file.fd
        cdef size_t page = granule if granule else mmk_page_size()
        self.skew = offset & (page - 1)
        if length > PY_SSIZE_T_MAX - self.skew or reserve > PY_SSIZE_T_MAX - self.skew:
            raise ValueError(f"{length} bytes at offset {offset} are more than any address space has")
        request.length = length + self.skew
        request.reserve = reserve + self.skew if reserve else 0
        request.guard = guard
        request.granule = granule
        request.prot = prot
        request.flags = flags
        request.fd = fd
        request.file_offset = offset - self.skew
        request.may_shrink = may_shrink
        request.always_locked = always_locked
        request.system_v = shmid >= 0
        request.shmid = shmid
        self.slow_storage = is_on_slow_storage(fd)
        cdef int error = mmk_region_map(&self.handle, &request)
        self.handle.fd = -1
        if error:
            if file is not None:
                file.end()
            if shmid >= 0:
                raise failure(error, "shmat", None, (shmid, Prot(prot)))
            raise failure(error, "mmap", (0, request.length), (Prot(prot), MapFlag(flags), fd, offset - self.skew))
        if file is not None:
            self.handle.fd = file.give_up()

    def _name_for_kernel(self, bytes name):
        """Name an anonymous region in /proc/PID/maps, where the kernel can (CONFIG_ANON_VMA_NAME)."""
        mmk_sys_name_anonymous(self.handle.base, mmk_region_length(&self.handle), name)

    # The descriptor's number never leaves the region for these: another thread could close it meanwhile, and open
    # a file that gets the same number.

    def _file_size(self):
        """Return how long the file behind the region is, in bytes."""
        cdef uint64_t size = 0
        cdef int error
        with nogil:
            error = mmk_region_file_size(&self.handle, &size)
        if error:
            raise failure(error, "fstat", None, (self.handle.fd,))
        return size

    def _add_seals(self, seals):
        """Seal the memory file behind the region."""
        cdef int error, bits = seals
        with nogil:
            error = mmk_region_add_seals(&self.handle, bits)
        if error:
            raise failure(error, "F_ADD_SEALS", None, (self.handle.fd, seals))

    # ---- ranges -------------------------------------------------------------------------------------

    @cython.final
    cdef object closed_error(self):
        return ClosedError(self._closed_text)

    @cython.final
    cdef int check_open(self) except -1:
        if mmk_region_is_closed(&self.handle):
            raise self.closed_error()
        return 0

    @cython.final
    cdef int check_range(self, Py_ssize_t offset, object length, size_t *count) except -1:
        cdef size_t size = self.size()
        cdef Py_ssize_t wanted
        self.check_open()
        if offset >= 0 and <size_t>offset <= size:
            if length is None:
                count[0] = size - <size_t>offset
                return 0
            wanted = length
            if wanted >= 0 and <size_t>wanted <= size - <size_t>offset:
                count[0] = <size_t>wanted
                return 0
        raise ValueError(
            f"the range of {size if length is None else length} bytes at offset {offset} is not inside the region, "
            f"which has {size} bytes"
        )

    @cython.final
    cdef int widen(self, Py_ssize_t offset, object length, span *pages) except -1:
        """Whole pages around a range, for calls that lose nothing by covering more."""
        cdef size_t count = 0, end
        self.check_range(offset, length, &count)
        if count == 0:
            pages[0] = span(0, 0, offset, 0)
            return 0
        pages.start = round_down(self.skew + offset, self.handle.granule)
        end = round_up(self.skew + offset + count, self.handle.granule)
        self.clip(pages, end)
        return 0

    @cython.final
    cdef int shrink(self, Py_ssize_t offset, object length, span *pages) except -1:
        """Whole pages inside a range, for calls that destroy. The region's own ends count as page ends."""
        cdef size_t count = 0, end
        self.check_range(offset, length, &count)
        pages.start = 0 if offset == 0 else round_up(self.skew + offset, self.handle.granule)
        end = self.skew + offset + count
        end = mmk_region_length(&self.handle) if end == self.handle.asked else round_down(end, self.handle.granule)
        if count == 0 or pages.start >= end:
            pages[0] = span(0, 0, offset, 0)
        else:
            self.clip(pages, end)
        return 0

    @cython.final
    cdef void clip(self, span *pages, size_t end) noexcept:
        """Fill in the rest of a span from its start to its end, both on pages."""
        pages.length = end - pages.start
        pages.offset = pages.start - self.skew if pages.start > self.skew else 0
        pages.covered = min(end, self.handle.asked) - self.skew - pages.offset

    @cython.final
    cdef tuple covered(self, span pages):
        """What a call answers. Most calls cover the whole region: that answer is kept."""
        if pages.offset or pages.covered != self.size():
            return pages.offset, pages.covered
        if self.whole is None or self.whole_size != pages.covered:
            self.whole, self.whole_size = (0, pages.covered), pages.covered
        return self.whole

    @cython.final
    cdef object fail(self, long code, str call, span pages, tuple arguments=()):
        if code == -ERANGE:
            return ValueError(f"{call}: the range is no longer inside the region: another thread made it shorter")
        return failure(code, call, (<size_t>self.handle.base + pages.start, pages.length), arguments)

    @cython.final
    cdef object answer(self, long error, str call, span pages, tuple arguments=()):
        """What was covered, or the exception for it."""
        if error:
            raise self.fail(error, call, pages, arguments)
        return self.covered(pages)

    # ---- bad accesses -------------------------------------------------------------------------------

    def on_fault(self, callback):
        """Have a function called when an access to the region fails, before the exception is raised.

        It sees accesses through the region's own methods only: those of views and arrays are not mmkit's.

        Parameters
        ----------
        callback : callable or None
            Called with the `MemoryFault`, in the thread of the access. What it returns is ignored, and what it
            raises goes to `sys.unraisablehook`. None ends it.

        Raises
        ------
        ClosedError
            The region was closed.
        """
        self.check_open()
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable or None, not {callback!r}")
        self.observer = callback

    @cython.final
    cdef object bad_access(self, const mmk_fault *fault):
        cdef size_t start = <size_t>self.handle.base + self.skew, place = fault.address - start
        cure = None
        if fault.reason == MMK_FAULT_PROTECTION and fault.write and self.handle.fd >= 0:
            if not self.handle.prot & PROT_WRITE:
                cure = "map the file with mode='r+', or with mode='c' for a private copy"
        offset = place if place < self.size() else None
        error = memory_fault(fault.address, offset, fault.write, fault.reason, cure)
        observer = self.observer
        if observer is not None:
            try:
                observer(error)
            except BaseException as problem:
                PyErr_SetObject(type(problem), problem)
                PyErr_WriteUnraisable(observer)
        return error

    # ---- life ---------------------------------------------------------------------------------------

    def close(self):
        """End the region: its contents go, and it can no longer be used.

        Its addresses stay taken, without access, until the object dies: what still points there (an array
        made by ``np.ndarray(buffer=region)``) faults instead of reaching somebody else's memory. Closing
        twice does nothing. A region sealed by `mseal` stays mapped until the process ends.

        Raises
        ------
        BufferError
            A view is live, or an operation is running in another thread; nothing has changed.

        References
        ----------
        munmap(2), POSIX.1-2024
        """
        if mmk_region_is_closed(&self.handle):
            return
        cdef int error
        with nogil:
            error = mmk_region_close(&self.handle)
        if error == -MMK_ECLOSED:
            return
        if error:
            raise self.fail(error, "close", span(0, mmk_region_length(&self.handle), 0, 0))
        if self.handle.fd >= 0:
            c_close(self.handle.fd)
            self.handle.fd = -1

    @property
    def closed(self):
        """Whether the region was closed."""
        return mmk_region_is_closed(&self.handle)

    @property
    def address(self):
        """Address of the first byte of data."""
        self.check_open()
        self.handle.exposed = True
        return <size_t>self.handle.base + self.skew

    def __len__(self):
        self.check_open()
        return self.size()

    @property
    def prot(self):
        """What every page of the region allows now: of parts that differ, what they have in common."""
        self.check_open()
        return Prot(mmk_region_prot_of_range(&self.handle, 0, mmk_region_length(&self.handle)))

    @property
    def _range(self):
        # Unlike `address`, this does not count as handing out a pointer.
        cdef size_t base = <size_t>self.handle.base + self.skew
        return base, base + self.size()

    @property
    def flags(self):
        """The mmap(2) flags it was mapped with."""
        return MapFlag(self.handle.flags)

    @property
    def _viewed(self):
        # A snapshot: another thread may take a view at once.
        return mmk_region_has_views(&self.handle)

    @property
    def _fd(self):
        return self.handle.fd

    @property
    def _page_size(self):
        return self.handle.granule

    # ---- views --------------------------------------------------------------------------------------

    @cython.final
    cdef mmk_view *open_view(self, size_t offset, size_t length, bint must_write, bint *writable) except NULL:
        """Register a view, writable if all of the range is; to be given to close_view."""
        cdef mmk_view *view = <mmk_view *>PyMem_Malloc(sizeof(mmk_view))
        if not view:
            raise MemoryError
        writable[0] = True
        cdef int error = mmk_view_open(&self.handle, view, self.skew + offset, length, True)
        if error == -EACCES and not must_write:
            writable[0] = False
            error = mmk_view_open(&self.handle, view, self.skew + offset, length, False)
        if error:
            PyMem_Free(view)
            if error == -EACCES:
                raise self.denied("writable" if must_write else "readable", offset, length)
            raise self.fail(error, "view", span(offset, length, 0, 0))
        return view

    @cython.final
    cdef void close_view(self, mmk_view *view) noexcept:
        mmk_view_close(&self.handle, view)
        PyMem_Free(view)

    @cython.final
    cdef object denied(self, str what, size_t offset, size_t length):
        return BufferError(f"bytes {offset} to {offset + length} of the region are not all {what}: see protect()")

    @cython.final
    cdef void fill_buffer(
        self, Py_buffer *buffer, int flags, object exporter, size_t offset, size_t length, bint writable
    ) noexcept:
        buffer.buf = self.handle.base + self.skew + offset
        buffer.len = length
        buffer.readonly = not writable
        buffer.itemsize = 1
        buffer.format = NULL
        if flags & PyBUF_FORMAT:
            buffer.format = <char *>b"B"
        buffer.ndim = 1
        # Of the buffer itself: the region may grow while the view lives.
        buffer.shape = &buffer.len if flags & PyBUF_ND else NULL
        buffer.strides = &buffer.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.obj = exporter

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        cdef bint writable = False
        cdef mmk_view *view = self.open_view(0, self.size(), flags & PyBUF_WRITABLE, &writable)
        self.fill_buffer(buffer, flags, self, 0, self.size(), writable)
        buffer.internal = view

    def __releasebuffer__(self, Py_buffer *buffer):
        self.close_view(<mmk_view *>buffer.internal)

    def view(self, start=None, stop=None):
        """Return a memoryview of part of the region, without copying.

        The view keeps the region alive and open, and only its own part from being protected or discarded. So does
        what is made of it, even ``np.ndarray(buffer=region.view())``, which lets go of the memoryview.

        Parameters
        ----------
        start, stop : int or None
            Bytes, as in a slice.

        Returns
        -------
        memoryview
            Of bytes; writable if all of that part is.

        Raises
        ------
        BufferError
            Part of it is not readable.
        ClosedError
            The region was closed.
        """
        self.check_open()
        first, last, _ = slice(start, stop).indices(self.size())
        return memoryview(Window(self, first, max(first, last) - first))


@cython.no_gc_clear  # __dealloc__ needs the region
cdef class Window:
    """Part of a region, to take buffers of. It is a live view itself, from the first buffer to its own end.

    numpy.ndarray(buffer=) keeps the address and the object that gave it, but no buffer: this object.
    """

    cdef MappedRegion region
    cdef size_t offset
    cdef size_t length
    cdef mmk_view *view
    cdef bint writable

    def __cinit__(self, MappedRegion region not None, size_t offset, size_t length):
        self.region = region
        self.offset = offset
        self.length = length

    def __dealloc__(self):
        if self.view:
            self.region.close_view(self.view)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        cdef bint must_write = flags & PyBUF_WRITABLE
        if not self.view:
            self.view = self.region.open_view(self.offset, self.length, must_write, &self.writable)
        elif must_write and not self.writable:
            raise self.region.denied("writable", self.offset, self.length)
        self.region.fill_buffer(buffer, flags, self, self.offset, self.length, self.writable)
