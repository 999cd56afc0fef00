"""A program at a terminal of its own, as a person at a shell has it."""

import os
import pty
import select
import signal
import struct
import sys
import termios
import time


class Terminal:
    """A program at a terminal of its own, started as a shell does: the group of a session's leader is never stopped."""

    def __init__(self, code):
        self.ends, writer = os.pipe()
        leader, self.master = pty.fork()
        if leader == 0:
            self.lead(code, writer)
        os.close(writer)
        self.leader = leader
        self.pid = self.told()
        self.shown = b""

    @staticmethod
    def lead(code, writer):
        try:
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                signal.signal(signal.SIGTTOU, signal.SIG_IGN)
                os.tcsetpgrp(0, os.getpid())
                signal.signal(signal.SIGTTOU, signal.SIG_DFL)
                # Whoever runs the tests in the background of a script ignores them, and so would the program.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.signal(signal.SIGQUIT, signal.SIG_DFL)
                os.execv(sys.executable, [sys.executable, "-c", code])
            os.write(writer, struct.pack("i", pid))
            status = 0x7F
            while os.WIFSTOPPED(status):
                status = os.waitpid(pid, os.WUNTRACED)[1]
                os.write(writer, struct.pack("i", status))
        finally:
            os._exit(0)

    def told(self):
        assert select.select([self.ends], [], [], 20)[0], self.shown
        return struct.unpack("i", os.read(self.ends, 4))[0]

    def expect(self, words):
        deadline = time.monotonic() + 20
        while words not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.master, 1000)
                except OSError:
                    assert words in self.shown, self.shown
        before, self.shown = self.shown.split(words, 1)
        return before

    def type(self, keys):
        os.write(self.master, keys)

    @property
    def echoes(self):
        return bool(termios.tcgetattr(self.master)[3] & termios.ECHO)

    def wait(self):
        """The status with which the program ended, or stopped."""
        return self.told()

    def close(self):
        os.close(self.master)
        os.close(self.ends)
        os.kill(self.leader, signal.SIGKILL)
        os.waitpid(self.leader, 0)
