"""Faults that are not mmkit's go where they went before: to faulthandler, to Python's handlers, to the end by the signal."""

from __future__ import annotations

import pytest

from programs import (
    C_TOOLS,
    FAULTS,
    SEGV,
    TOOLS,
    dies_only_then,
    ends_by,
    goes_well,
    is_one_traceback,
    set_before_or_after,
)
from support import sanitized
from warm import fresh

# ---- faulthandler

# What is done before mmkit is imported, and after.
ENABLED = {
    "before": ("faulthandler.enable()", ""),
    "after": ("", "faulthandler.enable()"),
    "before and after": ("faulthandler.enable()", "faulthandler.enable()"),
    "enabled, disabled, enabled": (
        "",
        "faulthandler.enable(); bad_access(); faulthandler.disable(); faulthandler.enable()",
    ),
    "before, disabled, enabled": (
        "faulthandler.enable()",
        "bad_access(); faulthandler.disable(); bad_access(); faulthandler.enable()",
    ),
    "disabled while it was not enabled": ("", "faulthandler.disable(); bad_access(); faulthandler.enable()"),
    "ten times": (
        "",
        "for _ in range(10): faulthandler.enable(); bad_access(); faulthandler.disable()\nfaulthandler.enable()",
    ),
    "with waits": ("", "bad_access(); wait_for_a_tick(); faulthandler.enable(); wait_for_a_tick()"),
}


@FAULTS
@pytest.mark.parametrize("order", ENABLED)
def test_faulthandler_dumps_once_and_only_for_a_foreign_fault(order, fault, number, warm):
    before, after = ENABLED[order]
    end = warm.run(
        f"{TOOLS}\n{after}\nbad_access()\nbad_access_in_a_thread()\n{fault}()", before and TOOLS + before
    )
    is_one_traceback(end, number)


@pytest.mark.parametrize("options", [("-X", "faulthandler"), ("-X", "dev")], ids=" ".join)
def test_a_fresh_interpreter_with_faulthandler_dumps_once(options):
    is_one_traceback(fresh(f"{TOOLS}\nimport mmkit\nbad_access()\nforeign_segv()", *options), SEGV)


def test_a_fresh_interpreter_exits_silently():
    ends_by(fresh(f"{TOOLS}\nimport mmkit\nfaulthandler.enable()\nbad_access()\nbad_access_in_a_thread()"), 0)


@FAULTS
def test_a_foreign_fault_in_a_thread_is_dumped_once(fault, number, warm):
    program = f"thread = threading.Thread(target={fault})\nthread.start()\nthread.join()"
    is_one_traceback(warm.run(TOOLS + program, TOOLS + "faulthandler.enable()"), number)


@FAULTS
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("faulthandler.enable()", "faulthandler.disable()"),
        ("", "faulthandler.enable(); faulthandler.disable()"),
    ],
)
def test_without_faulthandler_a_foreign_fault_ends_the_process_silently(before, after, fault, number, warm):
    dies_only_then(warm, f"{after}\nbad_access()\nbad_access_in_a_thread()", f"{fault}()", number, before)


def test_a_forked_child_dumps_once_too(warm):
    end = warm.run(
        TOOLS + "faulthandler.enable()\nbad_access()\n"
        "if os.fork():\n    assert os.WTERMSIG(os.wait()[1]) == SEGV\nelse:\n    bad_access(); foreign_segv()"
    )
    assert (end.signal, end.code, end.stderr.count("Fatal Python error")) == (0, 0, 1)


def test_a_foreign_fault_ends_the_process_while_others_map_and_unmap(warm):
    """What has just been unmapped may explain a fault; but not for ever."""
    program = """
def churn():
    while True:
        with mmkit.Region.anonymous(4 * mmkit.PAGE_SIZE) as region:
            region.address

for _ in range(3):
    threading.Thread(target=churn, daemon=True).start()
"""
    dies_only_then(warm, program, "ctypes.CDLL(None).strlen(None)", SEGV)  # without the GIL


# ---- handlers in Python

HANDLER = """
seen = []
def f(number, frame): seen.append((number, frame.f_code.co_name))
"""


@FAULTS
@set_before_or_after("signal.signal({0}, f)")
def test_a_python_handler_gets_what_is_sent_and_a_real_fault_ends_the_process(
    before, after, fault, number, warm
):
    program = f"""
{HANDLER if after else ""}
{after.format(number)}
def send():
    os.kill(os.getpid(), {number})
    signal.raise_signal({number})
for turn in (1, 2):
    send()
    assert seen == [({number}, "send")] * 2 * turn, seen
    bad_access()
    bad_access_in_a_thread()
assert len(seen) == 4, seen
assert signal.getsignal({number}) is f
"""
    dies_only_then(warm, program, f"{fault}()", number, before and HANDLER + before.format(number))


