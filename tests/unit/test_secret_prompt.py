"""Secret.prompt at a real terminal: what is typed is not shown, and the terminal is always as it was."""

import fcntl
import os
import signal
import sys
import termios

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


# Signals from the keyboard throw away what was typed, but not on this terminal.
KEEPS = """
import fcntl, termios
mode = termios.tcgetattr(0)
mode[3] |= termios.NOFLSH
termios.tcsetattr(0, termios.TCSANOW, mode)
"""


def waiting_in(terminal):
    """Bytes that whoever reads next from a terminal gets, be it half a line."""
    mode = termios.tcgetattr(terminal)
    mode[3] &= ~termios.ICANON
    termios.tcsetattr(terminal, termios.TCSANOW, mode)
    return int.from_bytes(fcntl.ioctl(terminal, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("key", [b"\x03", b"\x1c"], ids=["exception", "end"])
def test_half_a_line_is_not_left_to_whoever_reads_next(at_terminal, key):
    terminal = at_terminal("import resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))" + KEEPS + ASK)
    terminal.expect(b"Word: ")
    kept = os.open(f"/proc/{terminal.pid}/fd/0", os.O_RDONLY | os.O_NOCTTY)
    try:
        terminal.type(b"half of it" + key)
        terminal.wait()
        assert terminal.echoes
        assert waiting_in(kept) == 0
    finally:
        os.close(kept)


def test_a_signal_ends_the_process_while_the_terminal_takes_no_text(at_terminal):
    terminal = at_terminal("print('ready')\ninput()" + ASK)
    terminal.expect(b"ready\r\n")
    terminal.type(b"\x13\n")  # Ctrl-S: what is written waits
    kept = os.open(f"/proc/{terminal.pid}/fd/0", os.O_RDONLY | os.O_NOCTTY)
    try:
        while terminal.echoes:
            pass
        os.kill(terminal.pid, signal.SIGTERM)
        assert os.WTERMSIG(terminal.wait()) == signal.SIGTERM
        assert terminal.echoes
    finally:
        os.close(kept)


def test_a_child_that_another_thread_forks_meanwhile_is_ended_by_signals(at_terminal):
    terminal = at_terminal("""
import mmkit, os, signal, termios, threading
asking = threading.Thread(target=mmkit.Secret.prompt)
asking.start()
while termios.tcgetattr(0)[3] & termios.ECHO:
    pass
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
asking.join()
""")
    terminal.expect(b"child -15")
    assert not terminal.echoes
    terminal.type(b"x\n")
    assert terminal.wait() == 0


def test_a_signal_that_another_thread_gets_ends_the_question_as_well(at_terminal):
    terminal = at_terminal("""
import mmkit, os, signal, threading
# The main thread lets it in, and waits in join().
asking = threading.Thread(target=mmkit.Secret.prompt)
asking.start()
asking.join()
""")
    terminal.expect(b"Password: ")
    kept = os.open(f"/proc/{terminal.pid}/fd/0", os.O_RDONLY | os.O_NOCTTY)
    try:
        os.kill(terminal.pid, signal.SIGTERM)
        assert os.WTERMSIG(terminal.wait()) == signal.SIGTERM
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
