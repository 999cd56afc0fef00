"""How a segment's file comes to be, is found, and goes: nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from typing import TypeVar

from mmkit._native.descriptor import Descriptor
from mmkit.backing import set_size
from mmkit.errors import Error
from mmkit.flags import Prot
from mmkit.hints import failure
from mmkit.region import Region
from mmkit.shared.names import DIRECTORY, MAKING, name_aside, path_of
from mmkit.shared.record import drop_beside, mark
from mmkit.shared.reserve import reserve, write
from mmkit.wording import size

__all__ = [
    "Identity",
    "attach",
    "check_file",
    "check_kind",
    "check_mode",
    "create",
    "identity_of",
    "make",
    "open_named",
    "remove",
]

_READ_WRITE = Prot.READ | Prot.WRITE

T = TypeVar("T")

#: Device and inode number: what tells a segment from a later one of the same name.
Identity = tuple[int, int]

# Folders that cannot make a file without a name; reading O_TMPFILE, old kernels see O_DIRECTORY.
_NEED_A_NAME = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


def identity_of(fd: int) -> Identity:
    """Return what tells this file from all others."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def check_mode(mode: int) -> int:
    """Return permission bits, or say why they are none."""
    if mode & ~0o777:
        raise ValueError(f"mode has the nine permission bits: {mode:#o} has more")
    return mode


def make(
    name: str,
    mode: int,
    complete: Callable[[int], object],
    use: Callable[[Descriptor], T],
    *,
    persist: bool,
) -> T:
    """Make a segment's file: complete first, then with its name, then in use; or not at all.

    Parameters
    ----------
    name
        As `check_name` gives it.
    mode
        Permission bits, exactly.
    complete
        Gives a descriptor's empty file its space and contents.
    use
        Takes over the file, opened by its name.
    persist
        Whether it is meant to outlive this process: what its record says.

    Returns
    -------
    object
        What `use` returns.

    Raises
    ------
    SyscallError
        ``EEXIST``: the name is taken. ``ENOSPC``: no space. Nothing is left behind.
    """
    file, temporary = _open_unnamed()
    fd = file.fileno()
    identity = identity_of(fd)
    try:
        complete(fd)
        mark(fd, mode, persist)
        os.fchmod(fd, mode)  # it may forbid even its owner all this
        _give_name(fd, temporary, name)
        return use(_open_named(fd, name))
    except BaseException:
        with contextlib.suppress(Error):
            remove(name, identity)
        drop_beside("posix", identity[1])
        raise
    finally:
        file.close()
        if temporary:
            os.unlink(temporary)


