"""A core file as something to be searched: the memory and the registers in it.

Only the headers are read here: what may hold the secret is for the scanner alone.
"""

from __future__ import annotations

import os
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mmkit.errors import CorruptError, SyscallError
from mmkit.maps import Area
from mmkit.maps.areas import PERMS
from mmkit.maps.kinds import kind_of
from mmkit.secret.copies import CoreNote, Unread
from mmkit.secret.target import CUT_OFF, Part, Target

__all__ = ["opened_core"]

# elf(5), of 64-bit machines.
_IDENTITY = b"\x7fELF\x02" + (b"\x01" if sys.byteorder == "little" else b"\x02")
_HEADER = struct.Struct("=16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("=IIQQQQQQ")
_SECTION = struct.Struct("=IIQQQQIIQQ")
_NOTE = struct.Struct("=III")
_FILE_COUNT = struct.Struct("=QQ")
_FILE_RANGE = struct.Struct("=QQQ")
_THREAD = struct.Struct("=i")
_ET_CORE, _PT_LOAD, _PT_NOTE, _PN_XNUM = 4, 1, 4, 0xFFFF
#: Bits of p_flags, and the bit of Area's permissions that means the same.
_FLAGS = ((4, 1), (2, 2), (1, 4))

_PRSTATUS, _FILES = 1, 0x46494C45
#: elf_prstatus: the signal, and two masks of signals, stand before the thread's number.
_THREAD_AT = 32
#: Facts about the process, which have no thread: NT_PRPSINFO, NT_AUXV, NT_SIGINFO, NT_FILE.
_FACTS = {3: "NT_PRPSINFO", 6: "NT_AUXV", 0x53494749: "NT_SIGINFO", _FILES: "NT_FILE"}
_REGISTERS = {
    1: "NT_PRSTATUS",
    2: "NT_FPREGSET",
    0x202: "NT_X86_XSTATE",
    0x401: "NT_ARM_TLS",
    0x405: "NT_ARM_SVE",
    0x406: "NT_ARM_PAC_MASK",
    0x46E62B7F: "NT_PRXFPREG",
}

_LEFT_OUT = "it is not in the core file (coredump_filter, core(5))"

#: Where notes are, for the scanner: no process has memory there.
_NOTES_AT = 1 << 63


class _Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    address: int
    in_file: int
    in_memory: int


class _Named(NamedTuple):
    """A range that a file was mapped to."""

    start: int
    end: int
    offset: int
    path: bytes


@contextmanager
def opened_core(path: str | os.PathLike[str]) -> Iterator[Target]:
    """Open a core file."""
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as refused:
        raise SyscallError(refused.errno or 0, f"open({name!r})") from None
    try:
        yield _Core(descriptor, name).target()
    finally:
        os.close(descriptor)


class _Core:
    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor, self._path = descriptor, path

    def target(self) -> Target:
        """Lay out what is in it."""
        notes: list[CoreNote] = []
        memory, unread = [], []
        for segment in self._segments():
            if segment.kind == _PT_LOAD:
                memory.append(segment)
            elif segment.kind == _PT_NOTE and self._has(segment.offset, segment.in_file):
                notes += self._notes(segment)
            elif segment.kind == _PT_NOTE:
                note = CoreNote("PT_NOTE", None, segment.offset, segment.in_file)
                unread.append(Unread(0, segment.in_file, note, CUT_OFF))
        self._files = [
            file for note in notes if note.kind == _FACTS[_FILES] for file in self._mapped_files(note)
        ]
        parts = [Part(_NOTES_AT + note.offset, note.size, note.offset, note) for note in notes]
        for segment in memory:
            area = self._area(segment)
            parts.append(Part(segment.address, segment.in_file, segment.offset, area))
            if segment.in_memory > segment.in_file:
                start, length = segment.address + segment.in_file, segment.in_memory - segment.in_file
                unread.append(Unread(start, length, area, _LEFT_OUT))
        return Target(self._descriptor, sorted(parts, key=lambda part: part.address), skipped=unread)

    def _read(self, form: struct.Struct, offset: int) -> tuple[int, ...]:
        data = self._bytes(form.size, offset)
        return form.unpack(data)

    def _bytes(self, length: int, offset: int) -> bytes:
        # Where the file's own numbers are wrong, a read could ask for more than there is memory.
        if not self._has(offset, length):
            raise CorruptError(f"{self._path}: the core file is damaged: it refers to what is beyond its end")
        return os.pread(self._descriptor, length, offset)

    def _has(self, offset: int, length: int) -> bool:
        return offset + length <= os.fstat(self._descriptor).st_size

    def _segments(self) -> Iterator[_Segment]:
        start = os.pread(self._descriptor, _HEADER.size, 0)
        if len(start) < _HEADER.size or not start.startswith(_IDENTITY):
            raise CorruptError(
                f"{self._path}: it is no ELF file of a 64-bit machine like this one. Unpack one that is "
                "compressed; what systemd keeps, `coredumpctl dump -o FILE` writes out."
            )
        _, kind, _, _, _, at, sections_at, _, _, size, count, *_ = _HEADER.unpack(start)
        if kind != _ET_CORE:
            raise CorruptError(f"{self._path}: it is an ELF file, but no core file")
        if size < _SEGMENT.size:
            raise CorruptError(f"{self._path}: the core file is damaged: its segments have {size} bytes")
        if count == _PN_XNUM:
            # More than fit in 16 bits: the first section, which there is for that alone, has the number.
            count = self._read(_SECTION, sections_at)[7]
        for number in range(count):
            kind, flags, offset, address, _, in_file, in_memory, _ = self._read(_SEGMENT, at + number * size)
            yield _Segment(kind, flags, offset, address, in_file, in_memory)

    def _notes(self, segment: _Segment) -> Iterator[CoreNote]:
        at, end, thread = segment.offset, segment.offset + segment.in_file, None
        while at + _NOTE.size <= end:
            name_size, size, kind = self._read(_NOTE, at)
            at += _NOTE.size + (name_size + 3) // 4 * 4
            if at + size > end:
                raise CorruptError(
                    f"{self._path}: the core file is damaged: a note goes beyond the others' end"
                )
            if kind == _PRSTATUS:
                # The registers that follow are of the same thread.
                thread = self._read(_THREAD, at + _THREAD_AT)[0]
            if kind in _FACTS:
                yield CoreNote(_FACTS[kind], None, at, size)
            else:
                yield CoreNote(_REGISTERS.get(kind, f"{kind:#x}"), thread, at, size)
            at += (size + 3) // 4 * 4

    def _mapped_files(self, note: CoreNote) -> Iterator[_Named]:
        data = self._bytes(note.size, note.offset)
        count, page = _FILE_COUNT.unpack_from(data)
        names_at = _FILE_COUNT.size + count * _FILE_RANGE.size
        if names_at > len(data):
            raise CorruptError(f"{self._path}: the core file is damaged: its list of files is cut off")
        ranges = _FILE_RANGE.iter_unpack(data[_FILE_COUNT.size : names_at])
        for (start, end, offset), path in zip(ranges, data[names_at:].split(b"\0"), strict=False):
            yield _Named(start, end, offset * page, path)

    def _area(self, segment: _Segment) -> Area:
        bits = sum(bit for flag, bit in _FLAGS if segment.flags & flag)
        offset, path, deleted = 0, b"", False
        number = bisect_right(self._files, segment.address, key=lambda file: file.start) - 1
        if number >= 0 and segment.address < (file := self._files[number]).end:
            offset = file.offset + segment.address - file.start
            path = file.path.removesuffix(b" (deleted)")
            deleted = path != file.path
        return Area(
            segment.address,
            segment.address + segment.in_memory,
            segment.in_memory,
            PERMS[bits],
            offset,
            0,
            0,
            path,
            deleted,
            kind_of(path, deleted, bits, is_program=False),
        )
