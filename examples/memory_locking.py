"""Memory that stays in RAM: locked, counted, limited; and memory that only this process can read.

Locks pages and asks the kernel what it counts; shows what a child inherits; keeps a secret in pages that the
kernel itself has not mapped; and does as an ordinary user does who may lock little: what is refused then, and
why, is printed.
In C: mlock(2), munlock(2), mlock2(2), memfd_secret(2), process_vm_readv(2), getrlimit(2).
Belongs to the chapter "Locking" (docs/locking.md).
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mmkit
from mmkit import PAGE_SIZE, Region, linux
from mmkit.flags import LockFlag

KIB = 1024
NOBODY = 65534


def main() -> None:
    """Lock memory, and show what each lock costs and where the limit is."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    allowed = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // KIB} KiB"
    print(f"This process may lock: {allowed} (RLIMIT_MEMLOCK; who has CAP_IPC_LOCK is not held to it)")
    for show in (lock_and_unlock, lock_what_is_touched, fork_with_locks, keep_a_secret):
        print(f"\n{show.__doc__}")
        try:
            show()
        except mmkit.SyscallError as refusal:
            print(f"  refused: {refusal}")
    for limit in (16 * PAGE_SIZE, 0):
        in_a_child(partial(lock_with_a_limit, limit))


def say(what: str, region: Region) -> None:
    """Print what is locked and what is in RAM: the one counts addresses, the other memory."""
    print(f"  {what:<25} locked: {locked():>3} KiB   of the region in RAM: {region.resident() // KIB:>3} KiB")


def locked() -> int:
    """Return what this process has locked, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmLck:")))


def lock_and_unlock() -> None:
    """Lock: the pages come, and stay."""
    with Region.anonymous(8 * PAGE_SIZE) as region:
        say("before", region)
        region.lock(0, 4 * PAGE_SIZE)
        say("lock() of 4 pages", region)
        region.lock(100, 1)
        say("and of one byte in them", region)
        region.unlock(0, 4 * PAGE_SIZE)
        say("unlock() of the 4", region)
        region.unlock(100, 1)
        say("and of the byte", region)
        with region.locked():
            say("with region.locked()", region)
    # A single munlock(2) undoes every mlock(2) of a page: it is the Region that counts them.
    print("  A page stays locked until it was unlocked as often as it was locked: the region counts.")


def lock_what_is_touched() -> None:
    """Lock on fault: nothing is brought in, and what comes stays."""
    with Region.anonymous(8 * PAGE_SIZE) as region:
        linux.mlock2(region.address, len(region), LockFlag.ONFAULT)
        say("mlock2(ONFAULT)", region)
        region[0] = 1
        say("after one store", region)
    print("  All of it counts as locked from the start.")


def fork_with_locks() -> None:
    """Fork: a child has the memory, but not the locks."""
    with Region.anonymous(8 * PAGE_SIZE, lock="require") as region:
        say("the parent", region)
        in_a_child(lambda: say("its child", region))


def keep_a_secret() -> None:
    """Secret memory: locked by nature, and not even the kernel can read it."""
    if not mmkit.supports("memfd_secret"):
        print("  This kernel has none: it came with Linux 5.14, and wants secretmem.enable=1.")
        return
    with Region.memfd(PAGE_SIZE, secret=True) as region:
        region[:8] = b"password"
        say("Region.memfd(secret=True)", region)
        print(f"  we can read it: {region[:8]!r}")
        try:
            # It has the kernel copy from the memory of a process, here of this one, given by its number.
            linux.process_vm_readv(os.getpid(), [(region.address, 8)])
        except mmkit.SyscallError as refusal:
            print(f"  the kernel cannot: process_vm_readv() of it is {refusal.strerror!r}")


def lock_with_a_limit(limit: int) -> None:
    """Lock more and more in a process that may not lock much."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    print(f"\nAn ordinary user with a limit of {limit // KIB} KiB")
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        except OSError as refusal:  # root of a user namespace that has no other users
            print(f"  not here: root cannot become another user: {refusal.strerror}")
            return
    with Region.anonymous(12 * PAGE_SIZE) as region, Region.anonymous(8 * PAGE_SIZE) as more:
        for each in (region, more):
            try:
                each.lock()
                print(f"  lock() of {len(each) // PAGE_SIZE} pages: done, {locked()} KiB are locked")
            except mmkit.SyscallError as refusal:
                print(f"  lock() of {len(each) // PAGE_SIZE} pages: {type(refusal).__name__}")
                print("    " + str(refusal).replace("\n", "\n    "))
        print(f"  what fails locks nothing: {locked()} KiB are locked")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Region.anonymous(20 * PAGE_SIZE, lock="warn").close()
    print(f"  lock='warn' goes on, with a {caught[0].category.__name__}; lock='require' would raise")


def in_a_child(work: Callable[[], None]) -> None:
    """Do something in a forked child, and wait for its end."""
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
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("memory_locking: the child failed")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