def test_a_python_handler_that_raises_does_so_where_the_signal_came(warm):
    program = """
class Mine(Exception): pass
def f(number, frame): raise Mine
signal.signal(SEGV, f)
for _ in range(3):
    bad_access()
    try:
        os.kill(os.getpid(), SEGV)
    except Mine:
        continue
    raise AssertionError
"""
    goes_well(warm, program)


@FAULTS
@set_before_or_after("signal.signal({0}, signal.SIG_IGN)")
def test_an_ignored_signal_is_ignored_when_sent_and_not_when_real(before, after, fault, number, warm):
    program = f"{after.format(number)}\nbad_access()\nos.kill(os.getpid(), {number})\nbad_access()\n"
    program += f"assert signal.getsignal({number}) is signal.SIG_IGN"
    dies_only_then(warm, program, f"{fault}()", number, before.format(number))


@FAULTS
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("signal.signal({0}, signal.SIG_DFL)", ""),
        ("", "signal.signal({0}, signal.SIG_DFL)"),
        ("signal.signal({0}, print)", "signal.signal({0}, signal.SIG_DFL)"),
    ],
)
def test_the_default_ends_the_process_sent_or_real(before, after, fault, number, warm):
    program = f"{after.format(number)}\nbad_access()\nassert signal.getsignal({number}) is signal.SIG_DFL\n"
    for death in (f"os.kill(os.getpid(), {number})", f"{fault}()"):
        dies_only_then(warm, program, death, number, before.format(number))


def test_importing_changes_nothing_that_signal_tells(warm):
    before = """
before = {number: signal.getsignal(number) for number in signal.valid_signals()}
mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""
    program = """
bad_access()
assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
assert signal.signal(SEGV, signal.SIG_IGN) is signal.SIG_DFL
assert signal.signal(SEGV, print) is signal.SIG_IGN
assert signal.signal(SEGV, signal.SIG_DFL) is print
assert not faulthandler.is_enabled()
assert signal.signal.__name__ == "signal" and faulthandler.enable.__doc__
for call, error in ((lambda: signal.signal(SEGV, 5.5), TypeError), (lambda: signal.signal(1000, print), ValueError)):
    try:
        call()
    except error:
        continue
    raise AssertionError
bad_access()
"""
    goes_well(warm, program, before)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("faulthandler.enable()", "signal.signal(SEGV, print)"),
        ("", "faulthandler.enable(); signal.signal(SEGV, print)"),
        ("", "signal.signal(SEGV, print); faulthandler.enable()"),
    ],
)
def test_a_python_handler_over_faulthandler_hides_no_fault(before, after, warm):
    is_one_traceback(
        warm.run(f"{TOOLS}\n{after}\nbad_access()\nforeign_segv()", before and TOOLS + before), SEGV
    )


@pytest.mark.parametrize("send", ["signal.pthread_kill(main, SEGV)", "os.kill(os.getpid(), SEGV)"])
def test_a_signal_sent_by_another_thread_during_an_access_is_not_lost(send, warm):
    program = f"""
seen, main, inside = [], threading.get_ident(), threading.Event()
signal.signal(SEGV, lambda number, frame: seen.append(number))
region = mmkit.Region.anonymous(64 << 20)

def send():
    inside.wait()
    {send}

thread = threading.Thread(target=send)
thread.start()
sys.setswitchinterval(10)  # so that the other runs when the copy has let go of the GIL, and not before
inside.set()
region[:]
thread.join()
assert seen == [SEGV], seen
"""
    goes_well(warm, program)


# ---- stacks


@sanitized
@pytest.mark.parametrize("with_faulthandler", [False, True], ids=["silently", "with a traceback"])
def test_a_stack_overflow_in_c_ends_by_sigsegv(with_faulthandler, warm, handlers):
    program = f"{'faulthandler.enable()' if with_faulthandler else ''}\nbad_access()\n"
    program += "def foreign_overflow(): library.overflow(0)\nforeign_overflow()"
    end = warm.run(TOOLS + C_TOOLS + program, handlers=handlers)
    if with_faulthandler:
        is_one_traceback(end, SEGV)
    else:
        ends_by(end, SEGV)


def test_a_stack_overflow_in_a_thread_ends_by_sigsegv(warm, handlers):
    program = C_TOOLS + "bad_access()\nbad_access_in_a_thread()"
    death = "thread = threading.Thread(target=library.overflow, args=(0,))\nthread.start()\nthread.join()"
    dies_only_then(warm, program, death, SEGV, handlers=handlers)
