"""What the programs of tests/death begin with, which a warm interpreter runs, and how they must end."""

from __future__ import annotations

import signal

import pytest

from warm import End, Warm

SEGV, BUS = int(signal.SIGSEGV), int(signal.SIGBUS)

TOOLS = """
import ctypes, faulthandler, os, signal, sys, threading, time

SEGV, BUS = signal.SIGSEGV, signal.SIGBUS
COARSE = 6  # CLOCK_MONOTONIC_COARSE

def bad_access():
    with mmkit.Region.memfd(2 * mmkit.PAGE_SIZE) as region:
        os.truncate(region.fileno(), mmkit.PAGE_SIZE)
        for call in (lambda: mmkit.peek(0, 1), lambda: mmkit.poke(8, b"x" * 100), lambda: region[:]):
            try:
                call()
            except mmkit.MemoryFault:
                continue
            raise AssertionError("no MemoryFault")

def bad_access_in_a_thread():
    thread = threading.Thread(target=bad_access)
    thread.start()
    thread.join()

def foreign_segv():
    ctypes.string_at(0)

def foreign_bus():
    region = mmkit.Region.memfd(mmkit.PAGE_SIZE)
    os.truncate(region.fileno(), 0)
    memoryview(region)[0]

def wait_for_a_tick():
    start = time.clock_gettime_ns(COARSE)
    while time.clock_gettime_ns(COARSE) == start:
        pass
"""

# With handlers.c as `handlers`.
C_TOOLS = """
library = ctypes.CDLL(handlers)
def install(style, nodefer=False):
    for number in (BUS, SEGV):
        assert library.handler_install(number, style.encode(), nodefer) == 0
"""

FAULTS = pytest.mark.parametrize(
    ("fault", "number"), [("foreign_segv", SEGV), ("foreign_bus", BUS)], ids=["segv", "bus"]
)


def ends_by(end: End, number: int, stderr: str = "") -> None:
    assert (end.signal, end.code, end.stderr) == (number, 0, stderr)


def dies_only_then(
    warm: Warm, program: str, death: str, number: int, before: str = "", **names: object
) -> None:
    """The program goes well and is silent; what follows ends it by the signal, silently."""
    end = warm.run(f"{TOOLS}\n{program}\nos.write(2, b'alive')\n{death}", before and TOOLS + before, **names)
    ends_by(end, number, "alive")


def goes_well(warm: Warm, program: str, before: str = "", **names: object) -> None:
    ends_by(warm.run(TOOLS + program, before and TOOLS + before, **names), 0)


def is_one_traceback(end: End, number: int) -> None:
    name = {SEGV: "Segmentation fault", BUS: "Bus error"}[number]
    assert end.signal == number
    assert end.stderr.startswith(f"Fatal Python error: {name}\n\n")
    assert end.stderr.count("Fatal Python error") == 1
    assert end.stderr.count("Current thread") == 1
    assert " in foreign_" in end.stderr


def set_before_or_after(action: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("before", "after"), [(action, ""), ("", action)], ids=["before", "after"])
