"""Promises of `mmkit.SharedMemory`: making, attaching, permissions, growing."""

import multiprocessing.shared_memory as standard
import os
import socket
import stat
from pathlib import Path

import pytest

import mmkit
from mmkit import SharedMemory
from segment_tools import names
from support import NOBODY, PAGE, in_child, needs_root, run

# ---- making, attaching --------------------------------------------------------------------------------


def test_what_one_writes_the_other_reads(name):
    with SharedMemory(name, create=True, size=100) as ours, SharedMemory(name) as theirs:
        ours.buf[:5] = b"hello"
        assert bytes(theirs.buf[:5]) == b"hello"
        theirs.buf[99] = 7
        assert ours.buf[99] == 7
        assert ours.size == theirs.size == 100


def test_data_begins_at_offset_0_and_there_is_nothing_else(name):
    with SharedMemory(name, create=True, size=10) as segment:
        segment.buf[:] = b"0123456789"
        assert Path(f"/dev/shm/{name}").read_bytes() == b"0123456789"


def test_the_standard_module_and_mmkit_attach_what_the_other_made(name):
    code = f"""
from multiprocessing import shared_memory, resource_tracker
segment = shared_memory.SharedMemory({name!r})
resource_tracker.unregister(segment._name, 'shared_memory')
assert bytes(segment.buf[:5]) == b'hello' and segment.size == 10
segment.buf[:5] = b'there'
segment.close()
"""
    with SharedMemory(name, create=True, size=10) as segment:
        segment.buf[:5] = b"hello"
        assert run(code).returncode == 0
        assert bytes(segment.buf[:5]) == b"there"
    theirs = standard.SharedMemory(name, create=True, size=10)
    try:
        theirs.buf[:5] = b"hello"
        with SharedMemory(name) as segment:
            assert bytes(segment.buf[:5]) == b"hello"
            assert not segment.owned
        assert name in names()
    finally:
        theirs.close()
        theirs.unlink()


def test_a_name_is_made_up_when_none_is_given():
    with SharedMemory(create=True, size=1) as one, SharedMemory(create=True, size=1) as two:
        assert one.name != two.name
        assert {one.name, two.name} <= names()


def test_names_appear_as_given_and_a_leading_slash_is_the_c_librarys(name):
    for given in (
        name,
        f"/{name}",
        f"{name} with spaces",
        f"{name}-ü",
        f"{name}\n\x1b[31m",
        f"{name}\udcff",
        "x" * 255,
    ):
        with SharedMemory(given, create=True, size=1) as segment:
            assert segment.name == given.removeprefix("/")
            assert segment.name in names()
            SharedMemory(given).close()


@pytest.mark.parametrize(
    "bad", ["", "/", ".", "..", "a/b", "//a", "/a/", "a\0b", "x" * 256, "ü" * 128, "\ud800", ".mmkit-x"]
)
def test_what_can_be_no_name_is_refused_before_anything_is_made(bad):
    before = names()
    with pytest.raises(ValueError, match="cannot name a segment"):
        SharedMemory(bad, create=True, size=1)
    with pytest.raises(ValueError, match="cannot name a segment"):
        SharedMemory(bad)
    assert names() == before


@pytest.mark.parametrize("bad", [7, b"bytes", 1.5])
def test_a_name_is_a_str(bad):
    with pytest.raises(TypeError, match="is a str"):
        SharedMemory(bad)


def test_a_name_that_is_taken_is_an_error_and_what_has_it_is_left_alone(name):
    with SharedMemory(name, create=True, size=3) as segment:
        segment.buf[:] = b"abc"
        with pytest.raises(FileExistsError, match="mmkit shm remove"):
            SharedMemory(name, create=True, size=3)
        assert bytes(segment.buf) == b"abc"


def test_attaching_what_is_not_there_says_so(name):
    with pytest.raises(FileNotFoundError, match="mmkit shm list") as caught:
        SharedMemory(name)
    assert isinstance(caught.value, mmkit.SyscallError)
    assert caught.value.call == f"shm_open({name!r}, 'O_RDWR')"


@pytest.mark.parametrize("size", [0, -1])
def test_a_new_segment_needs_a_size(name, size):
    with pytest.raises(ValueError, match="size must be at least one byte"):
        SharedMemory(name, create=True, size=size)
    with pytest.raises(TypeError, match=r"size must be an int, not 1\.0$"):
        SharedMemory(name, create=True, size=1.0)
    assert name not in names()


def test_arguments_that_make_no_sense_are_refused(name):
    with pytest.raises(ValueError, match="nothing to attach"):
        SharedMemory()
    with pytest.raises(ValueError, match="reading only makes sense"):
        SharedMemory(name, create=True, size=1, readonly=True)
    with pytest.raises(ValueError, match="nine permission bits"):
        SharedMemory(name, create=True, size=1, mode=0o4600)
    with pytest.raises(ValueError, match="negative"):
        SharedMemory(name, size=-1)
    with pytest.raises(mmkit.OutOfMemory):
        SharedMemory(name, create=True, size=1 << 64)
    assert name not in names()


