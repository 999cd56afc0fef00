"""Promises of `mmkit.shared.reap`: what is provably leaked goes, and nothing else."""

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import mmkit
from mmkit import SharedMemory, SystemVMemory, linux, shared
from mmkit.flags import ShmCommand
from mmkit.shared import reaping, record
from segment_tools import (
    HERE,
    KEY,
    another_process,
    behind_a_small_tmpfs,
    by_the_dead,
    found,
    hide_proc_sys,
    mount_over_dev_shm,
    names,
    needs_mounts,
    new_ipc_namespace,
    one,
)
from support import NOBODY, PAGE, in_child, needs_root, x86_64

pytestmark = pytest.mark.usefixtures("no_system_v_segment_stays")


def test_what_a_dead_maker_left_is_reaped_and_its_kin_stay(name):
    def leak():
        return (
            SharedMemory(f"{name}-leak", create=True, size=PAGE),
            SharedMemory(f"{name}-persist", create=True, size=PAGE, persist=True),
            SystemVMemory(KEY, PAGE, create=True),
        )

    with SharedMemory(f"{name}-alive", create=True, size=PAGE):
        by_the_dead(leak)
        os.close(os.open(f"/dev/shm/{name}-foreign", os.O_CREAT | os.O_RDWR))
        expected = {f"{name}-leak", f"{KEY:#010x}"}
        assert {segment.name for segment in shared.reap(dry_run=True)} >= expected
        assert f"{name}-leak" in names()
        assert {segment.name for segment in shared.reap()} >= expected
        left = {left for left in names() if left.startswith(name)}
        assert left == {f"{name}-{kind}" for kind in ("persist", "alive", "foreign")}
        assert found(kind="systemv", name=f"{KEY:#010x}") == []
        assert shared.reap() == []


def test_channels_and_locks_bear_their_makers_record_and_say_what_they_are_for(name):
    pid = by_the_dead(
        lambda: (
            shared.Channel(f"{name}-leak", 4096, create=True),
            shared.Channel(f"{name}-kept", 4096, create=True, persist=True),
            [kind(f"{name}-{kind.__name__}", create=True) for kind in (shared.Lock, shared.Barrier)],
        )
    )
    listed = {each.name: each for each in shared.segments() if each.name.startswith(name)}
    assert {(each.creator, each.creator_alive, each.made_by_mmkit) for each in listed.values()} == {
        (pid, False, True)
    }
    persistent = {f"{name}-{kind}" for kind in ("kept", "Lock", "Barrier")}
    assert {each.name for each in listed.values() if each.persist} == persistent
    with shared.Channel(f"{name}-leak"):
        assert shared.reap() == []
    assert [each.name for each in shared.reap()] == [f"{name}-leak"]
    assert {left for left in names() if left.startswith(name)} == persistent


def test_the_channel_of_a_living_maker_stays_though_nobody_has_it(name):
    channel = shared.Channel(name, 4096, create=True)
    channel.close()
    assert shared.reap() == []
    channel.unlink()


@pytest.mark.parametrize("how", ["mapped", "mapped for reading", "open", "on its way"])
def test_what_anybody_has_is_not_reaped(name, how):
    by_the_dead(lambda: SharedMemory(name, create=True, size=PAGE))
    with contextlib.ExitStack() as held:
        if how.startswith("mapped"):
            segment = held.enter_context(SharedMemory(name, readonly=how != "mapped"))
            os.close(os.dup(segment.fd))
        elif how == "open":
            held.enter_context(open(f"/dev/shm/{name}", "rb"))
        else:
            # No process has it: the descriptor stands in a message that nobody has received.
            ours, theirs = socket.socketpair()
            held.enter_context(ours)
            held.enter_context(theirs)
            fd = os.open(f"/dev/shm/{name}", os.O_RDONLY)
            socket.send_fds(ours, [b"x"], [fd])
            os.close(fd)
            assert one(name=name).holders == ()
        assert [segment for segment in shared.reap() if segment.name == name] == []
        assert name in names()
    assert name in [segment.name for segment in shared.reap()]


@needs_root
def test_an_ordinary_user_reaps_ones_own_though_others_cannot_be_looked_at(name):
    def leak_and_reap():
        by_the_dead(lambda: SharedMemory(f"{name}-own", create=True, size=PAGE))
        with SharedMemory(f"{name}-own"):
            assert shared.reap() == []
        assert one(name=f"{name}-own").attached is None
        return [segment.name for segment in shared.reap()]

    by_the_dead(lambda: SharedMemory(f"{name}-other", create=True, size=PAGE, mode=0o666))
    assert in_child(leak_and_reap, user=NOBODY) == [f"{name}-own"]
    assert f"{name}-other" in names()


