"""What the tests of locks share: their kinds, and children that are forked, told what to do, and killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmkit.shared import Barrier, Condition, Event, Lock, RLock, Semaphore

KINDS = [Lock, RLock, Condition, Semaphore, Event, Barrier]
each_kind = pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)

_PR_SET_PDEATHSIG = 1
_LIMIT = 30.0


class Child:
    """A forked child that runs a function with a `say` of its own, until it ends or is killed."""

    def __init__(self, function: Callable[[Callable[[], None]], object]) -> None:
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                signal.alarm(60)
                function(lambda: os.write(writer, b".") and None)
                status = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        os.close(writer)
        self._reader = os.fdopen(reader, "rb", buffering=0)

    def said(self) -> None:
        """Wait until it says something."""
        assert self._reader.read(1), "the child ended before it said anything"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert os.waitpid(self.pid, 0)[1] == signal.SIGKILL
        self._reader.close()

    def ends_well(self) -> None:
        assert os.waitpid(self.pid, 0)[1] == 0
        self._reader.close()


def hold(take: Callable[[], object]) -> Child:
    """A child that has taken something, and stays."""

    def body(say: Callable[[], None]) -> None:
        take()
        say()
        signal.pause()

    child = Child(body)
    child.said()
    return child


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + _LIMIT
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.0002)


def sleeps(pid: int) -> bool:
    """Does a process's first thread sleep in futex(2)?"""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == "202"


@contextlib.contextmanager
def fresh_name() -> Iterator[str]:
    """A name for a segment; nothing of that name is left."""
    name = f"mmkit-test-{uuid.uuid4().hex[:12]}"
    yield name
    Path("/dev/shm", name).unlink(missing_ok=True)
