"""A file that another process cuts short and makes long again: right bytes or MemoryFault, and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import raw
from mmkit import Advice, MemoryFault, Region, peek, poke
from support import PAGE, exit_signal, needs_root, repeat_in_threads

ENOUGH = 1000
HUGE = 2 << 20
WORKERS = 3

# No byte is where it would be if it came from another page; none is a zero or the end of a line.
_PATTERN = (np.arange(HUGE) % 239 + 11).astype(np.uint8)
NEEDLE = b"\xff" * 40
_PATTERN[0:40] = 0xFD
FIRST = b"\xfd" * 40


class File(NamedTuple):
    fd: int
    size: int

    @property
    def needle_at(self) -> int:
        return self.size - 100

    def content(self, start: int = 0, stop: int | None = None) -> bytes:
        data = bytearray(_PATTERN[: self.size])
        data[self.needle_at : self.needle_at + len(NEEDLE)] = NEEDLE
        return bytes(data[start:stop])


# ---- what is done, again and again


class Worker:
    """One thread's work on a region of the file: each operation checks its answer."""

    def __init__(self, region: Region, file: File) -> None:
        self.region = region
        self.file = file
        self.content = file.content()
        self.scratch = Region.anonymous(file.size)
        self.turn = 0

    def check(self, data: bytes, start: int) -> None:
        expected = self.content[start : start + len(data)]
        if data != expected:
            # What has been cut and made long again is zeros until somebody writes.
            got = np.frombuffer(data, np.uint8)
            assert ((got == np.frombuffer(expected, np.uint8)) | (got == 0)).all(), (
                f"wrong bytes from {start:#x} on"
            )

    def place(self) -> int:
        self.turn = (self.turn * 5 + 7919) % (self.file.size - PAGE - 300)
        return PAGE + self.turn

    def load(self) -> None:
        place = self.place()
        self.check(bytes([self.region[place]]), place)

    def load_slice(self) -> None:
        place = self.place()
        self.check(self.region[place : place + 300], place)

    def load_all(self) -> None:
        self.check(self.region[:], 0)

    def load_with_steps(self) -> None:
        place = self.place()
        data = self.region[place : place + 300 : 7]
        assert len(data) == 43
        for number, byte in enumerate(data):
            assert byte in (0, self.content[place + 7 * number])

    def store(self) -> None:
        place = self.place()
        self.region[place : place + 300] = self.content[place : place + 300]

    def store_all(self) -> None:
        self.region[:] = self.content

    def read(self) -> None:
        self.region.seek(0)
        data = self.region.read()
        assert len(data) == self.region.tell() == self.file.size
        self.check(data, 0)

    def readline(self) -> None:
        self.region.seek(0)
        data = self.region.readline()
        assert len(data) == self.region.tell() == self.file.size
        self.check(data, 0)

    def write(self) -> None:
        place = self.place()
        self.region.seek(place)
        assert self.region.write(self.content[place : place + 300]) == 300

    def find(self) -> None:
        assert self.region.find(NEEDLE, 0) in (-1, self.file.needle_at)

    def rfind(self) -> None:
        assert self.region.rfind(FIRST, 0) == 0

    def peek(self) -> None:
        place = self.place()
        self.check(peek(self.region.address + place, 300), place)

    def poke(self) -> None:
        place = self.place()
        poke(self.region.address + place, self.content[place : place + 300])

    def store_from_a_view(self) -> None:
        with memoryview(self.region) as view:
            self.scratch[:] = view
        self.check(self.scratch[:], 0)

    def find_a_view(self) -> None:
        place = self.place()
        with self.region.view(place, place + 300) as view:
            assert self.scratch.find(view, 0) <= 0


OPERATIONS = [
    name
    for name, value in vars(Worker).items()
    if callable(value) and name not in ("__init__", "check", "place")
]
WRITING = ("store", "store_all", "write", "poke")
WITH_A_POSITION = ("read", "readline", "write")