def test_a_later_process_with_the_makers_number_is_not_the_maker(name):
    with SharedMemory(name, create=True, size=1) as segment:
        mine = record.read_on(segment.fd)
        assert mine.creator_lives() is True
        assert mine._replace(start=mine.start - 1).creator_lives() is False
        assert mine._replace(boot="another").creator_lives() is False
        assert mine._replace(boot="another", pid_namespace=1).creator_lives() is None
        assert mine._replace(pid_namespace=1).creator_lives() is None
        assert mine._replace(time_namespace=1).creator_lives() is None
        assert mine._replace(start=0).creator_lives() is None
        assert mine._replace(pid=1 << 40).creator_lives() is None


@needs_mounts
def test_a_maker_is_not_dead_where_proc_does_not_tell_which_boot_it_is(name):
    def make():
        segment = SharedMemory(name, create=True, size=1)
        segment.close()
        return segment

    with another_process(lambda: hide_proc_sys() or make()):
        assert one(name=name).creator_alive is None
        assert shared.reap() == []
        assert name in names()
    os.unlink(f"/dev/shm/{name}")
    with another_process(make):
        assert in_child(lambda: hide_proc_sys() or shared.reap()) == []
        assert name in names()


@x86_64
def test_a_maker_whose_first_thread_has_ended_lives(name):
    end, end_writer = os.pipe()

    def wait():
        os.close(end_writer)
        os.read(end, 1)
        os._exit(0)

    pid = os.fork()
    if pid == 0:
        SharedMemory(name, create=True, size=1).close()
        threading.Thread(target=wait).start()
        ctypes.CDLL(None).syscall(60, 0)  # exit(2): this thread alone
    try:
        while b") Z " not in Path(f"/proc/{pid}/stat").read_bytes():
            threading.Event().wait(0.001)
        assert one(name=name).creator_alive is True
        assert shared.reap() == []
    finally:
        os.close(end)
        os.close(end_writer)
        os.waitpid(pid, 0)
    assert [segment.name for segment in shared.reap()] == [name]


def test_what_the_list_said_of_the_maker_is_asked_again_once_nobody_can_interfere(name):
    with SharedMemory(name, create=True, size=1) as segment:
        identity = segment._identity
        segment.close()
        assert not reaping._reap_posix(name, identity, dry_run=False)
        assert name in names()
        segment.unlink()


def test_a_zombie_is_dead(name):
    pid = os.fork()
    if pid == 0:
        SharedMemory(name, create=True, size=1)
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert one(name=name).creator_alive is False
        assert name in [segment.name for segment in shared.reap()]
    finally:
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"mmkit-segment",
        b"mmkit-segment 2 pid=1",
        b"mmkit-segment 1 pid=1",
        b"\xff" * 100,
        b"mmkit-segment 1 pid=x",
    ],
)
def test_a_record_that_says_nothing_clear_proves_nothing(name, text):
    by_the_dead(lambda: SharedMemory(name, create=True, size=1))
    os.setxattr(f"/dev/shm/{name}", record.ATTRIBUTE, text)
    segment = one(name=name)
    assert (segment.made_by_mmkit, segment.creator_alive) == (False, None)
    assert [each for each in shared.reap() if each.name == name] == []
    assert name in names()


def test_who_attaches_while_it_is_reaped_waits_and_is_not_killed(name):
    # The kernel tells a holder of a lease with a signal; SIGIO would kill.
    by_the_dead(lambda: SharedMemory(name, create=True, size=PAGE))
    code = f"import mmkit\nmmkit.SharedMemory({name!r}).close()\nprint('attached')"
    with reaping._leased(f"/dev/shm/{name}") as fd:
        assert fd is not None
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=HERE
        ) as other:
            # It waits in open(2): the kernel asks for the lease back.
            while fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK and other.poll() is None:
                threading.Event().wait(0.001)
            assert other.poll() is None
            os.close(os.dup(fd))
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            assert other.communicate(timeout=30)[0] == "attached\n"
    with SharedMemory(name) as segment:
        assert segment.size == PAGE


def test_reaping_while_others_make_and_attach_takes_nothing_of_theirs(name):
    stop = multiprocessing.Event()

    def make_and_attach():
        while not stop.is_set():
            with SharedMemory(create=True, size=PAGE) as ours:
                SharedMemory(ours.name).close()
                assert ours.name in names()

    process = multiprocessing.get_context("fork").Process(target=make_and_attach)
    process.start()
    try:
        for _ in range(20):
            by_the_dead(lambda: SharedMemory(create=True, size=PAGE))
            assert len(shared.reap()) == 1
    finally:
        stop.set()
        process.join()
    assert process.exitcode == 0


# ---- without attributes, without O_TMPFILE --------------------------------------------------------------


@needs_mounts
def test_where_files_have_no_attributes_the_record_stands_beside(name):
    def everything():
        # ramfs has none, as tmpfs before Linux 6.6.
        mount_over_dev_shm("ramfs", "mode=1777")
        with SharedMemory(name, create=True, size=PAGE) as ours:
            with pytest.raises(OSError, match="not supported"):
                os.getxattr(ours.fd, record.ATTRIBUTE)
            assert (one(name=name).made_by_mmkit, one(name=name).creator) == (True, os.getpid())
            assert len(names()) == 2
        assert names() == set()
        by_the_dead(lambda: SharedMemory(name, create=True, size=PAGE))
        with SharedMemory(name):
            assert shared.reap() == []
        assert [segment.name for segment in shared.reap()] == [name]
        assert names() == set()
        by_the_dead(lambda: SharedMemory(name, create=True, size=PAGE))
        os.unlink(f"/dev/shm/{name}")
        assert len(names()) == 1
        shared.reap()
        assert names() == set()

    in_child(everything)


