"""Memory at any address: a load and a store that cannot crash, and the signal handler behind them."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyNumber_Index

from mmkit._native.fault cimport mmk_fault, mmk_fault_come_first, mmk_fault_interpreter, mmk_guarded_copy

from mmkit.hints import memory_fault

cdef enum:
    # Above this much work other threads may have the GIL; releasing it costs 25 to 40 ns.
    QUICK = 256 * 1024

cdef extern from *:
    size_t UINTPTR_MAX


cdef int copy(void *to, const void *source, size_t length) except -1:
    cdef mmk_fault fault
    cdef int error
    if length < QUICK:
        error = mmk_guarded_copy(to, source, length, &fault)
    else:
        with nogil:
            error = mmk_guarded_copy(to, source, length, &fault)
    if error:
        raise memory_fault(fault.address, None, fault.write, fault.reason)
    return 0


cdef size_t checked(object address, size_t length) except? 0:
    address = PyNumber_Index(address)
    if not 0 <= address <= UINTPTR_MAX or length > UINTPTR_MAX - address + 1 and length:
        raise ValueError(f"{length} bytes at {address:#x} are not inside the address space")
    return address


def peek(address, Py_ssize_t n):
    """Read memory of this process at any address.

    Parameters
    ----------
    address : int
        Of the first byte; any number that fits a pointer.
    n : int
        Bytes.

    Returns
    -------
    bytes
        As they were while they were copied; other threads may write meanwhile.

    Raises
    ------
    MemoryFault
        Some of it cannot be read. The process goes on.

    See Also
    --------
    poke : write.
    """
    if n < 0:
        raise ValueError(f"n must not be negative, as {n} is")
    cdef size_t start = checked(address, n)
    cdef bytes data = PyBytes_FromStringAndSize(NULL, n)
    copy(PyBytes_AS_STRING(data), <const void *>start, n)
    return data


def poke(address, data):
    """Write memory of this process at any address.

    Nothing checks whose memory it is: what belongs to Python or to a library is overwritten just the same.

    Parameters
    ----------
    address : int
        Of the first byte; any number that fits a pointer.
    data : bytes-like
        All of it is written.

    Raises
    ------
    MemoryFault
        Some of it cannot be written; what lies in front may have been. The process goes on.

    See Also
    --------
    peek : read.
    """
    cdef Py_buffer source
    PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
    try:
        copy(<void *>checked(address, source.len), source.buf, source.len)
    finally:
        PyBuffer_Release(&source)


def come_first():
    """Put mmkit's handler of SIGSEGV and SIGBUS in front of those that others have installed since."""
    mmk_fault_come_first()


mmk_fault_interpreter(<const void *>&PyErr_CheckSignals)
mmk_fault_come_first()