# ---- files, and the process that cuts them


@contextlib.contextmanager
def on_disk(directory: Path, size: int = 512 << 10) -> Iterator[File]:
    with (directory / "file").open("w+b", buffering=0) as opened:
        file = File(opened.fileno(), size)
        opened.write(file.content())
        yield file


@contextlib.contextmanager
def in_memory(directory: Path) -> Iterator[File]:
    fd = os.memfd_create("cut")
    file = File(fd, 512 << 10)
    os.pwrite(fd, file.content(), 0)
    yield file
    os.close(fd)


def here(function: Callable[[Path], None], directory: Path) -> None:
    function(directory)


def on_huge_pages(function: Callable[[Path], None], directory: Path) -> None:
    raw.in_mount(function, directory, "tmpfs", "size=64m,huge=always")


def huge(directory: Path) -> contextlib.AbstractContextManager[File]:
    return on_disk(directory, HUGE)


class Place(NamedTuple):
    run: Callable[[Callable[[Path], None], Path], None]
    make: Callable[[Path], contextlib.AbstractContextManager[File]]


PLACES = {"memfd": Place(here, in_memory), "disk": Place(here, on_disk), "huge": Place(on_huge_pages, huge)}


def case(operation: str, name: str) -> object:
    marks = [needs_root] if name == "huge" else []
    return pytest.param(operation, PLACES[name], id=f"{operation}-{name}", marks=marks)


def cut_and_mend(file: File) -> None:
    """Cut at this page and that, and write again what has been cut: now a part, now all of it."""
    content, pages = file.content(), file.size // PAGE
    turn = 0
    while True:
        turn += 1
        if file.size == HUGE:
            # The next access brings a huge page in, whose end the file does not reach.
            os.ftruncate(file.fd, 0)
        os.ftruncate(file.fd, PAGE * (1 + turn * 37 % (pages - 1)))
        os.ftruncate(file.fd, file.size)
        start = 0 if turn % 8 == 0 else turn % pages * PAGE
        os.pwrite(file.fd, content[start : start + (file.size if start == 0 else 8 * PAGE)], start)
        os.pwrite(file.fd, content[-PAGE:], file.size - PAGE)


def work_until_enough(workers: list[Worker], operation: str) -> list[MemoryFault]:
    """The faults; there have been accesses that went well between them."""
    faults: list[MemoryFault] = []
    good: list[None] = []

    def using(worker: Worker) -> Callable[[], None]:
        act = getattr(worker, operation)

        def use() -> None:
            try:
                act()
                good.append(None)
            except MemoryFault as fault:
                faults.append(fault)

        return use

    def is_enough() -> bool:
        return len(faults) >= ENOUGH and len(good) >= ENOUGH / 50

    repeat_in_threads(is_enough, *map(using, workers))
    return faults


@pytest.mark.parametrize(
    ("operation", "place"),
    [case(operation, "memfd") for operation in OPERATIONS]
    + [
        case(operation, name)
        for operation in ("load_slice", "load_all", "store", "read", "find")
        for name in ("disk", "huge")
    ],
)
def test_a_file_cut_by_another_process_raises_a_thousand_times_and_no_byte_is_wrong(
    operation, place, tmp_path
):
    def race(directory: Path) -> None:
        with place.make(directory) as file, contextlib.ExitStack() as opened:
            count = WORKERS if operation in WITH_A_POSITION else 1
            regions = [opened.enter_context(Region.file(file.fd, mode="r+")) for _ in range(count)] * WORKERS
            workers = [Worker(region, file) for region in regions[:WORKERS]]
            with raw.process(lambda: cut_and_mend(file)):
                faults = work_until_enough(workers, operation)
            assert len(faults) >= ENOUGH
            assert {fault.access for fault in faults} == {"write" if operation in WRITING else "read"}
            assert {fault.reason for fault in faults} <= {"beyond end of file", "not backed"}
            untouched = 0 if file.size == HUGE else PAGE
            assert all(fault.offset is None or untouched <= fault.offset < file.size for fault in faults)
            # All is as ever when it is quiet again.
            os.ftruncate(file.fd, file.size)
            regions[0][:] = file.content()
            for worker in workers:
                assert worker.region[:] == file.content()
                getattr(worker, operation)()

    place.run(race, tmp_path)


