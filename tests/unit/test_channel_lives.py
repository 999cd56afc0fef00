"""Channels: names, closing, threads, forks, signals, and deaths."""

import contextlib
import gc
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import mmkit
from channels import CAPACITY, forked, killed
from mmkit.shared import Channel
from segment_tools import unshare
from support import in_child, needs_root, run

_CLONE_NEWPID = 0x20000000

# ---- names and lives ---------------------------------------------------------------------------------------


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


def test_leaving_the_block_under_a_live_view_removes_the_name_and_says_what_lives(name):
    with pytest.raises(BufferError, match="alive"), Channel(name, CAPACITY, create=True) as channel:
        channel.send(b"x")
        with pytest.raises(BufferError), channel.recv_view() as view:
            rest = view[:]
        loan = channel.loan(1)
        loan.__enter__()[:] = b"y"
    assert not os.path.exists(f"/dev/shm/{name}")
    rest.release()
    loan.__exit__(None, None, None)
    # What the view kept is whole: it can be used, and closed.
    assert channel.recv(0) == b"y"
    channel.close()


def test_what_a_block_raises_matters_more_than_a_live_view(name):
    with pytest.raises(KeyError) as caught, Channel(name, CAPACITY, create=True) as channel:
        loan = channel.loan(1)
        loan.__enter__()
        raise KeyError
    assert "a view of a message" in caught.value.__notes__[0]
    assert not os.path.exists(f"/dev/shm/{name}")
    loan.__exit__(None, None, None)
    channel.close()


def test_a_persistent_channel_outlives_its_makers_block(name):
    with Channel(name, CAPACITY, create=True, persist=True) as channel:
        channel.send(b"for later")
    with Channel(name) as later:
        assert later.recv(0) == b"for later"
        later.unlink()


def test_opening_another_one_with_the_same_object_is_refused_and_changes_nothing(name, channel):
    channel.send(b"x")
    for arguments in ((name + "_2", CAPACITY, True), (channel.name,)):
        with pytest.raises(ValueError, match="was opened with this object"):
            channel.__init__(*arguments)
    assert not os.path.exists(f"/dev/shm/{name}_2")
    assert channel.recv(0) == b"x"
    channel.unlink()


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


# ---- threads, forks, signals -------------------------------------------------------------------------------


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


def while_space_is_taken(monkeypatch, act):
    """Have another thread act, once, whenever somebody next takes space for a lane."""
    take = mmkit.shared.channel.reserve
    left = [act]

    def slowly(*arguments):
        if left:
            thread = threading.Thread(target=left.pop())
            thread.start()
            thread.join()
        take(*arguments)

    monkeypatch.setattr(mmkit.shared.channel, "reserve", slowly)


def test_while_a_new_writers_space_is_taken_other_threads_run_and_send_too(channel, monkeypatch):
    channel.send(b"first lane")
    lane = os.fstat(channel.fileno()).st_size - mmkit.PAGE_SIZE
    while_space_is_taken(monkeypatch, lambda: second.send(b"quicker"))
    with Channel(channel.name) as second:
        second.send(b"slower")
        assert sorted(channel.recv(0) for _ in range(3)) == [b"first lane", b"quicker", b"slower"]
    with Channel(channel.name) as third:
        third.send(b"in the same lane")
    assert os.fstat(channel.fileno()).st_size == mmkit.PAGE_SIZE + 2 * lane


def test_a_channel_closed_while_its_space_is_taken_says_so(channel, monkeypatch):
    channel.send(b"first lane")
    while_space_is_taken(monkeypatch, lambda: second.close())
    second = Channel(channel.name)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(mmkit.ClosedError):
        second.send(b"x")
    assert set(os.listdir("/proc/self/fd")) <= before
    with Channel(channel.name) as third:
        third.send(b"x")


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


def test_a_child_closes_what_its_parents_threads_were_using(channel):
    received, lent, enough = [], threading.Event(), threading.Event()

    def lend():
        with channel.loan(4) as view:
            lent.set()
            enough.wait(60)
            view[:] = b"loan"

    def use_and_close():
        with Channel(channel.name) as other:
            other.send(b"to the child")
        channel.close()
        assert channel.closed

    workers = [
        threading.Thread(target=lambda: received.append(channel.recv())),
        threading.Thread(target=lend),
    ]
    for worker in workers:
        worker.start()
    lent.wait()
    with pytest.raises(BufferError):
        channel.close()
    with forked(use_and_close):
        pass
    enough.set()
    for worker in workers:
        worker.join()
    assert [*received, channel.recv(10)] == [b"to the child", b"loan"]


def test_what_a_parent_lent_can_be_looked_at_in_a_child_that_has_closed(channel):
    with channel.loan(4) as view:
        view[:] = b"here"

        def close_and_look():
            channel.close()
            assert bytes(view) == b"here"
            view.release()

        with forked(close_and_look):
            pass
    assert channel.recv(0) == b"here"


