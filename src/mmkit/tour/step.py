"""A step of the tour: what was called, what came of it, how memory looked, and what was checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from mmkit.errors import MemoryFault
from mmkit.tour.pictures import Picture
from mmkit.tour.spelling import argument, errno_name, raised
from mmkit.tour.witness import Death

__all__ = ["Call", "Check", "Outcome", "Refusal", "Step"]

#: Variables in C that are pointers.
_POINTERS = ("p", "q")
#: Their failure is an address that is none: (void *)-1.
_RETURN_ADDRESSES = ("mmap", "mremap")


class Outcome(Enum):
    """How a step, or a call in it, ended."""

    DONE = "done"
    #: The kernel said no, for a reason that is about this system and not about the tour.
    REFUSED = "refused"
    #: It did not do what it claims.
    FAILED = "failed"
    #: It needs what a step before it did not get.
    NOT_REACHED = "not reached"


@dataclass
class Call:
    """A call in both languages, and what came of it."""

    #: As its man page is named; empty for a plain load or store, which is no call.
    name: str
    arguments: tuple[str, ...]
    #: The statement in C and in Python.
    c: str
    python: str
    #: The variable in C that takes the result.
    assign: str = ""
    #: What the kernel returned; None if it was not called, refused, or its answer is not known.
    returned: int | None = None
    #: The name of the error with which it refused.
    errno: str = ""
    remark: str = ""
    #: How often it was made, each time with this result.
    times: int = 1
    #: What mmkit returned, where that says more, and what it raised.
    result: str = ""
    raised: str = ""
    #: What a bare access dies of.
    death: Death | None = None

    @property
    def kernel(self) -> str:
        """Write what the kernel said."""
        if self.death:
            return f"{self.death}: the end, in C"
        if self.errno:
            return f"{'MAP_FAILED' if self.name in _RETURN_ADDRESSES else -1}, errno {self.errno}"
        if self.returned is None:
            return self.remark
        value = f"{self.returned:#x}" if self.assign in _POINTERS else str(self.returned)
        often = f", {self.times} times" if self.times > 1 else ""
        return (f"{self.assign} = {value}" if self.assign else value) + often + self.remark


@dataclass(frozen=True)
class Check:
    """A claim, and whether it was found to hold."""

    claim: str
    holds: bool
    #: How many calls of its step had been made by then.
    calls: int


@dataclass(frozen=True)
class Refusal:
    """Why the kernel said no."""

    error: str
    why: str


@dataclass
class Step:
    """One thing done, shown and checked."""

    #: Counted through the whole tour, from 1; 0 for what goes wrong between two steps.
    number: int
    title: str
    reached: bool = True
    #: What was done before it, so that there is something to see: statements in Python.
    prepared: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    #: What was seen and is worth knowing, and what nobody promises.
    notes: list[str] = field(default_factory=list)
    refusal: Refusal | None = None
    #: What went wrong besides checks that do not hold.
    mistake: str = ""

    @property
    def outcome(self) -> Outcome:
        """How it ended, told from the checks and from what went wrong."""
        if not self.reached:
            return Outcome.NOT_REACHED
        if self.mistake or not all(check.holds for check in self.checks):
            return Outcome.FAILED
        return Outcome.REFUSED if self.refusal else Outcome.DONE

    # ---- what was done ------------------------------------------------------------------------------

    def prepare(self, *python: str) -> None:
        """Write down what was done before the first picture, so that there is something to see."""
        self.prepared.extend(python)

    def call(self, name: str, *arguments: object, python: str, assign: str = "") -> None:
        """Write down a system call that is about to be made: flags as flags, the rest as C has it."""
        written = tuple(argument(each) for each in arguments)
        c = f"{name}({', '.join(written)});"
        self.calls.append(Call(name, written, f"{assign} = {c}" if assign else c, python, assign))

    def code(self, c: str, python: str) -> None:
        """Write down something that needs no system call."""
        self.calls.append(Call("", (), c, python))

    # ---- what came of it ----------------------------------------------------------------------------

    def answer(self, returned: int, remark: str = "", *, result: str = "", times: int = 1) -> None:
        """Write down what the last call returned: to C, and to Python where that is something else."""
        self.calls[-1].returned = returned
        self.calls[-1].remark = remark
        self.calls[-1].result = result
        self.calls[-1].times = times

    def say(self, remark: str) -> None:
        """Write down what came of something that returns no number."""
        self.calls[-1].remark = remark

    def refused(self, error: OSError) -> None:
        """Write down that the kernel refused the last call, as was expected."""
        self.calls[-1].errno = errno_name(error)
        self.calls[-1].raised = raised(error)

    def raises(self, remark: str, error: Exception | None) -> None:
        """Write down what C was told by the last statement, and what mmkit raised."""
        self.calls[-1].remark = remark
        self.calls[-1].raised = raised(error) if error else ""

    def faulted(self, death: Death | None, fault: MemoryFault | None) -> None:
        """Write down what the last access came to: bare, and by mmkit."""
        call = self.calls[-1]
        call.death, call.remark = death, "" if death else "nothing: the access went well"
        call.raised = raised(fault) if fault else ""

    # ---- what is to be seen -------------------------------------------------------------------------

    def show(self, *pictures: Picture) -> None:
        """Add pictures, to be drawn from left to right."""
        self.pictures.extend(pictures)

    def check(self, claim: str, holds: bool) -> None:
        """Claim something, and say whether it was found so."""
        self.checks.append(Check(claim, holds, len(self.calls)))

    def note(self, text: str) -> None:
        """Say something that is not checked: what was seen this time, or what is not promised."""
        self.notes.append(text)

    # ---- looking back -------------------------------------------------------------------------------

    def statements(self) -> list[str]:
        """Return what was done, in Python, as preparation for what comes after it.

        What raised has left nothing, and what a child did is told by the step that shows it.
        """
        done = list(self.prepared)
        for call in self.calls:
            if call.name == "fork":
                return [*done, f"{call.python}   # the child: see step {self.number}"]
            if not call.raised:
                done.append(call.python)
        return done

    def checks_of(self, call: Call) -> list[Check]:
        """Return the checks that were made after a call."""
        made = next(number for number, each in enumerate(self.calls, 1) if each is call)
        return [check for check in self.checks if check.calls >= made]

    def outcome_of(self, call: Call) -> Outcome:
        """Tell how a call ended."""
        if not all(check.holds for check in self.checks_of(call)):
            return Outcome.FAILED
        return Outcome.REFUSED if call.errno else Outcome.DONE
