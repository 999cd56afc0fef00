"""Channels: what cannot be is refused, with a reason, and nothing is left behind."""

import contextlib
import errno
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mmkit
from channels import CAPACITY
from mmkit.shared import Channel
from support import in_child, needs_root, sanitized

HEADER = 4096

# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["a/b", "", ".", "..", "a\0b", "x" * 300])
def test_what_cannot_be_a_name_is_refused(bad):
    for create in (False, True):
        with pytest.raises(ValueError, match="cannot name"):
            Channel(bad, 4096 if create else None, create=create)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_refused_and_says_what_to_send(name, protocol):
    with Channel(name, 4096, create=True) as channel, pytest.raises(TypeError, match="send its name"):
        pickle.dumps(channel, protocol)


@pytest.mark.parametrize("capacity", [0, 1, 4095, -1, (4 << 30) + 1, 1 << 70])
def test_a_capacity_out_of_bounds_is_refused_and_nothing_made(name, capacity):
    with pytest.raises(ValueError, match="4 KiB to 4 GiB"):
        Channel(name, capacity, create=True)
    assert not os.path.exists(f"/dev/shm/{name}")


def test_arguments_that_do_not_go_together_are_refused(name):
    with pytest.raises(ValueError, match="needs a capacity"):
        Channel(name, create=True)
    for makers in ({"capacity": 4096}, {"delivery": "at-most-once"}, {"single": True}, {"persist": True}):
        with pytest.raises(ValueError, match=f"{next(iter(makers))}: for create=True only"):
            Channel(name, **makers)
    for wrong in ({"delivery": "twice"}, {"spin": -1}, {"spin": 2}, {"mode": 0o1777}):
        with pytest.raises(ValueError):
            Channel(name, 4096, create=True, **wrong)
    assert not os.path.exists(f"/dev/shm/{name}")


def test_a_name_that_is_taken_and_one_that_is_not(name, channel):
    with pytest.raises(FileExistsError, match=name):
        Channel(name, CAPACITY, create=True)
    channel.send(b"still there")
    assert channel.recv(0) == b"still there"
    with pytest.raises(FileNotFoundError):
        Channel(name + "_not")


@pytest.mark.parametrize("size", [0, 100, 4096, 1 << 20])
def test_something_else_under_the_name_is_refused_and_left_alone(name, size):
    with open(f"/dev/shm/{name}", "wb") as other:
        other.write(b"\1" * size)
    with pytest.raises(mmkit.CorruptError, match="something else"):
        Channel(name)
    assert Path(f"/dev/shm/{name}").read_bytes() == b"\1" * size


def test_a_pipe_or_a_link_under_the_name_is_refused(name):
    os.mkfifo(f"/dev/shm/{name}")
    with pytest.raises(mmkit.CorruptError):
        Channel(name)
    os.unlink(f"/dev/shm/{name}")
    os.symlink("/dev/zero", f"/dev/shm/{name}")
    with pytest.raises(OSError, match="symbolic"):
        Channel(name)


def patch(name, offset, data):
    with open(f"/dev/shm/{name}", "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("offset", "data", "error", "words"),
    [
        (0, b"mmkchan!", mmkit.CorruptError, "something else"),
        (8, struct.pack("I", 2), mmkit.CorruptError, "version"),
        (12, struct.pack("I", 4), mmkit.CorruptError, "version"),
        (16, struct.pack("Q", CAPACITY * 2), mmkit.CorruptError, "damaged"),
        (24, struct.pack("Q", 4096), mmkit.CorruptError, "damaged"),
        (32, struct.pack("Q", 1), mmkit.Error, "namespace"),
        (64, struct.pack("Q", 2), mmkit.CorruptError, "damaged"),
        (64, struct.pack("Q", 2**63), mmkit.CorruptError, "damaged"),
    ],
)
def test_a_header_that_is_not_understood_is_refused(name, channel, offset, data, error, words):
    patch(name, offset, data)
    with pytest.raises(error, match=words):
        Channel(name)


def test_a_shortened_file_is_refused(name, channel):
    os.truncate(f"/dev/shm/{name}", HEADER)
    with pytest.raises(mmkit.CorruptError):
        Channel(name)
    os.truncate(f"/dev/shm/{name}", HEADER + 4096 * 30)


def test_damaged_contents_are_an_error_and_not_a_crash(name, channel):
    channel.send(b"x" * 100)
    # The first slot says that its message is longer than the lane.
    patch(name, HEADER + 256 + 8, struct.pack("II", 0, 2**32 - 1))
    with pytest.raises(mmkit.CorruptError):
        channel.recv(0)
    channel.send(b"next")
    assert channel.recv(0) == b"next"


