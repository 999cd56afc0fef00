"""What all locks and the like have in common: a name or a place, attaching, closing, removing."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mmkit.errors import ClosedError, Error
from mmkit.shared.named import attached_segment, close_if_unused, identity, new_segment, remove_name

if TYPE_CHECKING:
    from mmkit.region import Region

__all__ = ["Meeting"]


class Meeting:
    """The part of each class that gives it its place. The core's part is the other base."""

    SIZE: ClassVar[int]

    name: str | None
    _inode: tuple[int, int] | None = None
    _region: Region | None = None

    if TYPE_CHECKING:
        _label: str

        _place: Any  # (region, offset, create, *what the kind takes, label) -> None

        def _remove(self) -> None: ...
        def _leave(self) -> None: ...
        @property
        def closed(self) -> bool:
            """Whether it was closed in this process."""

    def _settle(self, name: str, create: bool, mode: int, *arguments: Any) -> None:  # noqa: ANN401
        """Make or find the segment of a name, and take place in it."""
        self.name = name
        label = f"{type(self).__name__} {name!r}"
        made = None
        if create:
            with new_segment(name, self.SIZE, mode) as region:
                self._place(region, 0, True, *arguments, label)
                self._leave()
                made = identity(region)
        # Also who has made it attaches by the name, which /proc/PID/maps has then.
        while self._region is None:
            # Another thread, or a signal handler of this one, may close the mapping before this stands in it.
            with contextlib.suppress(ClosedError):
                self._attach(name, made, arguments, label)

    def _attach(
        self, name: str, made: tuple[int, int] | None, arguments: tuple[Any, ...], label: str
    ) -> None:
        region = attached_segment(name, self.SIZE, type(self).__name__)
        try:
            self._place(region, 0, False, *arguments, label)
            inode = identity(region)
            if made not in (None, inode):
                self._leave()
                raise Error(f"{label}: another process has removed it and made another, within an instant")
        except BaseException:
            close_if_unused(region)
            raise
        self._inode, self._region = inode, region

    @classmethod
    def _settle_at(cls, region: Region, offset: int, create: bool, *arguments: Any) -> Self:  # noqa: ANN401
        """Take a place in a region of the caller's."""
        self = cls.__new__(cls)
        self.name = None
        self._place(region, offset, create, *arguments, f"{cls.__name__} at offset {offset:#x} of a region")
        return self

    def close(self) -> None:
        """Let go of it in this process; it stays for others. Closing twice does nothing.

        Raises
        ------
        BufferError
            A thread of this process holds it, or waits for it; nothing has changed.
        """
        self._leave()
        if self._region is not None:
            close_if_unused(self._region)
            self._region = None

    def unlink(self) -> None:
        """Remove it: its name, or what stands at its place in a region.

        A name can be given anew at once. Who has it open goes on with it until they close it, and it can be
        removed after it was closed. In a region it must be open, and nobody may use it any more.

        Raises
        ------
        SyscallError
            ``ENOENT``: the name is gone already. ``EACCES``, ``EPERM``: the segment is another user's.
        Error
            The name was given to another segment since: that was not removed.
        """
        if self.name is None:
            self._remove()
            self.close()
        else:
            assert self._inode is not None
            remove_name(self.name, self._inode)

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        if self.name is None:
            raise TypeError(f"{self._label} cannot be pickled: only what has a name can travel by it")
        return type(self), (self.name,)

    def __repr__(self) -> str:
        return f"<{self._label}{', closed' if self.closed else ''}>"

    def __del__(self) -> None:
        if self._inode is None or self.closed:
            return
        try:
            warnings.warn(f"{self._label} was not closed", ResourceWarning, stacklevel=2, source=self)
        finally:
            # What a thread holds stays mapped: see __dealloc__ of the core's part.
            with contextlib.suppress(BufferError):
                self.close()
