"""What tests of shared memory share: a /dev/shm of their own, looking at the real one, makers that die."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmkit
from mmkit import shared

#: Of the System V segments that tests make: see the fixture `no_system_v_segment_stays`.
KEY = 0x6D6E0000 | os.getpid() & 0xFFFF

#: For child interpreters: mmkit from where this one has it.
HERE = dict(os.environ, PYTHONPATH=str(Path(mmkit.__file__).parents[1]))

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWPID = 0x20000, 0x08000000, 0x20000000


def names() -> set[str]:
    """What is in /dev/shm."""
    return set(os.listdir("/dev/shm"))


def _may_mount() -> bool:
    return (
        os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


needs_mounts = pytest.mark.skipif(not _may_mount(), reason="needs a mount namespace of its own")


def unshare(flags: int) -> None:
    """Leave namespaces: unshare(2)."""
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")


def _mount_alone(kind: str, options: str, where: str) -> None:
    unshare(_CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", kind, "-o", options, "none", where], check=True)


def mount_over_dev_shm(kind: str, options: str) -> None:
    """Give this process, alone, another /dev/shm."""
    _mount_alone(kind, options, "/dev/shm")


def hide_proc_sys() -> None:
    """Have this process, alone, see processes only in /proc, as services do with ProcSubset=pid."""
    _mount_alone("proc", "subset=pid", "/proc")


def behind_a_small_tmpfs(function: Callable[[], Any], size: str) -> Callable[[], Any]:
    """Wrap a function for `in_child`: it finds an empty /dev/shm of that size."""

    def wrapped() -> Any:
        mount_over_dev_shm("tmpfs", f"size={size},mode=1777")
        return function()

    return wrapped


def new_ipc_namespace() -> None:
    """Have System V segments of one's own."""
    unshare(_CLONE_NEWIPC)


def found(**fields: object) -> list[shared.Segment]:
    """The segments that fit."""
    return [
        segment
        for segment in shared.segments()
        if all(getattr(segment, field) == value for field, value in fields.items())
    ]


def one(**fields: object) -> shared.Segment:
    """The segment that fits."""
    (segment,) = found(**fields)
    return segment


def by_the_dead(function: Callable[[], object]) -> int:
    """Have a process run a function and be killed."""
    pid = os.fork()
    if pid == 0:
        try:
            kept = function()  # noqa: F841
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    return pid


@contextlib.contextmanager
def another_process(function: Callable[[], object]) -> Iterator[int]:
    """A process that has run a function, keeps what it returned, and waits."""
    ready_reader, ready = os.pipe()
    end, end_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(end_writer)
            kept = function()  # noqa: F841
            os.write(ready, b"x")
            os.read(end, 1)
        finally:
            os._exit(0)
    os.close(ready)
    os.close(end)
    try:
        assert os.read(ready_reader, 1) == b"x"
        yield pid
    finally:
        os.close(ready_reader)
        os.close(end_writer)
        os.waitpid(pid, 0)
