"""Telling the kernel what comes: advice, and what it does to RAM and to time.

Loads bytes of a file that is not in memory, after NORMAL, SEQUENTIAL and RANDOM, and measures what came with
them; has it read beforehand by WILLNEED; gives memory back by DONTNEED and by FREE; asks for huge pages.
Every figure is of this machine and moment.
In C: madvise(2), mincore(2), cachestat(2). Belongs to the chapter "Advice" (docs/advice.md).
"""

from __future__ import annotations

import contextlib
import operator
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mmkit
from mmkit import PAGE_SIZE, Advice, Region, linux

KIB, MIB = 1 << 10, 1 << 20


def main() -> None:
    """Measure what advice does to a file, then what it does to memory without one."""
    # In /var/tmp, because /tmp is often in memory itself. The file has no name, so nothing stays behind.
    folder = "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=folder) as file:
        ahead = read_ahead(file.fileno())
        length = min(max(4 * ahead, 4 * MIB), 64 * MIB)
        print(f"A file of {length // MIB} MiB in {folder}; its device reads ahead up to {ahead // KIB} KiB")
        print(
            "  posix_fadvise(DONTNEED) drops it from the cache before each try; cached() tells what came back"
        )
        file.write(os.urandom(MIB) * (length // MIB))
        os.fsync(file.fileno())
        if forget(file.fileno()):
            touch_once(file.fileno())
            touch_here_and_there(file.fileno())
            bring_it_in(file.fileno(), ahead)
        else:
            print("  this file system keeps its files in memory: there is nothing to read ahead")
    give_back()
    use_huge_pages()


def read_ahead(fd: int) -> int:
    """Return how much the kernel reads at once from the device of a file, in bytes."""
    device = os.fstat(fd).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(setting.read_text()) * KIB if setting.exists() else 128 * KIB


def forget(fd: int) -> bool:
    """Have the kernel drop a file from its cache, and tell whether it did.

    cached() asks how many pages of a file are in RAM, by cachestat(2); before Linux 6.5 which, by mincore(2).
    """
    patience = time.monotonic() + 1
    with Region.file(fd) as region:
        while time.monotonic() < patience:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if region.cached() == 0:
                return True
            time.sleep(0.001)  # what is on its way from the disk cannot be dropped yet
    return False


def timed(work: Callable[[], object]) -> float:
    """Do something, and return how long it took, in milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def touch_once(fd: int) -> None:
    """Load one byte of the cold file, and see how many come with it."""
    print("\nOne byte in the middle is loaded, and into the cache come")
    for advice in (Advice.NORMAL, Advice.SEQUENTIAL, Advice.RANDOM):
        forget(fd)
        with Region.file(fd) as region:
            region.advise(advice)
            middle = len(region) // 2
            took = timed(partial(operator.getitem, region, middle))
            before, after = region.cached(0, middle) // KIB, region.cached(middle) // KIB
        print(f"  {advice.name:<10} {before:>5} KiB before it, {after:>5} KiB from it on {took:12.1f} ms")


def touch_here_and_there(fd: int) -> None:
    """Load a hundred bytes far from each other: what is read around them is read in vain."""
    print("\n100 bytes here and there are loaded, and into the cache come")
    places = random.Random(7).sample(range(0, os.fstat(fd).st_size, PAGE_SIZE), 100)
    for advice in (Advice.NORMAL, Advice.RANDOM):
        forget(fd)
        with Region.file(fd) as region:
            region.advise(advice)
            took = timed(partial(list, map(region.__getitem__, places)))
            print(f"  {advice.name:<10} {region.cached() // KIB:>5} KiB {took:43.1f} ms")


def bring_it_in(fd: int, ahead: int) -> None:
    """Have a file read before anybody waits for it, and let go of it again."""
    print("\nThe file is wanted soon: what is in the cache of it, and here in this process")

    def in_pieces() -> None:
        for at in range(0, len(region), ahead):
            region.advise(Advice.WILLNEED, at, min(ahead, len(region) - at))

    forget(fd)
    with Region.file(fd) as region:
        for what, work in (
            ("WILLNEED", lambda: region.advise(Advice.WILLNEED)),
            # One call has no more read than the device reads ahead.
            ("WILLNEED, piece by piece", in_pieces),
            ("populate(), which waits", region.populate),
            ("discard(), by DONTNEED", region.discard),
        ):
            try:
                took = timed(work)
            except mmkit.SyscallError as refusal:  # populate: Linux 5.14
                print(f"  {what:<24} refused: {refusal.strerror}")
                continue
            cached, resident = region.cached() // KIB, region.resident() // KIB
            print(f"  {what:<24} {cached:>6} KiB cached, {resident:>6} here {took:10.1f} ms")


def give_back() -> None:
    """Give memory back that no file stands behind: at once, or when the kernel needs it."""
    print("\nMemory without a file is given back")
    with Region.anonymous(8 * MIB) as region:
        for advice in (Advice.DONTNEED, Advice.FREE):
            touch_all(region)
            # Region.advise takes hints only, and refuses these two: they lose data. discard() is DONTNEED.
            linux.madvise(region.address, len(region), advice)
            mib, byte = region.resident() // MIB, region[:1]
            print(f"  {advice.name:<10} {mib} MiB are still in RAM, the first byte is {byte!r}")
        print(f"  of it the kernel may take, without asking again: {lazily_freed()} KiB")
        region[0] = ord("y")
        print(f"  a page that is written to stays: {region[:1]!r}")


def lazily_freed() -> str:
    """Return how much of this process was given back by FREE and not yet taken, in KiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next((line.split()[1] for line in lines if line.startswith("LazyFree:")), "unknown")


def use_huge_pages() -> None:
    """Ask for huge pages: fewer faults, and more memory for each touch."""
    print("\nHuge pages")
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    print(f"  this system's policy: {setting.read_text().strip() if setting.exists() else 'none of them'}")
    for advice in (Advice.NOHUGEPAGE, Advice.HUGEPAGE):
        if not mmkit.supports(advice):
            print(f"  {advice.name:<10} this kernel does not know it")
            continue
        # The best of three: the first huge pages of a system may have to be put together.
        first, faults, took = min((touch_new_memory(advice) for _ in range(3)), key=operator.itemgetter(2))
        print(f"  {advice.name:<10} one touch: {first:>5} KiB; 32 MiB: {faults:>4} faults {took:15.1f} ms")


def touch_new_memory(advice: Advice) -> tuple[int, int, float]:
    """Return how many KiB one touch brings in, and how many faults and milliseconds 32 MiB take."""
    with Region.anonymous(32 * MIB) as region:
        region.advise(advice)
        region[len(region) // 2] = 1
        first = region.resident() // KIB
        before = page_faults()
        took = timed(partial(touch_all, region))
        return first, page_faults() - before, took


def touch_all(region: Region) -> None:
    """Write to every page."""
    region[::PAGE_SIZE] = b"x" * (len(region) // PAGE_SIZE)


def page_faults() -> int:
    """Return how often this process has touched a page that was not there, and got it without a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
