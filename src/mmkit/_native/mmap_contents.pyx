"""The contents of a region as the standard module's ``mmap`` has them, where a `Region` has them otherwise.

What is read-only is refused by TypeError before anything else is looked at, bytes are also read and written one by
one, iterating gives bytes objects of length 1, and ranges for the kernel start on a page or are refused.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.number cimport PyIndex_Check, PyNumber_AsSsize_t
from libc.errno cimport errno

from mmkit._native.contents cimport RegionContents
from mmkit._native.pages cimport (
    may_block,
    mmk_advice_destroys,
    mmk_region_advise,
    mmk_region_destroy,
    mmk_region_guard,
    mmk_region_unguard,
)
from mmkit._native.region cimport span

from mmkit.flags import Advice
from mmkit.hints import failure

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "<sys/stat.h>" nogil:
    struct stat:
        unsigned int st_mode
        long long st_size

    int fstat(int fd, stat *status)
    bint S_ISREG(unsigned int mode)

cdef enum:
    PROT_WRITE = 2
    MAP_TYPE = 0x0F
    MAP_PRIVATE = 2
    MS_SYNC = 4
    MADV_GUARD_INSTALL = 102
    MADV_GUARD_REMOVE = 103


def as_c_ints(int fileno, Py_ssize_t length, int flags, int prot, int access, Py_ssize_t offset, /):
    """Take what C takes for these: TypeError and OverflowError are raised here."""
    return fileno, length, flags, prot, access, offset


def regular_size(int fd, /):
    """Return the length of a regular file, in bytes; None for another kind (fstat(2))."""
    cdef stat status
    if fstat(fd, &status) < 0:
        raise failure(-errno, "fstat", None, (fd,))
    return status.st_size if S_ISREG(status.st_mode) else None


cdef inline int check_writable(RegionContents self) except -1:
    self.check_open()
    if not self.handle.prot & PROT_WRITE:
        raise TypeError("mmap can't modify a read-only memory map; see protect()")
    return 0


cdef inline Py_ssize_t as_offset(object value, Py_ssize_t size, Py_ssize_t otherwise) except -1:
    """Clip an argument of find to the region; a negative one counts from the end."""
    if value is None:
        return otherwise
    cdef Py_ssize_t offset = PyNumber_AsSsize_t(value, OverflowError)
    if offset < 0:
        offset += size
    return min(max(offset, 0), size)


cdef span pages_of(RegionContents self, Py_ssize_t start, Py_ssize_t length) noexcept:
    """The range as the kernel takes it: its end is rounded up to whole pages, its start is not touched."""
    cdef size_t end = (self.skew + start + length + self.handle.granule - 1) & ~(self.handle.granule - 1)
    return span(self.skew + start, end - self.skew - start, start, length)


# No fields: mmkit.compat.mmap.mmap inherits from this beside Region, and Python takes two bases only where one
# adds nothing to the layout that both stand on.
@cython.auto_pickle(False)
cdef class MmapContents(RegionContents):
    """What is in a region, as the standard ``mmap`` has it. `mmkit.compat.mmap.mmap` is the public class."""

    def __setitem__(self, key, value):
        check_writable(self)
        self.set_item(key, value)

    def __delitem__(self, key):
        check_writable(self)
        if PyIndex_Check(key):
            self.checked_index(key)
        raise TypeError("mmap doesn't support deletion of its bytes")

    def __iter__(self):
        return Bytes(self, 0, 1)

    def __reversed__(self):
        self.check_open()
        return Bytes(self, <Py_ssize_t>self.size() - 1, -1)

    def read_byte(self):
        """Read one byte at the current position, and move it.

        Returns
        -------
        int
            0 to 255.

        Raises
        ------
        ValueError
            The position is at the end.
        """
        cdef unsigned char byte = 0
        self.check_open()
        if self.position >= <Py_ssize_t>self.size():
            raise ValueError("read byte out of range: the position is at the end")
        self.load(self.position, &byte, 1)
        self.position += 1
        return byte

    def write_byte(self, byte, /):
        """Write one byte at the current position, and move it.

        Parameters
        ----------
        byte : int
            0 to 255.

        Raises
        ------
        OverflowError
            It is less or more.
        TypeError
            The map is read-only.
        ValueError
            The position is at the end.
        """
        cdef Py_ssize_t number = PyNumber_AsSsize_t(byte, OverflowError)
        cdef unsigned char value
        if not 0 <= number <= 255:
            raise OverflowError(f"a byte is a number from 0 to 255, not {number}")
        check_writable(self)
        if self.position >= <Py_ssize_t>self.size():
            raise ValueError("write byte out of range: the position is at the end")
        value = <unsigned char>number
        self.store(self.position, &value, 1)
        self.position += 1

    def write(self, data, /):
        """Write at the current position, and move it.

        Parameters
        ----------
        data : bytes-like
            All of it is written.

        Returns
        -------
        int
            Bytes written.

        Raises
        ------
        TypeError
            The map is read-only.
        ValueError
            It does not fit between the position and the end.
        """
        check_writable(self)
        return self.write_on(data)

    def move(self, dest, src, count, /):
        """Copy bytes from one place of the map to another; the two may overlap.

        Parameters
        ----------
        dest, src : int
            Where to and where from, in bytes from the start.
        count : int
            Bytes.

        Raises
        ------
        TypeError
            The map is read-only.
        ValueError
            A range is not inside the map.
        """
        cdef Py_ssize_t to = dest, start = src, length = count
        check_writable(self)
        self.move_bytes(to, start, length)

    def find(self, sub, start=None, end=None, /):
        """Find where bytes first stand.

        Parameters
        ----------
        sub : bytes-like
            What to look for.
        start, end : int or None
            Where to look, as in a slice; from the current position where `start` is None.

        Returns
        -------
        int
            Offset from the start of the map; -1 if they are not there.
        """
        cdef Py_ssize_t size = self.size()
        cdef Py_ssize_t first = as_offset(start, size, min(self.position, size)), last = as_offset(end, size, size)
        self.check_open()
        return self.search(sub, first, last, False)

    def rfind(self, sub, start=None, end=None, /):
        """Find where bytes last stand; otherwise as `find`."""
        cdef Py_ssize_t size = self.size()
        cdef Py_ssize_t first = as_offset(start, size, min(self.position, size)), last = as_offset(end, size, size)
        self.check_open()
        return self.search(sub, first, last, True)

    def seekable(self):
        """Return True."""
        return True

    def flush(self, Py_ssize_t offset=0, Py_ssize_t size=-1, /, *, int flags=0):
        """Write changes to the file behind the map (``msync(2)``). A private or read-only map has none.

        Parameters
        ----------
        offset : int
            Bytes from the start, a multiple of the page size.
        size : int
            Bytes; -1 reaches to the end.
        flags : int
            MS_SYNC, which 0 stands for: return when the data is on the storage. MS_ASYNC: the kernel writes in its
            own time. MS_INVALIDATE.

        Raises
        ------
        ValueError
            The range is not inside the map.
        OSError
            ``EINVAL``: `offset` is inside a page, or unknown `flags`. ``EIO``: writing failed, or the file was made
            shorter than the range meanwhile, so that data is lost.

        References
        ----------
        msync(2), POSIX.1-2024
        """
        cdef Py_ssize_t whole = self.size()
        self.check_open()
        if size == -1:
            size = whole - offset
        if offset < 0 or size < 0 or size > whole - offset:
            raise ValueError(f"flush values out of range: {size} bytes at {offset} of a map of {whole}")
        if not self.handle.prot & PROT_WRITE or self.handle.flags & MAP_TYPE == MAP_PRIVATE:
            return
        cdef span pages = pages_of(self, offset, size)
        self.flush_pages(pages, flags if flags else MS_SYNC)

    def madvise(self, int option, Py_ssize_t start=0, length=None, /):
        """Tell the kernel how the map will be used, or have it give pages back (``madvise(2)``).

        Parameters
        ----------
        option : int
            MADV_*. What destroys data destroys it, under live views as well; guards alone look at views first.
        start : int
            Bytes from the start, a multiple of the page size.
        length : int or None
            Bytes; None, or too many, reach to the end.

        Raises
        ------
        ValueError
            `start` is not inside the map, or `length` negative.
        OverflowError
            `start` and `length` together pass the address space.
        OSError
            ``EINVAL``: `start` is inside a page, or the option is unknown to this kernel, or for other memory.
        BufferError
            MADV_GUARD_INSTALL under a live view.

        References
        ----------
        madvise(2)
        """
        cdef Py_ssize_t size = self.size(), count = size
        if length is not None:
            count = length
        self.check_open()
        if not 0 <= start < size:
            raise ValueError(f"madvise start out of bounds: {start} of a map of {size} bytes")
        if count < 0:
            raise ValueError(f"madvise length invalid: {count}")
        if count > PY_SSIZE_T_MAX - start:
            raise OverflowError(f"madvise length too large: {count} from {start}")
        cdef span pages = pages_of(self, start, min(count, size - start))
        cdef int error = take_advice(self, pages, option)
        if error:
            raise self.fail(error, "madvise", pages, (Advice(option),))


cdef int take_advice(RegionContents self, span pages, int option):
    cdef int error
    if option == MADV_GUARD_REMOVE:
        return mmk_region_unguard(&self.handle, pages.start, pages.length)
    if option == MADV_GUARD_INSTALL:
        return mmk_region_guard(&self.handle, pages.start, pages.length, False)
    if mmk_advice_destroys(&self.handle, option):
        with nogil:
            error = mmk_region_destroy(&self.handle, pages.start, pages.length, option, True)
    elif may_block(option):
        with nogil:
            error = mmk_region_advise(&self.handle, pages.start, pages.length, option)
    else:
        error = mmk_region_advise(&self.handle, pages.start, pages.length, option)
    return error


@cython.auto_pickle(False)
@cython.final
cdef class Bytes:
    """Goes through a map byte by byte: as bytes objects, which is what the standard ``mmap`` gives."""

    cdef RegionContents region
    cdef Py_ssize_t index
    cdef Py_ssize_t step

    def __cinit__(self, RegionContents region not None, Py_ssize_t index, Py_ssize_t step):
        self.region = region
        self.index = index
        self.step = step

    def __iter__(self):
        return self

    def __next__(self):
        cdef char byte = 0
        if self.region is None:
            raise StopIteration
        if not 0 <= self.index < <Py_ssize_t>self.region.size():
            self.region.check_open()
            self.region = None
            raise StopIteration
        self.region.load(self.index, &byte, 1)
        self.index += self.step
        return PyBytes_FromStringAndSize(&byte, 1)

    def __length_hint__(self):
        if self.region is None:
            return 0
        return max(<Py_ssize_t>self.region.size() - self.index if self.step > 0 else self.index + 1, 0)
