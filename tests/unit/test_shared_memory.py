"""Promises of `mmkit.SharedMemory`: POSIX shared memory with and without a name."""

import contextlib
import errno
import gc
import multiprocessing
import multiprocessing.shared_memory as standard
import os
import pickle
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mmkit
from mmkit import SharedMemory
from mmkit.flags import Seal
from segment_tools import HERE, behind_a_small_tmpfs, names, needs_mounts
from support import NOBODY, PAGE, exit_signal, in_child, needs_root, run, sanitized, with_huge_pages


@pytest.fixture
def name():
    name = f"mmkit-test-{os.getpid()}"
    yield name
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"/dev/shm/{name}")


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
    with pytest.raises(ValueError, match="at least one byte"):
        SharedMemory(name, create=True, size=size)
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


# ---- owners -----------------------------------------------------------------------------------------


def test_the_owners_block_removes_and_an_attachers_does_not(name):
    with SharedMemory(name, create=True, size=1) as ours:
        with SharedMemory(name) as theirs:
            assert (ours.owned, theirs.owned) == (True, False)
        assert name in names()
    assert name not in names()
    assert not ours.owned


@pytest.mark.parametrize("end", ["exit", "return", "kill"])
def test_a_forked_childs_end_removes_nothing(name, end):
    with SharedMemory(name, create=True, size=1) as ours:
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException), ours:
                code = 0 if not ours.owned else 2
                if end == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert status == (signal.SIGKILL if end == "kill" else 0)
        assert name in names()
        assert ours.owned
    assert name not in names()


def test_removed_and_closed_in_either_order(name):
    for first, second in (("close", "unlink"), ("unlink", "close")):
        segment = SharedMemory(name, create=True, size=1)
        getattr(segment, first)()
        getattr(segment, second)()
        assert segment.closed
        assert name not in names()
        segment.close()
        with pytest.raises(FileNotFoundError, match="removed before"):
            segment.unlink()


def test_a_block_ends_well_where_it_was_removed_inside_or_by_somebody_else(name):
    with SharedMemory(name, create=True, size=1) as segment:
        segment.unlink()
    with SharedMemory(name, create=True, size=1):
        os.unlink(f"/dev/shm/{name}")
    assert name not in names()


def test_a_segment_that_took_the_name_since_is_left_alone(name):
    first = SharedMemory(name, create=True, size=1)
    os.unlink(f"/dev/shm/{name}")
    with SharedMemory(name, create=True, size=2) as second:
        with pytest.raises(FileNotFoundError):
            first.unlink()
        first.close()
        assert name in names()
        assert SharedMemory(name).__exit__(None, None, None) is None
        assert second.size == 2


def test_who_has_a_removed_segment_keeps_its_memory(name):
    with SharedMemory(name, create=True, size=10) as ours:
        theirs = SharedMemory(name)
        ours.buf[0] = 7
    assert theirs.buf[0] == 7
    theirs.close()


def test_a_removed_segment_still_has_its_name_in_maps(name):
    with SharedMemory(name, create=True, size=10) as ours:
        assert mmkit.maps.find(ours.region.address).path == f"/dev/shm/{name}".encode()
        ours.unlink()
        area = mmkit.maps.find(ours.region.address)
        assert (area.path, area.deleted) == (f"/dev/shm/{name}".encode(), True)


@needs_root
def test_a_mode_that_forbids_the_owner_too_is_no_hindrance(name):
    def make():
        with SharedMemory(name, create=True, size=10, mode=0) as ours:
            ours.buf[0] = 7
            with pytest.raises(PermissionError):
                SharedMemory(name)
        return name in names()

    assert in_child(make, user=NOBODY) is False


# ---- half-made ---------------------------------------------------------------------------------------


def test_a_maker_killed_at_any_moment_leaves_a_complete_segment_or_none(name):
    code = f"""
import sys, mmkit
mmkit.SharedMemory("{name}-0", create=True, size=1).unlink()
print("go", flush=True)
for number in range(1, 1 << 30):
    mmkit.SharedMemory("{name}", create=True, size=3 * 4096).unlink()
"""
    complete = 0
    delay = 0.0
    for _ in range(int(os.environ.get("MMKIT_STRESS_SECONDS", "3")) * 10):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=HERE) as maker:
            maker.stdout.read(2)
            delay = (delay + 0.00037) % 0.002
            time.sleep(delay)
            maker.kill()
        if name in names():
            with SharedMemory(name) as left:
                assert left.size == 3 * 4096
                assert os.fstat(left.fd).st_blocks * 512 == 3 * 4096
                assert os.getxattr(left.fd, "user.mmkit").startswith(b"mmkit-segment 1 ")
                left.unlink()
            complete += 1
    assert not {found for found in names() if found.startswith((name, ".mmkit-making"))}


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


# ---- views --------------------------------------------------------------------------------------------


def test_closing_under_a_live_view_raises_and_changes_nothing(name):
    with SharedMemory(name, create=True, size=10) as segment:
        view = segment.buf
        with pytest.raises(BufferError, match="live view"):
            segment.close()
        view[0] = 7
        view.release()
        assert segment.buf[0] == 7


