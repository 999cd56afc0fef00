"""Section: shared memory with an id or a name, between parent and child."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from mmkit import linux, maps
from mmkit.errors import SyscallError
from mmkit.faults import peek, poke
from mmkit.flags import IpcFlag, MapFlag, Prot, ShmCommand
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.company import in_a_child, uninterrupted
from mmkit.tour.engine import Section, Stage, scene
from mmkit.tour.looking import permissions
from mmkit.tour.owned_segment import owned
from mmkit.tour.pictures import Strip, earlier, strip
from mmkit.tour.standing_on_it import channel, dead_holder, named_array, system_v_memory
from mmkit.tour.step import Step

__all__ = ["SECTION"]

_PAGES = 4
_LENGTH = _PAGES * PAGE_SIZE
_ANSWER = 2 * PAGE_SIZE
_READ_WRITE = Prot.READ | Prot.WRITE


@scene(
    "System V: make a segment, attach it, and have it removed after use",
    "The child finds it at the same address, and answers there",
    "Let go of it: the segment is gone",
)
def system_v(stage: Stage) -> None:
    """Make a segment, use it from two processes, and see it go with the last of them."""
    with stage.step() as step:
        flags = IpcFlag.CREAT | 0o600
        areas = maps.read()
        # From the first call to the last the segment would outlive the process.
        with uninterrupted():
            step.call(
                "shmget",
                "IPC_PRIVATE",
                _LENGTH,
                "IPC_CREAT|0600",
                assign="id",
                python=f"id = linux.shmget(0, {_LENGTH}, IpcFlag.CREAT | 0o600)",
            )
            shmid = linux.shmget(0, _LENGTH, flags)
            step.answer(shmid)
            try:
                step.call("shmat", "id", "NULL", 0, assign="p", python="p = linux.shmat(id)")
                address = linux.shmat(shmid)
                step.answer(address)
            finally:
                # On Linux a removed segment lives on while somebody is attached.
                linux.shmctl(shmid, ShmCommand.RMID)
            step.call("shmctl", "id", ShmCommand.RMID, "NULL", python="linux.shmctl(id, ShmCommand.RMID)")
            step.answer(0, ": it goes when the last process lets go of it")
        step.show(earlier("before", areas, address, _PAGES), strip("after", address, _PAGES))
        status = linux.shmctl(shmid, ShmCommand.STAT)
        step.check(
            f"shmctl(IPC_STAT): {status.shm_segsz} bytes, attached {status.shm_nattch} time",
            status.shm_nattch == 1,
        )
        step.check(f"/proc/self/maps: {permissions(address)}", permissions(address) == "rw-s")
    try:
        _converse(stage, shmid, address)
    except BaseException:
        linux.shmdt(address)
        raise
    with stage.step() as step:
        before = strip("before", address, _PAGES, holds=True)
        step.call("shmdt", "p", python="linux.shmdt(p)")
        linux.shmdt(address)
        step.answer(0)
        step.show(before, strip("after", address, _PAGES))
        step.check(f"shmctl knows no segment {shmid} any more", _is_gone(shmid))


def _converse(stage: Stage, shmid: int, address: int) -> None:
    with stage.step() as step:
        step.prepare('poke(p, b"ask")')
        poke(address, b"ask")
        before = strip("parent, before", address, _PAGES, holds=True)

        def answer() -> tuple[int, int, Strip]:
            poke(address + _ANSWER, b"yes" if peek(address, 3) == b"ask" else b"eh?")
            attached = linux.shmctl(shmid, ShmCommand.STAT).shm_nattch
            return os.getpid(), attached, strip("child", address, _PAGES, holds=True)

        step.call("fork", assign="child", python="child = os.fork()")
        child, attached, in_child = in_a_child(answer)
        step.answer(child, ", and 0 in the child, which does what follows")
        step.code("memcpy(heard, p, 3);", "heard = peek(p, 3)")
        step.say(f"not called: a load, of {in_child.holds[0]!r}")
        step.code(f'memcpy(p + {_ANSWER}, "yes", 3);', f'poke(p + {_ANSWER}, b"yes")')
        step.say("not called: a store")
        reply = peek(address + _ANSWER, 3)
        step.show(before, in_child, strip("parent, after", address, _PAGES, holds=True))
        step.check(f"while the child lived, the segment was attached {attached} times", attached == 2)
        step.check(f"the parent reads the child's answer: {reply!r}", reply == b"yes")


def _is_gone(shmid: int) -> bool:
    try:
        linux.shmctl(shmid, ShmCommand.STAT)
    except SyscallError:
        return True
    return False


@scene(
    "POSIX: shared memory is a file in memory, and has a name",
    "The child opens it by its name, and answers there",
    "Remove the name: who has the memory keeps it",
)
def posix(stage: Stage) -> None:
    """Make an object with a name; the child opens it by that name."""
    name = f"/mmkit-tour-{os.getpid()}"
    # While it has a name it would outlive the process: nothing is waited for until it has none.
    with stage.in_one_go(), uninterrupted(), contextlib.ExitStack() as clean_up:
        region = _make(stage, name, clean_up)
        _answer_by_name(stage, name, region)
        with stage.step() as step:
            step.call("shm_unlink", f'"{name}"', python=f'linux.shm_unlink("{name}")')
            linux.shm_unlink(name)
            step.answer(0)
            step.check(f"/dev/shm{name} is gone", not _is_named(name))
            step.check(f"region[0:3] is {region[0:3]!r}, as it was", region[0:3] == b"ask")


def _make(stage: Stage, name: str, clean_up: contextlib.ExitStack) -> Region:
    # A system without /dev/shm says ENOENT.
    with stage.step(may_refuse=(errno.ENOENT,)) as step:
        areas = maps.read()
        step.call(
            "shm_open",
            f'"{name}"',
            "O_RDWR|O_CREAT|O_EXCL",
            "0600",
            assign="fd",
            python=f'fd = linux.shm_open("{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL)',
        )
        fd = linux.shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        clean_up.callback(_unlink_if_named, name)
        clean_up.callback(os.close, fd)
        step.answer(fd)
        step.call("ftruncate", "fd", _LENGTH, python=f"os.ftruncate(fd, {_LENGTH})")
        os.ftruncate(fd, _LENGTH)
        step.answer(0, ": it was empty")
        _map(step, 'region = Region.file(fd, mode="r+")')
        region = Region.file(fd, mode="r+")
        clean_up.enter_context(region)
        step.answer(region.address)
        step.show(earlier("before", areas, region.address, _PAGES), strip("after", region))
        step.check(f"/dev/shm{name} is there: a file, for anyone who may open it", _is_named(name))
    return region


def _answer_by_name(stage: Stage, name: str, region: Region) -> None:
    with stage.step() as step:
        step.prepare('region[0:3] = b"ask"')
        region[0:3] = b"ask"
        before = strip("parent, before", region, holds=True)
        child, fd, in_child = in_a_child(lambda: _opened_by_name(name))
        step.call("fork", assign="child", python="child = os.fork()")
        step.answer(child, ", and 0 in the child, which does what follows")
        step.call(
            "shm_open",
            f'"{name}"',
            "O_RDWR",
            0,
            assign="fd",
            python=f'fd = linux.shm_open("{name}", os.O_RDWR)',
        )
        step.answer(fd, ", in the child")
        _map(step, 'region = Region.file(fd, mode="r+")')
        step.answer(in_child.start, ", in the child")
        step.code("memcpy(heard, p, 3);", "heard = region[0:3]")
        step.say(f"not called: a load, of {in_child.holds[0]!r}")
        step.code(f'memcpy(p + {_ANSWER}, "yes", 3);', f'region[{_ANSWER}:{_ANSWER + 3}] = b"yes"')
        step.say("not called: a store")
        reply = region[_ANSWER : _ANSWER + 3]
        step.show(before, in_child, strip("parent, after", region, holds=True))
        step.check(f"the child read {in_child.holds[0]!r}", in_child.holds[0] == "ask")
        step.check(f"the parent reads the child's answer: {reply!r}", reply == b"yes")


def _map(step: Step, python: str) -> None:
    step.call("mmap", "NULL", _LENGTH, _READ_WRITE, MapFlag.SHARED, "fd", 0, assign="p", python=python)


def _opened_by_name(name: str) -> tuple[int, int, Strip]:
    fd = linux.shm_open(name, os.O_RDWR)
    region = Region.file(fd, mode="r+")
    heard = region[0:3]
    region[_ANSWER : _ANSWER + 3] = b"yes" if heard == b"ask" else b"eh?"
    return os.getpid(), fd, strip("child", region, holds=True)


def _is_named(name: str) -> bool:
    return Path(f"/dev/shm{name}").exists()


def _unlink_if_named(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        linux.shm_unlink(name)


SECTION = Section(
    key="shared",
    title="Shared memory by id and by name",
    introduction=(
        "Processes that have no parent in common need a way to find the same memory. System V gives it a "
        "number, POSIX a name as files have. Both kinds live until they are removed, even without any "
        "process."
    ),
    scenes=(system_v, posix, owned, system_v_memory, dead_holder, channel, named_array),
)
