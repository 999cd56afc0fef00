"""A numpy array by name: processes fill one array together, and none copies it.

dtype and shape stand in the segment: who attaches needs the name only.
In C: shm_open(3), ftruncate(2), mmap(2), fork(2).
Belongs to the chapter "Shared memory" (docs/shared-memory.md).
"""

from __future__ import annotations

import contextlib
import os
import sys
from multiprocessing.connection import Pipe
from typing import Any

# Python warns of a fork in a process with threads, which numpy's library of linear algebra would start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

try:
    import numpy as np
except ImportError:
    raise SystemExit("shared_array needs numpy: pip install 'mmkit[numpy]'") from None

import mmkit
from mmkit import shared

HEIGHT, WIDTH, WORKERS = 240, 320, 4


def main() -> None:
    """Draw a picture in bands, one process a band, and look at the whole."""
    # shm_open(3) makes a name in /dev/shm, ftruncate(2) gives it a size, mmap(2) makes it memory.
    with shared.array(None, (HEIGHT, WIDTH, 3), "uint8", create=True) as picture:
        segment = picture.segment
        assert segment is not None
        print(f"made:       {picture.dtype} {picture.shape}, {picture.nbytes} bytes, in {segment.name}")
        rest = segment.size - picture.nbytes
        print(f"segment:    {segment.size} bytes: the array, and {rest} that describe it")

        workers = [start_worker(str(segment.name), band) for band in range(WORKERS)]
        ends = [os.waitpid(worker, 0)[1] for worker in workers]
        print(f"drawn:      by {WORKERS} processes, which ended with {ends}")
        rows = HEIGHT // WORKERS
        for band in range(WORKERS):
            part = picture[band * rows : (band + 1) * rows]
            print(f"  band {band}:   red {part[..., 0].mean():5.1f}, filled: {bool(part[..., 1].all())}")

        # Through multiprocessing the array travels as its name, and is the same memory where it arrives.
        inbox, outbox = Pipe()
        outbox.send(picture)
        received = inbox.recv()
        received[0, 0] = [1, 2, 3]
        print(f"sent:       {type(received).__name__}; written there, read here: {picture[0, 0].tolist()}")

        reader = shared.array(segment.name, readonly=True)
        try:
            reader[0, 0] = 0
        except ValueError as error:
            print(f"read-only:  {error}")
        try:
            shared.array(segment.name, dtype="float32")
        except ValueError as error:
            print(f"wrong type: {str(error).partition(' has ')[2]}")

        corner = picture[:2, :2, 0]
        total = int(corner.sum())

    # The name is gone, and the memory is there as long as any array on it.
    print(f"afterwards: a part of it is as it was: {int(corner.sum()) == total}")
    try:
        shared.array(segment.name)
    except FileNotFoundError as error:
        print(f"attach it:  {error.strerror}")


def start_worker(name: str, band: int) -> int:
    """Start a process that draws a band, and return its number."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            draw_band(name, band)
            status = 0
        finally:
            os._exit(status)
    return child


def draw_band(name: str, band: int) -> None:
    """Attach the picture by its name and fill one band of it."""
    picture: np.ndarray[Any, np.dtype[np.uint8]] = shared.array(name)
    rows = HEIGHT // WORKERS
    part = picture[band * rows : (band + 1) * rows]
    part[..., 0] = np.linspace(0, 255, WIDTH)
    part[..., 1] = 64 * band + 63


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        try:
            main()
        except mmkit.SyscallError as refusal:
            print(f"Not on this machine: {refusal}")
