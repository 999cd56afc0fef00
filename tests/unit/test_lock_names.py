"""Locks and the like by name: made whole, found by whoever may, removed once, at any instant."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

import pytest

from meeting import Child, each_kind
from mmkit import SyscallError
from mmkit.shared import Lock, reap
from support import NOBODY, in_child, needs_root, run


@each_kind
def test_a_name_appears_in_dev_shm_as_given_until_unlinked(cls, name):
    path = Path("/dev/shm", name)
    made = cls(name, create=True)
    assert path.stat().st_size == cls.SIZE
    assert path.stat().st_mode & 0o777 == 0o600
    found = cls("/" + name)
    made.close()
    found.unlink()
    assert not path.exists()
    found.close()
    with pytest.raises(FileNotFoundError):
        found.unlink()


@each_kind
def test_closing_and_unlinking_go_in_either_order(cls, name):
    thing = cls(name, create=True)
    thing.close()
    thing.unlink()
    again = cls(name, create=True)
    again.unlink()
    again.close()


@each_kind
def test_making_what_is_there_and_finding_what_is_not_are_refused(cls, name):
    with pytest.raises(FileNotFoundError):
        cls(name)
    made = cls(name, create=True)
    with pytest.raises(FileExistsError):
        cls(name, create=True)
    made.close()


@pytest.mark.parametrize("bad", ["", "/", "a/b", "//a", "..", "/.", "a\0b", "x" * 300, "é" * 128])
@pytest.mark.parametrize("create", [False, True])
def test_a_name_that_cannot_be_is_refused(bad, create):
    with pytest.raises(ValueError, match="cannot name"):
        Lock(bad, create=create)


@pytest.mark.parametrize("mode", [0o044, 0o4600])
def test_a_mode_that_keeps_the_maker_out_or_is_none_is_refused(name, mode):
    with pytest.raises(ValueError, match="mode"):
        Lock(name, create=True, mode=mode)
    assert not Path("/dev/shm", name).exists()


AN_INTERRUPT_AT_EVERY_INSTANT = """
import gc, os, signal, sys, warnings
from mmkit.shared import Channel, Lock, reaping
name, kind, create = sys.argv[1:]
warnings.simplefilter("ignore")

def make():
    return Channel(name, 4096, create=True) if kind == "Channel" else Lock(name, create=True)

def attach():
    return Channel(name) if kind == "Channel" else Lock(name)

def at_each_line(frame, *_):
    global left
    # How much there is to look at before space is taken differs from one time to the next.
    if not frame.f_code.co_filename.endswith(("channel.py", "files.py", "placing.py", "named.py", "record.py")):
        return None
    left -= 1
    if left == 0:
        sys.settrace(None)
        signal.raise_signal(signal.SIGINT)
    return at_each_line

there = None if create else make()
before = len(os.listdir("/proc/self/fd"))
instant = interrupted = 0
while True:
    instant += 1
    left = instant
    thing = None
    try:
        sys.settrace(at_each_line)
        thing = make() if create else attach()
        sys.settrace(None)
    except KeyboardInterrupt:
        interrupted += 1
    if thing:
        thing.close()
    ended = thing is not None and left > 0
    del thing
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before, instant
    if create and os.path.exists(f"/dev/shm/{name}"):
        os.unlink(f"/dev/shm/{name}")
    if ended:
        break
assert interrupted > 20
"""


@pytest.mark.parametrize("create", ["create", ""])
@pytest.mark.parametrize("kind", ["Channel", "Lock"])
def test_ctrl_c_at_any_instant_of_opening_is_that_and_loses_no_descriptor(name, kind, create):
    result = run(AN_INTERRUPT_AT_EVERY_INSTANT, name, kind, create)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match="is a str"):
        Lock(7)


def test_two_objects_of_one_name_stand_on_one_mapping(name):
    first, second = Lock(name, create=True), Lock(name)
    assert Path("/proc/self/maps").read_text().count(name) == 1
    with first, pytest.raises(SyscallError):
        second.acquire()
    first.close()
    with second:
        pass
    second.close()
    assert name not in Path("/proc/self/maps").read_text()


def test_many_threads_that_attach_get_one_mapping(name):
    made = Lock(name, create=True)
    made.close()
    found = []
    start = threading.Barrier(8)

    def attach():
        start.wait()
        found.append(Lock(name))

    threads = [threading.Thread(target=attach) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Path("/proc/self/maps").read_text().count(name) == 1
    for lock in found:
        lock.close()


AT_EVERY_INSTANT = """
import faulthandler, signal, sys
from pathlib import Path
from mmkit.shared import Lock
faulthandler.dump_traceback_later(30, exit=True)
name = sys.argv[1]
interrupted = 0

