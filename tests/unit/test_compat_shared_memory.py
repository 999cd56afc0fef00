"""`mmkit.compat.shared_memory` in place of `multiprocessing.shared_memory`, in every interpreter of a tree."""

import importlib.util
import os
import signal
import subprocess
import sysconfig
import venv
from multiprocessing import shared_memory as standard
from pathlib import Path

import numpy as np
import pytest

import mmkit
from mmkit.compat import shared_memory as compat
from mmkit.compat.shared_memory import ShareableList, SharedMemory
from segment_tools import names
from support import SANITIZED, run

HAS_TESTS = importlib.util.find_spec("test") and importlib.util.find_spec("test._test_multiprocessing")

SUBSTITUTE = """
import multiprocessing, sys
import mmkit.compat.shared_memory as ours
sys.modules["multiprocessing.shared_memory"] = multiprocessing.shared_memory = ours
"""

SUITE = """
import sys, unittest
from multiprocessing import shared_memory
assert shared_memory.__name__ == "mmkit.compat.shared_memory"
import test._test_multiprocessing as tests
assert tests.shared_memory is shared_memory
names = globals()
tests.install_tests_in_module_dict(names, sys.argv[1], **({"only_type": "processes"} if len(sys.argv) > 2 else {}))
suite = unittest.defaultTestLoader.loadTestsFromTestCase(WithProcessesTestSharedMemory)
if hasattr(sys.modules["__main__"], "setUpModule"):
    setUpModule()
result = unittest.TextTestRunner(verbosity=2).run(suite)
if hasattr(sys.modules["__main__"], "tearDownModule"):
    tearDownModule()
sys.exit(not result.wasSuccessful() or result.testsRun < 8)
"""


@pytest.fixture(scope="module")
def substituted(tmp_path_factory):
    """An interpreter, and the interpreters it starts, in which the drop-in is the standard module."""
    folder = tmp_path_factory.mktemp("substituted")
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    here = sysconfig.get_path("purelib")
    source = str(Path(mmkit.__file__).parents[1])
    (site / "substitute_shared_memory.py").write_text(SUBSTITUTE)
    (site / "zz_substitute.pth").write_text(
        f"import site; site.addsitedir({here!r}); import sys; sys.path.append({source!r}); import substitute_shared_memory\n"
    )
    return folder / "bin" / "python"


@pytest.mark.skipif(not HAS_TESTS, reason="this interpreter comes without CPython's tests")
@pytest.mark.skipif(SANITIZED, reason="new interpreters have no sanitizer's runtime")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_cpythons_own_tests_pass_with_it(substituted, method, tmp_path):
    # As a file: spawned children import it.
    program = tmp_path / "suite.py"
    program.write_text(
        "if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in SUITE.splitlines())
    )
    done = subprocess.run(
        [substituted, program, method],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=tmp_path,
        # One of them interrupts itself; a shell's background jobs are born deaf to that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == 0, done.stderr
    assert "SharedMemory" in done.stderr


# ---- beside the standard module ------------------------------------------------------------------------


def public(kind):
    return {member for member in dir(kind) if not member.startswith("_")}


def test_it_has_what_the_standard_module_has():
    assert set(compat.__all__) == set(standard.__all__)
    assert public(standard.SharedMemory) <= public(SharedMemory)
    assert public(standard.ShareableList) <= public(ShareableList)
    assert compat._SHM_NAME_PREFIX == standard._SHM_NAME_PREFIX
    assert len(compat._make_filename()) == len(standard._make_filename())


ITEMS = [
    "howdy",
    b"HoWdY",
    -273.154,
    100,
    None,
    True,
    False,
    "",
    b"",
    "exactly8",
    "x" * 100,
    2**63 - 1,
    -(2**63),
    "ü",
]


@pytest.mark.parametrize(
    ("writer", "reader"), [(standard, compat), (compat, standard)], ids=["read", "written"]
)
def test_each_reads_the_others_lists(writer, reader, name):
    ours = writer.ShareableList(ITEMS, name=name)
    theirs = reader.ShareableList(name=name)
    assert list(theirs) == ITEMS
    assert theirs.format == ours.format
    theirs[0] = "there"
    theirs[3] = None
    theirs[4] = 7
    assert [ours[0], ours[3], ours[4]] == ["there", None, 7]
    assert theirs.format == ours.format
    ours.shm.close()
    theirs.shm.close()
    ours.shm.unlink()


def test_text_has_room_for_its_bytes_and_not_for_its_characters(name):
    # https://github.com/python/cpython/issues/145261
    text = "0\U00010000\U00010000"
    shared = ShareableList([text, "after"], name=name)
    assert list(shared) == [text, "after"]
    shared.shm.close()
    shared.shm.unlink()


@pytest.mark.parametrize("bad", [2**63, object(), [1], 1j])
def test_what_a_list_cannot_hold_is_refused_and_changes_nothing(name, bad):
    shared = ShareableList([1, "two"], name=name)
    with pytest.raises(Exception, match=r"holds int|argument out of range|format requires"):
        shared[0] = bad
    assert list(shared) == [1, "two"]
    shared.shm.close()
    shared.shm.unlink()


def test_a_segment_without_a_list_is_refused(name):
    segment = SharedMemory(name, create=True, size=16)
    segment.buf[:8] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(ValueError, match="holds no ShareableList"):
        ShareableList(name=name)
    segment.close()
    segment.unlink()


def test_an_array_on_the_buffer_is_never_left_without_memory(name):
    segment = SharedMemory(name, create=True, size=80)
    array = np.ndarray((10,), dtype="i8", buffer=segment.buf)
    with pytest.raises(BufferError):
        segment.close()
    array[:] = 7
    segment.unlink()
    del segment
    assert array.sum() == 70


@pytest.mark.parametrize(("bad", "number"), [("", 22), ("a/b", 22), (".", 22), ("x" * 300, 36)])
def test_names_fail_as_shm_open_has_it(bad, number):
    with pytest.raises(OSError) as caught:
        SharedMemory(bad, create=True, size=1)
    assert caught.value.errno == number
    with pytest.raises(ValueError, match="NUL|null"):
        SharedMemory("a\0b", create=True, size=1)


@pytest.mark.parametrize(("track", "stays"), [(True, False), (False, True)])
def test_the_tracker_removes_what_it_was_told_of_and_nothing_else(name, track, stays):
    done = run(
        f"import os, mmkit.compat.shared_memory as compat\n"
        f"compat.SharedMemory({name!r}, create=True, size=10, track={track})\nos._exit(0)"
    )
    assert done.returncode == 0
    assert ("leaked shared_memory" in done.stderr) == track
    assert (name in names()) == stays


def test_reap_leaves_it_to_the_tracker(name):
    pid = os.fork()
    if pid == 0:
        SharedMemory(name, create=True, size=10, track=False)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert [segment for segment in mmkit.shared.reap() if segment.name == name] == []
    assert name in names()
