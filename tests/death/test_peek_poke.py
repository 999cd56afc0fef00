"""`peek` and `poke`: any address is an answer or a MemoryFault; what is no address is refused."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest

import raw
from mmkit import MemoryFault, Prot, Region, peek, poke
from support import PAGE, x86_64

READ_WRITE = Prot.READ | Prot.WRITE
LAST = 2**64 - 1


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 16, 31, 64, 65, 1000, PAGE, 70_000, 300_000])
def test_what_is_poked_is_peeked(length):
    data = bytes(range(1, 256)) * (length // 255 + 1)
    with Region.anonymous(length + PAGE) as region:
        poke(region.address + 3, data[:length])
        assert peek(region.address + 3, length) == data[:length]
        assert region[3 : 3 + length] == data[:length]
        assert region[:3] == bytes(3)
        assert region[3 + length : 10 + length] == bytes(7)


def test_memory_that_is_not_mmkits_can_be_peeked_and_poked():
    buffer = ctypes.create_string_buffer(b"somebody else's")
    assert peek(ctypes.addressof(buffer), 8) == b"somebody"
    poke(ctypes.addressof(buffer), b"anybody ")
    assert buffer.value == b"anybody  else's"


def test_a_buffer_may_overlap_what_it_is_poked_to():
    with Region.anonymous(PAGE) as region:
        region[:1000] = bytes(range(250)) * 4
        before = region[:1000]
        with region.view(0, 1000) as view:
            poke(region.address + 7, view)
        assert region[7:1007] == before


@pytest.mark.parametrize(
    ("address", "length", "reason"),
    [
        (0, 1, "unmapped or guard"),
        (0, PAGE * 100, "unmapped or guard"),
        (8, 4, "unmapped or guard"),
        pytest.param(1 << 47, 1, "not an address", marks=x86_64, id="the first that no page table holds"),
        pytest.param(0xDEAD_BEEF_DEAD_BEEF, 8, "not an address", marks=x86_64),
        pytest.param(
            LAST - (1 << 47), 1, "not an address", marks=x86_64, id="the last that no page table holds"
        ),
        pytest.param(1 << 63, 300_000, "not an address", marks=x86_64, id="long"),
        (LAST - 7, 8, "unmapped or guard"),
        (LAST, 1, "unmapped or guard"),
        pytest.param(0xFFFF_8000_0000_0000, 1, "unmapped or guard", marks=x86_64, id="the kernel's"),
    ],
)
def test_addresses_that_nobody_has_raise(address, length, reason):
    for access, call in (
        ("read", lambda: peek(address, length)),
        ("write", lambda: poke(address, bytes(length))),
    ):
        with pytest.raises(MemoryFault) as caught:
            call()
        fault = caught.value
        assert (fault.address, fault.offset, fault.access, fault.reason) == (address, None, access, reason)
        assert str(fault).startswith(f"{access} at {address:#x}: {reason}: ")


def test_reading_over_the_last_address_that_a_program_has_raises():
    top = (1 << 47) - PAGE
    with pytest.raises(MemoryFault) as caught:
        peek(top - 8, 2 * PAGE)
    assert top - 8 <= caught.value.address < top + 2 * PAGE


def test_nothing_is_a_range_at_any_address():
    for address in (0, 1 << 63, LAST):
        assert peek(address, 0) == b""
        poke(address, b"")


@pytest.mark.parametrize("address", [0, LAST])
def test_a_negative_length_is_refused(address):
    with pytest.raises(ValueError, match="negative"):
        peek(address, -1)


@pytest.mark.parametrize(
    ("address", "length"), [(-1, 1), (-1, 0), (LAST + 1, 1), (LAST, 2), (LAST - 8, 10), (1 << 100, 1)]
)
def test_a_range_that_is_not_inside_the_address_space_is_refused(address, length):
    with pytest.raises(ValueError, match="address space"):
        peek(address, length)
    with pytest.raises(ValueError, match="address space"):
        poke(address, bytes(length))


def test_a_length_that_no_bytes_can_have_is_refused():
    with pytest.raises(MemoryError):
        peek(0, 2**62)
    with pytest.raises(OverflowError):
        peek(0, 2**64)


def test_what_is_no_address_no_length_and_no_buffer_is_refused():
    for address in ("0", 1.5, None, b"0"):
        with pytest.raises(TypeError):
            peek(address, 1)
        with pytest.raises(TypeError):
            poke(address, b"x")
    for length in ("1", 1.0, None):
        with pytest.raises(TypeError):
            peek(0, length)
    for data in ("text", 5, None, [1]):
        with pytest.raises(TypeError):
            poke(0, data)
    with pytest.raises(BufferError):
        poke(0, memoryview(bytes(10))[::2])


def test_numbers_of_numpy_are_addresses():
    with Region.anonymous(PAGE) as region:
        poke(np.uint64(region.address), b"ab")
        assert peek(np.int64(region.address), np.int64(2)) == b"ab"


def test_a_protection_is_seen_as_it_is_and_not_as_mmkit_recorded_it():
    with Region.anonymous(2 * PAGE) as region:
        address = region.address
        region.protect(Prot.READ)
        with pytest.raises(MemoryFault, match="write at .*: protection"):
            poke(address, b"x")
        raw.mprotect(address, PAGE, READ_WRITE)
        poke(address, b"x")
        assert region[0] == ord("x")
        raw.mprotect(address, PAGE, Prot.NONE)
        with pytest.raises(MemoryFault, match="read at .*: protection"):
            peek(address, 1)


@pytest.mark.parametrize(("prot", "access"), [(Prot.READ, "write"), (Prot.NONE, "read")])
def test_of_a_copy_within_one_page_it_is_told_which_side_was_bad(prot, access):
    with Region.anonymous(PAGE) as region, region.view(0, 100) as view:
        raw.mprotect(region.address, PAGE, prot)
        with pytest.raises(MemoryFault) as caught:
            poke(region.address + 200, view)
        fault = caught.value
        assert (fault.access, fault.reason) == (access, "protection")
        assert fault.address == region.address + (200 if access == "write" else 0)


def test_edges_of_a_guarded_region_raise():
    with Region.anonymous(PAGE, guard=True) as region:
        for address, access in (
            (region.address - 1, 0),
            (region.address + PAGE, 0),
            (region.address + PAGE - 4, 4),
        ):
            with pytest.raises(MemoryFault) as caught:
                peek(address, 8)
            assert caught.value.address == address + access


def test_a_closed_region_that_was_pointed_to_raises():
    region = Region.anonymous(PAGE)
    address = region.address
    region.close()
    for call in (lambda: peek(address, 1), lambda: poke(address, b"x")):
        with pytest.raises(MemoryFault, match="protection"):
            call()


def test_bytes_in_front_of_the_bad_one_are_there_after_a_long_poke():
    with Region.anonymous(2 * PAGE) as region:
        region.guard(PAGE)
        with pytest.raises(MemoryFault):
            poke(region.address, b"x" * 2 * PAGE)
        assert region[:PAGE] == b"x" * PAGE


@pytest.mark.parametrize("length", [1, 24, 300_000], ids=["a byte", "a few", "without the GIL"])
def test_threads_fault_side_by_side(length):
    faults = []

    def fault_often(address: int) -> None:
        for _ in range(300):
            try:
                peek(address, length)
            except MemoryFault as fault:
                faults.append(fault.address == address)

    threads = [threading.Thread(target=fault_often, args=(PAGE * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [True] * 1200
