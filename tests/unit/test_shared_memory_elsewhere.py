"""Promises of `mmkit.SharedMemory` without a name, and pickled."""

import multiprocessing
import os
import pickle
from multiprocessing import resource_sharer

import pytest

import mmkit
from mmkit import SharedMemory, SystemVMemory
from mmkit.flags import Seal
from segment_tools import names
from support import NOBODY, PAGE, in_child, needs_root, run, with_huge_pages

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
            with_huge_pages(1)
            longer = segment.region._page_size + 1
            segment.resize(longer)
            assert segment.size == longer
            segment.buf[-1] = 7
    with pytest.raises(mmkit.SyscallError, match="Not enough free huge pages|no huge pages"):
        SharedMemory.memfd(1 << 42, hugepages="require")
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


@pytest.fixture
def sharer_of_descriptors():
    """End the thread with which multiprocessing hands out descriptors: other tests want to have none."""
    yield
    resource_sharer.stop(timeout=10)


@pytest.mark.usefixtures("sharer_of_descriptors")
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


@needs_root
def test_a_pickled_segment_that_may_not_be_attached_is_an_error_and_no_copy(name):
    def refused():
        for protocol in (4, 5):
            with pytest.raises(PermissionError):
                pickle.loads(data[protocol])

    with SharedMemory(name, create=True, size=10) as segment:
        data = {protocol: pickle.dumps(segment, protocol) for protocol in (4, 5)}
        in_child(refused, user=NOBODY)
    with SystemVMemory(size=10, create=True) as segment:
        data = {protocol: pickle.dumps(segment, protocol) for protocol in (4, 5)}
        in_child(refused, user=NOBODY)


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
