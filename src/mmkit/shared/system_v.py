"""`SystemVMemory`: shared memory as System V has it, found by a number."""

from __future__ import annotations

import os
from typing import Any, Self

from mmkit._native.ipc import ftok, shmctl, shmget
from mmkit.errors import Error
from mmkit.flags import IpcFlag, Prot, ShmCommand
from mmkit.making import check_length
from mmkit.region import Region
from mmkit.shared.files import check_mode
from mmkit.shared.options import MODE, check_options
from mmkit.shared.ownership import Owned
from mmkit.shared.pickling import announce, reduce_system_v, send_system_v
from mmkit.shared.record import drop_beside, write_beside
from mmkit.shared.reserve import check_headroom
from mmkit.structs import ShmidDs
from mmkit.wording import size as written_size

__all__ = ["SystemVMemory"]

_CREATE = int(IpcFlag.CREAT | IpcFlag.EXCL)
_KEY_BITS = 32


class SystemVMemory(Owned):
    """Memory that unrelated processes share, by a number: a System V segment (``shmget(2)``).

    Parameters
    ----------
    key
        The number all agree on; or the path of a file that exists, of which ``ftok(3)`` makes a number; or
        None, for a new one that only its `id` names (``IPC_PRIVATE``).
    size
        Bytes of a new one. When attaching, how many there must be at least.
    create
        Make it, and own it: `remove`, or the end of this process's ``with`` block, removes it. Else attach
        what is there, whoever made it: C programs, sysv_ipc.
    mode
        Permission bits of a new one.
    readonly
        Attach for reading only.
    project
        For a path: ftok's second number, 1 to 255.
    persist
        A new one is to outlive this process: it has no owner, only `remove` removes it, and
        `mmkit.shared.reap` leaves it alone.

    Raises
    ------
    SyscallError
        ``ENOENT`` (a `FileNotFoundError`), ``EEXIST`` (a `FileExistsError`), ``EACCES`` (a
        `PermissionError`); ``ENOSPC``: kernel.shmmni or kernel.shmall; ``EINVAL``: beyond kernel.shmmax.
    OutOfMemory
        A control group's limit would not hold it, or no address space is left.
    ValueError
        The segment has fewer bytes than `size`, or something was said that is for a new one.

    Notes
    -----
    A segment stays until it is removed, and then until nobody has it attached. Pages are taken when they are
    first touched: there is no file system that could be full, only memory, and `region` can ``populate`` it.

    To the kernel each area is one attachment: protecting part of `region` splits an area, and
    ``shm_nattch`` counts both halves.

    A forked child has the same memory, and does not own it. Pickled, a segment travels by its `id`; with
    pickle protocol 5 its contents travel too, and become a segment of their own elsewhere.

    References
    ----------
    sysvipc(7), shmget(2), shmat(2), ftok(3)

    Examples
    --------
    >>> import mmkit
    >>> with mmkit.SystemVMemory(size=4096, create=True) as ours:
    ...     theirs = mmkit.SystemVMemory.attach(ours.id)
    ...     ours.buf[:5] = b"hello"
    ...     print(bytes(theirs.buf[:5]), ours.stat().shm_nattch)
    ...     theirs.detach()
    b'hello' 2
    """

    __slots__ = ("_id", "_key", "_readonly")

    _id: int
    _key: int | None
    _readonly: bool

    def __init__(
        self,
        key: int | str | bytes | os.PathLike[str] | None = None,
        size: int = 0,
        *,
        create: bool = False,
        mode: int = MODE,
        readonly: bool = False,
        project: int = 1,
        persist: bool = False,
    ) -> None:
        number = _number_of(key, project)
        check_options(create, f"segment {key!r}", mode=mode, persist=persist)
        if create:
            if readonly:
                raise ValueError("a new segment holds zeros: reading only makes sense for one that is there")
            check_length(size, "size")
            check_headroom(size, f"shmget({number:#x}, {written_size(size)})")
            made: list[int] = []
            try:
                # In one step, in C: a signal handler that raises cannot come between call and knowledge.
                made += map(shmget, (number,), (size,), (_CREATE | check_mode(mode),))
                write_beside("systemv", made[0], persist)
                self._attach(made[0], number, readonly, 0, owned=not persist)
            except BaseException:
                for identifier in made:
                    shmctl(identifier, ShmCommand.RMID)
                    drop_beside("systemv", identifier)
                raise
            return
        if key is None:
            raise ValueError(
                "without a key there is nothing to attach: give one, or create=True; "
                "SystemVMemory.attach(id) attaches what only its identifier names"
            )
        if size < 0:
            raise ValueError(f"size must not be negative, as {size} is")
        identifier = shmget(number, 0, 0o400 if readonly else 0o600)
        self._attach(identifier, number, readonly, size, owned=False)

    @classmethod
    def attach(cls, id: int, *, readonly: bool = False) -> Self:  # noqa: A002 - the word of shmat(2)
        """Attach a segment by its identifier, as ``shmget(2)`` or ``ipcs`` gave it.

        Parameters
        ----------
        id
            The identifier.
        readonly
            Attach for reading only.

        Returns
        -------
        SystemVMemory

        Raises
        ------
        SyscallError
            ``EINVAL``, ``EIDRM``: there is no such segment; ``EACCES``: not allowed.
        """
        segment = cls.__new__(cls)
        segment._attach(id, None, readonly, 0, owned=False)
        return segment

    def _attach(self, identifier: int, key: int | None, readonly: bool, least: int, *, owned: bool) -> None:
        status = shmctl(identifier, ShmCommand.STAT)
        assert isinstance(status, ShmidDs)
        length = status.shm_segsz
        if length < least:
            raise ValueError(
                f"the System V segment {identifier} has {written_size(length)}: fewer than the "
                f"{written_size(least)} asked for"
            )
        prot = Prot.READ if readonly else Prot.READ | Prot.WRITE
        region = Region._of_segment(f"System V {identifier}", length, prot, shmid=identifier)
        announce(type(self), send_system_v)
        self._id = identifier
        self._key = key or status.shm_perm.key or None
        self._readonly = readonly
        self._take(region, owned=owned)

    # ---- what it is ---------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """The kernel's number for it, by which `attach` finds it."""
        return self._id

    @property
    def key(self) -> int | None:
        """The number all agree on; None if only `id` names it."""
        return self._key

    def stat(self) -> ShmidDs:
        """Return all that the kernel knows of it (``shmctl(2)``, ``IPC_STAT``).

        Also after `detach`, as long as anybody has it.

        Returns
        -------
        ShmidDs
            Among it ``shm_nattch``, how many attachments there are, and ``shm_cpid``, who made it.

        Raises
        ------
        SyscallError
            ``EINVAL``, ``EIDRM``: it is gone. ``EACCES``: looking needs permission to read.
        """
        status = shmctl(self._id, ShmCommand.STAT)
        assert isinstance(status, ShmidDs)
        return status

    # ---- life ---------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Give up this process's attachment (``shmdt(2)``); the segment stays. Twice does nothing.

        Raises
        ------
        BufferError
            A view is live, or an operation is running in another thread; nothing has changed.
        """
        self._region.close()

    def remove(self) -> None:
        """Have the segment go with its last attachment (``shmctl(2)``, ``IPC_RMID``).

        Its key is free at once. Before or after `detach`, by any process that may.

        Raises
        ------
        SyscallError
            ``EPERM``: only its owner, its creator or root may. ``EINVAL``, ``EIDRM``: it is gone.
        """
        self._owner = None
        shmctl(self._id, ShmCommand.RMID)
        drop_beside("systemv", self._id)

    def _remove(self) -> None:
        try:
            self.remove()
        except Error as error:
            # EINVAL, EIDRM: somebody else has.
            if isinstance(error, PermissionError):
                raise

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401
        return reduce_system_v(self, int(protocol))

    def __repr__(self) -> str:
        key = "" if self._key is None else f" key {self._key & (1 << _KEY_BITS) - 1:#x}"
        state = (
            "detached" if self.closed else f"{self.size} bytes" + (", read-only" if self._readonly else "")
        )
        return f"<SystemVMemory {self._id}{key} {state}>"


def _number_of(key: int | str | bytes | os.PathLike[str] | None, project: int) -> int:
    """Return the number that a key stands for; 0, which is IPC_PRIVATE, for none."""
    if key is None:
        return 0
    if not isinstance(key, int):
        return ftok(key, project)
    if key == 0:
        raise ValueError("key 0 is IPC_PRIVATE, which never finds a segment: leave the key out")
    if not -(1 << _KEY_BITS - 1) <= key < 1 << _KEY_BITS:
        raise ValueError(f"key must fit in {_KEY_BITS} bits, as {key:#x} does not")
    # The kernel's key is signed; ipcs writes the same bits unsigned.
    return key - (1 << _KEY_BITS) if key >= 1 << _KEY_BITS - 1 else key
