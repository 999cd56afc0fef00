"""Run a copy of CPython's test_mmap on mmkit.compat.mmap: ``python cpython_mmap.py COPY [standard]``.

Prints, as JSON, how many tests ran, which were skipped, and which failed with what.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
import tempfile
import unittest
from pathlib import Path

import test.support


def supply_missing_facts(source: str) -> None:
    """Newer copies ask test.support about platforms that this Python's does not know: this is none of them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "test.support":
            for name in node.names:
                if name.name.startswith("is_") and not hasattr(test.support, name.name):
                    setattr(test.support, name.name, False)


def load(path: Path):
    spec = importlib.util.spec_from_file_location("test_mmap_copy", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["test_mmap_copy"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    path, standard = Path(sys.argv[1]), "standard" in sys.argv[2:]
    if not standard:
        from mmkit.compat import mmap

        sys.modules["mmap"] = mmap
    supply_missing_facts(path.read_text())
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        module = load(path)
        assert module.mmap is sys.modules["mmap"]
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    print(
        json.dumps(
            {
                "ran": result.testsRun,
                "skipped": sorted(case.id() for case, _ in result.skipped),
                "failed": {case.id(): trace for case, trace in result.failures + result.errors},
            }
        )
    )


if __name__ == "__main__":
    main()
