"""Regions under threads and forks. MMKIT_STRESS_SECONDS makes each test longer (default 1)."""

import gc
import os
import random
import signal
import sys
import threading
import time
import warnings

import pytest

import mmkit
from mmkit import Advice, Prot, Region
from mmkit.compat import mmap
from mmkit.shared import SharedMemory
from support import PAGE, areas, repeat_in_threads

SECONDS = float(os.environ.get("MMKIT_STRESS_SECONDS", "1"))


def race(*functions):
    """Run each function again and again in a thread of its own, until time is up; the first error fails."""
    stop = time.monotonic() + SECONDS
    repeat_in_threads(lambda: time.monotonic() >= stop, *functions)


def test_threads_may_use_resize_and_protect_one_region():
    region = Region.anonymous(64 * PAGE, reserve=1024 * PAGE)
    pinned = 0

    def use():
        try:
            data = region[:PAGE]
            assert data in (b"a" * PAGE, b"b" * PAGE, bytes(PAGE))
            region[:PAGE] = random.choice((b"a", b"b")) * PAGE
        except mmkit.MemoryFault:
            pass

    def big_reads():
        region.find(b"nowhere", 0)
        region[:]

    def resize():
        nonlocal pinned
        try:
            region.resize(random.randint(64, 1024) * PAGE)
        except BufferError:
            pinned += 1

    def protect():
        try:
            with region.protected(random.choice((Prot.READ, Prot.READ | Prot.WRITE)), PAGE):
                region.advise(Advice.WILLNEED)
        except (BufferError, ValueError):
            pass

    def lock():
        try:
            with region.locked(0, 32 * PAGE):
                region.populate(False, 0, 32 * PAGE)
        except ValueError:
            pass

    def safely(function):
        def guarded():
            try:
                function()
            except ValueError:
                pass  # the region shrank between looking at its length and using it

        return guarded

    race(safely(use), safely(big_reads), resize, protect, lock)
    region.close()


def test_closing_while_others_use_it_is_clean():
    for _ in range(int(20 * SECONDS) or 1):
        region = Region.anonymous(512 * PAGE)
        started = threading.Barrier(3)
        outcomes = []

        def use(region=region, started=started, outcomes=outcomes):
            started.wait()
            try:
                while True:
                    region.find(b"nowhere", 0)
            except mmkit.ClosedError:
                outcomes.append("closed")

        def close(region=region, started=started, outcomes=outcomes):
            started.wait()
            while True:
                try:
                    region.close()
                    outcomes.append("closed")
                    return
                except BufferError:
                    continue

        threads = [threading.Thread(target=f) for f in (use, use, close)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert outcomes == ["closed"] * 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forking_while_threads_map_and_change_leaves_the_child_usable():
    shared = Region.anonymous(64 * PAGE)
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            with Region.anonymous(16 * PAGE, reserve=64 * PAGE) as region:
                region.protect(Prot.READ, 0, PAGE)
                region.resize(64 * PAGE)
                shared.lock(0, PAGE)
                shared.unlock(0, PAGE)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    shared.protect(Prot.READ)
                    shared.lock()
                    with Region.anonymous(PAGE) as region:
                        region.resize(2 * PAGE)
                    shared.close()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    shared.close()


def test_nothing_is_left_behind():
    def areas_now():
        return len(areas())

    Region.anonymous(PAGE).close()
    before = areas_now()
    fds = len(os.listdir("/proc/self/fd"))
    for _ in range(300):
        with Region.anonymous(PAGE, reserve=4 * PAGE, guard=True) as region:
            region.resize(64 * PAGE)
        with Region.memfd(PAGE) as region:
            region.resize(64 * PAGE)
    assert areas_now() - before < 10
    assert len(os.listdir("/proc/self/fd")) == fds


def test_signal_handlers_that_raise_cost_no_descriptor_and_close_no_foreign_one(tmp_path, monkeypatch):
    class Interruption(Exception):
        pass

    armed = False

    def interrupt(*_):
        if armed:
            raise Interruption

    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    ways = [
        lambda: Region.file(fd, mode="r+"),
        lambda: Region.file(path),
        lambda: Region.memfd(PAGE),
        lambda: Region.anonymous(PAGE, shared=True, reserve=2 * PAGE),
        lambda: mmap.mmap(fd, 0),
        lambda: mmap.mmap(fd, 0, trackfd=False),
        lambda: SharedMemory.memfd(PAGE),
    ]
    fd = os.open(path, os.O_RDWR)
    before = sorted(os.listdir("/proc/self/fd"))
    # What is raised in a __del__ goes there, and pytest's would keep it.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    handler = signal.signal(signal.SIGALRM, interrupt)
    interruptions, stop = 0, time.monotonic() + SECONDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        # At least one, however slow the machine is.
        while not interruptions or time.monotonic() < stop:
            way = random.choice(ways)
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 1e-4))
            victim, armed = -1, True
            try:
                way().close()
                armed = False
            except Interruption:
                armed = False
                interruptions += 1
                # The lowest number that is free, while the exception still holds what was made.
                victim = os.open(os.devnull, os.O_RDONLY)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if victim >= 0:
                os.close(victim)
        gc.collect()
    signal.signal(signal.SIGALRM, handler)
    assert sorted(os.listdir("/proc/self/fd")) == before
    os.close(fd)