def test_a_child_has_views_of_its_own_that_keep_it_from_closing(channel):
    with channel.loan(4) as parents:

        def lend():
            with channel.loan(4) as view, pytest.raises(BufferError, match="alive"):
                channel.close()
            assert view is not parents
            channel.close()

        with forked(lend):
            pass


@needs_root
def test_a_child_in_another_pid_namespace_is_refused(channel):
    def use_in_another():
        for use in (lambda: channel.send(b"x"), lambda: channel.recv(0)):
            with pytest.raises(mmkit.Error, match="PID namespace"):
                use()
        channel.close()

    def leave():
        unshare(_CLONE_NEWPID)
        with forked(use_in_another):
            pass

    channel.send(b"parent")
    with forked(leave):
        pass
    assert channel.recv(0) == b"parent"


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


@pytest.mark.parametrize("call", ["recv", "send"])
def test_a_signal_handler_may_close_the_channel_whose_wait_it_interrupts(name, call):
    def close_in_the_middle():
        channel = Channel(name, 4096, create=True)
        channel.unlink()
        signal.signal(signal.SIGALRM, lambda *_: channel.close())
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(mmkit.ClosedError):
            while True:
                channel.recv(30) if call == "recv" else channel.send(bytes(2000), 30)

    in_child(close_in_the_middle)


def test_signals_while_space_for_a_further_lane_is_reserved_do_not_make_the_first_message_fail(name):
    # Before Linux 6.18 a signal ends fallocate(2) on tmpfs.
    def interrupted():
        times = 0

        def interrupt(*_):
            nonlocal times
            times += 1
            if times < 5:
                signal.setitimer(signal.ITIMER_REAL, 0.001)

        signal.signal(signal.SIGALRM, interrupt)
        with Channel(name) as other:
            interrupt()
            other.send(b"second")

    with Channel(name, 64 << 20, create=True) as channel:
        channel.send(b"first")
        in_child(interrupted)
        assert {channel.recv(0), channel.recv(0)} == {b"first", b"second"}


@pytest.mark.parametrize("call", ["recv", "send"])
def test_a_timeout_that_closes_the_channel_while_it_is_converted_is_noticed(name, call):
    class Closing:
        def __float__(self):
            channel.close()
            return 30.0

    def close_in_the_middle():
        with pytest.raises(mmkit.ClosedError):
            while True:
                channel.recv(Closing()) if call == "recv" else channel.send(bytes(2000), Closing())

    channel = Channel(name, 4096, create=True)
    channel.unlink()
    in_child(close_in_the_middle)
    channel.close()


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


# ---- deaths ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("every", [0, 0.005])
def test_what_a_dead_reader_had_taken_comes_again_while_there_is_always_more_to_read(channel, every):
    channel.send(b"precious")
    killed(lambda: channel.recv_view().__enter__())
    end = time.monotonic() + 20
    received = None
    while received != b"precious":
        channel.send(b"more")
        received = channel.recv(0)
        time.sleep(every)  # a slow reader: it does not read 64 before it looks around
        assert time.monotonic() < end


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


def claim_of(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[19]) << 22 | pid


@contextlib.contextmanager
def stopped_while_mending(channel):
    """Somebody who lives, and does not go on."""
    with subprocess.Popen(["sleep", "60"]) as process:
        os.pwrite(channel.fileno(), struct.pack("Q", claim_of(process.pid)), 72)
        yield
        os.pwrite(channel.fileno(), bytes(8), 72)
        process.kill()


def test_while_somebody_mends_a_successor_waits_and_is_not_told_that_the_dead_live(name):
    with Channel(name, CAPACITY, create=True, single=True) as channel, Channel(name) as successor:
        channel.send(b"one")
        channel.send(b"two")
        killed(lambda: successor.recv())
        with stopped_while_mending(channel):
            assert in_child(lambda: idle_cost(successor)) < 0.5
            with pytest.raises(TimeoutError):
                successor.recv(0)
        assert successor.recv(10) == b"two"


def test_while_somebody_mends_the_successor_of_a_dead_writer_waits_too(name):
    with Channel(name, CAPACITY, create=True, single=True) as channel, Channel(name) as successor:
        killed(lambda: successor.send(b"one"))
        with stopped_while_mending(channel), pytest.raises(TimeoutError):
            successor.send(b"two", 0)
        successor.send(b"two", 10)
        assert [channel.recv(0), channel.recv(0)] == [b"one", b"two"]


def test_a_stopped_mender_keeps_no_new_writer_out(channel):
    channel.send(b"one")
    with stopped_while_mending(channel), Channel(channel.name) as other:
        other.send(b"two", 10)
        assert {channel.recv(0), channel.recv(0)} == {b"one", b"two"}


def test_a_writer_beyond_the_most_is_refused(name):
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(Channel(name, 4096, create=True))]
        channels += [stack.enter_context(Channel(name)) for _ in range(256)]
        for channel in channels[:256]:
            channel.send(b"x")
        with pytest.raises(mmkit.Error, match="256 living writers"):
            channels[256].send(b"x")
        assert [channels[0].recv(0) for _ in range(256)] == [b"x"] * 256
