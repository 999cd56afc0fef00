"""Section: memory that stays in RAM."""

from __future__ import annotations

import errno
import hmac
import os
from pathlib import Path

from mmkit import linux, maps
from mmkit.errors import SyscallError
from mmkit.flags import LockFlag
from mmkit.region import PAGE_SIZE, Region
from mmkit.secret import Secret, find_copies
from mmkit.tour.company import ordinary_pages
from mmkit.tour.engine import Section, Stage, scene
from mmkit.tour.looking import area_facts
from mmkit.tour.pictures import earlier, strip
from mmkit.wording import size

__all__ = ["SECTION"]

_PAGES = 8
_HALF = _PAGES // 2 * PAGE_SIZE
_REGION = f"region = Region.anonymous({_PAGES * PAGE_SIZE})"


@scene(
    "Lock four pages: they are brought in, and stay",
    "Unlock them: still in RAM, but free to go",
)
def lock(stage: Stage) -> None:
    """Lock half of a region, and let it go."""
    with Region.anonymous(_PAGES * PAGE_SIZE) as region:
        locked = _locked()
        with stage.step() as step:
            step.prepare(_REGION, *ordinary_pages(region))
            before = strip("before", region)
            step.call("mlock", "p", _HALF, python=f"region.lock(0, {_HALF})")
            region.lock(0, _HALF)
            step.answer(0)
            step.show(before, strip("after", region))
            now = _locked()
            step.check(
                "VmLck, what this process has locked, in /proc/self/status: "
                f"{size(locked)} before, {size(now)} after",
                now - locked == _HALF,
            )
            step.check(
                f"pagemap: {size(region.resident())} in RAM, nobody has touched them",
                region.resident() == _HALF,
            )
        with stage.step() as step:
            before = strip("before", region)
            step.call("munlock", "p", _HALF, python=f"region.unlock(0, {_HALF})")
            region.unlock(0, _HALF)
            step.answer(0)
            step.show(before, strip("after", region))
            step.check(f"VmLck: {size(_locked())}", _locked() == locked)


@scene("Lock on fault: nothing is brought in, what comes later stays")
def lock_on_fault(stage: Stage) -> None:
    """Lock pages as they come."""
    with Region.anonymous(_PAGES * PAGE_SIZE) as region, stage.step() as step:
        step.prepare(_REGION, *ordinary_pages(region))
        before = strip("before", region)
        step.call(
            "mlock2",
            "p",
            len(region),
            LockFlag.ONFAULT,
            python=f"linux.mlock2(region.address, {len(region)}, LockFlag.ONFAULT)",
        )
        linux.mlock2(region.address, len(region), LockFlag.ONFAULT)
        step.answer(0)
        step.code(f"p[{2 * PAGE_SIZE}] = 1;", f"region[{2 * PAGE_SIZE}] = 1")
        step.say("not called: a store, and a page fault")
        region[2 * PAGE_SIZE] = 1
        step.show(before, strip("after a touch of the third page", region))
        step.check("only the page that was touched is in RAM", region.resident() == PAGE_SIZE)
        flags = area_facts(region.address).get("VmFlags", "")
        step.check(
            "/proc/self/smaps, maps with more on each area: lo, for locked, among its flags",
            "lo" in flags.split(),
        )


@scene(
    "A key: locked, in no dump, in no child, and shut",
    "Sign with it, and search the process for what that left",
    "Close it: wiped, and its place is the next one's",
)
def key(stage: Stage) -> None:
    """Make a key, use it, and show that it stays where it is."""
    make = "key = Secret.random(32)"
    with stage.step() as step:
        step.code("mmk_secret_take(&key, 32, MMK_SECRET_LOCKED, false, &why);", make)
        key = Secret.random(32)
        shut = key.status()
        step.say(f"mapped, locked, advised and shut again: 32 bytes at {shut.address:#x}")
        step.check(f"smaps: {shut.perms} while nobody looks", shut.perms == "---p")
        step.check("lo: locked; dd: in no core dump", shut.locked and shut.not_dumped)
        step.check("wf: a forked child has zeros in its place", shut.wiped_on_fork)
        step.code("mmk_secret_open(&key, false);", "with key.open() as view: view[0]")
        with key.open():
            opened = key.status().perms
        step.say("not a call for each byte: one mprotect() for the block, and one at its end")
        step.check(
            f"smaps: {opened} inside the block, {key.status().perms} after it",
            (opened, key.status().perms) == ("r--p", "---p"),
        )
    with stage.step() as step:
        step.code(
            'HMAC(EVP_sha256(), key.bytes, 32, "message", 7, tag, NULL);',
            'with key.open() as view: hmac.digest(view, b"message", "sha256")',
        )
        with key.open() as view:
            hmac.digest(view, b"message", "sha256")
        step.say("OpenSSL reads the key where it is")
        step.code('system("mmkit secret scan PID");', "copies = find_copies(key)")
        copies = find_copies(key)
        step.say(f"all memory of this process: {size(copies.looked_at)}")
        step.check(
            f"{len(copies.full)} full and {len(copies.partial)} partial copies, but for the key in its place",
            not copies,
        )
    with stage.step() as step:
        step.code("mmk_secret_give(&key);", "key.close()")
        key.close()
        step.say("wiped: mprotect() to write, mprotect() to shut")
        step.code("mmk_secret_take(&again, 32, MMK_SECRET_LOCKED, false, &why);", "again = Secret(32)")
        with Secret(32) as again:
            step.say("the same slot, of 64 bytes, for the next")
            step.check("what stands there now: zeros", again == bytes(32))


@scene("Secret memory: locked, and unknown even to the kernel itself")
def secret(stage: Stage) -> None:
    """Keep something where even the kernel has no address for it."""
    with stage.step() as step:
        length, areas = 4 * PAGE_SIZE, maps.read()
        step.call("memfd_secret", 0, assign="fd", python=f"region = Region.memfd({length}, secret=True)")
        with Region.memfd(length, secret=True) as region:
            step.say(f"fd = a descriptor, mapped at {region.address:#x} and closed")
            step.code('memcpy(p, "s3cret", 6);', 'region[0:6] = b"s3cret"')
            step.say("not called: a store")
            region[0:6] = b"s3cret"
            step.show(earlier("before", areas, region.address, 4), strip("after a store", region, holds=True))
            step.check("we can read it", region[0:6] == b"s3cret")
            step.check(
                "the kernel cannot: process_vm_readv() fails where it reads all else",
                not _kernel_can_read(region.address, 6),
            )


def _kernel_can_read(address: int, length: int) -> bool:
    try:
        linux.process_vm_readv(os.getpid(), [(address, length)])
    except SyscallError as error:
        if error.errno != errno.EFAULT:
            raise
        return False
    return True


def _locked() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmLck:"):
            return int(line.split()[1]) * 1024
    return 0


SECTION = Section(
    key="locking",
    title="Memory that stays: mlock",
    introduction=(
        "The kernel may take away pages that have not been used for a while, and bring them back later, "
        "slowly. Locked pages stay in RAM: for keys that must not reach a disk, and for work that must not "
        "wait."
    ),
    scenes=(lock, lock_on_fault, key, secret),
)
