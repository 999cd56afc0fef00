"""``mmkit tour`` as people and programs use it: options, terminals, exit status."""

import errno
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from functools import partial

import pytest
from click.testing import CliRunner
from rich.console import Console

from mmkit.cli import main
from mmkit.tour import SECTIONS, Section
from mmkit.tour.engine import scene
from support import SANITIZED

pytestmark = pytest.mark.skipif(
    SANITIZED, reason="a sanitizer's malloc needs no break, and its mlock does nothing"
)
COMMAND = [sys.executable, "-c", "from mmkit.cli import main; main(['tour'])"]
# The command as an attribute of mmkit.cli hides the module of the same name.
CLI_TOUR = sys.modules["mmkit.cli.tour"]
TITLES = [title for section in SECTIONS for each in section.scenes for title in each.titles]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr("mmkit.tour.screen._PACE", 0)


def tour(*options):
    return CliRunner().invoke(main, ["tour", *options])


def a_section(*scenes):
    return Section(key="made-up", title="Made up", introduction="For a test.", scenes=scenes)


@scene("wrong", "right")
def broken(stage):
    with stage.step() as step:
        step.call("mlock", "p", 1, python="region.lock()")
        step.answer(0)
        step.check("black is white", False)
    with stage.step() as step:
        step.check("white is white", True)


@scene("not here", "after it")
def refused(stage):
    with stage.step() as step:
        step.call("mlock", "p", 1, python="region.lock()")
        raise OSError(errno.ENOSYS, "no such call")


@pytest.fixture
def with_scene(monkeypatch):
    return lambda *scenes: monkeypatch.setattr(CLI_TOUR, "SECTIONS", (a_section(*scenes),))


# ---- what is chosen ---------------------------------------------------------------------------------


def test_sections_are_chosen_by_their_keys():
    output = tour("--section", "brk", "--section", "layout").output
    heads = re.findall(r"━━ (\d+) · (.*?) ━", output)
    assert heads == [("1", SECTIONS[0].title), ("2", SECTIONS[1].title)]
    assert [section.key for section in SECTIONS[:2]] == ["layout", "brk"]


@pytest.mark.parametrize("how", ["brk", "BRK", "Brk", "br", "2"])
def test_a_section_is_chosen_by_its_key_in_any_case_or_its_beginning_or_its_number(how):
    output = tour("--list", "--section", how).output
    assert output.splitlines()[0].split(maxsplit=1) == ["brk", f"2 · {SECTIONS[1].title}"]
    assert output == tour("--list", "--section", "brk").output


@pytest.mark.parametrize("how", ["9", "map a FILE of"])
def test_one_step_is_chosen_by_its_number_or_by_words_of_its_title(how):
    result = tour("--step", how)
    assert result.exit_code == 0
    assert re.findall(r"▸ (\d+) (.*)", result.output) == [("9", TITLES[8])]
    assert "1 step, " in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--section", "nowhere"], "no section 'nowhere'. There are: 1 layout, 2 brk, 3 file, 4 anonymous,"),
        (["--section", "12"], "no section '12'. There are: 1 layout, "),
        (["--section", "0"], "no section '0'. There are: 1 layout, "),
        (["--section", ""], "no section ''. There are: 1 layout, "),
        (["--step", ""], "give the number of a step, or words of its title"),
        (["--step", "7", "--step", " "], "give the number of a step, or words of its title"),
        (["--step", "nowhere"], "no title of a step has 'nowhere' in it"),
        (["--step", "1000"], "no step 1000"),
        (["--section", "brk", "--step", "1"], "no step 1 in what was chosen"),
        (["--list", "--json"], "--json goes without it"),
        (["--fast"], "No such option"),
        (["brk"], "unexpected extra argument 'brk': a section is chosen by --section"),
        (["--section", "sh"], "more than one section begins with 'sh': sharing, shared"),
        (["--section", "layout", "--section", "brk", "--step", "1"], "section brk has none of these steps"),
        (["--step", "-1"], "no step -1"),
    ],
)
def test_what_there_is_not_is_a_usage_error_that_says_what_there_is(options, said):
    result = tour(*options)
    assert result.exit_code == 2
    # click wraps what it says in a box where rich is at hand.
    assert said in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def test_the_list_names_all_and_runs_nothing(monkeypatch):
    monkeypatch.setattr(CLI_TOUR, "run", None)
    output = tour("--list").output
    assert [section.key for section in SECTIONS] == [
        line.split()[0] for line in output.splitlines() if line[:1].strip()
    ]
    assert [line.split(maxsplit=1)[1] for line in output.splitlines() if line.strip()[:1].isdigit()] == TITLES
    assert max(map(len, output.splitlines())) <= 80
    assert tour("--list", "--step", "9").output.splitlines() == [
        "file        3 · A file as memory: mmap, msync",
        f"         9  {TITLES[8]}",
    ]


