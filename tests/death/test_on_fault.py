"""`Region.on_fault`: told of each bad access, before the exception is raised, and in no one's way."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref

import pytest

from mmkit import ClosedError, MemoryFault, Prot, Region, peek, poke
from support import PAGE, in_child


@pytest.fixture
def region():
    """The second of two pages is bad."""
    with Region.anonymous(2 * PAGE) as region:
        region.guard(PAGE)
        yield region


def test_the_observer_is_called_with_the_exception_before_it_is_raised(region):
    seen = []
    region.on_fault(seen.append)
    with pytest.raises(MemoryFault) as caught:
        region[PAGE + 7]
    assert seen == [caught.value]
    assert (seen[0].offset, seen[0].access) == (PAGE + 7, "read")
    assert seen[0].address == region.address + PAGE + 7


def test_the_observer_sees_every_method(region):
    seen = []
    region.on_fault(lambda fault: seen.append(fault.access))
    region.seek(PAGE - 1)
    for access in (
        lambda: region[PAGE],
        lambda: region[:],
        lambda: region[::2],
        lambda: region.read(),
        lambda: region.readline(),
        lambda: region.find(b"nowhere", 0),
        lambda: region.rfind(b"nowhere", 0),
        lambda: region.write(b"xx"),
        lambda: region.__setitem__(PAGE, 1),
        lambda: region.__setitem__(slice(0, 2 * PAGE), bytes(2 * PAGE)),
        lambda: region.punch(PAGE + 1, 1),
    ):
        with pytest.raises(MemoryFault):
            access()
    assert seen == ["read"] * 7 + ["write"] * 4


def test_what_the_record_forbids_is_observed_too(region):
    seen = []
    region.on_fault(seen.append)
    region.protect(Prot.READ, 0, PAGE)
    with pytest.raises(MemoryFault):
        region[3] = 1
    assert [(fault.offset, fault.reason) for fault in seen] == [(3, "protection")]


def test_the_observer_sees_a_file_that_somebody_has_cut():
    seen = []
    with Region.memfd(2 * PAGE) as region:
        region.on_fault(lambda fault: seen.append((fault.offset, fault.reason)))
        os.truncate(region.fileno(), PAGE)
        with pytest.raises(MemoryFault):
            region.read()
    assert seen == [(PAGE, "beyond end of file")]


def test_accesses_that_go_well_and_those_elsewhere_are_not_observed(region):
    seen = []
    region.on_fault(seen.append)
    assert region[0] == 0
    with Region.anonymous(PAGE, prot=Prot.NONE) as other:
        with pytest.raises(MemoryFault):
            other[0]
        with pytest.raises(MemoryFault):
            peek(region.address + PAGE, 1)
        with pytest.raises(MemoryFault):
            poke(region.address + PAGE, b"x")
    assert seen == []


def test_the_last_observer_counts_and_none_ends_it(region):
    first, second = [], []
    region.on_fault(first.append)
    region.on_fault(second.append)
    for _ in range(2):
        with pytest.raises(MemoryFault):
            region[PAGE]
        region.on_fault(None)
    assert (len(first), len(second)) == (0, 1)
    region.on_fault(None)


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_what_the_observer_raises_is_unraisable_and_the_fault_is_raised(region, error, monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: unraisable.append((what.exc_value, what.object)))

    def observer(fault):
        raise error

    region.on_fault(observer)
    with pytest.raises(MemoryFault):
        region[PAGE]
    assert unraisable == [(error, observer)]
    assert region[0] == 0


def test_the_observer_runs_in_the_thread_of_the_access(region):
    threads, of_observer = {}, {}
    both = threading.Barrier(2)

    def use(number: int) -> None:
        threads[number] = threading.get_ident()
        both.wait(10)
        with pytest.raises(MemoryFault):
            region[PAGE + number]

    region.on_fault(lambda fault: of_observer.__setitem__(fault.offset - PAGE, threading.get_ident()))
    workers = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert of_observer == threads
    assert len(set(threads.values())) == 2


def test_the_observer_may_use_the_region(region):
    def observer(fault):
        region.unguard(PAGE)
        region[PAGE] = 9
        region.on_fault(None)

    region.on_fault(observer)
    with pytest.raises(MemoryFault):
        region[PAGE]
    assert region[PAGE] == 9


def test_the_observer_may_close_the_region(region):
    region.on_fault(lambda fault: region.close())
    with pytest.raises(MemoryFault):
        region[PAGE]
    assert region.closed


def test_the_observer_may_fault_itself(region):
    depth = []

    def observer(fault):
        depth.append(fault.offset)
        if len(depth) < 5:
            with pytest.raises(MemoryFault):
                region[PAGE + len(depth)]

    region.on_fault(observer)
    with pytest.raises(MemoryFault) as caught:
        region[PAGE]
    assert depth == [PAGE + number for number in range(5)]
    assert caught.value.offset == PAGE


def test_only_what_can_be_called_observes(region):
    seen = []
    region.on_fault(seen.append)
    for wrong in (1, "print", object()):
        with pytest.raises(TypeError, match="callable or None"):
            region.on_fault(wrong)
    with pytest.raises(MemoryFault):
        region[PAGE]
    assert len(seen) == 1


def test_a_closed_region_takes_no_observer(region):
    region.close()
    for observer in (print, None):
        with pytest.raises(ClosedError):
            region.on_fault(observer)


def test_a_child_has_the_observer_of_its_parent(region):
    seen = []
    region.on_fault(lambda fault: seen.append((os.getpid(), fault.offset)))

    def fault():
        with pytest.raises(MemoryFault):
            region[PAGE]
        return seen == [(os.getpid(), PAGE)]

    assert in_child(fault)
    assert seen == []


def test_a_region_with_an_observer_dies_with_its_last_name():
    gc.collect()
    gc.disable()
    try:
        region = Region.anonymous(PAGE, prot=Prot.NONE)
        seen = []
        region.on_fault(lambda fault: seen.append(str(fault)))
        with pytest.raises(MemoryFault):
            region[0]
        dead = weakref.ref(region)
        del region
        assert dead() is None
    finally:
        gc.enable()
    assert len(seen) == 1


@pytest.mark.parametrize("method", ["close", "resize", "on_fault"], ids=lambda name: f"its own {name}")
def test_a_cycle_through_the_observer_is_collected(method):
    region = Region.anonymous(PAGE)
    region.on_fault(getattr(region, method))
    dead = weakref.ref(region)
    del region
    gc.collect()
    assert dead() is None


def test_a_cycle_through_a_kept_fault_is_collected():
    region = Region.anonymous(PAGE, prot=Prot.NONE)
    kept = [region]
    region.on_fault(kept.append)
    with pytest.raises(MemoryFault):
        region[0]
    dead = weakref.ref(region)
    del region, kept
    gc.collect()
    assert dead() is None
