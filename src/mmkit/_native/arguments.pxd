"""Arguments on their way to the kernel: what cannot be one raises here, before the call."""

from cpython.number cimport PyNumber_Index
from libc.stdint cimport uintptr_t


cdef inline size_t as_size(object value, str call, str name) except? <size_t>-1:
    """A length, an offset or an address: 0 <= value < 2**63 (no user address is higher)."""
    cdef object number = PyNumber_Index(value)
    if number < 0 or number > 0x7FFFFFFFFFFFFFFF:
        raise ValueError(f"{call}: {name} must be between 0 and 2**63 - 1, not {number:#x}")
    return <size_t>number


cdef inline int as_int(object value, str call, str name) except? -1:
    """A C int or unsigned int, by its 32 bits: flags, commands, descriptors."""
    cdef object number = PyNumber_Index(value)
    if number < -0x80000000 or number > 0xFFFFFFFF:
        raise ValueError(f"{call}: {name} must fit in 32 bits, not {number:#x}")
    return <int><unsigned int>(number & 0xFFFFFFFF)


cdef inline int check_end(size_t address, size_t length, str call) except -1:
    """The range must not wrap past the address space."""
    if length > 0x7FFFFFFFFFFFFFFF - address:
        raise ValueError(f"{call}: {address:#x} + {length:#x} wraps past the end of the address space")
    return 0
