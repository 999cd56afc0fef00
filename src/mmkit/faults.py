"""Bad accesses become exceptions: `peek` and `poke`, and the signal handler that stays in front.

mmkit handles SIGSEGV and SIGBUS for its own accesses and passes all others on to whoever handled them before.
Others may install handlers later. The ways in which Python code does so are wrapped here, to put mmkit's in
front again; handlers that C code installs are noticed at mmkit's next access, a clock tick later at most.
"""

from __future__ import annotations

import faulthandler
import functools
import importlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from mmkit._native.fault import come_first, peek, poke

__all__ = ["peek", "poke"]

P = ParamSpec("P")
T = TypeVar("T")


def _then_come_first(function: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        # Before it, too: what C code has put back unnoticed is not what a new handler stands on.
        come_first()
        try:
            return function(*args, **kwargs)
        finally:
            come_first()

    return call


# Behind signal.signal, which may have been imported by its name before.
_signal: Any = importlib.import_module("_signal")
_signal.signal = _then_come_first(_signal.signal)
_signal.pthread_sigmask = _then_come_first(_signal.pthread_sigmask)
faulthandler.enable = _then_come_first(faulthandler.enable)
faulthandler.disable = _then_come_first(faulthandler.disable)
