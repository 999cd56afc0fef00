"""What the commands do where their output cannot be written."""

import os
import subprocess
import sys

import pytest

from support import SANITIZED

COMMANDS = [
    ["maps"],
    ["maps", "--layout"],
    ["maps", "--json"],
    ["doctor"],
    ["doctor", "--json"],
    ["tour", "--list"],
    ["tour", "--help"],
    ["--help"],
]
if not SANITIZED:
    COMMANDS += [["tour", "--section", "brk"], ["tour", "--section", "sharing"], ["tour", "--json"]]
EVERY_COMMAND = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
# Whether Python writes each line at once, or all at its end.
AT_ONCE_OR_NOT = pytest.mark.parametrize("unbuffered", ["1", ""], ids=["unbuffered", "buffered"])


def run(command, stdout, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    arguments = [sys.executable, "-m", "mmkit", *command]
    done = subprocess.run(
        arguments, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, env=environment, check=False
    )
    return done.returncode, done.stderr


@EVERY_COMMAND
def test_a_closed_output_is_one_line_on_stderr_and_exit_status_1(command):
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "mmkit", *command]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    said = "mmkit: the output cannot be written: standard output is closed\n"
    assert (done.returncode, done.stderr) == (1, said)


@EVERY_COMMAND
@AT_ONCE_OR_NOT
def test_a_full_disk_is_one_line_on_stderr_and_exit_status_1(command, unbuffered):
    with open("/dev/full", "w") as full:
        status, said = run(command, full, unbuffered)
    assert (status, said) == (1, "mmkit: the output cannot be written: No space left on device\n")


@EVERY_COMMAND
@AT_ONCE_OR_NOT
def test_where_nobody_reads_it_ends_in_silence(command, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        status, said = run(command, writer, unbuffered)
    finally:
        os.close(writer)
    # As a shell has it for a process that SIGPIPE ended; for its own help click ends with 1.
    assert (status, said) == (1 if command == ["--help"] else 141, "")
