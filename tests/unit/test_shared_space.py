"""Promises about space: it is there, or an error says so; no signal, no kill."""

import contextlib
import errno
import os
import resource
import signal
from pathlib import Path

import pytest

import mmkit
from mmkit import SharedMemory
from mmkit.shared import reserve
from segment_tools import behind_a_small_tmpfs, mount_over_dev_shm, names, needs_mounts
from support import (
    PAGE,
    SANITIZED,
    exit_signal,
    in_child,
    sanitized,
)

LIMIT = 64 << 20


@pytest.fixture
def limited_group():
    """A control group of 64 MiB; its procs file."""
    for folder, limit in (("/sys/fs/cgroup/memory", "limit_in_bytes"), ("/sys/fs/cgroup", "max")):
        group = Path(folder) / f"mmkit-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                (group / f"memory.{limit}").write_text(str(LIMIT))
                with contextlib.suppress(OSError):
                    (group / "memory.swap.max").write_text("0")
                yield group / "cgroup.procs"
                return
            finally:
                group.rmdir()
    pytest.skip("no control group of memory can be made here")


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's shadow memory counts too")
def test_a_further_writer_that_the_control_group_cannot_hold_is_told_so_and_the_channel_goes_on(
    name, limited_group
):
    def write():
        limited_group.write_text(str(os.getpid()))
        with pytest.raises(mmkit.OutOfMemory, match="control group's limit in .*mmkit-test"):
            mmkit.Channel(name).send(b"one lane too many")

    with mmkit.Channel(name, 2 * LIMIT, create=True) as channel:
        channel.send(b"before")
        in_child(write)
        channel.send(b"after")
        assert [channel.recv(0), channel.recv(0)] == [b"before", b"after"]


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's shadow memory counts too")
def test_more_than_the_control_group_may_have_is_an_error_and_not_a_kill(limited_group):
    def make(how):
        limited_group.write_text(str(os.getpid()))
        how()

    def with_the_c_librarys_call():
        fd = os.memfd_create("x")
        os.posix_fallocate(fd, 0, 2 * LIMIT)

    def with_mmkit():
        before = names()
        for segment in (
            lambda: SharedMemory(create=True, size=2 * LIMIT),
            lambda: SharedMemory.memfd(2 * LIMIT),
            lambda: mmkit.SystemVMemory(size=2 * LIMIT, create=True),
            lambda: mmkit.Channel("mmkit-test-too-large", 2 * LIMIT, create=True),
        ):
            with pytest.raises(
                mmkit.OutOfMemory, match="control group's limit in .*mmkit-test.* leaves .* MiB"
            ):
                segment()
        with SharedMemory(create=True, size=LIMIT // 4) as segment:
            with pytest.raises(mmkit.OutOfMemory, match="reserve=False"):
                segment.resize(2 * LIMIT)
            segment.resize(2 * LIMIT, reserve=False)
        assert names() == before

    assert exit_signal(lambda: make(with_the_c_librarys_call)) == signal.SIGKILL
    in_child(lambda: make(with_mmkit))


def test_what_the_group_could_drop_counts_as_room(tmp_path):
    for name, value in {"max": LIMIT, "current": LIMIT - 4096, "swap.max": 0, "swap.current": 0}.items():
        (tmp_path / f"memory.{name}").write_text(f"{value}\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 10000\nactive_file 20000\n")
    group = reserve._group(str(tmp_path), is_second=True)
    assert group.room(1) == 4096
    assert group.room(1 << 20) == 4096 + 30000
    (tmp_path / "memory.max").write_text("max\n")
    assert group.room(1 << 20) is None


@pytest.mark.parametrize(
    ("mount", "root", "path", "folders"),
    [
        ("/sys/fs/cgroup", "/", "/a/b", ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]),
        ("/sys/fs/cgroup", "/", "/", ["/sys/fs/cgroup"]),
        ("/c", "/docker/1", "/docker/1", ["/c"]),
        ("/c", "/docker/1", "/docker/1/x", ["/c/x", "/c"]),
        ("/c", "/docker/1", "/docker/12", ["/c/docker/12", "/c/docker", "/c"]),
        ("/c", "/", "/../x", ["/c/x", "/c"]),
    ],
)
def test_a_groups_folders_are_found_from_where_its_hierarchy_is_mounted(mount, root, path, folders):
    assert list(reserve._chain(mount, root, path)) == folders


def test_more_than_the_machine_has_is_an_error():
    before = names()
    with pytest.raises(mmkit.OutOfMemory, match="MemAvailable"):
        SharedMemory(create=True, size=1 << 50)
    with pytest.raises(mmkit.OutOfMemory, match="MemAvailable"):
        SharedMemory.memfd(1 << 50)
    assert names() == before


