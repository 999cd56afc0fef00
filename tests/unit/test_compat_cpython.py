"""CPython's own test_mmap, with mmkit.compat.mmap in place of the module that it tests."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parents[1] / "cpython_mmap.py"
#: Tests that cannot hold on mmkit, by name, with the reason. May it stay empty.
CANNOT_HOLD: dict[str, str] = {}


def installed():
    """The copy of the Python that runs this, if it came with its tests."""
    try:
        spec = importlib.util.find_spec("test.test_mmap")
    except ImportError:
        return None
    return Path(spec.origin) if spec else None


def copies():
    """It, those of Pythons installed beside it, and what MMKIT_TEST_MMAP names; none older than 3.11."""
    places = [Path(sys.base_prefix).parent, Path("/usr"), Path("/usr/local")]
    beside = [
        path
        for place in places
        for path in [
            *place.glob("*/lib/python3.*/test/test_mmap.py"),
            *place.glob("lib/python3.*/test/test_mmap.py"),
        ]
        if int(re.search(r"python3\.(\d+)", str(path))[1]) >= 11
    ]
    named = [Path(path) for path in os.environ.get("MMKIT_TEST_MMAP", "").split(os.pathsep) if path]
    own = installed()
    return sorted({path.resolve() for path in [*([own] if own else []), *beside, *named]})


def run(path, *arguments):
    pytest.importorskip("test.support", reason="this Python came without its own tests")
    done = subprocess.run(
        [sys.executable, DRIVER, path, *arguments], check=True, capture_output=True, text=True, timeout=100
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", copies() or [None], ids=str)
def test_cpythons_own_tests_pass(path):
    if path is None:
        pytest.skip(
            "this Python came without its own tests, and no other's are installed: see MMKIT_TEST_MMAP"
        )
    result = run(path)
    assert result["ran"] > 40
    assert {name: trace for name, trace in result["failed"].items() if name not in CANNOT_HOLD} == {}


def test_no_test_is_skipped_that_the_standard_module_runs():
    path = installed()
    if path is None:
        pytest.skip("this Python came without its own tests")
    assert run(path)["skipped"] == run(path, "standard")["skipped"]