def _open_named(fd: int, name: str) -> Descriptor:
    """Open a file that has just got its name, by that name: else /proc/PID/maps called it #123 for ever."""
    try:
        own = Descriptor(os.open, path_of(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return Descriptor(os.dup, fd)  # a mode that forbids it, or somebody has removed it again
    if identity_of(own.fileno()) != identity_of(fd):
        os.dup2(fd, own.fileno(), inheritable=False)
    return own


def create(
    name: str,
    length: int,
    mode: int,
    use: Callable[[Region], T],
    *,
    space: bool,
    persist: bool,
    end: bytes = b"",
) -> T:
    """Make a segment of bytes (the last ones are `end`), map it, and have it taken in use; as `make`."""

    def complete(fd: int) -> None:
        set_size(fd, length)
        if space:
            reserve(fd, 0, length, name)
        if end:
            write(fd, end, length - len(end), name)

    def use_mapped(file: Descriptor) -> T:
        region = Region._of_segment(name, length, _READ_WRITE, file=file)
        try:
            return use(region)
        except BaseException:
            # What looks at it already, in a frame of the exception, keeps it until it goes.
            with contextlib.suppress(BufferError):
                region.close()
            raise

    return make(name, mode, complete, use_mapped, persist=persist)


def _open_unnamed() -> tuple[Descriptor, str | None]:
    """Open a new file that has no name, so that it goes if its maker does; else its temporary name."""
    try:
        return Descriptor(os.open, DIRECTORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), None
    except OSError as error:
        if error.errno not in _NEED_A_NAME:
            raise failure(-(error.errno or 0), "open", None, (DIRECTORY, "O_TMPFILE")) from None
        return _open_temporary()


def _open_temporary() -> tuple[Descriptor, str]:
    path = path_of(f"{MAKING}{secrets.token_hex(8)}")
    try:
        return Descriptor(os.open, path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600), path
    except OSError as error:
        raise failure(-(error.errno or 0), "open", None, (path, "O_CREAT")) from None


def _give_name(fd: int, temporary: str | None, name: str) -> None:
    try:
        # With a source directory Python calls linkat(2), which can follow the link; the path is absolute, so
        # it does not matter which directory.
        os.link(temporary or f"/proc/self/fd/{fd}", path_of(name), src_dir_fd=fd, follow_symlinks=True)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise failure(-errno.EEXIST, "shm_open", None, (name, "O_CREAT|O_EXCL")) from None
        # Without /proc a file without a name cannot get one.
        raise failure(-(error.errno or 0), "linkat", None, ("/proc/self/fd", path_of(name))) from None


def open_named(name: str, *, readonly: bool = False) -> Descriptor:
    """Open what has a name, whoever made it."""
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
    try:
        try:
            # A FIFO of that name must not be waited for.
            return Descriptor(os.open, path_of(name), flags | os.O_NONBLOCK)
        except BlockingIOError:
            # It is a file, then, and `reap` has a lease on it for a moment: that is waited for.
            return Descriptor(os.open, path_of(name), flags)
    except OSError as error:
        how = "O_RDONLY" if readonly else "O_RDWR"
        raise failure(-(error.errno or 0), "shm_open", None, (name, how)) from None


def attach(name: str, least: int, *, readonly: bool) -> Region:
    """Map the segment of a name, whoever made it."""
    with open_named(name, readonly=readonly) as file:
        length = check_file(file.fileno(), repr(name), least)
        return Region._of_segment(name, length, Prot.READ if readonly else _READ_WRITE, file=file)


def check_kind(fd: int, what: str) -> os.stat_result:
    """Return what fstat(2) says of a segment's file, or say that it cannot be one."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise Error(f"{what} is not shared memory: it is no regular file")
    return status


def check_file(fd: int, what: str, least: int) -> int:
    """Return the length of a segment's file, or say why it cannot be one."""
    status = check_kind(fd, what)
    if status.st_size == 0:
        raise Error(
            f"the segment {what} has no bytes: its maker has not given it a length yet, or died before that. "
            "mmkit's own appear complete; if this one stays so, remove it with `mmkit shm remove`"
        )
    if status.st_size < least:
        raise ValueError(
            f"the segment {what} has {size(status.st_size)}: fewer than the {size(least)} asked for"
        )
    return status.st_size


def remove(name: str, identity: Identity, *, unless: Callable[[], bool] = lambda: False) -> None:
    """Remove a name from /dev/shm, if it is still this segment's.

    Between a look at a name and unlink(2) it can become another's. So it is set aside, to a name that nobody
    else has, looked at there, and put back if it is another's, or `unless` says so. Who dies in between
    leaves it aside: `reap` goes on from there.
    """
    path, aside = path_of(name), path_of(name_aside(name, identity[1]))
    try:
        _check_identity(path, identity)
        try:
            os.rename(path, aside)
            _check_identity(aside, identity)
            if unless():
                raise FileNotFoundError(errno.ENOENT, "")
            os.unlink(aside)
        except BaseException as error:
            # Where the kernel finds nothing aside, `reap` has gone on from there already.
            if not (isinstance(error, FileNotFoundError) and error.filename == aside):
                _put_back(aside, path)
                raise
    except OSError as error:
        raise failure(-(error.errno or 0), "shm_unlink", None, (name,)) from None
    drop_beside("posix", identity[1])


def _check_identity(path: str, identity: Identity) -> None:
    status = os.lstat(path)
    if (status.st_dev, status.st_ino) != identity:
        raise FileNotFoundError(errno.ENOENT, "")


def _put_back(aside: str, path: str) -> None:
    with contextlib.suppress(OSError):
        try:
            # Not by rename(2), which would take the name away from whoever has it by now.
            os.link(aside, path, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # A second name takes an inode, and there is none: so nobody can have made anything there either.
            os.rename(aside, path)
        else:
            os.unlink(aside)
