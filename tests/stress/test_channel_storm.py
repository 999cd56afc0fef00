"""Writers and readers killed at random instants: nothing torn, nothing committed lost, and nobody hangs.

Each writer counts what it has sent, and each reader notes what it got, in memory that outlives it. A message says who
wrote it and which it is, and its bytes follow from that. 520 die, 130 a storm: MMKIT_STRESS_SECONDS makes each longer,
MMKIT_STRESS_KILLS makes it more or fewer. core/tests/test_channel_kills.c kills at every instruction, but one at a time.
"""

import contextlib
import itertools
import mmap
import os
import random
import signal
import struct
import time
import warnings

import pytest

from mmkit.shared import Channel
from support import SANITIZED

KILLS = int(os.environ.get("MMKIT_STRESS_KILLS", "30" if SANITIZED else "130"))
SECONDS = float(os.environ.get("MMKIT_STRESS_SECONDS", "0"))
PATIENCE = 30
WORD = struct.Struct("=IIH")  # writer, message, length


def body(writer, message, length):
    return bytes([(writer * 31 + message) % 256]) * length


def fork(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function(*arguments)
            code = 0
        finally:
            os._exit(code)
    return pid


def write(name, writer, counts, seed):
    """Send messages; before each its number is noted as begun, after it as sent."""
    choice = random.Random(seed)
    with Channel(name) as channel:
        for message in itertools.count():
            length = choice.choice((0, 3, 50, 64, 200, 1500))
            counts[2 * writer] = message + 1
            data = WORD.pack(writer, message, length) + body(writer, message, length)
            if message % 2:
                with channel.loan(len(data), PATIENCE) as view:
                    view[:] = data
            else:
                channel.send(data, PATIENCE)
            counts[2 * writer + 1] = message + 1


def check(data):
    writer, message, length = WORD.unpack_from(data)
    assert bytes(data[WORD.size :]) == body(writer, message, length), "torn"
    return writer, message


def read(name, pipe, holding):
    """Note each message, in place, before it is finished: a pipe keeps it when we are killed."""
    with Channel(name) as channel:
        while True:
            with channel.recv_view(PATIENCE) as view:
                holding[0] = 1
                os.write(pipe, struct.pack("=II", *check(view)))
                holding[0] = 0


class Storm:
    def __init__(self, name, writers_at_a_time, readers, **how):
        self.name, self.how = name, how
        self.writers_at_a_time, self.readers_at_a_time = writers_at_a_time, readers
        self.most_writers = KILLS + int(SECONDS * 100) + 100
        self.counts = memoryview(mmap.mmap(-1, self.most_writers * 16)).cast("Q")
        self.pipe, self.pipe_end = os.pipe()
        os.set_blocking(self.pipe, False)
        self.notes = bytearray()
        self.holding = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self.writers, self.readers, self.kills, self.readers_killed = {}, {}, 0, 0
        self.killed_sending = self.killed_holding = 0
        self.random = random.Random(7)
        self.next_writer = 0

    def start_missing(self):
        while len(self.writers) < self.writers_at_a_time:
            number = self.next_writer
            self.next_writer += 1
            self.writers[fork(write, self.name, number, self.counts, number)] = number
        self.start_missing_readers()

    def start_missing_readers(self):
        while len(self.readers) < self.readers_at_a_time:
            number = min(set(range(self.readers_at_a_time)) - set(self.readers.values()))
            self.holding[number] = 0
            self.readers[fork(read, self.name, self.pipe_end, self.holding[number:])] = number

    def drain(self):
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.pipe, 1 << 16):
                self.notes += part

    def kill_one(self):
        both = [*self.writers, *self.readers]
        victim = self.random.choice(both)
        os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(victim, 0)
        assert os.WIFSIGNALED(status), "it ended by itself: a hang, or a torn message"
        if victim in self.readers:
            self.readers_killed += 1
            self.killed_holding += self.holding[self.readers.pop(victim)]
        else:
            writer = self.writers.pop(victim)
            self.killed_sending += self.counts[2 * writer] > self.counts[2 * writer + 1]
        self.kills += 1

    def run(self):
        end = time.monotonic() + SECONDS
        with Channel(self.name, 16384, create=True, **self.how):
            while (
                self.kills < KILLS
                or not (self.killed_sending and self.killed_holding)
                or (time.monotonic() < end and self.next_writer < self.most_writers - 10)
            ):
                self.start_missing()
                pause = time.monotonic() + self.random.random() * 0.01
                while time.monotonic() < pause:
                    self.drain()
                    time.sleep(0.001)
                self.kill_one()
            self.let_readers_finish()

    def let_readers_finish(self):
        for pid in self.writers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.writers.clear()
        self.start_missing_readers()
        quiet_since, seen = time.monotonic(), -1
        # No message for so long that the dead have been found many times over.
        while time.monotonic() - quiet_since < 1.5:
            self.drain()
            if len(self.notes) != seen:
                quiet_since, seen = time.monotonic(), len(self.notes)
            time.sleep(0.01)
        for pid in self.readers:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status)

    def judge(self):
        """Return how many messages were lost though committed, and how many came again."""
        times = {}
        for key in struct.iter_unpack("=II", bytes(self.notes)):
            times[key] = times.get(key, 0) + 1
        lost = sum(
            (writer, message) not in times
            for writer in range(self.next_writer)
            for message in range(self.counts[2 * writer + 1])
        )
        invented = [key for key in times if key[1] >= self.counts[2 * key[0]]]
        assert invented == []
        return lost, sum(count - 1 for count in times.values()), len(times)


@pytest.mark.timeout(120 + SECONDS * 3 + KILLS)
@pytest.mark.parametrize("delivery", ["at-least-once", "at-most-once"])
@pytest.mark.parametrize("shape", ["many", "single"])
def test_killed_writers_and_readers_lose_nothing_that_was_committed(delivery, shape):
    name = f"mmkit_storm_{os.getpid()}"
    count = 1 if shape == "single" else 3
    storm = Storm(name, count, count, delivery=delivery, single=shape == "single")
    storm.run()
    lost, again, delivered = storm.judge()
    print(
        f"{shape} {delivery}: {storm.kills} kills, {storm.killed_sending} in a send, {storm.killed_holding} with a message, "
        f"{delivered} messages, {lost} lost, {again} again"
    )
    if delivery == "at-least-once":
        assert lost == 0
        # Each killed reader had at most one message in its hands.
        assert again <= storm.readers_killed
    else:
        assert again == 0
        assert lost <= storm.readers_killed
    assert delivered > 100
