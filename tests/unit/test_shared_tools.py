"""Promises of `mmkit.shared.segments`, of `reap`, and of ``mmkit shm``."""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

import mmkit
from mmkit import SharedMemory, SystemVMemory, linux, shared
from mmkit.cli import main
from mmkit.flags import ShmCommand
from mmkit.shared import reaping, record
from segment_tools import (
    HERE,
    behind_a_small_tmpfs,
    hide_proc_sys,
    mount_over_dev_shm,
    names,
    needs_mounts,
    new_ipc_namespace,
    unshare,
)
from support import NOBODY, PAGE, in_child, needs_root, x86_64

KEY = 0x6D6E0000 | os.getpid() & 0xFFFF


@pytest.fixture(autouse=True)
def _no_system_v_segment_stays():
    yield
    with contextlib.suppress(OSError):
        linux.shmctl(linux.shmget(KEY, 0, 0), ShmCommand.RMID)


def found(**fields):
    """The segments that fit."""
    return [
        segment
        for segment in shared.segments()
        if all(getattr(segment, field) == value for field, value in fields.items())
    ]


def one(**fields):
    (segment,) = found(**fields)
    return segment


def by_the_dead(function):
    """Have a process run a function and be killed."""
    pid = os.fork()
    if pid == 0:
        try:
            kept = function()  # noqa: F841
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    return pid


@contextlib.contextmanager
def another_process(function):
    """A process that has run a function, keeps what it returned, and waits."""
    ready_reader, ready = os.pipe()
    end, end_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(end_writer)
            kept = function()  # noqa: F841
            os.write(ready, b"x")
            os.read(end, 1)
        finally:
            os._exit(0)
    os.close(ready)
    os.close(end)
    try:
        assert os.read(ready_reader, 1) == b"x"
        yield pid
    finally:
        os.close(ready_reader)
        os.close(end_writer)
        os.waitpid(pid, 0)


# ---- listing -----------------------------------------------------------------------------------------


def test_a_posix_segment_is_listed_with_its_maker_and_holders(name):
    with SharedMemory(name, create=True, size=2 * PAGE + 1, mode=0o640) as ours:
        with another_process(lambda: SharedMemory(name, readonly=True)) as pid:
            segment = one(kind="posix", name=name)
            assert (segment.size, segment.resident) == (2 * PAGE + 1, 3 * PAGE)
            assert (segment.owner, segment.mode) == (os.geteuid(), 0o640)
            assert (segment.creator, segment.creator_alive) == (os.getpid(), True)
            assert (segment.made_by_mmkit, segment.persist, segment.removed, segment.attached) == (
                True,
                False,
                False,
                True,
            )
            holders = {holder.pid: holder for holder in segment.holders}
            assert holders.keys() == {os.getpid(), pid}
            assert holders[pid] == (pid, 3 * PAGE, True) or holders[pid].mapped == 6 * PAGE
        ours.unlink()
        assert one(kind="posix", name=name).removed
    assert found(name=name) == []


def test_one_that_mmkit_did_not_make_is_listed_without_a_maker(name):
    with open(f"/dev/shm/{name}", "wb") as file:
        file.write(b"x" * 10)
        segment = one(name=name)
        assert (segment.creator, segment.creator_alive, segment.made_by_mmkit) == (None, None, False)
        assert [holder.pid for holder in segment.holders] == [os.getpid()]
        assert segment.holders[0] == (os.getpid(), 0, True)
    assert one(name=name).attached in (False, None)


def test_a_system_v_segment_is_listed_whoever_made_it(name):
    with SystemVMemory(KEY, PAGE + 1, create=True) as ours:
        ours.buf[0] = 1
        segment = one(kind="systemv", id=ours.id)
        assert (segment.name, segment.size, segment.resident) == (f"{KEY:#010x}", PAGE + 1, PAGE)
        assert (segment.creator, segment.creator_alive, segment.made_by_mmkit) == (os.getpid(), True, True)
        assert segment.holders == ((os.getpid(), 2 * PAGE, False),)
        ours.remove()
        assert one(kind="systemv", id=ours.id).removed
    identifier = linux.shmget(KEY, 10, 0o1600)
    segment = one(kind="systemv", id=identifier)
    assert (segment.creator, segment.creator_alive, segment.made_by_mmkit) == (os.getpid(), True, False)
    assert (segment.attached, segment.holders) == (False, ())
    linux.shmctl(identifier, ShmCommand.RMID)
    by_the_dead(lambda: linux.shmget(KEY, 10, 0o1600))
    assert one(kind="systemv", name=f"{KEY:#010x}").creator_alive is False


