"""What the tour is made of: sections of scenes of steps, each of which records what it did.

A scene is a function that does things inside ``with stage.step(...)`` blocks. The stage hands every
finished step to its audience, which may draw it, wait for a key after it, or only keep it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from mmkit.errors import Error, SyscallError
from mmkit.tour.pictures import Picture
from mmkit.tour.spelling import argument

__all__ = ["Audience", "Call", "Check", "Outcome", "Refusal", "Section", "Stage", "Step", "run"]


class Outcome(Enum):
    """How a step ended."""

    DONE = "done"
    #: The kernel said no, for a reason that is about this system and not about the tour.
    REFUSED = "refused"
    #: It did not do what it claims.
    FAILED = "failed"


@dataclass
class Call:
    """A call in both languages, and what came of it."""

    #: As its man page is named; empty for a plain load or store, which is no call.
    name: str
    arguments: tuple[str, ...]
    #: The statement in C and in Python.
    c: str
    python: str
    #: What the kernel returned, and what mmkit made of it where that says more.
    answer: str = ""
    result: str = ""


@dataclass(frozen=True)
class Check:
    """A claim, and whether it was found to hold."""

    claim: str
    holds: bool


@dataclass(frozen=True)
class Refusal:
    """Why the kernel said no."""

    error: str
    why: str


@dataclass
class Step:
    """One thing done, shown and checked."""

    title: str
    #: What was done before it, so that there is something to see: statements in Python.
    prepared: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    refusal: Refusal | None = None
    #: What went wrong besides checks that do not hold.
    mistake: str = ""

    @property
    def outcome(self) -> Outcome:
        """How it ended, told from the checks and from what went wrong."""
        if self.mistake or not all(check.holds for check in self.checks):
            return Outcome.FAILED
        return Outcome.REFUSED if self.refusal else Outcome.DONE

    def prepare(self, *python: str) -> None:
        """Write down what was done before the first picture, so that there is something to see."""
        self.prepared.extend(python)

    def call(self, name: str, *arguments: object, python: str, assign: str = "") -> None:
        """Write down a system call that is about to be made: flags as flags, the rest as C has it."""
        written = tuple(argument(each) for each in arguments)
        c = f"{name}({', '.join(written)});"
        self.calls.append(Call(name, written, f"{assign} = {c}" if assign else c, python))

    def code(self, c: str, python: str) -> None:
        """Write down something that needs no system call."""
        self.calls.append(Call("", (), c, python))

    def answer(self, kernel: object, result: object = None) -> None:
        """Write down what the last call returned: to C, and to Python where that is something else."""
        self.calls[-1].answer = str(kernel)
        self.calls[-1].result = "" if result is None else str(result)

    def show(self, *pictures: Picture) -> None:
        """Add pictures, to be drawn from left to right."""
        self.pictures.extend(pictures)

    def check(self, claim: str, holds: bool) -> None:
        """Claim something, and say whether it was found so."""
        self.checks.append(Check(claim, holds))


class Audience(Protocol):
    """Who watches."""

    def section_begins(self, number: int, section: Section) -> None:
        """Take the title and the introduction of a section."""

    def step_ended(self, step: Step) -> None:
        """Take a step when it is over."""


class SceneOver(Exception):  # noqa: N818 - not an error
    """The rest of a scene needs what a step did not get. Never leaves this module."""


class Stage:
    """Where scenes are played: makes their steps, and keeps them."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._untold: list[Step] | None = None
        self.steps: list[Step] = []

    @contextlib.contextmanager
    def step(self, title: str, *, may_refuse: Sequence[int] = ()) -> Iterator[Step]:
        """Do one thing.

        Parameters
        ----------
        title
            What, in a few words.
        may_refuse
            Numbers of errno(3) that mean "this kernel has it not" here, beside those that always do.

        Notes
        -----
        A step that is refused, or goes wrong, ends its scene.
        """
        step = Step(title)
        try:
            yield step
        except Exception as error:
            _explain(step, error, may_refuse)
        self.steps.append(step)
        if self._untold is None:
            self._audience.step_ended(step)
        else:
            self._untold.append(step)
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
                self._audience.step_ended(step)


#: What systems refuse for reasons of their own: rights, limits, filters, options of the kernel.
_REFUSALS = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.ENOMEM,
        errno.ENOSPC,
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


def _explain(step: Step, error: Exception, may_refuse: Sequence[int]) -> None:
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number is not None:
        if step.calls:
            step.calls[-1].answer = f"-1 {_name(number)}"
        if number in _REFUSALS or number in may_refuse:
            hint = error.hint if isinstance(error, SyscallError) else ""
            why = hint or _USUAL_REASONS.get(number, "")
            step.refusal = Refusal(f"{_name(number)}: {os.strerror(number)}", why)
            return
    elif type(error) is Error:
        # Said by mmkit before the kernel was asked.
        step.refusal = Refusal("not possible here", str(error))
        return
    step.mistake = f"{type(error).__name__}: {error}"


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))


Scene = Callable[[Stage], None]


@dataclass(frozen=True)
class Section:
    """A subject: what it is about, and the scenes that show it. Scenes do not need each other."""

    key: str
    title: str
    #: For a Python programmer who does not know C.
    introduction: str
    scenes: tuple[Scene, ...]


def run(sections: Sequence[Section], audience: Audience) -> dict[str, list[Step]]:
    """Play sections, whatever happens in one of them.

    Parameters
    ----------
    sections
        Which, and in which order.
    audience
        Who watches.

    Returns
    -------
    dict
        By key of the section, the steps it made.
    """
    played: dict[str, list[Step]] = {}
    for number, section in enumerate(sections, 1):
        audience.section_begins(number, section)
        stage = Stage(audience)
        for scene in section.scenes:
            _play(scene, stage)
        played[section.key] = stage.steps
    return played


def _play(scene: Scene, stage: Stage) -> None:
    with contextlib.suppress(SceneOver):
        try:
            scene(stage)
        except SceneOver:
            raise
        except Exception as error:
            # Between two steps nothing is claimed; what goes wrong there is a mistake all the same.
            with stage.step(f"what comes before or after a step of {scene.__name__}()"):
                raise error
