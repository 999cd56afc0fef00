"""Region: advise, flush, protect, access, creation.

What a call costs beyond the bare system calls that it makes, for mmkit, the standard library's mmap, ctypes
and cffi. The target: no more than mmap, and at most a fifth of ctypes.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import mmkit
from mmkit.flags import Seal, SyncFlag
from peers import bare, cffi_libc, ctypes_libc, through_libc
from runner import Above, Contestants, Loop, Race, Statement, Target, main, race

SIZE = 1 << 20
READ, READ_WRITE = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
MS_SYNC = int(SyncFlag.SYNC)

TARGETS = (Target("mmkit", "mmap", at_most=1.0), Target("mmkit", "ctypes", at_most=0.2))
AGAINST_CTYPES = (Target("mmkit", "ctypes", at_most=0.2),)


# ---- kinds of memory: everybody gets a mapping of their own -----------------------------------------


def memfd(*, sealed: bool = False) -> int:
    fd = os.memfd_create("bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def written_file() -> int:
    """Make a file of zeros that are on the disk already."""
    fd, path = tempfile.mkstemp()
    Path(path).unlink()
    os.write(fd, bytes(SIZE))
    os.fsync(fd)
    return fd


def file_region() -> mmkit.Region:
    fd = written_file()
    try:
        return mmkit.Region.file(fd, mode="r+")
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Shared:
    """A kind of shared memory: how mmkit makes a region of it, and the descriptor that others map."""

    region: Callable[[], mmkit.Region]
    descriptor: Callable[[], int]

    def mapping(self, scope: ExitStack) -> mmap.mmap:
        return scope.enter_context(mmap.mmap(self.open(scope), SIZE))

    def address(self, scope: ExitStack, fd: int | None = None) -> int:
        libc = ctypes_libc(use_errno=True)
        fd = self.open(scope) if fd is None else fd
        anonymous = mmap.MAP_ANONYMOUS if fd < 0 else 0
        address = libc.mmap(None, SIZE, READ_WRITE, mmap.MAP_SHARED | anonymous, fd, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        scope.callback(libc.munmap, address, SIZE)
        return int(address)

    def open(self, scope: ExitStack) -> int:
        fd = self.descriptor()
        if fd >= 0:
            scope.callback(os.close, fd)
        return fd


# Not private: neighbouring private mappings become one area in the kernel, so that what one contestant
# does to its own would cost the next one.
ANONYMOUS = Shared(lambda: mmkit.Region.anonymous(SIZE, shared=True), lambda: -1)
MEMFD = Shared(lambda: mmkit.Region.memfd(SIZE), memfd)
SEALED = Shared(lambda: mmkit.Region.memfd(SIZE, seals=Seal.SHRINK), lambda: memfd(sealed=True))
ON_DISK = Shared(file_region, written_file)


class Call:
    """Bare system calls, by their name in bare_calls.c, with their arguments after address and length."""

    def __init__(self, name: str, *numbers: int) -> None:
        self.name = name
        self.numbers = [ctypes.c_int(number) for number in numbers]

    def at(self, address: int) -> Loop | None:
        return bare(self.name, ctypes.c_void_p(address), ctypes.c_size_t(SIZE), *self.numbers)

    def under(self, memory: mmkit.Region | mmap.mmap, work: Loop) -> Above:
        """Return the work, with these calls on its own memory as the floor."""
        return Above(self.at(ctypes.addressof(ctypes.c_char.from_buffer(memory))), work)


def filesystem_of(directory: str) -> str:
    """Return the type of the file system that a directory is on: of the longest mount point above it."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    path = Path(directory).resolve()
    return max((len(point), kind) for _, point, kind, *_ in mounts if path.is_relative_to(point))[1]


# ---- the system calls -------------------------------------------------------------------------------


