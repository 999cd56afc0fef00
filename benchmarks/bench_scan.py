"""scan: copies of a secret in the memory of another process.

mmkit looks for the whole and for every quarter: as bytes, hex of either case, base64 at three alignments,
wide characters and HMAC pads. A program as it is often written looks for the bytes alone. The floor reads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

from mmkit import maps, secret
from runner import Contestants, Statement, Target, main, race

SIZE = 128 << 20
CHUNK = 1 << 20
FLOOR = "reading alone"
KEY = bytearray(os.urandom(32))
TARGETS = (Target("mmkit, all forms and parts", "plain Python, the bytes alone", at_most=2.0),)

CHILD = """
import os, sys
memory = bytearray()
for _ in range(int(sys.argv[1]) >> 20):
    memory += os.urandom(1 << 20)
print(flush=True)
input()
"""


def process_with_random_memory(scope: ExitStack) -> int:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(SIZE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    scope.callback(child.communicate, b"\n")
    assert child.stdout
    child.stdout.readline()
    return child.pid


def read(pid: int, needles: tuple[bytes, ...] = ()) -> int:
    """Read all memory, as programs do that look for something; count the chunks that hold a needle."""
    found = 0
    longest = max(map(len, needles), default=1)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    for area in maps.read(pid):
        at = area.start
        while at < area.end and at < 1 << 63:
            try:
                chunk = os.pread(memory, min(CHUNK, area.end - at), at)
            except OSError:
                break
            found += sum(needle in chunk for needle in needles)
            at += CHUNK - longest + 1
    os.close(memory)
    return found


def forms(key: bytes) -> tuple[bytes, ...]:
    text = key.decode("latin-1")
    return (
        key,
        key.hex().encode(),
        key.hex().upper().encode(),
        text.encode("utf-16-le"),
        text.encode("utf-32-le"),
        bytes(byte ^ 0x36 for byte in key),
        bytes(byte ^ 0x5C for byte in key),
    )


@race("scan, 128 MiB of random memory", peer=FLOOR, targets=TARGETS, most_rounds=20)
def scan(scope: ExitStack) -> Contestants:
    pid = process_with_random_memory(scope)
    key = bytes(KEY)
    return {
        FLOOR: Statement("read(pid)", read=read, pid=pid),
        "mmkit, all forms and parts": Statement("find(key, pid)", find=secret.find_copies, key=KEY, pid=pid),
        "plain Python, the bytes alone": Statement("read(pid, needles)", read=read, pid=pid, needles=(key,)),
        "plain Python, whole, in seven texts": Statement(
            "read(pid, needles)", read=read, pid=pid, needles=forms(key)
        ),
    }


if __name__ == "__main__":
    main(scan, notes=("mmkit starts a process for each search, and does not read what was never written.",))
