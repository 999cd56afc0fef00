"""Processes killed with locks, permits and notifications: 520 of them, 130 a storm.

MMKIT_STRESS_SECONDS makes each storm longer, MMKIT_STRESS_KILLS makes it more or fewer.
"""

from __future__ import annotations

import os
import random
import struct
import time
import warnings

import pytest

from meeting import Child, fresh_name, wait_until
from mmkit import BrokenBarrierError, OwnerDied, Region
from mmkit.shared import Barrier, Condition, Event, Lock, Semaphore
from support import PAGE, SANITIZED

SECONDS = float(os.environ.get("MMKIT_STRESS_SECONDS", "0"))
KILLS = int(os.environ.get("MMKIT_STRESS_KILLS", "30" if SANITIZED else "130"))
WORKERS = 3


@pytest.fixture
def region():
    region = Region.anonymous(4 * PAGE, shared=True)
    yield region
    region.close()


@pytest.fixture
def name():
    with fresh_name() as name:
        yield name


class Numbers:
    """Numbers in the last page of a region, each 8 bytes, written as one."""

    def __init__(self, region):
        self._view = region.view(3 * PAGE).cast("Q")

    def __getitem__(self, index):
        return self._view[index]

    def __setitem__(self, index, value):
        self._view[index] = value

    def release(self):
        self._view.release()


def storm(work, after_death, before_death=lambda: None):
    """Kill one worker after the other, at random instants; returns how many.

    What before_death has returned is given to after_death.
    """
    workers = [Child(work(number)) for number in range(WORKERS)]
    for worker in workers:
        worker.said()
    end = time.monotonic() + SECONDS
    deaths = 0
    while time.monotonic() < end or deaths < KILLS:
        number = random.randrange(WORKERS)
        time.sleep(random.random() * 0.002)
        before = before_death()
        workers[number].kill()
        deaths += 1
        after_death(number, before)
        workers[number] = Child(work(number))
        workers[number].said()
    for worker in workers:
        worker.kill()
    return deaths


# What stands in the last page: who is inside, a pair that is equal for who is inside, and what was counted.
OWNER, FIRST, LAST, REPAIRS, ROUNDS = range(5)
DOING = 8  # and one for each worker
INSIDE = 1


def test_holders_of_a_lock(region, name):
    lock = Lock(name, create=True)
    numbers = Numbers(region)

    def work(number):
        def body(say):
            mine = Lock(name)
            say()
            while True:
                try:
                    with mine:
                        numbers[DOING + number] = INSIDE
                        assert numbers[OWNER] == 0
                        numbers[OWNER] = os.getpid()
                        numbers[FIRST] += 1
                        assert numbers[OWNER] == os.getpid()
                        numbers[LAST] += 1
                        assert numbers[FIRST] == numbers[LAST]
                        numbers[OWNER] = 0
                        numbers[ROUNDS] += 1
                        numbers[DOING + number] = 0
                except OwnerDied:
                    with mine.repairing() as abandoned:
                        if abandoned:
                            numbers[LAST] = numbers[FIRST]
                            numbers[OWNER] = 0
                            numbers[REPAIRS] += 1

        return body

    told = []

    def after_death(number, repairs):
        if numbers[DOING + number] == INSIDE:
            wait_until(lambda: numbers[REPAIRS] > repairs)
            told.append(number)
            numbers[DOING + number] = 0
        rounds = numbers[ROUNDS]
        wait_until(lambda: numbers[ROUNDS] > rounds)

    deaths = storm(work, after_death, lambda: numbers[REPAIRS])
    print(f"{deaths} deaths, {len(told)} inside, {numbers[REPAIRS]} repairs, {numbers[ROUNDS]} rounds")
    assert numbers[REPAIRS] >= len(told) > 0
    lock.close()
    numbers.release()


def test_holders_of_permits(region):
    semaphore = Semaphore.at(region, 0, create=True, value=2)
    numbers = Numbers(region)

    def work(_):
        def body(say):
            say()
            while True:
                with semaphore:
                    numbers[ROUNDS] = time.monotonic_ns()

        return body

    def after_death(*_):
        began = time.monotonic_ns()
        wait_until(lambda: numbers[ROUNDS] > began)
        assert semaphore.value <= 2

    storm(work, after_death)
    semaphore.recover()
    assert semaphore.value == 2
    semaphore.close()
    numbers.release()


def test_who_waits_for_a_condition(region):
    condition = Condition.at(region, 0, create=True)
    numbers = Numbers(region)

    def held():
        """Hold the lock; after a death nothing is left to take."""
        while True:
            try:
                condition.acquire()
                return
            except OwnerDied:
                with condition.repairing():
                    numbers[FIRST] = 0

    def work(_):
        def body(say):
            say()
            while True:
                held()
                try:
                    condition.wait_for(lambda: numbers[FIRST])
                except OwnerDied:
                    continue
                numbers[FIRST] -= 1
                condition.release()

        return body

    def nothing_is_left():
        held()
        left = numbers[FIRST]
        condition.release()
        return not left

    def after_death(*_):
        held()
        numbers[FIRST] += 3
        for _ in range(3):
            condition.notify()
        condition.release()
        wait_until(nothing_is_left)

    storm(work, after_death)
    condition.close()
    numbers.release()


def test_parties_of_a_barrier(region):
    barrier = Barrier.at(region, 0, create=True, parties=WORKERS)
    numbers = Numbers(region)

    def work(_):
        def body(say):
            say()
            while True:
                try:
                    if barrier.wait() == 0:
                        numbers[ROUNDS] += 1
                except BrokenBarrierError:
                    time.sleep(0.0005)

        return body

    def after_death(*_):
        # With one party dead nobody goes through: it is broken, or waits for the successor.
        if barrier.broken:
            barrier.reset()

    def mend_and_see(rounds):
        if barrier.broken:
            barrier.reset()
        return numbers[ROUNDS] > rounds + 1

    storm(work, after_death)
    barrier.reset()
    children = [Child(work(number)) for number in range(WORKERS)]
    rounds = numbers[ROUNDS]
    wait_until(lambda: mend_and_see(rounds))
    for child in children:
        child.kill()
    barrier.close()
    numbers.release()


def test_forks_and_kills_while_threads_hold_locks(region):
    """A child is forked at any instant of other threads, and finds a lock that works."""
    import threading

    lock, event = Lock.at(region, 0, create=True), Event.at(region, 192, create=True)
    stop = time.monotonic() + max(SECONDS, 1)

    def hold_and_let_go():
        while time.monotonic() < stop:
            with lock:
                event.set()
            event.clear()

    threads = [threading.Thread(target=hold_and_let_go) for _ in range(2)]
    for thread in threads:
        thread.start()

    def use(say):
        say()
        for _ in range(20):
            with lock:
                pass
            event.wait(0.001)

    while time.monotonic() < stop:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = Child(use)
        child.said()
        child.ends_well()
    for thread in threads:
        thread.join()
    with lock:
        pass
    lock.close()
    event.close()


def test_numbers_are_written_as_one(region):
    """What the storms stand on: a memoryview of 8-byte numbers."""
    numbers = Numbers(region)
    numbers[FIRST] = 2**63 + 1
    assert region[3 * PAGE + 8 : 3 * PAGE + 16] == struct.pack("Q", 2**63 + 1)
    numbers.release()
