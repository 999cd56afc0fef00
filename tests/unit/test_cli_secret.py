import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmkit import Region, maps
from mmkit.cli import main
from secret_holder import PLAIN, holder
from support import NOBODY, PAGE, in_child, needs_root
from terminals import Terminal

MMKIT = (sys.executable, "-m", "mmkit", "secret", "scan")
NEVER_A_PID = str((1 << 31) - 1)


def scan(*arguments, needle=b""):
    """Run the command here, with the secret from a pipe."""
    reader, writer = os.pipe()
    os.write(writer, needle)
    os.close(writer)
    try:
        return CliRunner().invoke(main, ["secret", "scan", *map(str, arguments), "--fd", str(reader)])
    finally:
        os.close(reader)


@pytest.fixture
def key():
    # Zeros would be at one with the memory around it, and the last newline is left out.
    return os.urandom(32).replace(b"\0", b"!").replace(b"\n", b"!")


def test_it_exits_with_1_when_there_are_copies_and_shows_them(key):
    with holder(p100=key, p5000=key[:16], p9000=key.hex().encode()) as (pid, start):
        result = scan(pid, needle=key)
    assert result.exit_code == 1
    header, *lines, summary = result.stdout.splitlines()
    assert header.split() == ["address", "form", "found", "bytes", "perm", "kind", "offset", "where"]
    assert [line.split() for line in lines] == [
        [f"{start + 100:x}", "bytes", "100%", "32", "rw-p", "anonymous"],
        [f"{start + 5000:x}", "bytes", "50%", "16", "rw-p", "anonymous"],
        [f"{start + 9000:x}", "hex", "100%", "64", "rw-p", "anonymous"],
    ]
    assert summary.startswith("2 full and 1 partial in ")


def test_what_nobody_can_read_in_any_process_is_only_for_programs(key):
    with holder() as (pid, _):
        result, document = scan(pid, needle=key), json.loads(scan(pid, "--json", needle=key).stdout)
    assert result.stderr == ""
    assert "could not be looked at" not in result.stdout
    assert "[vvar]" in {each["area"]["path"] for each in document["unread"]}
    assert all(each["by_nature"] for each in document["unread"])


def test_what_else_could_not_be_looked_at_is_reported(key, tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes(4 * PAGE))
    with Region.file(path) as region:
        os.truncate(path, PAGE)
        result = scan(os.getpid(), needle=key)
        (line,) = [line for line in result.stderr.splitlines() if str(path) in line]
        assert line.startswith(f"not looked at: {region.address + PAGE:x}, {3 * PAGE >> 10} KiB, ")
        assert line.endswith("it is past the end of the file")
    assert "could not be looked at" in result.stdout.splitlines()[-1]
    assert "[v" not in result.stderr


def test_it_exits_with_0_when_there_are_none(key):
    with holder() as (pid, _):
        result = scan(pid, needle=key)
    assert result.exit_code == 0
    assert result.stdout.startswith("none in ")


def test_a_newline_at_the_end_of_the_input_does_not_belong_to_the_secret(key):
    with holder(p100=key) as (pid, _):
        assert scan(pid, needle=key + b"\n").stdout.splitlines()[-1].startswith("1 full and 0 partial")
        assert scan(pid, needle=key + b"\n\n").stdout.splitlines()[-1].startswith("0 full and 1 partial")


def test_without_a_descriptor_the_secret_comes_from_standard_input(key):
    with holder(p100=key) as (pid, _):
        result = subprocess.run([*MMKIT, str(pid)], input=key, capture_output=True, timeout=60)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith(b"1 full and 0 partial")


def test_json_has_every_field(key):
    with holder(p100=key) as (pid, start):
        document = json.loads(scan(pid, "--json", needle=key).stdout)
        area = maps.find(start, pid)
    (hit,) = document.pop("hits")
    assert hit.pop("area")["start"] == area.start
    assert hit == {"address": start + 100, "length": 32, "form": "bytes", "fraction": 1.0, "note": None}
    assert {each["area"]["path"] for each in document.pop("unread")} >= {"[vvar]"}
    assert document.pop("looked_at") > 1 << 20
    assert document == {"format": 1, "pid": pid, "core": None, "truncated": False, "locked": True}


def at_terminal(pid):
    return Terminal(f"import sys\nfrom mmkit.cli import main\nmain(['secret', 'scan', '{pid}'])")


