"""What the documentation shows as printed is what is printed today, but for the numbers.

A block under ``<!-- as printed by: COMMAND -->`` is compared with the output of that command. Numbers, addresses and
how much of a page or bar is filled differ from run to run. A line of ⋮ stands for any lines, and what follows … in a
line is left out.
"""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support import SANITIZED, needs_root

ROOT = Path(__file__).parents[2]
MARKED = re.compile(r"^<!-- as printed by: ([^\n]+) -->\n```text\n(.*?)^```", re.M | re.S)
BLOCKS = [
    pytest.param(*match.groups(), id=f"{page.name}:{page.read_text()[: match.start()].count(chr(10)) + 1}")
    for page in sorted((ROOT / "docs").glob("*.md"))
    for match in MARKED.finditer(page.read_text())
]

pytestmark = [
    pytest.mark.skipif(SANITIZED, reason="a sanitizer has a malloc and an mlock of its own"),
    needs_root,  # an ordinary user may be refused what the chapters show
]


@functools.cache
def printed(command):
    program, *arguments = shlex.split(command)
    start = ["-m", "mmkit"] if program == "mmkit" else [program]
    done = subprocess.run(
        [sys.executable, *start, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return shapes(done.stdout)


def shapes(text):
    return [shape(line) for line in text.splitlines()]


def shape(line):
    if re.match(r" *(cached|in RAM) ", line):
        line = re.sub("[▁▂▃▄▅▆▇█░ ]", "", line)
    line = re.sub(r"\b(0x)?[0-9a-f]*[0-9][0-9a-f,.]*\b", "#", line)
    return " ".join(line.split())


def stands_in(part, lines):
    """Whether some lines follow each other somewhere, and after them what follows ⋮."""
    if "⋮" in part:
        at = part.index("⋮")
        part, rest = part[:at], part[at + 1 :]
    else:
        rest = []
    for start in range(len(lines) - len(part) + 1):
        if all(map(matches, part, lines[start:])):
            return not rest or stands_in(rest, lines[start + len(part) :])
    return False


def matches(shown, line):
    return line.startswith(shown[:-1].rstrip()) if shown.endswith("…") else shown == line


@pytest.mark.parametrize(("command", "block"), BLOCKS)
def test_what_a_page_shows_is_printed_today(command, block):
    lines = printed(command)
    if not stands_in(shapes(block), lines):
        if any("not reached" in line for line in lines):
            pytest.skip("this kernel refuses a part of it")
        pytest.fail(f"`{command}` prints this no longer, take it over anew:\n{block}")


def test_each_chapter_has_such_blocks():
    pages = {param.id.partition(":")[0] for param in BLOCKS}
    assert {"layout.md", "mapping.md", "protection.md", "advice.md", "locking.md", "tour.md"} <= pages


@pytest.mark.parametrize(
    ("block", "found"),
    [
        ("in RAM │███│   │\n  7f00 x", True),
        ("in RAM │   │   │\n  12ab x", True),
        ("in RAM │   │   │   │\n  12ab x", False),
        ("in RAM │   │   │\n  12ab y", False),
        ("⋮\n  12ab x", True),
        ("in RAM │   │   │\n⋮\nlast words", True),
        ("in RAM │   │   │\nlast words", False),
        ("last …", True),
        ("last\n⋮\nin RAM │   │   │", False),
    ],
)
def test_only_numbers_and_fills_may_differ(block, found):
    lines = shapes("first\n  in RAM │███│███│\n  7fffd000 x\nmore\nlast words\n")
    assert stands_in(shapes(block), lines) == found
