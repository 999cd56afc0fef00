"""`segments`: all shared memory of the machine, with its maker and who has it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmkit.maps import Kind
from mmkit.shared.contents import look_into
from mmkit.shared.holders import Found, Holder, Key, Scan, scan
from mmkit.shared.names import DIRECTORY, HIDDEN, name_before
from mmkit.shared.record import Record, process_identity, read_beside, read_mark, read_on, start_time

__all__ = ["Segment", "segments", "system_v_rows"]


class Segment(NamedTuple):
    """A piece of shared memory.

    Attributes
    ----------
    kind : str
        ``"posix"``, ``"systemv"``, ``"memfd"`` or ``"anonymous"``.
    name : str
        What it is called: in /dev/shm; by memfd_create(2); the key in hexadecimal; "" for nothing.
    id : int or None
        The identifier of a System V segment.
    device, inode : int
        The file of memory behind it, as /proc/PID/maps has them.
    size : int
        Bytes.
    resident : int or None
        Bytes that take memory or swap now; None where only root may know.
    owner : int or None
        The user it belongs to; None where only root may know.
    mode : int or None
        Its permission bits.
    creator : int or None
        The process that made it; None where nothing says so, or it counts in another PID namespace.
    creator_alive : bool or None
        Whether that process is still there; None if that cannot be known.
    made_by_mmkit : bool
        It carries mmkit's record.
    persist : bool
        It was meant to outlive its creator.
    removed : bool
        Nobody can attach it by name or key any more; it goes with its last holder.
    holders : tuple of Holder
        The processes that have it mapped or open, as far as they could be looked at.
    attached : bool or None
        Whether anybody has it. None: nobody was found, and not everybody could be looked at.
    contents : str or None
        What mmkit has put there, by its magic number: ``"array"``, ``"barrier"``, ``"channel"``,
        ``"condition"``, ``"event"``, ``"heap"``, ``"lock"``, ``"pool"``, ``"rlock"`` or ``"semaphore"``; ""
        for anything else. None where it could not be read. Whoever may write the segment may have lied.
    """

    kind: str
    name: str
    id: int | None
    device: int
    inode: int
    size: int
    resident: int | None
    owner: int | None
    mode: int | None
    creator: int | None
    creator_alive: bool | None
    made_by_mmkit: bool
    persist: bool
    removed: bool
    holders: tuple[Holder, ...]
    attached: bool | None
    contents: str | None


def segments() -> list[Segment]:
    """Return every POSIX, System V, memfd and anonymous shared segment of the machine.

    Returns
    -------
    list of Segment
        By kind, then by name. What only exists where nobody may look (a memfd of another user's process) is
        not among them.

    Notes
    -----
    Reads /dev/shm, /proc/sysvipc/shm, and for each process /proc/PID/maps and /proc/PID/fd; of each segment
    that may be read, the first 12 bytes and the last 32. It takes no locks: what changes meanwhile may be
    seen before or after.

    References
    ----------
    proc_pid_maps(5), proc_pid_fd(5), proc_sysvipc(5), shm_overview(7)
    """
    seen = scan()
    rest = dict(seen.found)
    listed = [*_posix(rest, seen), *_system_v(rest, seen)]
    listed += [_without_name(key, memory) for key, memory in rest.items()]
    return sorted(
        listed, key=lambda segment: (_ORDER.index(segment.kind), segment.name, segment.id or 0, segment.inode)
    )


_ORDER = ("posix", "systemv", "memfd", "anonymous")
_NAMES = {Kind.SHM: "posix", Kind.SYSTEMV: "systemv", Kind.MEMFD: "memfd"}


def _maker(record: Record | None) -> tuple[int | None, bool | None, bool, bool]:
    """Return creator, creator_alive, made_by_mmkit, persist."""
    if record is None:
        return None, None, False, False
    here = record.pid_namespace == process_identity().pid_namespace
    return record.pid if here else None, record.creator_lives(), True, record.persist


def _contents(memory: Found) -> str | None:
    """Look into what has no name, as far as anybody's link to it can be followed."""
    looks = (look_into(link, memory.identity) for link in memory.links)
    return next((contents for contents in looks if contents is not None), None)


def _attached(holders: tuple[Holder, ...], seen: Scan) -> bool | None:
    return True if holders else False if seen.complete else None


# ---- /dev/shm ---------------------------------------------------------------------------------------


def _posix(rest: dict[Key, Found], seen: Scan) -> Iterator[Segment]:
    with contextlib.suppress(OSError), os.scandir(DIRECTORY) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and not entry.name.startswith(HIDDEN):
                    yield _named(entry, status, rest, seen)


def _named(entry: os.DirEntry[str], status: os.stat_result, rest: dict[Key, Found], seen: Scan) -> Segment:
    memory = rest.pop(Key(Kind.SHM, status.st_dev, status.st_ino, 0), None)
    holders = memory.holders if memory else ()
    record = read_mark(entry.path, status)
    return Segment(
        "posix",
        entry.name,
        None,
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_blocks * 512,
        status.st_uid,
        stat.S_IMODE(status.st_mode),
        *_maker(record),
        removed=False,
        holders=holders,
        attached=_attached(holders, seen),
        contents=look_into(entry.path, (status.st_dev, status.st_ino)),
    )


# ---- System V ---------------------------------------------------------------------------------------


def system_v_rows() -> Iterator[dict[str, int]]:
    """Yield what /proc/sysvipc/shm says of each segment of this IPC namespace."""
    with contextlib.suppress(OSError):
        names, *rows = Path("/proc/sysvipc/shm").read_text().splitlines()
        for row in rows:
            fields = dict(zip(names.split(), row.split(), strict=True))
            mode = int(fields.pop("perms"), 8)
            yield {name: int(value) for name, value in fields.items()} | {"perms": mode}


_SHM_DEST = 0o1000


def _system_v(rest: dict[Key, Found], seen: Scan) -> Iterator[Segment]:
    namespace = process_identity().ipc_namespace
    ours = {key.inode: key for key in rest if key.kind == Kind.SYSTEMV and key.ipc_namespace == namespace}
    for row in system_v_rows():
        key = ours.get(row["shmid"])
        memory = rest.pop(key) if key else None
        record = record_of_system_v(row)
        creator, alive, made, persist = _maker(record)
        yield Segment(
            "systemv",
            f"{row['key'] & 0xFFFFFFFF:#010x}" if row["key"] else "",
            row["shmid"],
            key.device if key else 0,
            row["shmid"],
            row["size"],
            row["rss"] + row["swap"],
            row["uid"],
            row["perms"] & 0o777,
            creator if creator is not None else row["cpid"] or None,
            alive if record else _made_by_the_living(row["cpid"], row["ctime"]),
            made,
            persist,
            removed=bool(row["perms"] & _SHM_DEST),
            holders=memory.holders if memory else (),
            attached=row["nattch"] > 0,
            # To attach it would show in its counts, and keep it if it is removed meanwhile.
            contents=_contents(memory) if memory else None,
        )


def record_of_system_v(row: dict[str, int]) -> Record | None:
    """Return the record that stands beside a System V segment, if it is about this very one."""
    record = read_beside("systemv", row["shmid"], row["cuid"])
    if record is None or record.ipc_namespace != process_identity().ipc_namespace:
        return None
    # The kernel gives 0 for a creator in another PID namespace.
    return record if row["cpid"] in (0, record.pid) else None


def _made_by_the_living(pid: int, changed: int) -> bool | None:
    """Whether the creator, of which only the pid is known, lives: a later process may have its number."""
    if not pid:
        return None
    begun = start_time(pid)
    if begun is None or begun is False:
        return begun
    # Whole seconds, and changed is when it was made or its mode was. Who began later has the number of one
    # who is dead; or the clock was set meanwhile.
    return begun <= changed + 1 or None


# ---- what has no name -------------------------------------------------------------------------------


def _without_name(key: Key, memory: Found) -> Segment:
    status = memory.status()
    kind = _NAMES.get(key.kind, "anonymous")
    record = (
        next((record for link in memory.links if (record := read_on(link))), None)
        if kind == "memfd"
        else None
    )
    return Segment(
        kind,
        _name_of(kind, os.fsdecode(memory.path)),
        key.inode if kind == "systemv" else None,
        key.device,
        key.inode,
        status.st_size if status else memory.reach,
        status.st_blocks * 512 if status else None,
        status.st_uid if status else None,
        stat.S_IMODE(status.st_mode) if status else None,
        *_maker(record),
        removed=memory.deleted and kind in ("posix", "systemv"),
        holders=memory.holders,
        attached=True,
        contents=_contents(memory),
    )


def _name_of(kind: str, path: str) -> str:
    if kind == "posix":
        return name_before(path.removeprefix(f"{DIRECTORY}/"))
    if kind == "memfd":
        return path.removeprefix("/memfd:")
    if kind == "systemv":
        key = path.removeprefix("/SYSV")
        return "" if key == "00000000" else f"0x{key}"
    return path.removeprefix("[anon_shmem:").removesuffix("]") if path.startswith("[") else ""
