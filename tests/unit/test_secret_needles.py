"""After every way to use a secret: no copy of it, nor of a part, in any memory of the process but its slot.

Each program runs in a process of its own, which never has the secret anywhere but in a `Secret`: it comes from the
test through a pipe. The test knows it, and searches the process from outside.
"""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mmkit
from mmkit import maps
from mmkit.secret import find_copies
from support import SANITIZED, needs_root
from terminals import Terminal

pytestmark = pytest.mark.skipif(SANITIZED, reason="a sanitizer keeps what was freed, and copies as it likes")

#: How the secret comes into the process. `pipe` holds 64 bytes; all of them are the secret.
BEGIN = """
import gc, os, signal, socket, sys, threading
import mmkit
from mmkit import Secret
pipe = int(sys.argv[1])
secret = Secret.from_fd(pipe, 64, **{how})
def wait(what="ready"):
    os.write(1, what.encode() + b"\\n")
    os.read(0, 1)
"""

LENGTH = 64


def outside_and_inside(needle, pid):
    """Hits outside of secret memory, and inside it."""
    found = find_copies(needle, pid)
    assert not found.truncated
    # Nothing else in a process is neither dumped nor inherited.
    own = [area for area in maps.read(pid, costs=True) if {"dd", "wf"} <= set(area.vmflags.split())]
    inside = [hit for hit in found if any(area.start <= hit.address < area.end for area in own)]
    return [hit for hit in found if hit not in inside], inside


