"""What a feature is, how it is asked for, and what a probe needs to ask the kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mmkit._native import calls
from mmkit.flags import Advice, MapFlag, MemfdFlag, Prot

__all__ = [
    "Absent",
    "Answer",
    "Feature",
    "Key",
    "NeverTried",
    "ask",
    "ask_all",
    "memory",
    "memory_file",
    "taking",
]

Key = str | Advice | MapFlag | MemfdFlag


class Absent(Exception):  # noqa: N818 - an answer, not an error
    """What a probe raises where the kernel takes the request and does not do it: there is no errno."""


class NeverTried(Exception):  # noqa: N818
    """What a probe raises that would take memory from the machine; with an errno, one that could not ask."""


class Feature(NamedTuple):
    """Something that a kernel has or has not, or allows or not."""

    name: str
    group: str
    #: The Linux version that brought it; 2.4 for what is older.
    since: str
    #: Returns where the feature works; raises the kernel's `OSError` where not, or `Absent`.
    probe: Callable[[], object]
    #: What `supports` takes for it: a flag, or the name.
    key: Key | None = None
    #: What to do to have it, by what the kernel says; 0 for whatever it says.
    changes: Mapping[int, str] = {}
    #: The probe cannot be undone, so it is made in a child process.
    leaves_marks: bool = False


class Answer(NamedTuple):
    """What the running kernel says of a feature to this process."""

    #: None where it was not tried.
    works: bool | None
    #: Why it does not work, or could not be tried; 0 where it works, and where there is no errno to tell.
    errno: int = 0
    #: What ended the process that tried, as a signal's number: a seccomp filter that kills.
    signal: int = 0

    @property
    def word(self) -> str:
        """The answer in a word: ``yes``, an errno's or a signal's name, ``absent``, ``untried``."""
        if self.works:
            return "yes"
        if self.works is None:
            return "untried"
        if self.signal:
            return signal.Signals(self.signal).name
        return _written_errno(self.errno) if self.errno else "absent"


def _written_errno(number: int) -> str:
    # Two names for one number; man pages of system calls use this one.
    return "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))


# These tell of the asking, which needs a descriptor, and not of the feature.
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


def ask(feature: Feature) -> Answer:
    """Ask the running kernel, now."""
    if feature.leaves_marks:
        try:
            return _ask_in_child([feature._replace(leaves_marks=False)])[0]
        except OSError as error:
            return Answer(None, error.errno or errno.EIO)
    try:
        feature.probe()
    except OSError as error:
        return Answer(None if error.errno in _NO_DESCRIPTOR else False, error.errno or errno.EIO)
    except MemoryError:
        # Python's own, before the kernel was asked.
        return Answer(False, errno.ENOMEM)
    except Absent:
        return Answer(False)
    except NeverTried as never:
        return Answer(None, *never.args)
    return Answer(True)


def ask_all(features: Sequence[Feature]) -> list[Answer]:
    """Ask for many features in child processes: where a filter kills one, the answer is its signal.

    Where no child can be had, they are asked here, as `ask` does.
    """
    answers: list[Answer] = []
    while len(answers) < len(features):
        left = features[len(answers) :]
        try:
            answers += _ask_in_child(left)
        except OSError:
            answers += map(ask, left)
    return answers


# How an answer goes through the pipe, in a byte: 0, an errno (at most 133), or one of these. To _SIGNAL the
# signal is added (at most 64), to _UNTRIED the errno that came in the way, if it is one of the first.
_ABSENT, _SIGNAL, _UNTRIED = 140, 160, 225


def _encoded(answer: Answer) -> int:
    if answer.works is None:
        return _UNTRIED + (answer.errno if answer.errno < 256 - _UNTRIED else 0)
    if answer.works:
        return 0
    return _SIGNAL + answer.signal if answer.signal else answer.errno or _ABSENT


def _decoded(code: int) -> Answer:
    if code == 0:
        return Answer(True)
    if code >= _UNTRIED:
        return Answer(None, code - _UNTRIED)
    if code == _ABSENT:
        return Answer(False)
    return Answer(False, 0, code - _SIGNAL) if code > _SIGNAL else Answer(False, code)


def _ask_in_child(features: Sequence[Feature]) -> list[Answer]:
    """Ask until the child has asked for all of them, or has died: at least one answer."""
    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():
            # 3.12 warns where there are threads. The child allocates little and takes no lock of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if child == 0:
        _answer_into(writer, features)
    os.close(writer)
    status = 0
    # Where SIGCHLD is ignored the kernel buries the child itself, and this waits until it has.
    with contextlib.suppress(ChildProcessError):
        _, status = os.waitpid(child, 0)
    # The end of the pipe would not come while a child that another thread forked meanwhile has it too.
    os.set_blocking(reader, False)
    with open(reader, "rb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor
        codes = pipe.read(len(features)) or b""
    answers = [_decoded(code) for code in codes]
    if len(answers) < len(features):
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        answers.append(Answer(False, 0 if killed else errno.EIO, killed))
    return answers


def _answer_into(pipe: int, features: Sequence[Feature]) -> None:
    status = 1
    try:
        for feature in features:
            os.write(pipe, bytes([_encoded(ask(feature))]))
        status = 0
    finally:
        os._exit(status)


# ---- what probes stand on


@contextlib.contextmanager
def memory(
    length: int = calls.PAGE_SIZE,
    *,
    prot: Prot = Prot.READ | Prot.WRITE,
    flags: MapFlag = MapFlag.PRIVATE | MapFlag.ANONYMOUS,
    fd: int = -1,
) -> Iterator[int]:
    """Map something for the length of a ``with`` block; give its address."""
    address = calls.mmap(0, length, prot, flags, fd)
    try:
        yield address
    finally:
        calls.munmap(address, length)


@contextlib.contextmanager
def memory_file(flags: MemfdFlag = MemfdFlag.CLOEXEC, length: int = calls.PAGE_SIZE) -> Iterator[int]:
    """Make a file in memory for the length of a ``with`` block; give its descriptor."""
    fd = calls.memfd_create("probe", flags)
    try:
        if length:
            os.ftruncate(fd, length)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def taking(*errors: int) -> Iterator[None]:
    """Take it for a yes when the kernel refuses the probe's own senseless arguments with these."""
    try:
        yield
    except OSError as error:
        if error.errno not in errors:
            raise