# ---- one cut, while all is quiet


@pytest.mark.parametrize(
    ("operation", "place"), [case(operation, name) for operation in OPERATIONS for name in PLACES]
)
def test_a_file_cut_between_two_accesses_raises_from_its_end_on(operation, place, tmp_path):
    def quietly(directory: Path) -> None:
        with place.make(directory) as file, Region.file(file.fd, mode="r+") as region:
            worker = Worker(region, file)
            getattr(worker, operation)()
            os.ftruncate(file.fd, PAGE)
            assert region[:PAGE] == file.content(0, PAGE)
            with pytest.raises(MemoryFault) as caught:
                getattr(worker, operation)()
            inside = operation not in ("peek", "poke", "store_from_a_view", "find_a_view")
            assert caught.value.reason == ("beyond end of file" if inside else "not backed")
            assert PAGE <= caught.value.address - region.address < file.size
            assert region[:PAGE] == file.content(0, PAGE)
            os.ftruncate(file.fd, file.size)
            assert region[PAGE:] == bytes(file.size - PAGE)

    place.run(quietly, tmp_path)


@pytest.mark.parametrize("place", [PLACES["disk"], PLACES["memfd"]], ids=["disk", "memfd"])
def test_what_is_left_of_the_last_page_reads_as_zeros(place, tmp_path):
    with place.make(tmp_path) as file, Region.file(file.fd, mode="r+") as region:
        os.ftruncate(file.fd, PAGE + 10)
        assert region[: 2 * PAGE] == file.content(0, PAGE + 10) + bytes(PAGE - 10)
        with pytest.raises(MemoryFault, match="beyond end of file"):
            region[2 * PAGE]
        os.ftruncate(file.fd, 0)
        with pytest.raises(MemoryFault, match=r"offset 0x0\): beyond end of file"):
            region[0]


def a_view_reads_there(view: memoryview, place: int) -> bool:
    return exit_signal(lambda: view[place]) == 0


@needs_root
@pytest.mark.parametrize("advised", [False, True], ids=["huge=always", "huge=advise"])
def test_where_the_kernel_gives_no_signal_behind_the_end_mmkit_looks(advised, tmp_path):
    def look(directory: Path) -> str | None:
        with huge(directory) as file, Region.file(file.fd, mode="r+") as region:
            if advised:
                region.advise(Advice.HUGEPAGE)
            os.ftruncate(file.fd, 0)
            os.ftruncate(file.fd, PAGE)
            region[0] = 1  # brings a huge page in
            with memoryview(region) as view:
                if not a_view_reads_there(view, 3 * PAGE):
                    return "no huge page was to be had, or this kernel gives a signal"
            for access in (
                lambda: region[3 * PAGE],
                lambda: region.__setitem__(3 * PAGE, 1),
                lambda: region[:],
            ):
                with pytest.raises(MemoryFault, match="beyond end of file"):
                    access()
            with pytest.raises(MemoryFault) as caught:
                region.find(b"nowhere", 0)
            assert caught.value.offset == PAGE
            # To the byte, where the kernel knows pages only.
            os.ftruncate(file.fd, 100)
            assert region[:100] == b"\1" + bytes(99)
            with pytest.raises(MemoryFault) as caught:
                region[50:150]
            assert caught.value.offset == 100
        return None

    options = f"size=64m,huge={'advise' if advised else 'always'}"
    if reason := raw.in_mount(look, tmp_path, "tmpfs", options):
        pytest.skip(reason)
