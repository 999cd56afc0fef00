"""The reader of /proc/PID/maps: from an open file to columns."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.errno cimport ENOBUFS, ENOENT, ENOMEM, ENOTTY
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mmkit._native.maps cimport *

from typing import NamedTuple

from mmkit.hints import failure

DELETED = MMK_PATH_DELETED
ESCAPED = MMK_PATH_ESCAPED

cdef enum:
    FIRST_CAPACITY = 64 * 1024
    MOST_KEPT = 4 * 1024 * 1024
    AREA_ROW = 5 * 8 + 4 + 1
    PATH_ROW = 8 + 4 + 1 + 1


class QueryUnsupportedError(Exception):
    """The kernel is older than Linux 6.11: the text of maps tells the same."""


class Columns(NamedTuple):
    """What the text of a maps file says: areas and paths as read-only columns, one entry a row."""

    start: memoryview
    end: memoryview
    offset: memoryview
    device: memoryview
    inode: memoryview
    path: memoryview
    perms: memoryview
    path_start: memoryview
    path_length: memoryview
    path_perms: memoryview
    path_facts: memoryview
    path_bytes: bytes
    escaped: int
    malformed: int
    torn: int


class Answer(NamedTuple):
    """The area that holds an address."""

    start: int
    end: int
    offset: int
    device: int
    inode: int
    perms: int
    path: bytes
    deleted: bool


cdef class _Scratch:
    """Memory that one reading uses after the other: fresh pages would cost as much as the parsing."""

    cdef char *bytes
    cdef size_t capacity

    def __dealloc__(self):
        PyMem_RawFree(self.bytes)

    cdef int reserve(self, size_t capacity) noexcept nogil:
        """Make room, keeping what is there."""
        cdef char *larger
        if capacity > self.capacity:
            larger = <char *>PyMem_RawRealloc(self.bytes, capacity)
            if larger == NULL:
                return -ENOMEM
            self.bytes = larger
            self.capacity = capacity
        return 0

    cdef int slurp(self, int descriptor, size_t *length) noexcept nogil:
        """Read a file to its end."""
        cdef int error = self.reserve(FIRST_CAPACITY)
        length[0] = 0
        while not error:
            error = mmk_maps_slurp(descriptor, self.bytes, self.capacity, length)
            if error != -ENOBUFS:
                return error
            error = self.reserve(2 * self.capacity)
        return error


# What is idle. Appending and popping are atomic, with the GIL and without.
cdef list idle = []


cdef _Scratch take_scratch():
    try:
        return idle.pop()
    except IndexError:
        return _Scratch()


cdef int give_scratch(_Scratch scratch) except -1:
    if scratch.capacity <= MOST_KEPT and not idle:
        idle.append(scratch)
    return 0


cdef object area_column(object block, size_t row_bytes, size_t rows, size_t used, size_t item, str code):
    """Cut a column of the used rows out of the block: it begins after row_bytes for each of the rows."""
    cdef size_t start = row_bytes * rows
    return block[start:start + used * item].cast(code)


cdef object path_column(const void *items, size_t length, str code):
    return memoryview(PyBytes_FromStringAndSize(<const char *>items, <Py_ssize_t>length)).cast(code)


cdef object parse_text(_Scratch scratch, size_t length):
    """Parse the text at the start of the scratch memory, and use what lies behind it."""
    cdef size_t rows = mmk_maps_count_lines(scratch.bytes, length)
    cdef size_t behind = (length + 7) & ~<size_t>7
    if scratch.reserve(behind + (rows + 1) * PATH_ROW):
        raise MemoryError
    cdef mmk_path_columns paths
    paths.start = <uint64_t *>(scratch.bytes + behind)
    paths.length = <uint32_t *>(paths.start + rows + 1)
    paths.perms = <uint8_t *>(paths.length + rows + 1)
    paths.facts = paths.perms + rows + 1
    cdef bytearray memory = PyByteArray_FromStringAndSize(NULL, <Py_ssize_t>(rows * AREA_ROW))
    cdef mmk_area_columns areas
    areas.start = <uint64_t *>PyByteArray_AS_STRING(memory)
    areas.end = areas.start + rows
    areas.offset = areas.end + rows
    areas.device = areas.offset + rows
    areas.inode = areas.device + rows
    areas.path = <uint32_t *>(areas.inode + rows)
    areas.perms = <uint8_t *>(areas.path + rows)
    areas.capacity = rows
    cdef mmk_maps_found found
    with nogil:
        mmk_maps_parse(scratch.bytes, length, &areas, &paths, &found)
    cdef object block = memoryview(memory).toreadonly()
    return Columns(
        area_column(block, 0, rows, found.areas, 8, "Q"),
        area_column(block, 8, rows, found.areas, 8, "Q"),
        area_column(block, 16, rows, found.areas, 8, "Q"),
        area_column(block, 24, rows, found.areas, 8, "Q"),
        area_column(block, 32, rows, found.areas, 8, "Q"),
        area_column(block, 40, rows, found.areas, 4, "I"),
        area_column(block, 44, rows, found.areas, 1, "B"),
        path_column(paths.start, found.paths * 8, "Q"),
        path_column(paths.length, found.paths * 4, "I"),
        path_column(paths.perms, found.paths, "B"),
        path_column(paths.facts, found.paths, "B"),
        PyBytes_FromStringAndSize(scratch.bytes, <Py_ssize_t>found.path_bytes),
        found.escaped,
        found.malformed,
        found.torn,
    )


def read(int descriptor) -> Columns:
    """Read an open /proc/PID/maps to its end.

    Parameters
    ----------
    descriptor
        Open for reading, at its beginning.

    Raises
    ------
    SyscallError
        ``ESRCH``: the process has ended.

    References
    ----------
    proc_pid_maps(5), read(2)
    """
    cdef _Scratch scratch = take_scratch()
    cdef size_t length
    cdef int error
    with nogil:
        error = scratch.slurp(descriptor, &length)
    if error:
        raise failure(error, "read", None, (descriptor,))
    cdef object columns = parse_text(scratch, length)
    give_scratch(scratch)
    return columns


def parse(bytes text not None) -> Columns:
    """Read the text of a maps file."""
    cdef _Scratch scratch = _Scratch()
    cdef size_t length = <size_t>PyBytes_GET_SIZE(text)
    if scratch.reserve(length + 1):
        raise MemoryError
    memcpy(scratch.bytes, PyBytes_AS_STRING(text), length)
    return parse_text(scratch, length)


def query(int descriptor, uint64_t address) -> Answer | None:
    """Ask an open /proc/PID/maps for the area at an address (ioctl(2), PROCMAP_QUERY).

    Returns
    -------
    Answer or None
        None where nothing is mapped.

    Raises
    ------
    QueryUnsupportedError
        The kernel is older than Linux 6.11.
    SyscallError
        ``ESRCH``: the process has ended.
    """
    cdef mmk_area area
    cdef char path[MMK_MAPS_PATH_MAX]
    cdef size_t length
    cdef unsigned facts
    cdef int error
    with nogil:
        error = mmk_maps_query(descriptor, address, &area, path, &length, &facts)
    if error == -ENOENT:
        return None
    if error == -ENOTTY:
        raise QueryUnsupportedError("PROCMAP_QUERY came with Linux 6.11")
    if error:
        raise failure(error, "ioctl", None, (descriptor, "PROCMAP_QUERY", hex(address)))
    cdef bint deleted = facts & <unsigned>MMK_PATH_DELETED != 0
    return Answer(
        area.start, area.end, area.offset, area.device, area.inode, area.perms, path[:length], deleted
    )
