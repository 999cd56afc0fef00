"""Whose a file descriptor is while regions are made and used: one owner at every moment, who closes it once."""

import contextlib
import fcntl
import gc
import itertools
import os
import warnings

import pytest

import mmkit
import mmkit.making
from mmkit import Region
from mmkit._native.descriptor import Descriptor
from mmkit.compat import mmap
from mmkit.flags import MemfdFlag, Seal
from mmkit.linux import memfd_create
from mmkit.shared import SharedMemory
from steps import Interruption, interrupt, run_until_step
from support import PAGE

NAME = f"mmkit-test-descriptors-{os.getpid()}"
F_GET_SEALS = 1034


def descriptors():
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * PAGE))
    return path


@pytest.fixture
def fd(path):
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def name():
    yield NAME
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"/dev/shm/{NAME}")


#: Every way to a region with a file behind it.
WAYS = {
    "Region.file(fd)": lambda fd, path, name: Region.file(fd, mode="r+"),
    "Region.file(path)": lambda fd, path, name: Region.file(path),
    "Region.memfd": lambda fd, path, name: Region.memfd(PAGE, seals=Seal.SHRINK),
    "Region.anonymous(shared, reserve)": lambda fd, path, name: Region.anonymous(
        PAGE, shared=True, reserve=2 * PAGE
    ),
    "mmap": lambda fd, path, name: mmap.mmap(fd, 0),
    "mmap(trackfd=False)": lambda fd, path, name: mmap.mmap(fd, 0, trackfd=False),
    "SharedMemory.memfd": lambda fd, path, name: SharedMemory.memfd(PAGE),
    "SharedMemory.from_fd": lambda fd, path, name: SharedMemory.from_fd(fd),
    "SharedMemory(create)": lambda fd, path, name: SharedMemory(name, create=True, size=PAGE),
}
if mmkit.supports("memfd_secret"):
    WAYS["Region.memfd(secret)"] = lambda fd, path, name: Region.memfd(PAGE, secret=True)
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


def open_victims():
    """Files that somebody else opens: they get the numbers that are free."""
    return [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]


def close_victims(victims):
    """Close them, and fail if somebody has done so already."""
    for victim in victims:
        os.close(victim)


@EVERY_WAY
def test_an_exception_at_any_step_of_making_a_region_closes_what_was_opened_and_nothing_else(
    way, fd, path, name
):
    def make():
        return WAYS[way](fd, path, name)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        make().close()
        gc.collect()
        before = descriptors()
        # These take thousands of steps.
        stride = 3 if "SharedMemory" in way else 1
        for step in itertools.count(1, stride):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"/dev/shm/{name}")
            victims = []
            try:
                reached, made = run_until_step(make, step, interrupt)
            except Interruption:
                # The numbers that are free while the exception still holds what was made.
                victims = open_victims()
            else:
                made.close()
                del made
                if not reached:
                    break
            close_victims(victims)
        gc.collect()
        assert step > 20
        assert descriptors() == before
        os.fstat(fd)


@EVERY_WAY
def test_a_failure_beside_the_mapping_closes_what_was_opened_and_nothing_else(
    way, fd, path, name, monkeypatch
):
    class NoMemory:
        @staticmethod
        def ref(*_):
            raise MemoryError

    before = descriptors()
    monkeypatch.setattr(mmkit.making, "weakref", NoMemory)
    try:
        WAYS[way](fd, path, name)
    except MemoryError:
        victims = open_victims()
    gc.collect()
    close_victims(victims)
    assert descriptors() == before
    os.fstat(fd)


def test_a_descriptor_is_closed_with_its_object_and_only_once():
    file = Descriptor(os.open, os.devnull, os.O_RDONLY)
    number = file.fileno()
    with file:
        os.fstat(number)
    assert file.fileno() == -1
    assert os.open(os.devnull, os.O_RDONLY) == number
    file.close()
    del file
    os.close(number)
    number = Descriptor(os.dup, 2).fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    with pytest.raises(FileNotFoundError):
        Descriptor(os.open, "/nowhere", os.O_RDONLY)


# ---- numbers that are somebody else's in the meantime


def use_while_another_thread_closes(make, use, victim):
    """Close what was made at every step of its use, and let a foreign file have its number; give the answers."""
    answers, reached, step = [], True, 0
    while reached:
        step += 1
        made = make()
        number = made.fd if isinstance(made, SharedMemory) else made.fileno()
        closed = False

        def close(made=made, number=number):
            nonlocal closed
            with contextlib.suppress(BufferError):
                made.close()
                os.dup2(victim, number)
                closed = True

        try:
            reached, answer = run_until_step(lambda made=made: use(made), step, close)
        except (ValueError, BufferError, mmkit.Error):
            reached = True
        else:
            answers.append(answer)
        if closed:
            os.close(number)
        else:
            made.close()
    return answers


def test_a_resize_during_which_another_thread_closes_never_cuts_a_foreign_file(path, tmp_path):
    victim = os.open(tmp_path / "victim", os.O_RDWR | os.O_CREAT)
    os.ftruncate(victim, 9 * PAGE)
    with open(path, "r+b") as file:

        def make():
            file.truncate(4 * PAGE)
            return mmap.mmap(file.fileno(), 2 * PAGE)

        for length in (PAGE, 2 * PAGE, 3 * PAGE):
            use_while_another_thread_closes(make, lambda m, length=length: m.resize(length), victim)
            assert os.fstat(victim).st_size == 9 * PAGE
    os.close(victim)


def test_the_size_is_never_that_of_a_foreign_file(fd, tmp_path):
    victim = os.open(tmp_path / "victim", os.O_RDWR | os.O_CREAT)
    os.ftruncate(victim, 9 * PAGE)
    answers = use_while_another_thread_closes(lambda: mmap.mmap(fd, PAGE), lambda m: m.size(), victim)
    assert set(answers) == {4 * PAGE}
    os.close(victim)


def test_seals_never_go_to_a_foreign_file():
    victim = memfd_create("victim", MemfdFlag.CLOEXEC | MemfdFlag.ALLOW_SEALING)
    use_while_another_thread_closes(
        lambda: Region.memfd(PAGE), lambda region: region.add_seals(Seal.GROW), victim
    )
    assert fcntl.fcntl(victim, F_GET_SEALS) == 0
    os.close(victim)


def test_a_segment_that_grows_while_another_thread_closes_it_never_lengthens_a_foreign_file(tmp_path):
    victim = os.open(tmp_path / "victim", os.O_RDWR | os.O_CREAT)
    os.ftruncate(victim, PAGE)
    use_while_another_thread_closes(
        lambda: SharedMemory.memfd(PAGE), lambda segment: segment.resize(2 * PAGE), victim
    )
    assert os.fstat(victim).st_size == PAGE
    os.close(victim)
