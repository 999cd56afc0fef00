"""Promises of what is said when shared memory is made or found: in which order, by name, and to whom."""

from __future__ import annotations

import inspect
import os

import pytest

from meeting import KINDS
from mmkit import Channel, Region, SharedMemory, SystemVMemory, shared
from segment_tools import KEY, names
from support import PAGE

POSITIONS = {
    SharedMemory: "name create size",
    SystemVMemory: "key size",
    Channel: "name capacity create",
    shared.array: "name shape dtype create",
    **dict.fromkeys(KINDS, "name create"),
    **{lock.at: "region offset" for lock in KINDS},
}


@pytest.mark.parametrize("call", POSITIONS, ids=lambda call: call.__qualname__)
def test_what_may_be_said_by_position_is_few_things_and_all_else_goes_by_name(call):
    parameters = inspect.signature(call).parameters.values()
    positional = [each.name for each in parameters if each.kind == each.POSITIONAL_OR_KEYWORD]
    assert positional == POSITIONS[call].split()
    assert {each.kind for each in parameters} <= {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }


PLACED = [
    (shared.Lock, {}),
    (shared.RLock, {}),
    (shared.Condition, {}),
    (shared.Semaphore, {"value": 5, "held": False}),
    (shared.Event, {}),
    (shared.Barrier, {"parties": 7}),
]
MADE = [
    (SharedMemory, {"size": 100}, {"mode": 0o640, "reserve": False, "persist": True}),
    (shared.array, {"shape": 3}, {"mode": 0o640, "reserve": False, "persist": True}),
    (
        Channel,
        {"capacity": 4096},
        {"capacity": 4096, "mode": 0o640, "delivery": "at-least-once", "single": True, "persist": True},
    ),
    *((lock, {}, {"mode": 0o640} | options) for lock, options in PLACED),
]


@pytest.mark.parametrize(("make", "needed", "options"), MADE, ids=lambda made: getattr(made, "__name__", ""))
def test_what_only_a_maker_can_say_is_refused_when_attaching_and_not_ignored(name, make, needed, options):
    made = make(name, create=True, **needed | options)
    try:
        for option, value in options.items():
            with pytest.raises(ValueError, match=f"{name}.*: {option}: for create=True only"):
                make(name, **{option: value})
        with pytest.raises(ValueError, match=f": {', '.join(options)}: for"):
            make(name, **options)
        there = make(name)
        if make is not shared.array:
            there.close()
    finally:
        (made.segment if make is shared.array else made).unlink()
        if make is not shared.array:
            made.close()


@pytest.mark.parametrize(("lock", "options"), PLACED, ids=lambda part: getattr(part, "__name__", ""))
def test_so_it_is_in_a_region(lock, options):
    with Region.anonymous(4 * PAGE, shared=True) as region:
        made = lock.at(region, 64, create=True, **options)
        for option, value in options.items():
            with pytest.raises(
                ValueError, match=f"at offset 0x40 of a region: {option}: for create=True only"
            ):
                lock.at(region, 64, **{option: value})
        lock.at(region, 64).close()
        made.close()


def test_so_it_is_with_numbers():
    with SystemVMemory(KEY, 10, create=True):
        for option, value in {"mode": 0o640, "persist": True}.items():
            with pytest.raises(ValueError, match=f"segment .*: {option}: for create=True only"):
                SystemVMemory(KEY, **{option: value})
        SystemVMemory(KEY).detach()


@pytest.mark.parametrize(("make", "needed", "options"), MADE, ids=lambda made: getattr(made, "__name__", ""))
def test_what_stands_where_create_does_is_no_number(name, make, needed, options):
    with pytest.raises(TypeError, match="create is True or False, not 3"):
        make(name, create=3, **needed)
    assert name not in names()


@pytest.mark.parametrize("make", [made[0] for made in MADE])
def test_what_is_not_there_is_said_with_what_makes_it(name, make):
    with pytest.raises(FileNotFoundError, match="create=True makes one"):
        make(name)


@pytest.mark.parametrize(("make", "needed", "options"), MADE, ids=lambda made: getattr(made, "__name__", ""))
def test_what_is_there_is_said_with_what_attaches_it(name, make, needed, options):
    os.close(os.open(f"/dev/shm/{name}", os.O_CREAT))
    with pytest.raises(FileExistsError, match="attach it without create=True"):
        make(name, create=True, **needed)


def test_the_default_of_a_semaphore_is_one_permit_and_of_a_barrier_two_parties():
    with Region.anonymous(8 * PAGE, shared=True) as region:
        semaphore = shared.Semaphore.at(region, 0, create=True)
        barrier = shared.Barrier.at(region, PAGE * 3, create=True)
        assert (semaphore.value, barrier.parties) == (1, 2)
        semaphore.acquire()
        semaphore.release()
        semaphore.close()
        barrier.close()
