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

from mmkit._native.descriptor import Descriptor
from mmkit._native.ipc import shmctl
from mmkit.errors import Error
from mmkit.flags import ShmCommand
from mmkit.hints import failure
from mmkit.shared import files
from mmkit.shared.listing import Segment, record_of_system_v, segments, system_v_rows
from mmkit.shared.names import ASIDE, DIRECTORY, MAKING, RECORD, check_name, path_of
from mmkit.shared.record import Record, drop_beside, process_identity, read_beside, read_mark

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

    Notes
    -----
    Who opens a segment while it is looked at keeps it, with its name. A System V segment can be attached
    between the look at its count and its removal: who does so keeps the memory, and the key is gone.

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
        if not _is_leaked(read_mark(fd, os.fstat(fd))):
            return False
        if dry_run:
            return True
        try:
            files.remove(name, identity, unless=lambda: _is_wanted(fd))
        except Error:
            return False
        return True


@contextlib.contextmanager
def _leased(path: str) -> Iterator[int | None]:
    """Hold a file that nobody else has, for the length of a ``with`` block; None if somebody has it.

    Who opens it meanwhile waits for the block to end.
    """
    how = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.ExitStack() as stack:
        try:
            fd = stack.enter_context(Descriptor(os.open, path, how)).fileno()
            # Who opens it has the kernel tell us, by SIGIO, which kills: let it be one that does nothing.
            fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            # EAGAIN: somebody has it. EACCES: another user's. EINVAL: no file system for that.
            yield None
        else:
            yield fd


def _is_wanted(fd: int) -> bool:
    """Whether somebody is waiting in open(2) for a lease to end."""
    return fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK


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
    inodes = {}
    with contextlib.suppress(OSError), os.scandir(DIRECTORY) as entries:
        inodes = {entry.name: entry.inode() for entry in entries}
    for name, inode in inodes.items():
        if name.startswith(MAKING):
            _drop_unnamed(name, is_nobodys=True)
        elif name.startswith(ASIDE):
            _drop_unnamed(name, is_nobodys=name.removeprefix(ASIDE).startswith(f"{inode}-"))
    _drop_records([name.removeprefix(RECORD) for name in inodes if name.startswith(RECORD)])


def _drop_unnamed(name: str, *, is_nobodys: bool) -> None:
    """Remove what somebody died over who was making or removing it; who lives has it open, or is about to.

    What came in between when a name was removed is `reap`'s only if it is leaked, or has got its name back.
    """
    with _leased(path_of(name)) as fd, contextlib.suppress(OSError):
        if fd is None:
            return
        status = os.fstat(fd)
        if is_nobodys or status.st_nlink > 1 or _is_leaked(read_mark(fd, status)):
            os.unlink(path_of(name))


def _drop_records(names: list[str]) -> None:
    dead = [what for name in names if (what := _of_the_dead(name))]
    # Only now: before it died, a maker may have given its segment the name by which it is found here.
    with contextlib.suppress(OSError), os.scandir(DIRECTORY) as entries:
        inodes = {entry.inode() for entry in entries}
        for kind, number in dead:
            gone = number not in inodes if kind == "posix" else _is_gone(number)
            if gone:
                drop_beside(kind, number)


def _of_the_dead(name: str) -> tuple[str, int] | None:
    """Return which segment a record of this user's is about, if its maker is dead."""
    kind, _, number = name.partition("-")
    if kind not in ("posix", "systemv") or not number.isdecimal():
        return None
    record = read_beside(kind, int(number), os.geteuid())
    if record is None or record.creator_lives() is not False:
        return None
    here = process_identity()
    if kind == "systemv" and (record.boot, record.ipc_namespace) != (here.boot, here.ipc_namespace):
        return None
    return kind, int(number)


def _is_gone(identifier: int) -> bool:
    """Whether there is no such System V segment: in /proc/sysvipc none is listed where it cannot be read."""
    try:
        shmctl(identifier, ShmCommand.STAT)
    except OSError as error:
        return error.errno in (errno.EINVAL, errno.EIDRM)
    except ValueError:
        return True  # larger than any identifier
    return False


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
        file = Descriptor(os.open, path_of(bare), os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise failure(-(error.errno or errno.ENOENT), "shm_unlink", None, (bare,)) from None
    with file:
        files.check_kind(file.fileno(), repr(bare))
        files.remove(bare, files.identity_of(file.fileno()))
