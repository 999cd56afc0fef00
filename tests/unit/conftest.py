"""Fixtures of the unit tests."""

import contextlib
import os
import signal
import subprocess

import pytest

from channels import CAPACITY
from meeting import fresh_name
from mmkit import Channel, Region, linux
from mmkit.flags import ShmCommand
from segment_tools import KEY
from support import PAGE


@pytest.fixture
def region():
    with Region.anonymous(4 * PAGE) as region:
        yield region


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (4 * PAGE // 256))
    return path


@pytest.fixture
def child():
    """A process that sleeps, so that its map stays as it is."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        running.stdin.write(b"ready\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"ready\n"
        yield running.pid
        running.stdin.close()


@pytest.fixture
def stopped(child):
    """A process that is stopped, so that nothing of it changes."""
    os.kill(child, signal.SIGSTOP)
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT)
    yield child
    os.kill(child, signal.SIGKILL)


@pytest.fixture
def name():
    """A name for shared memory, whose segments are gone afterwards; tests may add to it."""
    with fresh_name() as name:
        yield name
    for left in os.listdir("/dev/shm"):
        if left.startswith(name):
            os.unlink(f"/dev/shm/{left}")


@pytest.fixture
def channel(name):
    with Channel(name, CAPACITY, create=True) as channel:
        yield channel


@pytest.fixture(params=[False, True], ids=["many", "single"])
def any_channel(request, name):
    with Channel(name, CAPACITY, create=True, single=request.param) as channel:
        yield channel


@pytest.fixture
def no_system_v_segment_stays():
    yield
    with contextlib.suppress(OSError):
        linux.shmctl(linux.shmget(KEY, 0, 0), ShmCommand.RMID)
