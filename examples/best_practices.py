"""Eight mistakes that C programs make with memory: wrong and right, side by side, on the real kernel.

Each is made for real, as C makes it, with the raw calls or with the C library itself; then the same is done
right. What would end the process is done in a child that may die of it.
In C: mmap(2), malloc(3), aligned_alloc(3), mprotect(2), free(3), munmap(2), shmget(2), shmctl(2), msync(2).
Belongs to the chapter "Best practices" (docs/best-practices.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mmkit
from mmkit import PAGE_SIZE, MapFlag, Prot, Region, SystemVMemory, linux
from mmkit.flags import ShmCommand, SyncFlag

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.malloc.restype = libc.aligned_alloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.aligned_alloc.argtypes = [ctypes.c_size_t], [ctypes.c_size_t] * 2
libc.free.argtypes = [ctypes.c_void_p]
libc.mprotect.argtypes = libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

IPC_PRIVATE = 0  # a key that every call takes for a new segment
RW, ANONYMOUS = Prot.READ | Prot.WRITE, MapFlag.PRIVATE | MapFlag.ANONYMOUS
TOO_MUCH = 1 << 48  # 256 TiB: more than a process has addresses


def main() -> None:
    """Make each mistake, and then do it right."""
    for number, (title, lesson) in enumerate(LESSONS.items(), 1):
        print(f"{number}. {title}")
        try:
            lesson()
        except mmkit.SyscallError as refusal:
            print(f"   not on this machine: {refusal}")
        print()


def wrong(text: str) -> None:
    """Print what came of the mistake."""
    print(f"   wrong: {text}")


def right(text: str) -> None:
    """Print what came of doing it right."""
    print(f"   right: {text}")


def how_a_child_ends(body: Callable[[], object]) -> str:
    """Run something in a child that may die of it; say of what it died."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the C library has last words of its own
        try:
            body()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "nothing"


def check_what_a_call_returns() -> None:
    """Store where mmap() refused to map."""

    def store_where_nothing_was_mapped() -> None:
        address = libc.mmap(None, TOO_MUCH, RW, ANONYMOUS, -1, 0)
        ctypes.memset(address, 0, 1)

    wrong(f"go on with what came back: a child died of {how_a_child_ends(store_where_nothing_was_mapped)}")
    try:
        linux.mmap(0, TOO_MUCH, RW, ANONYMOUS, -1, 0)
    except mmkit.SyscallError as error:
        right(f"mmkit checks every call and raises: {type(error).__name__}, errno {error.errno}")


def have_a_plan_for_no_memory() -> None:
    """Ask for more than there can be."""
    try:
        Region.anonymous(TOO_MUCH)
    except mmkit.OutOfMemory:
        wrong("ask for all of it at once, and give up: OutOfMemory")
    length, region = TOO_MUCH, None
    while region is None:
        length //= 4
        with contextlib.suppress(mmkit.OutOfMemory):
            region = Region.anonymous(length)
    right(f"ask for less until it works, and work in pieces: {length >> 20:,} MiB of addresses")
    region.close()
    with tempfile.NamedTemporaryFile(prefix="mmkit-example-") as file:
        file.truncate(1 << 20)
        with Region.file(file.name, mode="r+"):
            right("or map a file: the kernel can write its pages back when memory is short")


def align() -> None:
    """Make a part of what malloc() gave read-only, by mprotect()."""
    block = libc.malloc(1000)
    result = libc.mprotect(block + 8, 100, Prot.READ)
    wrong(f"mprotect() inside a malloc() block: {result}, {os.strerror(ctypes.get_errno())}")
    libc.free(block)
    aligned = libc.aligned_alloc(PAGE_SIZE, PAGE_SIZE)
    right(f"aligned_alloc(): its address is a multiple of {PAGE_SIZE}: {aligned % PAGE_SIZE == 0}")
    libc.free(aligned)
    with Region.anonymous(2 * PAGE_SIZE) as region:
        covered = region.protect(Prot.READ, 100, 100)
        right(f"region.protect(READ, 100, 100) takes the pages around, and tells which: {covered}")


