"""Fixtures of the tests in which something dies."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from warm import Warm


@pytest.fixture(scope="session")
def warm():
    warm = Warm()
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def handlers(tmp_path_factory):
    """The path of handlers.c as a shared library."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("handlers") / "handlers.so"
    source = Path(__file__).with_name("handlers.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-pthread", "-o", library, source], check=True)
    ctypes.CDLL(str(library))
    return str(library)
