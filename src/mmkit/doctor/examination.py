"""All findings together: features asked for, facts read, and their form for programs."""

from __future__ import annotations

import errno
import os
import re
from typing import NamedTuple

from mmkit.doctor.confinement import confinement, control_group, has_capability
from mmkit.doctor.fact import Fact
from mmkit.doctor.limits import process_limits, shared_memory
from mmkit.doctor.machine import huge_pages, memory, policies, versions
from mmkit.features import FEATURES, Answer, Feature, ask_all

__all__ = ["Examination", "Finding", "document", "examine"]

#: Raised when a field changes its meaning or goes; new ones may come without.
_FORMAT = 1


class Finding(NamedTuple):
    """A feature, and what the kernel said of it."""

    feature: Feature
    answer: Answer
    #: What to change to have it; empty where it works.
    change: str


class Examination(NamedTuple):
    """What `examine` found."""

    findings: list[Finding]
    facts: list[Fact]


def examine() -> Examination:
    """Ask for every feature, and read every limit, as far as this process may."""
    answers = ask_all(FEATURES)
    findings = [
        Finding(feature, answer, _change(feature, answer))
        for feature, answer in zip(FEATURES, answers, strict=True)
    ]
    facts = [
        *versions(),
        *process_limits(has_capability("CAP_IPC_LOCK")),
        *memory(),
        *control_group(),
        *shared_memory(),
        *huge_pages(),
        *policies(),
        *confinement(),
    ]
    return Examination(findings, facts)


_BY_ERRNO = {
    errno.ENOMEM: "memory, address space or areas are exhausted: see RLIMIT_AS and vm.max_map_count below",
    errno.EAGAIN: "a limit of the process is reached: see the limits below",
    errno.EFBIG: "raise RLIMIT_FSIZE (`ulimit -f`)",
}
_BY_ERRNO_OF_ASKING = {
    errno.EMFILE: "raise RLIMIT_NOFILE (`ulimit -n`)",
    errno.ENFILE: "raise fs.file-max: the machine has too many open files",
    errno.EAGAIN: "no child process can be had: raise RLIMIT_NPROC (`ulimit -u`), or pids.max of the cgroup",
    errno.ENOMEM: "no child process can be had: memory is exhausted",
}
#: With these a kernel says that it does not know a thing; 0 when it says nothing.
_REFUSALS = (0, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY)


def _change(feature: Feature, answer: Answer) -> str:
    if answer.works:
        return ""
    if answer.signal:
        return "a seccomp filter kills who makes this call: allow it, or have it answer an errno"
    if answer.works is None and answer.errno:
        cure = _BY_ERRNO_OF_ASKING.get(answer.errno) or feature.changes.get(answer.errno)
        return f"it could not be asked: {cure or os.strerror(answer.errno)}"
    # With no errno to tell, what is said under 0 is all there is.
    said = feature.changes.get(answer.errno) or feature.changes.get(0)
    if answer.errno in _REFUSALS and not _is_as_new_as(feature.since):
        return f"Linux {feature.since} or later"
    if said:
        return said
    if answer.errno in (errno.EPERM, errno.EACCES):
        return "a seccomp profile or a security module refuses it"
    if answer.errno in _REFUSALS:
        return "the kernel was built without it, or a seccomp profile refuses it"
    return _BY_ERRNO.get(answer.errno, os.strerror(answer.errno))


def _is_as_new_as(since: str) -> bool:
    return _numbers(os.uname().release) >= _numbers(since)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release)[:3]))


def document(examination: Examination) -> dict[str, object]:
    """Lay out an examination for JSON, as docs/doctor.md describes it."""
    return {
        "format": _FORMAT,
        "features": [
            {
                "name": feature.name,
                "group": feature.group,
                "works": answer.works,
                "answer": answer.word,
                "errno": answer.errno or None,
                "since": feature.since,
                "change": change or None,
            }
            for feature, answer, change in examination.findings
        ],
        "facts": [
            {
                "name": fact.name,
                "group": fact.group,
                "value": fact.value,
                "unit": fact.unit or None,
                "used": fact.used,
                "means": fact.means,
                "change": fact.change or None,
            }
            for fact in examination.facts
        ],
    }
