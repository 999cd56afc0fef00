"""Promises about space: a control group's limit is looked at before the kernel would kill."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

import mmkit
from mmkit import SharedMemory
from mmkit.shared import reserve
from segment_tools import behind_a_small_tmpfs, mount_over_dev_shm, names, needs_mounts
from support import SANITIZED, exit_signal, in_child

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
