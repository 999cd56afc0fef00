"""From a process to its areas: what to open, what to ask the kernel, and what to say when it refuses."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from functools import lru_cache
from operator import index
from pathlib import Path

from mmkit._native import maps as native
from mmkit.errors import Error, SyscallError
from mmkit.maps.areas import PERMS, Area, Areas
from mmkit.maps.kinds import Kind, is_plain_memory, kind_of, looks_like_stack
from mmkit.maps.lazy import lazy
from mmkit.maps.paths import as_linked, printable
from mmkit.maps.table import Table

__all__ = ["find", "read", "start_time"]

_PF_KTHREAD = 0x00200000
_ADDRESS_LIMIT = 1 << 64
_USER_ADDRESS_LIMIT = 1 << 63

# Names that the kernel gives to memory which no path leads to.
_NEVER_NAMED = (b"/memfd:", b"/SYSV", b"/dev/zero")


def read(pid: int | None = None, costs: bool = False) -> Areas:
    r"""Read the memory map of a process.

    Parameters
    ----------
    pid
        The process; None for this one.
    costs
        Read also what each area costs (``rss``, ``pss``, ``swap``, …: see `Area`). The kernel goes through
        all pages for that, which takes about ten times as long.

    Returns
    -------
    Areas
        Every area, in ascending order of address. The process runs on meanwhile: see `Areas.torn`.

    Raises
    ------
    SyscallError
        ``ESRCH`` (a `ProcessLookupError`): there is no such process, or only a zombie is left of it.
        ``EACCES`` (a `PermissionError`): it belongs to another user, has shielded itself, or is hidden.
    Error
        It is a kernel thread, which has no memory of its own.

    Notes
    -----
    Where the name of a file makes the text ambiguous (a newline or a literal ``\012`` in it), the kernel is
    asked for the path itself, since Linux 6.11, if it is no longer than ``PATH_MAX``. A path that ends in
    " (deleted)" may be a name, which no call tells: in this process it is one if it leads to the file that is
    mapped; in others it counts as deleted.

    A process whose main thread has ended, while others go on, is read through one of those.

    References
    ----------
    proc_pid_maps(5), proc_pid_smaps(5), proc_pid_exe(5)
    """
    with Opened(pid, "smaps" if costs else "maps") as process:
        columns, stacks = process.columns()
        corrections = _corrections(process, columns)
        return Areas(Table(columns, process.pid, process.program, corrections, stacks))


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
        try:
            if pid is None or pid == os.getpid():
                return _found_here(address)
            with Opened(pid) as process:
                return _found(process, process.query(address))
        except native.UnansweredError:
            pass
    return read(pid).find(address)


class Opened:
    """An open /proc/PID/maps or smaps, and what belongs to the same process."""

    def __init__(self, pid: int | None, text: str = "maps") -> None:
        if pid is not None and (pid := index(pid)) <= 0:
            raise ValueError(f"pid must be positive, not {pid}")
        own_pid = os.getpid()
        self.is_own = pid is None or pid == own_pid
        self.pid = own_pid if pid is None else pid
        self._directory = b"/proc/self/" if self.is_own else b"/proc/%d/" % self.pid
        self._text = text
        self._descriptors: list[int] = []

    def __enter__(self) -> Opened:
        self._descriptor = self._open(self._text)
        return self

    def __exit__(self, *_exception: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _open(self, text: str) -> int:
        try:
            descriptor = os.open(self._directory + text.encode(), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as refused:
            raise _refusal(self.pid, f"open('/proc/{self.pid}/{text}')", refused) from None
        self._descriptors.append(descriptor)
        return descriptor

    @lazy
    def program(self) -> bytes | None:
        """Where /proc/PID/exe points to; None for kernel threads and zombies, which have none."""
        try:
            return os.readlink(self._directory + b"exe")  # noqa: PTH115 - bytes
        except OSError:
            # ENAMETOOLONG is one of many.
            return None

    def columns(self) -> tuple[native.Columns, list[int] | None]:
        """Read all areas, and what `stacks` tells.

        The descriptor belongs to one memory: if that is still there afterwards, then the text is whole,
        and `program` and the stacks are of the same process. One that ends meanwhile has its text cut off.
        """
        columns = self._read()
        if not columns.areas and self._turn_to_another_thread():
            columns = self._read()
        stacks, _ = self.stacks(), self.program  # looked up before the check
        if not columns.areas or not (self.is_own or self._has_memory()):
            raise _nothing_to_read(self.pid)
        return columns, stacks

    def _read(self) -> native.Columns:
        try:
            return native.read(self._descriptor)
        except OSError as refused:
            raise _refusal(self.pid, f"read('/proc/{self.pid}/{self._text}')", refused) from None

    def _turn_to_another_thread(self) -> bool:
        """Read from now on through a thread that goes on after the main one, which has left its memory."""
        with suppress(OSError):
            for thread in self._other_threads():
                self._directory = b"/proc/%d/" % thread
                with suppress(OSError):
                    self._descriptor = self._open(self._text)
                    if self._has_memory():
                        return True
        return False

    def _has_memory(self) -> bool:
        try:
            # Of the text, the kernel makes the first area at least.
            return os.pread(self._descriptor, 1, 0) != b""
        except ProcessLookupError:
            return False

    def stacks(self) -> list[int] | None:
        """Tell an address in the stack of each thread but the main one; None if that cannot be known."""
        if self.is_own and native.is_single_threaded():
            return []
        addresses = []
        try:
            # Beside "." and ".." the folder has one link for each thread.
            if os.stat(self._directory + b"task").st_nlink == 3:  # noqa: PTH116 - this way it takes half the time
                return []
            for thread in self._other_threads():
                with suppress(ProcessLookupError):
                    addresses.append(native.thread_stack_address(thread))
        except OSError:
            return None
        return addresses if all(addresses) else None

    def _other_threads(self) -> list[int]:
        """List the threads but the main one, which `pid` need not be: /proc has a folder for each thread."""
        main = self.pid if self.is_own else _main_thread(self._directory)
        threads = map(int, os.listdir(self._directory + b"task"))  # noqa: PTH208
        return [thread for thread in threads if thread != main]

    @lazy
    def _queried(self) -> int:
        """Which descriptor answers queries: smaps does not."""
        return self._descriptor if self._text == "maps" else self._open("maps")

    def query(self, address: int, which: int = native.HOLDING) -> native.Answer | None:
        """Ask for the area at an address (`HOLDING`), or for code from there on (`CODE_FROM`)."""
        return native.query(self._queried, address, which)

    def is_program(self, answer: native.Answer) -> bool:
        """Tell whether an area is of the executable."""
        return answer.path != b"" and as_linked(answer.path, answer.deleted) == self.program


class _Own:
    """What `Opened` is, for this process, without opening anything each time."""

    is_own = True

    @lazy
    def program(self) -> tuple[int, int, int, int]:
        """The executable's device and inode as maps has them, and where its areas begin and end.

        It is the same as long as the process lives, and in its children.
        """
        areas = read().where(kind=(Kind.TEXT, Kind.RODATA, Kind.DATA))
        return (areas[0].device, areas[0].inode, areas[0].start, areas[-1].end) if areas else (0, 0, 0, 0)

    def query(self, address: int, which: int = native.HOLDING) -> native.Answer | None:
        answer = native.query_own(address, which)
        return None if answer is None else native.Answer(*answer)

    def is_program(self, answer: native.Answer) -> bool:
        return answer.inode != 0 and (answer.device, answer.inode) == self.program[:2]

    def stacks(self) -> list[int] | None:
        return Opened(None).stacks()


_own = _Own()


def _main_thread(directory: bytes) -> int:
    for line in Path(os.fsdecode(directory), "status").read_bytes().splitlines():
        if line.startswith(b"Tgid:"):
            return int(line.split()[1])
    raise ProcessLookupError


def _stat(pid: int) -> tuple[bytes, list[bytes]]:
    """Read the name of a process and the fields after it, from the state on: proc_pid_stat(5)."""
    # The name, in parentheses, may hold anything.
    name, fields = Path(f"/proc/{pid}/stat").read_bytes().split(b"(", 1)[1].rsplit(b")", 1)
    return name, fields.split()


def start_time(pid: int) -> int | None:
    """Tell when a process began, in clock ticks since the machine did; None if there is no such process.

    A number that another process has now is told from one that still belongs to the same by this.
    """
    try:
        return int(_stat(pid)[1][19])
    except OSError:
        return None


def _ended(pid: int, call: str) -> SyscallError:
    """Say that there is no such process."""
    return SyscallError(errno.ESRCH, call, f"There is no process {pid}: it has ended, or never was.")


def _refusal(pid: int, call: str, refused: OSError) -> SyscallError:
    """Say what a refusal by /proc means for the process."""
    if refused.errno in (errno.ENOENT, errno.ESRCH):
        if not Path("/proc/self").exists():
            return SyscallError(errno.ENOENT, call, "/proc is not mounted here: `mount -t proc proc /proc`.")
        if refused.errno == errno.ENOENT and _is_hidden(pid):
            return SyscallError(errno.EACCES, call, _HIDDEN_HINT.format(pid))
        return _ended(pid, call)
    if refused.errno in (errno.EACCES, errno.EPERM):
        return SyscallError(errno.EACCES, call, _permission_hint(pid))
    return SyscallError(refused.errno or errno.EIO, call)


_HIDDEN_HINT = (
    "Process {} is there, but /proc does not show it, as with the mount option hidepid (proc(5)). Be in the "
    "group that the option gid= names, or have CAP_SYS_PTRACE."
)


def _is_hidden(pid: int) -> bool:
    """Tell whether a process is there that /proc does not have."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


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
    call = f"read('/proc/{pid}/maps')"
    try:
        name, (state, *fields) = _stat(pid)
    except OSError:
        return _ended(pid, call)
    if int(fields[5]) & _PF_KTHREAD:
        return Error(f"process {pid} ({printable(name)}) is a kernel thread: it has no memory of its own")
    hint = (
        "It is a zombie: it has ended, its memory is gone, and its parent has not collected it yet (wait(2))."
        if state == b"Z"
        else "Its memory is gone: it is ending, or has just executed another program (execve(2))."
    )
    return SyscallError(errno.ESRCH, call, hint)