def test_memfds_are_listed_by_name_mapped_or_only_open(name):
    with SharedMemory.memfd(PAGE, name=name) as segment:
        listed = one(kind="memfd", name=name)
        assert (listed.size, listed.resident, listed.owner) == (PAGE, PAGE, os.geteuid())
        assert (listed.creator, listed.made_by_mmkit, listed.attached) == (os.getpid(), True, True)
        assert listed.holders == ((os.getpid(), PAGE, True),)
        only_open = os.memfd_create(f"{name}-open")
        os.write(only_open, b"x")
        assert one(kind="memfd", name=f"{name}-open").holders == ((os.getpid(), 0, True),)
        os.close(only_open)
        segment.close()
    assert found(name=name) == []


def test_anonymous_shared_memory_is_listed_with_the_family_that_has_it():
    before = {segment.inode for segment in found(kind="anonymous")}
    with mmap.mmap(-1, 3 * PAGE) as memory:
        memory[0] = 1
        with another_process(lambda: None) as pid:
            (segment,) = [segment for segment in found(kind="anonymous") if segment.inode not in before]
            assert segment.size == 3 * PAGE
            assert segment.resident in (PAGE, None)
            assert set(segment.holders) == {(os.getpid(), 3 * PAGE, False), (pid, 3 * PAGE, False)}


def test_hostile_names_are_listed_as_they_are_and_shown_so_that_no_terminal_is_misled(name):
    for suffix in ("\n", "\x1b[31m", " (deleted)", "\udcff", "\u202e", "\\012", "/../x".replace("/", " ")):
        with SharedMemory(name + suffix, create=True, size=1) as segment:
            assert one(name=name + suffix).holders[0].pid == os.getpid()
            shown = CliRunner().invoke(main, ["shm", "list"]).output
            line = next(line for line in shown.splitlines() if name in line)
            assert line.isprintable()
            assert json.loads(CliRunner().invoke(main, ["shm", "list", "--json"]).output)
            assert segment.name in names()


def test_two_pieces_with_one_inode_number_are_two(name):
    # The inode of a System V segment is its identifier, on the device of memory files.
    with SystemVMemory(size=PAGE, create=True) as segment:
        kinds = {each.kind for each in shared.segments() if each.inode == segment.id}
        assert "systemv" in kinds
        assert len(found(kind="systemv", id=segment.id)) == 1


@needs_root
def test_what_a_user_may_not_look_at_is_unknown_and_never_free(name):
    def look():
        segment = one(name=name)
        return segment.holders, segment.attached, segment.creator_alive, segment.made_by_mmkit

    def look_at_system_v():
        listed = one(kind="systemv", name=f"{KEY:#010x}")
        return listed.holders, listed.attached, listed.creator_alive, listed.made_by_mmkit

    with another_process(lambda: SharedMemory(name, create=True, size=1)):
        assert in_child(look, user=NOBODY) == ((), None, None, False)
        os.chmod(f"/dev/shm/{name}", 0o644)
        assert in_child(look, user=NOBODY) == ((), None, True, True)
    with another_process(lambda: SystemVMemory(KEY, 1, create=True)):
        # The kernel counts for everybody; who it is, not everybody may know.
        assert in_child(look_at_system_v, user=NOBODY) == ((), True, True, False)


LOOK = """
import sys
from mmkit import shared
found = [each for each in shared.segments() if each.name == sys.argv[1]]
print([(each.attached, each.creator_alive, len(each.holders)) for each in found])
"""


