"""How segments travel: by name or descriptor to processes of this machine, with their contents elsewhere."""

from __future__ import annotations

import errno
import pickle
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmkit.errors import Error, SyscallError
from mmkit.shared.record import process_identity

if TYPE_CHECKING:
    from mmkit.shared.files import Identity
    from mmkit.shared.posix import SharedMemory
    from mmkit.shared.system_v import SystemVMemory

__all__ = ["announce", "reduce_file", "reduce_system_v"]


class _AnotherOneError(Error):
    """What was pickled is not here; what has its name or number is something else."""


_announced: set[type] = set()

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]


def announce(kind: type, reduce: Callable[[Any], Any], *, at_once: bool = False) -> None:
    """Tell multiprocessing how to send what stays on this machine.

    Its pickler cannot be told from others by what it asks, and with protocol 5, its default from Python 3.14
    on, it would send contents that the receiver does not need. Importing it for that costs 15 ms: so only
    then, or `at_once`.
    """
    if kind in _announced:
        return
    if at_once or pickle.DEFAULT_PROTOCOL >= 5 or "multiprocessing.reduction" in sys.modules:
        from multiprocessing.reduction import ForkingPickler

        ForkingPickler.register(kind, reduce)
        _announced.add(kind)


# ---- POSIX ------------------------------------------------------------------------------------------


def send_file(segment: SharedMemory) -> Reduced:
    """Reduce a segment for a process of this machine."""
    if segment.name is not None:
        return _attach_same, (type(segment), segment.name, segment._identity, segment._readonly)
    from multiprocessing.reduction import DupFd

    return _attach_descriptor, (type(segment), DupFd(segment.fd), segment._readonly)


def reduce_file(segment: SharedMemory, protocol: int) -> Reduced:
    """Reduce a segment for a process that may be anywhere, if the protocol can carry contents."""
    if protocol < 5:
        return send_file(segment)
    here = (process_identity().boot, segment.name, segment._identity)
    return _attach_or_copy, (type(segment), *here, segment._readonly, pickle.PickleBuffer(segment.buf))


def _attach_same(kind: type[SharedMemory], name: str, identity: Identity, readonly: bool) -> SharedMemory:
    segment = kind(name, readonly=readonly)
    if segment._identity != identity:
        segment.close()
        raise _AnotherOneError(
            f"the segment {name!r} that was pickled has been removed: another one has its name now"
        )
    return segment


def _attach_descriptor(kind: type[SharedMemory], duplicate: Any, readonly: bool) -> SharedMemory:  # noqa: ANN401
    import os

    fd = duplicate.detach()
    try:
        return kind.from_fd(fd, readonly=readonly)
    finally:
        os.close(fd)


def _attach_or_copy(
    kind: type[SharedMemory],
    boot: str,
    name: str | None,
    identity: Identity,
    readonly: bool,
    contents: bytes | bytearray | memoryview | pickle.PickleBuffer,
) -> SharedMemory:
    if name is not None and boot == process_identity().boot:
        try:
            return _attach_same(kind, name, identity, readonly)
        except (FileNotFoundError, _AnotherOneError):
            pass  # removed, or in a /dev/shm that this process does not see
    with memoryview(contents) as view:
        copy = kind.memfd(view.nbytes, name=name or "mmkit")
        copy.buf[:] = view
    return copy


# ---- System V ---------------------------------------------------------------------------------------


def send_system_v(segment: SystemVMemory) -> Reduced:
    """Reduce a segment for a process of this machine."""
    return _attach_identifier, (type(segment), segment.id, _ipc_place(), segment._readonly)


def reduce_system_v(segment: SystemVMemory, protocol: int) -> Reduced:
    """Reduce a segment for a process that may be anywhere, if the protocol can carry contents."""
    if protocol < 5:
        return send_system_v(segment)
    buffer = pickle.PickleBuffer(segment.buf)
    return _attach_identifier_or_copy, (type(segment), segment.id, _ipc_place(), segment._readonly, buffer)


def _ipc_place() -> tuple[str, int]:
    """Where an identifier means the same segment."""
    identity = process_identity()
    return identity.boot, identity.ipc_namespace


def _attach_identifier(
    kind: type[SystemVMemory], identifier: int, place: tuple[str, int], readonly: bool
) -> SystemVMemory:
    if place != _ipc_place():
        raise _AnotherOneError(
            f"the System V segment {identifier} is one of another machine or IPC namespace"
        )
    return kind.attach(identifier, readonly=readonly)


def _attach_identifier_or_copy(
    kind: type[SystemVMemory],
    identifier: int,
    place: tuple[str, int],
    readonly: bool,
    contents: bytes | bytearray | memoryview | pickle.PickleBuffer,
) -> SystemVMemory:
    try:
        return _attach_identifier(kind, identifier, place, readonly)
    except _AnotherOneError:
        pass
    except SyscallError as error:
        if error.errno not in (errno.EINVAL, errno.EIDRM):
            raise
    with memoryview(contents) as view:
        copy = kind(size=view.nbytes, create=True)
        # Nobody knows it but this process: it goes with its last attachment.
        copy.remove()
        copy.buf[:] = view
    return copy
