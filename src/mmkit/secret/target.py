"""What can be searched: ranges of an open file, and what each of them is."""

from __future__ import annotations

import errno
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mmkit.errors import SyscallError
from mmkit.maps import Area, Kind
from mmkit.secret.copies import KERNELS_OWN, Copies, CoreNote, Form, Hit, Unread
from mmkit.secret.scanner import Answer, Found, Missed, scan

__all__ = ["CUT_OFF", "Part", "Target"]

_FORMS = tuple(Form)

#: Why an end of a core file is not.
CUT_OFF = "the file ends before: it was cut off"


@dataclass(frozen=True, slots=True)
class Part:
    """A range that is searched.

    Attributes
    ----------
    address, length
        What hits are told by; of a note any numbers that nothing else has.
    offset
        Where its bytes are in the file.
    place
        What it is.
    is_private
        Private anonymous memory, whose pages that were never written have nothing in them.
    """

    address: int
    length: int
    offset: int
    place: Area | CoreNote
    is_private: bool = False


@dataclass
class Target:
    """An open file, and its parts in the order of their addresses.

    Attributes
    ----------
    descriptor, pagemap
        Open for reading; -1 where there is no pagemap.
    pid
        The process whose memory it is; None for a file.
    skipped
        What is known not to be readable.
    """

    descriptor: int
    parts: Sequence[Part]
    pagemap: int = -1
    pid: int | None = None
    skipped: Iterable[Unread] = field(default=())

    @property
    def is_own(self) -> bool:
        """Whether it is the memory of this process."""
        return self.pid == os.getpid()

    def search(self, needle: int, *, is_line: bool = False, own: range = range(0)) -> Copies:
        """Search it for what a descriptor gives. Addresses in `own` are the needle's own."""
        ranges = array("Q")
        for part in self.parts:
            ranges.extend((part.address, part.length, part.offset, part.is_private))
        answer = scan(needle, is_line, self.descriptor, self.pagemap, ranges)
        return self._copies(answer, own if self.is_own else range(0))

    def _copies(self, answer: Answer, own: range) -> Copies:
        self._starts = [part.address for part in self.parts]
        hits = [self._hit(found) for found in sorted(answer.found, key=lambda found: found.address)]
        inside = [hit.address in own and hit.address + hit.length <= own.stop for hit in hits]
        unread = [self._unread(missed) for missed in answer.missed]
        return Copies(
            (hit for hit, is_own in zip(hits, inside, strict=True) if not is_own),
            (hit for hit, is_own in zip(hits, inside, strict=True) if is_own),
            sorted([*self.skipped, *unread], key=lambda each: each.address),
            looked_at=answer.looked_at,
            truncated=answer.truncated,
            locked=answer.locked,
        )

    def _hit(self, found: Found) -> Hit:
        part = self._part(found.address)
        in_note = isinstance(part.place, CoreNote)
        address = found.address - part.address if in_note else found.address
        return Hit(address, found.length, _FORMS[found.form], found.length / found.whole, part.place)

    def _part(self, address: int) -> Part:
        return self.parts[bisect_right(self._starts, address) - 1]

    def _unread(self, missed: Missed) -> Unread:
        place = self._part(missed.address).place
        if self.pid is None:
            ends = missed.error == errno.ENODATA
            reason = CUT_OFF if ends else os.strerror(missed.error)
        elif missed.error == errno.ENODATA:
            raise SyscallError(
                errno.ESRCH,
                f"read('/proc/{self.pid}/mem')",
                f"Process {self.pid} ended, or executed another program, while it was searched.",
            )
        else:
            reason = _reason(missed.error, place)
        return Unread(missed.address, missed.length, place, reason)


def _reason(error: int, place: Area | CoreNote) -> str:
    """Say why memory of a process could not be read."""
    if error not in (errno.EIO, errno.EFAULT) or not isinstance(place, Area):
        return os.strerror(error)
    if place.kind is Kind.VDSO:
        return KERNELS_OWN
    if "r" not in place.perms and not place.path:
        return "the process may not read it, and this kernel lets nobody else (proc_mem.force_override)"
    return "the kernel gives it to nobody: memfd_secret, a device, a guard, or past the end of a file"
