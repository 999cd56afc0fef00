"""What becomes of a bare access, as C makes it: a child makes one, and tells what it dies of."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
from dataclasses import dataclass
from typing import Any

from mmkit.tour.company import ChildDiedError, in_a_child

__all__ = ["Death", "bare_access"]

_CODES = {
    "SIGSEGV": {1: "SEGV_MAPERR", 2: "SEGV_ACCERR", 4: "SEGV_PKUERR", 128: "SI_KERNEL"},
    "SIGBUS": {1: "BUS_ADRALN", 2: "BUS_ADRERR", 3: "BUS_OBJERR", 4: "BUS_MCEERR_AR"},
}
_PAGE_IS_THERE, _WAS_A_WRITE = 1, 2
#: From the last page of user space on (with tables of four levels) the kernel always tells user programs that
#: a page is there, whether it is or not: nobody shall learn where the kernel has its own.
_HIDDEN_FROM = (1 << 47) - 4096


@dataclass(frozen=True)
class Death:
    """What an access dies of.

    Attributes
    ----------
    signal
        Its name.
    code
        Why, as sigaction(2) has it; empty if the child could not tell.
    address
        Where, as the kernel tells.
    error_code
        What the processor says of a page fault; None where that cannot be had.
    """

    signal: str
    code: str = ""
    address: int | None = None
    error_code: int | None = None

    def __str__(self) -> str:
        """Write what the kernel says."""
        where = "" if self.address is None else f" at {self.address:#x}"
        return self.signal + (f", {self.code}" if self.code else "") + where

    @property
    def processor(self) -> str:
        """Write what the processor says; empty where that is not known."""
        if self.error_code is None:
            return ""
        access = "write" if self.error_code & _WAS_A_WRITE else "read"
        if self.address is None or self.address >= _HIDDEN_FROM:
            return f"page fault, code {self.error_code}: a {access}. The kernel hides whether there is a page"
        why = (
            f"its tables have the page, but not for this {access}"
            if self.error_code & _PAGE_IS_THERE
            else f"its tables have no page there to {access}"
        )
        return f"page fault, code {self.error_code}: {why}"


def bare_access(address: int, access: str) -> Death | None:
    """Read or write a byte as C does, in a child.

    Parameters
    ----------
    address
        Where.
    access
        ``"read"`` or ``"write"``.

    Returns
    -------
    Death or None
        What the child died of; None if the access went well.
    """
    reader, writer = os.pipe()
    try:
        in_a_child(lambda: _access(address, access, writer))
    except ChildDiedError as death:
        os.set_blocking(reader, False)
        try:
            signal_number, code, where, error_code = map(int, os.read(reader, 100).split())
        except BlockingIOError:
            return Death(death.signal)
        name = signal.Signals(signal_number).name
        return Death(name, _CODES[name].get(code, str(code)), where, None if error_code < 0 else error_code)
    finally:
        os.close(reader)
        os.close(writer)
    return None


def _access(address: int, access: str, writer: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _alive = _tell_death(writer)
    byte = ctypes.c_ubyte.from_address(address)
    if access == "write":
        byte.value = 1
    else:
        _ = byte.value


class _SignalInfo(ctypes.Structure):
    """As siginfo_t of sigaction(2) begins for faults."""

    _fields_ = [
        ("number", ctypes.c_int),
        ("errno", ctypes.c_int),
        ("code", ctypes.c_int),
        ("address", ctypes.c_void_p),
    ]


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_SignalInfo), ctypes.c_void_p)


class _Action(ctypes.Structure):
    """struct sigaction of the C library on x86-64 and aarch64."""

    _fields_ = [
        ("handler", _Handler),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_SA_SIGINFO = 4


def _tell_death(writer: int) -> Any:  # noqa: ANN401 - a type that ctypes makes
    """Have this process tell why it dies, and return what must live until then."""

    def tell(number: int, info: Any, context: int) -> None:  # noqa: ANN401
        where = info.contents.address or 0
        message = f"{number} {info.contents.code} {where} {_page_fault_error_code(context)}"
        os.write(writer, message.encode())
        os._exit(1)

    # No handler in Python can do it: Python calls those later, and here there is no later.
    handler = _Handler(tell)
    action = _Action(handler, (ctypes.c_ubyte * 128)(), _SA_SIGINFO, None)
    libc = ctypes.CDLL(None)
    for number in (signal.SIGSEGV, signal.SIGBUS):
        libc.sigaction(int(number), ctypes.byref(action), None)
    return handler


# The registers of an x86-64 ucontext_t begin at byte 40; these two are their numbers.
_REGISTERS, _ERROR_CODE, _TRAP = 40, 19, 20
_PAGE_FAULT = 14


def _page_fault_error_code(context: int) -> int:
    if platform.machine() != "x86_64":
        return -1
    registers = (ctypes.c_uint64 * 23).from_address(context + _REGISTERS)
    return int(registers[_ERROR_CODE]) if registers[_TRAP] == _PAGE_FAULT else -1