@needs_mounts
def test_a_segment_that_would_nearly_fit_takes_nothing_from_a_full_dev_shm():
    def fill():
        with SharedMemory(create=True, size=4096) as segment:
            with pytest.raises(mmkit.SyscallError):
                segment.resize(20 << 20)
            room = os.statvfs("/dev/shm")
            assert room.f_bavail * room.f_frsize == (16 << 20) - 4096
            assert segment.size == os.fstat(segment.fd).st_size == 4096

    in_child(behind_a_small_tmpfs(fill, "16m"))


@needs_mounts
def test_a_dev_shm_without_a_limit_is_no_full_one():
    def make():
        mount_over_dev_shm("tmpfs", "size=0,mode=1777")
        with SharedMemory(create=True, size=8 << 20) as segment:
            segment.resize(20 << 20)

    in_child(make)


# ---- space -------------------------------------------------------------------------------------------


@needs_mounts
def test_a_full_dev_shm_is_an_error_at_creation_and_leaves_nothing(name):
    def fill():
        with pytest.raises(mmkit.SyscallError, match=r"--shm-size") as caught:
            SharedMemory(name, create=True, size=1 << 20)
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir("/dev/shm") == []
        with SharedMemory(name, create=True, size=100 << 10) as segment:
            with pytest.raises(mmkit.SyscallError) as caught:
                segment.resize(1 << 20)
            assert caught.value.errno == errno.ENOSPC
            assert os.fstat(segment.fd).st_size == segment.size == 100 << 10
            segment.buf[:] = bytes(100 << 10)

    in_child(behind_a_small_tmpfs(fill, "256k"))


@needs_mounts
def test_sparse_space_is_asked_for_by_name_and_a_guarded_access_tells_when_it_is_missing(name):
    def overfill():
        with SharedMemory(name, create=True, size=1 << 20, reserve=False) as segment:
            assert os.fstat(segment.fd).st_blocks == 0
            with pytest.raises(mmkit.MemoryFault, match="no memory"):
                segment.region[:] = bytes(1 << 20)

    in_child(behind_a_small_tmpfs(overfill, "256k"))


def test_space_is_taken_at_creation_in_full(name):
    with SharedMemory(name, create=True, size=10 * PAGE + 1) as segment:
        assert os.fstat(segment.fd).st_blocks * 512 == 11 * PAGE
        segment.resize(20 * PAGE)
        assert os.fstat(segment.fd).st_blocks * 512 == 20 * PAGE
    with SharedMemory(name, create=True, size=10 * PAGE, reserve=False) as segment:
        segment.resize(20 * PAGE, reserve=False)
        assert os.fstat(segment.fd).st_blocks * 512 == PAGE


def test_a_timer_does_not_starve_the_taking_of_much_space(name):
    ticks = []
    before = signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        with SharedMemory(name, create=True, size=128 << 20):
            pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ticks


def test_a_limit_on_file_size_is_an_error_and_leaves_nothing(name):
    def make():
        with pytest.raises(mmkit.SyscallError, match="RLIMIT_FSIZE") as caught:
            SharedMemory(name, create=True, size=2 << 20)
        assert caught.value.errno == errno.EFBIG
        with SharedMemory(name, create=True, size=1 << 20) as segment:
            with pytest.raises(mmkit.SyscallError, match="RLIMIT_FSIZE"):
                segment.resize(2 << 20)
            assert segment.size == 1 << 20

    in_child(make, limits={resource.RLIMIT_FSIZE: 1 << 20})
    assert name not in names()


@sanitized
def test_a_limit_on_address_space_is_an_error_and_leaves_nothing(name):
    def make():
        usage = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        resource.setrlimit(resource.RLIMIT_AS, (usage + (32 << 20), resource.RLIM_INFINITY))
        with pytest.raises(mmkit.OutOfMemory, match="RLIMIT_AS"):
            SharedMemory(name, create=True, size=64 << 20)
        with pytest.raises(mmkit.OutOfMemory, match="RLIMIT_AS"):
            SharedMemory(f"{name}-large")
        return len(os.listdir("/proc/self/fd"))

    with SharedMemory(f"{name}-large", create=True, size=64 << 20, reserve=False):
        in_child(make)
        assert f"{name}-large" in names()
    assert name not in names()


def test_too_many_open_files_is_an_error_and_leaves_nothing(name):
    def make():
        with pytest.raises(mmkit.SyscallError) as caught:
            SharedMemory(name, create=True, size=1)
        assert caught.value.errno == errno.EMFILE

    in_child(make, limits={resource.RLIMIT_NOFILE: 3})
    assert name not in names()
