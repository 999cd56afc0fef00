"""What a tour did, as data: the calls by name, and a document for programs."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from mmkit.region import PAGE_SIZE
from mmkit.tour.engine import Section
from mmkit.tour.step import Call, Outcome, Step

__all__ = ["IMPORTS", "Tally", "document", "tally"]

#: What the statements in Python need; the rest is from the steps before them in their section.
IMPORTS = (
    "import hmac, os, tempfile",
    "from mmkit import Advice, Heap, MapFlag, Prot, Region, Secret, SharedMemory",
    "from mmkit import linux, maps, peek, poke, shared",
    "from mmkit.flags import IpcFlag, LockFlag, ShmCommand",
    "from mmkit.secret import find_copies",
)


@dataclass(frozen=True)
class Tally:
    """How often a call was made, and how often the kernel refused it."""

    name: str
    made: int
    refused: int


def tally(played: Mapping[str, Sequence[Step]]) -> list[Tally]:
    """Count the calls that steps have recorded, by name; loads and stores have none."""
    calls = [call for steps in played.values() for step in steps for call in step.calls if call.name]
    made: Counter[str] = Counter()
    for call in calls:
        made[call.name] += call.times
    refused = Counter(call.name for call in calls if call.errno)
    return [Tally(name, made[name], refused[name]) for name in sorted(made)]


def document(
    sections: Sequence[Section], played: Mapping[str, Sequence[Step]], seconds: float
) -> dict[str, object]:
    """Lay out a tour for JSON.

    Parameters
    ----------
    sections
        All there are.
    played
        What `run` returned.
    seconds
        How long it took.

    Returns
    -------
    dict
        Of strings, numbers, booleans, None, lists and dicts.
    """
    steps = [step for each in played.values() for step in each]
    return {
        "system": {
            "kernel": platform.release(),
            "machine": platform.machine(),
            "page_size": PAGE_SIZE,
            "pid": os.getpid(),
        },
        "seconds": round(seconds, 3),
        "imports": IMPORTS,
        "steps": {outcome.value: sum(step.outcome is outcome for step in steps) for outcome in Outcome},
        "calls": [asdict(each) for each in tally(played)],
        "sections": [
            {"key": each.key, "title": each.title, "steps": [_step(step) for step in played[each.key]]}
            for each in sections
            if each.key in played
        ],
    }


def _step(step: Step) -> dict[str, object]:
    return {
        "number": step.number or None,
        "title": step.title,
        "outcome": step.outcome.value,
        "prepared": step.prepared,
        "calls": [_call(step, call) for call in step.calls],
        "checks": [{"claim": check.claim, "holds": check.holds} for check in step.checks],
        "notes": step.notes,
        "refusal": asdict(step.refusal) if step.refusal else None,
        "mistake": step.mistake or None,
    }


def _call(step: Step, call: Call) -> dict[str, object]:
    return {
        "name": call.name or None,
        "arguments": call.arguments,
        "c": call.c,
        "python": call.python,
        "result": call.returned,
        "times": call.times,
        "errno": call.errno or None,
        "signal": asdict(call.death) if call.death else None,
        "raised": call.raised or None,
        "kernel": call.kernel,
        "checked": bool(step.checks_of(call)),
        "outcome": step.outcome_of(call).value,
    }
