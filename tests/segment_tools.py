"""What tests of shared memory share: a /dev/shm of their own, and looking at the real one."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmkit

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
