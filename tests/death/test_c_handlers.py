"""Handlers in C, installed before mmkit and after it, that pass on what they do not know in one of the usual ways."""

from __future__ import annotations

import pytest

from programs import (
    C_TOOLS,
    SEGV,
    TOOLS,
    dies_only_then,
    ends_by,
    goes_well,
    is_one_traceback,
    set_before_or_after,
)

BY_C = {
    "before": ("install({style!r}, {nodefer})", ""),
    "after": ("", "install({style!r}, {nodefer})"),
    "after a bad access": (
        "",
        "bad_access(); wait_for_a_tick(); bad_access(); install({style!r}, {nodefer})",
    ),
    "between": ("", "faulthandler.enable(); install({style!r}, {nodefer}); faulthandler.disable()"),
}


def by_c(order: str, style: str, nodefer: bool = False) -> tuple[str, str]:
    """What is done before mmkit is imported, and after."""
    before, after = (action.format(style=style, nodefer=nodefer) for action in BY_C[order])
    return (C_TOOLS + before, after) if before else ("", C_TOOLS + after)


@pytest.mark.parametrize("nodefer", [False, True], ids=["", "nodefer"])
@pytest.mark.parametrize("style", ["calling", "returning", "raise", "kill", "repairing"])
@pytest.mark.parametrize("order", BY_C)
def test_a_c_handler_that_passes_on_what_it_does_not_know_is_in_no_ones_way(
    order, style, nodefer, warm, handlers
):
    before, program = by_c(order, style, nodefer)
    program += "\nbad_access()\nbad_access_in_a_thread()\nwait_for_a_tick()\nbad_access()\n"
    dies_only_then(warm, program, "foreign_segv()", SEGV, before, handlers=handlers)


@pytest.mark.parametrize("style", ["calling", "returning", "raise", "kill"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_c_handler_is_called_for_a_foreign_fault_once(order, style, warm, handlers):
    before, program = by_c(order, style)
    program = f"{TOOLS}{program}\nlibrary.handler_be_loud()\nforeign_segv()"
    ends_by(warm.run(program, before and TOOLS + before, handlers=handlers), SEGV, "handler\n")


def test_a_c_handler_from_before_is_not_called_for_mmkits_own_faults(warm, handlers):
    program = "bad_access()\nbad_access_in_a_thread()\nassert library.handler_calls() == 0"
    goes_well(warm, program, C_TOOLS + "install('calling')", handlers=handlers)


def test_a_c_handler_from_after_is_passed_by_after_a_tick(warm, handlers):
    program = """
bad_access()
install("calling")
wait_for_a_tick()
bad_access()
bad_access_in_a_thread()
assert library.handler_calls() == 0
"""
    goes_well(warm, C_TOOLS + program, handlers=handlers)


@set_before_or_after("install('repairing')")
def test_a_c_handler_goes_on_repairing_its_own_pages(before, after, warm, handlers):
    program = f"""
import mmap
{C_TOOLS}
{after}
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
library.handler_repairs(ctypes.c_void_p(address))
for turn in (1, 2, 3):
    bad_access()
    page[0] = 7
    before = library.handler_calls()
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), 4096, 0) == 0
    assert page[0] == 7
    assert library.handler_calls() == before + 1
"""
    goes_well(warm, program, before and C_TOOLS + before, handlers=handlers)


@set_before_or_after("install('jumping')")
def test_a_c_handler_goes_on_jumping_out_of_its_own_faults(before, after, warm, handlers):
    program = f"""
{C_TOOLS}
{after}
library.handler_probe.argtypes = [ctypes.c_void_p]
for turn in range(20):
    assert library.handler_probe(0) == -1
    assert library.handler_probe(id(library)) != -1
    bad_access()
"""
    dies_only_then(warm, program, "foreign_segv()", SEGV, before and C_TOOLS + before, handlers=handlers)


@set_before_or_after("library.handler_install_exit_42(SEGV)")
def test_a_handler_without_a_chain_still_has_the_last_word_of_a_foreign_fault(before, after, warm, handlers):
    program = f"{TOOLS}{C_TOOLS}\nbad_access()\n{after}\nwait_for_a_tick()\nbad_access()\nforeign_segv()"
    end = warm.run(program, before and TOOLS + C_TOOLS + before, handlers=handlers)
    assert (end.signal, end.code, end.stderr) == (0, 42, "")


def test_what_a_c_handler_restores_is_found_by_mmkit(warm, handlers):
    program = """
for turn in range(5):
    install("calling")
    wait_for_a_tick() if turn % 2 else None
    bad_access()
    library.handler_restore(SEGV)
    library.handler_restore(BUS)
    wait_for_a_tick()
    bad_access()
library.handler_be_loud()
"""
    dies_only_then(warm, C_TOOLS + program, "foreign_segv()", SEGV, handlers=handlers)


def test_faulthandler_over_a_c_handler_that_has_gone_dumps_once(warm, handlers):
    program = """
install("calling")
bad_access()
wait_for_a_tick()
bad_access()
library.handler_restore(SEGV)
faulthandler.enable()
install("calling")
wait_for_a_tick()
bad_access()
foreign_segv()
"""
    is_one_traceback(warm.run(TOOLS + C_TOOLS + program, handlers=handlers), SEGV)
