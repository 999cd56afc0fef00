"""Where everything of a process lives: its segments, and what lies in which.

Reads the map of this very process, names the segments that textbooks draw (text, data, bss, heap, mappings,
stack, vdso), and then looks up where the things of a program are: functions, variables and blocks of C,
objects of Python, memory and files that are mapped.
In C: sbrk(2), malloc(3), mmap(2), and /proc/self/maps. Belongs to the chapter "Layout" (docs/layout.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile

import mmkit
from mmkit import PAGE_SIZE, Region, linux, maps
from mmkit.maps import Areas, Kind

# "The mappings" are what lies between heap and stack.
SEGMENTS = {
    "text": ([Kind.TEXT], "the program's machine code"),
    "rodata": ([Kind.RODATA], "its constants"),
    "data": ([Kind.DATA], "its variables with a value"),
    "bss": ([Kind.BSS], "its variables of zeros"),
    "heap": ([Kind.HEAP], "small blocks of malloc()"),
    "mappings": ([Kind.LIBRARY, Kind.FILE, Kind.ANONYMOUS], "libraries, files, and more"),
    "stack": ([Kind.STACK], "local variables of C"),
    "vdso": ([Kind.VDSO], "the kernel's: the clock"),
}

# Above 32 MiB malloc() maps every block. Below, where a block goes depends on what was freed before.
LARGE = 64 << 20

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


def main() -> None:
    """Show the segments of this process, then what lies in them."""
    areas = maps.read()
    print(f"This is process {areas.pid}, running {os.fsdecode(areas.program or b'?')}")
    print(f"  {len(areas)} areas of memory, {sum(areas.column('size')) // 1024:,} KiB of addresses in all")

    print("\nThe segments")
    show_segments(areas)
    program_break = linux.sbrk(0)  # to move the break by 0 is to ask where it is
    heap = maps.find(program_break - 1)
    if heap and heap.kind == Kind.HEAP:
        print(f"  the heap ends at {heap.end:x}; sbrk(0) says {program_break:x}")

    print("\nWhat lies where, from the highest address down, and its first bytes")
    with tempfile.TemporaryFile() as file, Region.anonymous(PAGE_SIZE, name="example") as memory:
        file.truncate(PAGE_SIZE)
        with Region.file(file.fileno()) as mapped_file:
            blocks = [libc.malloc(100), libc.malloc(LARGE)]
            a_list = ["an object of Python"]
            show_things(
                {
                    "a local variable of a C function": local_of_a_c_function(),
                    "the function malloc()": address_of_function("malloc"),
                    "the constant Py_Version": address_of_global(ctypes.pythonapi, "Py_Version"),
                    "the global variable environ": address_of_global(libc, "environ"),
                    "malloc(100)": blocks[0],
                    f"malloc({LARGE >> 20} MiB)": blocks[1],
                    "a list of Python": id(a_list),
                    "the object None": id(None),
                    "mmap(), by Region.anonymous(…)": memory.address,
                    "mmap() of a file, by Region.file(…)": mapped_file.address,
                }
            )
            for block in blocks:
                libc.free(block)

    print("\nAt address 0, where NULL points to")
    print(f"  maps.find(0) is {maps.find(0)}")
    try:
        mmkit.peek(0, 1)
    except mmkit.MemoryFault as fault:
        print(f"  peek(0, 1) raises MemoryFault: {fault.access} of {fault.address}: {fault.reason}")

    print("\nThe picture of a process: mmkit maps --layout PID")


def show_segments(areas: Areas) -> None:
    """Print where each segment begins and ends, how large its areas are, and what may be done there."""
    print(f"  {'segment':<9} {'from':>12} {'to':>12} {'areas':>5} {'KiB':>8}  access")
    for name, (kinds, meaning) in SEGMENTS.items():
        found = areas.where(kind=kinds)
        # vsyscall, in the kernel's half, is counted among the vdso.
        if found and found[-1].start >> 63:
            found = found[:-1]
        if found:
            each = {area.perms for area in found}
            access = each.pop() if len(each) == 1 else "mixed"
            kib = sum(found.column("size")) // 1024
            print(
                f"  {name:<9} {found[0].start:12x} {found[-1].end:12x} {len(found):5} {kib:8,}  "
                f"{access:<6} {meaning}"
            )
        else:
            print(f"  {name:<9} {'none':>12} {'':>12} {'':>5} {'':>8}  {'':<6} {meaning}")
    print("  KiB counts the areas alone: between two of a segment there may be others, or nothing.")


def show_things(things: dict[str, int]) -> None:
    """Print the area that each address lies in, and the first bytes there."""
    for what, address in sorted(things.items(), key=lambda item: -item[1]):
        area = maps.find(address)
        kind, perms = (area.kind, area.perms) if area else ("nowhere", "")
        print(f"  {address:12x}  {kind:<9}  {perms}  {mmkit.peek(address, 4).hex(' ')}  {what}")


def address_of_function(name: str) -> int:
    """Return where the machine code of a function of libc begins."""
    return ctypes.cast(getattr(libc, name), ctypes.c_void_p).value or 0


def address_of_global(library: ctypes.CDLL, name: str) -> int:
    """Return where a global variable of a C library is."""
    return ctypes.addressof(ctypes.c_char.in_dll(library, name))


def local_of_a_c_function() -> int:
    """Return the address of a variable on the stack of C.

    dl_iterate_phdr(3) describes each library to a callback, in a local variable of its own.
    """
    addresses: list[int] = []

    def remember(info: int, _size: int, _data: int) -> int:
        addresses.append(info)
        return 1  # enough: do not go on to the next library

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    libc.dl_iterate_phdr(callback(remember), None)
    return addresses[0]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
