"""Semaphores, events and barriers: how many, for how long, and what a death means."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from meeting import Child, hold, sleeps, wait_until
from mmkit import BrokenBarrierError, ClosedError, Region, SyscallError
from mmkit.shared import Barrier, Event, Semaphore
from support import PAGE, in_child, x86_64


@pytest.fixture
def region():
    region = Region.anonymous(4 * PAGE, shared=True)
    yield region
    region.close()


@pytest.fixture
def make(region):
    """Make an object in the region; it is closed in the end."""
    made = []

    def make(cls, **how):
        made.append(cls.at(region, 0, create=True, **how))
        return made[-1]

    yield make
    for thing in made:
        thing.close()


def interrupted(call):
    """Call it in a child, and interrupt that as it waits."""

    def body(say):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say()
        with pytest.raises(KeyboardInterrupt):
            call()

    child = Child(body)
    child.said()
    wait_until(lambda: sleeps(child.pid))
    os.kill(child.pid, signal.SIGINT)
    child.ends_well()


# ---- semaphores -------------------------------------------------------------------------------------


def test_so_many_permits_are_given_and_no_more(make):
    semaphore = make(Semaphore, value=2)
    with semaphore, semaphore:
        assert semaphore.value == 0
        assert semaphore.acquire(0) is False
        assert semaphore.acquire(0.07) is False
    assert semaphore.value == 2
    with pytest.raises(PermissionError, match="does not hold"):
        semaphore.release()


def test_permits_of_a_killed_process_come_back_to_who_waits(make):
    semaphore = make(Semaphore, value=1)
    child = hold(semaphore.acquire)
    thread = threading.Thread(target=semaphore.acquire)
    thread.start()
    assert semaphore.recover() == 0
    child.kill()
    thread.join()
    assert semaphore.value == 0
    semaphore.release()  # any thread of the process


def test_permits_of_the_dead_can_be_freed_at_once(make):
    semaphore = make(Semaphore, value=5)
    children = [hold(semaphore.acquire) for _ in range(2)]
    for child in children:
        child.kill()
    assert semaphore.recover() == 2
    assert semaphore.value == 5


def test_a_forked_child_holds_none_of_its_parents_permits(make):
    semaphore = make(Semaphore, value=1)

    def leave(_):
        with pytest.raises(PermissionError):
            semaphore.release()
        semaphore.__exit__(None, None, None)

    with semaphore:
        Child(leave).ends_well()
        assert semaphore.value == 0
        assert semaphore.recover() == 0
    assert semaphore.value == 1


def test_counted_permits_are_anybodys_and_gone_with_the_dead(make):
    semaphore = make(Semaphore, value=1, held=False)
    hold(semaphore.acquire).kill()
    assert semaphore.recover() == 0
    assert semaphore.acquire(0) is False
    in_child(semaphore.release)
    in_child(semaphore.release)
    assert semaphore.value == 2


@x86_64
def test_ctrl_c_ends_a_wait_for_a_permit(make):
    semaphore = make(Semaphore, value=1)
    with semaphore:
        interrupted(semaphore.acquire)
    assert semaphore.value == 1


@pytest.mark.parametrize("value", [-1, 2**32])
def test_a_number_of_permits_that_cannot_be_is_refused(make, value):
    with pytest.raises(ValueError, match="value must be"):
        make(Semaphore, value=value)


# ---- events -----------------------------------------------------------------------------------------


def test_an_event_lets_through_from_when_it_is_set_until_it_is_cleared(make):
    event = make(Event)
    assert not event.is_set()
    assert event.wait(0) is False
    assert event.wait(0.07) is False
    event.set()
    event.set()
    assert event.is_set()
    assert event.wait() is True
    event.clear()
    assert event.wait(0) is False


@x86_64
def test_all_who_wait_are_let_through_though_it_is_cleared_at_once(make):
    event = make(Event)
    children = [Child(lambda _: event.wait() or os.abort()) for _ in range(4)]
    wait_until(lambda: all(sleeps(child.pid) for child in children))
    event.set()
    event.clear()
    for child in children:
        child.ends_well()


@x86_64
def test_ctrl_c_ends_a_wait_for_an_event(make):
    interrupted(make(Event).wait)


# ---- barriers ---------------------------------------------------------------------------------------


def test_all_parties_go_on_together_each_with_a_number_of_its_own(make, region):
    barrier = make(Barrier, parties=3)
    assert barrier.parties == 3

    def meet(number):
        region[-1 - number] = 1 + barrier.wait()

    children = [Child(lambda _, number=number: meet(number)) for number in range(2)]
    meet(2)
    for child in children:
        child.ends_well()
    assert sorted(region[-3:]) == [1, 2, 3]
    assert barrier.n_waiting == 0


def test_a_party_that_dies_waiting_breaks_it_for_all_until_reset(make):
    barrier = make(Barrier, parties=3)

    def meet(_):
        with pytest.raises(BrokenBarrierError, match="died"):
            barrier.wait()

    dies, lives = Child(lambda _: barrier.wait()), Child(meet)
    wait_until(lambda: barrier.n_waiting == 2)
    dies.kill()
    lives.ends_well()
    assert barrier.broken
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    assert not barrier.broken


def test_a_party_whose_time_is_up_breaks_it(make):
    barrier = make(Barrier, parties=2)
    with pytest.raises(BrokenBarrierError, match="time is up"):
        barrier.wait(0.01)
    assert barrier.broken
    barrier.reset()
    barrier.abort()
    with pytest.raises(BrokenBarrierError):
        barrier.wait()


@x86_64
def test_ctrl_c_ends_a_wait_at_a_barrier_which_stays_whole(make):
    barrier = make(Barrier, parties=2)
    interrupted(barrier.wait)
    assert not barrier.broken
    assert barrier.n_waiting == 0


@pytest.mark.parametrize("parties", [0, -1, 257])
def test_a_number_of_parties_that_cannot_be_is_refused(make, parties):
    with pytest.raises(ValueError, match="parties must be"):
        make(Barrier, parties=parties)


# ---- all of them ------------------------------------------------------------------------------------


def test_what_is_closed_says_so(make):
    for cls, calls in (
        (Semaphore, ("acquire", "release", "recover", "__enter__")),
        (Event, ("set", "clear", "is_set", "wait")),
        (Barrier, ("wait", "abort", "reset")),
    ):
        thing = make(cls)
        thing.unlink()
        for call in calls:
            with pytest.raises(ClosedError, match="closed"):
                getattr(thing, call)()


def test_events_and_barriers_close_at_the_end_of_the_block(region):
    with Event.at(region, 0, create=True) as event:
        event.set()
    with Barrier.at(region, 128, create=True) as barrier:
        assert barrier.parties == 2
    assert event.closed
    assert barrier.closed


def test_a_wrong_process_releasing_is_a_permission_error(make):
    with pytest.raises(SyscallError) as refusal:
        make(Semaphore, value=1).release()
    assert isinstance(refusal.value, PermissionError)
