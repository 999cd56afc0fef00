"""Acting between two steps of Python code, where a signal handler or another thread could act as well."""

import sys
from collections.abc import Callable
from typing import Any


class Interruption(Exception):
    """What a signal handler raises."""


def interrupt() -> None:
    """Do what such a signal handler does."""
    raise Interruption


def run_until_step(function: Callable[[], Any], step: int, act: Callable[[], Any]) -> tuple[bool, Any]:
    """Run a function, and `act` before the step-th of its bytecode instructions, those it calls included.

    Returns whether it has so many, and what it returned. What `act` raises, the function raises.
    """
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == step:
                sys.settrace(None)
                act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = function()
    finally:
        sys.settrace(before)
    return count >= step, result
