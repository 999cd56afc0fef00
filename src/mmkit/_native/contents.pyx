"""Reading and writing what is in a region: items, slices, and the file-like methods of ``mmap.mmap``.

Every access goes through core/include/mmkit/access.h.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from cpython.number cimport PyIndex_Check, PyNumber_AsSsize_t
from cpython.object cimport PyObject
from cpython.slice cimport PySlice_AdjustIndices, PySlice_Check, PySlice_Unpack

from mmkit._native.base cimport MMK_ECLOSED
from mmkit._native.fault cimport mmk_fault
from mmkit._native.pages cimport RegionPages
from mmkit._native.region cimport (
    mmk_access_find,
    mmk_access_load,
    mmk_access_move,
    mmk_access_rfind,
    mmk_access_store,
)

from mmkit.hints import failure

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    PyObject *Py_None
    ctypedef struct PySliceObject:
        PyObject *start
        PyObject *stop
        PyObject *step

cdef enum:
    # Above this much work other threads may have the GIL; releasing it costs 25 to 40 ns.
    QUICK = 256 * 1024
    # Bytes further apart than this are read one by one: reading what lies in between would cost more.
    WIDE = 256
    WINDOW = 4096
    SEEK_CUR = 1
    SEEK_END = 2
    ENOENT = 2
    EFAULT = 14
    ERANGE = 34


cdef inline bint fill_plain(PyObject *bound, Py_ssize_t *value):
    """Is it None, which leaves `value` as it is, or an int that fits there? Otherwise `value` may be anything."""
    cdef int overflow = 0
    if bound is Py_None:
        return True
    if not PyLong_CheckExact(<object>bound):
        return False
    value[0] = PyLong_AsLongAndOverflow(<object>bound, &overflow)
    return overflow == 0


cdef inline Py_ssize_t within(Py_ssize_t position, Py_ssize_t size) noexcept:
    if position < 0:
        position += size
        return position if position > 0 else 0
    return position if position < size else size


cdef class RegionContents(RegionPages):
    """What a program reads and writes. `mmkit.Region` is the public class."""

    @cython.final
    cdef object refusal(self, long code, size_t offset, const mmk_fault *fault):
        if code == -EFAULT:
            return self.bad_access(fault)
        if code == -MMK_ECLOSED:
            return self.closed_error()
        if code == -ERANGE:
            return ValueError(f"offset {offset} is no longer inside the region: another thread made it shorter")
        return failure(code, "access", None)

    @cython.final
    cdef int load(self, size_t offset, void *into, size_t length) except -1:
        cdef mmk_fault fault
        cdef int error
        if length < QUICK:
            error = mmk_access_load(&self.handle, self.skew + offset, into, length, &fault)
        else:
            with nogil:
                error = mmk_access_load(&self.handle, self.skew + offset, into, length, &fault)
        if error:
            raise self.refusal(error, offset, &fault)
        return 0

    @cython.final
    cdef int store(self, size_t offset, const void *source, size_t length) except -1:
        cdef mmk_fault fault
        cdef int error
        if length < QUICK:
            error = mmk_access_store(&self.handle, self.skew + offset, source, length, &fault)
        else:
            with nogil:
                error = mmk_access_store(&self.handle, self.skew + offset, source, length, &fault)
        if error:
            raise self.refusal(error, offset, &fault)
        return 0

    @cython.final
    cdef bytes load_bytes(self, size_t offset, size_t length):
        cdef bytes data = PyBytes_FromStringAndSize(NULL, length)
        self.load(offset, PyBytes_AS_STRING(data), length)
        return data

    @cython.final
    cdef bytes load_stepped(self, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count):
        """The bytes of a slice with a step, from a copy of what they stand in, a window at a time."""
        cdef char window[WINDOW]
        cdef bytes data = PyBytes_FromStringAndSize(NULL, count)
        cdef char *out = PyBytes_AS_STRING(data)
        cdef Py_ssize_t stride = step if step > 0 else -step, most = 1 if stride > WIDE else (WINDOW - 1) // stride + 1
        cdef Py_ssize_t done = 0, part, i
        while done < count:
            part = min(most, count - done)
            if step > 0:
                self.load(start + done * step, window, (part - 1) * stride + 1)
                for i in range(part):
                    out[done + i] = window[i * stride]
            else:
                self.load(start + (done + part - 1) * step, window, (part - 1) * stride + 1)
                for i in range(part):
                    out[done + part - 1 - i] = window[i * stride]
            done += part
        return data

    # ---- items and slices ---------------------------------------------------------------------------

    @cython.final
    cdef Py_ssize_t checked_index(self, object key) except -1:
        if not PyIndex_Check(key):
            raise TypeError(f"region indices are integers or slices, not {type(key).__name__}")
        # As a sequence does: no int is too large to be outside.
        cdef Py_ssize_t index = PyNumber_AsSsize_t(key, IndexError)
        cdef Py_ssize_t size = self.size()
        self.check_open()
        if index < 0:
            index += size
        if not 0 <= index < size:
            raise IndexError(f"index {key} is outside the region's {size} bytes")
        return index

    @cython.final
    cdef Py_ssize_t unpack(self, object key, Py_ssize_t *start, Py_ssize_t *step) except -1:
        """How many items a slice has; where they start. One like [a:b] takes half of what CPython's two calls take.

        Bounds may be objects whose __index__ resizes the region: its size is looked at after them.
        """
        cdef Py_ssize_t first = 0, stop = PY_SSIZE_T_MAX, size
        cdef PySliceObject *bounds = <PySliceObject *>key
        step[0] = 1
        if bounds.step is Py_None and fill_plain(bounds.start, &first) and fill_plain(bounds.stop, &stop):
            size = self.size()
            start[0] = within(first, size)
            return max(0, within(stop, size) - start[0])
        PySlice_Unpack(key, start, &stop, step)
        return PySlice_AdjustIndices(self.size(), start, &stop, step[0])

    def __getitem__(self, key):
        cdef unsigned char byte = 0
        cdef Py_ssize_t start, step, count
        if not PySlice_Check(key):
            self.load(self.checked_index(key), &byte, 1)
            return byte
        count = self.unpack(key, &start, &step)
        if count == 0:
            return self.load_bytes(0, 0)
        if step == 1:
            return self.load_bytes(start, count)
        return self.load_stepped(start, step, count)

    def __setitem__(self, key, value):
        self.set_item(key, value)

    @cython.final
    cdef int set_item(self, object key, object value) except -1:
        cdef unsigned char byte
        cdef Py_ssize_t number
        cdef Py_ssize_t start, step, count
        cdef Py_buffer source
        if not PySlice_Check(key):
            start = self.checked_index(key)
            if not PyIndex_Check(value):
                raise TypeError(
                    f"a byte is an int from 0 to 255, not {value!r}: for bytes give a slice, as in region[0:1] = b'a'"
                )
            number = PyNumber_AsSsize_t(value, ValueError)
            if not 0 <= number <= 255:
                raise ValueError(f"a byte must be in range(0, 256), not {number}")
            byte = <unsigned char>number
            self.store(start, &byte, 1)
            return 0
        count = self.unpack(key, &start, &step)
        # The bytes of such an object stay where they are: to export them would cost more than to copy some.
        if PyBytes_CheckExact(value):
            return self.store_slice(start, step, count, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        PyObject_GetBuffer(value, &source, PyBUF_SIMPLE)
        try:
            return self.store_slice(start, step, count, <const char *>source.buf, source.len)
        finally:
            PyBuffer_Release(&source)

    @cython.final
    cdef int store_slice(
        self, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count, const char *source, Py_ssize_t length
    ) except -1:
        cdef Py_ssize_t i
        self.check_open()
        if length != count:
            raise IndexError(f"the slice has {count} bytes and the value {length}: a region cannot grow by it")
        if step == 1 or count == 0:
            self.store(start if count else 0, source, count)
        else:
            # One by one: the bytes in between may be changing in another process.
            for i in range(count):
                self.store(start + i * step, source + i, 1)
        return 0

    def __delitem__(self, key):
        raise TypeError("bytes of a region cannot be deleted")

    def move(self, Py_ssize_t dest, Py_ssize_t src, Py_ssize_t count):
        """Copy bytes from one place of the region to another; the two may overlap.

        Parameters
        ----------
        dest, src : int
            Where to and where from, in bytes from the start.
        count : int
            Bytes.

        Raises
        ------
        ValueError
            A range is not inside the region.
        MemoryFault
            The one cannot be read or the other not written.
        """
        self.move_bytes(dest, src, count)

    @cython.final
    cdef int move_bytes(self, Py_ssize_t dest, Py_ssize_t src, Py_ssize_t count) except -1:
        cdef Py_ssize_t size = self.size()
        cdef mmk_fault fault
        cdef int error
        self.check_open()
        if count < 0 or not 0 <= dest <= size - count or not 0 <= src <= size - count:
            raise ValueError(f"moving {count} bytes from {src} to {dest} leaves the region's {size} bytes")
        if count < QUICK:
            error = mmk_access_move(&self.handle, self.skew + dest, self.skew + src, count, &fault)
        else:
            with nogil:
                error = mmk_access_move(&self.handle, self.skew + dest, self.skew + src, count, &fault)
        if error:
            raise self.refusal(error, max(dest, src), &fault)
        return 0

    # ---- as a file ----------------------------------------------------------------------------------

    def read(self, n=None):
        """Read from the current position, and move it.

        Parameters
        ----------
        n : int or None
            Bytes; None or negative reads to the end.

        Returns
        -------
        bytes
            At most `n`; empty at the end.
        """
        cdef Py_ssize_t size = self.size(), left = size - self.position if size > self.position else 0
        cdef Py_ssize_t count = left
        if n is not None:
            count = n
            if count < 0 or count > left:
                count = left
        cdef bytes data = self.load_bytes(self.position if left else 0, count)
        self.position += count
        return data

    def readline(self):
        """Read from the current position to the end of the line, its newline included, and move it.

        Returns
        -------
        bytes
            Empty at the end.
        """
        cdef Py_ssize_t size = self.size(), start = self.position if self.position < size else size
        cdef Py_ssize_t newline = self.search(b"\n", start, size, False)
        cdef bytes data = self.load_bytes(start, (newline + 1 if newline >= 0 else size) - start)
        self.position += len(data)
        return data

    def write(self, data):
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
        ValueError
            It does not fit between the position and the end.
        MemoryFault
            The region is not writable.
        """
        return self.write_on(data)

    @cython.final
    cdef Py_ssize_t write_on(self, object data) except -1:
        cdef Py_buffer source
        cdef Py_ssize_t size = self.size()
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            if self.position > size or source.len > size - self.position:
                raise ValueError(
                    f"{source.len} bytes do not fit at position {self.position} of a region of {size} bytes: "
                    "resize it first"
                )
            self.store(self.position, source.buf, source.len)
            self.position += source.len
            return source.len
        finally:
            PyBuffer_Release(&source)

    def seek(self, Py_ssize_t position, int whence=0):
        """Set the position at which `read`, `readline` and `write` go on.

        Parameters
        ----------
        position : int
            Bytes.
        whence : int
            From where: ``os.SEEK_SET`` the start, ``os.SEEK_CUR`` the position, ``os.SEEK_END`` the end.

        Returns
        -------
        int
            The new position.

        Raises
        ------
        ValueError
            It would be outside the region.
        """
        cdef Py_ssize_t size = self.size(), base = 0
        self.check_open()
        if whence == SEEK_CUR:
            base = self.position
        elif whence == SEEK_END:
            base = size
        elif whence != 0:
            raise ValueError(f"whence must be os.SEEK_SET, SEEK_CUR or SEEK_END, not {whence}")
        if position < -base or position > size - base:
            raise ValueError(f"position {<object>base + position} is outside the region's {size} bytes")
        self.position = base + position
        return self.position

    def tell(self):
        """Return the position at which `read`, `readline` and `write` go on, in bytes."""
        self.check_open()
        return self.position

    @cython.final
    cdef Py_ssize_t search(self, object needle, Py_ssize_t start, Py_ssize_t end, bint backwards) except -2:
        cdef Py_buffer wanted
        cdef mmk_fault fault
        cdef ssize_t found
        PyObject_GetBuffer(needle, &wanted, PyBUF_SIMPLE)
        cdef size_t count = wanted.len
        try:
            if end < start:
                found = -ENOENT
            elif backwards:
                with nogil:
                    found = mmk_access_rfind(&self.handle, self.skew + start, end - start, wanted.buf, count, &fault)
            elif end - start < QUICK:
                found = mmk_access_find(&self.handle, self.skew + start, end - start, wanted.buf, count, &fault)
            else:
                with nogil:
                    found = mmk_access_find(&self.handle, self.skew + start, end - start, wanted.buf, count, &fault)
        finally:
            PyBuffer_Release(&wanted)
        if found == -ENOENT:
            return -1
        if found < 0:
            raise self.refusal(found, start, &fault)
        return found - self.skew

    @cython.final
    cdef object search_slice(self, object sub, object start, object end, bint backwards):
        cdef Py_ssize_t first, last, step
        PySlice_Unpack(slice(self.position if start is None else start, end), &first, &last, &step)
        PySlice_AdjustIndices(self.size(), &first, &last, step)
        return self.search(sub, first, last, backwards)

    def find(self, sub, start=None, end=None):
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
            Offset from the start of the region; -1 if they are not there.
        """
        return self.search_slice(sub, start, end, False)

    def rfind(self, sub, start=None, end=None):
        """Find where bytes last stand; otherwise as `find`."""
        return self.search_slice(sub, start, end, True)