def close_what_is_open(*_):
    global interrupted
    interrupted += 1
    sys.setprofile(None)
    Lock(name).close()
    if kept:
        kept.pop().close()

def at_each_call(*_):
    global left
    left -= 1
    if left == 0:
        signal.raise_signal(signal.SIGUSR1)

signal.signal(signal.SIGUSR1, close_what_is_open)
Lock(name, create=True).close()
for keep in (True, False):
    instant = 0
    while True:
        kept = [Lock(name)] if keep else []
        instant += 1
        left = instant
        before = interrupted
        sys.setprofile(at_each_call)
        lock = Lock(name)
        sys.setprofile(None)
        assert Path("/proc/self/maps").read_text().count(name) == 1
        with lock:
            pass
        lock.close()
        while kept:
            kept.pop().close()
        assert name not in Path("/proc/self/maps").read_text()
        if interrupted == before:
            break
assert interrupted > 20
"""


def test_a_signal_handler_may_attach_and_close_at_any_instant_of_attaching(name):
    result = run(AT_EVERY_INSTANT, name)
    assert result.returncode == 0, result.stderr


def test_a_name_that_others_have_taken_since_stays_theirs(name):
    old = Lock(name, create=True)
    old.unlink()
    new = Lock(name, create=True)
    with pytest.raises(FileNotFoundError):
        old.unlink()
    assert Path("/dev/shm", name).exists()
    old.close()
    new.close()


def test_a_maker_that_is_killed_at_any_instant_leaves_a_whole_lock_or_nothing(name):
    path = Path("/dev/shm", name)
    seen = set()

    def make(say):
        say()
        while True:
            lock = Lock(name, create=True)
            lock.unlink()
            lock.close()

    for _ in range(40):
        child = Child(make)
        child.said()
        for _ in range(200):
            with contextlib.suppress(FileNotFoundError):
                Lock(name).close()
        child.kill()
        seen.add(path.exists())
        if path.exists():
            lock = Lock(name)
            with lock:
                pass
            lock.unlink()
            lock.close()
        reap()
        assert [entry for entry in os.listdir("/dev/shm") if name in entry] == []
    assert seen


@needs_root
def test_another_user_is_refused_and_removes_nothing(name):
    lock = Lock(name, create=True)

    def attack():
        with pytest.raises(PermissionError):
            Lock(name)
        with pytest.raises((PermissionError, FileExistsError)):
            Lock(name, create=True)
        with pytest.raises(PermissionError):
            lock.unlink()

    in_child(attack, user=NOBODY)
    assert Path("/dev/shm", name).exists()
    lock.close()


@needs_root
def test_an_ordinary_user_makes_and_removes_its_own(name):
    def use():
        lock = Lock(name, create=True, mode=0o666)
        with lock:
            mode = Path("/dev/shm", name).stat().st_mode & 0o777
        lock.unlink()
        lock.close()
        return mode

    assert in_child(use, user=NOBODY) == 0o666


@needs_root
def test_a_full_file_system_is_an_error_at_once_and_leaves_nothing(tmp_path):
    code = """
import os, sys, mmkit
try:
    mmkit.shared.Lock("full", create=True)
except mmkit.SyscallError as error:
    print(error.errno, os.listdir("/dev/shm"))
"""
    script = 'mount -t tmpfs -o size=4k none /dev/shm && dd if=/dev/zero of=/dev/shm/x bs=4k count=1 2>/dev/null; exec "$@"'
    import subprocess
    import sys

    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout == f"{errno.ENOSPC} ['x']\n"


def test_making_one_without_a_name_is_refused():
    with pytest.raises(TypeError):
        Lock()


def test_a_program_that_ends_leaves_the_segment(name):
    code = "import sys, mmkit; lock = mmkit.shared.Lock(sys.argv[1], create=True)"
    done = run(code, name)
    assert (done.returncode, done.stderr) == (0, "")
    lock = Lock(name)
    with lock:
        pass
    lock.close()
