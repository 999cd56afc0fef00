"""Channels: what is sent arrives, whole, once, and in order; and what goes wrong is said and leaves nothing behind."""

import contextlib
import errno
import gc
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import mmkit
from mmkit.shared import Channel
from support import in_child, needs_root, run

CAPACITY = 64 * 1024
HEADER = 4096


@pytest.fixture
def name(request):
    """A name of this test's own; nothing of it is left in /dev/shm."""
    name = f"mmkit_test_channel_{os.getpid()}"
    yield name
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"/dev/shm/{name}")


@pytest.fixture
def channel(name):
    with Channel(name, CAPACITY, create=True) as channel:
        yield channel


@pytest.fixture(params=[False, True], ids=["many", "single"])
def any_channel(request, name):
    with Channel(name, CAPACITY, create=True, single=request.param) as channel:
        yield channel


@contextlib.contextmanager
def forked(function):
    """Run a function in a forked child meanwhile; it must end well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(60)
            function()
            code = 0
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        _, status = os.waitpid(pid, 0)
    assert status == 0


def killed(function):
    """Run a function in a forked child that kills itself at its end."""

    def body():
        function()
        os.kill(os.getpid(), signal.SIGKILL)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)


# ---- messages -----------------------------------------------------------------------------------------------


def test_what_is_sent_arrives_in_order_and_whole(any_channel):
    messages = [bytes([i % 251]) * (i * 37 % 2000) for i in range(1000)]

    def send():
        for message in messages:
            any_channel.send(message)

    with forked(send):
        assert [any_channel.recv(timeout=30) for _ in messages] == messages


def test_any_contiguous_buffer_can_be_sent(channel):
    for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"view"), np.arange(5), mmap.mmap(-1, 10)):
        channel.send(data)
        assert channel.recv(0) == bytes(data)
    with pytest.raises(BufferError):
        channel.send(memoryview(b"0123456789")[::2])
    with pytest.raises(TypeError):
        channel.send("text")


def test_large_messages_go_by_without_the_gil_and_arrive_whole(name):
    data = os.urandom(4 << 20)
    with Channel(name, 16 << 20, create=True) as channel:
        channel.send(data)
        with channel.loan(len(data)) as view:
            view[:] = data
        assert channel.recv() == data
        with channel.recv_view() as view:
            assert view == data


def test_the_longest_message_is_half_the_capacity(channel):
    longest = bytes(CAPACITY // 2)
    assert channel.longest == len(longest)
    for _ in range(5):
        channel.send(longest)
        assert channel.recv() == longest
    with pytest.raises(ValueError, match="too long: 32 KiB are the most"):
        channel.send(longest + b"x")
    with pytest.raises(ValueError, match="too long"), channel.loan(len(longest) + 1):
        pass


def test_an_empty_message_is_one(channel):
    channel.send(b"")
    with channel.loan(0) as view:
        assert len(view) == 0
    assert [channel.recv(0), channel.recv(0)] == [b"", b""]


def test_when_the_time_is_up_a_timeout_error_says_so(channel):
    with pytest.raises(TimeoutError, match=r"no message within 0\.01 s"):
        channel.recv(timeout=0.01)
    with pytest.raises(TimeoutError):
        channel.recv(0)
    with pytest.raises(TimeoutError):
        channel.recv_view(timeout=0).__enter__()
    with pytest.raises(TimeoutError, match="no room for 16 KiB within 0 s"):
        while True:
            channel.send(bytes(16 << 10), timeout=0)
    with pytest.raises(TimeoutError), channel.loan(16 << 10, timeout=0.01):
        pass
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            channel.send(bytes(16 << 10), bad)


def test_a_full_channel_holds_its_writer_until_somebody_reads(any_channel):
    def read():
        for _ in range(10):
            any_channel.recv(timeout=30)

    for _ in range(2):
        any_channel.send(bytes(32 << 10))
    with pytest.raises(TimeoutError):
        any_channel.send(b"", 0)
    with forked(read):
        for _ in range(8):
            any_channel.send(bytes(32 << 10), timeout=30)


def test_writers_do_not_wait_for_each_other(name):
    with Channel(name, CAPACITY, create=True) as one, Channel(name) as other:
        one.send(bytes(32 << 10))
        one.send(bytes(32 << 10))
        with pytest.raises(TimeoutError):
            one.send(b"", 0)
        other.send(b"", 0)


def test_each_message_goes_to_one_reader_and_a_writers_order_is_kept(name):
    with Channel(name, CAPACITY, create=True) as writer, Channel(name) as one, Channel(name) as other:
        for i in range(100):
            writer.send(struct.pack("q", i))
        got = [[struct.unpack("q", reader.recv(0))[0] for _ in range(50)] for reader in (one, other)]
        assert sorted(got[0] + got[1]) == list(range(100))
        assert all(part == sorted(part) for part in got)


def test_no_writer_is_left_waiting_while_another_has_messages(name):
    with Channel(name, 4 << 20, create=True) as reader, Channel(name) as busy, Channel(name) as quiet:
        for _ in range(10000):
            busy.send(b"busy")
        quiet.send(b"quiet")
        assert b"quiet" in [reader.recv(0) for _ in range(200)]


# ---- in place -----------------------------------------------------------------------------------------------


def test_a_loan_is_sent_when_its_block_ends(channel):
    with channel.loan(5) as view:
        view[:] = b"hello"
        with pytest.raises(TimeoutError):
            channel.recv(0)
    assert channel.recv(0) == b"hello"
    with pytest.raises(ValueError, match="released"):
        view[0]


def test_a_loan_whose_block_raises_sends_nothing(channel):
    with pytest.raises(ZeroDivisionError), channel.loan(5):
        1 / 0  # noqa: B018
    channel.send(b"next")
    assert channel.recv(0) == b"next"


def test_a_view_of_a_message_cannot_be_written_and_ends_with_its_block(channel):
    channel.send(b"hello")
    with channel.recv_view() as view:
        assert bytes(view) == b"hello"
        with pytest.raises(TypeError, match="read-only"):
            view[0] = 1
    with pytest.raises(ValueError, match="released"):
        view[0]
    with pytest.raises(TimeoutError):
        channel.recv(0)


@pytest.mark.parametrize("delivery", ["at-least-once", "at-most-once"])
@pytest.mark.parametrize("single", [False, True])
def test_a_message_whose_block_raises_comes_again_or_is_gone(name, delivery, single):
    with Channel(name, CAPACITY, create=True, delivery=delivery, single=single) as channel:
        channel.send(b"one")
        channel.send(b"two")
        with pytest.raises(ZeroDivisionError), channel.recv_view():
            1 / 0  # noqa: B018
        assert channel.recv(0) == (b"one" if delivery == "at-least-once" else b"two")


def test_what_outlives_a_loans_block_is_an_error_and_reaches_no_other_message(channel):
    with pytest.raises(BufferError, match="nothing was sent"), channel.loan(8) as view:
        array = np.frombuffer(view, "u1")
    channel.send(b"other")
    with pytest.raises(TimeoutError):
        channel.recv(0)
    array[:] = 7
    with pytest.raises(BufferError, match="alive"):
        channel.close()
    del array
    gc.collect()
    assert channel.recv(0) == b"other"


def test_what_outlives_a_views_block_keeps_the_bytes_until_it_is_gone(channel):
    channel.send(bytes(range(64)) * 512)
    with pytest.raises(BufferError, match="finished when that is gone"), channel.recv_view() as view:
        part = view[:64]
    channel.send(bytes(32 << 10), 0)
    with pytest.raises(TimeoutError):
        channel.send(bytes(32 << 10), 0)
    assert bytes(part) == bytes(range(64))
    del view, part
    gc.collect()
    assert channel.recv(0) == bytes(32 << 10)
    channel.send(bytes(32 << 10), 0)


def test_loans_can_overlap_and_are_read_in_the_order_they_were_lent(channel):
    with channel.loan(1) as first:
        with channel.loan(1) as second:
            second[:] = b"2"
        first[:] = b"1"
    assert [channel.recv(0), channel.recv(0)] == [b"1", b"2"]


def test_a_loan_serves_one_block(channel):
    loan = channel.loan(1)
    with pytest.raises(BufferError):
        memoryview(loan)
    with loan:
        pass
    with pytest.raises(ValueError, match="one block"):
        loan.__enter__()
    with pytest.raises(ValueError, match="-1 bytes"):
        channel.loan(-1)


def test_a_loan_that_is_dropped_in_its_block_is_given_up(channel):
    def lend():
        with channel.loan(4) as view:
            yield view

    lending = lend()
    next(lending)
    lending.close()
    channel.send(b"next")
    assert channel.recv(0) == b"next"


def test_what_was_entered_by_hand_and_dropped_is_given_up_by_the_collector(channel):
    channel.send(b"to be read")
    for make in (lambda: channel.loan(4), channel.recv_view):
        make().__enter__()
        gc.collect()
    channel.send(b"next")
    # What was taken was put back, behind nothing.
    assert [channel.recv(0), channel.recv(0)] == [b"to be read", b"next"]
    lent = channel.loan(4)
    view = lent.__enter__()
    del lent
    gc.collect()
    view[:] = b"kept"
    del view
    gc.collect()
    channel.close()


# ---- names and lives ----------------------------------------------------------------------------------------


def test_a_channel_appears_under_its_name_with_all_its_space(name):
    with Channel(name, 1 << 20, create=True, mode=0o640) as channel:
        status = os.stat(f"/dev/shm/{name}")
        assert status.st_mode & 0o777 == 0o640
        assert status.st_blocks * 512 >= status.st_size > 1 << 20
        assert os.fstat(channel.fileno()).st_ino == status.st_ino
    assert not os.path.exists(f"/dev/shm/{name}")


def test_the_umask_does_not_change_the_mode(name):
    before = os.umask(0o077)
    try:
        with Channel(name, CAPACITY, create=True, mode=0o666):
            assert os.stat(f"/dev/shm/{name}").st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_only_its_maker_removes_the_name_at_the_end_of_a_block(name):
    with Channel(name, CAPACITY, create=True) as made:
        with Channel(name):
            pass
        assert os.path.exists(f"/dev/shm/{name}")

        def end_in_child():
            made.__exit__(None, None, None)

        with forked(end_in_child):
            pass
        assert os.path.exists(f"/dev/shm/{name}")
    assert not os.path.exists(f"/dev/shm/{name}")


def test_close_and_unlink_go_in_either_order(name):
    for first, second in (("close", "unlink"), ("unlink", "close")):
        channel = Channel(name, CAPACITY, create=True)
        getattr(channel, first)()
        getattr(channel, second)()
        assert channel.closed
        channel.close()
        with pytest.raises(FileNotFoundError):
            channel.unlink()


def test_unlink_leaves_somebody_elses_file_of_that_name_alone(name):
    channel = Channel(name, CAPACITY, create=True)
    os.unlink(f"/dev/shm/{name}")
    with open(f"/dev/shm/{name}", "w") as other:
        other.write("other")
    with pytest.raises(FileNotFoundError):
        channel.unlink()
    channel.close()
    assert Path(f"/dev/shm/{name}").read_text() == "other"


def test_a_closed_channel_says_so(channel):
    channel.close()
    for call in (
        lambda: channel.send(b""),
        channel.recv,
        channel.fileno,
        channel.__enter__,
        channel.loan(1).__enter__,
    ):
        with pytest.raises(mmkit.ClosedError, match="closed"):
            call()
    assert "closed" in repr(channel)


def test_a_channel_that_is_not_closed_is_worth_a_warning(name):
    channel = Channel(name, CAPACITY, create=True)
    channel.unlink()
    with pytest.warns(ResourceWarning, match=f"unclosed <Channel '{name}' of 64 KiB>"):
        del channel
        gc.collect()


def test_messages_outlive_their_writer(name):
    with Channel(name, CAPACITY, create=True) as channel:
        with Channel(name) as writer:
            writer.send(b"left behind")
        assert channel.recv(0) == b"left behind"


def test_a_channel_passes_to_a_new_interpreter_by_name(channel):
    channel.send(b"there and")
    done = run(f"import mmkit\nwith mmkit.Channel({channel.name!r}) as c: c.send(c.recv(30) + b' back')")
    assert (done.returncode, done.stderr) == (0, "")
    assert channel.recv(30) == b"there and back"


# ---- threads, forks, signals ----------------------------------------------------------------------------------


def test_threads_share_one_channel_object(any_channel):
    count, threads = 2000, 4
    received = []

    def send(number):
        for i in range(count):
            any_channel.send(struct.pack("qq", number, i), 60)

    def receive():
        received.extend(struct.unpack("qq", any_channel.recv(60)) for _ in range(count))

    workers = [threading.Thread(target=send, args=(i,)) for i in range(threads)]
    workers += [threading.Thread(target=receive) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(received) == [(number, i) for number in range(threads) for i in range(count)]


def test_close_is_refused_while_another_thread_waits_in_a_call(channel):
    waiting = threading.Thread(target=channel.recv)
    waiting.start()
    try:
        with pytest.raises(BufferError, match="running"):
            while True:
                channel.close()
                assert not channel.closed
    finally:
        channel.send(b"enough")
        waiting.join()


def test_a_forked_child_is_a_writer_and_reader_of_its_own(channel):
    channel.send(b"parent")
    assert channel.recv() == b"parent"

    def child():
        channel.send(b"child 1")
        channel.send(b"child 2")

    with channel.loan(6) as view:
        with forked(child):
            pass
        view[:] = b"parent"
    # The child's come first: it had a lane of its own, not the one with the loan that was open.
    assert {channel.recv(0) for _ in range(3)} == {b"child 1", b"child 2", b"parent"}


def test_a_fork_inside_a_block_does_not_send_or_finish_the_parents_message(channel):
    channel.send(b"to be seen")
    with channel.loan(4) as view, channel.recv_view():
        view[:] = b"half"

        def child():
            pass

        lent = channel.loan(4)
        with lent as inner:
            inner[:] = b"none"
            with forked(lambda: lent.__exit__(None, None, None)):
                pass
            with pytest.raises(TimeoutError):
                channel.recv(0)
    assert [channel.recv(0), channel.recv(0)] == [b"half", b"none"]


@pytest.mark.parametrize("call", ["c.recv()", "[c.send(bytes(8000)) for _ in range(99)]"])
def test_ctrl_c_ends_a_wait(channel, call):
    code = f"import mmkit\nc = mmkit.Channel({channel.name!r})\nprint('waits', flush=True)\ntry: {call}\nfinally: c.close()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"waits\n"
        wchan_is(process.pid, "futex")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors


def wchan_is(pid, word):
    """Wait until the process sleeps in the kernel where its wait channel says."""
    for _ in range(30000):
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "S":
                with open(f"/proc/{pid}/syscall") as call:
                    if call.read().split()[0] in ("202", "98", "running"):
                        return
        time.sleep(0.001)
    raise AssertionError("it never slept")


def test_an_idle_receiver_sleeps(channel):
    done = in_child(lambda: idle_cost(channel))
    assert done < 0.2


def idle_cost(channel):
    before = time.process_time()
    with pytest.raises(TimeoutError):
        channel.recv(1)
    return time.process_time() - before


# ---- deaths -------------------------------------------------------------------------------------------------


def test_a_killed_writers_loan_is_lost_and_what_it_sent_is_not(channel):
    def die_lending():
        channel.send(b"sent")
        loan = channel.loan(4)
        loan.__enter__()
        with channel.loan(5) as view:
            view[:] = b"after"

    killed(die_lending)
    assert [channel.recv(10), channel.recv(10)] == [b"sent", b"after"]
    with pytest.raises(TimeoutError):
        channel.recv(0)


def receive_or_none(channel):
    with contextlib.suppress(TimeoutError):
        return channel.recv(0.5)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("delivery", ["at-least-once", "at-most-once"])
def test_what_a_killed_reader_had_taken_is_delivered_again_or_gone(name, delivery, single):
    with Channel(name, CAPACITY, create=True, delivery=delivery, single=single) as channel:
        channel.send(b"one")
        channel.send(b"two")
        killed(lambda: channel.recv_view().__enter__())
        got = set(iter(lambda: receive_or_none(channel), None))
        assert sorted(got) == ([b"one", b"two"] if delivery == "at-least-once" else [b"two"])


def test_a_killed_readers_message_does_not_hold_its_writer_for_ever(channel):
    channel.send(bytes(32 << 10))
    killed(lambda: channel.recv_view().__enter__())
    channel.send(bytes(32 << 10))

    def read():
        assert len(channel.recv(20)) == len(channel.recv(20)) == 32 << 10

    with forked(read):
        channel.send(b"", 20)


def test_places_of_the_dead_are_taken_over(name):
    with Channel(name, 4096, create=True, single=True) as channel:
        for i in range(5):
            killed(lambda i=i: channel.send(b"%d" % i))

            def read(i=i):
                assert channel.recv(20) == b"%d" % i

            killed(read)


def test_lanes_of_the_dead_are_used_again(channel):
    size = os.fstat(channel.fileno()).st_size
    for _ in range(20):
        killed(lambda: channel.send(b"x"))
        assert channel.recv(10) == b"x"
    assert os.fstat(channel.fileno()).st_size == size


def test_a_single_channel_refuses_a_second_writer_and_a_second_reader(name):
    with Channel(name, CAPACITY, create=True, single=True) as one, Channel(name) as other:
        one.send(b"x")
        assert other.recv() == b"x"
        with pytest.raises(mmkit.Error, match="its one writer"):
            other.send(b"x")
        with pytest.raises(mmkit.Error, match="its one reader"):
            one.recv()


def test_a_writer_beyond_the_most_is_refused(name):
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(Channel(name, 4096, create=True))]
        channels += [stack.enter_context(Channel(name)) for _ in range(256)]
        for channel in channels[:256]:
            channel.send(b"x")
        with pytest.raises(mmkit.Error, match="256 living writers"):
            channels[256].send(b"x")
        assert [channels[0].recv(0) for _ in range(256)] == [b"x"] * 256


# ---- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["a/b", "", ".", "..", "a\0b", "x" * 300])
def test_what_cannot_be_a_name_is_refused(bad):
    for create in (False, True):
        with pytest.raises(ValueError, match="cannot name"):
            Channel(bad, 4096 if create else None, create=create)


@pytest.mark.parametrize("capacity", [0, 1, 4095, -1, (4 << 30) + 1, 1 << 70])
def test_a_capacity_out_of_bounds_is_refused_and_nothing_made(name, capacity):
    with pytest.raises(ValueError, match="4 KiB to 4 GiB"):
        Channel(name, capacity, create=True)
    assert not os.path.exists(f"/dev/shm/{name}")


def test_arguments_that_do_not_go_together_are_refused(name):
    with pytest.raises(ValueError, match="needs a capacity"):
        Channel(name, create=True)
    with pytest.raises(ValueError, match="belongs to create"):
        Channel(name, 4096)
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


def test_no_address_space_is_an_error_and_leaves_nothing(name):
    def attempt():
        with pytest.raises(MemoryError):
            Channel(name, 1 << 30, create=True)
        left = os.path.exists(f"/dev/shm/{name}")
        Channel(name, 4096, create=True).close()
        return left

    # Space in /dev/shm is there; addresses to map it are not.
    if os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize < 2 << 30:
        pytest.skip("/dev/shm is too small")
    assert in_child(attempt, limits={resource.RLIMIT_AS: 1 << 30}) is False


SMALL_SHM = """
import errno, os, pathlib, mmkit
def left(): return os.listdir("/dev/shm")
try: mmkit.Channel("big", 4 << 20, create=True)
except mmkit.SyscallError as error: assert error.errno == errno.ENOSPC and "full" in str(error), error
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
