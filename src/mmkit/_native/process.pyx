"""Who a process is, and whether it still lives, as the core has it for locks and channels."""

from mmkit._native.process cimport *

cdef enum:
    MOST_PIDS = 0x7FFFFFFF

UNKNOWN_BOOT = "unknown"


def this_process():
    """Return what names this process, with its pid.

    Returns
    -------
    start, boot, pid_namespace, time_namespace
        What /proc does not tell is 0, and `UNKNOWN_BOOT`.
    """
    cdef mmk_process self
    cdef uint64_t namespaces = 0
    cdef uint8_t boot[16]
    cdef str text = UNKNOWN_BOOT
    if mmk_process_self(&self):
        self.start = 0
    if mmk_process_namespace(&namespaces):
        namespaces = 0
    if mmk_process_boot(boot) == 0:
        digits = (<const char *>boot)[:16].hex()
        text = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    return self.start, text, <uint32_t>namespaces, namespaces >> 32


def lives(pid, start):
    """Return whether a process still lives: None if that cannot be known. A start of 0 is not known."""
    if not 0 < pid <= MOST_PIDS:
        return None
    cdef mmk_process process
    process.pid = pid
    process.start = start
    cdef mmk_life life = mmk_process_life(&process)
    return None if life == MMK_LIFE_UNKNOWN else life == MMK_LIFE_LASTS


def start_of(uint32_t pid):
    """Return when the process that has a pid started, in clock ticks since boot; 0 if nobody tells."""
    cdef uint64_t start
    mmk_process_start(pid, &start)
    return start