def test_leaving_the_block_under_a_live_view_removes_the_name_and_says_what_lives(name):
    with pytest.raises(BufferError, match="live view"), SharedMemory(name, create=True, size=10) as segment:
        view = segment.buf
    assert name not in names()
    view[0] = 7
    del view
    segment.close()


def test_an_array_on_the_buffer_keeps_the_memory(name):
    segment = SharedMemory(name, create=True, size=80)
    array = np.ndarray((10,), dtype=np.int64, buffer=segment.buf)
    with pytest.raises(BufferError):
        segment.close()
    segment.unlink()
    with pytest.warns(ResourceWarning, match="unclosed <SharedMemory"):
        del segment
        gc.collect()
    array[:] = 7
    assert array.sum() == 70


def test_the_memory_goes_with_the_last_view(name):
    with SharedMemory(name, create=True, size=80) as segment:
        fd = segment.fd
        theirs = SharedMemory(name)
        view = theirs.buf
        inside = theirs.region.address
        with pytest.warns(ResourceWarning):
            del theirs
        assert any(region._range[0] == inside for region in mmkit.regions())
        del view
        assert not any(region._range[0] == inside for region in mmkit.regions())
        os.fstat(fd)


def test_a_closed_segment_says_so(name):
    with SharedMemory(name, create=True, size=10) as segment:
        theirs = SharedMemory(name)
        theirs.close()
        assert theirs.closed
        for use in (
            lambda: theirs.buf,
            lambda: theirs.fd,
            lambda: theirs.resize(),
            lambda: theirs.__enter__(),
        ):
            with pytest.raises(mmkit.ClosedError):
                use()
        assert not segment.closed


def test_an_unclosed_segment_is_warned_about_once(name):
    with SharedMemory(name, create=True, size=10):
        theirs = SharedMemory(name)
        with pytest.warns(ResourceWarning) as caught:
            del theirs
        assert [str(warning.message) for warning in caught] == [f"unclosed <SharedMemory {name!r} 10 bytes>"]


def test_the_segments_of_a_process_are_among_its_regions(name):
    with SharedMemory(name, create=True, size=10) as segment:
        assert segment.region in mmkit.regions()
        assert segment.region.name == name
        assert len(segment.region) == 10


# ---- without a name -----------------------------------------------------------------------------------


def test_a_memfd_has_no_name_and_a_descriptor():
    with SharedMemory.memfd(100) as segment:
        assert segment.name is None
        assert os.readlink(f"/proc/self/fd/{segment.fd}") == "/memfd:mmkit (deleted)"
        with SharedMemory.from_fd(segment.fd) as same:
            segment.buf[0] = 7
            assert same.buf[0] == 7
            assert same.fd != segment.fd
        with pytest.raises(mmkit.Error, match="no name"):
            segment.unlink()


def test_nobody_cuts_a_memfd_and_everybody_may_lengthen_it():
    with SharedMemory.memfd(100) as segment:
        with pytest.raises(PermissionError):
            os.truncate(segment.fd, 10)
        segment.resize(2 * PAGE)
        with SharedMemory.from_fd(segment.fd, readonly=True) as same:
            assert same.size == 2 * PAGE


def test_seals_forbid_what_they_say():
    with SharedMemory.memfd(100, seals=Seal.SHRINK | Seal.GROW | Seal.FUTURE_WRITE) as segment:
        segment.buf[0] = 7
        with pytest.raises(PermissionError):
            segment.resize(2 * PAGE)
        with pytest.raises(PermissionError):
            SharedMemory.from_fd(segment.fd)
        with SharedMemory.from_fd(segment.fd, readonly=True) as same:
            assert same.buf[0] == 7
    with SharedMemory.memfd(100, seals=Seal(0)) as segment:
        os.truncate(segment.fd, 10)


def test_huge_pages_are_had_or_the_caller_knows():
    with pytest.raises(ValueError, match="hugepages"):
        SharedMemory.memfd(100, hugepages=True)
    if with_huge_pages(2):
        with SharedMemory.memfd(100, hugepages="require") as segment:
            assert segment.region._page_size > PAGE
            with SharedMemory.from_fd(segment.fd) as same:
                segment.buf[0] = 7
                assert same.buf[0] == 7
    else:
        with pytest.raises(mmkit.Error):
            SharedMemory.memfd(100, hugepages="require")
    with (
        pytest.warns(RuntimeWarning, match="ordinary pages"),
        SharedMemory.memfd(1 << 42, hugepages="warn", reserve=False) as segment,
    ):
        assert segment.region._page_size == PAGE


def test_a_descriptor_that_is_no_memory_is_refused():
    reader, writer = os.pipe()
    for fd in (reader, writer):
        with pytest.raises(mmkit.Error, match="no regular file"):
            SharedMemory.from_fd(fd)
        os.close(fd)
    with pytest.raises(OSError, match="Bad file"):
        SharedMemory.from_fd(reader)
    with open("/dev/zero", "rb") as file, pytest.raises(mmkit.Error):
        SharedMemory.from_fd(file.fileno())