def test_every_section_is_introduced():
    output = tour().output
    for number, section in enumerate(SECTIONS, 1):
        assert f"━━ {number} · {section.title} ━" in output
        assert section.introduction.split(". ")[0].split()[0] in output


# ---- for programs -----------------------------------------------------------------------------------


def test_the_document_has_each_call_with_name_arguments_result_and_whether_it_was_checked():
    result = tour("--json", "--section", "brk")
    document = json.loads(result.output)
    (section,) = document["sections"]
    moved = section["steps"][1]["calls"][0]
    assert (moved["name"], moved["arguments"]) == ("sbrk", ["16384"])
    assert moved["result"] > 1 << 20
    assert (moved["errno"], moved["checked"], moved["outcome"]) == (None, True, "done")
    assert document["calls"][0] == {"name": "brk", "made": 2, "refused": 0}
    assert document["steps"] == {"done": 5, "refused": 0, "failed": 0, "not reached": 0}


def test_the_document_says_what_failed_what_was_refused_and_what_was_not_reached(with_scene):
    with_scene(broken, refused)
    result = tour("--json")
    assert result.exit_code == 1
    document = json.loads(result.output)
    wrong, right, no, after = document["sections"][0]["steps"]
    assert [step["outcome"] for step in (wrong, right, no, after)] == [
        "failed",
        "done",
        "refused",
        "not reached",
    ]
    assert wrong["calls"][0]["outcome"] == "failed"
    assert wrong["checks"] == [{"claim": "black is white", "holds": False}]
    assert no["calls"][0]["errno"] == "ENOSYS"
    assert (no["calls"][0]["checked"], no["calls"][0]["result"]) == (False, None)
    assert no["refusal"]["error"] == "ENOSYS: no such call"


# ---- exit status ------------------------------------------------------------------------------------


def test_the_exit_status_is_1_if_a_claim_does_not_hold(with_scene):
    with_scene(broken)
    result = tour()
    assert result.exit_code == 1
    assert "✗ black is white" in result.output
    assert "1 did not do what it claims." in result.output


def test_what_failed_and_was_refused_fits_into_80_columns_too(with_scene):
    with_scene(*[broken, refused] * 9)
    lines = tour().output.splitlines()
    assert "9 refused here, 9 not reached." in " ".join(lines)
    assert "9 did not do what they claim." in " ".join(lines)
    assert max(map(len, lines)) <= 80


def test_a_step_that_fails_before_the_chosen_one_is_shown_and_counts(with_scene):
    with_scene(broken)
    result = tour("--step", "right")
    assert result.exit_code == 1
    assert "✗ black is white" in result.output


def test_the_exit_status_is_0_if_the_system_refuses(with_scene):
    with_scene(refused)
    result = tour()
    assert result.exit_code == 0
    assert "– refused, ENOSYS" in result.output
    assert "  ○ not reached: " in result.output
    assert "1 refused here, 1 not reached." in result.output
    assert "mlock             1 –1" in result.output
    assert "did what they claim" not in result.output


