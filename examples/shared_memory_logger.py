"""A log in shared memory: four processes write, one is killed, and nothing that it has committed is lost.

Each writer has a lane of its own, a ring in memory that all processes have: it writes a record there, and
commits it with one store. There is no lock, so nobody can die holding one. There is no system call, so what
is committed is there for the others at once, whatever becomes of its writer.
In C: shm_open(3), mmap(2), kill(2). Belongs to the chapter "Channels" (docs/channel.md).

      writer 0 ──▶ [ record │ record │ record │      free      ]  a lane each, in /dev/shm
      writer 1 ──▶ [ record │ record │ rec                     ]  ← killed here: not committed, never seen
      writer 2 ──▶ [ record │ record │ record │ record │ free  ]──▶ reader
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import sys
import time

import mmkit
from mmkit import Channel, Region

WRITERS, VICTIM = 4, 1
RECORDS = 3000
HEADER = struct.Struct("=QHI")  # when, in nanoseconds; who; the record's number
LEVELS = ("debug", "info", "warning")


def main() -> None:
    """Start the writers, kill one, read everything, and compare."""
    # A name in /dev/shm, and memory that children inherit: as shm_open(3) and mmap(2) make them.
    with (
        Channel(f"mmkit_log_{os.getpid()}", 1 << 18, create=True) as log,
        Region.anonymous(WRITERS * 8, shared=True) as counts,
    ):
        print(f"{WRITERS} processes log to /dev/shm/{log.name}")
        sys.stdout.flush()
        started = time.monotonic_ns()
        pids = [start(writer, log, counts) for writer in range(WRITERS)]
        records = read_all(log, pids)
        took = (time.monotonic_ns() - started) / 1e9
        ends = [how_it_ended(pid) for pid in pids]
        judge(records, counts, ends)
        size = sum(len(record) for record in records)
    print(f"\n{len(records)} records, {size // 1024} KiB, in {took:.1f} seconds; the last by time:")
    for record in sorted(records, key=HEADER.unpack_from)[-3:]:
        when, writer, number = HEADER.unpack_from(record)
        at = (when - started) / 1e6
        print(f"  +{at:6.1f} ms  writer {writer}  no. {number:<5} {record[HEADER.size :].decode()}")


def start(writer: int, log: Channel, counts: Region) -> int:
    """Fork a writer; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            write(writer, log, counts)
        finally:
            os._exit(0)
    return pid


def write(writer: int, log: Channel, counts: Region) -> None:
    """Write records; count each *after* its commit, in memory that outlives this process."""
    # A store of eight bytes is whole or not at all, which a slice of a region does not promise.
    committed = ctypes.c_uint64.from_buffer(counts.view(writer * 8, writer * 8 + 8))
    for number in range(RECORDS):
        text = f"{LEVELS[number % 3]}: this is record {number}".encode()
        if writer == VICTIM and number == RECORDS // 2:
            # Begin a record in the lane, fill half of it, and die before the commit.
            with log.loan(HEADER.size + len(text)) as view:
                view[: HEADER.size] = HEADER.pack(time.monotonic_ns(), writer, number)
                os.kill(os.getpid(), signal.SIGKILL)
        log.send(HEADER.pack(time.monotonic_ns(), writer, number) + text)
        committed.value = number + 1


def read_all(log: Channel, pids: list[int]) -> list[bytes]:
    """Take records until all writers have ended and the lanes are empty."""
    records = []
    while True:
        # In this order: what a writer has committed before it ended is there when it has ended.
        over = not any(map(is_running, pids))
        try:
            records.append(log.recv(timeout=0 if over else 0.05))
        except TimeoutError:
            if over:
                return records


def is_running(pid: int) -> bool:
    """Tell whether a child has ended, without collecting its exit status."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def how_it_ended(pid: int) -> str:
    """Collect a child; say how it ended."""
    _, status = os.waitpid(pid, 0)
    return "killed by SIGKILL" if os.WIFSIGNALED(status) else f"ended with {os.WEXITSTATUS(status)}"


def judge(records: list[bytes], counts: Region, ends: list[str]) -> None:
    """Compare what was read with what each writer had committed."""
    print("\n            committed    read   in order   half written")
    for writer, end in enumerate(ends):
        (committed,) = struct.unpack_from("=Q", counts, writer * 8)
        read = [record for record in records if HEADER.unpack_from(record)[1] == writer]
        numbers = [HEADER.unpack_from(record)[2] for record in read]
        in_order = numbers == list(range(len(numbers)))
        half = sum(not record.endswith(b"record %d" % HEADER.unpack_from(record)[2]) for record in read)
        print(f"  writer {writer}  {committed:>9} {len(read):>7}   {in_order!s:<8} {half:>14}   {end}")
        assert len(read) >= committed  # one more: killed between the commit and the count
    print("Nothing that was committed is missing.")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        try:
            main()
        except mmkit.SyscallError as refusal:
            print(f"Not on this machine: {refusal}")
