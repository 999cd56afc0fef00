"""What the tests of channels share: a channel, and processes that use it, or are killed in it."""

import contextlib
import os
import signal
import warnings

CAPACITY = 64 * 1024


@contextlib.contextmanager
def forked(function):
    """Run a function in a forked child meanwhile; it must end well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(60)
            function()
            code = 0
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        _, status = os.waitpid(pid, 0)
    assert status == 0


def killed(function):
    """Run a function in a forked child that kills itself at its end."""

    def body():
        function()
        os.kill(os.getpid(), signal.SIGKILL)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
