"""Memory without a file: far more of it than the machine has, and only what is touched costs anything.

Takes 64 GiB of addresses and touches a few of its pages; grows a region under the eyes of whoever looks at
it; and gives memory back, some of it and all of it. After each step the kernel is asked what is in RAM.
In C: mmap(2), munmap(2), mremap(2), madvise(2). Belongs to the chapter "Mapping" (docs/mapping.md).
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import mmkit
from mmkit import PAGE_SIZE, Advice, Region, maps

MIB = 1 << 20
# Under a limit on address space (ulimit -v), or with strict accounting (vm.overcommit_memory=2), take less.
LENGTHS = (MIB << 16, MIB << 12, MIB << 8)


def main() -> None:
    """Take memory, touch it, grow it, and give it back."""
    print(f"A page is {PAGE_SIZE} bytes here.")
    touch_a_sparse_region()
    grow_in_place()
    grow_by_moving()
    give_back()


def touch_a_sparse_region() -> None:
    """Take a huge range of addresses (mmap), and see memory arrive page by page."""
    print("\nAddresses are free, memory comes when it is touched")
    with huge_region() as region:
        print(f"  {len(region) // MIB:,} MiB from {region.address:#x} on: {region.resident()} bytes in RAM")
        for offset in (0, len(region) // 2, len(region) - 1):
            region[offset] = 1
            print(f"  a byte is stored at offset {offset:,}")
        print(f"  now there are {region.resident()} bytes in RAM, a page for each store")
        # Reading needs no memory either: the kernel has one page of zeros, and shows it here.
        print(f"  a byte that nobody wrote reads as {region[len(region) // 4]}")


def huge_region() -> Region:
    """Make the largest region that this process may have, in ordinary pages."""
    for length in LENGTHS:
        with contextlib.suppress(mmkit.OutOfMemory):
            region = Region.anonymous(length, noreserve=True, name="sparse")
            use_ordinary_pages(region)
            return region
    raise SystemExit("anonymous_mapping: not even 256 MiB of addresses are to be had")


def use_ordinary_pages(region: Region) -> None:
    """Ask (madvise) for one page a touch, where the system would bring in 2 MiB at once."""
    with contextlib.suppress(mmkit.SyscallError):  # a kernel without transparent huge pages
        region.advise(Advice.NOHUGEPAGE)


def grow_in_place() -> None:
    """Grow into addresses that were held for it: what looks at the region goes on looking."""
    print("\nGrow in place, under a live view")
    with Region.anonymous(MIB, reserve=256 * MIB) as region:
        region[:5] = b"first"
        with memoryview(region) as view:
            before = region.address
            region.resize(256 * MIB)
            region[-4:] = b"last"
            where = "at the same address" if region.address == before else "elsewhere"
            print(f"  {len(view) // MIB} MiB became {len(region) // MIB} MiB, {where}")
            print(f"  a view made before still sees {bytes(view[:5])!r}; {region.resident()} bytes in RAM")


def grow_by_moving() -> None:
    """Grow where there is no room (mremap): the kernel moves the pages elsewhere, and copies nothing."""
    print("\nGrow where there is no room")
    with Region.anonymous(MIB) as region:
        region[:5] = b"moved"
        before = region.address
        region.resize(64 * MIB)
        print(f"  1 MiB at {before:#x} became {len(region) // MIB} MiB at {region.address:#x}")
        print(f"  it begins with {region[:5]!r}, and {region.resident()} bytes are in RAM")
        with memoryview(region):
            try:
                region.resize(1 << 46)  # there can be no room for that behind it
            except (BufferError, mmkit.OutOfMemory) as refusal:
                print(f"  under a live view it may not move: {type(refusal).__name__}")


def give_back() -> None:
    """Give pages back to the system (madvise), then the addresses (munmap)."""
    print("\nGive it back")
    region = Region.anonymous(32 * MIB)
    try:
        region.populate(write=True)
        show("populate() of 32 MiB", region)
    except mmkit.SyscallError as refusal:  # Linux 5.14
        region.write(bytes(32 * MIB))
        show(f"populate(): {refusal.strerror}; so it is written to", region)
    region[0] = region[-1] = 7
    region.discard(0, 24 * MIB)
    show("discard() of 24 MiB", region)
    print(f"  the first byte is {region[0]} now, the last {region[-1]}: what was given back is lost")

    address = region.address
    region.close()
    print(f"  close(): the process has {in_ram()} MiB in RAM")
    # Whoever kept the address must not meet there what somebody else has mapped since.
    print(f"  while the object lives its addresses are held, without access: {maps.find(address)}")
    del region
    print(f"  after that they are free: {maps.find(address)}")


def show(what: str, region: Region) -> None:
    """Print how much of a region, and of the whole process, is in RAM."""
    mib = region.resident() // MIB
    print(f"  {what}: {mib} MiB of it in RAM, the process has {in_ram()} MiB")


def in_ram() -> int:
    """Return what the whole process has in RAM, in MiB: statm has it in pages, as its second number."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE // MIB


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
