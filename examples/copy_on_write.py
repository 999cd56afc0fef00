"""Memory as it was, while it is being changed: a page is copied when somebody first writes to it.

All pages are made read-only. The first write to each is a fault; the handler, which sigaction has set, copies
the old page aside, allows writing, and returns, so that the same instruction runs again and now succeeds. Who
writes need not know: a method of the region, numpy and a function of the C library are all caught. Every
fault is printed.
In C: mprotect(2), sigaction(2), madvise(2). Belongs to the chapter "Snapshots" (docs/snapshot.md).

                   first write to a page
    read-only ────────────> SIGSEGV: copy the page aside, mprotect(READ|WRITE), return
        ^                                                             │
        └──── mprotect(READ) of all pages: a new snapshot             └──> written to, at full speed
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading

from mmkit import PAGE_SIZE, Region, maps
from mmkit.snapshot import Snapshot

PAGES = 8


def main() -> None:
    """Take a snapshot, write in every way there is, look at what was, and go back to it."""
    with Region.anonymous(PAGES * PAGE_SIZE, name="letters") as region:
        for page in range(PAGES):
            region[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = bytes([ord("A") + page]) * PAGE_SIZE
        print(f"{PAGES} pages, each filled with its letter")
        with region.snapshot() as before:
            show_protection("a snapshot is taken", region)
            write_in_every_way(region, before)
            show_protection("the pages written to can be written again", region)
            draw(region, before)
            let_the_kernel_write(region, before)
            write_from_threads(region, before)
            go_back(region, before)
        show_protection("\nThe snapshot is released", region)


def show_protection(when: str, region: Region) -> None:
    """Print what /proc/self/maps says of each page."""
    perms = [area.perms for page in range(PAGES) if (area := maps.find(region.address + page * PAGE_SIZE))]
    print(f"{when}: {' '.join(perm[:2] for perm in perms)}")


def report(what: str, before: Snapshot, known: int) -> int:
    """Print the faults that came since the last report; return how many there are now."""
    faults = before.faults()
    for offset in faults[known:]:
        print(f"  {what:<31} fault at offset {offset:>6}: page {offset // PAGE_SIZE} is kept, then written")
    if len(faults) == known:
        print(f"  {what:<31} no fault: the page was kept before")
    return len(faults)


def write_in_every_way(region: Region, before: Snapshot) -> None:
    """Store through the region, through a view, through numpy, and in C."""
    print("\nWho writes, and what that causes")
    region[1 * PAGE_SIZE + 5] = ord("x")
    known = report("region[i] = …", before, 0)
    region[1 * PAGE_SIZE + 6] = ord("x")
    known = report("the same page once more", before, known)
    with memoryview(region) as view:
        view[3 * PAGE_SIZE] = ord("x")
        known = report("memoryview(region)[i] = …", before, known)
    ctypes.memset(region.address + 4 * PAGE_SIZE - 50, ord("x"), 100)
    known = report("memset() of C, on pages 3 and 4", before, known)
    try:
        letters = region.array("u1")
    except ImportError:
        print("  numpy is not installed: nothing is written through it")
        return
    letters[6 * PAGE_SIZE :: 2048] = ord("x")
    report("array[i::2048] = … of numpy", before, known)


def draw(region: Region, before: Snapshot) -> None:
    """Show what each page holds now and held then, and where its old contents are."""
    dirty = {start // PAGE_SIZE + i for start, n in before.dirty_ranges() for i in range(n // PAGE_SIZE)}
    print(f"\n{before.dirty_pages} of {PAGES} pages have been copied; the others are read where they are")
    rows = {
        "now": ["".join(sorted(set(page_of(region[:], i)))) for i in range(PAGES)],
        "then": ["".join(sorted(set(page_of(before.read(), i)))) for i in range(PAGES)],
        "copied": ["yes" if i in dirty else "" for i in range(PAGES)],
    }
    print("         ┌" + "┬".join(["─────"] * PAGES) + "┐")
    for what, cells in rows.items():
        print(f"  {what:<6} │" + "│".join(f"{cell:^5}" for cell in cells) + "│")
    print("         └" + "┴".join(["─────"] * PAGES) + "┘")


def page_of(contents: bytes, number: int) -> str:
    """Return a page as text."""
    return contents[number * PAGE_SIZE : (number + 1) * PAGE_SIZE].decode()


def let_the_kernel_write(region: Region, before: Snapshot) -> None:
    """Have a system call write to memory: it gets no signal, but an error."""
    print("\nread(2) into page 0, which nobody has written to")
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    with region.view(0, 11) as page:
        try:
            os.readv(reader, [page])
        except OSError as error:
            print(f"  refused: {error}: the kernel checks, and does not fault")
        try:
            # madvise(2), MADV_POPULATE_WRITE: fault as if somebody wrote.
            region.populate(True, 0, 11)
        except OSError as error:
            print(f"  populate: {error.strerror}; the page is kept all the same")
        os.readv(reader, [page])
        print(f"  after populate(write=True), which keeps the page: {bytes(page)!r}")
        print(f"  in the snapshot it is as it was: {before.read(0, 11)!r}")
    os.close(reader)
    os.close(writer)


def write_from_threads(region: Region, before: Snapshot) -> None:
    """Have two threads race for the first write to the same page."""
    known = len(before.faults())
    start = threading.Barrier(2)

    def write(where: int) -> None:
        view = memoryview(region)
        start.wait()
        view[5 * PAGE_SIZE + where] = ord("t")
        view.release()

    threads = [threading.Thread(target=write, args=(where,)) for where in (100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both = region[5 * PAGE_SIZE + 100] == region[5 * PAGE_SIZE + 200] == ord("t")
    print("\nTwo threads write to page 5 at once")
    print(f"  both are in: {both}; faults that copied it: {len(before.faults()) - known}")


def go_back(region: Region, before: Snapshot) -> None:
    """Undo everything."""
    changed = sum(now != then for now, then in zip(region[:], before.read(), strict=True))
    print(f"\n{changed} bytes differ from what was")
    before.restore()
    same = region[:] == before.read()
    print(f"  after restore() all are as before: {same}, and page 0 begins with {region[:5]!r}")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
