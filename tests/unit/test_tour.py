"""The sections of the tour, one by one and together, on systems that allow much and little."""

import ast
import ctypes
import errno
import hmac
import json
import multiprocessing.reduction  # noqa: F401 - later, without rights, it may not be found
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import mmkit
from mmkit import linux, maps
from mmkit.flags import IpcFlag, LockFlag, ShmCommand
from mmkit.heap import HeapBlock
from mmkit.shared.array_type import SharedArray
from mmkit.tour import SECTIONS, Outcome, run
from mmkit.tour.pictures import Fill
from support import NOBODY, SANITIZED, in_child, left_for_good, needs_root, x86_64

pytestmark = pytest.mark.skipif(
    SANITIZED, reason="a sanitizer's malloc needs no break, and its mlock does nothing"
)
COMMAND = [sys.executable, "-c", "from mmkit.cli import main; main(['tour'])"]
EVERY_SECTION = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.key)
# System calls by their numbers on x86-64, for seccomp filters.
MPROTECT, MADVISE, SHMGET, FORK, FTRUNCATE, MLOCK = 10, 28, 29, 57, 77, 149
PROCESS_VM_READV, MEMFD_SECRET, CACHESTAT = 310, 447, 451


class Nobody:
    """An audience that does not look."""

    def section_begins(self, number, section): ...

    def step_ended(self, step): ...


def play(section):
    return [step for steps in run([section], Nobody()).values() for step in steps]


def the_section(key):
    (section,) = (section for section in SECTIONS if section.key == key)
    return section


def failures(steps):
    return [
        (step.title, step.mistake, [check.claim for check in step.checks if not check.holds])
        for step in steps
        if step.outcome is Outcome.FAILED
    ]


def be_dumpable():
    """Who gives up root may not look into its own /proc any more, until it executes something."""
    assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0


def left_behind():
    """What could outlive a process: System V segments, names in /dev/shm, files."""
    segments = {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}
    names = {path.name for path in Path("/dev/shm").iterdir() if "tour" in path.name}
    files = {path.name for folder in ("/tmp", "/var/tmp") for path in Path(folder).glob("mmkit-tour-*")}
    return segments | names | files


@pytest.fixture
def leaves_nothing():
    before = left_behind()
    yield
    assert left_for_good(left_behind, before) == set()


# ---- every step does what it claims -----------------------------------------------------------------


@EVERY_SECTION
def test_every_step_does_what_it_claims(section, leaves_nothing):
    steps = in_child(lambda: play(section))
    assert failures(steps) == []
    assert [step.title for step in steps] == [title for scene in section.scenes for title in scene.titles]
    assert all(step.checks for step in steps if step.outcome is Outcome.DONE)


@needs_root
@EVERY_SECTION
def test_every_step_does_what_it_claims_for_a_user_without_rights(section, leaves_nothing):
    steps = in_child(lambda: (be_dumpable(), play(section))[1], user=NOBODY)
    assert failures(steps) == []
    assert Outcome.DONE in {step.outcome for step in steps}


@EVERY_SECTION
def test_a_section_leaves_no_region_no_descriptor_and_no_child(section):
    def leftovers():
        play(section)
        before = sorted(os.listdir("/proc/self/fd"))
        play(section)
        after = sorted(os.listdir("/proc/self/fd"))
        try:
            children = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            children = None
        return before == after, mmkit.regions(), children

    assert in_child(leftovers) == (True, [], None)


@EVERY_SECTION
def test_every_step_shows_the_call_in_both_languages_and_the_answer(section):
    for step in in_child(lambda: play(section)):
        if step.outcome is Outcome.NOT_REACHED:
            continue
        assert step.calls, step.title
        for call in step.calls:
            assert call.c.endswith((";", "}")), call
            assert call.kernel, call
            assert not call.name or call.c.endswith(f"{call.name}({', '.join(call.arguments)});")


