"""What a search for copies of a secret found, and what it could not look at."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple, overload

from mmkit.maps import Area
from mmkit.wording import size as written_size

__all__ = ["KERNELS_OWN", "Copies", "CoreNote", "Form", "Hit", "Unread"]

#: Why clocks and vsyscall are not looked at.
KERNELS_OWN = "it is the kernel's own, and nobody writes there"


class Form(StrEnum):
    """What a copy looks like. Each is equal to its value: ``hit.form == "hex"``."""

    #: The bytes themselves.
    BYTES = "bytes"
    #: Two digits a byte, lower case or upper.
    HEX = "hex"
    #: Standard or URL-safe, the secret anywhere in what was encoded.
    BASE64 = "base64"
    #: The characters of a secret that is UTF-8 and not ASCII, in one byte each, as a `str` may have them.
    LATIN1 = "latin-1"
    #: Its bytes or its characters in two bytes each, as a `str` may have them.
    UCS2 = "ucs-2"
    #: In four.
    UCS4 = "ucs-4"
    #: A key that HMAC xored with its inner pad (0x36), in a block of any size.
    HMAC_IPAD = "hmac-ipad"
    #: With its outer pad (0x5c).
    HMAC_OPAD = "hmac-opad"


class CoreNote(NamedTuple):
    """What a core file holds beside memory: registers of a thread, or facts about the process.

    Attributes
    ----------
    kind : str
        The note's name in elf.h, such as ``NT_PRSTATUS``; its number if it has none.
    thread : int or None
        Whose registers they are; None for facts, such as the command line in ``NT_PRPSINFO``.
    offset, size : int
        Bytes of the file.
    """

    kind: str
    thread: int | None
    offset: int
    size: int

    @property
    def name(self) -> str:
        """What it is, for people."""
        return self.kind if self.thread is None else f"registers of thread {self.thread}, {self.kind}"


class Hit(NamedTuple):
    """A copy of a secret, or of a part of it.

    Attributes
    ----------
    address : int
        Of the first byte. In a note: bytes into it.
    length : int
        Bytes that are the copy's.
    form : Form
        What it looks like.
    fraction : float
        How much of the secret is there: 1.0 is all of it.
    area : Area or CoreNote
        What holds it.
    """

    address: int
    length: int
    form: Form
    fraction: float
    area: Area | CoreNote

    @property
    def partial(self) -> bool:
        """Whether only a part of the secret is there."""
        return self.fraction < 1.0

    def __repr__(self) -> str:
        what = f"{self.fraction:.0%} as {self.form}" if self.partial else f"all as {self.form}"
        return f"<Hit {self.address:#x}: {what}, {self.length} bytes in {described(self.area)}>"


class Unread(NamedTuple):
    """A range that could not be looked at.

    Attributes
    ----------
    address, length : int
        The range, in bytes.
    area : Area or CoreNote
        What it is a part of.
    reason : str
        Why.
    """

    address: int
    length: int
    area: Area | CoreNote
    reason: str

    @property
    def by_nature(self) -> bool:
        """Whether it is so in every process, and no copy can be there: the kernel's clocks, and vsyscall."""
        return self.reason == KERNELS_OWN

    def __repr__(self) -> str:
        where = f"{self.address:x}-{self.address + self.length:x}"
        return f"<Unread {where} in {described(self.area)}: {self.reason}>"


def described(area: Area | CoreNote) -> str:
    """Write what holds a copy: what it is for, its name, and what may be done with it."""
    if isinstance(area, CoreNote):
        return area.name
    name = f" {area.name}" if area.path else ""
    return f"{area.kind}{name} {area.perms} {area.start:x}-{area.end:x}"


class Copies(Sequence[Hit]):
    """The copies that were found, in the order of their addresses. Empty, and so false, where none were.

    Attributes
    ----------
    own : tuple of Hit
        What was found in the very memory that was given as the needle: no copies.
    unread : tuple of Unread
        What could not be looked at: there may be copies, unless it is so `by_nature`.
    looked_at : int
        Bytes that were searched. Pages of private memory that were never written are not among them.
    truncated : bool
        There were so many hits that the search ended early.
    locked : bool
        Were secret and texts locked in the scanner's memory? If not, they may have been swapped out.
    """

    def __init__(
        self,
        hits: Iterable[Hit],
        own: Iterable[Hit] = (),
        unread: Iterable[Unread] = (),
        *,
        looked_at: int = 0,
        truncated: bool = False,
        locked: bool = True,
    ) -> None:
        self._hits = tuple(hits)
        self.own = tuple(own)
        self.unread = tuple(unread)
        self.looked_at = looked_at
        self.truncated = truncated
        self.locked = locked

    def __len__(self) -> int:
        return len(self._hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self._hits[index]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    def __repr__(self) -> str:
        lines = [f"<Copies: {self.summary()}>", *(f"  {hit!r}" for hit in self._hits[:20])]
        if len(self) > 20:
            lines.append(f"  and {len(self) - 20} more")
        return os.linesep.join(lines)

    @property
    def full(self) -> tuple[Hit, ...]:
        """The hits that are the whole secret."""
        return tuple(hit for hit in self._hits if not hit.partial)

    @property
    def partial(self) -> tuple[Hit, ...]:
        """The hits that are a part of it."""
        return tuple(hit for hit in self._hits if hit.partial)

    def summary(self) -> str:
        """Say in one line what was found."""
        full, partial = len(self.full), len(self.partial)
        parts = [f"{full} full and {partial} partial" if self else "none"]
        if self.truncated:
            parts[0] = f"more than {parts[0]}"
        if self.own:
            parts.append("beside the needle itself")
        parts.append(f"in {written_size(self.looked_at)}")
        unread = sum(each.length for each in self.unread if not each.by_nature)
        if unread:
            parts.append(f"({written_size(unread)} could not be looked at)")
        return " ".join(parts)
