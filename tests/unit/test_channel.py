"""Channels: what is sent arrives, whole, once, and in order."""

import gc
import mmap
import os
import struct

import numpy as np
import pytest

from channels import CAPACITY, forked
from mmkit.shared import Channel

# ---- messages ----------------------------------------------------------------------------------------------


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
    with pytest.raises(TypeError, match="timeout"):
        channel.send(bytes(16 << 10), False)
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


# ---- in place ----------------------------------------------------------------------------------------------


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
