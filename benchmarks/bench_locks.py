"""Locks between processes, uncontended and handed over, against what else there is.

    python benchmarks/bench_locks.py [--quick] [--json FILE]

Uncontended: one thread takes and gives back. Each contestant is called as its own documentation would;
posix_ipc's semaphore stands in for a lock, as its documentation has it. Only mmkit's survives the death of
its holder (flock(2) too, which the kernel gives back without a word).

Handed over: two processes, each waiting for the other, by two of the contestant's semaphores or events; one
call is there and back. Both sleep in the kernel meanwhile, so this is mostly what the scheduler takes.
"""

from __future__ import annotations

import fcntl
import importlib
import multiprocessing
import os
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from mmkit.shared import Event, Lock, RLock, Semaphore
from runner import Contestants, Race, Statement, Target, main, race

AGAINST_MULTIPROCESSING = (Target("mmkit", "multiprocessing", at_most=1.0),)


def _named(scope: ExitStack, cls: Any, **how: Any) -> Any:  # noqa: ANN401
    thing = cls(f"mmkit-bench-{uuid.uuid4().hex[:12]}", create=True, **how)
    scope.callback(thing.close)
    thing.unlink()
    return thing


def _posix_semaphore(scope: ExitStack, value: int) -> Any:  # noqa: ANN401
    """Return a semaphore of posix_ipc, or None where that is not installed."""
    with suppress(ImportError):
        posix_ipc: Any = importlib.import_module("posix_ipc")
        semaphore = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=value)
        scope.callback(semaphore.close)
        semaphore.unlink()
        return semaphore
    return None


def _flock_file(scope: ExitStack) -> int:
    return int(scope.enter_context(tempfile.TemporaryFile(dir="/dev/shm")).fileno())


def uncontended(name: str, statement: str, *, flock: str | None) -> Race:
    @race(name, peer="multiprocessing", targets=AGAINST_MULTIPROCESSING)
    def run_it(scope: ExitStack) -> Contestants:
        posix = _posix_semaphore(scope, 1)
        on_flock = None
        if flock:
            names = {"LOCK": fcntl.LOCK_EX, "UNLOCK": fcntl.LOCK_UN}
            on_flock = Statement(flock, flock=fcntl.flock, fd=_flock_file(scope), **names)
        return {
            "mmkit": Statement(statement, lock=_named(scope, Lock)),
            "multiprocessing": Statement(statement, lock=multiprocessing.Lock()),
            "mmkit RLock": Statement(statement, lock=_named(scope, RLock)),
            "multiprocessing RLock": Statement(statement, lock=multiprocessing.RLock()),
            "mmkit Semaphore": Statement(statement, lock=_named(scope, Semaphore)),
            "multiprocessing Semaphore": Statement(statement, lock=multiprocessing.Semaphore(1)),
            "posix_ipc Semaphore": Statement(statement, lock=posix) if posix else None,
            "flock": on_flock,
            "threading": Statement(statement, lock=threading.Lock()),
        }

    return run_it


class Partner:
    """A forked process that does one thing for ever, and is killed in the end."""

    def __init__(self, scope: ExitStack, work: Callable[[], object]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                while True:
                    work()
            finally:
                os._exit(1)
        scope.callback(self.end)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _there_and_back(scope: ExitStack, there: Any, back: Any) -> Statement:  # noqa: ANN401
    def answer() -> None:
        there.acquire()
        back.release()

    Partner(scope, answer)
    return Statement("release(); acquire()", release=there.release, acquire=back.acquire)


def _events(scope: ExitStack, there: Any, back: Any) -> Statement:  # noqa: ANN401
    def answer() -> None:
        there.wait()
        there.clear()
        back.set()

    Partner(scope, answer)
    return Statement("set_(); wait(); clear()", set_=there.set, wait=back.wait, clear=back.clear)


@race("hand over to another process and back: semaphores", peer="multiprocessing")
def hand_over(scope: ExitStack) -> Contestants:
    ours = [_named(scope, Semaphore, value=0, held=False) for _ in range(2)]
    theirs = [multiprocessing.Semaphore(0) for _ in range(2)]
    posix = [_posix_semaphore(scope, 0) for _ in range(2)]
    return {
        "mmkit": _there_and_back(scope, *ours),
        "multiprocessing": _there_and_back(scope, *theirs),
        "posix_ipc": _there_and_back(scope, *posix) if posix[0] else None,
    }


@race(
    "hand over to another process and back: events", peer="multiprocessing", targets=AGAINST_MULTIPROCESSING
)
def hand_over_events(scope: ExitStack) -> Contestants:
    ours = [_named(scope, Event) for _ in range(2)]
    theirs = [multiprocessing.Event() for _ in range(2)]
    return {"mmkit": _events(scope, *ours), "multiprocessing": _events(scope, *theirs)}


def contended() -> Race:
    @race("take and give back while another process does so too", peer="multiprocessing")
    def run_it(scope: ExitStack) -> Contestants:
        def among_two(lock: Any) -> Statement:  # noqa: ANN401
            def work() -> None:
                for _ in range(100):
                    lock.acquire()
                    lock.release()

            Partner(scope, work)
            return Statement("acquire(); release()", acquire=lock.acquire, release=lock.release)

        posix = _posix_semaphore(scope, 1)
        return {
            "mmkit": among_two(_named(scope, Lock)),
            "multiprocessing": among_two(multiprocessing.Lock()),
            "posix_ipc": among_two(posix) if posix else None,
        }

    return run_it


if __name__ == "__main__":
    main(
        uncontended(
            "acquire() and release()",
            "lock.acquire(); lock.release()",
            flock="flock(fd, LOCK); flock(fd, UNLOCK)",
        ),
        uncontended("with lock", "with lock: pass", flock=None),
        hand_over,
        hand_over_events,
        contended(),
    )
