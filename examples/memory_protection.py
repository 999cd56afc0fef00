"""What may be done with memory: read-write, read-only, nothing, and back; guard pages; a file cut short.

Each page says what may be done with it, and the processor holds every access to it. In C a forbidden access
ends the process; here it is caught as MemoryFault, and what it says is printed. At the end a child process
does what C does.
In C: mprotect(2), sigaction(2), madvise(2). Belongs to the chapter "Protection" (docs/protection.md).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mmkit
from mmkit import PAGE_SIZE, Prot, Region, maps


def main() -> None:
    """Take rights from memory, and see what each access meets."""
    change_protection()
    protect_for_a_while()
    run_into_a_guard()
    have_a_file_cut_short()
    do_as_c_does()


def attempt(what: str, access: Callable[[], object]) -> None:
    """Make an access that may be forbidden, and print what came of it."""
    try:
        access()
    except mmkit.MemoryFault as fault:
        where = f"{fault.address:#x}" if fault.offset is None else f"offset {fault.offset}"
        print(f"    {what:<24} MemoryFault: {fault.access} at {where}: {fault.reason}")
    else:
        print(f"    {what:<24} done")


def change_protection() -> None:
    """Go from read-write to read-only to nothing, and back (mprotect)."""
    print("Two pages, and what may be done with them")
    with Region.anonymous(2 * PAGE_SIZE) as region:
        region[:5] = b"hello"

        def store() -> None:
            region[0] = ord("H")

        for prot in (Prot.READ, Prot.NONE, Prot.READ | Prot.WRITE):
            region.protect(prot)
            area = maps.find(region.address)
            print(f"  protect({prot.name}): /proc/self/maps says {area.perms if area else '?'}")
            attempt("load region[0]", lambda: region[0])
            attempt("store region[0]", store)
        print(f"  the contents were never in danger: {region[:5]!r}")

        region.protect(Prot.READ, PAGE_SIZE, PAGE_SIZE)
        print("  protect(READ) of the second page alone")
        attempt("store over both", lambda: region.write(b"x" * 2 * PAGE_SIZE))
        print(f"    the region knew beforehand, so nothing was written: {region[:5]!r}")


def protect_for_a_while() -> None:
    """Take a right for a block, under the eyes of a view that needs it."""
    print("\nFor the length of a block")
    with Region.anonymous(PAGE_SIZE) as region:
        with region.protected(Prot.READ):
            attempt("store inside the block", lambda: region.write(b"no"))
        attempt("store after the block", lambda: region.write(b"yes"))
        with memoryview(region):
            try:
                region.protect(Prot.READ)
            except BufferError:
                print("    protect() under a writable view: BufferError, its next store would be a crash")


def run_into_a_guard() -> None:
    """Let an overrun hit a page that exists to be hit: PROT_NONE at the ends, by madvise in between."""
    print("\nGuards: pages that nobody may touch")
    with Region.anonymous(3 * PAGE_SIZE, guard=True) as region:
        end = region.address + len(region)
        attempt("the last byte", lambda: mmkit.peek(end - 1, 1))
        attempt("one byte further", lambda: mmkit.peek(end, 1))
        attempt("a byte in front", lambda: mmkit.poke(region.address - 1, b"!"))
        region.guard(PAGE_SIZE, PAGE_SIZE)
        attempt("a guard in the middle", lambda: region[PAGE_SIZE])
        attempt("find() runs into it", lambda: region.find(b"not there"))
        region.unguard()
        attempt("after unguard()", lambda: region.find(b"not there"))


def have_a_file_cut_short() -> None:
    """Have another process truncate a file that is mapped here."""
    print("\nA file that somebody cuts short")
    with tempfile.TemporaryDirectory(prefix="mmkit-example-") as folder:
        path = Path(folder, "data")
        path.write_bytes(b"x" * 3 * PAGE_SIZE)
        with Region.file(path) as region:
            attempt("before", lambda: region[2 * PAGE_SIZE])
            subprocess.run(["truncate", "-s", str(PAGE_SIZE), path], check=True)
            attempt("after, behind its end", lambda: region[2 * PAGE_SIZE])
            attempt("after, in front of it", lambda: region[PAGE_SIZE - 1])


def do_as_c_does() -> None:
    """Access memory through a view, of which mmkit knows nothing, in a child that may die of it."""
    print("\nAs C has it: an access that nobody guards")
    reader, writer = os.pipe()
    with Region.anonymous(PAGE_SIZE) as region:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                # A handler in C, by sigaction(SIGSEGV): it writes some words, and the signal kills.
                faulthandler.enable(writer, all_threads=False)
                view = memoryview(region)
                region.protect(Prot.READ, force=True)
                view[0] = 1
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, errors="replace") as pipe:
            words = pipe.read().splitlines()
        _, status = os.waitpid(child, 0)
    end = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "nothing"
    print(f"    a child stored through a memoryview, and died of {end}")
    print(f"    its handler's last words: {words[0] if words else 'none'}")
    where = next((line for line in words if "do_as_c_does" in line), "")
    print(f"    and where it was: {where.rpartition(', ')[2]}")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