def test_random_damage_never_kills(name):
    assert in_child(lambda: damage_at_random(name)) is None


def damage_at_random(name):
    random = np.random.default_rng(1)
    for _ in range(30):
        with Channel(name, 4096, create=True) as channel:
            for _ in range(20):
                with contextlib.suppress(TimeoutError):
                    channel.send(random.bytes(50), 0)
            for _ in range(20):
                patch(name, HEADER + int(random.integers(0, 256 + 64 * 16)), random.bytes(8))
            for _ in range(50):
                with contextlib.suppress(mmkit.Error, TimeoutError):
                    channel.recv(0)
                with contextlib.suppress(mmkit.Error, TimeoutError):
                    channel.send(random.bytes(100), 0)


@needs_root
def test_an_ordinary_user_is_told_and_removes_nothing(name, channel):
    def attempt():
        with pytest.raises(PermissionError, match=name):
            Channel(name)
        with pytest.raises(FileExistsError):
            Channel(name, CAPACITY, create=True)
        with pytest.raises(PermissionError):
            channel.unlink()

    in_child(attempt, user=65534)
    assert os.path.exists(f"/dev/shm/{name}")


@needs_root
def test_another_user_can_take_part_where_the_mode_allows_it(name):
    with Channel(name, CAPACITY, create=True, mode=0o666) as channel:
        channel.send(b"question")

        def answer():
            with Channel(name) as mine:
                mine.send(mine.recv(10) + b", answer")

        in_child(answer, user=65534)
        assert channel.recv(10) == b"question, answer"


def test_a_file_size_limit_is_an_error_and_leaves_nothing(name):
    def attempt():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(OSError) as caught:
            Channel(name, 1 << 20, create=True)
        return caught.value.errno

    assert in_child(attempt, limits={resource.RLIMIT_FSIZE: 1 << 16}) == errno.EFBIG
    assert not os.path.exists(f"/dev/shm/{name}")


@sanitized
def test_no_address_space_is_an_error_and_leaves_nothing(name):
    def attempt():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmkit.PAGE_SIZE
        resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), used + (512 << 20)))
        with pytest.raises(MemoryError):
            Channel(name, 1 << 30, create=True)
        left = os.path.exists(f"/dev/shm/{name}")
        Channel(name, 4096, create=True).close()
        return left

    # Space in /dev/shm is there; addresses to map it are not.
    if os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize < 2 << 30:
        pytest.skip("/dev/shm is too small")
    assert in_child(attempt) is False


SMALL_SHM = """
import errno, os, pathlib, mmkit
def left(): return os.listdir("/dev/shm")
try: mmkit.Channel("big", 4 << 20, create=True)
except mmkit.SyscallError as error: assert error.errno == errno.ENOSPC and "left of 1 MiB" in str(error), error
else: raise AssertionError("no error")
assert left() == [], left()
with mmkit.Channel("fits", 600 << 10, create=True) as one, mmkit.Channel("fits") as other:
    one.send(bytes(300 << 10))
    try: other.send(b"a second lane does not fit")
    except mmkit.SyscallError as error: assert error.errno == errno.ENOSPC, error
    else: raise AssertionError("no error")
    pathlib.Path("/dev/shm/rest").write_bytes(bytes((os.statvfs("/dev/shm").f_bavail) * 4096))
    one.recv()
    for _ in range(10):
        one.send(bytes([7]) * (300 << 10))
        assert other.recv() == bytes([7]) * (300 << 10)
print("good")
"""


@needs_root
def test_a_full_dev_shm_is_an_error_when_making_and_never_a_signal_later():
    script = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", SMALL_SHM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.stdout, done.stderr) == ("good\n", "")


@needs_root
def test_a_process_in_another_pid_namespace_is_refused(channel):
    code = f"import mmkit\ntry: mmkit.Channel({channel.name!r})\nexcept mmkit.Error as error: print(error)"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unshare:" in done.stderr:
        pytest.skip(done.stderr)
    assert "another PID namespace" in done.stdout


def test_a_maker_that_is_killed_half_way_leaves_nothing(name):
    for moment in range(12):
        pid = os.fork()
        if pid == 0:
            while True:
                channel = Channel(name, 8 << 20, create=True)
                channel.unlink()
                channel.close()
        time.sleep(0.005 * (1 + moment % 4))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        # Either it is not there, or it is whole.
        with contextlib.suppress(FileNotFoundError):
            with Channel(name) as whole:
                whole.send(b"x")
                assert whole.recv(0) == b"x"
            os.unlink(f"/dev/shm/{name}")
