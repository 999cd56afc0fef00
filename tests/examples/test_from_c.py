"""The table in docs/from-c.md: every call, and what one would use instead."""

import inspect
import re
from pathlib import Path

from mmkit import Region, linux
from mmkit.cli.examples import read_examples

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "from-c.md").read_text()
# C | mmkit.linux | with Region | what that does for you | example
ROWS = re.findall(r"^\| `(struct )?(\w+)`[^|]* \| `linux\.(\w+)` \|([^|]+)\|[^|]*\|[^|]*\|$", PAGE, re.M)
EXAMPLES = re.findall(r"^\| `(\w+)`(?:[^|\n]*\|){4} `(\w+)` \|$", PAGE, re.M)


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


def test_the_malloc_family_is_there():
    for name in ("malloc", "calloc", "realloc", "free"):
        assert re.search(rf"^\| (`\w+`, )?`{name}`.*(Heap|Block)", PAGE, re.M), name


def test_an_example_of_a_call_says_that_it_is_about_it():
    said = {example.name: example.calls for example in read_examples()}
    assert len(EXAMPLES) > 25
    assert [(c, name) for c, name in EXAMPLES if not re.search(rf"\b{c}\(", said[name])] == []


def test_every_call_that_an_example_is_about_stands_on_the_page():
    for example in read_examples():
        for call in re.findall(r"(\w+)\(\d\)", example.calls):
            assert re.search(rf"`{call}\b", PAGE), (example.name, call)


def test_every_example_stands_in_the_index_as_it_introduces_itself():
    index = (ROOT / "docs" / "examples.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)`(?: \*)? \| (.*) \|$", index, re.M))
    found = read_examples()
    assert list(rows) == [example.name for example in found]
    for example in found:
        calls = re.sub(r"(\w+)\(\d\)", r"`\1`", example.calls)
        chapter = f"[{example.chapter}]({example.page.removeprefix('docs/')})"
        assert rows[example.name] == f"{example.title} | {calls} | {chapter}"
