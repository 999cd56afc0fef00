"""Promises of `mmkit.SystemVMemory`."""

import contextlib
import errno
import gc
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import mmkit
from mmkit import Prot, SystemVMemory, linux
from mmkit.flags import IpcFlag, ShmCommand
from mmkit.shared import system_v
from mmkit.shared.record import drop_beside
from segment_tools import names
from steps import run_until_step
from support import NOBODY, PAGE, in_child, needs_root, run, sanitized

KEY = 0x6D6D0000 | os.getpid() & 0xFFFF


@pytest.fixture(autouse=True)
def _clean():
    yield
    with contextlib.suppress(OSError):
        linux.shmctl(linux.shmget(KEY, 0, 0), ShmCommand.RMID)


def records():
    return {name for name in names() if name.startswith(".mmkit-record-systemv-")}


def is_gone(identifier):
    with pytest.raises(OSError) as caught:
        linux.shmctl(identifier, ShmCommand.STAT)
    return caught.value.errno in (errno.EINVAL, errno.EIDRM)


def test_what_one_writes_the_other_reads_whatever_names_it(tmp_path):
    path = tmp_path / "file"
    path.touch()
    for key in (KEY, path, str(path)):
        with SystemVMemory(key, 5000, create=True) as ours:
            for theirs in (SystemVMemory(key), SystemVMemory.attach(ours.id)):
                ours.buf[:5] = b"hello"
                assert bytes(theirs.buf[:5]) == b"hello"
                assert (theirs.size, theirs.id, theirs.key) == (5000, ours.id, ours.key)
                assert not theirs.owned
                theirs.detach()
        assert is_gone(ours.id)
    assert linux.ftok(path, 1) == ours.key


def test_two_projects_of_a_path_are_two_segments(tmp_path):
    one = SystemVMemory(tmp_path, 10, create=True, project=1)
    with one, SystemVMemory(tmp_path, 10, create=True, project=2) as two:
        assert one.id != two.id


def test_a_key_is_the_same_with_and_without_its_sign():
    high = KEY | 0x80000000
    with SystemVMemory(high, 10, create=True) as ours:
        assert ours.key == high - (1 << 32)
        SystemVMemory(high - (1 << 32)).detach()
        assert f"key {high:#x}" in repr(ours)


def test_private_segments_are_found_by_their_identifier_only():
    with SystemVMemory(size=10, create=True) as one, SystemVMemory(size=10, create=True) as two:
        assert one.id != two.id
        assert one.key is None
        with SystemVMemory.attach(two.id) as same:
            assert same.id == two.id


def test_c_programs_and_raw_calls_share_it():
    with SystemVMemory(KEY, 10, create=True, mode=0o640) as ours:
        ours.buf[:5] = b"hello"
        listing = subprocess.run(["ipcs", "-m"], capture_output=True, text=True).stdout
        assert f"{KEY:#010x}" in listing
        address = linux.shmat(linux.shmget(KEY, 0, 0))
        assert mmkit.peek(address, 5) == b"hello"
        linux.shmdt(address)
    identifier = linux.shmget(KEY, 10, int(IpcFlag.CREAT) | 0o600)
    with SystemVMemory(KEY) as theirs:
        assert theirs.id == identifier
    assert linux.shmctl(identifier, ShmCommand.STAT).shm_nattch == 0


def test_stat_tells_all_that_the_kernel_knows():
    with SystemVMemory(KEY, 5000, create=True, mode=0o640) as ours:
        status = ours.stat()
        assert (status.shm_segsz, status.shm_cpid, status.shm_nattch) == (5000, os.getpid(), 1)
        assert (status.shm_perm.mode, status.shm_perm.key, status.shm_perm.uid) == (0o640, KEY, os.geteuid())
        assert abs(status.shm_ctime - time.time()) < 60
        with SystemVMemory(KEY, readonly=True):
            assert ours.stat().shm_nattch == 2
        assert ours.stat().shm_nattch == 1
        ours.detach()
        assert ours.stat().shm_nattch == 0
        ours.remove()
        with pytest.raises(mmkit.SyscallError, match="no such segment, or no more"):
            ours.stat()


def test_what_is_attached_for_reading_cannot_be_written():
    with SystemVMemory(KEY, 10, create=True) as ours, SystemVMemory(KEY, readonly=True) as reader:
        ours.buf[0] = 7
        assert reader.buf.readonly
        assert reader.buf[0] == 7
        with pytest.raises(mmkit.MemoryFault):
            reader.region[0] = 1
        assert repr(reader).endswith(" 10 bytes, read-only>")