def test_a_memfd_goes_with_its_last_holder():
    before = len(os.listdir("/proc/self/fd"))
    with SharedMemory.memfd(100):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


# ---- pickled ------------------------------------------------------------------------------------------


def add_one(segment):
    with segment:
        segment.buf[0] += 1
        assert not segment.owned


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["named", "memfd"])
def test_a_process_gets_it_as_an_argument_and_its_exit_leaves_it(method, kind, name):
    segment = SharedMemory(name, create=True, size=10) if kind == "named" else SharedMemory.memfd(10)
    with segment:
        process = multiprocessing.get_context(method).Process(target=add_one, args=(segment,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert segment.buf[0] == 1
        assert (name in names()) == (kind == "named")


def test_it_goes_through_a_pipe_by_name_or_descriptor(name):
    ours, theirs = multiprocessing.Pipe()
    with SharedMemory(name, create=True, size=1 << 20) as named, SharedMemory.memfd(1 << 20) as nameless:
        for segment in (named, nameless):
            ours.send(segment)
            with theirs.recv() as received:
                received.buf[1] = 9
                assert segment.buf[1] == 9
                assert not received.owned


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_by_name_it_is_the_same_segment_attached_alike(name, protocol):
    with SharedMemory(name, create=True, size=10) as ours, SharedMemory(name, readonly=True) as reader:
        for segment in (ours, reader):
            data = pickle.dumps(segment, protocol)
            with pickle.loads(data) as copy:
                ours.buf[0] += 1
                assert copy.buf[0] == ours.buf[0]
                assert copy.buf.readonly == (segment is reader)
        assert protocol == 5 or len(data) < 300


def test_a_name_that_another_segment_took_is_told_from_the_pickled_one(name):
    with SharedMemory(name, create=True, size=10) as segment:
        data = pickle.dumps(segment, 4)
    with (
        SharedMemory(name, create=True, size=10),
        pytest.raises(mmkit.Error, match="another one has its name"),
    ):
        pickle.loads(data)


def test_with_protocol_5_contents_travel_out_of_band_and_become_a_segment_elsewhere(name):
    buffers = []
    with SharedMemory(name, create=True, size=1 << 20) as segment:
        segment.buf[:5] = b"hello"
        data = pickle.dumps(segment, 5, buffer_callback=buffers.append)
        assert len(data) < 400
        with memoryview(buffers[0]) as raw:
            contents = bytes(raw)
            assert raw.nbytes == 1 << 20
        buffers.clear()
    with pickle.loads(data, buffers=[contents]) as copy:
        assert copy.name is None
        assert copy.size == 1 << 20
        assert bytes(copy.buf[:5]) == b"hello"


def test_multiprocessing_sends_no_contents_whatever_its_protocol(name):
    from multiprocessing.reduction import ForkingPickler

    with SharedMemory(name, create=True, size=1 << 20) as segment:
        assert len(ForkingPickler.dumps(segment, protocol=5)) < 400


def test_the_standard_librarys_tracker_never_hears_of_it(name):
    code = f"""
import multiprocessing, pickle, mmkit
from multiprocessing import resource_tracker
segment = pickle.loads(pickle.dumps(mmkit.SharedMemory({name!r})))
assert resource_tracker._resource_tracker._fd is None
"""
    with SharedMemory(name, create=True, size=10):
        done = run(code)
        assert (done.returncode, done.stderr) == (0, "")
        assert name in names()


# ---- the end of the interpreter -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "views", ["", "view = segment.buf", "import numpy; view = numpy.ndarray(10, 'u1', segment.buf)"]
)
def test_an_interpreter_ends_quietly_and_leaves_the_segment_to_its_owners_word(name, views):
    done = run(f"import mmkit\nsegment = mmkit.SharedMemory({name!r}, create=True, size=10)\n{views}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert name in names()


def test_with_warnings_on_the_end_of_the_interpreter_names_what_was_not_closed(name):
    code = f"import mmkit\nsegment = mmkit.SharedMemory({name!r}, create=True, size=10)"
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", code],
        capture_output=True,
        text=True,
        env=HERE,
    )
    assert done.returncode == 0
    assert "ResourceWarning: unclosed <SharedMemory" in done.stderr


def test_a_segment_cut_by_another_program_is_a_fault_of_guarded_accesses_only(name):
    with SharedMemory(name, create=True, size=2 * PAGE) as segment:
        os.truncate(f"/dev/shm/{name}", PAGE)
        with pytest.raises(mmkit.MemoryFault, match="beyond end of file"):
            segment.region[PAGE]
        assert exit_signal(lambda: segment.buf[PAGE]) == signal.SIGBUS


def test_a_segments_text_names_it(name):
    with SharedMemory(name, create=True, size=10) as segment:
        assert repr(segment) == f"<SharedMemory {name!r} 10 bytes>"
        with SharedMemory(name, readonly=True) as reader:
            assert repr(reader) == f"<SharedMemory {name!r} 10 bytes, read-only>"
        assert repr(reader) == f"<SharedMemory {name!r} closed>"
    with SharedMemory.memfd(10, name="frames") as segment:
        assert repr(segment) == "<SharedMemory memfd:frames 10 bytes>"