class Program:
    """A running program that has the secret, and stops where the test wants to look."""

    def __init__(self, code, how="{}"):
        self.needle = bytearray(os.urandom(LENGTH))
        reader, writer = os.pipe()
        os.write(writer, self.needle)
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN.replace("{how}", how) + code, str(reader)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[reader],
        )
        os.close(reader)
        os.write(writer, self.needle)
        self.writer = writer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.writer)
        self.process.kill()
        self.process.communicate()

    @property
    def pid(self):
        return self.process.pid

    def until(self, words=b"ready\n"):
        assert self.process.stdout.readline() == words

    def go_on(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def copies(self):
        return outside_and_inside(self.needle, self.pid)


# What happens to the secret, and how many copies of it there must be in secret memory then: its slots.
PATHS = {
    "made": ("", 1),
    "opened and left": ("with secret.open() as view: pass", 1),
    "opened for writing and left": ("with secret.open(write=True) as view: view[0] = view[0]", 1),
    "read byte by byte": ("with secret.open() as view: total = sum(view)", 1),
    "open now": ("opened = secret.open(); view = opened.__enter__()", 1),
    "compared with itself": ("assert secret == secret", 1),
    "compared with another secret": ("assert secret != Secret.random(64)", 1),
    "compared with a buffer": ("assert secret != bytes(64)", 1),
    "read a second time": ("other = Secret.from_fd(pipe, 64); assert other == secret", 2),
    "written to a descriptor": (
        "r, w = os.pipe()\n"
        "with secret.open() as view: assert os.write(w, view) == 64\n"
        "with Secret(64) as other:\n"
        "    with other.open(write=True) as view: assert os.readv(r, [view]) == 64\n"
        "    assert other == secret",
        1,
    ),
    "sent through a socket": (
        "a, b = socket.socketpair()\n"
        "with secret.open() as view: a.sendall(view)\n"
        "other = Secret(64)\n"
        "with other.open(write=True) as view: assert b.recv_into(view) == 64\n"
        "assert other == secret",
        2,
    ),
    "copied from view to view": (
        "other = Secret(64)\n"
        "with secret.open() as one, other.open(write=True) as two: two[:] = one\n"
        "assert other == secret",
        2,
    ),
    "taken from a bytearray": (
        "source = bytearray(64)\n"
        "os.readv(pipe, [source])\n"
        "other = Secret.take(source)\n"
        "assert other == secret",
        2,
    ),
    "an exception in the middle": (
        "try:\n    with secret.open() as view: raise ValueError\nexcept ValueError: pass",
        1,
    ),
    "closing refused": (
        "try:\n    with secret.open() as view: secret.close()\nexcept BufferError: pass",
        1,
    ),
    "shown": ("text = [repr(secret), str(secret), str(secret.status())]", 1),
    "copying refused": (
        "import copy, pickle\n"
        "for refuses in (bytes, copy.copy, copy.deepcopy, pickle.dumps, hash):\n"
        "    try: refuses(secret)\n"
        "    except TypeError: pass",
        1,
    ),
    "used by threads": (
        "def use():\n"
        "    for _ in range(100):\n"
        "        with secret.open() as view: sum(view)\n"
        "        assert secret == secret\n"
        "threads = [threading.Thread(target=use) for _ in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()",
        1,
    ),
    "signals while it is open": (
        "seen = []\n"
        "signal.signal(signal.SIGALRM, lambda *_: seen.append(1))\n"
        "signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)\n"
        "other = Secret(64)\n"
        "while len(seen) < 50:\n"
        "    with secret.open() as one, other.open(write=True) as two: two[:] = one\n"
        "    assert secret == other\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "other.close()",
        1,
    ),
    "wiped": ("secret.wipe()", 0),
    "closed": ("secret.close()", 0),
    "closed after use": ("with secret.open() as view: sum(view)\nsecret.close()", 0),
    "dropped": ("del secret; gc.collect()", 0),
    "too little to read": (
        "os.set_blocking(pipe, False)\n"
        "try: Secret.from_fd(pipe, 100)\n"
        "except mmkit.SyscallError: pass\n"
        "secret.close()",
        0,
    ),
    "a child was forked": ("if os.fork() == 0: os.read(0, 1); os._exit(0)", 1),
    "another program was started": ("import subprocess; subprocess.run(['true'], check=True)", 1),
}


# What stands alone goes other ways in the core.
ALONE = [
    "opened for writing and left",
    "compared with a buffer",
    "taken from a bytearray",
    "wiped",
    "closed after use",
]


@pytest.mark.parametrize(
    ("path", "how"), [*((path, "{}") for path in PATHS), *((path, '{"isolated": True}') for path in ALONE)]
)
def test_after_every_path_there_is_no_copy_but_in_secret_memory(path, how):
    code, expected = PATHS[path]
    with Program(f"{code}\nwait()", how) as program:
        program.until()
        outside, inside = program.copies()
        assert outside == []
        assert [hit.fraction for hit in inside] == [1.0] * expected


def test_a_prompt_leaves_no_copy_of_what_was_typed():
    needle = os.urandom(LENGTH // 2).hex().encode()
    terminal = Terminal(
        "import mmkit\nsecret = mmkit.Secret.prompt()\nprint('done', secret == b'x')\ninput()"
    )
    try:
        terminal.expect(b"Password: ")
        terminal.type(needle + b"\n")
        terminal.expect(b"done False")
        outside, inside = outside_and_inside(needle, terminal.pid)
        assert outside == []
        assert [hit.fraction for hit in inside] == [1.0]
        terminal.type(b"\n")
        assert terminal.wait() == 0
    finally:
        terminal.close()


def test_the_search_would_have_found_what_is_kept():
    """The tests above say nothing otherwise."""
    with Program("with secret.open() as view: kept = bytes(view); text = kept.hex()\nwait()") as program:
        program.until()
        outside, _ = program.copies()
        assert {str(hit.form) for hit in outside} == {"bytes", "hex"}


def test_encrypting_and_decrypting_leave_no_copy_of_the_secret_and_the_key_only_in_its_slot():
    pytest.importorskip("cryptography")
    code = """
from mmkit.secret import decrypt, encrypt, sealing
# A key that the test knows: the first half of what comes through the pipe.
sealing._key.secret = Secret.from_fd(pipe, 32)
kept = []
for _ in range(100):
    kept.append(encrypt(secret))
    with decrypt(kept[-1]) as back: assert back == secret
secret.close()
del back
wait()
"""
    with Program(code) as program:
        program.until()
        outside, inside = program.copies()
        assert outside == []
        # The key: two quarters of what the test knows.
        assert {(hit.fraction, hit.length) for hit in inside} == {(0.5, 32)}


@pytest.mark.skipif(not mmkit.supports("memfd_secret"), reason="memfd_secret(2) is off here")
def test_what_only_the_process_can_read_is_not_even_found_in_its_slot():
    code = "with secret.open() as view: sum(view)\nassert secret == secret\nwait()"
    with Program(code, '{"backend": "memfd_secret"}') as program:
        program.until()
        assert program.copies() == ([], [])


def test_a_forked_child_has_no_copy_at_all():
    code = """
opened = secret.open(); view = opened.__enter__()
child = os.fork()
if child == 0:
    os.read(0, 1); os._exit(0)
wait(str(child))
"""
    with Program(code) as program:
        child = int(program.process.stdout.readline())
        assert list(find_copies(program.needle, child)) == []
        os.kill(child, signal.SIGKILL)


def test_nothing_is_left_while_the_interpreter_ends():
    """Stopped by the last thing that exit(3) does, after the interpreter is gone and mmkit has wiped."""
    code = """
import atexit, ctypes
with secret.open() as view: sum(view)
libc = ctypes.CDLL(None)
stop = ctypes.cast(libc.pause, ctypes.c_void_p)
"""
    # exit(3) calls what was registered in the reverse order: pause() is registered before mmkit's own is.
    early = """
import ctypes
libc = ctypes.CDLL(None)
libc.atexit if hasattr(libc, "atexit") else None
libc.__cxa_atexit(ctypes.cast(libc.pause, ctypes.c_void_p), None, None)
"""
    needle = bytearray(os.urandom(LENGTH))
    reader, writer = os.pipe()
    os.write(writer, needle)
    program = early + BEGIN.replace("{how}", "{}") + code + "os.write(1, b'ends\\n')"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(reader)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[reader],
    ) as process:  # fmt: skip
        os.close(reader)
        os.close(writer)
        assert process.stdout.readline() == b"ends\n"
        # Asleep in pause(2), whose number is 34 on x86-64: nothing of the program runs any more.
        while not Path(f"/proc/{process.pid}/syscall").read_text().startswith(("34 ", "73 ")):
            assert process.poll() is None
        assert list(find_copies(needle, process.pid)) == []
        process.kill()


# ---- core files


def dumped(program, folder, *options):
    """A core file of the program, made by gcore."""
    path = folder / "core"
    subprocess.run(["gcore", *options, "-o", path, str(program.pid)], check=True, capture_output=True)
    return Path(f"{path}.{program.pid}").read_bytes()


def pieces(needle):
    """The whole, and its quarters."""
    return [bytes(needle[i : i + LENGTH // 4]) for i in range(0, LENGTH, LENGTH // 4)]


def missing(core, needle):
    return not any(piece in core for piece in pieces(needle))


def has_gdb():
    return any(Path(place, "gcore").exists() for place in os.environ["PATH"].split(os.pathsep))


USED = """
other = Secret(64)
with secret.open() as one, other.open(write=True) as two: two[:] = one
assert secret == other
opened = secret.open(); view = opened.__enter__()
ordinary = bytes.fromhex("6d6d6b6974206f7264696e617279")
"""


@pytest.mark.skipif(not has_gdb(), reason="needs gdb's gcore")
def test_gcore_of_a_process_with_an_open_secret_has_nothing_of_it(tmp_path):
    with Program(USED + "wait()") as program:
        program.until()
        core = dumped(program, tmp_path)
        assert b"mmkit ordinary" in core
        assert missing(core, program.needle)


@pytest.mark.skipif(not has_gdb(), reason="needs gdb's gcore")
@pytest.mark.skipif(not mmkit.supports("memfd_secret"), reason="memfd_secret(2) is off here")
def test_gcore_of_all_memory_has_nothing_of_what_only_the_process_can_read(tmp_path):
    with Program(
        USED.replace("Secret(64)", "Secret(64, backend='memfd_secret')") + "wait()",
        "{'backend': 'memfd_secret'}",
    ) as program:
        program.until()
        core = dumped(program, tmp_path, "-a")
        assert b"mmkit ordinary" in core
        assert missing(core, program.needle)


@pytest.fixture
def core_pattern():
    """Have the kernel write core files where the process works; only for this test."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    try:
        pattern.write_text("core")
    except OSError:
        pytest.skip("may not set kernel.core_pattern")
    yield
    pattern.write_text(before)


@needs_root
def test_a_core_file_of_the_kernel_has_nothing_of_it_in_memory_or_registers(tmp_path, core_pattern):
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # The process dies where a view was just used, with the secret open.
    code = f"""
os.chdir({str(tmp_path)!r})
{USED}
import resource
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert secret == other
# Whoever runs the tests in the background of a script ignores it.
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
os.kill(os.getpid(), signal.SIGQUIT)
"""
    if hard != resource.RLIM_INFINITY:
        pytest.skip("may not have core files")
    with Program(code) as program:
        assert program.process.wait() == -signal.SIGQUIT
        [core] = [path.read_bytes() for path in tmp_path.iterdir()]
        assert b"mmkit ordinary" in core
        assert missing(core, program.needle)
