"""Handlers come and go in any order: mmkit's bad accesses raise in silence, and a foreign fault ends the process."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import walk

# The warm interpreter runs it, and not this one: mmkit must not have been imported there before.
WALK = Path(walk.__file__).read_text() + "\nmain(handlers, depth, path)"
EXAMPLES = int(os.environ.get("MMKIT_EXAMPLES", "40"))


def test_in_every_order_of_four(warm, handlers):
    end = warm.run_before(WALK, seconds=100, handlers=handlers, depth=4, path=[])
    assert (end.signal, end.code) == (0, 0)
    found = re.fullmatch(r"(\d+) sequences", end.stderr)
    assert found, end.stderr
    assert int(found[1]) > 300


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@example(["import_mmkit", "python_handler", "default", "install", "python_handler", "enable", "restore"])
@given(path=st.lists(st.sampled_from(walk.ACTIONS), min_size=5, max_size=12))
def test_in_longer_orders(warm, handlers, path):
    if "import_mmkit" not in path:
        path = ["import_mmkit", *path]
    end = warm.run_before(WALK, seconds=60, handlers=handlers, depth=0, path=path)
    assert (end.signal, end.code, end.stderr) == (0, 0, f"{len(path)} sequences")
