"""A region of the core as a Python object: ranges in, calls through, buffers out."""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.errno cimport errno
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as c_open
from posix.unistd cimport close as c_close

from mmkit._native.base cimport MMK_ECLOSED, MMK_EPINNED, MMK_EUNSUPPORTED, mmk_page_size, mmk_range
from mmkit._native.descriptor cimport Descriptor
from mmkit._native.fault cimport MMK_FAULT_PROTECTION, mmk_fault
from mmkit._native.sys cimport mmk_registry_hold, mmk_registry_release, mmk_sys_munmap, mmk_sys_name_anonymous

from mmkit.errors import ClosedError, Error
from mmkit.flags import Advice, MapFlag, MapType, Prot, SyncFlag
from mmkit.hints import failure, memory_fault

cdef extern from "Python.h":
    size_t PY_SSIZE_T_MAX

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs:
        long f_type

    int fstatfs(int fd, statfs *buf)

cdef enum:
    # Below this a call is done before another thread could have used the GIL: releasing costs 25 to 40 ns.
    QUICK = 256 * 1024
    MS_ASYNC = 1
    MS_INVALIDATE = 2
    MS_SYNC = 4
    PROT_WRITE = 2
    EACCES = 13
    EFAULT = 14
    EPERM = 1
    EINVAL = 22
    EFBIG = 27
    ENOSPC = 28
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


cdef inline int as_flag(object value, object kind, str name) except? -1:
    """A flag of the right type, or a plain int: Advice.RANDOM is 1 as Prot.READ is, and must not pass for it."""
    if type(value) is not kind and type(value) is not int:
        raise TypeError(f"{name} must be a mmkit.{kind.__name__}, not {value!r}")
    return value


cdef bint is_on_slow_storage(int fd):
    """Can writing this file back block? Memory files have nothing to write back to."""
    cdef statfs status
    if fd < 0:
        return False
    return fstatfs(fd, &status) < 0 or status.f_type not in (TMPFS_MAGIC, HUGETLBFS_MAGIC)


