"""The table in docs/from-c.md: every call, and what one would use instead."""

import inspect
import re
from pathlib import Path

from mmkit import Region, linux

PAGE = (Path(__file__).parents[2] / "docs" / "from-c.md").read_text()
# C | mmkit.linux | with Region | what that does for you
ROWS = re.findall(r"^\| `(struct )?(\w+)`[^|]* \| `linux\.(\w+)` \|([^|]+)\|[^|]*\|$", PAGE, re.M)


def test_every_name_of_linux_stands_in_the_table():
    assert {python for _, _, python, _ in ROWS} == set(linux.__all__)


def test_a_call_has_the_name_that_it_has_in_c():
    calls = {(c, python) for struct, c, python, _ in ROWS if not struct and python.islower()}
    assert all(c == python for c, python in calls)
    assert all(inspect.isroutine(getattr(linux, python)) for _, python in calls)


def test_what_the_table_recommends_exists():
    recommended = {name for *_, region in ROWS for name in re.findall(r"(\w+)\(", region)}
    assert len(recommended) > 15
    assert [name for name in recommended if not hasattr(Region, name)] == []


def test_the_malloc_family_is_on_top_of_it():
    for name in ("malloc", "calloc", "realloc", "free"):
        assert re.search(rf"^\| (`\w+`, )?`{name}`.*later", PAGE, re.M), name