def _corrections(process: Opened, columns: native.Columns) -> dict[int, tuple[bytes, bool]]:
    """Find the paths that the text tells wrongly, by asking the kernel about each doubtful one."""
    doubtful = native.ESCAPED | (native.DELETED if process.is_own else 0)
    if not columns.facts & doubtful:
        return {}
    path_start, path_length = columns.column("path_start"), columns.column("path_length")
    path_facts, path = columns.column("path_facts"), columns.column("path")
    start, device, inode = columns.column("start"), columns.column("device"), columns.column("inode")
    corrections = {}
    area_of = dict(zip(path, range(len(path)), strict=True))
    for row, facts in enumerate(path_facts):
        if not facts & doubtful:
            continue
        first, area = path_start[row], area_of[row]
        told = columns.text[first : first + path_length[row]], bool(facts & native.DELETED)
        known = told
        if facts & native.ESCAPED:
            known = _queried_path(process, start[area], device[area], inode[area]) or told
        if process.is_own:
            known = _deleted_or_named_so(*known, device[area], inode[area])
        if known != told:
            corrections[row] = known
    return corrections


def _queried_path(process: Opened, address: int, device: int, inode: int) -> tuple[bytes, bool] | None:
    """Ask for a path as it is; None if the kernel cannot tell, or the area has changed."""
    with suppress(native.UnansweredError):
        answer = process.query(address)
        if answer and (answer.device, answer.inode) == (device, inode):
            return answer.path, answer.deleted
    return None