@EVERY_SECTION
def test_what_is_shown_as_python_uses_names_that_mmkit_has(section):
    homes = {
        "linux": linux,
        "maps": maps,
        "Region": mmkit.Region,
        "region": mmkit.Region,
        "segment": mmkit.SharedMemory,
        "Secret": mmkit.Secret,
        "key": mmkit.Secret,
        "hmac": hmac,
        "heap": mmkit.Heap,
        "block": HeapBlock,
        "shared": mmkit.shared,
        "memory": mmkit.SystemVMemory,
        "lock": mmkit.shared.Lock,
        "channel": mmkit.Channel,
        "array": SharedArray,
        "Prot": mmkit.Prot,
        "Advice": mmkit.Advice,
        "MapFlag": mmkit.MapFlag,
        "LockFlag": LockFlag,
        "IpcFlag": IpcFlag,
        "ShmCommand": ShmCommand,
        "os": os,
        "tempfile": tempfile,
        "bytes": bytes,
    }
    for step in in_child(lambda: play(section)):
        for python in [*step.prepared, *(call.python for call in step.calls)]:
            for node in ast.walk(ast.parse(python)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    assert hasattr(homes[node.value.id], node.attr), python


@pytest.mark.parametrize("folder", ["/dev/shm", "/var/tmp"])
def test_what_the_first_touch_of_a_file_brings_in_is_said_as_it_was(folder):
    def touched():
        tempfile.tempdir = folder
        return play(the_section("file"))[1]

    step = in_child(touched)
    before, after = step.pictures
    neighbours = after.fill.count(Fill.RESIDENT) - before.fill.count(Fill.RESIDENT) > 1
    assert ("neighbours" in step.calls[0].kernel) == neighbours


def test_what_the_child_answered_is_in_the_last_picture_of_the_parent():
    steps = in_child(lambda: play(the_section("shared")))
    answered = [step for step in steps if step.title.endswith("answers there") and step.pictures]
    assert [step.pictures[-1].holds for step in answered] == [("ask", "", "yes", "")] * len(answered)
    assert answered


# ---- faults -----------------------------------------------------------------------------------------


def test_forbidden_accesses_are_shown_as_signals_of_c_and_as_exceptions_of_mmkit():
    steps = in_child(lambda: play(the_section("protection")))
    faults = [call for step in steps for call in step.calls if call.death]
    assert [(call.death.signal, call.death.code) for call in faults[:4]] == [
        ("SIGSEGV", "SEGV_ACCERR"),
        ("SIGSEGV", "SEGV_ACCERR"),
        ("SIGSEGV", "SEGV_ACCERR"),
        ("SIGSEGV", "SEGV_MAPERR"),
    ]
    assert (faults[-1].death.signal, faults[-1].death.code) == ("SIGBUS", "BUS_ADRERR")
    assert all(call.raised.startswith("MemoryFault: ") for call in faults)


def test_the_six_mistakes_are_made_and_what_the_kernel_refuses_of_them_is_no_refused_step():
    steps = in_child(lambda: play(the_section("pitfalls")))
    assert [number in " ".join(step.title for step in steps) for number in "123456"] == [True] * 6
    assert {step.outcome for step in steps} == {Outcome.DONE}
    refused = [call for step in steps for call in step.calls if call.errno]
    assert [call.errno for call in refused] == ["ENOMEM", "EINVAL"]
    # With what mmkit advises to do.
    assert [len(call.raised.splitlines()) for call in refused] == [2, 2]


# ---- what the system refuses ------------------------------------------------------------------------


@needs_root
def test_a_limit_on_locked_memory_is_shown_as_refused_with_the_reason():
    limits = {resource.RLIMIT_MEMLOCK: 0}
    steps = in_child(lambda: (be_dumpable(), play(the_section("locking")))[1], user=NOBODY, limits=limits)
    assert {step.outcome for step in steps} == {Outcome.REFUSED, Outcome.NOT_REACHED}
    assert "RLIMIT_MEMLOCK" in steps[0].refusal.why
    assert steps[0].calls[-1].errno == "EPERM"


def test_a_limit_on_the_size_of_files_is_shown_as_refused():
    limits = {resource.RLIMIT_FSIZE: 1 << 16}
    steps = in_child(lambda: play(the_section("advice")), limits=limits)
    assert failures(steps) == []
    assert steps[0].outcome is Outcome.REFUSED
    assert steps[0].refusal.error.startswith("EFBIG")
    assert steps[-1].outcome is Outcome.DONE


@x86_64
@pytest.mark.parametrize(
    ("refused", "key", "title"),
    [
        ((SHMGET, errno.ENOSYS), "shared", "System V: make a segment"),
        ((MLOCK, errno.EPERM), "locking", "Lock four pages"),
        ((MEMFD_SECRET, errno.ENOSYS), "locking", "Secret memory"),
        ((PROCESS_VM_READV, errno.EPERM), "layout", "Read the bytes there"),
        ((FTRUNCATE, errno.EPERM), "protection", "A file cut short"),
        (((MPROTECT, mmkit.Prot.READ), errno.EACCES), "protection", "Half of it"),
        (((MADVISE, mmkit.Advice.COLLAPSE), errno.EINVAL), "pages", "Ordinary pages"),
        (((MADVISE, mmkit.Advice.POPULATE_READ), errno.EINVAL), "advice", "POPULATE_READ"),
        (((MADVISE, mmkit.Advice.FREE), errno.EINVAL), "advice", "FREE"),
    ],
)
def test_what_a_sandbox_or_an_old_kernel_has_not_is_refused_and_the_rest_goes_on(refused, key, title):
    steps = in_child(lambda: play(the_section(key)), refuse=[refused])
    assert failures(steps) == []
    (step,) = (step for step in steps if step.title.startswith(title))
    assert step.outcome is Outcome.REFUSED
    assert step.refusal.why
    assert Outcome.DONE in {step.outcome for step in steps}


@x86_64
@pytest.mark.parametrize("key", ["pages", "protection"])
def test_before_linux_6_13_the_guard_is_shown_as_the_protection_that_it_is(key):
    refuse = [((MADVISE, advice), errno.EINVAL) for advice in (102, 103)]
    steps = in_child(lambda: play(the_section(key)), refuse=refuse)
    assert failures(steps) == []
    if key == "pages":
        (guard,) = (step for step in steps if step.title.startswith("A guard page"))
        assert guard.calls[0].c.startswith("mprotect(p + ")


@x86_64
@EVERY_SECTION
def test_without_cachestat_and_process_vm_readv_nothing_is_claimed_that_is_not_so(section):
    refuse = [(number, errno.EPERM) for number in (PROCESS_VM_READV, PROCESS_VM_READV + 1)]
    refuse.append((CACHESTAT, errno.ENOSYS))
    assert failures(in_child(lambda: play(section), refuse=refuse)) == []


# ---- the whole command ------------------------------------------------------------------------------


def test_in_a_pipe_there_are_no_control_codes_and_80_columns_suffice(leaves_nothing):
    begun = time.monotonic()
    result = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - begun < 10
    assert result.returncode == 0, result.stdout[-2000:]
    assert result.stderr == ""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", result.stdout)
    for line in result.stdout.splitlines():
        assert len(line) <= 80, line
        assert line == line.rstrip()


def test_all_sections_are_in_the_document_and_all_their_checks_hold(leaves_nothing):
    command = [*COMMAND[:2], COMMAND[2].replace("'tour'", "'tour', '--json'")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    document = json.loads(result.stdout)
    assert [section["key"] for section in document["sections"]] == [section.key for section in SECTIONS]
    for section in document["sections"]:
        for step in section["steps"]:
            assert all(check["holds"] for check in step["checks"]), step
            if step["outcome"] == "done":
                assert step["checks"]
                assert all(call["checked"] for call in step["calls"]), step


@pytest.mark.parametrize("read", [1, 200])
@pytest.mark.parametrize("option", [[], ["--plain"], ["--json"]], ids=str)
def test_a_pipe_that_is_closed_early_ends_it_quietly_as_the_signal_would(option, read, leaves_nothing):
    command = [*COMMAND[:2], COMMAND[2].replace("'tour'", ", ".join(map(repr, ["tour", *option])))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        for _ in range(read):
            running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
        # A short document may be in the pipe before it is closed.
        assert running.wait(timeout=20) in (128 + signal.SIGPIPE, 0 if "--json" in option else None)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
@pytest.mark.parametrize("seen", ["━━ 3", "━━ 5", "━━ 6", "System V", "Let go", "━━ 8", "━━ 9", "━━ 11"])
def test_an_interrupted_tour_leaves_nothing_behind(seen, how, leaves_nothing):
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            if seen in line:
                break
        running.send_signal(how)
        running.stdout.read()
        status = running.wait(timeout=20)
    # It may have come to its end before the signal came.
    assert status in (0, 130 if how == signal.SIGINT else -how)
