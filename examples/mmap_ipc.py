"""Parent and child through shared memory: a ring of messages, without polling, and a crash that is noticed.

Both have the same region (MAP_SHARED). Two pipes carry one byte for each message: they put to sleep who has
to wait, wake him, and end when nobody is left at the other end.
In C: mmap(2), fork(2), pipe(2), waitpid(2). Belongs to the chapter "Mapping" (docs/mapping.md).

      the region                                               the pipes
      ┌────────┬─────────┬─────────┬─────────┬─ ─ ─ ┬─────────┐    filled: a byte for each message
      │ counts │ message │ message │ message │      │ message │    free:   a byte for each slot that
      └────────┴─────────┴─────────┴─────────┴─ ─ ─ ┴─────────┘            is free again
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator

from mmkit import Region

SLOTS, SLOT_SIZE = 8, 256
# How many messages were begun, and how many were finished; then each slot begins with its length.
COUNTS, LENGTH = struct.Struct("=QQ"), struct.Struct("=H")


class Ring:
    """A queue of short messages from one process to another, in memory that both have."""

    def __init__(self) -> None:
        self.region = Region.anonymous(COUNTS.size + SLOTS * SLOT_SIZE, shared=True, name="ring")
        self.filled, self.free = os.pipe(), os.pipe()
        os.write(self.free[1], bytes(SLOTS))

    def become_sender(self) -> None:
        """Let go of the receiver's ends: a pipe ends when nobody has its other end any more."""
        os.close(self.filled[0])
        os.close(self.free[1])

    def become_receiver(self) -> None:
        """Let go of the sender's ends."""
        os.close(self.filled[1])
        os.close(self.free[0])

    def counts(self) -> tuple[int, int]:
        """Return how many messages were begun, and how many finished."""
        begun, finished = COUNTS.unpack(self.region[: COUNTS.size])
        return begun, finished

    def begin(self) -> int:
        """Sleep until a slot is free; return where it is in the region."""
        if not os.read(self.free[0], 1):
            raise BrokenPipeError("the receiver is gone")
        _, finished = self.counts()
        self.region[: COUNTS.size] = COUNTS.pack(finished + 1, finished)
        return COUNTS.size + finished % SLOTS * SLOT_SIZE

    def send(self, message: bytes) -> None:
        """Put a message into the next slot."""
        if len(message) > SLOT_SIZE - LENGTH.size:
            raise ValueError(f"{len(message)} bytes do not fit into a slot")
        at = self.begin()
        self.region[at : at + LENGTH.size] = LENGTH.pack(len(message))
        at += LENGTH.size
        self.region[at : at + len(message)] = message
        begun, _ = self.counts()
        self.region[: COUNTS.size] = COUNTS.pack(begun, begun)
        # The kernel orders memory as well: what was stored before a write() is there after the read().
        os.write(self.filled[1], b"\0")

    def receive(self) -> Iterator[bytes]:
        """Yield messages as they come, until nobody is left who could send one."""
        number = 0
        while os.read(self.filled[0], 1):
            at = COUNTS.size + number % SLOTS * SLOT_SIZE
            (length,) = LENGTH.unpack(self.region[at : at + LENGTH.size])
            at += LENGTH.size
            yield self.region[at : at + length]
            number += 1
            with contextlib.suppress(BrokenPipeError):  # the sender needs no more slots
                os.write(self.free[1], b"\0")


def main() -> None:
    """Send messages from a child, make the parent wait, and have a child crash."""
    print(f"{SLOTS} slots of {SLOT_SIZE} bytes, shared by parent and child")
    for work in (send_many, send_late, crash_halfway):
        print(f"\n{work.__doc__}")
        with with_child(work) as ring:
            received, checksum, last = 0, 0, b""
            clock, processor = time.perf_counter(), time.process_time()
            for message in ring.receive():
                received, checksum, last = received + 1, zlib.crc32(message, checksum), message
            clock, processor = time.perf_counter() - clock, time.process_time() - processor
            print(f"  parent: received {received}, checksum {checksum:08x}, the last is {last!r}")
            print(f"  parent: {clock * 1000:.0f} ms went by, {processor * 1000:.0f} ms on the processor")
            begun, finished = ring.counts()
            print(f"  in memory: {begun} begun, {finished} finished, {begun - finished} lost")


@contextlib.contextmanager
def with_child(work: Callable[[Ring], None]) -> Iterator[Ring]:
    """Fork a child that sends, give the parent the ring, and tell in the end how the child ended."""
    sys.stdout.flush()
    ring = Ring()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ring.become_sender()
            work(ring)
            sys.stdout.flush()
            status = 0
        finally:
            os._exit(status)
    ring.become_receiver()
    try:
        yield ring
    finally:
        os.close(ring.filled[0])
        os.close(ring.free[1])
        ring.region.close()
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status)
        how = signal.Signals(os.WTERMSIG(status)).name if killed else f"exit status {os.WEXITSTATUS(status)}"
        print(f"  the child ended with {how}")


def send_many(ring: Ring) -> None:
    """10,000 messages, in 8 slots used again and again."""
    checksum = 0
    for number in range(10_000):
        message = f"message {number}".encode()
        ring.send(message)
        checksum = zlib.crc32(message, checksum)
    print(f"  child: sent 10000, checksum {checksum:08x}")


def send_late(ring: Ring) -> None:
    """One message after a tenth of a second: the parent sleeps meanwhile."""
    time.sleep(0.1)
    ring.send(b"here I am")


def crash_halfway(ring: Ring) -> None:
    """Three messages, and a crash in the middle of the fourth."""
    for number in range(3):
        ring.send(f"message {number}".encode())
    at = ring.begin()
    ring.region[at : at + 4] = b"half"
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