def test_a_segment_smaller_than_asked_for_is_refused_and_stays(name):
    with SharedMemory(name, create=True, size=10):
        with pytest.raises(ValueError, match="fewer than the 11 B asked for"):
            SharedMemory(name, size=11)
        SharedMemory(name, size=10).close()
        assert name in names()


def test_a_segment_without_bytes_is_told_from_a_complete_one_and_stays(name):
    os.close(os.open(f"/dev/shm/{name}", os.O_CREAT | os.O_EXCL))
    with pytest.raises(mmkit.Error, match="has not given it a length yet, or died"):
        SharedMemory(name)
    assert name in names()


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "link", "dangling link"])
def test_what_is_no_shared_memory_is_refused_and_stays(name, kind, tmp_path):
    path = f"/dev/shm/{name}"
    if kind == "folder":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
    else:
        target = tmp_path / "target"
        if kind == "link":
            target.write_bytes(b"precious")
        os.symlink(target, path)
    try:
        for readonly in (False, True):
            with pytest.raises(mmkit.Error):
                SharedMemory(name, readonly=readonly)
        with pytest.raises(FileExistsError):
            SharedMemory(name, create=True, size=1)
        assert name in names()
    finally:
        if kind == "folder":
            os.rmdir(path)


# ---- mode, reading only -----------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_the_mode_is_exact_whatever_the_umask(name, umask):
    before = os.umask(umask)
    try:
        with SharedMemory(name, create=True, size=1, mode=0o664) as segment:
            assert stat.S_IMODE(os.fstat(segment.fd).st_mode) == 0o664
        with SharedMemory(name, create=True, size=1) as segment:
            assert stat.S_IMODE(os.fstat(segment.fd).st_mode) == 0o600
    finally:
        os.umask(before)


def test_what_is_attached_for_reading_cannot_be_written(name):
    with SharedMemory(name, create=True, size=10) as ours, SharedMemory(name, readonly=True) as theirs:
        ours.buf[0] = 7
        assert theirs.buf.readonly
        assert theirs.buf[0] == 7
        with pytest.raises(TypeError):
            theirs.buf[0] = 1
        with pytest.raises(mmkit.MemoryFault):
            theirs.region[0] = 1
        with pytest.raises(PermissionError):
            theirs.region.protect(mmkit.Prot.READ | mmkit.Prot.WRITE)


@needs_root
def test_another_user_gets_what_the_mode_gives(name):
    def attach():
        with pytest.raises(PermissionError, match="readonly=True"):
            SharedMemory(name)
        with SharedMemory(name, readonly=True) as theirs:
            assert theirs.buf[0] == 7
        with pytest.raises(PermissionError, match="Only its owner"):
            SharedMemory(name, readonly=True).unlink()

    with SharedMemory(name, create=True, size=10, mode=0o644) as ours:
        ours.buf[0] = 7
        in_child(attach, user=NOBODY)
        assert name in names()
    with SharedMemory(name, create=True, size=10):

        def refused():
            for readonly in (False, True):
                with pytest.raises(PermissionError):
                    SharedMemory(name, readonly=readonly)

        in_child(refused, user=NOBODY)


@needs_root
def test_an_ordinary_user_makes_attaches_and_removes(name):
    def everything():
        with SharedMemory(name, create=True, size=10) as ours, SharedMemory(name) as theirs:
            ours.buf[0] = 7
            return theirs.buf[0], os.stat(f"/dev/shm/{name}").st_uid

    assert in_child(everything, user=NOBODY) == (7, NOBODY)
    assert name not in names()


# ---- growing -----------------------------------------------------------------------------------------


def test_a_segment_grows_for_all_and_never_becomes_shorter(name):
    with SharedMemory(name, create=True, size=10) as ours, SharedMemory(name) as theirs:
        ours.buf[:] = b"0123456789"
        ours.resize(3 * PAGE + 5)
        ours.buf[-1] = 7
        assert (ours.size, theirs.size) == (3 * PAGE + 5, 10)
        assert bytes(theirs.buf) == b"0123456789"
        theirs.resize()
        assert (theirs.size, theirs.buf[-1]) == (3 * PAGE + 5, 7)
        assert bytes(theirs.buf[:10]) == b"0123456789"
        with pytest.raises(ValueError, match="never becomes shorter"):
            theirs.resize(10)
        assert os.fstat(ours.fd).st_size == 3 * PAGE + 5


def test_what_another_grew_is_not_cut_by_growing_less(name):
    with SharedMemory(name, create=True, size=10) as ours, SharedMemory(name) as theirs:
        theirs.resize(10 * PAGE)
        with pytest.raises(ValueError, match="never becomes shorter"):
            ours.resize(2 * PAGE)
        assert ours.size == 10
        ours.resize()
        assert ours.size == 10 * PAGE


def test_a_reader_follows_growth_and_causes_none(name):
    with SharedMemory(name, create=True, size=10) as ours, SharedMemory(name, readonly=True) as reader:
        with pytest.raises(mmkit.Error, match="reading only"):
            reader.resize(100)
        ours.resize(PAGE + 1)
        reader.resize()
        assert reader.size == PAGE + 1
        assert reader.buf.readonly
