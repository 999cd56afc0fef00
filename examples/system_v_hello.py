"""System V shared memory: the child writes, the parent reads, the segment is removed.

The two agree on a number and on nothing else. The kernel counts who is attached, and keeps the segment until
it was removed and nobody is.
In C: shmget(2), shmat(2), shmdt(2), shmctl(2).
Belongs to the chapter "Shared memory" (docs/shared-memory.md).

        parent                      the segment                     child
        SystemVMemory(create=True)  ┌────────────────────────┐      SystemVMemory.attach(id)
        bytes(buf) ◀─────────────── │ hello from the child   │ ◀─── buf[:5] = b"hello"
                                    └────────────────────────┘
"""

from __future__ import annotations

import contextlib
import os
import sys

import mmkit
from mmkit import SystemVMemory

SIZE = 4096


def main() -> None:
    """Make a segment, have a child write into it, read it, and see it go."""
    # shmget(2) makes it, shmat(2) maps it; at the end of the block shmdt(2) unmaps it, and shmctl(2) with
    # IPC_RMID removes it.
    with SystemVMemory(size=SIZE, create=True) as segment:
        print(f"made:            segment {segment.id}, {segment.size} bytes")
        tell("attached by us", segment)
        run_in_a_child(lambda: write_greeting(segment.id))
        tell("the child ended", segment)

        text = bytes(segment.buf).rstrip(b"\0").decode()
        print(f"the parent reads {text!r}")

        with SystemVMemory.attach(segment.id, readonly=True) as reader:
            tell("one reader more", segment)
            print(f"the reader's buffer is read-only: {reader.buf.readonly}")
            try:
                reader.region[0] = 1
            except mmkit.MemoryFault as fault:
                print(f"it writes:       {type(fault).__name__}: {fault.reason}")
        identifier = segment.id

    # Leaving the block has removed it: this process made it.
    try:
        SystemVMemory.attach(identifier)
    except mmkit.SyscallError as error:
        print(f"afterwards:      segment {identifier}: {error.strerror}")


def write_greeting(identifier: int) -> None:
    """Attach the segment by its number, as any other process could, and write into it."""
    with SystemVMemory.attach(identifier) as segment:
        # A forked child has its parent's attachment as well: one more than before.
        tell("child: attached", segment)
        greeting = f"hello from process {os.getpid()}".encode()
        segment.buf[: len(greeting)] = greeting
        print(f"child: wrote     {greeting.decode()!r}")
        print(f"child: owner?    {segment.owned}: leaving the block removes nothing")


def tell(when: str, segment: SystemVMemory) -> None:
    """Print what the kernel counts (shmctl with IPC_STAT)."""
    status = segment.stat()
    attached = "1 attachment" if status.shm_nattch == 1 else f"{status.shm_nattch} attachments"
    print(f"{when + ':':<16} {attached}, made by process {status.shm_cpid}")


def run_in_a_child(work: object) -> None:
    """Fork, run it there, and wait."""
    assert callable(work)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            sys.stdout.flush()
            status = 0
        except BrokenPipeError:
            status = 0  # nobody reads what a child says: no failure of the child's
        finally:
            os._exit(status)
    os.waitpid(child, 0)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        try:
            main()
        except mmkit.SyscallError as refusal:
            print(f"Not on this machine: {refusal}")
