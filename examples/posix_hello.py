"""POSIX shared memory: two processes meet at a name in /dev/shm.

The other process knows the name and nothing else. Its end, by exit or by SIGKILL, leaves the segment alone;
the owner's ``with`` removes it.
In C: shm_open(3), ftruncate(2), mmap(2), shm_unlink(3).
Belongs to the chapter "Shared memory" (docs/shared-memory.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import mmkit
from mmkit import SharedMemory, shared


def main() -> None:
    """Say hello through a name, survive the other's death, and show what is left behind: nothing."""
    # shm_open(3) makes the name, ftruncate(2) gives it a size, mmap(2) makes it memory: segment.buf.
    with SharedMemory(create=True, size=6000) as segment:
        path = Path("/dev/shm", str(segment.name))
        print(f"made:        {segment}")
        print(f"in /dev/shm: {path.stat().st_size} bytes, of which {taken(segment)} are taken")
        segment.buf[0:5] = b"hello"

        for dies in (False, True):
            end = answer_in_another_process(path.name, dies)
            both = segment.buf[0:5].tobytes() + b" " + segment.buf[16:21].tobytes()
            print(f"it ended by  {end}; memory holds {both!r}; the name is there: {path.exists()}")
            segment.buf[16:21] = bytes(5)

        # Who has it? The tools know, for every segment of the machine.
        (listed,) = [each for each in shared.segments() if each.name == segment.name]
        us = [holder.pid for holder in listed.holders] == [os.getpid()]
        print(f"attached:    only us: {us}; its maker is alive: {listed.creator_alive}")

        segment.resize(10_000)
        print(f"grown:       {segment.size} bytes, of which {taken(segment)} are taken")
        try:
            segment.resize(100)
        except ValueError as error:
            print(f"to 100:      {str(error).partition(':')[0]}")

        with segment.buf:
            try:
                segment.close()
            except BufferError as error:
                print(f"close:       {str(error).partition(': ')[2]}")

    # Leaving the block has removed the name, by shm_unlink(3): this process made it.
    print(f"afterwards:  the name is there: {path.exists()}")
    try:
        SharedMemory(path.name)
    except mmkit.SyscallError as error:
        print(f"attach it:   {error.strerror}")


def answer_in_another_process(name: str, dies: bool) -> str:
    """Fork, answer there by the segment's name, and tell how the process ended."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        segment = SharedMemory(name)
        with contextlib.suppress(BrokenPipeError):  # nobody reads what a child says
            print(f"the other:   attached {segment.size} bytes; owner: {segment.owned}", flush=True)
        segment.buf[16:21] = b"world"
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        segment.close()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "exit"


def taken(segment: SharedMemory) -> int:
    """Return how much memory stands behind it: all of it, from the start."""
    return os.fstat(segment.fd).st_blocks * 512


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        try:
            main()
        except mmkit.SyscallError as refusal:
            print(f"Not on this machine: {refusal}")
