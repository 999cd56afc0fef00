"""What all locks and the like have in common: a name or a place, attaching, closing, removing."""

from __future__ import annotations

import contextlib
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mmkit._native.descriptor import Descriptor
from mmkit.errors import ClosedError
from mmkit.region import Region
from mmkit.shared import files
from mmkit.shared.named import close_if_unused, mapping
from mmkit.shared.names import check_name
from mmkit.shared.options import check_options
from mmkit.shared.reserve import reserve

__all__ = ["Meeting"]


class Meeting:
    """The part of each class that gives it its place. The core's part is the other base."""

    SIZE: ClassVar[int]

    name: str | None
    _identity: files.Identity | None = None
    _region: Region | None = None

    if TYPE_CHECKING:
        _label: str

        _place: Any  # (region, offset, create, *what the kind takes, label) -> None

        def _remove(self) -> None: ...
        def _leave(self) -> None: ...
        @property
        def closed(self) -> bool:
            """Whether it was closed in this process."""

    def _settle(
        self,
        name: str,
        create: bool,
        mode: int,
        *arguments: Any,  # noqa: ANN401
        **options: object,
    ) -> None:
        """Make or find the segment of a name, and take place in it; with what only its maker may say."""
        self.name = check_name(name)
        label = f"{type(self).__name__} {self.name!r}"
        check_options(create, label, mode=mode, **options)
        if not create:
            self._meet(arguments, label, files.open_named(self.name))
            return
        if files.check_mode(mode) & 0o600 != 0o600:
            raise ValueError(f"mode must let the owner read and write, as {mode:#o} does not")
        # Nobody owns it: it is there for whoever comes, and the mark of a dead holder is not lost.
        complete, use = partial(self._write, arguments, label), partial(self._meet, arguments, label)
        files.make(self.name, mode, complete, use, persist=True)

    def _write(self, arguments: tuple[Any, ...], label: str, fd: int) -> None:
        """Make the whole thing in a new file; nobody stands in it then."""
        reserve(fd, 0, self.SIZE, label)
        region = Region.file(fd, mode="r+")
        try:
            self._place(region, 0, True, *arguments, label)
            self._leave()
        finally:
            close_if_unused(region)

    def _meet(self, arguments: tuple[Any, ...], label: str, file: Descriptor) -> None:
        """Take place in the file's one mapping of this process."""
        with file:
            while self._region is None:
                # Another thread, or a signal handler of this one, may close the mapping before that.
                with contextlib.suppress(ClosedError):
                    self._stand_in(mapping(file.fileno(), self.SIZE, label), arguments, label)

    def _stand_in(self, region: Region, arguments: tuple[Any, ...], label: str) -> None:
        try:
            self._place(region, 0, False, *arguments, label)
            self._identity = files.identity_of(region.fileno())
        except BaseException:
            close_if_unused(region)
            raise
        self._region = region

    @classmethod
    def _settle_at(
        cls,
        region: Region,
        offset: int,
        create: bool,
        *arguments: Any,  # noqa: ANN401
        **options: object,
    ) -> Self:
        """Take a place in a region of the caller's; with what only a maker may say."""
        label = f"{cls.__name__} at offset {offset:#x} of a region"
        check_options(create, label, **options)
        self = cls.__new__(cls)
        self.name = None
        self._place(region, offset, create, *arguments, label)
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
            ``ENOENT``: the name is gone already, or another segment's since. ``EACCES``, ``EPERM``: it
            belongs to another user.
        """
        if self.name is None:
            self._remove()
            self.close()
        else:
            assert self._identity is not None
            files.remove(self.name, self._identity)

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        if self.name is None:
            raise TypeError(f"{self._label} cannot be pickled: only what has a name can travel by it")
        return type(self), (self.name,)

    def __repr__(self) -> str:
        return f"<{self._label}{', closed' if self.closed else ''}>"

    def __del__(self) -> None:
        if self._identity is None or self.closed:
            return
        try:
            warnings.warn(f"{self._label} was not closed", ResourceWarning, stacklevel=2, source=self)
        finally:
            # What a thread holds stays mapped: see __dealloc__ of the core's part.
            with contextlib.suppress(BufferError):
                self.close()
