"""Channels beside other ways to pass messages between two processes."""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from itertools import repeat

from links import LARGE, Ends, Way, ways
from runner import Contestants, Target, main, race

SMALL = bytes(range(64))
Part = Callable[[Ends, int, int], None]


def _cpu_ns(pid: int) -> int:
    """Return the processor time that a process has used. clock_getcpuclockid(3)."""
    return time.clock_gettime_ns((~pid << 3) | 2)


class Pair:
    """A forked process and its parent: it is stopped while others race."""

    def __init__(self, scope: ExitStack, way: Way, parent: Part, child: Part, processor: int) -> None:
        self.parent = parent
        self.warm_up = 2 if parent is _ask_large else 20
        self.done, child_done = os.pipe()
        self.cpu_ns = self.calls = 0
        self.child = os.fork()
        if self.child == 0:
            try:
                os.sched_setaffinity(0, {processor})
                child(way.open(child=True), child_done, 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        scope.callback(self._end)
        self.ends = way.open(child=False)
        # A first message each way: both are there.
        self(1)
        self.cpu_ns = self.calls = 0

    def _end(self) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)

    def __call__(self, n: int) -> int:
        os.kill(self.child, signal.SIGCONT)
        # Both awake, and each spin of one found the other: only then is the clock looked at.
        self.parent(self.ends, self.done, self.warm_up)
        before = _cpu_ns(self.child) + time.process_time_ns()
        start = time.perf_counter_ns()
        self.parent(self.ends, self.done, n)
        spent = time.perf_counter_ns() - start
        self.cpu_ns += _cpu_ns(self.child) + time.process_time_ns() - before
        self.calls += n
        os.kill(self.child, signal.SIGSTOP)
        return spent

    def cpu_per_call(self) -> float:
        """Return processor time of both processes, in ns."""
        return self.cpu_ns / self.calls


def _pairs(
    scope: ExitStack, parent: Part, child: Part, *, spins: bool, together: bool = False
) -> Contestants:
    """Set everybody up, on two processors or `together` on one: left to the scheduler it would be luck."""
    before = os.sched_getaffinity(0)
    scope.callback(os.sched_setaffinity, 0, before)
    os.sched_setaffinity(0, {min(before)})
    childs = min(before) if together else max(before)
    return {
        name: Pair(scope, way(scope, spins), parent, child, childs) if way else None
        for name, way in ways().items()
    }


def _ask(ends: Ends, _done: int, n: int) -> None:
    send, recv = ends.send, ends.recv
    for _ in repeat(None, n):
        send(SMALL)
        recv()


def _answer(ends: Ends, _done: int, _n: int) -> None:
    send, recv = ends.send, ends.recv
    while True:
        send(recv())


def _ask_large(ends: Ends, _done: int, n: int) -> None:
    send_filled, recv_sum = ends.send_filled, ends.recv_sum
    assert send_filled
    assert recv_sum
    for i in range(n):
        send_filled(i)
        assert recv_sum() == (i + 1) * (LARGE // 8)


def _answer_large(ends: Ends, _done: int, _n: int) -> None:
    send_filled, recv_sum = ends.send_filled, ends.recv_sum
    assert send_filled
    assert recv_sum
    while True:
        send_filled(recv_sum() // (LARGE // 8) + 1)


def _pour(ends: Ends, done: int, n: int) -> None:
    send = ends.send
    send(n.to_bytes(8, "little") + SMALL[8:])
    for _ in repeat(None, n):
        send(SMALL)
    select.select([done], [], [])
    os.read(done, 1)


def _drink(ends: Ends, done: int, _n: int) -> None:
    recv = ends.recv
    while True:
        for _ in repeat(None, int.from_bytes(recv()[:8], "little")):
            recv()
        os.write(done, b"x")


PEERS = [name for name in ways() if not name.startswith("mmkit")]


@race(
    "64 B there and back, spinning where it can be asked for",
    peer="Pipe",
    targets=[Target("mmkit, single", "Pipe", 0.25), Target("mmkit", "Pipe", 0.25)],
)
def spinning(scope: ExitStack) -> Contestants:
    return _pairs(scope, _ask, _answer, spins=True)


@race(
    "64 B there and back, sleeping until woken",
    peer="Pipe",
    targets=[Target("mmkit, single", peer, 1) for peer in PEERS],
)
def sleeping(scope: ExitStack) -> Contestants:
    return _pairs(scope, _ask, _answer, spins=False)


@race(
    "64 B there and back, sleeping until woken, on one processor",
    peer="Pipe",
    targets=[Target("mmkit, single", peer, 1) for peer in PEERS],
)
def sleeping_together(scope: ExitStack) -> Contestants:
    return _pairs(scope, _ask, _answer, spins=False, together=True)


@race(
    "1 MiB there and back, every byte written and read on both sides",
    peer="Pipe",
    targets=[Target("mmkit, single", "Pipe", 0.25), Target("mmkit", "Pipe", 0.25)],
)
def large(scope: ExitStack) -> Contestants:
    return _pairs(scope, _ask_large, _answer_large, spins=True)


@race(
    "64 B one after the other, a message",
    peer="Pipe",
    targets=[Target("mmkit, single", peer, 0.5) for peer in PEERS],
)
def streaming(scope: ExitStack) -> Contestants:
    return _pairs(scope, _pour, _drink, spins=True)


NOTES = [
    "The two processes are each bound to a processor of their own, but for the race that says otherwise.",
    "mmkit, single: one writer and one reader (single=True). mmkit: any number of each.",
    "posix_ipc: 1024 slots in shared memory, and two of its semaphores; with 1 MiB one of each.",
    "iceoryx2: spins in Python, or waits for an event of its Listener; it cannot do both in one call.",
    "CPU: processor time of both processes a call, system calls included, over all rounds.",
]

if __name__ == "__main__":
    main(spinning, sleeping, sleeping_together, large, streaming, notes=NOTES)