def test_a_segment_is_a_region_with_all_that_regions_can():
    with SystemVMemory(size=3 * PAGE, create=True) as segment:
        region = segment.region
        assert region in mmkit.regions()
        assert region.protect(Prot.READ, PAGE, PAGE) == (PAGE, PAGE)
        with pytest.raises(mmkit.MemoryFault):
            region[PAGE] = 1
        assert region.populate() == (0, 3 * PAGE)
        assert region.resident() == 3 * PAGE
        region[0] = 7
        region.punch(0, PAGE)
        assert region[0] == 0
        with pytest.raises(mmkit.Error, match="System V"):
            region.resize(4 * PAGE)
        with pytest.raises(mmkit.Error, match="overlaps a live"):
            linux.munmap(region.address, PAGE)
    assert is_gone(segment.id)


def test_an_array_on_the_buffer_keeps_the_memory():
    segment = SystemVMemory(size=80, create=True)
    array = np.ndarray((10,), dtype=np.int64, buffer=segment.buf)
    with pytest.raises(BufferError, match="live view"):
        segment.detach()
    segment.remove()
    with pytest.warns(ResourceWarning, match="unclosed <SystemVMemory"):
        del segment
    array[:] = 7
    assert array.sum() == 70


# ---- errors -------------------------------------------------------------------------------------------


def test_a_key_that_is_taken_or_missing_says_so():
    with pytest.raises(FileNotFoundError, match="No segment has this key"):
        SystemVMemory(KEY)
    with SystemVMemory(KEY, 10, create=True) as ours:
        with pytest.raises(FileExistsError, match="A segment has this key"):
            SystemVMemory(KEY, 10, create=True)
        assert ours.stat().shm_nattch == 1
        with pytest.raises(ValueError, match="fewer than the 11 B asked for"):
            SystemVMemory(KEY, 11)
        assert ours.stat().shm_nattch == 1
    with pytest.raises(FileNotFoundError):
        SystemVMemory("/no/such/file", 10, create=True)


def test_arguments_that_make_no_sense_are_refused():
    before = records()
    for arguments, error, words in (
        ({}, ValueError, "nothing to attach"),
        ({"key": 0}, ValueError, "IPC_PRIVATE"),
        ({"key": 1 << 32}, ValueError, "32 bits"),
        ({"key": "/", "project": 256}, ValueError, "proj_id"),
        ({"key": "a\0b"}, ValueError, "NUL"),
        ({"key": KEY, "create": True}, ValueError, "at least one byte"),
        ({"key": KEY, "size": -1}, ValueError, "negative"),
        ({"key": KEY, "size": 1, "create": True, "mode": 0o1600}, ValueError, "nine permission bits"),
        ({"key": KEY, "size": 1, "create": True, "readonly": True}, ValueError, "reading only makes sense"),
        ({"key": KEY, "size": 1 << 62, "create": True}, mmkit.OutOfMemory, "MemAvailable"),
    ):
        with pytest.raises(error, match=words):
            SystemVMemory(**arguments)
    with pytest.raises(mmkit.SyscallError, match="no such segment"):
        SystemVMemory.attach(0x7FFFFFFF)
    assert records() == before


def test_ctrl_c_at_any_instant_of_making_one_leaves_none_without_a_record(monkeypatch):
    # How many steps that takes differs from one time to the next.
    monkeypatch.setattr(system_v, "check_headroom", lambda *_: None)

    def interrupt():
        raise KeyboardInterrupt

    step, reached, interrupted = 0, True, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        while reached:
            step += 1
            try:
                reached, made = run_until_step(lambda: SystemVMemory(KEY, PAGE, create=True), step, interrupt)
                made.detach()
            except KeyboardInterrupt:
                interrupted += 1
            with contextlib.suppress(FileNotFoundError):
                identifier = linux.shmget(KEY, 0, 0)
                assert f".mmkit-record-systemv-{identifier}" in records(), step
                linux.shmctl(identifier, ShmCommand.RMID)
                drop_beside("systemv", identifier)
        gc.collect()
    assert interrupted > 100


@sanitized
def test_a_new_segment_that_cannot_be_attached_is_removed():
    def make():
        usage = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        resource.setrlimit(resource.RLIMIT_AS, (usage + (32 << 20), resource.RLIM_INFINITY))
        with pytest.raises(mmkit.OutOfMemory, match="RLIMIT_AS"):
            SystemVMemory(KEY, 64 << 20, create=True)

    before = records()
    in_child(make)
    with pytest.raises(FileNotFoundError):
        SystemVMemory(KEY)
    assert records() == before


