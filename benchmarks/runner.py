"""Fair races: the same work by several contestants, in one run, interleaved.

A benchmark is a table of contestants::

    @race("read one byte", peer="mmap")
    def read_byte(scope: ExitStack) -> Contestants:
        region = scope.enter_context(mmkit.Region.anonymous(SIZE))
        mapping = scope.enter_context(mmap.mmap(-1, SIZE))
        return {
            "mmkit": Statement("region[7]", region=region),
            "mmap": Statement("mapping[7]", mapping=mapping),
        }

    if __name__ == "__main__":
        main(read_byte)

The runner calibrates, warms up, runs the contestants in rounds of shuffled order, and prints minima and
medians per call with their ratios to the peer's. docs/benchmarks.md says how to read it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

#: Does the work `n` times and returns the nanoseconds that it took.
Loop = Callable[[int], int]

LEFT_OUT = (
    "Left out of the timing: setting up (each contestant has an object or mapping of its own, of the same "
    "size and kind), warming up, garbage collection, looking up names (they are locals of the timed loop), "
    "and an empty Python loop, which is subtracted from every contestant that runs in one."
)


@runtime_checkable
class HasCpu(Protocol):
    """A `Loop` that knows what its calls used of processors: work of several processes, or of waiting."""

    def cpu_per_call(self) -> float:
        """Return processor time a call, in ns."""


class Statement:
    """A Python statement in a loop, compiled once, in which each of `names` is a local variable."""

    def __init__(self, statement: str, **names: object) -> None:
        parameters = "".join(f", {name}" for name in names)
        source = f"""
def timed(rounds_, clock_{parameters}):
    start_ = clock_()
    for _ in rounds_:
        {statement}
    return clock_() - start_
"""
        scope: dict[str, Any] = {}
        exec(compile(source, f"<{statement}>", "exec"), scope)
        self._timed = scope["timed"]
        self._values = tuple(names.values())

    def __call__(self, n: int) -> int:
        return int(self._timed(repeat(None, n), time.perf_counter_ns, *self._values))


#: What every `Statement` costs beside its work.
EMPTY = Statement("pass")


@dataclass(frozen=True)
class Above:
    """Work that stands on system calls; and its floor: those calls alone, on the same memory, in C.

    What is spent beyond the floor is reported. Each contestant has a floor of its own, because what a system
    call costs depends on the mapping. None where there is no C compiler.
    """

    floor: Loop | None
    work: Loop


#: Who runs: None for a contestant that cannot do this work here, which the table shows as a dash.
Contestants = Mapping[str, Loop | Above | None]


#: Half of the last digit that a ratio is printed with: a target holds if it holds as printed.
HALF_A_DIGIT = 0.005


@dataclass(frozen=True)
class Target:
    """What a contestant should cost at most: a multiple of another's cost, and so many ns more."""

    of: str
    to: str
    at_most: float
    plus_ns: float = 0

    def __str__(self) -> str:
        plus = f" + {self.plus_ns:g} ns" if self.plus_ns else ""
        return f"{self.of} ≤ {self.at_most:g} × {self.to}{plus}"

    def allowed(self, other: float) -> float:
        return (self.at_most + HALF_A_DIGIT) * other + self.plus_ns


@dataclass(frozen=True)
class Race:
    """One piece of work and who does it."""

    name: str
    #: Whom ratios are to.
    peer: str
    targets: Sequence[Target]
    enter: Callable[[ExitStack], Contestants]
    #: At most so many rounds, where one takes seconds.
    most_rounds: int | None = None


def race(
    name: str, *, peer: str, targets: Sequence[Target] = (), most_rounds: int | None = None
) -> Callable[[Callable[[ExitStack], Contestants]], Race]:
    """Make a race of a function that sets its contestants up; the `ExitStack` ends what it made."""
    return lambda enter: Race(name, peer, targets, enter, most_rounds)


@dataclass(frozen=True)
class Effort:
    """How long to try."""

    rounds: int
    loop_ns: int

    @classmethod
    def full(cls) -> Effort:
        return cls(rounds=100, loop_ns=2_000_000)

    @classmethod
    def quick(cls) -> Effort:
        return cls(rounds=5, loop_ns=100_000)


@dataclass(frozen=True)
class Summary:
    """Nanoseconds per call."""

    minimum: float
    median: float
    #: How far off the median may be: two standard errors.
    uncertainty: float

    @classmethod
    def of(cls, samples: Sequence[float], minimum: float | None = None) -> Summary:
        lower, _, upper = statistics.quantiles(samples, n=4)
        # Of normal samples the quartiles are 1.35 deviations apart, and the median's error is 1.25 deviations
        # over the root of their number.
        error = 1.25 * (upper - lower) / 1.35 / math.sqrt(len(samples))
        return cls(min(samples) if minimum is None else minimum, statistics.median(samples), 2 * error)

    @property
    def is_noise(self) -> bool:
        return self.median <= self.uncertainty


