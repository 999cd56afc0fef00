import ast
import ctypes
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

import mmkit
from mmkit import linux, maps
from mmkit.cli import main
from mmkit.flags import IpcFlag, LockFlag, ShmCommand
from mmkit.tour import SECTIONS, Outcome, Section, run
from mmkit.tour.company import in_a_child, scratch_file, uninterrupted
from mmkit.tour.drawing import draw
from mmkit.tour.pictures import Fill, Strip, strip
from support import NOBODY, in_child, needs_root, x86_64

COMMAND = [sys.executable, "-c", "from mmkit.cli import main; main(['tour'])"]
EVERY_SECTION = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.key)
# System calls by their numbers on x86-64, for seccomp filters.
MADVISE, SHMGET, MLOCK, PROCESS_VM_READV, MEMFD_SECRET = 28, 29, 149, 310, 447
# The command as an attribute of mmkit.cli hides the module of the same name.
CLI_TOUR = "mmkit.cli.tour"


class Nobody:
    """An audience that does not look."""

    def section_begins(self, number, section): ...

    def step_ended(self, step): ...


def play(*sections):
    return [step for steps in run(sections, Nobody()).values() for step in steps]


def outcomes(*sections):
    return {step.title: step.outcome for step in play(*sections)}


def failures(steps):
    return [
        (step.title, step.mistake, [check.claim for check in step.checks if not check.holds])
        for step in steps
        if step.outcome is Outcome.FAILED
    ]


def be_dumpable():
    """Who gives up root may not look into its own /proc any more, until it executes something."""
    assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0


def a_section(*scenes):
    return Section(key="made-up", title="Made up", introduction="For a test.", scenes=scenes)


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
    # Other tests of this machine may have segments of their own; nothing new may stay.
    deadline = time.monotonic() + 5
    while left_behind() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_behind() - before == set()


# ---- every step does what it claims -----------------------------------------------------------------


@EVERY_SECTION
def test_every_step_does_what_it_claims(section, leaves_nothing):
    steps = in_child(lambda: play(section))
    assert failures(steps) == []
    assert len(steps) >= len(section.scenes)
    assert all(step.checks for step in steps if step.outcome is Outcome.DONE)


@needs_root
@EVERY_SECTION
def test_every_step_does_what_it_claims_for_a_user_without_rights(section, leaves_nothing):
    steps = in_child(lambda: (be_dumpable(), play(section))[1], user=NOBODY)
    assert failures(steps) == []
    assert Outcome.DONE in {step.outcome for step in steps}


@EVERY_SECTION
def test_every_step_shows_the_call_in_both_languages_and_the_answer(section):
    for step in in_child(lambda: play(section)):
        assert step.calls, step.title
        for call in step.calls:
            assert call.c.endswith((";", "}")), call
            assert call.answer, call
            assert not call.name or call.c.endswith(f"{call.name}({', '.join(call.arguments)});")


