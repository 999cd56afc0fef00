"""`reap`: remove what is provably leaked, and nothing else.

Leaked is what mmkit made, was not meant to persist, whose creator is dead, and that nobody has. The last is
the kernel's word, not a look around: it gives a write lease on a file only while nobody else has the file
open or mapped, in whatever process, namespace or message on its way; and it counts the attachments of System
V segments.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Iterator

from mmkit._native.ipc import shmctl
from mmkit.errors import Error
from mmkit.flags import ShmCommand
from mmkit.hints import failure
from mmkit.shared import files
from mmkit.shared.listing import Segment, record_of_system_v, segments, system_v_rows
from mmkit.shared.names import DIRECTORY, HIDDEN, check_name, path_of
from mmkit.shared.record import Record, drop_beside, process_identity, read_beside, read_on

__all__ = ["reap", "remove_name"]

_F_SETSIG = 10


def reap(dry_run: bool = False) -> list[Segment]:
    """Remove the segments that are provably leaked.

    That is: made by mmkit, not meant to persist, their creator dead, and nobody has them. What a user may not
    look at is unknown, and stays.

    Parameters
    ----------
    dry_run
        Remove nothing.

    Returns
    -------
    list of Segment
        What was removed, or would be.

    References
    ----------
    fcntl(2) ``F_SETLEASE``, shmctl(2) ``IPC_RMID``
    """
    reaped = [segment for segment in segments() if _is_suspect(segment) and _reap(segment, dry_run)]
    if not dry_run:
        _drop_remains()
    return reaped


def _is_suspect(segment: Segment) -> bool:
    return (
        segment.made_by_mmkit
        and not segment.persist
        and not segment.removed
        and segment.creator_alive is False
        and not segment.attached
    )


def _reap(segment: Segment, dry_run: bool) -> bool:
    if segment.kind == "posix":
        return _reap_posix(segment.name, (segment.device, segment.inode), dry_run)
    return segment.kind == "systemv" and segment.id is not None and _reap_system_v(segment.id, dry_run)


def _is_leaked(record: Record | None) -> bool:
    return record is not None and not record.persist and record.creator_lives() is False


def _reap_posix(name: str, identity: files.Identity, dry_run: bool) -> bool:
    with _leased(path_of(name)) as fd:
        if fd is None or files.identity_of(fd) != identity:
            return False
        # What was read before may have been written by somebody who was still at it.
        if not _is_leaked(read_on(fd) or read_beside("posix", identity[1], os.fstat(fd).st_uid)):
            return False
        if dry_run:
            return True
        try:
            files.remove(name, identity)
        except Error:
            return False
        return True


@contextlib.contextmanager
def _leased(path: str) -> Iterator[int | None]:
    """Hold a file that nobody else has, for the length of a ``with`` block; None if somebody has it.

    Who opens it meanwhile waits for the block to end.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        # Who opens it has the kernel tell us, by SIGIO, which kills: let it be a signal that does nothing.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        # EAGAIN: somebody has it. EACCES: another user's. EINVAL: no file system for that.
        os.close(fd)
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _reap_system_v(identifier: int, dry_run: bool) -> bool:
    row = next((row for row in system_v_rows() if row["shmid"] == identifier), None)
    if row is None or row["nattch"] or not _is_leaked(record_of_system_v(row)):
        return False
    if dry_run:
        return True
    try:
        shmctl(identifier, ShmCommand.RMID)
    except OSError:
        return False
    drop_beside("systemv", identifier)
    return True


# ---- what mmkit keeps beside segments ----------------------------------------------------------------


def _drop_remains() -> None:
    """Remove records of segments that are gone, and files that their maker died over."""
    inodes = set()
    hidden = []
    with contextlib.suppress(OSError), os.scandir(DIRECTORY) as entries:
        for entry in entries:
            inodes.add(entry.inode())
            if entry.name.startswith(HIDDEN):
                hidden.append(entry.name)
    for name in hidden:
        kind, _, rest = name.removeprefix(HIDDEN).partition("-")
        if kind == "making":
            _drop_unfinished(path_of(name))
        elif kind == "record":
            _drop_record(rest, inodes)


def _drop_unfinished(path: str) -> None:
    # Its maker has it open, as long as it lives.
    with _leased(path) as fd, contextlib.suppress(OSError):
        if fd is not None:
            os.unlink(path)


def _drop_record(what: str, inodes: set[int]) -> None:
    kind, _, number = what.partition("-")
    if kind not in ("posix", "systemv") or not number.isdecimal():
        return
    record = read_beside(kind, int(number), os.geteuid())
    # It is written before its segment can be found.
    if record is None or record.creator_lives() is not False:
        return
    if kind == "posix":
        gone = int(number) not in inodes
    else:
        same = (record.boot, record.ipc_namespace) == (
            process_identity().boot,
            process_identity().ipc_namespace,
        )
        gone = same and int(number) not in {row["shmid"] for row in system_v_rows()}
    if gone:
        drop_beside(kind, int(number))


# ---- by name -----------------------------------------------------------------------------------------


def remove_name(name: str) -> None:
    """Remove the name of a segment, whoever made it and whatever it is used for; for people who ask for it.

    Raises
    ------
    SyscallError
        ``ENOENT``, ``EPERM``, ``EACCES``.
    Error
        What has the name is no shared memory.
    """
    bare = check_name(name)
    try:
        fd = os.open(path_of(bare), os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise failure(-(error.errno or errno.ENOENT), "shm_open", None, (bare,)) from None
    try:
        files.check_kind(fd, repr(bare))
        files.remove(bare, files.identity_of(fd))
    finally:
        os.close(fd)
