"""What an area is for, told from its path, its permissions and its neighbours."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Container, Sequence
from enum import StrEnum

from mmkit._native.maps import Columns

__all__ = ["CODES", "Kind", "classify", "is_plain_memory", "kind_of", "looks_like_stack"]


class Kind(StrEnum):
    """What an area is for. Each is equal to its name in lower case: ``area.kind == "heap"``.

    Notes
    -----
    The kernel says outright what is a heap, a stack or its own; the rest is told from names and
    permissions. Uninitialised data of libraries and what ``malloc`` maps for large blocks look the same to
    it, and are `ANONYMOUS` here. Stacks of threads do, too, but each thread of glibc has told the kernel of
    its list of robust locks (set_robust_list(2)), which lies at the upper end of its stack. Where that is
    not known, an area that looks like such a stack is taken for one: above a guard of at most 64 KiB.
    """

    #: The executable's machine code.
    TEXT = "text"
    #: What of the executable is never written: constants, headers, relocated pointers.
    RODATA = "rodata"
    #: The executable's variables that begin with a value.
    DATA = "data"
    #: Its variables that begin as zeros: the anonymous area directly after the executable.
    BSS = "bss"
    #: What brk(2) grows.
    HEAP = "heap"
    #: A file with a part that may be executed, or named like a shared object.
    LIBRARY = "library"
    #: Any other file.
    FILE = "file"
    #: No file behind it: private or shared, named with PR_SET_VMA or not.
    ANONYMOUS = "anonymous"
    #: The stack of the main thread.
    STACK = "stack"
    #: The stack of another thread.
    THREAD_STACK = "thread_stack"
    #: Memory of mmkit's own that has a name: ``Region.anonymous(name=…)``, or a memfd left with mmkit's.
    MMKIT = "mmkit"
    #: What the kernel itself provides: vdso, vvar, vsyscall.
    VDSO = "vdso"
    #: System V shared memory.
    SYSTEMV = "systemv"
    #: memfd_create(2) and memfd_secret(2).
    MEMFD = "memfd"
    #: POSIX shared memory: a file in /dev/shm.
    SHM = "shm"
    #: Huge pages from the pool: MAP_HUGETLB, or a file in /dev/hugepages.
    HUGETLB = "hugetlb"
    #: Device memory, and other things that are mapped through a descriptor but are no file.
    DEVICE = "device"


#: Permission bits as columns have them. Plain numbers: a flag of `Prot` costs a microsecond to combine.
_WRITE, _EXEC = 2, 4
_PRIVATE_READ_WRITE = 3
_LARGEST_GUARD = 64 << 10
#: PTHREAD_STACK_MIN of most machines.
_SMALLEST_STACK = 16 << 10
_SHARED_OBJECT = re.compile(rb"\.so(\.[0-9]+)*\Z")

# Names that the kernel makes up, and folders that tell; the first pattern that fits holds. A made-up name
# that begins with a slash stands for a file that nobody can open: to the kernel it is a deleted one.
_SPECIAL: tuple[tuple[re.Pattern[bytes], bool | None, Kind], ...] = tuple(
    (re.compile(pattern, re.DOTALL), deleted, kind)
    for pattern, deleted, kind in (
        (rb"\[heap\]\Z", None, Kind.HEAP),
        (rb"\[stack(:[0-9]+)?\]\Z", None, Kind.STACK),
        (rb"\[anon(_shmem)?:mmkit:.*\]\Z", None, Kind.MMKIT),
        (rb"/memfd:mmkit\Z", True, Kind.MMKIT),
        (rb"\[anon(_shmem)?:.*\]\Z", None, Kind.ANONYMOUS),
        (rb"\[.*\]\Z", None, Kind.VDSO),
        (rb"/SYSV[0-9a-f]{8}\Z", True, Kind.SYSTEMV),
        (rb"/memfd:|/secretmem\Z", True, Kind.MEMFD),
        (rb"/anon_hugepage\Z", True, Kind.HUGETLB),
        (rb"/dev/hugepages/", None, Kind.HUGETLB),
        (rb"/dev/zero\Z", None, Kind.ANONYMOUS),
        (rb"/dev/shm/", None, Kind.SHM),
        (rb"/dev/|[^/]", None, Kind.DEVICE),
    )
)


def _special_kind(path: bytes, deleted: bool) -> Kind | None:
    for pattern, needs_deleted, kind in _SPECIAL:
        if pattern.match(path) and needs_deleted in (None, deleted):
            return kind
    return None


def _program_kind(perms: int) -> Kind:
    if perms & _EXEC:
        return Kind.TEXT
    return Kind.DATA if perms & _WRITE else Kind.RODATA


CODES = {kind: code for code, kind in enumerate(Kind)}

#: The code of an area of the executable, by its permission bits.
_PROGRAM_CODES = bytes(CODES[_program_kind(bits)] for bits in range(16))


def kind_of(path: bytes, deleted: bool, perms: int, *, is_program: bool) -> Kind:
    """Tell what an area is for, as far as it can be told without its neighbours.

    Parameters
    ----------
    path, deleted
        As `Area` has them.
    perms
        Permission bits; for a file those of all its areas together.
    is_program
        Is it the executable of the process?

    Returns
    -------
    Kind
        Never `Kind.BSS`, which is `Kind.ANONYMOUS` here.
    """
    if not path:
        return Kind.ANONYMOUS
    if is_program:
        return _program_kind(perms)
    if special := _special_kind(path, deleted):
        return special
    return Kind.LIBRARY if perms & _EXEC or _SHARED_OBJECT.search(path) else Kind.FILE


def is_plain_memory(path: bytes, perms: int) -> bool:
    """Tell whether an area is memory as malloc(3) maps it: a bss where it directly follows the executable."""
    return not path and perms == _PRIVATE_READ_WRITE


def classify(
    columns: Columns,
    paths: Sequence[tuple[bytes, bool]],
    program: Container[int],
    stacks: Sequence[int] | None,
) -> bytearray:
    """Tell the kinds of all areas of a process.

    Parameters
    ----------
    columns
        The areas, in ascending order of address.
    paths
        Each row of the path columns, with whether it was deleted.
    program
        Which rows of `paths` are the executable.
    stacks
        An address in the stack of each thread but the main one; None if they are not known.

    Returns
    -------
    bytearray
        For each area the position of its kind in `Kind`.
    """
    path, perms = columns.column("path"), columns.column("perms")
    start, end = columns.column("start"), columns.column("end")
    together: dict[bytes, int] = {}
    for (name, _), bits in zip(paths, columns.column("path_perms"), strict=True):
        together[name] = together.get(name, 0) | bits
    by_path = [
        _PROGRAM_CODES
        if row in program
        else bytes([CODES[kind_of(name, deleted, together[name], is_program=False)]]) * 16
        for row, (name, deleted) in enumerate(paths)
    ]
    kinds = bytearray([by_path[row][bits] for row, bits in zip(path, perms, strict=True)])
    for area in [area + 1 for area, row in enumerate(path) if row in program]:
        follows = area < len(kinds) and start[area] == end[area - 1]
        if follows and is_plain_memory(paths[path[area]][0], perms[area]):
            kinds[area] = CODES[Kind.BSS]
    for area in _areas_above_guards(columns) if stacks is None else _areas_at(stacks, columns):
        if kinds[area] == CODES[Kind.ANONYMOUS] and is_plain_memory(paths[path[area]][0], perms[area]):
            kinds[area] = CODES[Kind.THREAD_STACK]
    return kinds


def _areas_at(addresses: Sequence[int], columns: Columns) -> list[int]:
    start, end = columns.column("start"), columns.column("end")
    areas = [(bisect_right(start, address) - 1, address) for address in addresses]
    return [area for area, address in areas if area >= 0 and address < end[area]]


def _areas_above_guards(columns: Columns) -> list[int]:
    start, end = columns.column("start"), columns.column("end")
    path, perms = columns.column("path"), columns.column("perms")
    return [
        row + 1
        for row in range(len(start) - 1)
        if not perms[row]
        and path[row] == 0
        and end[row] == start[row + 1]
        and looks_like_stack(end[row] - start[row], end[row + 1] - start[row + 1])
    ]


def looks_like_stack(guard: int, size: int) -> bool:
    """Tell whether a guard and plain memory directly above it have sizes as pthread_create(3) gives them."""
    return guard <= _LARGEST_GUARD and size >= _SMALLEST_STACK
