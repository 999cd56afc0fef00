"""Bad accesses under threads: bytes or MemoryFault, whatever others do. MMKIT_STRESS_SECONDS makes it longer (default 1)."""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest

import raw
from mmkit import ClosedError, MemoryFault, Prot, Region, peek, poke
from support import PAGE, repeat_in_threads

SECONDS = float(os.environ.get("MMKIT_STRESS_SECONDS", "1"))
READ_WRITE = Prot.READ | Prot.WRITE
PAGES = 160  # more than 256 KiB: what touches all of it runs without the GIL
SIZE = PAGES * PAGE
#: Each byte tells its place within 251 of them, so that none passes for that of another page.
CONTENT = (bytes(range(1, 252)) * (SIZE // 251 + 1))[:SIZE]


def race(*functions):
    """Run each function again and again in a thread of its own, until time is up; returns how often each has faulted."""
    stop = time.monotonic() + SECONDS
    faults = Counter()

    def counted(function):
        def call():
            try:
                function()
            except MemoryFault as fault:
                assert fault.offset is None or 0 <= fault.offset < SIZE
                faults[function.__name__] += 1

        return call

    repeat_in_threads(lambda: time.monotonic() >= stop, *map(counted, functions))
    return faults


def accesses(region, may_be_zero=False):
    """Ways of touching a region that others take away: each checks the bytes that it gets."""

    def check(data, start):
        expected = CONTENT[start : start + len(data)]
        if may_be_zero and data != expected:
            assert all(got in (0, wanted) for got, wanted in zip(data, expected, strict=True))
        else:
            assert data == expected

    def load():
        start = random.randrange(SIZE - 2 * PAGE)
        check(region[start : start + random.choice((1, 40, 2 * PAGE))], start)

    def load_all():
        check(region[:], 0)

    def store():
        start = random.randrange(SIZE - 2 * PAGE)
        length = random.choice((1, 40, 2 * PAGE))
        region[start : start + length] = CONTENT[start : start + length]

    def find():
        assert region.find(b"\xff\xff", 0) == -1

    def peek_at_it():
        start = random.randrange(SIZE - PAGE)
        check(peek(region.address + start, 100), start)

    return load, load_all, store, find, peek_at_it


@pytest.fixture
def control():
    """A region that nobody may change."""
    with Region.anonymous(SIZE) as control:
        control[:] = CONTENT
        yield control
        assert control[:] == CONTENT
        assert control.prot == READ_WRITE


def some_pages():
    first = random.randrange(PAGES)
    return first * PAGE, random.randrange(1, min(8, PAGES - first) + 1) * PAGE


def test_while_others_protect_recorded_and_behind_its_back(control):
    region = Region.anonymous(SIZE)
    region[:] = CONTENT
    address = region.address

    def protect():
        offset, length = some_pages()
        try:
            region.protect(random.choice((Prot.NONE, Prot.READ, READ_WRITE)), offset, length)
        except BufferError:
            return  # an operation is running
        finally:
            region.protect(READ_WRITE, offset, length)

    def protect_raw():
        offset, length = some_pages()
        raw.mprotect(address + offset, length, random.choice((Prot.NONE, Prot.READ)))
        raw.mprotect(address + offset, length, READ_WRITE)

    def look_at_control():
        assert control[:] == CONTENT

    faults = race(*accesses(region), protect, protect_raw, look_at_control)
    assert faults["look_at_control"] == 0
    assert region[:] == CONTENT
    region.close()


def test_while_others_cut_the_file_and_guard_pages(control):
    with Region.memfd(SIZE) as cut, Region.anonymous(SIZE) as guarded:
        cut[:], guarded[:] = CONTENT, CONTENT

        def cut_file():
            os.ftruncate(cut.fileno(), random.randrange(SIZE))
            os.ftruncate(cut.fileno(), SIZE)
            os.pwrite(cut.fileno(), CONTENT, 0)

        def guard():
            offset, length = some_pages()
            try:
                guarded.guard(offset, length)
            except BufferError:
                return
            guarded.unguard(offset, length)

        def write_what_was_lost():
            poke(guarded.address, CONTENT)

        faults = race(
            *accesses(cut, may_be_zero=True),
            *accesses(guarded, may_be_zero=True),
            cut_file,
            guard,
            write_what_was_lost,
        )
        assert faults["cut_file"] == faults["guard"] == 0


def test_while_others_map_and_unmap(control):
    """Addresses come and go: whoever is asked whose a fault is must not be asking about yesterday's region."""
    regions = [Region.anonymous(SIZE) for _ in range(4)]
    addresses = [region.address for region in regions]
    for region in regions:
        region[:] = CONTENT

    def replace():
        number = random.randrange(len(regions))
        fresh = Region.anonymous(SIZE, guard=random.random() < 0.5)
        fresh[:] = CONTENT
        old, regions[number], addresses[number] = regions[number], fresh, fresh.address
        while not old.closed:
            try:
                old.close()
            except BufferError:
                continue  # somebody is inside

    def map_fault_and_unmap():
        with Region.anonymous(4 * PAGE) as region:
            region.protect(Prot.NONE, PAGE, PAGE)
            region[2 * PAGE :] = CONTENT[: 2 * PAGE]
            assert region[2 * PAGE :] == CONTENT[: 2 * PAGE]
            region[:]
            raise AssertionError("no MemoryFault")

    def use():
        region = random.choice(regions)
        try:
            assert region[:] == CONTENT
            start = random.randrange(SIZE - 100)
            region[start : start + 100] = CONTENT[start : start + 100]
            assert region.find(CONTENT[start : start + 100], 0) <= start
        except ClosedError:
            pass

    def peek_where_it_was():
        # Another's memory, or nobody's.
        peek(random.choice(addresses) + random.randrange(SIZE), 64)

    def peek_at_nothing():
        peek(random.randrange(PAGE), 8)

    faults = race(replace, replace, map_fault_and_unmap, use, use, peek_where_it_was, peek_at_nothing)
    assert faults["map_fault_and_unmap"] > 0
    assert faults["peek_at_nothing"] > 0
    assert faults["use"] == faults["replace"] == 0
    for region in regions:
        assert region[:] == CONTENT
        region.close()
