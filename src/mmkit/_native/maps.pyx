"""The reader of /proc/PID/maps and smaps: from an open file to columns; and the area at an address."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.errno cimport EINVAL, ENAMETOOLONG, ENOBUFS, ENOENT, ENOMEM, ENOTTY, ESRCH
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mmkit._native.base cimport MMK_ECLOSED
from mmkit._native.maps cimport *

from typing import NamedTuple

from mmkit.hints import failure

DELETED = MMK_PATH_DELETED
ESCAPED = MMK_PATH_ESCAPED
BYTES = MMK_FIELD_BYTES
NUMBER = MMK_FIELD_NUMBER
TEXT = MMK_FIELD_TEXT
HOLDING = MMK_QUERY_HOLDING
CODE_FROM = MMK_QUERY_CODE_FROM

cdef enum:
    FIRST_CAPACITY = 64 * 1024
    MOST_KEPT = 4 * 1024 * 1024
    FEWEST_ROWS = 128
    # As many areas as vm.max_map_count allows by default.
    MOST_GUESSED = 65536


class UnansweredError(Exception):
    """A query told nothing, and the text of maps does: before Linux 6.11, and where its reader says why not."""


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


# What is idle. Appending and popping are atomic, with the GIL and without.
cdef list idle = []

# How many areas the latest process had: most often the next one has about as many.
cdef size_t latest_count = 0


cdef _Scratch take_scratch():
    try:
        return idle.pop()
    except IndexError:
        return _Scratch()


cdef int give_scratch(_Scratch scratch) except -1:
    if scratch.capacity <= MOST_KEPT and not idle:
        idle.append(scratch)
    return 0


cdef class _Column:
    """A column that grows."""

    cdef bytearray memory
    cdef str code
    cdef size_t item

    cdef void *resize(self, size_t rows) except NULL:
        PyByteArray_Resize(self.memory, <Py_ssize_t>(rows * self.item))
        return PyByteArray_AS_STRING(self.memory)


cdef _Column new_column(str code, size_t item):
    cdef _Column column = _Column.__new__(_Column)
    column.memory = PyByteArray_FromStringAndSize(NULL, 0)
    column.code = code
    column.item = item
    return column


cdef class Columns:
    """What the text of a maps or smaps file says: areas, paths and fields as columns, one entry a row.

    Attributes
    ----------
    areas, paths
        How many rows there are.
    last_end
        Where the last area ends.
    facts
        `DELETED` and `ESCAPED`, as far as they hold for any path.
    malformed, torn
        How many lines were not understood; how many areas were told twice.
    text
        The paths, and the values that are text: columns tell where in it.
    units
        For each field of smaps whether its values are `BYTES`, a `NUMBER`, or a place in `text`.
    """

    cdef mmk_maps_parser parser
    cdef _Column start, end, offset, device, inode, path, perms
    cdef _Column path_start, path_length, path_perms, path_facts
    cdef list values
    cdef readonly bytes text

    def __cinit__(self):
        self.start = new_column("Q", 8)
        self.end = new_column("Q", 8)
        self.offset = new_column("Q", 8)
        self.device = new_column("Q", 8)
        self.inode = new_column("Q", 8)
        self.path = new_column("I", 4)
        self.perms = new_column("B", 1)
        self.path_start = new_column("Q", 8)
        self.path_length = new_column("I", 4)
        self.path_perms = new_column("B", 1)
        self.path_facts = new_column("B", 1)
        self.values = []
        self.text = b""

    cdef int resize(self, size_t rows) except -1:
        cdef mmk_area_columns *areas = &self.parser.areas
        cdef mmk_path_columns *paths = &self.parser.paths
        cdef size_t i
        areas.capacity = 0
        areas.start = <uint64_t *>self.start.resize(rows)
        areas.end = <uint64_t *>self.end.resize(rows)
        areas.offset = <uint64_t *>self.offset.resize(rows)
        areas.device = <uint64_t *>self.device.resize(rows)
        areas.inode = <uint64_t *>self.inode.resize(rows)
        areas.path = <uint32_t *>self.path.resize(rows)
        areas.perms = <uint8_t *>self.perms.resize(rows)
        paths.start = <uint64_t *>self.path_start.resize(rows + 1)
        paths.length = <uint32_t *>self.path_length.resize(rows + 1)
        paths.perms = <uint8_t *>self.path_perms.resize(rows + 1)
        paths.facts = <uint8_t *>self.path_facts.resize(rows + 1)
        for i in range(<size_t>len(self.values)):
            self.parser.fields[i].values = <uint64_t *>(<_Column>self.values[i]).resize(rows)
        areas.capacity = rows
        return 0

    cdef int provide(self) except -1:
        """Provide what the parser is out of: columns for new fields, or rows."""
        cdef size_t rows = self.parser.areas.capacity
        if <size_t>len(self.values) < self.parser.field_count:
            self.values += [new_column("Q", 8) for _ in range(MMK_FIELDS_MAX // 2)]
        elif rows:
            rows *= 2
        else:
            return self.guess()
        return self.resize(rows)

    cdef int guess(self) except -1:
        """Provide the first rows."""
        cdef size_t rows = min(latest_count + latest_count // 16, <size_t>MOST_GUESSED)
        if rows > FEWEST_ROWS:
            try:
                return self.resize(rows)
            except MemoryError:
                pass
        return self.resize(FEWEST_ROWS)

    cdef int finish(self, _Scratch scratch) except -1:
        del self.values[self.parser.field_count:]
        if self.parser.areas.capacity > self.parser.area_count + self.parser.area_count // 4:
            self.cut(self.parser.area_count)
        self.text = PyBytes_FromStringAndSize(scratch.bytes, <Py_ssize_t>self.parser.kept)
        return 0

    cdef int cut(self, size_t rows) except -1:
        """Give back rows that were provided for nothing. In place, each column would leave a hole too small for the
        next reading."""
        cdef _Column column
        self.parser.areas.capacity = 0
        for column in (self.start, self.end, self.offset, self.device, self.inode, self.path, self.perms, *self.values,
                       self.path_start, self.path_length, self.path_perms, self.path_facts):
            column.memory = column.memory[:(rows + 1) * column.item]
        return 0

    @property
    def areas(self):
        return self.parser.area_count

    @property
    def last_end(self):
        """Where the last area ends; 0 without any."""
        return self.parser.previous_end

    @property
    def paths(self):
        return self.parser.path_count

    @property
    def facts(self):
        return self.parser.facts

    @property
    def malformed(self):
        return self.parser.malformed

    @property
    def torn(self):
        return self.parser.torn

    @property
    def units(self):
        cdef size_t i
        return {
            (<bytes>self.parser.fields[i].name).decode("ascii"): self.parser.fields[i].unit
            for i in range(self.parser.field_count)
        }

    def column(self, str name not None) -> memoryview:
        """Export a column: a field of areas, or one of ``path_start path_length path_perms path_facts``."""
        cdef size_t rows = self.parser.path_count if name.startswith("path_") else self.parser.area_count
        return exported({
            "start": self.start,
            "end": self.end,
            "offset": self.offset,
            "device": self.device,
            "inode": self.inode,
            "path": self.path,
            "perms": self.perms,
            "path_start": self.path_start,
            "path_length": self.path_length,
            "path_perms": self.path_perms,
            "path_facts": self.path_facts,
        }[name], rows)

    def field(self, size_t place) -> memoryview:
        """Export the column of a field of smaps, by its place among `units`."""
        return exported(self.values[place], self.parser.area_count)


cdef exported(_Column column, size_t rows):
    return memoryview(column.memory).toreadonly()[:rows * column.item].cast(column.code)


cdef int parse_scratch(Columns columns, _Scratch scratch, size_t *length, bint is_end) except? -1 nogil:
    """Parse what is in the scratch memory; the columns grow as they must."""
    cdef int error
    while True:
        error = mmk_maps_parse(&columns.parser, scratch.bytes, length, is_end)
        if error != -ENOBUFS:
            return error
        with gil:
            columns.provide()


def read(int descriptor) -> Columns:
    """Read an open /proc/PID/maps or smaps to its end.

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
    proc_pid_maps(5), proc_pid_smaps(5), read(2)
    """
    cdef _Scratch scratch = take_scratch()
    cdef Columns columns = Columns.__new__(Columns)
    cdef size_t length = 0
    cdef int error = 0
    cdef bint is_end = False
    global latest_count
    with nogil:
        while not is_end:
            # Half of the memory, at least, is for new text: the other may be full of paths.
            error = scratch.reserve(max(<size_t>FIRST_CAPACITY, 2 * length))
            if error:
                break
            error = mmk_maps_slurp(descriptor, scratch.bytes, scratch.capacity, &length)
            is_end = error == 0
            if error and error != -ENOBUFS:
                break
            error = parse_scratch(columns, scratch, &length, is_end)
            if error:
                break
            # The kernel takes a while for the costs of large processes.
            with gil:
                PyErr_CheckSignals()
    if error == -ENOMEM:
        raise MemoryError
    if error:
        raise failure(error, "read", None, (descriptor,))
    latest_count = columns.parser.area_count
    columns.finish(scratch)
    give_scratch(scratch)
    return columns


def parse(bytes text not None) -> Columns:
    """Read the text of a maps or smaps file."""
    cdef _Scratch scratch = _Scratch()
    cdef Columns columns = Columns.__new__(Columns)
    cdef size_t length = <size_t>PyBytes_GET_SIZE(text)
    if scratch.reserve(length + 1):
        raise MemoryError
    memcpy(scratch.bytes, PyBytes_AS_STRING(text), length)
    with nogil:
        parse_scratch(columns, scratch, &length, True)
    columns.finish(scratch)
    return columns


cdef tuple answer(int error, const mmk_area *area, const char *path, size_t length, unsigned facts):
    """Make the fields of an `Answer` of what mmk_maps_query returned; None if there is no area."""
    if error == -ENOENT:
        return None
    # No such call; a path that is too long for it; no memory: who reads learns which process that is.
    if error in (-ENOTTY, -ENAMETOOLONG, -ESRCH):
        raise UnansweredError
    if error:
        raise failure(error, "ioctl", None, ("/proc/PID/maps", "PROCMAP_QUERY"))
    cdef bint deleted = facts & <unsigned>MMK_PATH_DELETED != 0
    cdef bytes name = path[:length] if length else b""
    return (area.start, area.end, area.offset, area.device, area.inode, area.perms, name, deleted)


def query(int descriptor, uint64_t address, int which=MMK_QUERY_HOLDING) -> Answer | None:
    """Ask an open /proc/PID/maps for the area at an address (ioctl(2), PROCMAP_QUERY).

    Parameters
    ----------
    descriptor, address
        Whose map, and where.
    which
        `HOLDING`, or `CODE_FROM`: the first executable area of a file that ends after the address.

    Returns
    -------
    Answer or None
        None where nothing is mapped.

    Raises
    ------
    UnansweredError
        The kernel is older than Linux 6.11, the path is longer than ``PATH_MAX``, or the process has no memory.
    """
    cdef mmk_area area
    cdef char path[MMK_MAPS_PATH_MAX]
    cdef size_t length = 0
    cdef unsigned facts = 0
    cdef int error
    with nogil:
        error = mmk_maps_query(descriptor, address, which, &area, path, &length, &facts)
    cdef tuple fields = answer(error, &area, path, length, facts)
    return None if fields is None else Answer(*fields)


# Opened by the first query; the core says what becomes of it in a child, and when others close it.
cdef mmk_own_map own_map


def query_own(uint64_t address, int which=MMK_QUERY_HOLDING) -> tuple | None:
    """As `query`, of the calling process, through a descriptor that stays open. The tuple has no names: faster."""
    cdef mmk_area area
    cdef char path[MMK_MAPS_PATH_MAX]
    cdef size_t length = 0
    cdef unsigned facts = 0
    cdef int error = mmk_own_map_check(&own_map)
    if error == -MMK_ECLOSED:
        error = mmk_own_map_open(&own_map)
    if error == -EINVAL:
        # No MADV_WIPEONFORK.
        raise UnansweredError
    if error:
        raise failure(error, "open", None, ("/proc/self/maps",))
    with nogil:
        error = mmk_maps_query(own_map.fd, address, which, &area, path, &length, &facts)
    return answer(error, &area, path, length, facts)


def is_single_threaded() -> bool:
    """Tell whether this process is known to have had one thread only."""
    return mmk_is_single_threaded()


def thread_stack_address(int thread) -> int:
    """Tell an address in the stack of a thread; 0 where the thread has not told the kernel (get_robust_list(2))."""
    cdef uint64_t address = 0
    cdef int error = mmk_thread_stack_address(thread, &address)
    if error:
        raise failure(error, "get_robust_list", None, (thread,))
    return address


def sums(groups, values, size_t group_count) -> list[int]:
    """Add up a column of 8-byte values by another column of 4-byte numbers below `group_count`; at most 2**64 - 1."""
    cdef Py_buffer numbers, terms
    cdef uint32_t *group
    cdef uint64_t *value
    cdef uint64_t *total
    cdef Py_ssize_t i, rows
    cdef bytearray memory = bytearray(group_count * 8)
    PyObject_GetBuffer(groups, &numbers, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(values, &terms, PyBUF_SIMPLE)
        try:
            rows = min(numbers.len // 4, terms.len // 8)
            group, value = <uint32_t *>numbers.buf, <uint64_t *>terms.buf
            total = <uint64_t *>PyByteArray_AS_STRING(memory)
            for i in range(rows):
                if group[i] < group_count:
                    total[group[i]] += value[i]
                    if total[group[i]] < value[i]:
                        total[group[i]] = <uint64_t>-1
        finally:
            PyBuffer_Release(&terms)
    finally:
        PyBuffer_Release(&numbers)
    return memoryview(memory).cast("Q").tolist()
