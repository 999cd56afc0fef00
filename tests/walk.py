"""Run by test_handler_orders.py in a warm interpreter: installs handlers in many orders, and looks after each step.

A bad access of mmkit's must raise and print nothing. A foreign fault must end as it does when all the same has been done
in a process that has never imported mmkit: such a one is kept at hand.
"""

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
import time

COARSE = 6  # CLOCK_MONOTONIC_COARSE
PATIENCE = 1  # seconds of processor time until a fault has ended the process
BEFORE = 1  # steps before mmkit is imported, at most, where every order is tried: importing takes longest
MUCH = 20_000  # bytes of tracebacks: nobody prints so much who will ever end
ENDLESS = "endless"


def wait_for_a_tick():
    start = time.clock_gettime_ns(COARSE)
    while time.clock_gettime_ns(COARSE) == start:
        pass


def is_imported():
    return "mmkit" in sys.modules


class Trouble(Exception):
    pass


class State:
    """What has been done so far in this process."""

    def __init__(self, c_handlers):
        self.c_handlers = c_handlers
        self.done = []
        self.installed = False
        self.knows_mmkit = False
        self.handler = lambda number, frame: None

    def import_mmkit(self):
        import mmkit  # noqa: F401

    def enable(self):
        faulthandler.enable()

    def disable(self):
        faulthandler.disable()

    def python_handler(self):
        signal.signal(signal.SIGSEGV, self.handler)

    def default(self):
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)

    def install(self):
        self.c_handlers.handler_install(signal.SIGSEGV, b"calling", False)
        self.installed = True
        self.knows_mmkit = is_imported()

    def restore(self):
        self.c_handlers.handler_restore(signal.SIGSEGV)
        self.installed = False
        if is_imported() and not self.knows_mmkit:
            # What it has put back is not mmkit's, who learns of what C code does once a tick.
            wait_for_a_tick()

    def dump_later(self):
        faulthandler.dump_traceback_later(1000)
        faulthandler.cancel_dump_traceback_later()

    def can(self, action):
        possible = {
            "import_mmkit": not is_imported(),
            "install": not self.installed,
            "restore": self.installed,
        }
        return possible.get(action, True)

    def act(self, action):
        getattr(self, action)()
        self.done.append(action)


ACTIONS = (
    "import_mmkit",
    "enable",
    "disable",
    "python_handler",
    "default",
    "install",
    "restore",
    "dump_later",
)
if "MMKIT_SANITIZED" in os.environ:
    # Its thread may hold the lock of the sanitizer's malloc when the process forks: the child waits for ever.
    ACTIONS = ACTIONS[:-1]
#: The last installs nothing: it is left to the longer orders.
EXPLORED = ACTIONS[:7]


# ---- how things end


class Stderr:
    """Stands for stderr, and tells what was written there."""

    def __init__(self):
        self.file = os.memfd_create("stderr")
        os.dup2(self.file, 2)

    def written(self):
        return os.pread(self.file, MUCH, 0).decode()

    def clear(self):
        os.ftruncate(self.file, 0)
        os.lseek(self.file, 0, os.SEEK_SET)


def end_of_a_foreign_fault(stderr, patience=PATIENCE):
    """How a fault ends a fork of this process: by which signal and with how many tracebacks; or ENDLESS."""
    stderr.clear()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MUCH, MUCH))
        signal.setitimer(signal.ITIMER_PROF, patience)
        ctypes.string_at(0)
        os._exit(99)
    end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    tracebacks = stderr.written().count("Fatal Python error")
    return ENDLESS if end in (-signal.SIGPROF, -signal.SIGXFSZ) or tracebacks > 1 else (end, tracebacks)


class WithoutMmkit:
    """A process that never imports mmkit. It tells how a foreign fault ends after some steps."""

    def __init__(self, library):
        self.asking, answering = socket.socketpair()
        known = {}
        if os.fork() == 0:
            self.asking.close()
            while steps := answering.recv(4096):
                if steps not in known:
                    known[steps] = self.answer(library, steps.decode().split())
                answering.send(known[steps])
            os._exit(0)
        answering.close()

    def answer(self, library, actions):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            state, stderr = State(library), Stderr()
            for action in actions:
                state.act(action)
            # Python's handler only notes that it was called: the fault comes again, for ever.
            endless = actions[-1:] == ["python_handler"]
            end = ENDLESS if endless else end_of_a_foreign_fault(stderr, PATIENCE / 50)
            os.write(writer, repr(end).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        return answer.encode()

    def ask(self, actions):
        steps = [action for action in actions if action not in ("import_mmkit", "dump_later")]
        self.asking.send(" ".join(steps).encode() or b" ")
        return eval(self.asking.recv(4096))


# ---- looking


class Walk:
    def __init__(self, handlers):
        self.complaints = os.dup(2)
        self.state = State(ctypes.CDLL(handlers))
        self.without_mmkit = WithoutMmkit(self.state.c_handlers)
        self.stderr = Stderr()

    def step(self, action):
        self.state.act(action)
        if is_imported():
            self.check_a_bad_access()
            self.check_a_foreign_fault()

    def check_a_bad_access(self):
        self.stderr.clear()
        mmkit = sys.modules["mmkit"]
        for _ in range(2):
            try:
                mmkit.peek(8, 1)
            except mmkit.MemoryFault:
                continue
            raise Trouble("no MemoryFault")
        if self.stderr.written():
            raise Trouble(f"a bad access printed {self.stderr.written()}")

    def check_a_foreign_fault(self):
        # What does not end without mmkit is nobody's promise.
        expected = self.without_mmkit.ask(self.state.done)
        if expected != ENDLESS:
            found = end_of_a_foreign_fault(self.stderr)
            if found != expected:
                raise Trouble(f"a foreign fault ended with {found}, not {expected}: {self.stderr.written()}")

    def complain(self, what):
        os.write(self.complaints, f"{' '.join(self.state.done)}: {what}\n".encode())

    def follow(self, path):
        for action in filter(self.state.can, path):
            self.step(action)
        return len(path)

    def explore(self, depth):
        """Go on from here in every way, each in a fork; returns how many sequences were looked at."""
        looked_at = 0
        late = not is_imported() and len(self.state.done) == BEFORE
        for action in filter(self.state.can, ("import_mmkit",) if late else EXPLORED):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                answer = 0
                try:
                    self.step(action)
                    answer = int(is_imported())
                    if depth > 1:
                        answer += self.explore(depth - 1)
                except BaseException as error:
                    self.complain(repr(error))
                finally:
                    os.write(writer, str(answer).encode())
                    os._exit(0)
            os.close(writer)
            with os.fdopen(reader) as pipe:
                answer = pipe.read()
            status = os.waitpid(pid, 0)[1]
            if status or not answer:
                self.complain(f"{action} ended with {os.waitstatus_to_exitcode(status)}")
            looked_at += int(answer or 0)
        return looked_at


def main(handlers, depth=0, path=()):
    walk = Walk(handlers)
    try:
        looked_at = walk.explore(depth) if depth else walk.follow(path)
        os.write(walk.complaints, f"{looked_at} sequences".encode())
    except Trouble as trouble:
        walk.complain(trouble)
