"""A pipeline of processes, one of which is killed: no work is lost, and none of it is done by half.

A source sends pages of text, three workers count their words, and the counts come back. One worker dies with
a page in its hands, by the signal that nobody can catch: the page is delivered again.
In C: shm_open(3), mmap(2), futex(2), kill(2). Belongs to the chapter "Channels" (docs/channel.md).

                    ┌──▶ worker ──┐
       source ──────┼──▶ worker ──┼──────▶ this process
              pages └──▶ worker ──┘ counts
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import time
from collections.abc import Callable

import mmkit
from mmkit import Channel

PAGES, WORKERS, VICTIM = 600, 3, 2
HEADER = struct.Struct("=II")  # the page's number, the worker's
COUNT = struct.Struct("=III")  # and its words
LAST = 0xFFFFFFFF


def page_of(number: int) -> bytes:
    """Return a page: its number, and `number % 97` words."""
    return HEADER.pack(number, 0) + b" ".join([b"word"] * (number % 97))


def send_pages(pages: Channel) -> None:
    """Be the source. Where the channel is full, `send` sleeps in futex(2) until somebody wakes it."""
    for number in range(PAGES):
        pages.send(page_of(number))


def work(worker: int, pages: Channel, counts: Channel) -> None:
    """Count the words of each page, in place, until the last."""
    done = 0
    while True:
        # The page is ours for the block. Were we to die in it, somebody else would get the page.
        with pages.recv_view() as page:
            number, _ = HEADER.unpack_from(page)
            if number == LAST:
                return
            if worker == VICTIM and done == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.0005)  # it is hard work
            words = len(bytes(page[HEADER.size :]).split())
            counts.send(COUNT.pack(number, worker, words))
        done += 1


def in_child(function: Callable[..., None], *arguments: object) -> int:
    """Run a function in a forked process; return its pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function(*arguments)
            status = 0
        finally:
            os._exit(status)
    return pid


def collect(counts: Channel) -> tuple[dict[int, int], dict[int, int], int]:
    """Receive a count for each page. Return them, how many pages each worker did, and how many came twice."""
    words: dict[int, int] = {}
    done = dict.fromkeys(range(WORKERS), 0)
    twice = 0
    while len(words) < PAGES:
        number, worker, count = COUNT.unpack(counts.recv(timeout=60))
        twice += number in words
        words[number] = count
        done[worker] += 1
    return words, done, twice


def how_it_ended(pid: int) -> str:
    """Wait for a process; say how it ended."""
    _, status = os.waitpid(pid, 0)
    return "killed by SIGKILL" if os.WIFSIGNALED(status) else f"ended with {os.WEXITSTATUS(status)}"


def run_pipeline() -> list[str]:
    """Run it to its end; return what there is to say."""
    # shm_open(3) makes a name in /dev/shm, mmap(2) makes it memory: the same for all who map it.
    with (
        Channel(f"mmkit_pages_{os.getpid()}", 1 << 16, create=True) as pages,
        Channel(f"mmkit_counts_{os.getpid()}", 1 << 16, create=True) as counts,
    ):
        lines = ["Two channels, as everybody sees them in /dev/shm"]
        lines += [
            f"  {channel.name:<24} {os.fstat(channel.fileno()).st_size:>7,} bytes, reserved"
            for channel in (pages, counts)
        ]
        # Children inherit the channels. As writers and readers they are processes of their own.
        workers = [in_child(work, worker, pages, counts) for worker in range(WORKERS)]
        source = in_child(send_pages, pages)
        words, done, twice = collect(counts)
        # One each: the dead one's stays unread.
        for _ in workers:
            pages.send(HEADER.pack(LAST, 0))
        lines += ["", "The processes", f"  source    sent    {PAGES:>4} pages   {how_it_ended(source)}"]
        lines += [
            f"  worker {worker}  counted {done[worker]:>4} pages   {how_it_ended(pid)}"
            for worker, pid in enumerate(workers)
        ]
    assert all(count == number % 97 for number, count in words.items())
    return [
        *lines,
        "",
        "The work",
        f"  pages counted       {len(words):>6} of {PAGES}",
        f"  pages counted twice {twice:>6}",
        f"  words               {sum(words.values()):>6}",
    ]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        try:
            print("\n".join(run_pipeline()))
        except mmkit.SyscallError as refusal:
            print(f"Not on this machine: {refusal}")
