"""Shared memory: making, attaching and removing segments, and arrays in them.

What mmkit does more than its peers is in its figures: the segment's space is taken (the others' pages are
taken when they are touched, as everybody does in the second race), the control group's limits are looked at,
the maker is recorded, and the segment appears complete.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory as Standard
from typing import Any

import numpy as np

import mmkit
from mmkit import shared
from mmkit.compat.shared_memory import SharedMemory as Compatible
from runner import Contestants, Statement, main, race

SIZE = 4096
NAME = f"mmkit-bench-{os.getpid()}"


def _module(name: str) -> Any:  # noqa: ANN401
    """Return a peer; None where it is not installed."""
    try:
        return __import__(name)
    except ImportError:
        return None


posix_ipc, sysv_ipc = _module("posix_ipc"), _module("sysv_ipc")


def known(contestants: dict[str, Callable[[int], int] | None]) -> Contestants:
    """Leave out who is not installed."""
    return {name: work for name, work in contestants.items() if work is not None}


def _named(scope: ExitStack, size: int) -> str:
    """Make a segment that everybody attaches."""
    segment = scope.enter_context(mmkit.SharedMemory(NAME, create=True, size=size))
    return str(segment.name)


def _posix_ipc(statement: str, **names: object) -> Statement | None:
    if posix_ipc is None:
        return None
    import mmap

    return Statement(statement, posix_ipc=posix_ipc, mmap=mmap.mmap, os=os, READ=mmap.PROT_READ, **names)


def _sysv_ipc(statement: str, **names: object) -> Statement | None:
    return None if sysv_ipc is None else Statement(statement, sysv_ipc=sysv_ipc, **names)


def _touch(buffer: memoryview, pages: range) -> None:
    for page in pages:
        buffer[page] = 1


# ---- POSIX ------------------------------------------------------------------------------------------


def _cycle(size: int, touch: str) -> Contestants:
    """Make, map, unmap and remove."""
    name = NAME
    own = f"s = make(name, create=True, size=size){touch.format('s.buf')}; s.close(); s.unlink()"
    other = (
        "s = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, size=size); m = mmap(s.fd, size); s.close_fd()"
        f"{touch.format('m')}; m.close(); s.unlink()"
    )
    step = mmkit.PAGE_SIZE
    pages: dict[str, object] = {"pages": range(0, size, step), "touch": _touch} if touch else {}
    return known(
        {
            "mmkit": Statement(own, make=mmkit.SharedMemory, name=name, size=size, **pages),
            "mmkit sparse": Statement(
                own.replace("size=size)", "size=size, reserve=False)"),
                make=mmkit.SharedMemory,
                name=name,
                size=size,
                **pages,
            ),
            "mmkit.compat": Statement(own, make=Compatible, name=name, size=size, **pages),
            "multiprocessing": Statement(own, make=Standard, name=name, size=size, **pages),
            "posix_ipc": _posix_ipc(other, name=f"/{name}", size=size, **pages),
        }
    )


@race("make, map, unmap and remove 4 KiB by name", peer="multiprocessing")
def cycle(scope: ExitStack) -> Contestants:
    """Nobody touches the memory."""
    del scope
    return _cycle(SIZE, "")


@race("make 1 MiB by name, touch its pages, unmap and remove it", peer="multiprocessing")
def cycle_touched(scope: ExitStack) -> Contestants:
    """Everybody pays for the pages, one way or the other."""
    del scope
    return _cycle(1 << 20, "; touch({0}, pages)")


@race("attach 4 KiB by name and let go", peer="multiprocessing")
def attach(scope: ExitStack) -> Contestants:
    """Attach what is there."""
    name = _named(scope, SIZE)
    scope.callback(resource_tracker.unregister, f"/{name}", "shared_memory")
    return known(
        {
            "mmkit": Statement("s = make(name); s.close()", make=mmkit.SharedMemory, name=name),
            "mmkit.compat": Statement("s = make(name); s.close()", make=Compatible, name=name),
            "multiprocessing": Statement("s = make(name); s.close()", make=Standard, name=name),
            "posix_ipc": _posix_ipc(
                "s = posix_ipc.SharedMemory(name); m = mmap(s.fd, s.size); s.close_fd(); m.close()",
                name=f"/{name}",
            ),
        }
    )


@race("buf", peer="multiprocessing")
def buffer(scope: ExitStack) -> Contestants:
    """Take a new view each time, against the one that the standard module keeps."""
    ours = scope.enter_context(mmkit.SharedMemory(create=True, size=SIZE))
    theirs = Standard(create=True, size=SIZE)
    scope.callback(theirs.unlink)
    scope.callback(theirs.close)
    return {"mmkit": Statement("s.buf", s=ours), "multiprocessing": Statement("s.buf", s=theirs)}


# ---- System V ---------------------------------------------------------------------------------------


@race("make, attach, detach and remove a System V segment of 4 KiB", peer="sysv_ipc")
def system_v_cycle(scope: ExitStack) -> Contestants:
    """Make and remove: the record of the maker stands in a file of its own here."""
    del scope
    return known(
        {
            "mmkit": Statement(
                "s = make(size=size, create=True); s.detach(); s.remove()",
                make=mmkit.SystemVMemory,
                size=SIZE,
            ),
            "sysv_ipc": _sysv_ipc(
                "s = sysv_ipc.SharedMemory(None, sysv_ipc.IPC_CREX, size=size); s.detach(); s.remove()",
                size=SIZE,
            ),
        }
    )


@race("attach a System V segment of 4 KiB by key and let go", peer="sysv_ipc")
def system_v_attach(scope: ExitStack) -> Contestants:
    """Attach what is there."""
    key = 0x6D6D0000 | os.getpid() & 0xFFFF
    scope.enter_context(mmkit.SystemVMemory(key, SIZE, create=True))
    return known(
        {
            "mmkit": Statement("s = make(key); s.detach()", make=mmkit.SystemVMemory, key=key),
            "sysv_ipc": _sysv_ipc("s = sysv_ipc.SharedMemory(key); s.detach()", key=key),
        }
    )


# ---- arrays -----------------------------------------------------------------------------------------


@race("attach an array of 1000 float64 by name", peer="multiprocessing")
def array(scope: ExitStack) -> Contestants:
    """With the standard module dtype and shape must be known beforehand, and are not checked."""
    scope.enter_context(shared.array(NAME, 1000, "f8", create=True))
    scope.callback(resource_tracker.unregister, f"/{NAME}", "shared_memory")
    return {
        "mmkit": Statement("a = attach(name); a[0]; del a", attach=shared.array, name=NAME),
        "multiprocessing": Statement(
            "s = make(name); a = ndarray((1000,), 'f8', s.buf); a[0]; del a; s.close()",
            make=Standard,
            name=NAME,
            ndarray=np.ndarray,
        ),
    }


# ---- looking ----------------------------------------------------------------------------------------


@race("list all shared memory of the machine", peer="mmkit")
def listing(scope: ExitStack) -> Contestants:
    """Nobody else does: for its own sake. It grows with the processes there are."""
    del scope
    return {"mmkit": Statement("segments()", segments=shared.segments)}


if __name__ == "__main__":
    main(cycle, cycle_touched, attach, buffer, system_v_cycle, system_v_attach, array, listing)