cdef class MappedRegion:
    """The lifecycle of a region and what the kernel does for it. `mmkit.Region` is the public class."""

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

    # ---- the hot calls ------------------------------------------------------------------------------

    def protect(self, object prot, Py_ssize_t offset=0, object length=None, *, bint force=False):
        """Change what may be done with part of the region (``mprotect(2)``).

        Inside a `protected` block over the same pages it takes effect when the block ends.

        Parameters
        ----------
        prot : Prot
            What stays allowed.
        offset, length : int
            Bytes from the start of the region, widened to whole pages; ``None`` reaches to its end.
        force : bool
            Go on even if a live view loses access it was given: its next access is then a crash.

        Returns
        -------
        offset, length : int
            What was covered, in bytes, clipped to the region.

        Raises
        ------
        BufferError
            A live view of the range would lose access, or an operation runs in another thread, and `force`
            is false.
        SyscallError
            ``EACCES``: the file was not opened for what `prot` asks.
            ``ENOMEM``: the split would exceed ``vm.max_map_count``.

        See Also
        --------
        protected : the same for the length of a ``with`` block.

        References
        ----------
        mprotect(2), POSIX.1-2024
        """
        cdef span pages
        cdef int bits = as_flag(prot, Prot, "prot")
        self.widen(offset, length, &pages)
        cdef int error
        if pages.length < QUICK:
            error = mmk_region_protect(&self.handle, pages.start, pages.length, bits, force)
        else:
            with nogil:
                error = mmk_region_protect(&self.handle, pages.start, pages.length, bits, force)
        if error:
            raise self.fail(error, "mprotect", pages, (Prot(prot),))
        return self.covered(pages)

    def advise(self, object advice, Py_ssize_t offset=0, object length=None):
        """Tell the kernel how part of the region will be used (``madvise(2)``).

        Takes hints. Advice that would destroy data here is refused: `discard`, `punch` and `guard` do
        that, and look at live views first. WILLNEED brings in one read-ahead's worth of a file, as Linux has
        it, and no more; `populate` brings in all.

        Parameters
        ----------
        advice : Advice
            The hint.
        offset, length : int
            Bytes from the start of the region, widened to whole pages; ``None`` reaches to its end.

        Returns
        -------
        offset, length : int
            What was covered, in bytes, clipped to the region.

        Raises
        ------
        ValueError
            The advice destroys data.
        SyscallError
            ``EINVAL``: unknown to this kernel, or wrong kind of memory. ``ENOMEM``, ``EIO``, ``EAGAIN``.

        References
        ----------
        madvise(2)
        """
        cdef span pages
        self.widen(offset, length, &pages)
        cdef int error, number = as_flag(advice, Advice, "advice")
        if not may_block(number):
            error = mmk_region_advise(&self.handle, pages.start, pages.length, number)
        else:
            with nogil:
                error = mmk_region_advise(&self.handle, pages.start, pages.length, number)
        if error:
            if mmk_advice_destroys(&self.handle, number):
                raise ValueError(
                    f"advise({Advice(advice).name}) destroys data in this region: use discard() to give pages back, "
                    "punch() to give storage back and read zeros, guard() to make accesses fault"
                )
            raise self.fail(error, "madvise", pages, (Advice(advice),))
        return self.covered(pages)

    def flush(self, Py_ssize_t offset=0, object length=None, *, bint wait=True, bint invalidate=False):
        """Write changes to the file behind the region (``msync(2)``).

        Of a private region nothing is ever written.

        Parameters
        ----------
        offset, length : int
            Bytes from the start of the region, widened to whole pages; ``None`` reaches to its end.
        wait : bool
            Return when the data is on the storage (``MS_SYNC``); else only check the range (``MS_ASYNC``:
            the kernel writes dirty pages in its own time).
        invalidate : bool
            Other mappings of the file see the data too (``MS_INVALIDATE``; they always do on Linux).

        Returns
        -------
        offset, length : int
            What was covered, in bytes, clipped to the region.

        Raises
        ------
        SyscallError
            ``EIO``: writing failed, or the file was made shorter than the range meanwhile.
            ``EBUSY``: `invalidate`, and part of the range is locked. ``ENOMEM``: a hole in the range.

        References
        ----------
        msync(2), POSIX.1-2024
        """
        cdef span pages
        self.widen(offset, length, &pages)
        return self.flush_pages(pages, (MS_SYNC if wait else MS_ASYNC) | (MS_INVALIDATE if invalidate else 0))

    @cython.final
    cdef tuple flush_pages(self, span pages, int flags):
        cdef int error
        if not self.slow_storage:
            error = mmk_region_flush(&self.handle, pages.start, pages.length, flags)
        else:
            with nogil:
                error = mmk_region_flush(&self.handle, pages.start, pages.length, flags)
        if error:
            raise self.fail(error, "msync", pages, (SyncFlag(flags),))
        return self.covered(pages)

    # ---- the others, for mmkit.region to document ---------------------------------------------------

    def _discard(self, Py_ssize_t offset, object length, bint force):
        cdef span pages
        self.shrink(offset, length, &pages)
        cdef int error = 0
        if pages.length:
            with nogil:
                error = mmk_region_discard(&self.handle, pages.start, pages.length, force)
        return self.answer(error, "madvise", pages, (Advice.DONTNEED,))

    def _guard(self, Py_ssize_t offset, object length, bint force):
        cdef span pages
        self.shrink(offset, length, &pages)
        cdef int error = 0
        if pages.length:
            with nogil:
                error = mmk_region_guard(&self.handle, pages.start, pages.length, force)
        return self.answer(error, "madvise", pages, (Advice.GUARD_INSTALL,))

    def _unguard(self, Py_ssize_t offset, object length):
        cdef span pages
        self.shrink(offset, length, &pages)
        cdef int error = 0
        if pages.length:
            with nogil:
                error = mmk_region_unguard(&self.handle, pages.start, pages.length)
        return self.answer(error, "madvise", pages, (Advice.GUARD_REMOVE,))

    def _punch(self, Py_ssize_t offset, object length, bint force):
        cdef size_t count = 0
        self.check_range(offset, length, &count)
        cdef span pages = span(self.skew + offset, count, offset, count)
        cdef mmk_fault fault
        cdef int error
        with nogil:
            error = mmk_region_punch(&self.handle, pages.start, pages.length, force, &fault)
        if error:
            raise self.punch_failure(error, pages, &fault)
        return self.covered(pages)

    @cython.final
    cdef object punch_failure(self, long code, span pages, const mmk_fault *fault):
        if code == -EFAULT:
            return self.bad_access(fault)
        if code == -MMK_EUNSUPPORTED:
            return Error("punch: the pages of a private file region come from the file; discard() brings those back")
        if self.handle.fd >= 0:
            return self.fail(code, "fallocate", pages, ("PUNCH_HOLE",))
        private = MapFlag(self.handle.flags).type == MapType.PRIVATE
        return self.fail(code, "madvise", pages, (Advice.DONTNEED if private else Advice.REMOVE,))

    def _populate(self, Py_ssize_t offset, object length, bint write):
        cdef span pages
        self.widen(offset, length, &pages)
        cdef int error
        with nogil:
            error = mmk_region_populate(&self.handle, pages.start, pages.length, write)
        return self.answer(error, "madvise", pages, (Advice.POPULATE_WRITE if write else Advice.POPULATE_READ,))

    def _lock(self, Py_ssize_t offset, object length):
        cdef span pages
        self.widen(offset, length, &pages)
        cdef int error
        with nogil:
            error = mmk_region_lock(&self.handle, pages.start, pages.length)
        return self.answer(error, "mlock", pages)

    def _unlock(self, Py_ssize_t offset, object length):
        cdef span pages
        self.widen(offset, length, &pages)
        cdef int error
        with nogil:
            error = mmk_region_unlock(&self.handle, pages.start, pages.length)
        return self.answer(error, "munlock", pages)

    def _resident(self, Py_ssize_t offset, object length):
        cdef span pages
        self.widen(offset, length, &pages)
        cdef size_t total = 0
        cdef int error, pagemap = c_open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
        if pagemap < 0:
            raise failure(-errno, "open", None, ("/proc/self/pagemap",))
        with nogil:
            error = mmk_region_resident(&self.handle, pages.start, pages.length, pagemap, &total)
            c_close(pagemap)
        if error:
            raise self.fail(error, "pread of /proc/self/pagemap", pages)
        return total

    def _cached(self, Py_ssize_t offset, object length):
        cdef span pages
        self.widen(offset, length, &pages)
        cdef size_t total = 0
        cdef int error
        with nogil:
            error = mmk_region_cached(&self.handle, pages.start, pages.length, &total)
        if error:
            raise self.fail(error, "cachestat", pages)
        return total

    def _resize(self, size_t length, *, bint with_file=False):
        self.check_open()
        # Room for what this call and those running in other threads may leave behind.
        cdef size_t room = (self.vacated_count + self.resizing + 1) * sizeof(mmk_range)
        cdef mmk_range *vacated = <mmk_range *>PyMem_Realloc(self.vacated, room)
        if not vacated:
            raise MemoryError
        self.vacated = vacated
        cdef mmk_range left
        cdef int error
        self.resizing += 1
        with nogil:
            if with_file:
                error = mmk_region_resize_with_file(&self.handle, self.skew + length, &left)
            else:
                error = mmk_region_resize(&self.handle, self.skew + length, &left)
        self.resizing -= 1
        # Without room in the registry, linux.munmap does not know that the range is taken.
        if left.length and mmk_registry_hold(left) == 0:
            self.vacated[self.vacated_count] = left
            self.vacated_count += 1
        if error:
            raise self.resize_failure(error, length)

    @cython.final
    cdef object resize_failure(self, long code, size_t length):
        if code == -MMK_EUNSUPPORTED:
            return Error(
                f"resize({length}): shared memory made without reserve=, secret memory and private files cannot grow; "
                "locked pages cannot move: unlock them first, or make the region with reserve="
            )
        if self.handle.fd >= 0 and code in (-EPERM, -EINVAL, -EFBIG, -ENOSPC):
            return failure(code, "ftruncate", None, (self.handle.fd, self.handle.file_offset + self.skew + length))
        return failure(code, "mremap", (<size_t>self.handle.base, self.handle.asked), (length,))

    def _seal(self):
        cdef int error = mmk_region_seal(&self.handle)
        if error:
            raise self.fail(error, "mseal", span(0, mmk_region_length(&self.handle), 0, 0))

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