@dataclass(frozen=True)
class Ratio:
    """One contestant's cost as a multiple of another's. None where either is missing or lost in noise."""

    minima: float | None
    medians: float | None

    @classmethod
    def between(cls, one: Summary | None, other: Summary | None) -> Ratio:
        if one is None or other is None or one.is_noise or other.is_noise:
            return cls(None, None)
        return cls(one.minimum / other.minimum if other.minimum > 0 else None, one.median / other.median)


@dataclass(frozen=True)
class Row:
    """How one contestant did. The figures are None for who did not run."""

    contestant: str
    cost: Summary | None
    to_peer: Ratio
    floor: Summary | None
    beyond: Summary | None
    beyond_to_peer: Ratio
    #: Processor time a call, in ns, of all processes that took part: None where it is not measured.
    cpu: float | None = None


@dataclass(frozen=True)
class Verdict:
    """How a target fared: on what is spent beyond the floors where there are any, else on the whole cost."""

    target: Target
    ratio: Ratio
    word: str

    @classmethod
    def on(cls, target: Target, cost: Mapping[str, Summary]) -> Verdict:
        one, other = cost.get(target.of), cost.get(target.to)
        ratio = Ratio.between(one, other)
        held: set[bool] = set()
        if one and other and ratio.medians is not None:
            held = {one.median <= target.allowed(other.median), one.minimum <= target.allowed(other.minimum)}
        elif one and other:
            held = cls._in_noise(one, other, target)
        word = "—" if not held else "open" if len(held) == 2 else "held" if True in held else "missed"
        return cls(target, ratio, word)

    @staticmethod
    def _in_noise(one: Summary, other: Summary, target: Target) -> set[bool]:
        """Judge by how large and how small the medians can be, where a ratio would say nothing."""
        if one.median - one.uncertainty > target.allowed(other.median + other.uncertainty):
            return {False}
        if one.median + one.uncertainty <= target.allowed(other.median - other.uncertainty):
            return {True}
        return set()


@dataclass(frozen=True)
class Result:
    """How a race went."""

    name: str
    peer: str
    has_floors: bool
    rows: Sequence[Row]
    verdicts: Sequence[Verdict]


# ---- running ----------------------------------------------------------------------------------------