def _deleted_or_named_so(path: bytes, deleted: bool, device: int, inode: int) -> tuple[bytes, bool]:
    """Tell a file of this process that was deleted from one whose name ends in " (deleted)"."""
    if deleted and not path.startswith(_NEVER_NAMED):
        with suppress(OSError):
            named_so = os.stat(as_linked(path, deleted))  # noqa: PTH116 - bytes
            if (named_so.st_dev, named_so.st_ino) == (device, inode):
                return as_linked(path, deleted), False
    return path, deleted


_known_kind = lru_cache(1024)(kind_of)


def _found_here(address: int) -> Area | None:
    """Find an area of this process. What most areas are is told here, with one query and little else."""
    fields = native.query_own(address)
    if fields is None:
        return None
    start, end, offset, device, inode, perms, path, deleted = fields
    program_device, program_inode, program_start, program_end = _own.program
    if path:
        is_program = inode == program_inode and device == program_device
        kind = _known_kind(path, deleted, perms, is_program=is_program)
        if deleted or kind is Kind.FILE:
            return _found(_own, native.Answer(*fields))
    elif not is_plain_memory(path, perms) or (
        native.is_single_threaded() and not program_start < start <= program_end
    ):
        kind = Kind.ANONYMOUS
    else:
        kind = _plain_kind(_own, native.Answer(*fields))
    size = end - start
    return tuple.__new__(
        Area, (start, end, size, PERMS[perms], offset, device, inode, path, deleted, kind, None)
    )


def _found(process: Opened | _Own, answer: native.Answer | None) -> Area | None:
    """Make an area from what a query told, and further queries."""
    if answer is None:
        return None
    path, deleted = answer.path, answer.deleted
    if process.is_own:
        path, deleted = _deleted_or_named_so(path, deleted, answer.device, answer.inode)
    kind = kind_of(path, deleted, answer.perms, is_program=process.is_program(answer))
    if is_plain_memory(path, answer.perms):
        kind = _plain_kind(process, answer)
    elif kind is Kind.FILE and _is_executed(process, answer.path):
        kind = Kind.LIBRARY
    start, end, perms = answer.start, answer.end, PERMS[answer.perms]
    return Area(
        start, end, end - start, perms, answer.offset, answer.device, answer.inode, path, deleted, kind
    )


def _is_executed(process: Opened | _Own, path: bytes) -> bool:
    """Tell whether any area of a file may be executed."""
    code = process.query(0, native.CODE_FROM)
    while code is not None and code.path != path:
        code = process.query(code.end, native.CODE_FROM)
    return code is not None


def _plain_kind(process: Opened | _Own, plain: native.Answer) -> Kind:
    """Tell what memory is for that might be anything."""
    below = process.query(plain.start - 1) if plain.start else None
    if below is not None and process.is_program(below):
        return Kind.BSS
    if process.is_own and native.is_single_threaded():
        return Kind.ANONYMOUS
    stacks = process.stacks()
    if stacks is None:
        is_stack = (
            below is not None
            and (below.perms, below.path) == (0, b"")
            and looks_like_stack(below.end - below.start, plain.end - plain.start)
        )
    else:
        is_stack = any(plain.start <= address < plain.end for address in stacks)
    return Kind.THREAD_STACK if is_stack else Kind.ANONYMOUS