@needs_root
def test_a_record_that_another_writer_wrote_on_a_segment_proves_nothing(name):
    def forge():
        dead = by_the_dead(lambda: None)
        forged = record.make_record(persist=False)._replace(pid=dead)
        os.setxattr(f"/dev/shm/{name}", record.ATTRIBUTE, forged.encode())

    def kept():
        return SharedMemory(name, create=True, size=1, mode=0o666, persist=True)

    pid = by_the_dead(kept)
    in_child(forge, user=NOBODY)
    segment = one(name=name)
    assert (segment.creator, segment.persist) == (pid, True)
    assert shared.reap() == []
    assert name in names()


def test_a_segment_that_others_may_write_is_reaped_with_the_record_beside_it(name):
    before = names()
    by_the_dead(lambda: SharedMemory(name, create=True, size=1, mode=0o660))
    assert len(names() - before) == 2
    assert [segment.name for segment in shared.reap()] == [name]
    assert not names() - before


def test_a_segment_that_gets_its_name_at_the_last_moment_keeps_its_record(name, monkeypatch):
    by_the_dead(lambda: SharedMemory(name, create=True, size=1, mode=0o660))
    path, hidden = f"/dev/shm/{name}", f"/dev/shm/{name}-hidden"
    os.mkdir(hidden)
    os.rename(path, f"{hidden}/{name}")
    read_beside = reaping.read_beside

    def late(*arguments):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{hidden}/{name}", path)
        return read_beside(*arguments)

    monkeypatch.setattr(reaping, "read_beside", late)
    shared.reap()
    os.rmdir(hidden)
    assert one(name=name).made_by_mmkit
    assert [segment.name for segment in shared.reap()] == [name]


def test_the_record_of_a_system_v_segment_goes_after_it_and_not_before():
    pid = by_the_dead(lambda: SystemVMemory(KEY, PAGE, create=True, persist=True))
    segment = one(kind="systemv", creator=pid)
    beside = f".mmkit-record-systemv-{segment.id}"
    shared.reap()
    assert beside in names()
    linux.shmctl(segment.id, ShmCommand.RMID)
    by_the_dead(lambda: record.write_beside("systemv", 1 << 40, False))
    shared.reap()
    assert not names() & {beside, f".mmkit-record-systemv-{1 << 40}"}


@needs_root
def test_a_record_beside_that_another_user_wrote_proves_nothing():
    number = 2**62 + os.getpid()
    try:
        in_child(lambda: record.write_beside("posix", number, False), user=NOBODY)
        assert record.read_beside("posix", number, NOBODY) is not None
        assert record.read_beside("posix", number, os.getuid()) is None
    finally:
        record.drop_beside("posix", number)


@needs_mounts
def test_where_no_file_can_be_without_a_name_a_temporary_one_is_used_and_reaped(name):
    def everything():
        # Refusing the call is as near as this kernel comes to a file system that has no O_TMPFILE.
        from mmkit.shared import files

        files._open_unnamed = files._open_temporary
        with SharedMemory(name, create=True, size=PAGE) as ours:
            assert names() == {name}
            with pytest.raises(FileExistsError):
                SharedMemory(name, create=True, size=PAGE)
            with pytest.raises(mmkit.SyscallError):
                SharedMemory(f"{name}-large", create=True, size=1 << 20)
            assert names() == {name}
            assert ours.owned
        by_the_dead(files._open_temporary)
        file, path = files._open_temporary()
        assert len(names()) == 2
        shared.reap()
        assert names() == {os.path.basename(path)}
        file.close()
        shared.reap()
        assert names() == set()

    in_child(behind_a_small_tmpfs(everything, "256k"))


@needs_mounts
def test_segments_of_another_ipc_namespace_are_not_taken_for_ours(name):
    def inside():
        new_ipc_namespace()
        record.process_identity.cache_clear()
        assert found(kind="systemv", id=outside.id, creator=os.getppid()) == []
        with SystemVMemory(KEY, PAGE, create=True) as ours:
            assert one(kind="systemv", name=f"{KEY:#010x}", creator=os.getpid()).id == ours.id
            # The outer one is seen by who has it, as one that cannot be attached from here.
            others = [
                each for each in found(kind="systemv", name=f"{KEY:#010x}") if each.creator != os.getpid()
            ]
            assert {holder.pid for each in others for holder in each.holders} == {os.getpid(), os.getppid()}
            assert all(each.removed for each in others)
        shared.reap()

    with SystemVMemory(KEY, PAGE, create=True) as outside:
        in_child(inside)
        assert one(kind="systemv", id=outside.id).made_by_mmkit