@contextmanager
def _without_collector() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _calibrated(run: Loop, loop_ns: int) -> int:
    """How often to do the work in one timed loop. Warms up by the way."""
    n = 1
    while (spent := run(n)) < loop_ns // 2:
        n *= 2
    return max(1, n * loop_ns // spent)


def _sample(loops: Iterable[Loop], effort: Effort) -> dict[Loop, list[float]]:
    """Time every loop once a round, in changing order. Returns ns per call, by round."""
    calls = {run: _calibrated(run, effort.loop_ns) for run in loops}
    samples: dict[Loop, list[float]] = {run: [] for run in loops}
    order = list(loops)
    # The same orders every time: a run can be repeated.
    shuffle = random.Random(1).shuffle
    for _ in range(effort.rounds):
        shuffle(order)
        for run in order:
            samples[run].append(run(calls[run]) / calls[run])
    return samples


def run(race: Race, effort: Effort) -> Result:
    """Hold a race."""
    if race.most_rounds is not None:
        effort = replace(effort, rounds=min(effort.rounds, race.most_rounds))
    with ExitStack() as scope:
        contestants = race.enter(scope)
        if race.peer not in contestants:
            raise ValueError(f"race {race.name!r} has no contestant {race.peer!r}")
        work: dict[str, Loop] = {}
        floor: dict[str, Loop] = {}
        for name, contestant in contestants.items():
            if isinstance(contestant, Above):
                work[name] = contestant.work
                if contestant.floor:
                    floor[name] = contestant.floor
            elif contestant:
                work[name] = contestant
        with _without_collector():
            samples = _sample(dict.fromkeys([EMPTY, *work.values(), *floor.values()]), effort)
    empty = min(samples[EMPTY])
    for loop in samples:
        if isinstance(loop, Statement):
            samples[loop] = [sample - empty for sample in samples[loop]]
    return judge(
        race,
        contestants,
        {name: samples[loop] for name, loop in work.items()},
        {name: samples[loop] for name, loop in floor.items()},
        _cpu(work),
    )


def _cpu(work: Mapping[str, object]) -> dict[str, float]:
    return {name: loop.cpu_per_call() for name, loop in work.items() if isinstance(loop, HasCpu)}


def _beyond(spent: Sequence[float], floor: Sequence[float]) -> Summary:
    """Return what is spent beyond the floor. The median is of rounds: what slows the machine slows both."""
    differences = [total - unavoidable for total, unavoidable in zip(spent, floor, strict=True)]
    return Summary.of(differences, minimum=min(spent) - min(floor))


def judge(
    race: Race,
    names: Iterable[str],
    work: Mapping[str, Sequence[float]],
    floors: Mapping[str, Sequence[float]],
    cpu: Mapping[str, float] = MappingProxyType({}),
) -> Result:
    """Make the figures of a race from what calls, and their floors, took: in ns, by round.

    cpu: what calls used of processors, in ns, where that is known.
    """
    cost = {name: Summary.of(samples) for name, samples in work.items()}
    floor = {name: Summary.of(samples) for name, samples in floors.items()}
    beyond = {name: _beyond(work[name], samples) for name, samples in floors.items()}
    rows = [
        Row(
            name,
            cost.get(name),
            Ratio.between(cost.get(name), cost.get(race.peer)),
            floor.get(name),
            beyond.get(name),
            Ratio.between(beyond.get(name), beyond.get(race.peer)),
            cpu.get(name),
        )
        for name in names
    ]
    verdicts = [Verdict.on(target, beyond or cost) for target in race.targets]
    return Result(race.name, race.peer, bool(floors), rows, verdicts)


# ---- saying -----------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """Return what a reader must know of where it ran."""
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor,
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _ns(value: float | None) -> str:
    return "—" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[0] = cells[0].ljust(widths[0])
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def markdown(result: Result) -> str:
    """Return one race as a Markdown section."""
    header = ["contestant", "min ns", "median ns", f"min ÷ {result.peer}", f"median ÷ {result.peer}"]
    if result.has_floors:
        header += [
            "floor: min ns",
            "median ns",
            "beyond: min ns",
            "median ns",
            f"min ÷ {result.peer}",
            f"median ÷ {result.peer}",
        ]
    shows_cpu = any(row.cpu is not None for row in result.rows)
    if shows_cpu:
        header += ["CPU ns"]
    rows = []
    for row in result.rows:
        cells = [row.contestant, *_figures(row.cost), *map(_ratio, (row.to_peer.minima, row.to_peer.medians))]
        if result.has_floors:
            cells += _figures(row.floor)
            cells += _figures(row.beyond)
            cells += map(_ratio, (row.beyond_to_peer.minima, row.beyond_to_peer.medians))
        if shows_cpu:
            cells.append(_ns(row.cpu))
        rows.append(cells)
    return f"### {result.name}\n\n{_table(header, rows)}\n"


def _figures(summary: Summary | None) -> list[str]:
    if summary is None:
        return ["—", "—"]
    doubt = f" ± {_ns(summary.uncertainty)}" if summary.is_noise else ""
    return [_ns(summary.minimum), _ns(summary.median) + doubt]


def _verdicts(results: Sequence[Result]) -> str:
    header = ["race", "target", "minima", "medians", "verdict"]
    rows = [
        [
            result.name,
            str(verdict.target),
            _ratio(verdict.ratio.minima),
            _ratio(verdict.ratio.medians),
            verdict.word,
        ]
        for result in results
        for verdict in result.verdicts
    ]
    return f"### Targets\n\n{_table(header, rows)}\n" if rows else ""


def main(*races: Race, notes: Sequence[str] = ()) -> None:
    """Hold the races that the command line asks for, and print them. How fast anybody was never fails it."""
    title = (sys.modules["__main__"].__doc__ or "").strip().partition("\n")[0]
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="a second or two, to see that it runs")
    parser.add_argument("--only", metavar="NAME", action="append", help="only races with NAME in their name")
    parser.add_argument("--json", metavar="PATH", type=Path, help="write the results there, too")
    arguments = parser.parse_args()

    parts = arguments.only or [""]
    wanted = [race for race in races if any(part in race.name for part in parts)]
    if not wanted:
        parser.error(f"no race has that in its name: {', '.join(race.name for race in races)}")
    effort = Effort.quick() if arguments.quick else Effort.full()
    facts = machine()

    print(f"## {title}\n")
    print("; ".join(f"{name} {value}" for name, value in facts.items()) + ".")
    print(f"{effort.rounds} rounds in changing order, {effort.loop_ns / 1e6:g} ms a loop.", end=" ")
    print(*(LEFT_OUT, *notes), sep="\n", end="\n\n")
    results = []
    for race in wanted:
        results.append(run(race, effort))
        print(markdown(results[-1]), flush=True)
    print(_verdicts(results), end="")
    if arguments.json:
        everything = {
            "benchmark": title,
            "machine": facts,
            "effort": asdict(effort),
            "races": [asdict(result) for result in results],
        }
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")
