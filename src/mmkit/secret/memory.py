"""Secrets: bytes that are readable while somebody looks at them, and nowhere else."""

from __future__ import annotations

import errno
import os
import sys
import termios
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from mmkit._native.region import adopt_methods
from mmkit._native.secret import SecretHandle
from mmkit.errors import ClosedError, SyscallError
from mmkit.making import Demand, check_demand
from mmkit.secret.status import SecretStatus, status_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Backing", "Secret"]

#: What stands behind a secret.
Backing = Literal["anonymous", "memfd_secret"]

# As mmk_secret_kind in core/include/mmkit/secret.h.
_LOCKED, _UNLOCKED, _MEMFD = range(3)
#: A terminal hands over no longer line: N_TTY_BUF_SIZE of the kernel.
_LONGEST_LINE = 4096


def _callers_level() -> int:
    """Count the frames up to who called mmkit: Python shows a warning once a place, so not at one of ours."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("mmkit."):
        frame, level = frame.f_back, level + 1
    return level


@adopt_methods
class Secret(SecretHandle):
    """A few bytes that do not leak: a key, a password, a token. New ones are zeros.

    Its memory is locked into RAM, in no core dump and in no forked child; it stands between canaries and
    guard pages, is readable only inside ``with secret.open()``, and is wiped when the secret is closed or
    dropped, or the interpreter exits. A secret of up to 4,064 bytes has a slot in a slab, a page that it
    shares with others of its size: 64 bytes of the lock limit for a key of 32.

    A secret has no ``bytes()``, no text, no hash; it is neither copied nor pickled; its ``repr`` does not
    show it.

    Parameters
    ----------
    length
        Bytes, at least one.
    isolated
        Pages of its own, with its last byte at the guard: a byte too far faults at once, and no other
        secret's being open opens it. Costs a page of the lock limit at least.
    backend
        ``"memfd_secret"``: pages that the kernel itself has not mapped, so that neither ptrace nor
        ``/proc/PID/mem`` nor most of what is wrong in a kernel can read them. Locked by nature. While one
        lives the machine cannot hibernate.
    lock
        ``"require"`` raises where it cannot be locked; ``"warn"`` goes on, and says so; ``"off"`` does not
        try.

    Raises
    ------
    OutOfMemory
        RLIMIT_MEMLOCK has no room for another page, or there is no memory. All other secrets are as they
        were.
    SyscallError
        Another refusal of the kernel.

    Notes
    -----
    Damage ends the process: a write past either end of a secret, or into a slot that nobody has, is found
    when access ends or the slot is used, and abort(3) follows one line on stderr. A stray read or write of a
    secret that is not open is a SIGSEGV.

    Threads may use one secret together. A forked child has none of its parent's: there they raise
    ClosedError.

    References
    ----------
    mlock(2), mprotect(2), memfd_secret(2); madvise(2), MADV_DONTDUMP and MADV_WIPEONFORK

    Examples
    --------
    >>> import mmkit
    >>> with mmkit.Secret.take(bytearray(b"correct horse")) as password:
    ...     with password.open() as view:
    ...         view[:7] == b"correct"
    ...     password
    True
    <mmkit.Secret: 13 bytes>
    """

    __slots__ = ()

    def __init__(
        self, length: int, *, isolated: bool = False, backend: Backing = "anonymous", lock: Demand = "require"
    ) -> None:
        if backend == "anonymous" and lock == "require":
            self._take(length, _LOCKED, isolated)
        elif backend == "memfd_secret":
            check_demand("lock", lock)
            self._take(length, _MEMFD, isolated)
        else:
            self._take_as_may_be(length, isolated, backend, lock)

    def _take_as_may_be(self, length: int, isolated: bool, backend: str, lock: str) -> None:
        check_demand("lock", lock)
        if backend != "anonymous":
            raise ValueError(f"backend must be 'anonymous' or 'memfd_secret', not {backend!r}")
        if lock == "warn":
            try:
                return self._take(length, _LOCKED, isolated)
            except SyscallError as error:
                text = f"the secret is not locked into RAM, and may be written to swap: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=_callers_level())
        return self._take(length, _UNLOCKED, isolated)

    # ---- sources

    @classmethod
    def _filled(cls, fill: Callable[[Self], object], length: int, how: Mapping[str, Any]) -> Self:
        secret = cls(length, **how)
        try:
            fill(secret)
        except BaseException:
            secret.close()
            raise
        return secret

    @classmethod
    def random(
        cls, length: int, *, isolated: bool = False, backend: Backing = "anonymous", lock: Demand = "require"
    ) -> Self:
        """Make a secret of random bytes, which the kernel writes into place (``getrandom(2)``).

        Parameters
        ----------
        length, isolated, backend, lock
            As for `Secret`.

        References
        ----------
        getrandom(2)
        """
        how = {"isolated": isolated, "backend": backend, "lock": lock}
        return cls._filled(cls._randomize, length, how)

    @classmethod
    def from_fd(
        cls,
        fd: int,
        length: int,
        *,
        isolated: bool = False,
        backend: Backing = "anonymous",
        lock: Demand = "require",
    ) -> Self:
        """Make a secret of the next bytes of a file, pipe or socket, which the kernel writes into place.

        Parameters
        ----------
        fd
            A descriptor. Not a file object: what that has buffered is a copy.
        length
            Bytes to read; no fewer are accepted.
        isolated, backend, lock
            As for `Secret`.

        Raises
        ------
        EOFError
            There were fewer bytes. What was read is wiped.
        SyscallError
            ``read`` was refused.

        References
        ----------
        read(2)
        """

        def fill(secret: Self) -> None:
            have = secret._read_from(fd)
            if have < length:
                raise EOFError(f"descriptor {fd} ended after {have} of {length} bytes")

        return cls._filled(fill, length, {"isolated": isolated, "backend": backend, "lock": lock})

    @classmethod
    def take(
        cls,
        source: WriteableBuffer,
        *,
        isolated: bool = False,
        backend: Backing = "anonymous",
        lock: Demand = "require",
    ) -> Self:
        """Make a secret of the bytes of a buffer, and wipe the buffer.

        Parameters
        ----------
        source
            A bytearray, or another writable buffer. What the program made of it before is not known here:
            a bytearray that grew has left copies behind.
        isolated, backend, lock
            As for `Secret`.

        Raises
        ------
        TypeError
            It cannot be wiped: bytes and str never can.
        """
        with memoryview(source) as view:
            if view.readonly or not view.c_contiguous:
                raise TypeError(
                    f"take() wipes what it takes: a {type(source).__name__} cannot be written in one piece. "
                    "Have the bytes in a bytearray from the start."
                )
            how = {"isolated": isolated, "backend": backend, "lock": lock}
            return cls._filled(lambda secret: secret._take_from(source), view.nbytes, how)

    @classmethod
    def prompt(
        cls,
        text: str = "Password: ",
        *,
        isolated: bool = False,
        backend: Backing = "anonymous",
        lock: Demand = "require",
    ) -> Self:
        """Ask for a line at the terminal, which does not show it, and make a secret of it.

        The kernel writes the line into place. Whatever ends the wait, the terminal is as it was before:
        Ctrl-C, Ctrl-Z (after which it asks anew), a signal, an exception of a signal handler.

        Parameters
        ----------
        text
            What is asked.
        isolated, backend, lock
            As for `Secret`.

        Returns
        -------
        Secret
            The bytes that the terminal sent, without the end of the line: UTF-8 almost everywhere.

        Raises
        ------
        EOFError
            The terminal was closed, or Ctrl-D typed.
        ValueError
            The line is empty, or has 4,096 bytes or more.
        SyscallError
            ``ENXIO``: the process has no terminal. Pass the secret through a descriptor: `from_fd`.

        References
        ----------
        termios(3), tty(4)
        """
        how: Mapping[str, Any] = {"isolated": isolated, "backend": backend, "lock": lock}
        words = text.encode()
        if b"\0" in words:
            raise ValueError("text must not contain a NUL character")
        with cls(_LONGEST_LINE, **how) as line:
            try:
                terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as refused:
                hint = (
                    "The process has no terminal to ask at: pass the secret through a descriptor (from_fd)."
                )
                raise SyscallError(refused.errno or errno.ENXIO, "open('/dev/tty')", hint) from None
            try:
                length = line._prompt(terminal, words)
            except BaseException:
                # Half a line is not for whoever reads next.
                with suppress(termios.error):
                    termios.tcflush(terminal, termios.TCIFLUSH)
                raise
            finally:
                os.close(terminal)
            if length == -errno.ENODATA:
                raise EOFError("the terminal gave no line")
            if length == -errno.E2BIG:
                raise ValueError(f"the line has {_LONGEST_LINE} bytes or more; all of it was wiped")
            if length < 0:
                raise SyscallError(-length, "prompt('/dev/tty')")
            if length == 0:
                raise ValueError("nothing was typed: a secret needs at least one byte")
            return cls._filled(lambda secret: secret._take_start_of(line), length, how)

    # ---- facts

    def status(self) -> SecretStatus:
        """Tell what the kernel says of its memory: measured now, whatever was asked for.

        Raises
        ------
        ClosedError
            It has no memory any more, or lost it meanwhile.

        References
        ----------
        proc_pid_smaps(5)
        """
        status = None if self.closed else status_of(self._address, len(self))
        # Another thread may have closed it meanwhile, and other memory be there.
        if status is None or self.closed:
            raise ClosedError("status: the secret is closed")
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BufferError as refusal:
            if error is None:
                raise
            error.add_note(f"mmkit: {refusal}")

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self)} bytes{', open' if self._is_open else ''}"
        return f"<mmkit.Secret: {state}>"
