"""The raw calls on where memory comes from, as `mmkit.linux` exports them: NUMA nodes."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.number cimport PyNumber_Index
from libc.string cimport memcpy, memset

from mmkit._native.arguments cimport as_int, as_size, check_end
from mmkit._native.sys cimport *

from mmkit.flags import BindFlag, PolicyQuery
from mmkit.hints import Verbatim, failure
from mmkit.structs import MemPolicy

cdef enum:
    # The most nodes a kernel can be built for (CONFIG_NODES_SHIFT is at most 10).
    NODES = 1024
    LONGS = 16
    BYTES = 128


cdef int fill_mask(object nodemask, unsigned long *mask, str call) except -1:
    """Bit n of a number is node n. Both architectures are little-endian, so bytes are in the order of longs."""
    cdef bytes bits
    nodemask = PyNumber_Index(nodemask)
    if nodemask < 0 or nodemask.bit_length() > NODES:
        raise ValueError(f"{call}: nodemask must have between 0 and {NODES} bits, not {nodemask:#x}")
    bits = nodemask.to_bytes(BYTES, "little")
    memcpy(mask, <const char *>bits, BYTES)
    return 0


def mbind(addr: int, length: int, mode: int, nodemask: int = 0, flags: int = 0) -> None:
    """Set from which NUMA nodes the pages of a range come (mbind(2)).

    Parameters
    ----------
    addr, length
        The range in bytes; addr page-aligned.
    mode
        `Policy`, with `PolicyFlag`.
    nodemask
        Bit n stands for node n.
    flags
        `BindFlag`: what happens to pages that are there already.

    Raises
    ------
    SyscallError
        ``EINVAL``: a mode without nodes, or nodes that are not there; ``EIO``: STRICT, and pages are elsewhere;
        ``EPERM``: MOVE_ALL needs CAP_SYS_NICE; ``EFAULT``: a hole; ``ENOSYS``: a kernel without NUMA.

    References
    ----------
    mbind(2), numa(7)
    """
    cdef size_t address = as_size(addr, "mbind", "addr"), size = as_size(length, "mbind", "length")
    cdef int error, m = as_int(mode, "mbind", "mode")
    cdef unsigned int f = <unsigned int>as_int(flags, "mbind", "flags")
    cdef unsigned long mask[LONGS]
    check_end(address, size, "mbind")
    fill_mask(nodemask, mask, "mbind")
    with nogil:
        error = mmk_sys_mbind(<void *>address, size, m, mask, NODES + 1, f)
    if error:
        raise failure(error, "mbind", (address, size), (mode, Verbatim(hex(nodemask)), BindFlag(flags)))


def get_mempolicy(addr: int = 0, flags: int = 0) -> MemPolicy:
    """Tell from which NUMA nodes memory comes (get_mempolicy(2)).

    Parameters
    ----------
    addr
        With ``PolicyQuery.ADDR``: of this address; else 0.
    flags
        `PolicyQuery`; 0 asks for the policy of the thread.

    Returns
    -------
    MemPolicy
        The mode and its nodes; with ``NODE | ADDR`` the node of the page (which is brought in);
        with ``MEMS_ALLOWED`` the nodes the thread may use.

    Raises
    ------
    SyscallError
        ``EFAULT``: nothing is mapped there; ``EINVAL``; ``ENOSYS``: a kernel without NUMA.

    References
    ----------
    get_mempolicy(2), numa(7)
    """
    cdef size_t address = as_size(addr, "get_mempolicy", "addr"), f = as_size(flags, "get_mempolicy", "flags")
    cdef unsigned long mask[LONGS]
    cdef int error, mode = 0
    memset(mask, 0, BYTES)
    with nogil:
        error = mmk_sys_get_mempolicy(&mode, mask, NODES, <void *>address, f)
    if error:
        raise failure(error, "get_mempolicy", None, (Verbatim(hex(addr)), PolicyQuery(flags)))
    return MemPolicy(mode, int.from_bytes((<char *>mask)[:BYTES], "little"))


def set_mempolicy(mode: int, nodemask: int = 0) -> None:
    """Set from which NUMA nodes the thread's memory comes (set_mempolicy(2)); children inherit it.

    Parameters
    ----------
    mode
        `Policy`, with `PolicyFlag`.
    nodemask
        Bit n stands for node n.

    Raises
    ------
    SyscallError
        ``EINVAL``: a mode without nodes, or nodes that are not there; ``ENOSYS``: a kernel without NUMA.

    References
    ----------
    set_mempolicy(2), numa(7)
    """
    cdef int error, m = as_int(mode, "set_mempolicy", "mode")
    cdef unsigned long mask[LONGS]
    fill_mask(nodemask, mask, "set_mempolicy")
    error = mmk_sys_set_mempolicy(m, mask, NODES + 1)
    if error:
        raise failure(error, "set_mempolicy", None, (mode, Verbatim(hex(nodemask))))


def move_pages(pid: int, pages: object, nodes: object = None, flags: int = 0) -> tuple[int, ...]:
    """Move pages of a process to NUMA nodes, or tell on which nodes they are (move_pages(2)).

    Parameters
    ----------
    pid
        The process; 0 for this one.
    pages : sequence of int
        Addresses.
    nodes : sequence of int, optional
        Where each page should go; without it nothing is moved.
    flags
        `BindFlag`: ``MOVE`` or ``MOVE_ALL``.

    Returns
    -------
    tuple of int
        For each page its node, or a negative errno: ``-ENOENT`` where no page is present, ``-EFAULT`` for the
        zero page or where nothing is mapped.

    Raises
    ------
    SyscallError
        ``ESRCH``, ``EPERM``, ``EACCES``; ``ENODEV``: no such node; ``ENOSYS``: a kernel without NUMA.

    References
    ----------
    move_pages(2), numa(7)
    """
    cdef int target = as_int(pid, "move_pages", "pid"), f = as_int(flags, "move_pages", "flags")
    cdef list addresses = list(pages), wanted = None if nodes is None else list(nodes)
    cdef size_t i, count = len(addresses)
    if wanted is not None and len(wanted) != count:
        raise ValueError(f"move_pages: there must be a node for each page, not {len(wanted)} for {count}")
    cdef void **where = <void **>PyMem_Malloc(max(1, count) * (sizeof(void *) + 2 * sizeof(int)))
    if not where:
        raise MemoryError
    cdef int *status = <int *>(where + count)
    cdef int *to = status + count
    cdef long moved
    try:
        for i in range(count):
            where[i] = <void *>as_size(addresses[i], "move_pages", "an address")
            to[i] = 0 if wanted is None else as_int(wanted[i], "move_pages", "a node")
            status[i] = 0
        if wanted is None:
            to = NULL
        with nogil:
            moved = mmk_sys_move_pages(target, count, where, to, status, f)
        if moved < 0:
            raise failure(moved, "move_pages", None, (pid, Verbatim(f"{count} pages"), BindFlag(flags)))
        return tuple([status[i] for i in range(count)])
    finally:
        PyMem_Free(where)
