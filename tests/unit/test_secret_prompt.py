"""Secret.prompt at a real terminal: what is typed is not shown, and the terminal is always as it was."""

import os
import signal

import pytest

from support import run
from terminals import Terminal

PASSWORD = b"corr\xc3\xa9ct horse"
ASK = """
import mmkit, os, signal, sys
secret = mmkit.Secret.prompt("Word: ")
with secret.open() as view:
    print("got", len(secret), bytes(view).hex())
"""


@pytest.fixture
def at_terminal():
    opened = []

    def start(code):
        opened.append(Terminal(code))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def test_what_is_typed_is_not_shown_and_is_the_secret(at_terminal):
    terminal = at_terminal(ASK)
    assert terminal.echoes
    terminal.expect(b"Word: ")
    assert not terminal.echoes
    terminal.type(b"mistake\x15" + PASSWORD + b"\n")
    shown = terminal.expect(f"got {len(PASSWORD)} {PASSWORD.hex()}".encode())
    assert PASSWORD not in shown
    assert b"mistake" not in shown
    assert terminal.echoes
    assert terminal.wait() == 0


def test_a_line_may_be_as_long_as_terminals_allow(at_terminal):
    terminal = at_terminal(ASK)
    terminal.expect(b"Word: ")
    # Piece by piece: the terminal's buffer is full otherwise.
    for _ in range(5):
        terminal.type(b"x" * 800)
    terminal.type(b"\n")
    terminal.expect(b"got 4000 7878")
    assert terminal.wait() == 0


def test_ctrl_c_is_a_keyboard_interrupt_and_restores_the_terminal(at_terminal):
    terminal = at_terminal(
        "import mmkit\n"
        "try:\n"
        "    mmkit.Secret.prompt()\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', mmkit.secret.Secret(1).status().footprint)\n"
        "    input()\n"
    )
    terminal.expect(b"Password: ")
    terminal.type(b"half of it\x03")
    terminal.expect(b"interrupted ")
    assert terminal.echoes
    terminal.type(b"\n")
    assert terminal.wait() == 0


def test_ctrl_z_stops_with_the_terminal_as_it_was_and_goes_on_by_asking_again(at_terminal):
    terminal = at_terminal(ASK)
    terminal.expect(b"Word: ")
    terminal.type(b"half\x1a")
    assert os.WIFSTOPPED(terminal.wait())
    assert terminal.echoes
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.expect(b"Word: ")
    assert not terminal.echoes
    terminal.type(PASSWORD + b"\n")
    terminal.expect(PASSWORD.hex().encode())
    assert terminal.wait() == 0
    assert terminal.echoes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGALRM])
def test_a_signal_that_ends_the_process_restores_the_terminal_first(at_terminal, number):
    terminal = at_terminal("import resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))" + ASK)
    terminal.expect(b"Word: ")
    # The terminal forgets its state with the last who has it open.
    kept = os.open(f"/proc/{terminal.pid}/fd/0", os.O_RDONLY | os.O_NOCTTY)
    try:
        os.kill(terminal.pid, number)
        status = terminal.wait()
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == number
        assert terminal.echoes
    finally:
        os.close(kept)


def test_a_signal_that_the_program_handles_does_not_end_the_question(at_terminal):
    terminal = at_terminal(
        "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: os.write(1, b'handled'))" + ASK
    )
    terminal.expect(b"Word: ")
    terminal.type(PASSWORD[:5])
    os.kill(terminal.pid, signal.SIGUSR1)
    terminal.expect(b"handled")
    terminal.type(PASSWORD[5:] + b"\n")
    terminal.expect(PASSWORD.hex().encode())
    assert terminal.wait() == 0


@pytest.mark.parametrize(
    ("keys", "error"),
    [(b"\x04", b"EOFError"), (b"\n", b"ValueError: nothing was typed")],
    ids=["^D", "empty"],
)
def test_no_line_is_an_error_that_says_so(at_terminal, keys, error):
    terminal = at_terminal(ASK)
    terminal.expect(b"Word: ")
    terminal.type(keys)
    terminal.expect(error)
    assert os.WEXITSTATUS(terminal.wait()) == 1


def test_without_a_terminal_the_message_says_what_to_do():
    result = run("import mmkit; mmkit.Secret.prompt()", start_new_session=True)
    assert "from_fd" in result.stderr
    assert "SyscallError" in result.stderr