@race("advise: NORMAL", peer="mmap", targets=TARGETS)
def advise(scope: ExitStack) -> Contestants:
    call = Call("madvise", mmap.MADV_NORMAL)
    region = scope.enter_context(ANONYMOUS.region())
    mapping = ANONYMOUS.mapping(scope)
    address = ANONYMOUS.address(scope)
    by_libc = "libc.madvise(address, SIZE, NORMAL)"
    return {
        "mmkit": call.under(
            region, Statement("region.advise(NORMAL)", region=region, NORMAL=mmkit.Advice.NORMAL)
        ),
        "mmap": call.under(
            mapping, Statement("mapping.madvise(NORMAL)", mapping=mapping, NORMAL=mmap.MADV_NORMAL)
        ),
        **through_libc(by_libc, address, call.at(address), SIZE=SIZE, NORMAL=mmap.MADV_NORMAL),
    }


def flush(of: str, kind: Shared, *, may_shrink: bool = False, targets: Sequence[Target] = TARGETS) -> Race:
    @race(f"flush: {of}", peer="mmap", targets=targets)
    def flush_it(scope: ExitStack) -> Contestants:
        call = Call("msync", MS_SYNC)
        region = scope.enter_context(kind.region())
        # mmkit's promise, that data lost with the end of a file raise, takes a second system call.
        both = Call("msync_and_fstat", MS_SYNC, region.fileno()) if may_shrink else call
        mapping = kind.mapping(scope)
        address = kind.address(scope)
        by_libc = "libc.msync(address, SIZE, MS_SYNC)"
        return {
            "mmkit": both.under(region, Statement("region.flush()", region=region)),
            "mmap": call.under(mapping, Statement("mapping.flush()", mapping=mapping)),
            **through_libc(by_libc, address, call.at(address), SIZE=SIZE, MS_SYNC=MS_SYNC),
        }

    return flush_it


@race("protect: READ|WRITE, as it is", peer="ctypes", targets=AGAINST_CTYPES)
def protect_as_is(scope: ExitStack) -> Contestants:
    call = Call("mprotect", READ_WRITE)
    region = scope.enter_context(ANONYMOUS.region())
    address = ANONYMOUS.address(scope)
    prot = mmkit.Prot.READ | mmkit.Prot.WRITE
    by_libc = "libc.mprotect(address, SIZE, READ_WRITE)"
    return {
        "mmkit": call.under(region, Statement("region.protect(RW)", region=region, RW=prot)),
        "mmap": None,
        **through_libc(by_libc, address, call.at(address), SIZE=SIZE, READ_WRITE=READ_WRITE),
    }


@race("protect: READ and back, two calls", peer="ctypes", targets=AGAINST_CTYPES)
def protect_and_back(scope: ExitStack) -> Contestants:
    calls = Call("mprotect_twice", READ, READ_WRITE)
    region = scope.enter_context(ANONYMOUS.region())
    address = ANONYMOUS.address(scope)
    prots = {"R": mmkit.Prot.READ, "RW": mmkit.Prot.READ | mmkit.Prot.WRITE}
    by_libc = "libc.mprotect(address, SIZE, R) or libc.mprotect(address, SIZE, RW)"
    return {
        "mmkit": calls.under(
            region, Statement("region.protect(R); region.protect(RW)", region=region, **prots)
        ),
        "mmap": None,
        **through_libc(by_libc, address, calls.at(address), SIZE=SIZE, R=READ, RW=READ_WRITE),
    }


@race("create and close: private anonymous", peer="mmap")
def create(scope: ExitStack) -> Contestants:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    floor = bare("map_and_unmap", ctypes.c_size_t(SIZE))
    mmkit_call = Statement("anonymous(SIZE).close()", anonymous=mmkit.Region.anonymous, SIZE=SIZE)
    mmap_call = Statement("mmap(-1, SIZE, FLAGS).close()", mmap=mmap.mmap, SIZE=SIZE, FLAGS=flags)
    by_libc = "libc.munmap(libc.mmap(address, SIZE, READ_WRITE, FLAGS, -1, 0), SIZE)"
    return {
        "mmkit": Above(floor, mmkit_call),
        "mmap": Above(floor, mmap_call),
        **through_libc(by_libc, None, floor, SIZE=SIZE, READ_WRITE=READ_WRITE, FLAGS=flags),
    }