def test_a_call_that_was_made_many_times_counts_as_often(with_scene):
    @scene("many")
    def many(stage):
        with stage.step() as step:
            step.call("madvise", "p + at", 1, python="region.advise(...)")
            step.answer(0, ", and more", times=256)
            step.check("it is said", step.calls[0].kernel == "0, 256 times, and more")

    with_scene(many)
    assert "madvise         256" in tour().output
    document = json.loads(tour("--json").output)
    assert document["calls"] == [{"name": "madvise", "made": 256, "refused": 0}]
    assert document["sections"][0]["steps"][0]["calls"][0]["times"] == 256


def test_without_calls_there_is_no_table_of_them_and_no_gap_where_it_would_be():
    output = tour("--step", "10").output
    assert "The calls shown above" not in output
    assert "\n\n\n" not in output


# ---- on a terminal, and without one -----------------------------------------------------------------


def in_a_terminal(**environment):
    """Run sections with every kind of picture in a terminal of 80 columns; return what was written."""
    pid, fd = pty.fork()
    if pid == 0:
        unwanted = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"}
        kept = {name: value for name, value in os.environ.items() if name not in unwanted}
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        sections = "layout", "protection", "advice", "pages"
        options = [each for key in sections for each in ("--section", key)]
        os.execve(sys.executable, [sys.executable, "-m", "mmkit", "tour", *options], kept | environment)
    parts = []
    while True:
        try:
            part = os.read(fd, 1 << 16)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    os.close(fd)
    assert os.waitpid(pid, 0)[1] == 0
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    ("environment", "colours", "codes"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, False),
    ],
    ids=["xterm", "NO_COLOR", "dumb"],
)
def test_a_terminal_gets_the_colours_it_can_and_shall_have(environment, colours, codes):
    output = in_a_terminal(PYTHONUTF8="1", **environment)
    assert ("\x1b[" in output) == codes
    assert bool(re.search(r"\x1b\[[0-9;]*3[1-7]", output)) == colours
    # Neither black nor white: one of them is the ground.
    assert not re.search(r"\x1b\[([0-9;]*;)?(30|37|38|4\d|9\d)", output)
    lines = ESCAPE.sub("", output).splitlines()
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("how", ["-h", "--help"])
def test_help_is_whole(how):
    commands = CliRunner().invoke(main, [how]).output.partition("Commands:")[2]
    (line,) = (line for line in commands.splitlines() if line.split()[:1] == ["tour"])
    assert "..." not in line
    assert tour(how).output.startswith("Usage: ")


@pytest.mark.parametrize("width", [64, 80, 140])
def test_no_line_is_wider_than_the_terminal(width, monkeypatch):
    terminal = partial(Console, force_terminal=True, width=width)
    monkeypatch.setattr(CLI_TOUR, "OutputConsole", terminal)
    monkeypatch.setattr(CLI_TOUR, "_command", lambda: "mmkit")
    output = tour().output
    assert "\x1b[" in output
    lines = ESCAPE.sub("", output).splitlines()
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line != line.rstrip()] == []
    # Rules go as far as paragraphs may.
    assert {len(line) for line in lines if line.startswith("━")} == {min(width, 80)}


@pytest.mark.parametrize("terminal", [False, True])
def test_plain_is_ascii_without_control_codes_in_80_columns(terminal, monkeypatch):
    if terminal:
        monkeypatch.setattr(CLI_TOUR, "OutputConsole", partial(Console, force_terminal=True, width=80))
    output = tour("--plain").output
    assert output.isascii()
    assert "\x1b" not in output
    assert "|rw-|rw-|" in output
    assert max(map(len, output.splitlines())) <= 80


def test_a_terminal_without_box_drawing_gets_plain_letters():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(COMMAND, capture_output=True, timeout=60, check=False, env=environment)
    assert result.returncode == 0
    assert b"|rw-|rw-|" in result.stdout


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
