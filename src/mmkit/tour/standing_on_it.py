"""Scenes of the section on shared memory: what mmkit stands on it, each with a second process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mmkit import shared
from mmkit.errors import Error, OwnerDied
from mmkit.region import PAGE_SIZE
from mmkit.tour.company import ChildDiedError, in_a_child, uninterrupted
from mmkit.tour.engine import Stage, scene

__all__ = ["channel", "dead_holder", "named_array", "system_v_memory"]


def _name() -> str:
    return f"mmkit-tour-{os.getpid()}"


@scene(
    "mmkit's System V memory: a child attaches it, removes nothing",
    "Its owner removes it: it is gone",
)
def system_v_memory(stage: Stage) -> None:
    """Own a System V segment: who only attaches it takes nothing away."""
    with stage.in_one_go(), uninterrupted(), contextlib.ExitStack() as clean_up:
        with stage.step() as step:
            step.code(
                f"id = shmget(IPC_PRIVATE, {PAGE_SIZE}, IPC_CREAT|0600);  p = shmat(id, …);",
                f"memory = shared.SystemVMemory(create=True, size={PAGE_SIZE})",
            )
            memory = clean_up.enter_context(shared.SystemVMemory(create=True, size=PAGE_SIZE))
            step.say(f"id = {memory.id}, and a note of who made it")

            def answer() -> tuple[int, bool]:
                with shared.SystemVMemory.attach(memory.id) as attached:
                    attached.region[0:3] = b"yes"
                    return os.getpid(), attached.owned

            step.call("fork", assign="child", python="child = os.fork()")
            child, child_owns = in_a_child(answer)
            step.answer(child, ", and 0 in the child, which does what follows, and ends")
            step.code(
                'memcpy(shmat(id, NULL, 0), "yes", 3);',
                'shared.SystemVMemory.attach(memory.id).region[0:3] = b"yes"',
            )
            step.say("in the child: attached a second time, and a store")
            heard = memory.region[0:3]
            step.check(f"the parent reads {heard!r}", heard == b"yes")
            step.check("the child did not own it, the parent does", memory.owned and not child_owns)
            attached = memory.stat().shm_nattch
            step.check(f"after the child's end it is attached {attached} time", attached == 1)
        with stage.step() as step:
            step.code("shmctl(id, IPC_RMID, NULL);  shmdt(p);", "memory.remove(), memory.detach()")
            number = memory.id
            memory.remove()
            memory.detach()
            step.say("what the end of the owner's with block does")
            step.check(f"nobody can attach {number} any more", _is_gone(number))


def _is_gone(number: int) -> bool:
    with contextlib.suppress(OSError), shared.SystemVMemory.attach(number):
        return False
    return True


@scene(
    "A lock, and a child that is killed while it holds it",
    "Who asks for it is told, and puts right what it protects",
)
def dead_holder(stage: Stage) -> None:
    """Lose the holder of a lock: nobody waits for the dead, and nobody goes on as if nothing was."""
    with stage.in_one_go(), uninterrupted(), contextlib.ExitStack() as clean_up:
        with stage.step() as step:
            step.code(
                "pthread_mutex_init(lock, &robust_and_shared);",
                f'lock = shared.Lock("{_name()}", create=True);  lock.unlink()',
            )
            lock = shared.Lock(_name(), create=True)
            clean_up.callback(lock.close)
            lock.unlink()
            step.say("no system call but for its memory; the name is not needed after a fork")

            def die_with_it() -> NoReturn:
                lock.acquire()
                os.kill(os.getpid(), signal.SIGKILL)
                raise AssertionError

            step.call("fork", assign="child", python="child = os.fork()")
            death = _death_of(die_with_it)
            step.say("the child's pid, and 0 in the child, which does what follows")
            step.code(
                "pthread_mutex_lock(lock);  kill(getpid(), SIGKILL);",
                "lock.acquire();  os.kill(os.getpid(), 9)",
            )
            step.say("the kernel looks through the locks of the dead, and marks this one")
            step.check(f"the child died of {death}", death == "SIGKILL")
        with stage.step() as step:
            step.code("pthread_mutex_lock(lock);", "lock.acquire()")
            told = _told(lock)
            step.raises("EOWNERDEAD", told)
            step.check("acquire() raises OwnerDied, and holds nothing", isinstance(told, OwnerDied))
            step.code(
                "pthread_mutex_consistent(lock);  pthread_mutex_unlock(lock);",
                "with lock.repairing() as abandoned: pass",
            )
            with lock.repairing() as abandoned:
                pass
            step.say("it was held meanwhile: here one puts right what the dead left half done")
            step.check("it was abandoned, and is free again", abandoned and lock.acquire(0))
            lock.release()


def _death_of(work: Callable[[], NoReturn]) -> str:
    try:
        in_a_child(work)
    except ChildDiedError as error:
        return error.signal
    return ""


def _told(lock: shared.Lock) -> Exception | None:
    try:
        lock.acquire()
    except Error as error:
        return error
    lock.release()
    return None


@scene(
    "A channel: a child takes a message, and sends another",
    "What it sent is there after its end",
)
def channel(stage: Stage) -> None:
    """Pass messages: no lock, and no system call while both sides are awake."""
    with stage.in_one_go(), uninterrupted(), contextlib.ExitStack() as clean_up:
        with stage.step() as step:
            step.code(
                'fd = open("/dev/shm", O_TMPFILE|O_RDWR, 0600);  /* … */ p = mmap(…);',
                f'channel = shared.Channel("{_name()}", 4096, create=True)',
            )
            messages = clean_up.enter_context(shared.Channel(_name(), 4096, create=True))
            step.say("a ring of 4096 bytes for each writer")
            step.code('memcpy(p + room, "ask", 3);  atomic_store(&state, COMMITTED);', 'channel.send(b"ask")')
            messages.send(b"ask")
            step.say("not called: stores; the last one makes it a message")

            def answer() -> tuple[int, bytes]:
                heard = messages.recv(10)
                messages.send(b"yes")
                return os.getpid(), heard

            step.call("fork", assign="child", python="child = os.fork()")
            child, heard = in_a_child(answer)
            step.answer(child, ", and 0 in the child, which does what follows, and ends")
            step.code("if (compare_exchange(&state, COMMITTED, TAKEN)) …;", "heard = channel.recv(10)")
            step.say(f"{heard!r}: not called: an atomic exchange, and loads")
            step.code('memcpy(p + room, "yes", 3);  atomic_store(&state, COMMITTED);', 'channel.send(b"yes")')
            step.say("not called: stores, into a ring of the child's own")
            step.check(f"the child took {heard!r}", heard == b"ask")
        with stage.step() as step:
            step.code("if (compare_exchange(&state, COMMITTED, TAKEN)) …;", "heard = channel.recv(10)")
            heard = messages.recv(10)
            step.say(f"{heard!r}")
            step.code("munmap(p, …);  unlink(…);", "channel.close(), channel.unlink()")
            messages.close()
            messages.unlink()
            step.say("what the end of its maker's with block does")
            step.check(f"the parent took {heard!r}, and its writer is gone", heard == b"yes")


@scene(
    "An array by name: a child attaches it, and writes a number",
    "Its owner reads the number where it lies",
)
def named_array(stage: Stage) -> None:
    """Share numbers without copying them: shape and type are in the segment."""
    name = _name()
    with stage.in_one_go(), uninterrupted(), contextlib.ExitStack() as clean_up:
        with stage.step() as step:
            step.code(
                "fd = shm_open(…);  double (*array)[3] = mmap(…, 2 * 3 * sizeof(double), …);",
                f'array = shared.array("{name}", (2, 3), "f8", create=True)',
            )
            if importlib.util.find_spec("numpy") is None:
                raise Error("numpy is not installed")
            array = clean_up.enter_context(shared.array(name, (2, 3), "f8", create=True))
            step.say("what it is of stands beside the numbers")

            def answer() -> tuple[int, tuple[int, ...]]:
                attached = shared.array(name)
                attached[1, 2] = 42
                return os.getpid(), attached.shape

            step.call("fork", assign="child", python="child = os.fork()")
            child, shape = in_a_child(answer)
            step.answer(child, ", and 0 in the child, which does what follows, and ends")
            step.code("array[1][2] = 42;", f'shared.array("{name}")[1, 2] = 42')
            step.say("not called: a store")
            step.check(f"the child met an array of shape {shape}", shape == (2, 3))
        with stage.step() as step:
            step.code("x = array[1][2];", "array[1, 2]")
            number = float(array[1, 2])
            step.say("not called: a load")
            step.check(f"the parent reads {number:g}", number == 42)
            step.code(f'shm_unlink("/{name}");', "array.segment.unlink()")
            clean_up.close()
            step.say("what the end of its maker's with block does; who has the array keeps it")
            step.check(f"/dev/shm/{name} is gone", not Path("/dev/shm", name).exists())
