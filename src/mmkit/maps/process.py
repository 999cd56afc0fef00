"""From a process to its areas: what to open, what to ask the kernel, and what to say when it refuses."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from functools import cached_property
from operator import index
from pathlib import Path

from mmkit._native import maps as native
from mmkit.errors import Error, SyscallError
from mmkit.maps.areas import Area, Areas, Table, as_linked, perms_text, printable
from mmkit.maps.kinds import Kind, is_bss, kind_of

__all__ = ["find", "read"]

_PF_KTHREAD = 0x00200000
_ADDRESS_LIMIT = 1 << 64
_USER_ADDRESS_LIMIT = 1 << 63


def read(pid: int | None = None) -> Areas:
    r"""Read the memory map of a process.

    Parameters
    ----------
    pid
        The process; None for this one.

    Returns
    -------
    Areas
        Every area, in ascending order of address. The process runs on meanwhile: see `Areas.torn`.

    Raises
    ------
    SyscallError
        ``ESRCH`` (a `ProcessLookupError`): there is no such process, or only a zombie is left of it.
        ``EACCES`` (a `PermissionError`): it belongs to another user, or has shielded itself.
    Error
        It is a kernel thread, which has no memory of its own.

    Notes
    -----
    Where the name of a file makes the text ambiguous (a newline or a literal ``\012`` in it), the kernel is
    asked for the path itself, since Linux 6.11. A file whose name ends in " (deleted)" by itself is told
    from a deleted one in this process; in others it counts as deleted.

    References
    ----------
    proc_pid_maps(5), proc_pid_exe(5)
    """
    with _Maps(pid) as maps:
        columns = maps.columns()
        return Areas(Table(columns, maps.pid, maps.program, _corrections(maps, columns)))


def find(address: int, pid: int | None = None) -> Area | None:
    """Find the area of a process that holds an address, without reading all of them (Linux 6.11).

    Parameters
    ----------
    address
        Any address: ``0 <= address < 2**64``.
    pid
        The process; None for this one.

    Returns
    -------
    Area or None
        None if nothing is mapped there.

    Raises
    ------
    SyscallError, Error
        As `read`.

    References
    ----------
    proc_pid_maps(5): PROCMAP_QUERY
    """
    address = index(address)
    if not 0 <= address < _ADDRESS_LIMIT:
        raise ValueError(f"address must be between 0 and 2**64 - 1, not {address:#x}")
    # vsyscall, up there, is in the text of maps only.
    if address < _USER_ADDRESS_LIMIT:
        with _Maps(pid) as maps, suppress(native.QueryUnsupportedError, _Undecided):
            return _found(maps, address)
    return read(pid).find(address)


class _Undecided(Exception):  # noqa: N818 - never leaves this module
    """The kind depends on areas elsewhere."""


class _Maps:
    """An open /proc/PID/maps, and what belongs to the same process."""

    def __init__(self, pid: int | None) -> None:
        if pid is not None and (pid := index(pid)) <= 0:
            raise ValueError(f"pid must be positive, not {pid}")
        self.is_own = pid is None or pid == os.getpid()
        self.pid = os.getpid() if pid is None else pid
        self._directory = "/proc/self/" if self.is_own else f"/proc/{pid}/"

    def __enter__(self) -> _Maps:
        try:
            self._descriptor = os.open(self._directory + "maps", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as refused:
            raise _refusal(self.pid, refused) from None
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self._descriptor)

    @cached_property
    def program(self) -> bytes | None:
        """Where /proc/PID/exe points to; None for kernel threads and zombies, which have none."""
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            return os.readlink(os.fsencode(self._directory + "exe"))  # noqa: PTH115 - bytes
        return None

    def columns(self) -> native.Columns:
        """Read all areas.

        The descriptor belongs to one memory: if that is still there afterwards, then the text is whole,
        and `program` is of the same process. One that ends meanwhile has its text cut off.
        """
        try:
            columns = native.read(self._descriptor)
        except OSError as refused:
            raise _refusal(self.pid, refused) from None
        _ = self.program  # looked up before the check
        if not columns.start or not self._has_memory():
            raise _nothing_to_read(self.pid)
        return columns

    def _has_memory(self) -> bool:
        if self.is_own:
            return True
        with suppress(ProcessLookupError):
            try:
                self.query(0)
            except native.QueryUnsupportedError:
                return os.pread(self._descriptor, 1, 0) != b""
            return True
        return False

    def query(self, address: int) -> native.Answer | None:
        try:
            return native.query(self._descriptor, address)
        except OSError as refused:
            raise _refusal(self.pid, refused) from None


def _refusal(pid: int, refused: OSError) -> SyscallError:
    """Say what a refusal by /proc means for the process."""
    call = f"open('/proc/{pid}/maps')"
    if refused.errno in (errno.ENOENT, errno.ESRCH):
        if not Path("/proc/self").exists():
            return SyscallError(errno.ENOENT, call, "/proc is not mounted here: `mount -t proc proc /proc`.")
        return SyscallError(errno.ESRCH, call, f"There is no process {pid}: it has ended, or never was.")
    if refused.errno in (errno.EACCES, errno.EPERM):
        return SyscallError(errno.EACCES, call, _permission_hint(pid))
    return SyscallError(refused.errno or errno.EIO, call)


def _permission_hint(pid: int) -> str:
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return "Its map is open to the same user and to CAP_SYS_PTRACE."
    if owner == os.geteuid():
        return (
            f"Process {pid} has shielded itself (prctl(2), PR_SET_DUMPABLE), or has capabilities that this "
            "one lacks. CAP_SYS_PTRACE is needed."
        )
    return (
        f"Process {pid} belongs to user {owner}, and this is user {os.geteuid()}. Its map is open to the "
        "same user and to CAP_SYS_PTRACE: run as that user, or as root."
    )


def _nothing_to_read(pid: int) -> Error:
    """Say why the map of a process is empty."""
    try:
        # The name, in parentheses, may hold anything.
        name, fields = Path(f"/proc/{pid}/stat").read_bytes().split(b"(", 1)[1].rsplit(b")", 1)
    except (OSError, ValueError, IndexError):
        return _refusal(pid, ProcessLookupError(errno.ESRCH, ""))
    state, flags = fields.split()[0], int(fields.split()[6])
    if flags & _PF_KTHREAD:
        return Error(f"process {pid} ({printable(name)}) is a kernel thread: it has no memory of its own")
    hint = (
        "It is a zombie: it has ended, its memory is gone, and its parent has not collected it yet (wait(2))."
        if state == b"Z"
        else "Its memory is gone: it is ending, or has just executed another program (execve(2))."
    )
    return SyscallError(errno.ESRCH, f"read('/proc/{pid}/maps')", hint)


def _corrections(maps: _Maps, columns: native.Columns) -> dict[int, tuple[bytes, bool]]:
    """Find the paths that the text tells wrongly, by asking the kernel about each doubtful one."""
    doubtful = native.ESCAPED | (native.DELETED if maps.is_own else 0)
    rows = [row for row, facts in enumerate(bytes(columns.path_facts)) if facts & doubtful]
    if not rows:
        return {}
    corrections = {}
    area_of = dict(zip(columns.path, range(len(columns.path)), strict=True))
    for row in rows:
        start, facts, area = columns.path_start[row], columns.path_facts[row], area_of[row]
        told = columns.path_bytes[start : start + columns.path_length[row]], bool(facts & native.DELETED)
        known = told
        if facts & native.ESCAPED:
            known = _queried_path(maps, columns, area) or told
        if maps.is_own:
            known = _deleted_or_named_so(*known, columns.device[area], columns.inode[area])
        if known != told:
            corrections[row] = known
    return corrections


def _queried_path(maps: _Maps, columns: native.Columns, area: int) -> tuple[bytes, bool] | None:
    """Ask for a path as it is; None if the kernel cannot tell, or the area has changed."""
    with suppress(native.QueryUnsupportedError):
        answer = maps.query(columns.start[area])
        if answer and (answer.device, answer.inode) == (columns.device[area], columns.inode[area]):
            return answer.path, answer.deleted
    return None


def _deleted_or_named_so(path: bytes, deleted: bool, device: int, inode: int) -> tuple[bytes, bool]:
    """Tell a file of this process that was deleted from one whose name ends in " (deleted)"."""
    if deleted:
        with suppress(OSError):
            named_so = os.stat(as_linked(path, deleted))  # noqa: PTH116 - bytes
            if (named_so.st_dev, named_so.st_ino) == (device, inode):
                return as_linked(path, deleted), False
    return path, deleted


def _found(maps: _Maps, address: int) -> Area | None:
    """Make the area from a query; `_Undecided` if that is not enough to tell its kind."""
    answer = maps.query(address)
    if answer is None:
        return None
    start, end, offset, device, inode, perms, path, deleted = answer
    if maps.is_own:
        path, deleted = _deleted_or_named_so(path, deleted, device, inode)
    is_program = path.startswith(b"/") and as_linked(path, deleted) == maps.program
    kind = kind_of(path, deleted, perms, is_program=is_program)
    if kind is Kind.FILE:
        raise _Undecided
    if is_bss(path, perms) and start > 0 and _is_program(maps, start - 1):
        kind = Kind.BSS
    return Area(start, end, end - start, perms_text(perms), offset, device, inode, path, deleted, kind)


def _is_program(maps: _Maps, address: int) -> bool:
    answer = maps.query(address)
    return answer is not None and as_linked(answer.path, answer.deleted) == maps.program
