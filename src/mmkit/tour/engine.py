"""What the tour is made of: sections of scenes of steps.

A scene is a function that does things inside ``with stage.step()`` blocks, one for each of the titles it is
announced with. The stage hands every finished step to its audience, which may draw it or only keep it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from mmkit.errors import Error, SyscallError
from mmkit.hints import failure
from mmkit.tour.spelling import errno_name
from mmkit.tour.step import Outcome, Refusal, Step

__all__ = ["Audience", "AudienceLeft", "Scene", "Section", "Stage", "run", "scene"]


class Audience(Protocol):
    """Who watches."""

    def section_begins(self, number: int, section: Section) -> None:
        """Take the title and the introduction of a section."""

    def step_ended(self, step: Step) -> None:
        """Take a step when it is over."""


class AudienceLeft(BaseException):
    """Nobody watches any more: raised by the audience, it ends the tour.

    Parameters
    ----------
    why
        What came of telling it more.
    """

    def __init__(self, why: OSError) -> None:
        super().__init__(why)
        self.why = why


class SceneOver(Exception):  # noqa: N818 - not an error
    """The rest of a scene needs what a step did not get. Never leaves this module."""


class Stage:
    """Where a scene is played: makes its steps, and keeps them.

    Parameters
    ----------
    titles
        Of the steps to come.
    first
        Number of the first of them.
    tell
        Is given each step when it is over.
    """

    def __init__(self, titles: Sequence[str], first: int, tell: Callable[[Step], None]) -> None:
        self._coming = [Step(number, title) for number, title in enumerate(titles, first)]
        self._tell = tell
        self._untold: list[Step] | None = None
        self.steps: list[Step] = []

    @contextlib.contextmanager
    def step(self, *, may_refuse: Sequence[int] = ()) -> Iterator[Step]:
        """Do the next thing that was announced.

        Parameters
        ----------
        may_refuse
            Numbers of errno(3) that mean "this kernel has it not" here, beside those that always do.

        Notes
        -----
        A step that is refused, or goes wrong, ends its scene.
        """
        if not self._coming:
            raise IndexError("a step that was not announced")
        step = self._coming.pop(0)
        try:
            yield step
        except Exception as error:
            _explain(step, error, may_refuse)
        self._ended(step)
        if step.refusal or step.mistake:
            raise SceneOver

    @contextlib.contextmanager
    def in_one_go(self) -> Iterator[None]:
        """Do several steps before the audience is told of any: it may wait for a key, or for a full pipe."""
        self._untold = []
        try:
            yield
        finally:
            untold, self._untold = self._untold, None
            for step in untold:
                self._tell(step)

    def play(self, scene: Scene) -> None:
        """Play a scene to its end, whatever happens in it."""
        between = Step(0, f"Before, between or after the steps of {scene.name}")
        try:
            scene.play(self)
            if self._coming:
                between.mistake = "it ended before all was done that was announced"
        except SceneOver:
            pass
        except Exception as error:
            # ENOENT: no folder for temporary files.
            _explain(between, error, (errno.ENOENT,))
        if between.mistake or between.refusal:
            self._ended(between)
        for step in self._coming:
            step.reached = False
            self._ended(step)

    def _ended(self, step: Step) -> None:
        self.steps.append(step)
        if self._untold is None:
            self._tell(step)
        else:
            self._untold.append(step)


#: What systems refuse for reasons of their own: rights, limits, filters, options of the kernel.
_REFUSALS = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EAGAIN,
        errno.EMFILE,
        errno.EROFS,
    }
)


_USUAL_REASONS = {
    errno.EPERM: "This process is not allowed to.",
    errno.EACCES: "This process is not allowed to.",
    errno.ENOSYS: "This kernel does not have the call, or a sandbox filters it.",
    errno.EINVAL: "This kernel does not know it.",
}


def _with_its_file(error: OSError) -> OSError:
    """Return what says which file could not be opened, and what to do; the error itself if it is of none."""
    if error.errno is None or error.filename is None:
        return error
    named = failure(-error.errno, "open", None, (os.fsdecode(error.filename),))
    return named if isinstance(named, OSError) else error


def _explain(step: Step, error: Exception, may_refuse: Sequence[int]) -> None:
    if isinstance(error, OSError) and error.errno is not None:
        error = _with_its_file(error)
        call = error.call if isinstance(error, SyscallError) else ""
        is_of_a_file = call.startswith("open(")
        if step.calls and not step.calls[-1].kernel and not is_of_a_file:
            step.calls[-1].errno = errno_name(error)
        if error.errno in _REFUSALS or error.errno in may_refuse:
            hint = error.hint if isinstance(error, SyscallError) else ""
            why = hint or _USUAL_REASONS.get(error.errno or 0, "")
            # Other calls are shown; that a file was looked into is not.
            what = f"{call}: {error.strerror}" if is_of_a_file else error.strerror
            step.refusal = Refusal(f"{errno_name(error)}: {what}", why)
            return
    elif type(error) is Error:
        # Said by mmkit before the kernel was asked.
        step.refusal = Refusal("not possible here", str(error))
        return
    step.mistake = f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Scene:
    """A function that makes steps, and what it announces: a title for each."""

    play: Callable[[Stage], None]
    titles: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the function, for messages."""
        return self.play.__name__


def scene(*titles: str) -> Callable[[Callable[[Stage], None]], Scene]:
    """Announce the steps that a function makes, in their order."""
    return lambda play: Scene(play, titles)


@dataclass(frozen=True)
class Section:
    """A subject: what it is about, and the scenes that show it. Scenes do not need each other."""

    key: str
    title: str
    #: For a Python programmer who does not know C.
    introduction: str
    scenes: tuple[Scene, ...]


def run(
    sections: Sequence[Section], audience: Audience, only: Collection[int] | None = None
) -> dict[str, list[Step]]:
    """Play sections, whatever happens in one of them.

    Parameters
    ----------
    sections
        All of them, in order.
    audience
        Who watches.
    only
        Numbers of the steps to be shown; None for all. The steps before them in their scenes are made too:
        as preparation of the next that is shown. They are shown where they end the scene.

    Returns
    -------
    dict
        By key of the section, the steps that were shown.
    """
    played: dict[str, list[Step]] = {}
    first = 1
    for number, section in enumerate(sections, 1):
        for each in section.scenes:
            numbers = range(first, first + len(each.titles))
            first = numbers.stop
            if only is not None and not any(wanted in only for wanted in numbers):
                continue
            if section.key not in played:
                audience.section_begins(number, section)
            shown = played.setdefault(section.key, [])
            unseen: list[str] = []

            def tell(step: Step, shown: list[Step] = shown, unseen: list[str] = unseen) -> None:
                if only is None or step.number in only or step.outcome in _ALWAYS_SHOWN:
                    step.prepared[:0] = unseen
                    unseen.clear()
                    shown.append(step)
                    audience.step_ended(step)
                else:
                    unseen += step.statements()

            Stage(each.titles, numbers.start, tell).play(each)
    return played


_ALWAYS_SHOWN = (Outcome.REFUSED, Outcome.FAILED)
