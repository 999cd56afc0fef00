"""Who has shared memory mapped or open: what /proc tells of every process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from mmkit.maps import Area, Areas, Kind
from mmkit.shared.names import path_of

__all__ = ["Found", "Holder", "Scan", "scan"]

_PIECE = 1 << 18
_SHM = path_of("")
#: What lines of /proc/PID/maps about shared memory hold. The others need not be taken apart.
_SIGNS = (_SHM.encode(), b"/memfd:", b"/SYSV", b"/dev/zero", b"/anon_hugepage", b"[anon_shmem:")
#: How the links in /proc/PID/fd to shared memory begin.
_LINKS = (_SHM, "/memfd:")
_KINDS = (Kind.SHM, Kind.MEMFD, Kind.SYSTEMV, Kind.ANONYMOUS, Kind.HUGETLB, Kind.MMKIT)
_PF_KTHREAD = 0x00200000
#: The inode number that the kernel gives it: PROC_PID_INIT_INO.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC


class Holder(NamedTuple):
    """A process that has a segment.

    Attributes
    ----------
    pid : int
    mapped : int
        Bytes of address space through which it sees the segment; 0 if it only has it open.
    opened : bool
        It has a descriptor of it.
    """

    pid: int
    mapped: int
    opened: bool


class Key(NamedTuple):
    """What tells one piece of shared memory from all others.

    An inode number alone does not: that of a System V segment is its identifier, on the device where the
    kernel keeps memory files, too; and each IPC namespace counts its own.
    """

    kind: Kind
    device: int
    inode: int
    ipc_namespace: int


class Found:
    """A piece of shared memory that some process has."""

    def __init__(self, key: Key, path: bytes, deleted: bool) -> None:
        self.identity = (key.device, key.inode)
        self.path = path
        self.deleted = deleted
        self.mapped: dict[int, int] = {}
        self.opened: set[int] = set()
        #: Something in /proc that leads to the file itself, for stat(2) and its record.
        self.links: list[str] = []
        #: How far the mappings reach into it.
        self.reach = 0

    @property
    def holders(self) -> tuple[Holder, ...]:
        """The processes that have it, by pid."""
        pids = sorted(self.mapped.keys() | self.opened)
        return tuple(Holder(pid, self.mapped.get(pid, 0), pid in self.opened) for pid in pids)

    def status(self) -> os.stat_result | None:
        """Return what stat(2) says of the file, as far as anybody's link to it can be followed."""
        for link in self.links:
            with contextlib.suppress(OSError):
                return os.stat(link)
        return None


class Scan(NamedTuple):
    """All shared memory that processes have, and whether each process of the machine could be looked at."""

    found: dict[Key, Found]
    complete: bool


def scan() -> Scan:
    """Look at every process. What begins and ends meanwhile may be missed."""
    found: dict[Key, Found] = {}
    complete = _shows_everybody()
    for pid in _pids():
        try:
            _look_at_mappings(pid, found)
            _look_at_descriptors(pid, found)
        except PermissionError:
            complete = complete and _is_kernel_thread(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Scan(found, complete)


def _shows_everybody() -> bool:
    """Whether /proc has every process: not so in a PID namespace, nor where it is mounted with hidepid=."""
    try:
        # What hidepid= hides, it hides of the first process first.
        return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE and os.path.exists("/proc/1")
    except OSError:
        return False


def _pids() -> Iterator[int]:
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                yield int(entry.name)


def _is_kernel_thread(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/stat", "rb") as file:
        return bool(int(file.read().rpartition(b")")[2].split()[6]) & _PF_KTHREAD)
    return False


def _text_of_maps(pid: int) -> bytes:
    fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, _PIECE):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def _ipc_namespace(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/ipc").st_ino
    return 0


def _kind_of_file(area: Area) -> Kind:
    """Tell what a mapping is of: mmkit's own memory has a kind for itself, whatever stands behind it."""
    if area.kind != Kind.MMKIT:
        return area.kind
    return Kind.MEMFD if area.path.startswith(b"/memfd:") else Kind.ANONYMOUS


def _look_at_mappings(pid: int, found: dict[Key, Found]) -> None:
    text = _text_of_maps(pid)
    signs = [sign for sign in _SIGNS if sign in text]
    if not signs:
        return
    lines = [line for line in text.splitlines(keepends=True) if any(sign in line for sign in signs)]
    for area in Areas.parse(b"".join(lines), pid=pid).where(kind=_KINDS):
        kind = _kind_of_file(area)
        if kind in (Kind.ANONYMOUS, Kind.HUGETLB) and not (area.shared and area.inode):
            continue
        if area.path.startswith(b"/secretmem"):
            continue
        namespace = _ipc_namespace(pid) if kind == Kind.SYSTEMV else 0
        key = Key(kind, area.device, area.inode, namespace)
        memory = found.setdefault(key, Found(key, area.path, area.deleted))
        memory.mapped[pid] = memory.mapped.get(pid, 0) + area.size
        memory.reach = max(memory.reach, area.offset + area.size)
        memory.links.append(f"/proc/{pid}/map_files/{area.start:x}-{area.end:x}")


def _look_at_descriptors(pid: int, found: dict[Key, Found]) -> None:
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(entry.path)
                if target.startswith(_LINKS):
                    _add_descriptor(pid, entry.path, os.fsencode(target), found)


def _add_descriptor(pid: int, link: str, target: bytes, found: dict[Key, Found]) -> None:
    status = os.stat(link)
    deleted = target.endswith(b" (deleted)")
    kind = Kind.SHM if target.startswith(_SHM.encode()) else Kind.MEMFD
    key = Key(kind, status.st_dev, status.st_ino, 0)
    memory = found.setdefault(key, Found(key, target.removesuffix(b" (deleted)"), deleted))
    memory.opened.add(pid)
    # In front: anybody who may see it may follow it, where map_files wants root.
    memory.links.insert(0, link)
