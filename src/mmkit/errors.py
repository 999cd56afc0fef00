"""What mmkit raises.

``Error`` is the base of everything. A refusal by the kernel is a `SyscallError`, and at the same time
the standard exception of its errno: ``except FileNotFoundError`` works, and so does ``except OSError``.
"""

from __future__ import annotations

import errno as _errno
import os
import threading as _threading

__all__ = [
    "BrokenBarrierError",
    "ClosedError",
    "CorruptError",
    "Error",
    "MemoryFault",
    "OutOfMemory",
    "OwnerDied",
    "SyscallError",
]


class Error(Exception):
    """Base of all errors that mmkit raises."""


class OutOfMemory(Error, MemoryError):  # noqa: N818 - the contract's name
    """Memory, address space or a limit is exhausted."""


class ClosedError(Error, ValueError):
    """The object was closed, or is not there in this process."""


class CorruptError(Error):
    """What is kept or shared is damaged, or is something else than it should be."""


class OwnerDied(Error):  # noqa: N818 - the contract's name
    """Whoever held a lock died, and nobody has recovered the lock since. It is not held.

    Parameters
    ----------
    message
        Which lock, who died, and what to do.
    pid
        The process that died with it; None if it is not known.
    """

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message, pid)
        self.pid = pid

    def __str__(self) -> str:
        return str(self.args[0])


class BrokenBarrierError(Error, _threading.BrokenBarrierError):
    """A barrier is broken, or was while this party waited. A :class:`threading.BrokenBarrierError` too."""


class MemoryFault(Error):  # noqa: N818 - the contract's name
    """An access that the memory does not allow.

    Parameters
    ----------
    message
        What happened, to which range, and what to do.
    address
        First byte that could not be accessed.
    offset
        The same, in bytes from the start of the region; None outside any region.
    access
        ``"read"`` or ``"write"``.
    reason
        Why, as far as the kernel tells.
    """

    def __init__(self, message: str, address: int, offset: int | None, access: str, reason: str) -> None:
        super().__init__(message, address, offset, access, reason)
        self.address = address
        self.offset = offset
        self.access = access
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


class SyscallError(Error, OSError):
    """The kernel refused a call.

    Parameters
    ----------
    errno
        As in errno(3).
    call
        The call as C writes it, with the arguments that matter: ``mlock(0x7f3a2c000000, 16 MiB)``.
    hint
        What to do about it, where something is known; else empty.

    Attributes
    ----------
    call, hint : str
    """

    call: str
    hint: str

    def __new__(cls, errno: int, call: str, hint: str = "") -> SyscallError:  # noqa: D102
        # Without the hint: OSError would take a third argument for the name of a file.
        return OSError.__new__(_class_for(cls, errno), errno, call)

    def __init__(self, errno: int, call: str, hint: str = "") -> None:
        # OSError takes its arguments in __new__ or in __init__, depending on which of them is overridden:
        # both are here, so errno and strerror are set by hand.
        super().__init__(errno, os.strerror(errno))
        self.errno = errno
        self.strerror = os.strerror(errno)
        self.call = call
        self.hint = hint

    def __str__(self) -> str:
        text = f"[Errno {self.errno}] {self.call}: {self.strerror}"
        return f"{text}\n{self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[type[SyscallError], tuple[int, str, str]]:
        assert self.errno is not None
        return SyscallError, (self.errno, self.call, self.hint)


_STANDARD: dict[int, type[Exception]] = {_errno.ENOMEM: OutOfMemory}
for _number in _errno.errorcode:
    _standard = type(OSError(_number, ""))
    if _standard is not OSError:
        _STANDARD[_number] = _standard

_classes: dict[type[Exception], type[SyscallError]] = {}


def _class_for(cls: type[SyscallError], errno: int) -> type[SyscallError]:
    """Return the subclass of SyscallError that is also the standard exception of an errno."""
    standard = _STANDARD.get(errno)
    if cls is not SyscallError or standard is None:
        return cls
    if standard not in _classes:
        # SyscallError first: with MemoryError's layout first, the errno would be lost.
        body = {"__module__": __name__, "__doc__": f"A `SyscallError` that is a `{standard.__name__}` too."}
        _classes[standard] = type(f"Syscall{standard.__name__}", (SyscallError, standard), body)
    return _classes[standard]
