"""Two warm interpreters, one that has imported mmkit and one that has not: each runs programs in forks of itself.

A new interpreter takes a tenth of a second to start and to import mmkit; a fork of one that has, a hundredth. Signals are
as they are at the start of any program: pytest's faulthandler is not here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import NamedTuple

_HANDLERS_FROM_OUTSIDE = ("PYTHONFAULTHANDLER", "PYTHONDEVMODE")


class End(NamedTuple):
    """How a program ended."""

    signal: int  # 0 if it exited
    code: int
    stderr: str


def end_of(status: int, stderr: str) -> End:
    if os.WIFSIGNALED(status):
        return End(os.WTERMSIG(status), 0, stderr)
    return End(0, os.WEXITSTATUS(status), stderr)


def clean_environment() -> dict[str, str]:
    """An environment in which nobody else handles SIGSEGV and SIGBUS."""
    clean = {name: value for name, value in os.environ.items() if name not in _HANDLERS_FROM_OUTSIDE}
    if "ASAN_OPTIONS" in clean:
        clean["ASAN_OPTIONS"] += ":handle_segv=0:handle_sigbus=0"
    return clean


def fresh(program: str, *options: str) -> End:
    """Run a program in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, *options, "-c", program],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env=clean_environment(),
    )
    return End(max(0, -done.returncode), max(0, done.returncode), done.stderr)


class Warm:
    """Runs programs; what they write to stderr is theirs, and none may take longer than its time."""

    def __init__(self) -> None:
        self._interpreters = {when: _start(when) for when in ("before", "after")}

    def run(self, program: str, before: str = "", seconds: float = 10, **names: object) -> End:
        """Run a program that has imported mmkit, and first of all what it does before that; it sees the names given."""
        return self._ask(
            "before" if before else "after", f"{before}\nimport mmkit\n{program}", seconds, names
        )

    def run_before(self, program: str, seconds: float = 10, **names: object) -> End:
        """Run a program that imports mmkit itself, or does not."""
        return self._ask("before", program, seconds, names)

    def _ask(self, when: str, program: str, seconds: float, names: dict[str, object]) -> End:
        request = {"program": program, "seconds": seconds, "names": names}
        interpreter = self._interpreters[when]
        interpreter.stdin.write(json.dumps(request).encode() + b"\n")
        interpreter.stdin.flush()
        answer = json.loads(interpreter.stdout.readline())
        assert not answer["late"], f"still running after {seconds} s:\n{answer['stderr']}"
        return end_of(answer["status"], answer["stderr"])

    def close(self) -> None:
        for interpreter in self._interpreters.values():
            interpreter.stdin.close()
            interpreter.stdout.close()
            interpreter.wait(10)


def _start(when: str) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, __file__, when]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment())


# ---- in the warm interpreter


def _import_what_mmkit_imports() -> None:
    """A child says what that is."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        import mmkit  # noqa: F401

        os.write(writer, " ".join(sys.modules).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        names = pipe.read().split()
    os.wait()
    for name in names:
        if "mmkit" not in name and "cython" not in name:
            __import__(name)


def _run(program: str, names: dict[str, object], stderr: int) -> None:
    import resource
    import traceback
    import warnings

    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(stderr, 2)
    code = 1
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__", **names})
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve(when: str) -> None:
    import select

    if when == "before":
        _import_what_mmkit_imports()
        assert "mmkit" not in sys.modules
    else:
        import mmkit  # noqa: F401
    for line in sys.stdin.buffer:
        request = json.loads(line)
        stderr = os.memfd_create("stderr")
        pid = os.fork()
        if pid == 0:
            _run(request["program"], request["names"], stderr)
        pidfd = os.pidfd_open(pid)
        late = not select.select([pidfd], [], [], request["seconds"])[0]
        if late:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        written = os.pread(stderr, 10_000, 0).decode(errors="replace")
        os.close(pidfd)
        os.close(stderr)
        answer = {"status": status, "stderr": written, "late": late}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
