"""Run by test_handler_orders.py in a warm interpreter: installs handlers in many orders, and looks after each step.

The looking is in `check_a_bad_access` and `check_a_foreign_fault`. When every order is to be tried, each step is made in a
fork of the process that has made the steps before: sequences share their beginnings.
"""

import ctypes
import faulthandler
import os
import select
import signal
import sys
import time

COARSE = 6  # CLOCK_MONOTONIC_COARSE
PATIENCE = 5  # seconds until a fault has ended the process: on a busy machine
BEFORE = 1  # steps before mmkit is imported, at most, where every order is tried: importing takes longest


def wait_for_a_tick():
    start = time.clock_gettime_ns(COARSE)
    while time.clock_gettime_ns(COARSE) == start:
        pass


class Trouble(Exception):
    pass


class State:
    """What has been done so far in this process."""

    def __init__(self, library):
        self.library = library
        self.done = []
        self.installed = False
        self.knows_mmkit = False
        self.dumps = (0,)  # how many tracebacks a foreign fault may print
        self.handler = lambda number, frame: None

    def import_mmkit(self):
        import mmkit  # noqa: F401

    def enable(self):
        # Where it is enabled already, it does not look whether its handler is still there.
        if not faulthandler.is_enabled():
            self.dumps = (1,)
        faulthandler.enable()

    def disable(self):
        faulthandler.disable()
        self.dumps = (0,)

    def python_handler(self):
        signal.signal(signal.SIGSEGV, self.handler)
        self.something_is_in_front()

    def default(self):
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        self.something_is_in_front()

    def install(self):
        self.library.handler_install(signal.SIGSEGV, b"calling", False)
        self.installed = True
        self.knows_mmkit = is_imported()
        self.something_is_in_front()

    def restore(self):
        self.library.handler_restore(signal.SIGSEGV)
        self.installed = False
        self.something_is_in_front()
        if not self.knows_mmkit:
            # What it has put back is not mmkit's, who learns of what C code does once a tick.
            wait_for_a_tick()

    def dump_later(self):
        faulthandler.dump_traceback_later(1000)
        faulthandler.cancel_dump_traceback_later()

    def something_is_in_front(self):
        # Whether that knows of faulthandler, and passes on to it, depends on the order.
        self.dumps = (0, 1) if faulthandler.is_enabled() else (0,)

    def can(self, action):
        if action == "import_mmkit":
            return not is_imported()
        if action == "install":
            # A handler that calls Python's, which only notes that it was called, never ends: without mmkit, too.
            return not self.installed and (
                is_imported() or signal.getsignal(signal.SIGSEGV) is not self.handler
            )
        return action != "restore" or self.installed

    def act(self, action):
        getattr(self, action)()
        self.done.append(action)


def is_imported():
    return "mmkit" in sys.modules


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


class Stderr:
    """Stands for stderr, and tells what was written there."""

    def __init__(self):
        self.file = os.memfd_create("stderr")
        os.dup2(self.file, 2)

    def written(self):
        return os.pread(self.file, 10_000, 0)

    def clear(self):
        os.ftruncate(self.file, 0)
        os.lseek(self.file, 0, os.SEEK_SET)


def check_a_bad_access(stderr):
    stderr.clear()
    mmkit = sys.modules["mmkit"]
    for _ in range(2):
        try:
            mmkit.peek(8, 1)
        except mmkit.MemoryFault:
            continue
        raise Trouble("no MemoryFault")
    if stderr.written():
        raise Trouble("a bad access printed " + stderr.written().decode())


def wait_until_dead(pid):
    pidfd = os.pidfd_open(pid)
    dead = select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)
    if not dead:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if not dead:
        raise Trouble("the process still ran after a foreign fault")
    return status


def check_a_foreign_fault(state, stderr, pid):
    status = wait_until_dead(pid)
    if os.waitstatus_to_exitcode(status) != -signal.SIGSEGV:
        raise Trouble(f"a foreign fault ended the process with {os.waitstatus_to_exitcode(status)}")
    written = stderr.written().decode()
    if written.count("Fatal Python error") not in state.dumps:
        raise Trouble(f"a foreign fault printed, where {state.dumps} tracebacks were expected: {written}")


def fork_to_fault():
    pid = os.fork()
    if pid == 0:
        ctypes.string_at(0)
        os._exit(99)
    return pid


def look(state, stderr):
    if is_imported():
        check_a_bad_access(stderr)
        check_a_foreign_fault(state, stderr, fork_to_fault())


def explore(state, stderr, depth, complaints):
    """Go on from here in every way; returns how many sequences were looked at, and says which went wrong."""
    looked_at = 0
    late = not is_imported() and len(state.done) == BEFORE
    for action in filter(state.can, ("import_mmkit",) if late else ACTIONS):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            answer = 0
            try:
                state.act(action)
                look(state, stderr)
                answer = int(is_imported())
                if depth > 1:
                    answer += explore(state, stderr, depth - 1, complaints)
            except BaseException as error:
                os.write(complaints, f"{' '.join(state.done)}: {error!r}\n".encode())
            finally:
                os.write(writer, str(answer).encode())
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            answer = pipe.read()
        status = os.waitpid(pid, 0)[1]
        if status or not answer:
            end = os.waitstatus_to_exitcode(status)
            os.write(complaints, f"{' '.join([*state.done, action])}: ended with {end}\n".encode())
        looked_at += int(answer or 0)
    return looked_at


def main(handlers, depth=0, path=()):
    complaints = os.dup(2)
    state, stderr = State(ctypes.CDLL(handlers)), Stderr()
    try:
        for action in filter(state.can, path):
            state.act(action)
            look(state, stderr)
        looked_at = explore(state, stderr, depth, complaints) if depth else len(path)
        os.write(complaints, f"{looked_at} sequences".encode())
    except Trouble as trouble:
        os.write(complaints, f"{' '.join(state.done)}: {trouble}".encode())
