"""Promises of `Segment.contents`: what stands in a segment, told by a look that trusts nothing."""

import fcntl
import os
import signal
import stat
import struct
from contextlib import ExitStack, closing

import pytest
from click.testing import CliRunner

from mmkit import Channel, Heap, Pool, Region, SharedMemory, SystemVMemory, shared
from mmkit.cli import main
from mmkit.shared.contents import look_into
from segment_tools import another_process, found, one
from support import NOBODY, PAGE, in_child, needs_root

NAMED = {
    "lock": lambda name: shared.Lock(name, create=True),
    "rlock": lambda name: shared.RLock(name, create=True),
    "condition": lambda name: shared.Condition(name, create=True),
    "semaphore": lambda name: shared.Semaphore(name, create=True),
    "event": lambda name: shared.Event(name, create=True),
    "barrier": lambda name: shared.Barrier(name, create=True),
    "channel": lambda name: Channel(name, 4096, create=True),
    "array": lambda name: shared.array(name, (3, 5), "i2", create=True),
    "": lambda name: SharedMemory(name, create=True, size=PAGE),
}
IN_A_REGION = {"heap": Heap, "pool": lambda region: Pool(64, 10, source=region)}
ARRAY_END = struct.Struct("<8sIIQII")


def identity(path):
    status = os.stat(path, follow_symlinks=False)
    return status.st_dev, status.st_ino


def look(name):
    path = f"/dev/shm/{name}"
    return look_into(path, identity(path))


def put(name, content, length=None):
    with open(f"/dev/shm/{name}", "wb") as file:
        file.write(content)
        file.truncate(length or len(content))


def line_of(name):
    lines = CliRunner().invoke(main, ["shm", "list"]).output.splitlines()
    return next(line.split() for line in lines if name in line.split())


@pytest.mark.parametrize("contents", NAMED)
def test_what_mmkit_has_put_into_a_segment_is_told(name, contents):
    made = NAMED[contents](name)
    assert one(kind="posix", name=name).contents == contents
    assert line_of(name)[:3] == ["posix", name, contents or "-"]
    if contents == "array":
        made.segment.unlink()
    else:
        made.unlink()
        made.close()


@pytest.mark.parametrize("contents", IN_A_REGION)
def test_so_is_what_stands_in_its_region(name, contents):
    with SharedMemory(name, create=True, size=1 << 20) as segment, IN_A_REGION[contents](segment.region):
        assert one(kind="posix", name=name).contents == contents


def test_so_is_what_stands_in_a_memfd(name):
    with SharedMemory.memfd(1 << 20, name=name) as segment, Heap(segment.region):
        assert one(kind="memfd", name=name).contents == "heap"


@needs_root
def test_so_is_what_has_neither_name_nor_descriptor_for_who_may_follow_map_files():
    with ExitStack() as scope:
        segment = scope.enter_context(SystemVMemory(size=1 << 20, create=True))
        region = scope.enter_context(Region.anonymous(1 << 20, shared=True))
        for each in (segment.region, region):
            scope.enter_context(Heap(each))
        assert one(kind="systemv", id=segment.id).contents == "heap"
        assert "heap" in {each.contents for each in found(kind="anonymous", size=1 << 20)}


def test_a_system_v_segment_that_nobody_has_is_not_attached_to_look_at_it():
    segment = SystemVMemory(size=PAGE, create=True)
    try:
        segment.detach()
        before = segment.stat()
        assert one(kind="systemv", id=segment.id).contents is None
        assert segment.stat() == before
    finally:
        segment.remove()


@needs_root
def test_what_a_user_may_not_read_is_unknown(name):
    def seen():
        return one(kind="posix", name=name).contents, line_of(name)[2]

    with Channel(name, 4096, create=True):
        assert in_child(seen, user=NOBODY) == (None, "?")
    with Channel(name, 4096, create=True, mode=0o644):
        assert in_child(seen, user=NOBODY) == ("channel", "channel")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"mmkchan",
        b"mmkchan\n",
        b"mmk-sync" + struct.pack("=HH", 1, 0),
        b"mmk-sync" + struct.pack("=HH", 1, 7),
        b"mmk-sync" + struct.pack("=HH", 1, 0xFFFF),
        b"new " * 100,
        b"mmkarray",
        ARRAY_END.pack(b"mmkarray", 1, 0, 1, 0, 0),
        ARRAY_END.pack(b"mmkarray", 1, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0, 0),
        bytes(64) + ARRAY_END.pack(b"mmkarray", 1, 0, 0, 0, 0),
        bytes(range(256)) * 256,
    ],
    ids=repr,
)
def test_what_only_looks_like_it_is_nothing(name, content):
    put(name, content)
    assert look(name) == ""


def test_a_look_takes_no_page_of_a_file_that_has_none(name):
    put(name, b"", 1 << 40)
    assert look(name) == ""
    assert os.stat(f"/dev/shm/{name}").st_blocks == 0


def test_what_is_no_regular_file_is_not_opened(name):
    path = f"/dev/shm/{name}"
    for make in (
        lambda: os.mkfifo(path),
        lambda: os.symlink("/etc/passwd", path),
        lambda: os.symlink(path, path),
    ):
        make()
        assert look(name) is None
        os.unlink(path)
    os.mkdir(path)
    assert look(name) is None
    os.rmdir(path)


def test_a_link_is_not_followed_even_to_the_segment(name):
    put(name, b"mmkchan\n" + bytes(100))
    link = f"/dev/shm/{name}-link"
    os.symlink(name, link)
    assert look_into(link, identity(f"/dev/shm/{name}")) is None


@needs_root
def test_a_device_is_not_opened(name):
    path = f"/dev/shm/{name}"
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("needs CAP_MKNOD")
    assert look(name) is None


def test_what_has_the_name_since_is_not_looked_at(name):
    put(name, b"mmkchan\n" + bytes(100))
    path = f"/dev/shm/{name}"
    before = identity(path)
    assert look_into(path, before) == "channel"
    put(f"{name}-other", b"mmkpool\0" + bytes(100))
    os.rename(f"{path}-other", path)
    assert look_into(path, before) is None
    os.unlink(path)
    assert look_into(path, before) is None


def test_nobody_is_made_to_wait_by_a_lease(name):
    path = f"/dev/shm/{name}"
    put(name, b"mmkchan\n" + bytes(100))

    def lease():
        fd = os.open(path, os.O_RDONLY)
        # Who opens it has the kernel send SIGIO, which kills.
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return fd

    with another_process(lease):
        assert look(name) is None
        assert one(kind="posix", name=name).contents is None
    assert look(name) == "channel"


def test_a_look_leaves_no_descriptor_open(name):
    with closing(Channel(name, 4096, create=True)) as channel:
        before = os.listdir("/proc/self/fd")
        assert look(name) == "channel"
        assert look_into(f"/dev/shm/{name}", (0, 0)) is None
        assert os.listdir("/proc/self/fd") == before
        channel.unlink()
