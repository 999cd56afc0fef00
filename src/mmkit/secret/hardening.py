"""What a process does for its secrets as a whole."""

from __future__ import annotations

import resource
import warnings

from mmkit._native.secret import forbid_dumps
from mmkit.errors import SyscallError
from mmkit.flags import LockAllFlag
from mmkit.linux import mlockall
from mmkit.making import Demand, check_demand

__all__ = ["harden_process"]


def harden_process(*, lock: Demand = "off") -> None:
    """Close the process to core dumps and to others of its user, for good; and lock it into RAM, if asked.

    Sets PR_SET_DUMPABLE to 0 and RLIMIT_CORE to 0. What that costs: no core file tells why it died;
    debuggers, profilers and ``/proc/PID/mem`` need CAP_SYS_PTRACE, for the process itself as well where it is
    not root (its own ``/proc/self/mem``, ``pagemap``, ``environ`` and ``fd`` belong to root then). Children
    that it forks are the same; programs that it starts get their own ``dumpable``, and the limit.

    Parameters
    ----------
    lock
        Lock all that the process has, and will have (``mlockall``): its libraries, each stack, the whole heap
        of Python, where copies of secrets are that somebody has made. All of it counts against
        RLIMIT_MEMLOCK, and from then on an allocation fails that would exceed it. ``"warn"`` goes on where it
        is refused.

    Raises
    ------
    OutOfMemory
        The process does not fit its limit, and `lock` is ``"require"``.
    SyscallError
        Another refusal.

    References
    ----------
    prctl(2), setrlimit(2), mlockall(2)
    """
    check_demand("lock", lock)
    forbid_dumps()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if lock == "off":
        return
    try:
        mlockall(LockAllFlag.CURRENT | LockAllFlag.FUTURE)
    except SyscallError as error:
        if lock == "require":
            raise
        warnings.warn(f"the process is not locked into RAM: {error}", RuntimeWarning, stacklevel=2)
