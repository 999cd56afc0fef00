"""Where locks and the like cannot stand, and where they can: what is there already, places in regions."""

from __future__ import annotations

import errno
import os
import signal
import struct
from pathlib import Path

import pytest

from meeting import KINDS, Child, each_kind
from mmkit import ClosedError, Error, Prot, Region, SyscallError
from mmkit.shared import Barrier, Event, Lock, Semaphore
from segment_tools import hide_proc_sys, needs_mounts
from support import PAGE, in_child, needs_root


@pytest.fixture
def region():
    region = Region.anonymous(4 * PAGE, shared=True)
    yield region
    region.close()


# ---- what is not a lock -----------------------------------------------------------------------------


@each_kind
def test_what_is_of_another_kind_is_refused(cls, name):
    made = cls(name, create=True)
    for other in KINDS:
        if other is not cls:
            with pytest.raises(Error, match="something else|another kind"):
                other(name)
    made.close()
    os.truncate(f"/dev/shm/{name}", 4 * PAGE)
    for other in KINDS:
        if other is not cls:
            with pytest.raises(Error, match="another kind"):
                other(name)


@pytest.mark.parametrize("cls", [Semaphore, Barrier], ids=lambda cls: cls.__name__)
def test_a_number_where_create_stands_is_refused_and_nothing_made(cls, name, region):
    with pytest.raises(TypeError, match="create is True or False, not 3"):
        cls(name, 3)
    with pytest.raises(TypeError, match="create is True or False, not 3"):
        cls.at(region, 0, create=3)
    assert not Path("/dev/shm", name).exists()
    with pytest.raises(Error, match="nothing of the kind is there"):
        cls.at(region, 0)


def test_what_is_no_lock_at_all_is_refused(name):
    path = Path("/dev/shm", name)
    path.write_bytes(b"x" * PAGE)
    with pytest.raises(Error, match="something else is there"):
        Lock(name)
    path.write_bytes(bytes(PAGE))
    with pytest.raises(Error, match="nothing of the kind is there"):
        Lock(name)
    path.write_bytes(b"x")
    with pytest.raises(Error, match="something else is there, a file of 1 bytes"):
        Lock(name)
    assert path.exists()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Error, match="no regular file"):
        Lock(name)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(SyscallError) as refusal:
        Lock(name)
    assert refusal.value.errno == errno.ELOOP


@pytest.mark.parametrize(
    ("offset", "layout", "value", "why"),
    [
        (8, "H", 99, "a version"),
        (12, "I", 7, "a version"),
        (16, "Q", 1, "another PID namespace"),
        (24, "Q", 1, "started last"),
        (40, "I", 0, "another libc"),
    ],
)
def test_what_this_process_cannot_use_is_refused_by_its_reason(name, offset, layout, value, why):
    Lock(name, create=True).close()
    with open(f"/dev/shm/{name}", "r+b") as file:
        file.seek(offset)
        file.write(struct.pack(layout, value))
    with pytest.raises(Error, match=why):
        Lock(name)


@needs_mounts
def test_where_the_boot_cannot_be_told_a_lock_is_refused_and_nothing_left(name):
    def make_and_attach():
        hide_proc_sys()
        with pytest.raises(SyscallError, match="boot_id"):
            Event(name)
        with pytest.raises(SyscallError, match="boot_id"):
            Lock(f"{name}-new", create=True)

    with Event(name, create=True):
        in_child(make_and_attach)
        assert {left for left in os.listdir("/dev/shm") if left.startswith(name)} == {name}


@needs_root
@pytest.mark.parametrize(
    "kind", [["--pid", "--mount-proc"], ["--time", "--boottime", "100000"]], ids=["pid", "time"]
)
def test_a_process_of_another_namespace_is_refused(kind, name):
    import subprocess
    import sys

    lock = Lock(name, create=True)
    code = f"import mmkit; mmkit.shared.Lock({name!r})"
    done = subprocess.run(
        ["unshare", *kind, "--fork", sys.executable, "-c", code],
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert "another PID namespace" in done.stderr
    lock.close()


# ---- places in regions ------------------------------------------------------------------------------


@each_kind
def test_it_stands_at_a_place_in_a_region_until_unlinked(cls, region):
    made = cls.at(region, 64, create=True)
    found = cls.at(region, 64)
    with pytest.raises(FileExistsError):
        cls.at(region, 64, create=True)
    found.close()
    made.unlink()
    assert made.closed
    with pytest.raises(Error, match="nothing of the kind is there"):
        cls.at(region, 64)
    cls.at(region, 64, create=True).close()


@each_kind
def test_a_place_that_cannot_be_is_refused(cls, region):
    for offset in (1, 8, 63, PAGE + 32):
        with pytest.raises(ValueError, match="multiple of 64"):
            cls.at(region, offset, create=True)
    for offset in (4 * PAGE, 4 * PAGE - 64, 1 << 40):
        with pytest.raises(ValueError, match="not inside"):
            cls.at(region, offset, create=True)
    with pytest.raises(OverflowError):
        cls.at(region, -64, create=True)
    with pytest.raises(TypeError):
        cls.at(bytearray(PAGE), 0, create=True)
    assert region[:] == bytes(4 * PAGE)


def test_memory_that_cannot_carry_one_is_refused(tmp_path):
    with Region.anonymous(PAGE) as private, pytest.raises(ValueError, match="private"):
        Lock.at(private, 0, create=True)
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with Region.file(path) as readonly, pytest.raises(ValueError, match="cannot be written"):
        Lock.at(readonly, 0)
    with Region.file(path, mode="c") as copied, pytest.raises(ValueError, match="private"):
        Lock.at(copied, 0, create=True)
    with Region.memfd(PAGE) as memory:
        memory.protect(Prot.READ)
        with pytest.raises(ValueError, match="cannot be written"):
            Lock.at(memory, 0, create=True)
    with pytest.raises(ClosedError):
        Lock.at(memory, 0, create=True)


def test_bytes_of_somebody_elses_are_not_overwritten(region):
    region[:8] = b"contents"
    with pytest.raises(Error, match="something else is there"):
        Lock.at(region, 0, create=True)
    assert region[:8] == b"contents"


def test_a_lock_may_stand_in_a_file_that_is_mapped_from_its_middle(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * PAGE))
    with Region.file(path, offset=PAGE + 32, mode="r+") as middle, Region.file(path, mode="r+") as whole:
        with pytest.raises(ValueError, match="less 32"):
            Lock.at(middle, 64, create=True)
        made = Lock.at(middle, 32, create=True)
        found = Lock.at(whole, PAGE + 64)
        with made:
            assert in_child(lambda: found.acquire(0)) is False
        made.close()
        found.close()


def test_a_maker_that_died_half_way_is_found_out(region):
    child = Child(lambda say: (say(), signal.pause()))
    child.said()
    region[:8] = struct.pack("I4s", child.pid, b"new ")
    with pytest.raises(SyscallError, match="at this moment"):
        Lock.at(region, 0)
    child.kill()
    with pytest.raises(Error, match="died before it was done"):
        Lock.at(region, 0)
    Lock.at(region, 0, create=True).close()


def test_an_open_lock_pins_its_part_of_the_region(region):
    lock = Lock.at(region, 0, create=True)
    for take_away in (
        region.close,
        lambda: region.protect(Prot.READ, 0, PAGE),
        lambda: region.discard(0, PAGE),
        lambda: region.punch(0, PAGE),
        lambda: region.guard(0, PAGE),
    ):
        with pytest.raises((BufferError, Error)):
            take_away()
    with lock:
        pass
    lock.close()
    region.protect(Prot.READ, 0, PAGE)
