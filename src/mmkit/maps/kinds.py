"""What an area is for, told from its path, its permissions and its neighbours."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from enum import StrEnum

from mmkit._native.maps import Columns
from mmkit.flags import Prot

__all__ = ["CODES", "Kind", "classify", "is_bss", "kind_of"]


class Kind(StrEnum):
    """What an area is for. Each is equal to its name in lower case: ``area.kind == "heap"``.

    Notes
    -----
    The kernel says outright what is a heap, a stack or its own; the rest is told from names and
    permissions. Uninitialised data of libraries, stacks of threads and what ``malloc`` maps for large
    blocks look the same to it, and are `ANONYMOUS` here.
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


_SHARED = 8
_READ_WRITE = Prot.READ | Prot.WRITE
_SHARED_OBJECT = re.compile(rb"\.so(\.[0-9]+)*\Z")

# Names that the kernel makes up, and folders that tell; the first pattern that fits holds. A made-up name
# that begins with a slash stands for a file that nobody can open: to the kernel it is a deleted one.
_SPECIAL: tuple[tuple[re.Pattern[bytes], bool | None, Kind], ...] = tuple(
    (re.compile(pattern, re.DOTALL), deleted, kind)
    for pattern, deleted, kind in (
        (rb"\[heap\]\Z", None, Kind.HEAP),
        (rb"\[stack(:[0-9]+)?\]\Z", None, Kind.STACK),
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
    if perms & Prot.EXEC:
        return Kind.TEXT
    return Kind.DATA if perms & Prot.WRITE else Kind.RODATA


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
    return Kind.LIBRARY if perms & Prot.EXEC or _SHARED_OBJECT.search(path) else Kind.FILE


def is_bss(path: bytes, perms: int) -> bool:
    """Tell whether an area that directly follows the executable is its uninitialised data."""
    return not path and perms & (_READ_WRITE | Prot.EXEC | _SHARED) == _READ_WRITE


def classify(columns: Columns, paths: Sequence[tuple[bytes, bool]], program: Container[int]) -> bytearray:
    """Tell the kinds of all areas of a process.

    Parameters
    ----------
    columns
        The areas, in ascending order of address.
    paths
        Each row of the path columns, with whether it was deleted.
    program
        Which rows of `paths` are the executable.

    Returns
    -------
    bytearray
        For each area the position of its kind in `Kind`.
    """
    together: dict[bytes, int] = {}
    for (path, _), perms in zip(paths, columns.path_perms, strict=True):
        together[path] = together.get(path, 0) | perms
    by_path = [
        _PROGRAM_CODES
        if row in program
        else bytes([CODES[kind_of(path, deleted, together[path], is_program=False)]]) * 16
        for row, (path, deleted) in enumerate(paths)
    ]
    kinds = bytearray([by_path[row][perms] for row, perms in zip(columns.path, columns.perms, strict=True)])
    for area in [area + 1 for area, row in enumerate(columns.path) if row in program]:
        follows = area < len(kinds) and columns.start[area] == columns.end[area - 1]
        if follows and is_bss(paths[columns.path[area]][0], columns.perms[area]):
            kinds[area] = CODES[Kind.BSS]
    return kinds