# ---- the contents -----------------------------------------------------------------------------------


#: Every access of mmkit is guarded, those of the others are not.
GUARDED_SMALL = (Target("mmkit", "mmap", at_most=1.0, plus_ns=15),)
GUARDED_LARGE = (Target("mmkit", "mmap", at_most=1.0),)


def access(name: str, statement: str, targets: Sequence[Target], count: int = 1) -> Race:
    """Return the race of a statement on `memory`, in which `data` is so many bytes.

    An item of a ctypes array is an int where the elements are `c_ubyte`, a slice is bytes where they are
    `c_char`: as the others' are.
    """
    slices = ":" in statement

    @race(name, peer="mmap", targets=targets)
    def run_it(scope: ExitStack) -> Contestants:
        # The same pages for everybody: which of them share a place in the caches, the kernel's choice when it
        # gave them out, is worth a factor of two at 1 MiB.
        region = scope.enter_context(mmkit.Region.memfd(SIZE))
        pages = Shared(lambda: region, lambda: os.dup(region.fileno()))
        region[:] = bytes(SIZE)
        data = b"d" * count

        def on(memory: object) -> Statement:
            return Statement(statement, memory=memory, data=data)

        element = ctypes.c_char if slices else ctypes.c_ubyte
        contestants: dict[str, Statement | None] = {
            "mmkit": on(region),
            "mmap": on(pages.mapping(scope)),
            "ctypes": None,
            "cffi": None,
        }
        if "find" in statement:
            return contestants
        contestants["ctypes"] = on((element * SIZE).from_address(pages.address(scope)))
        if cffi := cffi_libc():
            pointer = cffi.ffi.cast("unsigned char *", pages.address(scope))
            contestants["cffi"] = on(cffi.ffi.buffer(pointer, SIZE) if slices else pointer)
        return contestants

    return run_it


if __name__ == "__main__":
    directory = tempfile.gettempdir()
    main(
        advise,
        flush("anonymous shared memory", ANONYMOUS),
        flush("memfd that others may shorten", MEMFD, may_shrink=True),
        flush("memfd sealed against shrinking", SEALED),
        # No target: what the disk takes varies by more than a whole call of ctypes costs.
        flush("clean file on disk", ON_DISK, may_shrink=True, targets=()),
        protect_as_is,
        protect_and_back,
        create,
        access("read one byte", "memory[7]", GUARDED_SMALL),
        access("read 16 bytes", "memory[64:80]", GUARDED_SMALL),
        access("store one byte", "memory[7] = 1", GUARDED_SMALL),
        access("store 16 bytes", "memory[64:80] = data", GUARDED_SMALL, 16),
        access("read 4 KiB", "memory[64:4160]", GUARDED_LARGE),
        access("store 4 KiB", "memory[64:4160] = data", GUARDED_LARGE, 4096),
        access("read 64 KiB", "memory[64:65600]", GUARDED_LARGE),
        access("store 64 KiB", "memory[64:65600] = data", GUARDED_LARGE, 65536),
        access("read 1 MiB", f"memory[0:{SIZE}]", GUARDED_LARGE),
        access("store 1 MiB", f"memory[0:{SIZE}] = data", GUARDED_LARGE, SIZE),
        access("find a byte that is not in 1 MiB", "memory.find(b'x', 0)", ()),
        access("find two bytes that are not in 1 MiB", "memory.find(b'xy', 0)", ()),
        notes=[f"The file on disk lies in {directory}, on {filesystem_of(directory)}."],
    )
