"""The pages of a region: what may be done with them, what for, where they are kept, how many there are.

Each of these calls covers whole pages, and answers which.
"""

cimport cython
from cpython.mem cimport PyMem_Realloc
from libc.errno cimport errno
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as c_open
from posix.unistd cimport close as c_close

from mmkit._native.base cimport MMK_EPINNED, MMK_EUNSUPPORTED, mmk_range
from mmkit._native.fault cimport mmk_fault
from mmkit._native.region cimport MappedRegion, mmk_region_length, mmk_region_seal, span
from mmkit._native.sys cimport mmk_registry_hold

from mmkit.errors import Error
from mmkit.flags import Advice, MapFlag, MapType, Prot, SyncFlag
from mmkit.hints import failure

cdef enum:
    # Below this a call is done before another thread could have used the GIL: releasing costs 25 to 40 ns.
    QUICK = 256 * 1024
    MS_ASYNC = 1
    MS_INVALIDATE = 2
    MS_SYNC = 4
    EPERM = 1
    EFAULT = 14
    EINVAL = 22
    EFBIG = 27
    ENOSPC = 28


cdef inline int as_flag(object value, object kind, str name) except? -1:
    """A flag of the right type, or a plain int: Advice.RANDOM is 1 as Prot.READ is, and must not pass for it."""
    if type(value) is not kind and type(value) is not int:
        raise TypeError(f"{name} must be a mmkit.{kind.__name__}, not {value!r}")
    return value


cdef class RegionPages(MappedRegion):
    """What the kernel does for the pages of a region. `mmkit.Region` is the public class."""

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
