"""Snapshot: what it shows, who is caught, and what is refused."""

import ctypes
import gc
import os
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import mmkit
from mmkit import PAGE_SIZE, Advice, ClosedError, MemoryFault, OutOfMemory, Prot, Region
from support import exit_signal, in_child, run, sanitized

PAGES = 16


@pytest.fixture
def region():
    with Region.anonymous(PAGES * PAGE_SIZE) as region:
        for page in range(PAGES):
            region[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = bytes([page + 1]) * PAGE_SIZE
        yield region


def test_it_stays_whoever_writes(region):
    was = region[:]
    with region.snapshot() as before:
        region[0] = 99
        region.write(b"through the cursor")
        region.view(2 * PAGE_SIZE)[5] = 99
        region.array("u1")[4 * PAGE_SIZE :: PAGE_SIZE] = 99
        ctypes.memset(region.address + 3 * PAGE_SIZE, 99, 10)
        mmkit.poke(region.address + PAGE_SIZE, b"poked")
        assert before.read() == was
        assert region[:5] == b"throu"
        assert [region[page * PAGE_SIZE] for page in range(4, PAGES)] == [99] * 12
        assert before.dirty_pages == PAGES


def test_it_reads_parts_and_arrays(region):
    with region.snapshot() as before:
        region[PAGE_SIZE : 2 * PAGE_SIZE] = b"x" * PAGE_SIZE
        assert before.read(PAGE_SIZE - 2, 4) == b"\1\1\2\2"
        assert before.read(len(region)) == before.read(5, 0) == b""
        rows = before.array("u1", (PAGES, PAGE_SIZE))
        assert (rows == np.arange(1, PAGES + 1, dtype="u1")[:, None]).all()
        assert not rows.flags.writeable
        assert before.array("<u2", 1, offset=PAGE_SIZE).tolist() == [0x0202]
        for wrong in ((-1, 1), (0, -1), (0, len(region) + 1), (len(region) + 1, None)):
            with pytest.raises(ValueError, match="not inside the snapshot"):
                before.read(*wrong)
        with pytest.raises(ValueError, match=r"need .* bytes"):
            before.array("u8", 1, offset=len(region) - 4)


def test_it_says_where_the_first_writes_hit(region):
    with region.snapshot() as before:
        assert (before.dirty_ranges(), before.faults(), before.dirty_pages) == ([], [], 0)
        view = region.view()
        for offset in (5 * PAGE_SIZE + 7, 3, 5 * PAGE_SIZE, 4 * PAGE_SIZE):
            view[offset] = 0
        assert before.faults() == [5 * PAGE_SIZE + 7, 3, 4 * PAGE_SIZE]
        assert before.dirty_ranges() == [(0, PAGE_SIZE), (4 * PAGE_SIZE, 2 * PAGE_SIZE)]
        assert before.dirty_pages == 3
        assert repr(before) == f"<Snapshot of {PAGES * PAGE_SIZE // 1024} KiB, 3 pages written since>"


def test_more_faults_than_fit_into_one_answer_are_all_told():
    with Region.anonymous(300 * PAGE_SIZE) as region, region.snapshot() as before:
        for page in range(300):
            region[page * PAGE_SIZE + page] = 1
        assert before.faults() == [page * PAGE_SIZE + page for page in range(300)]


def test_ranges_end_where_the_region_does():
    with Region.anonymous(PAGE_SIZE + 10) as region, region.snapshot() as before:
        region[PAGE_SIZE] = 1
        assert before.dirty_ranges() == [(PAGE_SIZE, 10)]
        assert len(before) == len(before.read()) == PAGE_SIZE + 10


def test_restoring_undoes_everything(region):
    was = region[:]
    with region.snapshot() as before:
        region.array("u1")[:] = 0
        before.restore()
        assert region[:] == was
        region[0] = 0
        region.protect(Prot.READ, 0, PAGE_SIZE)
        with pytest.raises(MemoryFault, match="protection"):
            before.restore()
        region.protect(Prot.READ | Prot.WRITE)
        before.restore()
        assert region[:] == was


def test_what_would_take_contents_away_is_refused(region):
    before = region.snapshot()
    for call in (
        region.close,
        lambda: region.discard(force=True),
        lambda: region.punch(force=True),
        lambda: region.guard(force=True),
        lambda: region.resize(PAGE_SIZE),
        region.mseal,
    ):
        with pytest.raises(BufferError, match="a snapshot"):
            call()
    with pytest.raises(mmkit.Error, match="has a snapshot already"):
        region.snapshot()
    before.release()
    region.discard()


def test_only_private_anonymous_memory_can_have_one(tmp_path):
    (tmp_path / "file").write_bytes(bytes(PAGE_SIZE))
    for region in (
        Region.anonymous(PAGE_SIZE, shared=True),
        Region.memfd(PAGE_SIZE),
        Region.file(tmp_path / "file", mode="r+"),
        Region.file(tmp_path / "file", mode="c"),
    ):
        with region, pytest.raises(mmkit.Error, match="only private anonymous memory"):
            region.snapshot()
    with pytest.raises(ClosedError):
        region.snapshot()


def test_what_was_released_says_so(region):
    before = region.snapshot()
    before.release()
    before.release()
    assert before.released
    assert repr(before) == "<Snapshot released>"
    for call in (before.read, before.restore, before.dirty_ranges, before.faults):
        with pytest.raises(ClosedError, match="the snapshot was released"):
            call()
    region[:] = b"y" * len(region)
    with region.snapshot() as another:
        region[0] = 0
        assert another.read(0, 2) == b"yy"
        with pytest.raises(ClosedError):
            before.read()


def test_it_keeps_its_region_and_ends_with_its_last_reference():
    region = Region.anonymous(PAGE_SIZE)
    alive = weakref.ref(region)
    before = region.snapshot()
    address = region.address
    del region
    gc.collect()
    assert alive() is not None
    assert before.read(0, 1) == b"\0"
    assert mmkit.maps.find(address).perms == "r--p"
    del before
    gc.collect()
    assert alive() is None


def test_system_calls_write_where_the_range_was_populated(region):
    reader, writer = os.pipe()
    os.write(writer, b"hello")
    try:
        with region.snapshot() as before:
            with region.view(0, 5) as view:
                with pytest.raises(OSError, match="Bad address"):
                    os.readv(reader, [view])
                region.populate(True, 0, 5)
                assert os.readv(reader, [view]) == 5
            assert (region[:5], before.read(0, 5)) == (b"hello", b"\1" * 5)
            assert before.faults() == []
    finally:
        os.close(reader)
        os.close(writer)


def test_threads_that_write_first_to_the_same_pages_lose_nothing(region):
    was = region[:]
    for _ in range(20):
        with region.snapshot() as before:
            together = threading.Barrier(4)

            def write(own, together=together):
                view = region.view()
                together.wait()
                for page in range(PAGES):
                    view[page * PAGE_SIZE + own] = 200 + own

            threads = [threading.Thread(target=write, args=(own,)) for own in range(4)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                assert before.read() == was
            for thread in threads:
                thread.join()
            assert before.read() == was
            assert len(before.faults()) == before.dirty_pages == PAGES
            expected = bytes([200, 201, 202, 203])
            assert all(region[page * PAGE_SIZE :][:4] == expected for page in range(PAGES))
            before.restore()


def test_a_child_goes_on_by_itself(region):
    was = region[:]
    with region.snapshot() as before:
        region[0] = 99

        def child():
            region[PAGE_SIZE] = 98
            assert before.read() == was
            before.restore()
            assert region[:] == was
            before.release()
            region.close()

        in_child(child)
        assert (region[0], region[PAGE_SIZE]) == (99, 2)
        assert before.read() == was


def test_a_child_without_the_region_has_no_snapshot(region):
    with region.snapshot() as before:
        region.advise(Advice.DONTFORK)

        def child():
            with pytest.raises(ClosedError, match="has not got its region"):
                before.read()
            before.release()

        in_child(child)
        assert before.read(0, 1) == b"\1"


def test_what_the_region_forbids_is_a_crash_as_ever(region):
    def write():
        before = region.snapshot()
        view = region.view()
        region.protect(Prot.READ, force=True)
        view[0] = 1
        before.release()

    assert exit_signal(write) == 11


@sanitized
def test_no_room_for_another_as_large_changes_nothing():
    def child():
        import resource

        with Region.anonymous(1 << 30) as region:
            region[0] = 1
            size = sum(area.size for area in mmkit.maps.read())
            resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20), -1))
            with pytest.raises(OutOfMemory):
                region.snapshot()
            assert region.prot == Prot.READ | Prot.WRITE
            region[0] = 2

    in_child(child)


@sanitized
def test_random_writes_to_more_pages_than_a_process_may_have_areas_all_succeed():
    maximum = int(Path("/proc/sys/vm/max_map_count").read_text())
    if maximum > 200_000:
        pytest.skip(f"vm.max_map_count is {maximum}: its limit is not reached")
    done = run(f"""
import mmkit
from mmkit import PAGE_SIZE, Region
count = 2 * {maximum} + 2000
with Region.anonymous(count * PAGE_SIZE) as region, region.snapshot() as before:
    with memoryview(region) as view:
        for page in range(0, count, 2):
            view[page * PAGE_SIZE] = 1
    areas = len(open('/proc/self/maps').readlines())
    assert areas <= {maximum} // 2 + 1000, areas
    assert 8192 < len(before.faults()) < count // 2
    assert before.dirty_pages >= count // 2
    assert before.read(0, 1) == b'\\0' and region[0] == 1
    assert not any(before.read())
print('all')
""")
    assert (done.stdout, done.stderr) == ("all\n", "")