def free_as_it_was_allocated() -> None:
    """Give memory to who never had it: free() looks for its header in front of a block, and meets zeros."""
    died = how_a_child_ends(lambda: libc.free(libc.mmap(None, PAGE_SIZE, RW, ANONYMOUS, -1, 0) + 64))
    wrong(f"free() of what mmap() gave: a child died of {died}")
    with Region.anonymous(PAGE_SIZE):  # mmap(); munmap() at the end of the block takes it away again
        right("a Region knows what it is: close(), or the end of the with block, undoes it")


def find_leaks() -> None:
    """Forget to close, and look for what is open."""
    before = mmkit.regions()
    kept = [Region.anonymous(PAGE_SIZE, name=f"request {number}") for number in range(3)]
    kept.pop().close()  # one request remembers
    leaked = [region for region in mmkit.regions() if region not in before]
    wrong(f"{len(leaked)} regions are still open: {', '.join(sorted(str(region.name) for region in leaked))}")
    for region in leaked:
        region.close()
    right(f"closed by hand, or better by with: {len(mmkit.regions()) - len(before)} are left")


def remove_segments() -> None:
    """Make a segment of shared memory (shmget), and do not remove it (shmctl with IPC_RMID)."""
    identifier = linux.shmget(IPC_PRIVATE, PAGE_SIZE, 0o600)  # and the program ends here
    wrong(f"shmget() and no IPC_RMID: nobody is attached, and it is there: {is_there(identifier)}")
    linux.shmctl(identifier, ShmCommand.RMID)
    with SystemVMemory(size=PAGE_SIZE, create=True) as segment:
        identifier = segment.id
    right(f"SystemVMemory in a with block: there afterwards: {is_there(identifier)}")


def is_there(identifier: int) -> bool:
    """Tell whether a System V segment exists."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    return any(line.split()[1] == str(identifier) for line in lines)


def protect_as_the_file_was_opened() -> None:
    """Map for writing what was opened for reading."""
    with tempfile.NamedTemporaryFile(prefix="mmkit-example-") as file:
        file.truncate(PAGE_SIZE)
        with Path(file.name).open("rb") as opened:
            libc.mmap(None, PAGE_SIZE, RW, MapFlag.SHARED, opened.fileno(), 0)
            wrong(f"map for writing what was opened for reading: {errno.errorcode[ctypes.get_errno()]}")
        with Region.file(file.name) as region:
            try:
                region[0] = 1
            except mmkit.MemoryFault as fault:
                right(f"a Region says what to do: {fault}")


def hear_msync_fail() -> None:
    """Write behind the end of a file, and have msync() bring it from memory into the file."""
    with tempfile.TemporaryFile(prefix="mmkit-example-") as file:
        file.truncate(2 * PAGE_SIZE)
        with Region.file(file.fileno(), mode="r+") as region:
            region[PAGE_SIZE] = 1
            file.truncate(PAGE_SIZE)  # somebody cuts it short
            result = libc.msync(region.address, 2 * PAGE_SIZE, SyncFlag.SYNC)
            wrong(f"msync() of a file that was cut short: {result}, as if all were well")
            try:
                region.flush()
            except mmkit.SyscallError as error:
                right(f"region.flush() looks at the file's size as well: {errno.errorcode[error.errno or 0]}")


LESSONS = {
    "A return value that nobody checks: MAP_FAILED is no address": check_what_a_call_returns,
    "No memory: ENOMEM is an answer to work with, not the end": have_a_plan_for_no_memory,
    "Alignment: mprotect() takes whole pages, and malloc() gives multiples of 16": align,
    "A free that does not match: mmap() needs munmap(), malloc() needs free()": free_as_it_was_allocated,
    "A leak: mmkit.regions() lists what nobody has closed": find_leaks,
    "A segment without IPC_RMID: it stays until the machine is switched off": remove_segments,
    "A wrong protection: the file was not opened for it": protect_as_the_file_was_opened,
    "A failed msync() that nobody hears: what was written is not in the file": hear_msync_fail,
}

if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