@needs_root
def test_another_user_gets_what_the_mode_gives():
    def refused():
        with pytest.raises(PermissionError, match="mode do not allow it"):
            SystemVMemory(KEY)
        with pytest.raises(PermissionError, match="permission to read"):
            SystemVMemory.attach(identifier)

    def reads():
        with pytest.raises(PermissionError, match="readonly=True"):
            SystemVMemory(KEY)
        with SystemVMemory(KEY, readonly=True) as reader:
            assert reader.buf[0] == 7
            with pytest.raises(PermissionError, match="Only its owner"):
                reader.remove()

    with SystemVMemory(KEY, 10, create=True) as ours:
        identifier = ours.id
        in_child(refused, user=NOBODY)
    with SystemVMemory(KEY, 10, create=True, mode=0o644) as ours:
        ours.buf[0] = 7
        in_child(reads, user=NOBODY)
        assert ours.stat().shm_nattch == 1


@needs_root
def test_an_ordinary_user_makes_attaches_and_removes():
    def everything():
        with SystemVMemory(KEY, 10, create=True) as ours, SystemVMemory(KEY) as theirs:
            ours.buf[0] = 7
            return theirs.buf[0]

    before = records()
    assert in_child(everything, user=NOBODY) == 7
    assert records() == before


# ---- owners -------------------------------------------------------------------------------------------


def test_the_owners_block_removes_and_an_attachers_does_not():
    before = records()
    with SystemVMemory(KEY, 10, create=True) as ours:
        with SystemVMemory(KEY):
            pass
        assert ours.owned
        assert len(records() - before) == 1
    assert is_gone(ours.id)
    assert not ours.owned
    assert records() == before


def test_a_forked_childs_end_removes_nothing():
    with SystemVMemory(KEY, 10, create=True) as ours:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException), ours:
                os._exit(3) if ours.owned else None
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert ours.stat().shm_nattch == 1
        assert ours.owned


def test_an_attachers_death_leaves_the_segment_and_ends_its_attachment():
    with SystemVMemory(KEY, 10, create=True) as ours:
        pid = os.fork()
        if pid == 0:
            SystemVMemory(KEY).buf[0] = 9
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        assert ours.buf[0] == 9
        assert ours.stat().shm_nattch == 1


def test_removed_and_detached_in_either_order_and_by_somebody_else():
    for first, second in (("detach", "remove"), ("remove", "detach")):
        segment = SystemVMemory(KEY, 10, create=True)
        getattr(segment, first)()
        getattr(segment, second)()
        assert is_gone(segment.id)
        assert repr(segment).endswith(" detached>")
    with SystemVMemory(KEY, 10, create=True) as segment:
        linux.shmctl(segment.id, ShmCommand.RMID)
    assert is_gone(segment.id)


def test_who_has_a_removed_segment_keeps_its_memory_and_the_key_is_free():
    ours = SystemVMemory(KEY, 10, create=True)
    ours.buf[0] = 7
    ours.remove()
    with SystemVMemory(KEY, 10, create=True) as other:
        assert other.id != ours.id
        assert (ours.buf[0], other.buf[0]) == (7, 0)
    ours.detach()


# ---- pickled ------------------------------------------------------------------------------------------


def add_one(segment):
    with segment:
        segment.buf[0] += 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_gets_it_as_an_argument_and_its_exit_leaves_it(method):
    with SystemVMemory(size=10, create=True) as segment:
        process = multiprocessing.get_context(method).Process(target=add_one, args=(segment,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert segment.buf[0] == 1


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_it_is_the_same_segment(protocol):
    with SystemVMemory(size=10, create=True) as ours, pickle.loads(pickle.dumps(ours, protocol)) as copy:
        assert (copy.id, copy.owned) == (ours.id, False)


def test_with_protocol_5_contents_travel_and_become_a_segment_that_goes_with_its_holder():
    with SystemVMemory(size=10, create=True) as segment:
        segment.buf[:5] = b"hello"
        buffers = []
        data = pickle.dumps(segment, 5, buffer_callback=buffers.append)
        contents = bytes(buffers.pop().raw())
    before = records()
    copy = pickle.loads(data, buffers=[contents])
    assert bytes(copy.buf) == b"hello" + bytes(5)
    assert copy.stat().shm_nattch == 1
    copy.detach()
    assert is_gone(copy.id)
    assert records() == before


def test_an_interpreter_ends_quietly_and_leaves_the_segment_to_its_owners_word():
    done = run(f"import mmkit\nsegment = mmkit.SystemVMemory({KEY}, 10, create=True)\nview = segment.buf")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with SystemVMemory(KEY) as left:
        assert left.stat().shm_nattch == 1
        left.remove()