@cython.no_gc_clear  # __dealloc__ needs the region
cdef class Protection:
    """A protection laid over part of a region, until released. Made by `mmkit.Region.protected`."""

    cdef MappedRegion region
    cdef mmk_cover cover
    cdef span pages
    cdef int prot
    cdef bint force
    cdef bint laid

    def __cinit__(self, MappedRegion region not None, object prot, Py_ssize_t offset, object length, bint force):
        self.region = region
        self.prot = as_flag(prot, Prot, "prot")
        self.force = force
        region.widen(offset, length, &self.pages)

    def __dealloc__(self):
        # The region must not keep a dangling cover.
        if self.laid:
            mmk_region_uncover(&self.region.handle, &self.cover, True)

    def __enter__(self):
        if self.laid:
            raise RuntimeError("this protection holds already: make another with protected()")
        cdef int error = 0
        if self.pages.length:
            error = mmk_region_cover(
                &self.region.handle, &self.cover, self.pages.start, self.pages.length, self.prot, self.force
            )
        if error:
            raise self.region.fail(error, "mprotect", self.pages, (Prot(self.prot),))
        self.laid = self.pages.length > 0
        return self.region.covered(self.pages)

    def __exit__(self, kind, error, traceback):
        try:
            self.release()
        except BufferError as refusal:
            if error is None:
                raise
            error.add_note(f"mmkit: {refusal}")

    def release(self):
        """Take the protection away; what lies below it is in force again."""
        if not self.laid:
            return
        cdef int error
        with nogil:  # waits for accesses that run in other threads
            error = mmk_region_uncover(&self.region.handle, &self.cover, False)
        if error == -MMK_EPINNED:
            raise BufferError(
                "a live view would lose the access that this protected() block gave it: the protection stays; "
                "release the view, then call release() on what protected() returned"
            )
        self.laid = False
        if error:
            raise self.region.fail(error, "mprotect", self.pages)
