"""Threads that block SIGSEGV and SIGBUS: bad accesses raise there as anywhere, and what is sent stays pending."""

from __future__ import annotations

import pytest

from programs import C_TOOLS, SEGV, TOOLS, ends_by, goes_well

BLOCKED = """
def blocked():
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


@pytest.mark.parametrize("numbers", ["{SEGV}", "{BUS}", "{SEGV, BUS, signal.SIGUSR1}"])
def test_a_thread_that_blocks_the_signals_gets_memory_faults(numbers, warm):
    program = f"""
def use():
    signal.pthread_sigmask(signal.SIG_SETMASK, {numbers})
    for turn in range(3):
        bad_access()
        assert blocked() == {numbers}
        wait_for_a_tick()
use()
thread = threading.Thread(target=use)
thread.start()
thread.join()
"""
    goes_well(warm, BLOCKED + program)


def test_a_thread_of_c_that_blocks_all_signals_gets_memory_faults(warm, handlers):
    program = """
done = []
@ctypes.CFUNCTYPE(None)
def use():
    mask = blocked()
    assert {SEGV, BUS, signal.SIGTERM} <= mask
    for turn in range(3):
        bad_access()
        assert blocked() == mask
        wait_for_a_tick()
    done.append(True)
for turn in range(3):
    assert library.call_in_blocked_thread(use) == 0
assert len(done) == 3
"""
    goes_well(warm, C_TOOLS + BLOCKED + program, handlers=handlers)


@pytest.mark.parametrize(
    "send", ["signal.pthread_kill(threading.get_ident(), {0})", "os.kill(os.getpid(), {0})"]
)
@pytest.mark.parametrize("number", ["SEGV", "BUS"])
def test_a_signal_sent_while_it_is_blocked_stays_pending_over_bad_accesses(number, send, warm):
    program = f"""
seen = []
signal.signal({number}, lambda number, frame: seen.append(number))
signal.pthread_sigmask(signal.SIG_BLOCK, {{SEGV, BUS}})
{send.format(number)}
for turn in range(3):
    assert signal.sigpending() == {{{number}}}
    bad_access()
    mmkit.peek(id(seen), 8)
    wait_for_a_tick()
assert signal.sigpending() == {{{number}}} and seen == []
signal.pthread_sigmask(signal.SIG_UNBLOCK, {{SEGV, BUS}})
assert seen == [{number}] and signal.sigpending() == set()
"""
    goes_well(warm, BLOCKED + program)


def test_a_foreign_fault_in_a_thread_that_blocks_it_ends_the_process(warm):
    """The kernel delivers it all the same, past every handler."""
    program = "faulthandler.enable()\nsignal.pthread_sigmask(signal.SIG_BLOCK, {SEGV})\nbad_access()\nforeign_segv()"
    ends_by(warm.run(TOOLS + program), SEGV)


def test_blocking_is_noticed_at_once(warm):
    program = """
bad_access()
signal.pthread_sigmask(signal.SIG_BLOCK, {SEGV, BUS})
bad_access()
signal.pthread_sigmask(signal.SIG_UNBLOCK, {SEGV, BUS})
bad_access()
"""
    for _ in range(5):
        goes_well(warm, program)
