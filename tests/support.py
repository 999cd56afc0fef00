"""What tests share: real child processes, with limits, other users and refused system calls."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import mmkit

PAGE = mmkit.PAGE_SIZE
NOBODY = 65534

SANITIZED = "MMKIT_SANITIZED" in os.environ
#: Limits on address space and areas do not go with the shadow memory of a sanitizer.
sanitized = pytest.mark.skipif(SANITIZED, reason="does not go with a sanitizer's shadow memory")
#: The sanitizers' runtimes replace mlock by nothing.
locks = pytest.mark.skipif(SANITIZED, reason="a sanitizer's mlock does nothing")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _prepare(user: int | None, limits: dict[int, int], refuse: Iterable[tuple[int, int]]) -> None:
    for which, value in limits.items():
        resource.setrlimit(which, (value, value))
    if user is not None and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        # Changing user closed /proc/self to the process; for one that was started by that user it is open.
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
    if refuse:
        refuse_calls(refuse)
        mmkit.supports.cache_clear()


def in_child(
    function: Callable[[], Any],
    *,
    user: int | None = None,
    limits: dict[int, int] | None = None,
    refuse: Iterable[tuple[int, int]] = (),
) -> Any:
    """Run a function in a forked child and return what it returns; its exception fails the test.

    user: give up root for this uid. limits: resource.RLIMIT_* -> bytes. refuse: (system call, errno) pairs.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        pid = os.fork()
    if pid == 0:
        try:
            try:
                _prepare(user, limits or {}, refuse)
                answer = (True, function())
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child died: {describe_status(status)}"
    good, value = pickle.loads(data)
    assert good, value
    return value


def exit_signal(function: Callable[[], Any]) -> int:
    """Run a function in a forked child that is expected to die; return the signal's number, 0 if it lives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGSEGV, signal.SIGBUS):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        function()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def describe_status(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


# Classic BPF for seccomp(2): answer some system calls with an errno, let all others through.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
#: Instead of an errno: the call ends the process.
KILLED = -1
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


def refuse_calls(calls: Iterable[tuple[int, int]]) -> None:
    """Have the kernel refuse system calls in this process from now on: (number, errno or KILLED) pairs.

    Numbers are of x86-64; a call may be (number, third argument) to refuse it for one argument only.
    """
    program = []
    for number, error in calls:
        number, argument = number if isinstance(number, tuple) else (number, None)
        program.append(struct.pack("HBBI", _LOAD, 0, 0, 0))
        if argument is None:
            program.append(struct.pack("HBBI", _JUMP_IF_EQUAL, 0, 1, number))
        else:
            program.append(struct.pack("HBBI", _JUMP_IF_EQUAL, 0, 3, number))
            program.append(struct.pack("HBBI", _LOAD, 0, 0, 16 + 8 * 2))
            program.append(struct.pack("HBBI", _JUMP_IF_EQUAL, 0, 1, argument))
        program.append(struct.pack("HBBI", _RETURN, 0, 0, _KILL if error == KILLED else _ERRNO | error))
    program.append(struct.pack("HBBI", _RETURN, 0, 0, _ALLOW))
    code = b"".join(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    prctl = libc.prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong]
    assert prctl(_PR_SET_NO_NEW_PRIVS, 1, None, 0, 0) == 0
    assert prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_, 0, 0) == 0, os.strerror(ctypes.get_errno())


x86_64 = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the seccomp filters name x86-64 system calls"
)


def areas() -> list[tuple[int, int, str]]:
    """The areas of this process: start, end, permissions. Read in plain Python on purpose."""
    found = []
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        span, perms_, _ = line.split(None, 2)
        start, end = span.split(b"-")
        found.append((int(start, 16), int(end, 16), perms_.decode()))
    return found


def perms(address: int) -> str | None:
    """What /proc/self/maps says of an address; None where nothing is mapped."""
    return next((perms_ for start, end, perms_ in areas() if start <= address < end), None)


def locked_bytes() -> int:
    """VmLck of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmLck:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmLck")


def undisturbed(look: Callable[[], Any], act: Callable[[], Any]) -> tuple[Any, Any]:
    """Act, and return what was seen and what came of it, when both looks around it saw the same.

    Which pages are shared, and with how many, changes when any other process on the machine begins or ends.
    What began and ended between the looks is not seen: `disturbed_by_others` is for the tests that call this.
    """
    while True:
        before = look()
        result = act()
        if look() == before:
            return before, result


def disturbed_by_others(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test again when it fails, twice: what is wrong is so every time, what others do is not."""

    @functools.wraps(test)
    def tried(**fixtures: Any) -> None:
        for _ in range(2):
            with contextlib.suppress(AssertionError):
                return test(**fixtures)
        return test(**fixtures)

    return tried


def with_huge_pages(count: int) -> bool:
    """Try to have this many free huge pages of the default size."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    free = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if "HugePages_Free" in line
    )
    if free >= count:
        return True
    before = pool.read_text()
    try:
        pool.write_text(str(int(pool.read_text()) + count - free))
    except OSError:
        return False
    atexit.register(pool.write_text, before)
    mmkit.supports.cache_clear()
    return mmkit.supports(mmkit.MapFlag.HUGETLB)


def run(code: str, *arguments: str, **how: Any) -> Any:
    """Run Python code in a new interpreter."""
    import subprocess

    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, **how
    )


# ---- threads ----------------------------------------------------------------------------------------


def repeat_in_threads(is_over: Callable[[], bool], *functions: Callable[[], object]) -> None:
    """Run each function again and again in a thread of its own, until it is over; the first error fails."""
    errors: list[BaseException] = []

    def loop(function: Callable[[], object]) -> None:
        try:
            while not (is_over() or errors):
                function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def left_for_good(look: Callable[[], set[str]], before: set[str]) -> set[str]:
    """Return what is new and stays for seconds: what others on this machine have for a moment is not meant."""
    left = look() - before
    deadline = time.monotonic() + 5
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= look()
    return left
