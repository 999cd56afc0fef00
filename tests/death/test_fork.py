"""What a forked child has not, it cannot use by mistake; and what it maps is its own."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
import warnings
import weakref

import pytest

import raw
from mmkit import Advice, ClosedError, MemoryFault, Prot, Region, linux, maps, peek, supports
from support import PAGE, SANITIZED, exit_signal, in_child

READ_WRITE = Prot.READ | Prot.WRITE
PAGES = 4
DONTFORK = 10


# ---- regions of which a child lacks something


def secret() -> Region:
    if not supports("memfd_secret"):
        pytest.skip("secret memory is off in this kernel")
    return Region.memfd(PAGES * PAGE, secret=True)


def dontfork() -> Region:
    region = Region.anonymous(PAGES * PAGE)
    region.advise(Advice.DONTFORK)
    return region


def dontfork_in_part() -> Region:
    region = Region.anonymous(PAGES * PAGE)
    region.advise(Advice.DONTFORK, PAGE, PAGE)
    return region


def dontfork_behind_its_back() -> Region:
    region = Region.anonymous(PAGES * PAGE)
    linux.madvise(region.address, PAGES * PAGE, DONTFORK)
    return region


def dontfork_in_parts_behind_its_back() -> Region:
    region = Region.anonymous(PAGES * PAGE)
    libc = ctypes.CDLL(None)
    for page in (0, 2):
        assert (
            libc.madvise(ctypes.c_void_p(region.address + page * PAGE), ctypes.c_size_t(PAGE), DONTFORK) == 0
        )
    return region


def dontfork_of_a_file() -> Region:
    region = Region.memfd(PAGES * PAGE)
    region.advise(Advice.DONTFORK)
    return region


def dontfork_with_edges() -> Region:
    region = Region.anonymous(PAGES * PAGE, guard=True, reserve=8 * PAGE)
    region.advise(Advice.DONTFORK, PAGE)
    return region


#: A region, and the pages that a child lacks.
LACKING = {
    secret: range(PAGES),
    dontfork: range(PAGES),
    dontfork_in_part: range(1, 2),
    dontfork_behind_its_back: range(PAGES),
    dontfork_in_parts_behind_its_back: range(0, PAGES, 2),
    dontfork_of_a_file: range(PAGES),
    dontfork_with_edges: range(1, PAGES),
}


def fill(region: Region) -> bytes:
    content = bytes(range(1, 251)) * (PAGES * PAGE // 250 + 1)
    region[:] = content[: PAGES * PAGE]
    return content[: PAGES * PAGE]


@pytest.fixture(params=LACKING, ids=lambda make: make.__name__)
def lacking(request):
    with request.param() as region:
        yield region, LACKING[request.param]


METHODS = {
    "item": lambda r: r[0],
    "slice": lambda r: r[1:5],
    "empty slice": lambda r: r[5:5],
    "steps": lambda r: r[::3],
    "store": lambda r: r.__setitem__(0, 1),
    "store a slice": lambda r: r.__setitem__(slice(0, 3), b"abc"),
    "read": lambda r: r.read(),
    "readline": lambda r: r.readline(),
    "write": lambda r: r.write(b"abc"),
    "seek": lambda r: r.seek(0),
    "tell": lambda r: r.tell(),
    "find": lambda r: r.find(b"x"),
    "rfind": lambda r: r.rfind(b"x"),
    "len": len,
    "address": lambda r: r.address,
    "prot": lambda r: r.prot,
    "view": lambda r: r.view(),
    "memoryview": memoryview,
    "array": lambda r: r.array("u1"),
    "protect": lambda r: r.protect(Prot.READ),
    "protected": lambda r: r.protected(Prot.READ).__enter__(),
    "advise": lambda r: r.advise(Advice.NORMAL),
    "discard": lambda r: r.discard(),
    "punch": lambda r: r.punch(),
    "guard": lambda r: r.guard(),
    "unguard": lambda r: r.unguard(),
    "populate": lambda r: r.populate(),
    "lock": lambda r: r.lock(),
    "unlock": lambda r: r.unlock(),
    "locked": lambda r: r.locked().__enter__(),
    "resident": lambda r: r.resident(),
    "cached": lambda r: r.cached(),
    "flush": lambda r: r.flush(),
    "resize": lambda r: r.resize(8 * PAGE),
    "mseal": lambda r: r.mseal(),
    "fileno": lambda r: r.fileno(),
    "on_fault": lambda r: r.on_fault(print),
    "with": lambda r: r.__enter__(),
}


def outcome(call, region: Region) -> str:
    try:
        call(region)
    except BaseException as error:
        return type(error).__name__
    return "done"


def test_every_method_of_a_region_that_the_child_lacks_raises(lacking):
    region, _ = lacking
    fill(region)
    outcomes = in_child(lambda: {name: outcome(call, region) for name, call in METHODS.items()})
    assert outcomes == dict.fromkeys(METHODS, "ClosedError")


def test_closing_what_the_child_lacks_does_nothing(lacking):
    region, _ = lacking

    def close():
        region.close()
        with pytest.raises(ClosedError), region:
            pass
        return region.closed, repr(region), [r for r in (region,) if not r.closed]

    name = " 'mmkit'" if region.name else ""
    assert in_child(close) == (True, f"<Region{name} closed>", [])


def test_the_parents_region_stays_as_it_was(lacking):
    region, _ = lacking
    content = fill(region)
    in_child(region.close)
    assert not region.closed
    assert region[:] == content
    region[0] = 255
    region.protect(Prot.READ)
    assert region[0] == 255
    assert maps.find(region.address).perms[0] == "r"


def test_its_addresses_are_taken_in_the_child(lacking):
    region, missing = lacking
    fill(region)
    address = region.address

    def look():
        perms = [maps.find(address + page * PAGE).perms for page in range(PAGES)]
        for page in range(PAGES):
            with pytest.raises(OSError, match="File exists"):
                raw.map_at(address + page * PAGE, PAGE)
        return perms

    perms = in_child(look)
    assert [perms[page] for page in missing] == ["---p"] * len(missing)


def test_nothing_that_the_child_maps_gets_in_there(lacking):
    region, _ = lacking
    address = region.address

    def crowd():
        end = address + PAGES * PAGE
        for length in (PAGE, 2 * PAGE, PAGES * PAGE):
            for number in range(100):
                at = linux.mmap(0, length, READ_WRITE, 0x22, -1, 0)
                assert at + length <= address or end <= at, number

    in_child(crowd)


def test_views_from_before_see_what_the_child_has_and_fault_elsewhere(lacking):
    region, missing = lacking
    content = fill(region)
    with memoryview(region) as view:

        def look():
            for page in range(PAGES):
                if page in missing or len(missing) == PAGES:
                    assert exit_signal(lambda page=page: view[page * PAGE]) == 11
                else:
                    assert bytes(view[page * PAGE : (page + 1) * PAGE]) == content[page * PAGE :][:PAGE]
                    assert exit_signal(lambda page=page: view[page * PAGE]) == 0
            for page in missing:
                with pytest.raises(MemoryFault, match="protection"):
                    peek(region_address + page * PAGE, 1)

        region_address = region.address
        in_child(look)
        assert bytes(view) == content


@pytest.mark.parametrize("make", LACKING, ids=lambda make: make.__name__)
def test_what_the_child_maps_survives_the_stale_object(make):
    length = PAGES * PAGE
    held = [make()]
    address = held[0].address

    def drop():
        mapped = [Region.anonymous(length) for _ in range(20)]
        for number, own in enumerate(mapped):
            own[:] = bytes([number + 1]) * length
        dead = weakref.ref(held[0])
        held[0].close()
        held.clear()
        gc.collect()
        assert dead() is None
        # Nobody points there any more: the addresses are free, and whoever takes them keeps them.
        raw.map_at(address, length, READ_WRITE)
        ctypes.memset(address, 77, length)
        mapped += [Region.anonymous(length) for _ in range(20)]
        gc.collect()
        assert ctypes.string_at(address, length) == bytes([77]) * length
        for number, own in enumerate(mapped[:20]):
            assert own[:] == bytes([number + 1]) * length

    in_child(drop)
    held[0][:4] = b"mine"
    held[0].close()


def test_a_view_keeps_the_addresses_from_others_after_the_stale_object_is_gone(lacking):
    region, missing = lacking
    view = memoryview(region)
    address = region.address + missing[0] * PAGE

    def drop():
        region.close()
        gc.collect()
        with pytest.raises(OSError, match="File exists"):
            raw.map_at(address, PAGE)
        assert maps.find(address).perms == "---p"
        view.release()
        return region.closed

    assert in_child(drop)
    view.release()


def test_children_of_children_lack_it_too(lacking):
    region, missing = lacking
    address = region.address

    def grandchild():
        outcomes = {outcome(call, region) for call in METHODS.values()}
        return outcomes, [maps.find(address + page * PAGE).perms for page in missing]

    assert in_child(lambda: in_child(grandchild)) == ({"ClosedError"}, ["---p"] * len(missing))


def test_a_child_keeps_from_its_children_what_it_likes():
    with Region.anonymous(PAGES * PAGE) as region:
        content = fill(region)

        def child():
            region.advise(Advice.DONTFORK, 0, PAGE)
            assert in_child(lambda: outcome(METHODS["item"], region)) == "ClosedError"
            return region[:] == content

        assert in_child(child)
        assert in_child(lambda: region[:]) == content


def test_what_may_be_forked_again_is():
    with dontfork_in_part() as region:
        content = fill(region)
        region.advise(Advice.DOFORK)
        assert in_child(lambda: region[:]) == content


def test_what_is_wiped_on_fork_is_there_and_empty():
    with Region.anonymous(PAGES * PAGE) as region:
        fill(region)
        region.advise(Advice.WIPEONFORK)
        assert in_child(lambda: region[:]) == bytes(PAGES * PAGE)


def test_a_protected_block_around_the_fork_ends_quietly_in_the_child(lacking):
    region, _ = lacking
    block = region.protected(Prot.READ)
    block.__enter__()
    in_child(block.release)
    in_child(lambda: block.__exit__(None, None, None))
    assert region.prot == Prot.READ
    block.release()
    assert region.prot == READ_WRITE


def test_a_locked_block_around_the_fork_ends_quietly_in_the_child():
    with dontfork() as region:
        block = region.locked()
        block.__enter__()
        in_child(lambda: block.__exit__(None, None, None))
        block.__exit__(None, None, None)


# ---- forking while others are busy


def churn(stop: threading.Event, shared: Region) -> None:
    """Map, fault, change, unmap."""
    while not stop.is_set():
        with Region.anonymous(8 * PAGE, reserve=16 * PAGE) as region:
            region.protect(Prot.NONE, PAGE, PAGE)
            region.advise(Advice.DONTFORK, 2 * PAGE, PAGE)
            for access in (lambda: region[PAGE], lambda: region[:], lambda: shared.find(b"nowhere", 0)):
                try:
                    access()
                except MemoryFault:
                    continue
                raise AssertionError("no MemoryFault")
            region[3 * PAGE] = 1
            region.resize(16 * PAGE)
            try:
                peek(8, 1)
            except MemoryFault:
                continue
            raise AssertionError("no MemoryFault")


def busy(seconds: float, shared: Region, generations: int) -> None:
    """Churn in threads and fork meanwhile; each child does the same for a shorter time."""
    stop, errors = threading.Event(), []

    def work() -> None:
        try:
            churn(stop, shared)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    try:
        while not errors and time.monotonic() < end:
            assert outcome_of_child(shared, seconds / 20, generations - 1) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def outcome_of_child(shared: Region, seconds: float, generations: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.raises(MemoryFault):
                shared[PAGE]
            assert shared[0] == 5
            if generations:
                busy(seconds, shared, generations)
            with Region.anonymous(PAGE) as own:
                own[0] = 1
                own.resize(2 * PAGE)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's malloc may stay locked in the child")
def test_forking_while_threads_fault_map_and_unmap():
    with Region.memfd(2 * PAGE) as shared:
        shared[0] = 5
        os.truncate(shared.fileno(), PAGE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
            busy(1, shared, 3)
        assert shared[0] == 5
