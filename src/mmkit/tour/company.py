"""What scenes need around them: a second process, a file to map, and a moment without interruption."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from mmkit.errors import SyscallError
from mmkit.flags import Advice
from mmkit.region import Region

__all__ = [
    "ChildDiedError",
    "in_a_child",
    "ordinary_pages",
    "scratch_file",
    "scratch_file_python",
    "uninterrupted",
]

_T = TypeVar("_T")
_PATIENCE = 10.0
_INTERRUPTIONS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}


class ChildDiedError(RuntimeError):
    """A child ended without an answer.

    Attributes
    ----------
    signal : str
        The name of the signal that ended it; empty if it exited.
    """

    def __init__(self, status: int) -> None:
        self.signal = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else ""
        super().__init__("the child ended without an answer" + (f": {self.signal}" if self.signal else ""))


def in_a_child(work: Callable[[], _T]) -> _T:
    """Fork (``fork(2)``), do something in the child, and bring what it returns back to the parent.

    Parameters
    ----------
    work
        Sees the memory of the child; what it returns or raises must be picklable.

    Returns
    -------
    object
        What `work` returned. The child is gone by then.

    Raises
    ------
    TimeoutError
        The child gave no answer; it has been ended.
    ChildDiedError
        It ended without one.
    Exception
        What `work` raised.
    """
    # What is still buffered would be written twice. (None: it was closed before Python began.)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    reader, writer = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            _work_and_exit(work, writer)
        os.close(writer)
        writer = -1
        try:
            message = _read_all(reader)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(child, 0)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if not message:
        raise ChildDiedError(status)
    result: _T | Exception = pickle.loads(message)
    if isinstance(result, Exception):
        raise result
    return result


def _work_and_exit(work: Callable[[], object], writer: int) -> NoReturn:
    # Never back into the parent's code: its cleaning up is the parent's.
    try:
        for number in _INTERRUPTIONS:
            signal.signal(number, signal.SIG_DFL)
        try:
            message = pickle.dumps(work())
        except Exception as error:
            message = pickle.dumps(error)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(message)
    finally:
        os._exit(0)


def _read_all(reader: int) -> bytes:
    message = b""
    while True:
        if not select.select([reader], [], [], _PATIENCE)[0]:
            raise TimeoutError(f"the child gave no answer in {_PATIENCE:.0f} seconds")
        part = os.read(reader, 1 << 16)
        if not part:
            return message
        message += part


@contextlib.contextmanager
def scratch_file(contents: bytes, *, on_disk: bool = False) -> Iterator[int]:
    """Make a file that is gone when its descriptor is closed, however the process ends.

    Parameters
    ----------
    contents
        What is in it.
    on_disk
        Not on a file system that keeps everything in memory, if there is another.

    Yields
    ------
    int
        A descriptor for reading and writing.
    """
    fd = _unnamed_file(["/var/tmp", tempfile.gettempdir()] if on_disk else [tempfile.gettempdir()])
    try:
        os.write(fd, contents)
        os.fsync(fd)
        yield fd
    finally:
        os.close(fd)


def scratch_file_python(contents: str, *, on_disk: bool = False) -> tuple[str, str]:
    """Write what `scratch_file` does as statements in Python: `fd` is the file, `contents` an expression."""
    folder = '"/var/tmp"' if on_disk else "tempfile.gettempdir()"
    return (
        f"fd = os.open({folder}, os.O_TMPFILE | os.O_RDWR)",
        f"os.write(fd, {contents});  os.fsync(fd)",
    )


def _unnamed_file(folders: list[str]) -> int:
    for folder in folders:
        with contextlib.suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    # The file system knows no O_TMPFILE.
    with uninterrupted():
        fd, path = tempfile.mkstemp(prefix="mmkit-tour-")
        os.unlink(path)  # noqa: PTH108 - a str
    return fd


def ordinary_pages(region: Region) -> tuple[str, ...]:
    """Have a region brought in page by page, on systems that like to bring in larger pieces.

    Returns
    -------
    tuple of str
        What was done, in Python; nothing where the kernel knows no larger pieces.
    """
    try:
        region.advise(Advice.NOHUGEPAGE)
    except SyscallError:
        return ()
    return ("region.advise(Advice.NOHUGEPAGE)   # page by page",)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and other requests to end while something has a name that would stay behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTIONS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