def test_on_a_terminal_it_asks_without_echo():
    word = b"correct horse battery"
    with holder(p100=word) as (pid, _), closing(at_terminal(pid)) as terminal:
        terminal.expect(b"Secret: ")
        terminal.type(word + b"\n")
        seen = terminal.expect(b"1 full and 0 partial")
        assert word not in seen
        assert os.WEXITSTATUS(terminal.wait()) == 1
        assert terminal.echoes


def test_whatever_ends_or_stops_the_question_the_terminal_is_as_it_was():
    with holder() as (pid, _), closing(at_terminal(pid)) as terminal:
        terminal.expect(b"Secret: ")
        terminal.type(b"half\x1a")
        assert os.WIFSTOPPED(terminal.wait())
        assert terminal.echoes
        os.kill(terminal.pid, signal.SIGCONT)
        terminal.expect(b"Secret: ")
        kept = os.open(f"/proc/{terminal.pid}/fd/0", os.O_RDONLY | os.O_NOCTTY)
        os.kill(terminal.pid, signal.SIGTERM)
        assert os.WTERMSIG(terminal.wait()) == signal.SIGTERM
        assert terminal.echoes
        os.close(kept)


def test_what_is_mapped_while_somebody_types_is_searched():
    word = b"correct horse battery"
    code = f"""
import mmap, sys
sys.stdin.readline()
memory = mmap.mmap(-1, 1 << 24, flags=mmap.MAP_PRIVATE)
for at, byte in enumerate({bytes(byte ^ 1 for byte in word)}):
    memory[at] = byte ^ 1
print(flush=True)
sys.stdin.readline()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, env=PLAIN) as process:
        with closing(at_terminal(process.pid)) as terminal:
            terminal.expect(b"Secret: ")
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            terminal.type(word + b"\n")
            terminal.expect(b"1 full and 0 partial")
        process.stdin.close()


def test_no_line_exits_with_2():
    with holder() as (pid, _), closing(at_terminal(pid)) as terminal:
        terminal.expect(b"Secret: ")
        terminal.type(b"\x04")
        terminal.expect(b"mmkit secret scan: the terminal gave no line")
        assert os.WEXITSTATUS(terminal.wait()) == 2


def test_the_process_of_the_command_never_has_the_secret(key, tmp_path):
    """It waits for the scanner's answer while it is looked at."""
    reader, writer = os.pipe()
    with (
        holder() as (pid, _),
        subprocess.Popen(
            [*MMKIT, str(pid), "--fd", str(reader)],
            pass_fds=[reader],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running,
    ):
        os.close(reader)
        os.write(writer, key)
        # It has read what there is, and waits for more.
        while not has_scanner(running.pid):
            pass
        result = scan(running.pid, needle=key)
        os.close(writer)
        running.communicate()
    assert result.stdout.startswith("none in ")
    assert running.returncode == 0


def has_scanner(pid):
    """Whether a process has started the scanner."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(Path(f"/proc/{child}/comm").read_text() == "mmkit-scan\n" for child in children)


def test_a_process_that_is_gone_exits_with_42(key):
    result = scan(NEVER_A_PID, needle=key)
    assert result.exit_code == 42
    assert "There is no process" in result.stderr


def test_wrong_use_exits_with_2(key):
    assert scan(needle=key).exit_code == 2
    assert scan("zero", needle=key).exit_code == 2
    assert scan("0", needle=key).exit_code == 2
    assert scan(os.getpid(), "--core", "core", needle=key).exit_code == 2
    closed = CliRunner().invoke(main, ["secret", "scan", str(os.getpid()), "--fd", "9999"])
    assert closed.exit_code == 2
    assert "9999 is no open descriptor" in closed.stderr


def test_any_other_error_exits_with_2_since_1_says_that_there_are_copies(key, tmp_path):
    short = scan(os.getpid(), needle=b"short")
    assert short.exit_code == 2
    assert "8 to 4096 bytes" in short.stderr
    assert scan("--core", tmp_path / "nothing", needle=key).exit_code == 2
    (tmp_path / "text").write_text("text")
    refused = scan("--core", tmp_path / "text", needle=key)
    assert refused.exit_code == 2
    assert "no ELF file" in refused.stderr


@needs_root
def test_who_may_not_look_exits_with_2_and_is_told_what_is_needed(key):
    with holder() as (pid, _):

        def look():
            result = scan(pid, needle=key)
            return result.exit_code, result.stderr

        status, text = in_child(look, user=NOBODY)
    assert status == 2
    assert "CAP_SYS_PTRACE" in text


def test_help_says_why_the_secret_is_no_argument():
    assert "never an argument" in " ".join(scan("--help").stdout.split())
