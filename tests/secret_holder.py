"""Processes that hold what tests look for, and hold it nowhere else."""

import os
import subprocess
import sys
from contextlib import contextmanager

#: What searches them may be built with a sanitizer; they would reserve terabytes for its shadow memory, and
#: keep what they freed.
PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}

#: It puts bytes where it is told, one at a time, so that they stand nowhere else.
HOLDER = """
import ctypes, mmap, sys
MASK = 0x5A
memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for argument in sys.argv[1:]:
    place, masked = argument.split(":")
    for at in range(0, len(masked), 2):
        memory[int(place) + at // 2] = int(masked[at : at + 2], 16) ^ MASK
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
sys.stdin.readline()
"""


def made_in_place():
    """Make 32 random bytes, of which there is no copy in this process, not even in memory that was freed.

    None is zero: it would be at one with the memory around.
    """
    made = bytearray(32)
    with open("/dev/urandom", "rb", buffering=0) as source:
        source.readinto(made)
    for place, byte in enumerate(made):
        made[place] = byte or 1
    return made


@contextmanager
def started(*command):
    """Start a process that says a line when it is ready, and waits for one or the end: its number, and the line."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=PLAIN) as running:
        yield running.pid, running.stdout.readline()
        running.stdin.close()


@contextmanager
def holder(**copies):
    """Start a process that has these bytes at these places (p100=b"…") of its memory: its number, and where that is."""
    arguments = [f"{place[1:]}:{masked(data)}" for place, data in copies.items()]
    with started(sys.executable, "-c", HOLDER, *arguments) as (pid, line):
        yield pid, int(line)


def masked(data):
    """Write bytes so that they are not found."""
    return bytes(byte ^ 0x5A for byte in data).hex()