def look_from(name, script):
    """What a new interpreter sees of a segment, started by a script of the shell."""
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", LOOK, name]
    done = subprocess.run(command, capture_output=True, text=True, env=HERE, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@needs_mounts
def test_where_proc_hides_processes_nobody_is_said_to_have_nobody(name):
    hide = "mount -t proc -o hidepid=2 none /proc && "
    user = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "
    with another_process(lambda: SharedMemory(name, create=True, size=1, mode=0o644)):
        assert look_from(name, hide + user + '"$@"') == "[(None, None, 0)]"
        # From root nothing is hidden.
        assert look_from(name, hide + '"$@"') == "[(True, True, 1)]"
    plainly = look_from(name, '"$@"')
    assert look_from(name, hide + '"$@"') == plainly in ("[(False, False, 0)]", "[(None, False, 0)]")
    assert look_from(name, hide + user + '"$@"') == "[(None, False, 0)]"


@needs_mounts
@pytest.mark.parametrize("proc", ["--mount-proc", ""])
def test_in_a_pid_namespace_others_may_have_what_nobody_there_has(name, proc):
    inside = f'unshare --pid --fork {proc} "$@"'
    with another_process(lambda: SharedMemory(name, create=True, size=1)):
        assert look_from(name, inside) in ("[(None, None, 0)]", "[(True, None, 1)]")
    assert look_from(name, inside) == "[(None, None, 0)]"
    assert name not in [each.name for each in in_a_pid_namespace(shared.reap)]


def in_a_pid_namespace(function):
    def inside():
        unshare(0x20000000)
        return in_child(function)

    return in_child(inside)


# ---- reaping -----------------------------------------------------------------------------------------


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


# ---- the command --------------------------------------------------------------------------------------


def shm(*arguments):
    return CliRunner().invoke(main, ["shm", *arguments])


def test_the_command_lists_for_people_and_for_programs(name):
    with SharedMemory(name, create=True, size=5 * PAGE), SystemVMemory(KEY, 10, create=True) as other:
        shown = shm("list")
        assert shown.exit_code == 0
        line = next(line for line in shown.output.splitlines() if name in line)
        assert line.split() == [
            "posix",
            name,
            "20",
            "KiB",
            "20",
            "KiB",
            str(os.geteuid()),
            "0600",
            *f"{os.getpid()} alive {os.getpid()}".split(),
        ]
        assert f"id {other.id} key {KEY:#010x}" in shown.output
        documents = {document["name"]: document for document in json.loads(shm("list", "--json").output)}
        assert documents[name]["holders"] == [{"pid": os.getpid(), "mapped": 5 * PAGE, "opened": True}]
        assert name not in shm("list", "--leaked").output


def test_the_command_tells_who_has_one(name):
    with SharedMemory(name, create=True, size=PAGE), SystemVMemory(KEY, 10, create=True) as other:
        for arguments in (
            (name,),
            (f"/{name}",),
            ("--id", str(other.id)),
            ("--key", hex(KEY)),
            ("--key", str(KEY)),
        ):
            answer = shm("attached", *arguments)
            assert answer.exit_code == 0
            assert "1 have it" in answer.output
            assert str(os.getpid()) in answer.output
    gone = shm("attached", name)
    assert (gone.exit_code, gone.output) == (1, "mmkit shm: there is no such segment\n")
    assert shm("attached").exit_code == 2


def test_the_command_removes_by_name_and_number_what_it_is_told_to(name):
    os.close(os.open(f"/dev/shm/{name}", os.O_CREAT))
    assert shm("remove", name).exit_code == 0
    assert name not in names()
    for flag in ("--id", "--key"):
        segment = SystemVMemory(KEY, 10, create=True)
        assert shm("remove", flag, str(segment.id if flag == "--id" else KEY)).exit_code == 0
        segment.detach()
        assert found(kind="systemv", id=segment.id) == []
    for arguments, words in (
        ((name,), "No segment has this name"),
        (("a/b",), "cannot name a segment"),
        (("..",), "cannot name a segment"),
        (("--key", hex(KEY)), "No segment has this key"),
        (("--id", "2000000000"), "no such segment"),
    ):
        refused = shm("remove", *arguments)
        assert refused.exit_code == 1
        assert words in refused.output
    assert shm("remove").exit_code == 2
    assert shm("remove", name, "--id", "1").exit_code == 2
    assert shm("remove", "--key", "x").exit_code == 2


def test_the_command_does_not_remove_what_is_no_shared_memory(name):
    os.mkdir(f"/dev/shm/{name}")
    try:
        refused = shm("remove", name)
        assert refused.exit_code == 1
        assert "no regular file" in refused.output
    finally:
        os.rmdir(f"/dev/shm/{name}")


@needs_root
def test_the_command_says_what_an_ordinary_user_may_not(name):
    def refused():
        answer = shm("remove", name)
        return answer.exit_code, "Only its owner or root" in answer.output

    with SharedMemory(name, create=True, size=1):
        assert in_child(refused, user=NOBODY) == (1, True)
        assert name in names()


def test_the_command_reaps_and_shows_what_it_would(name):
    by_the_dead(lambda: SharedMemory(name, create=True, size=PAGE))
    assert name in shm("list", "--leaked").output
    assert f"would remove posix {name} (4 KiB)" in shm("reap", "--dry-run").output
    assert name in names()
    assert f"removed posix {name} (4 KiB)" in shm("reap").output
    assert name not in names()
    assert shm("reap").output == "nothing is provably leaked\n"


def test_errors_of_the_kernel_keep_their_numbers(name):
    with pytest.raises(mmkit.SyscallError) as caught:
        reaping.remove_name(name)
    assert caught.value.errno == errno.ENOENT
