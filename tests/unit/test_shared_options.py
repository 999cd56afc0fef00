"""Promises of what is said when shared memory is made or found: in which order, by name, and to whom."""

from __future__ import annotations

import inspect

import pytest

from mmkit import Channel, SharedMemory, SystemVMemory, shared

LOCKS = [shared.Lock, shared.RLock, shared.Condition, shared.Semaphore, shared.Event, shared.Barrier]

POSITIONS = {
    SharedMemory: "name create size",
    SystemVMemory: "key size",
    Channel: "name capacity create",
    shared.array: "name shape dtype create",
    **dict.fromkeys(LOCKS, "name create"),
    **{lock.at: "region offset" for lock in LOCKS},
}


@pytest.mark.parametrize("call", POSITIONS, ids=lambda call: call.__qualname__)
def test_what_may_be_said_by_position_is_few_things_and_all_else_goes_by_name(call):
    parameters = inspect.signature(call).parameters.values()
    positional = [each.name for each in parameters if each.kind == each.POSITIONAL_OR_KEYWORD]
    assert positional == POSITIONS[call].split()
    assert {each.kind for each in parameters} <= {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }
