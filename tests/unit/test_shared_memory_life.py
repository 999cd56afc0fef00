"""Promises of `mmkit.SharedMemory`: owners, makers that die, views, ends."""

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import mmkit
from mmkit import SharedMemory, shared
from mmkit.shared import files, record
from segment_tools import HERE, mount_over_dev_shm, names, needs_mounts
from support import NOBODY, PAGE, exit_signal, in_child, needs_root, run

# ---- owners -----------------------------------------------------------------------------------------


def test_the_owners_block_removes_and_an_attachers_does_not(name):
    with SharedMemory(name, create=True, size=1) as ours:
        with SharedMemory(name) as theirs:
            assert (ours.owned, theirs.owned) == (True, False)
        assert name in names()
    assert name not in names()
    assert not ours.owned


def test_threads_that_make_their_first_ones_at_one_time_own_them(name):
    def make_two():
        both, this_process = threading.Barrier(2, timeout=30), record.this_process

        def together():
            both.wait()
            return this_process()

        def make(suffix):
            with shared.Channel(name + suffix, 4096, create=True):
                both.wait()

        record.this_process = together
        threads = [threading.Thread(target=make, args=(suffix,)) for suffix in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {left for left in names() if left.startswith(name)}

    assert in_child(make_two) == set()


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
        # As it was set aside to be removed.
        assert area.deleted
        assert area.path.startswith(b"/dev/shm/.mmkit-removing-")
        assert area.path.endswith(b"-" + name.encode())


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
    """Of three kinds, since each is complete when something else is: space, array, sparse."""
    size = 3 * PAGE
    seconds = float(os.environ.get("MMKIT_STRESS_SECONDS", "2"))
    end, killed = time.monotonic() + seconds, 0
    while killed < 100 or time.monotonic() < end:
        kind = killed % 3
        pid = os.fork()
        if pid == 0:
            while True:
                if kind == 1:
                    shared.array(name, size, "u1", create=True).segment.unlink()
                else:
                    SharedMemory(name, create=True, size=size, reserve=kind == 0).unlink()
        time.sleep(random.random() * 0.003)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
        if name not in names():
            continue
        if kind == 1:
            shared.array(name, size, "u1").segment.unlink()
        else:
            with SharedMemory(name, size=size) as left:
                assert left.size == size
                assert os.fstat(left.fd).st_blocks * 512 == (size if kind == 0 else 0)
                assert os.getxattr(left.fd, "user.mmkit").startswith(b"mmkit-segment 1 ")
                left.unlink()
    assert not {found for found in names() if found.startswith((name, ".mmkit-making"))}


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


@pytest.mark.parametrize(
    "kind", [partial(SharedMemory, size=PAGE), shared.Lock, partial(shared.Channel, capacity=4096)]
)
def test_who_takes_the_name_from_a_maker_at_that_very_instant_shares_nothing_with_it(name, kind, monkeypatch):
    path = Path("/dev/shm", name)
    open_named = files._open_named

    def when_another_has_the_name(fd, name):
        path.unlink()
        path.write_bytes(b"theirs" * PAGE)
        return open_named(fd, name)

    monkeypatch.setattr(files, "_open_named", when_another_has_the_name)
    ours = kind(name, create=True)
    if isinstance(ours, SharedMemory):
        ours.buf[:4] = b"ours"
    with pytest.raises(FileNotFoundError):
        ours.unlink()
    ours.close()
    assert path.read_bytes() == b"theirs" * PAGE


@pytest.fixture
def at_renaming(monkeypatch):
    """Have something happen when a name was looked at and is about to be set aside; and something after that."""

    def happens(before, after=lambda: None):
        rename = os.rename

        def late(path, aside):
            monkeypatch.setattr(os, "rename", rename)
            before()
            rename(path, aside)
            after()

        monkeypatch.setattr(os, "rename", late)

    return happens


def set_aside(name):
    return {left for left in names() if left.startswith(".mmkit-removing") and name in left}


def replace(path, contents):
    """Give a name to another file."""
    path.unlink()
    path.write_bytes(contents)


@pytest.mark.parametrize(
    "kind", [partial(SharedMemory, size=PAGE), shared.Lock, partial(shared.Channel, capacity=4096)]
)
def test_what_takes_the_name_while_it_is_removed_keeps_it(name, kind, at_renaming):
    path = Path("/dev/shm", name)
    ours = kind(name, create=True)
    at_renaming(lambda: replace(path, b"theirs"))
    with pytest.raises(FileNotFoundError):
        ours.unlink()
    ours.close()
    assert path.read_bytes() == b"theirs"
    assert not set_aside(name)


def test_nobody_loses_a_name_to_what_is_put_back(name, at_renaming):
    path = Path("/dev/shm", name)
    ours = SharedMemory(name, create=True, size=PAGE)
    at_renaming(lambda: replace(path, b"second"), lambda: path.write_bytes(b"third"))
    with pytest.raises(FileNotFoundError):
        ours.unlink()
    ours.close()
    assert path.read_bytes() == b"third"
    # The second has lost its name to the third. Whose it is, nobody can tell: it stays.
    shared.reap()
    (aside,) = set_aside(name)
    assert Path("/dev/shm", aside).read_bytes() == b"second"
    os.link(f"/dev/shm/{aside}", f"/dev/shm/{name}-second")
    shared.reap()
    assert not set_aside(name)
    assert Path(f"/dev/shm/{name}-second").read_bytes() == b"second"


def test_what_its_remover_died_over_is_removed_by_reap_once_nobody_has_it(name, monkeypatch):
    ours = SharedMemory(name, create=True, size=PAGE, persist=True)
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(os, "unlink", lambda _path: os.kill(os.getpid(), signal.SIGKILL))
        ours.unlink()
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
    shared.reap()
    assert set_aside(name)
    ours.close()
    shared.reap()
    assert not set_aside(name)


@needs_mounts
def test_what_is_not_removed_gets_its_name_back_where_there_is_no_inode_for_a_second_one(name):
    def everything():
        mount_over_dev_shm("tmpfs", "nr_inodes=9,mode=1777")
        with SharedMemory(name, create=True, size=1) as ours:
            with pytest.raises(OSError, match="No space left"):
                for number in range(9):
                    Path(f"/dev/shm/{number}").touch()
            before = names()
            with pytest.raises(FileNotFoundError):
                files.remove(name, ours._identity, unless=lambda: True)
            assert names() == before

    in_child(everything)


def test_reap_may_finish_what_is_being_removed(name, at_renaming):
    ours = SharedMemory(name, create=True, size=PAGE)
    ours.close()
    at_renaming(lambda: None, shared.reap)
    ours.unlink()
    assert not {left for left in names() if name in left}


def test_an_interrupt_as_a_name_is_set_aside_leaves_it(name, at_renaming):
    ours = SharedMemory(name, create=True, size=PAGE)
    at_renaming(lambda: None, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ours.unlink()
    assert name in names()
    ours.unlink()
    ours.close()


def test_an_interrupt_while_a_name_is_removed_leaves_it(name):
    ours = SharedMemory(name, create=True, size=PAGE)
    with pytest.raises(KeyboardInterrupt):
        files.remove(name, ours._identity, unless=lambda: signal.raise_signal(signal.SIGINT))
    assert name in names()
    ours.unlink()
    assert not {left for left in names() if name in left}
    ours.close()


def test_who_opens_what_is_being_reaped_gets_it_with_its_name(name, at_renaming):
    pid = os.fork()
    if pid == 0:
        SharedMemory(name, create=True, size=PAGE)
        os._exit(0)
    os.waitpid(pid, 0)

    def open_it():
        # Without O_NONBLOCK it would wait; the kernel asks for the lease back either way.
        with pytest.raises(BlockingIOError):
            os.open(f"/dev/shm/{name}", os.O_RDWR | os.O_NONBLOCK)

    at_renaming(open_it)
    assert shared.reap() == []
    assert name in names()
    assert [segment.name for segment in shared.reap()] == [name]
