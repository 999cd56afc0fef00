"""Where in the memory of a process, or in a core file, copies of a secret are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mmkit._native import scan as native
from mmkit.secret.copies import Copies
from mmkit.secret.core_file import opened_core
from mmkit.secret.process_memory import opened_process
from mmkit.secret.scanner import wrong_length
from mmkit.secret.target import Target

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["find_copies", "handed_over", "opened_target"]


@runtime_checkable
class _Opens(Protocol):
    """A secret: what it holds is a buffer only while it is open."""

    def open(self) -> AbstractContextManager[ReadableBuffer]: ...


def find_copies(
    needle: ReadableBuffer | _Opens, pid: int | None = None, *, core: str | os.PathLike[str] | None = None
) -> Copies:
    """Search all memory of a process, or a core file, for copies of a secret.

    It finds the whole and parts of it (quarters, of at least 8 bytes each), as they are and in the forms that
    programs give them: see `Form`. A process of its own searches, so that no copy is added to the one that is
    looked at; it gets the secret through a memory file, which is wiped.

    Parameters
    ----------
    needle : Secret or bytes-like
        What to look for: 8 to 4,096 bytes.
    pid
        The process; None for this one.
    core
        The path of a core file to be searched instead, with the registers in it: ELF, as the kernel and
        gcore write them.

    Returns
    -------
    Copies
        The hits, empty if there are none. In this process the needle's own memory is not among them, but in
        `Copies.own`; what could not be read is in `Copies.unread`.

    Raises
    ------
    SyscallError
        ``ESRCH`` (a `ProcessLookupError`): there is no such process, or it ended meanwhile.
        ``EACCES`` (a `PermissionError`): looking at it needs what ptrace(2) needs.
    CorruptError
        The file is no core file of a 64-bit machine with this byte order.
    ValueError
        The needle is too short or too long; or both `pid` and `core` are given.

    Notes
    -----
    The process runs on meanwhile: what moves may be missed. Pages that it may not access itself
    (``PROT_NONE``) are read all the same, where the kernel lets ptrace do so; ``memfd_secret`` memory never
    is. Pages of private memory that were never written are left out, and stay unwritten.

    References
    ----------
    proc_pid_mem(5), proc_pid_pagemap(5), ptrace(2), core(5), elf(5)
    """
    with opened_target(pid, core) as target, handed_over(needle) as (descriptor, own):
        return target.search(descriptor, own=own)


def opened_target(pid: int | None, core: str | os.PathLike[str] | None) -> AbstractContextManager[Target]:
    """Open what shall be searched."""
    if core is None:
        return opened_process(pid)
    if pid is not None:
        raise ValueError("give a pid or a core file, not both")
    return opened_core(core)


@contextmanager
def handed_over(needle: ReadableBuffer | _Opens) -> Iterator[tuple[int, range]]:
    """Put the needle in a memory file. Tell also which addresses of this process are its own."""
    descriptor = os.memfd_create("mmkit-scan")
    length = 0
    try:
        with ExitStack() as scope:
            buffer = scope.enter_context(needle.open()) if isinstance(needle, _Opens) else needle
            address, length = native.hand_over(buffer, descriptor)
        if not native.NEEDLE_MIN <= length <= native.NEEDLE_MAX:
            raise wrong_length(length)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor, range(address, address + length)
    finally:
        os.pwrite(descriptor, bytes(native.NEEDLE_MAX), 0)
        os.close(descriptor)
