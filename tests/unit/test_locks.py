"""Locks and conditions: who has them, for how long, and what a death leaves."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import threading
import time
import warnings

import pytest

from meeting import Child, hold, sleeps, wait_until
from mmkit import Advice, ClosedError, OwnerDied, Region, SyscallError
from mmkit.shared import Condition, Lock, RLock
from support import PAGE, in_child, run, x86_64


@pytest.fixture(params=[Lock, RLock, Condition], ids=lambda cls: cls.__name__)
def lock(request, region):
    with_lock = request.param.at(region, 0, create=True)
    yield with_lock
    with_lock.close()


@pytest.fixture
def region():
    region = Region.anonymous(4 * PAGE, shared=True)
    yield region
    region.close()


@pytest.fixture
def condition(region):
    condition = Condition.at(region, 0, create=True)
    yield condition
    condition.close()


def abandon(lock):
    hold(lock.acquire).kill()


def is_told_of_a_death(lock):
    with pytest.raises(OwnerDied):
        lock.acquire()


# ---- holding ----------------------------------------------------------------------------------------


def test_one_process_holds_it_and_others_wait_for_its_release(lock):
    def body(say):
        with lock:
            say()
            wait_until(lambda: sleeps(os.getppid()))

    child = Child(body)
    child.said()
    assert lock.acquire(0) is False
    assert lock.acquire() is True
    lock.release()
    child.ends_well()


def test_unrelated_programs_meet_by_the_name(name):
    code = "import sys, mmkit; lock = mmkit.shared.Lock(sys.argv[1]); print(lock.acquire(0))"
    lock = Lock(name, create=True)
    with lock:
        assert run(code, name).stdout == "False\n"
    assert run(code, name).stdout == "True\n"
    with pytest.raises(OwnerDied):
        lock.acquire()
    lock.close()


def test_a_timeout_is_kept(lock):
    child = hold(lock.acquire)
    began = time.monotonic()
    assert lock.acquire(timeout=0.12) is False
    assert time.monotonic() - began >= 0.12
    child.kill()


@pytest.mark.parametrize("timeout", [-1, float("nan"), -1e-9])
def test_a_timeout_that_is_none_is_refused_also_where_nobody_waits(lock, timeout):
    with pytest.raises(ValueError, match="at least 0 seconds"):
        lock.acquire(timeout)
    with pytest.raises(TypeError, match="in seconds"):
        lock.acquire(False)
    assert lock.acquire(float("inf"))
    lock.release()


def test_a_lock_is_taken_once_and_the_others_many_times(region):
    once, many = Lock.at(region, 0, create=True), RLock.at(region, 192, create=True)
    with once, pytest.raises(SyscallError, match="RLock"):
        once.acquire()
    with many, many:
        assert many.acquire()
        many.release()
    with pytest.raises(PermissionError):
        many.release()
    once.close()
    many.close()


def test_it_is_released_by_the_thread_that_took_it(lock):
    errors = []

    def release():
        try:
            lock.release()
        except SyscallError as error:
            errors.append(error)

    with lock:
        thread = threading.Thread(target=release)
        thread.start()
        thread.join()
    assert "does not hold it" in str(errors[0])


def test_threads_exclude_each_other(lock):
    total = 0

    def add():
        nonlocal total
        for _ in range(2000):
            with lock:
                seen = total
                if not seen % 100:
                    time.sleep(0)
                total = seen + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == 8000


# ---- signals ----------------------------------------------------------------------------------------


@x86_64
def test_ctrl_c_ends_the_wait_and_the_lock_is_not_held(lock):
    child = hold(lock.acquire)

    def wait(say):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say()
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
        with pytest.raises(PermissionError):
            lock.release()
        assert lock.acquire(0) is False

    waiter = Child(wait)
    waiter.said()
    wait_until(lambda: sleeps(waiter.pid))
    os.kill(waiter.pid, signal.SIGINT)
    waiter.ends_well()
    child.kill()


@x86_64
def test_a_signal_whose_handler_returns_does_not_end_the_wait(lock):
    child = hold(lock.acquire)

    def wait(say):
        signal.signal(signal.SIGUSR1, lambda *_: say())
        say()
        with pytest.raises(OwnerDied):
            lock.acquire()

    waiter = Child(wait)
    waiter.said()
    wait_until(lambda: sleeps(waiter.pid))
    os.kill(waiter.pid, signal.SIGUSR1)
    waiter.said()
    child.kill()
    waiter.ends_well()


# ---- deaths -----------------------------------------------------------------------------------------


def test_the_death_of_a_holder_is_told_to_every_taker_until_recovered(lock):
    child = hold(lock.acquire)
    child.kill()
    for _ in range(3):
        with pytest.raises(OwnerDied, match=rf"process {child.pid} died") as told:
            lock.acquire()
        assert told.value.pid == child.pid
        with pytest.raises(OwnerDied), lock:
            pass
        with pytest.raises(PermissionError):
            lock.release()
    assert lock.recover() is True
    assert lock.recover() is False
    with lock:
        pass


def test_a_repair_holds_the_lock_and_clears_the_mark_if_it_succeeds(lock):
    abandon(lock)
    with pytest.raises(ZeroDivisionError), lock.repairing() as abandoned:
        assert abandoned
        raise ZeroDivisionError
    with pytest.raises(OwnerDied):
        lock.acquire()
    with lock.repairing() as abandoned:
        assert abandoned
        assert in_child(lambda: lock.acquire(0)) is False
        with pytest.raises(SyscallError, match="repairing"):
            lock.recover()
    with lock.repairing() as abandoned:
        assert not abandoned
    with lock:
        pass


def test_ctrl_c_as_a_repair_begins_or_ends_leaves_the_lock_free(lock):
    class Stop(Exception):
        pass

    def stop(*_):
        if inside:
            raise Stop

    def repair():
        with lock.repairing():
            pass

    started = time.perf_counter()
    repair()
    longest = 3 * (time.perf_counter() - started)
    stopped = 0
    before = signal.signal(signal.SIGALRM, stop)
    try:
        while stopped < 500:
            inside = True
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, longest))
                repair()
                inside = False
            except Stop:
                inside = False
                stopped += 1
            with pytest.raises(PermissionError):
                lock.release()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_child_without_the_memory_is_told_so_and_its_block_ends(region, lock):
    region.advise(Advice.DONTFORK)

    def lives_without():
        with pytest.raises(ClosedError, match="DONTFORK"):
            lock.release()
        with pytest.raises(ClosedError, match="DONTFORK"):
            lock.acquire()

    with lock:
        in_child(lives_without)
        child = os.fork()
        if child:
            assert os.waitpid(child, 0) == (child, 0)
    if child == 0:
        os._exit(0)
    with pytest.raises(SyscallError):
        lock.release()


def test_who_dies_repairing_leaves_it_to_the_next(lock):
    abandon(lock)
    hold(lock.repairing().__enter__).kill()
    with pytest.raises(OwnerDied):
        lock.acquire()
    with lock.repairing() as abandoned:
        assert abandoned


def test_a_thread_that_ends_with_it_is_a_dead_holder(lock):
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    with pytest.raises(OwnerDied):
        lock.acquire()


def test_executing_another_program_is_a_death(lock):
    def body(say):
        lock.acquire()
        say()
        os.execv("/bin/sleep", ["sleep", "60"])

    child = Child(body)
    child.said()
    with pytest.raises(OwnerDied):
        lock.acquire()
    child.kill()


def test_ending_in_good_order_with_it_is_a_death_too(lock):
    Child(lambda _: lock.acquire()).ends_well()
    with pytest.raises(OwnerDied):
        lock.acquire()


# ---- fork -------------------------------------------------------------------------------------------


def test_a_child_forked_in_the_block_leaves_it_without_releasing(lock):
    def leave(_):
        with pytest.raises(PermissionError):
            lock.release()
        lock.__exit__(None, None, None)
        assert lock.acquire(0) is False

    with lock:
        Child(leave).ends_well()
        assert in_child(lambda: lock.acquire(0)) is False
    assert in_child(lambda: lock.acquire(0)) is True


def test_a_child_forked_by_another_thread_while_one_waits(lock):
    """The waiter is not in the child; the lock there is as good as in the parent."""
    child = hold(lock.acquire)
    waiter = threading.Thread(target=is_told_of_a_death, args=(lock,))
    waiter.start()
    assert in_child(lambda: lock.acquire(0)) is False
    in_child(lock.close)
    child.kill()
    waiter.join()
    with pytest.raises(BaseException, match="OwnerDied"):
        in_child(lock.acquire)


# ---- closing ----------------------------------------------------------------------------------------


def test_a_held_lock_is_not_closed_nor_its_region(lock, region):
    with lock:
        with pytest.raises(BufferError, match="holds it"):
            lock.close()
        with pytest.raises(BufferError):
            region.close()
        with pytest.raises(BufferError):
            region.discard()
    lock.close()
    lock.close()
    with pytest.raises(ClosedError):
        lock.acquire()
    with pytest.raises(ClosedError):
        lock.release()
    assert lock.closed


@x86_64
def test_a_lock_that_a_thread_waits_for_is_not_closed(lock):
    child = hold(lock.acquire)
    thread = threading.Thread(target=is_told_of_a_death, args=(lock,))
    thread.start()
    wait_until(lambda: _thread_sleeps(thread))
    with pytest.raises(BufferError, match="waiting"):
        lock.close()
    child.kill()
    thread.join()


def _thread_sleeps(thread):
    with open(f"/proc/self/task/{thread.native_id}/syscall") as file:
        return file.read().startswith("202 ")


def test_a_lock_dropped_while_held_keeps_its_memory_for_libc():
    """Unmapped, the next lock that this thread takes would crash the process."""

    def body():
        first = Region.anonymous(PAGE, shared=True)
        dropped = Lock.at(first, 0, create=True)
        dropped.acquire()
        address = first.address
        del dropped, first
        gc.collect()
        with Region.anonymous(PAGE, shared=True) as second:
            lock = Lock.at(second, 0, create=True)
            for _ in range(10):
                with lock:
                    pass
            lock.close()
        with open("/proc/self/maps") as maps:
            return any(line.startswith(f"{address:x}-") for line in maps)

    assert in_child(body)


def test_a_named_lock_that_is_not_closed_is_warned_of(name):
    lock = Lock(name, create=True)
    with pytest.warns(ResourceWarning, match="was not closed"):
        del lock
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lock = Lock(name)
        lock.close()
        del lock


def test_it_travels_by_its_name_and_not_without_one(name, lock):
    named = Lock(name, create=True)
    travelled = pickle.loads(pickle.dumps(named))
    with named:
        assert in_child(lambda: travelled.acquire(0)) is False
    assert repr(travelled) == f"<Lock {name!r}>"
    named.close()
    travelled.close()
    assert repr(travelled) == f"<Lock {name!r}, closed>"
    with pytest.raises(TypeError, match="name"):
        pickle.dumps(lock)


# ---- conditions -------------------------------------------------------------------------------------


def waiting_child(condition):
    def body(say):
        with condition:
            say()
            assert condition.wait()
            say()

    child = Child(body)
    child.said()
    with condition:  # given up by the child: it waits
        pass
    return child


def test_each_notification_wakes_who_has_waited_longest(condition):
    first, second, third = (waiting_child(condition) for _ in range(3))
    with condition:
        condition.notify()
    first.said()
    with condition:
        condition.notify_all()
    for child in (second, third):
        child.said()
    for child in (first, second, third):
        child.ends_well()


def test_waiting_and_notifying_need_the_lock_of_the_condition(condition):
    for call in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(PermissionError, match="lock of the condition"):
            call()
    with pytest.raises(ValueError, match="at least 0"):
        condition.notify(-1)


def test_waiting_for_something_ends_when_it_is_so_or_the_time_is_up(condition, region):
    def set_it(_):
        with condition:
            region[-1] = 7
            condition.notify()

    with condition:
        assert condition.wait(0.01) is False
        assert condition.wait_for(lambda: region[-1], timeout=0.01) == 0
        child = Child(set_it)
        assert condition.wait_for(lambda: region[-1]) == 7
    child.ends_well()


def test_who_waits_is_told_when_a_holder_dies(condition):
    def body(say):
        with pytest.raises(OwnerDied), condition:
            say()
            condition.wait()

    waiter = Child(body)
    waiter.said()
    hold(condition.acquire).kill()
    waiter.ends_well()
    assert condition.recover()


def test_a_notification_is_passed_on_if_its_receiver_was_killed(condition):
    dies, lives = waiting_child(condition), waiting_child(condition)
    dies.kill()
    with condition:
        condition.notify()
    lives.ends_well()


@x86_64
def test_ctrl_c_ends_a_wait_with_the_lock_held_again(condition):
    def body(say):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with condition, condition:
            say()
            with pytest.raises(KeyboardInterrupt):
                condition.wait()
            condition.notify()
        assert in_child(lambda: condition.acquire(0))

    child = Child(body)
    child.said()
    wait_until(lambda: sleeps(child.pid))
    os.kill(child.pid, signal.SIGINT)
    child.ends_well()