@EVERY_SECTION
def test_what_is_shown_as_python_uses_names_that_mmkit_has(section):
    homes = {
        "linux": linux,
        "maps": maps,
        "Region": mmkit.Region,
        "region": mmkit.Region,
        "Prot": mmkit.Prot,
        "Advice": mmkit.Advice,
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


# ---- what the system refuses ------------------------------------------------------------------------


@needs_root
def test_a_limit_on_locked_memory_is_shown_as_refused_with_the_reason():
    (locking,) = (section for section in SECTIONS if section.key == "locking")
    limits = {resource.RLIMIT_MEMLOCK: 0}
    steps = in_child(lambda: (be_dumpable(), play(locking))[1], user=NOBODY, limits=limits)
    assert {step.outcome for step in steps} == {Outcome.REFUSED}
    assert "RLIMIT_MEMLOCK" in steps[0].refusal.why
    assert steps[0].calls[-1].answer == "-1 EPERM"


@x86_64
@pytest.mark.parametrize(
    ("refused", "key", "title"),
    [
        ((SHMGET, errno.ENOSYS), "shared", "System V: make a segment"),
        ((MLOCK, errno.EPERM), "locking", "Lock four pages"),
        ((MEMFD_SECRET, errno.ENOSYS), "locking", "Secret memory"),
        ((PROCESS_VM_READV, errno.EPERM), "layout", "Read the bytes there"),
        (((MADVISE, mmkit.Advice.COLLAPSE), errno.EINVAL), "pages", "Ordinary pages"),
        (((MADVISE, mmkit.Advice.POPULATE_READ), errno.EINVAL), "advice", "POPULATE_READ"),
    ],
)
def test_what_a_sandbox_or_an_old_kernel_has_not_is_refused_and_the_rest_goes_on(refused, key, title):
    (section,) = (section for section in SECTIONS if section.key == key)
    steps = in_child(lambda: play(section), refuse=[refused])
    assert failures(steps) == []
    (step,) = (step for step in steps if step.title.startswith(title))
    assert step.outcome is Outcome.REFUSED
    assert step.refusal.why
    assert Outcome.DONE in {step.outcome for step in steps}


@x86_64
def test_before_linux_6_13_the_guard_is_shown_as_the_protection_that_it_is():
    (pages,) = (section for section in SECTIONS if section.key == "pages")
    refuse = [((MADVISE, advice), errno.EINVAL) for advice in (102, 103)]
    steps = in_child(lambda: play(pages), refuse=refuse)
    assert failures(steps) == []
    (guard,) = (step for step in steps if step.title.startswith("A guard page"))
    assert guard.calls[0].c.startswith("mprotect(p + ")


@x86_64
@EVERY_SECTION
def test_without_process_vm_readv_nothing_is_claimed_that_is_not_so(section):
    refuse = [(PROCESS_VM_READV, errno.EPERM), (PROCESS_VM_READV + 1, errno.EPERM)]
    assert failures(in_child(lambda: play(section), refuse=refuse)) == []


# ---- the engine -------------------------------------------------------------------------------------


def test_a_claim_that_does_not_hold_fails_the_step_and_the_scene_goes_on():
    def scene(stage):
        with stage.step("wrong") as step:
            step.check("two and two are five", 2 + 2 == 5)
        with stage.step("right") as step:
            step.check("two and two are four", 2 + 2 == 4)

    assert outcomes(a_section(scene)) == {"wrong": Outcome.FAILED, "right": Outcome.DONE}


def test_an_errno_that_is_no_refusal_fails_the_step():
    def scene(stage):
        with stage.step("a bad descriptor"):
            os.fstat(1 << 20)

    assert outcomes(a_section(scene)) == {"a bad descriptor": Outcome.FAILED}


def test_what_a_refused_step_would_have_made_is_not_needed_by_the_next_scene():
    def refused(stage):
        with stage.step("refused"):
            raise PermissionError(errno.EPERM, "no")
        raise AssertionError("the scene is over")

    def next_scene(stage):
        with stage.step("next"):
            pass

    assert outcomes(a_section(refused, next_scene)) == {"refused": Outcome.REFUSED, "next": Outcome.DONE}


def test_steps_done_in_one_go_are_told_when_all_are_done():
    told = []

    class Listener(Nobody):
        def step_ended(self, step):
            told.append(step.title)

    def scene(stage):
        with stage.in_one_go():
            with stage.step("one"):
                pass
            with stage.step("two"):
                assert told == []
                raise PermissionError(errno.EPERM, "no")

    run([a_section(scene)], Listener())
    assert told == ["one", "two"]


def test_a_mistake_between_two_steps_is_a_failure_too():
    def scene(stage):
        raise KeyError("forgotten")

    (step,) = play(a_section(scene))
    assert step.outcome is Outcome.FAILED
    assert "forgotten" in step.mistake


def test_an_exception_of_the_child_is_raised_in_the_parent():
    with pytest.raises(ZeroDivisionError):
        in_a_child(lambda: 1 // 0)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_child_that_dies_is_an_error_and_no_hang():
    with pytest.raises(RuntimeError, match="without an answer"):
        in_a_child(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_an_interruption_waits_until_names_are_gone():
    reached = []

    def work():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end of the block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached


def test_a_scratch_file_has_no_name():
    before = left_behind()
    with scratch_file(b"abc") as fd:
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 10, 0) == b"abc"
        assert left_behind() == before


# ---- pictures ---------------------------------------------------------------------------------------


def test_a_strip_shows_each_page_as_it_is():
    page = mmkit.PAGE_SIZE
    with mmkit.Region.anonymous(4 * page) as region:
        region[0:3] = b"abc"
        region[page] = 1
        region.protect(mmkit.Prot.NONE, page, page)
        region.lock(2 * page, page)
        picture = strip("now", region, holds=True)
    assert picture.access == ("rw-", "---", "rw-", "rw-")
    assert picture.fill == (Fill.RESIDENT, Fill.RESIDENT, Fill.LOCKED, Fill.NOTHING)
    assert picture.holds == ("abc", "", "0", "")


def test_strips_stand_side_by_side_as_far_as_they_fit():
    def of(pages):
        return Strip("here", 0x7F0000000000, 4096, ("rw-",) * pages, (Fill.NOTHING,) * pages)

    assert len(draw([of(8), of(8)], 76)) == 6
    assert len(draw([of(8), of(8)], 75)) == 12
    for width in (40, 60, 76, 108):
        assert max(line.cell_len for line in draw([of(8), of(8), of(4)], width)) <= width


# ---- the command ------------------------------------------------------------------------------------


def tour():
    return CliRunner().invoke(main, ["tour"])


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


@pytest.mark.parametrize("how", [["-m", "mmkit"], ["mmkit"]], ids=["module", "script"])
def test_the_commands_at_the_end_work_where_mmkit_is_not_on_path(how, tmp_path):
    script = tmp_path / "mmkit"
    script.write_text(f"#!{sys.executable}\nfrom mmkit.cli import main; main()\n")
    script.chmod(0o755)
    command = [sys.executable, *how] if how[0] == "-m" else [str(script)]
    environment = os.environ | {"PATH": "/usr/bin:/bin"}
    shown = subprocess.run([*command, "tour"], capture_output=True, text=True, check=True, env=environment)
    (again,) = (line.removesuffix("| less") for line in shown.stdout.splitlines() if line.endswith("| less"))
    assert again.split() == [*command, "tour"]


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_gets_colours_and_no_line_too_long(width, monkeypatch):
    terminal = partial(Console, force_terminal=True, width=width)
    monkeypatch.setattr(sys.modules[CLI_TOUR], "Console", terminal)
    result = tour()
    assert "\x1b[" in result.output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    assert max(map(len, plain.splitlines())) <= width


def test_a_terminal_without_box_drawing_gets_plain_letters():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(COMMAND, capture_output=True, timeout=60, check=False, env=environment)
    assert result.returncode == 0
    assert b"|rw-|###|" not in result.stdout
    assert b"|rw-|rw-|" in result.stdout


def test_every_section_is_introduced(monkeypatch):
    output = tour().output
    for number, section in enumerate(SECTIONS, 1):
        assert f"━━ {number} · {section.title} ━" in output
        assert section.introduction.split(". ")[0].split()[0] in output


def with_sections(monkeypatch, *sections):
    monkeypatch.setattr(sys.modules[CLI_TOUR], "SECTIONS", sections)


def test_the_exit_status_is_1_if_a_claim_does_not_hold(monkeypatch):
    def scene(stage):
        with stage.step("wrong") as step:
            step.check("black is white", False)

    with_sections(monkeypatch, a_section(scene))
    result = tour()
    assert result.exit_code == 1
    assert "✗ black is white" in result.output
    assert "1 did not do what it claims." in result.output


def test_the_exit_status_is_0_if_the_system_refuses(monkeypatch):
    def scene(stage):
        with stage.step("not here"):
            raise OSError(errno.ENOSYS, "no such call")

    with_sections(monkeypatch, a_section(scene))
    result = tour()
    assert result.exit_code == 0
    assert "– refused, ENOSYS" in result.output
    assert "1 refused by this system." in result.output


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
@pytest.mark.parametrize("seen", ["━━ 3", "━━ 5", "▸ System V", "▸ Let go", "━━ 8", "━━ 9"])
def test_an_interrupted_tour_leaves_nothing_behind(seen, how, leaves_nothing):
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            if line.startswith(seen):
                break
        running.send_signal(how)
        running.stdout.read()
        status = running.wait(timeout=20)
    # It may have come to its end before the signal came.
    assert status in (0, 130 if how == signal.SIGINT else -how)
