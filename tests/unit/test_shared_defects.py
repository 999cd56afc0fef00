"""The traps of `multiprocessing.shared_memory`: each test holds here, and fails there.

Each is a program of its own, run with mmkit and with the standard module. That the standard one fails is shown, not
demanded: a Python that mends it makes no test red.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segment_tools import HERE, behind_a_small_tmpfs, names, needs_mounts
from support import SANITIZED, in_child

STANDARD = "from multiprocessing.shared_memory import SharedMemory"

BOTH = pytest.mark.parametrize(
    "imports",
    [
        "from mmkit import SharedMemory",
        pytest.param(
            STANDARD, marks=pytest.mark.xfail(strict=False, reason="a defect of the standard module")
        ),
    ],
    ids=["mmkit", "standard"],
)


def program(imports, code, **how):
    return subprocess.run(
        [sys.executable, "-c", f"import os, sys\n{imports}\n{code}"],
        capture_output=True,
        text=True,
        timeout=60,
        env=HERE,
        **how,
    )


@BOTH
def test_an_attaching_process_exits_and_the_segment_stays(imports, name):
    # https://github.com/python/cpython/issues/82300
    Path(f"/dev/shm/{name}").write_bytes(b"precious")
    done = program(
        imports,
        f"segment = SharedMemory({name!r})\nassert bytes(segment.buf) == b'precious'\nsegment.close()",
    )
    assert name in names()
    assert (done.returncode, done.stderr) == (0, "")


@BOTH
def test_a_process_that_unpickled_it_exits_and_the_segment_stays(imports, name):
    Path(f"/dev/shm/{name}").write_bytes(b"precious")
    # Killed, so that nobody cleans up after it.
    writer = (
        f"import pickle\nprint(pickle.dumps(SharedMemory({name!r}), 4).hex(), flush=True)\nos.killpg(0, 9)"
    )
    data = program(imports, writer, start_new_session=True).stdout.strip()
    reader = f"import pickle\nsegment = pickle.loads(bytes.fromhex({data!r}))\nsegment.close()"
    done = program(imports, reader)
    assert name in names()
    assert (done.returncode, done.stderr) == (0, "")


@BOTH
def test_a_failed_attach_removes_nothing(imports, name):
    with open(f"/dev/shm/{name}", "wb") as file:
        os.truncate(file.fileno(), 1 << 50)  # more than there are addresses
    code = f"""
try:
    SharedMemory({name!r})
except OSError as error:
    assert error.errno == 12
    os._exit(9)
"""
    assert program(imports, code).returncode == 9
    assert name in names()


@BOTH
@needs_mounts
def test_a_full_dev_shm_is_an_error_and_not_a_signal(imports):
    code = """
try:
    segment = SharedMemory(create=True, size=1 << 20)
except OSError as error:
    sys.exit(error.errno)
segment.buf[:] = bytes(1 << 20)
"""
    run = behind_a_small_tmpfs(lambda: program(imports, code).returncode, "256k")
    assert in_child(run) == 28


@BOTH
@pytest.mark.skipif(SANITIZED, reason="a sanitizer makes something else of the crash")
def test_an_array_on_the_buffer_cannot_outlive_the_memory(imports, name):
    # https://github.com/numpy/numpy/issues/18294, https://github.com/python/cpython/issues/102349
    code = f"""
import numpy
def array():
    segment = SharedMemory({name!r}, create=True, size=80)
    segment.unlink()
    return numpy.ndarray((10,), dtype="i8", buffer=segment.buf)
a = array()
a[:] = 7
assert a.sum() == 70
"""
    assert program(imports, code).returncode != -signal.SIGSEGV


@BOTH
def test_closing_under_an_array_is_refused(imports, name):
    code = f"""
import numpy
segment = SharedMemory({name!r}, create=True, size=80)
a = numpy.ndarray((10,), dtype="i8", buffer=segment.buf)
try:
    segment.close()
except BufferError:
    segment.unlink()
    os._exit(9)
os._exit(1)
"""
    assert program(imports, code).returncode == 9


@BOTH
def test_the_mode_can_be_given_and_is_exact(imports, name):
    code = f"os.umask(0o077)\nSharedMemory({name!r}, create=True, size=1, mode=0o640)\nos._exit(0)"
    program(imports, code)
    assert os.stat(f"/dev/shm/{name}").st_mode & 0o777 == 0o640


@BOTH
def test_memory_can_be_attached_for_reading_only(imports, name):
    Path(f"/dev/shm/{name}").write_bytes(b"precious")
    code = f"assert SharedMemory({name!r}, readonly=True).buf.readonly\nos._exit(0)"
    assert program(imports, code).returncode == 0


@BOTH
def test_a_forked_childs_unlink_in_cleanup_is_not_the_owners(imports, name):
    code = f"""
with SharedMemory({name!r}, create=True, size=8) as segment:
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
    os.stat("/dev/shm/{name}")
try:
    os.stat("/dev/shm/{name}")
except FileNotFoundError:
    os._exit(0)
os._exit(1)
"""
    assert program(imports, code).returncode == 0


@BOTH
def test_a_view_that_lives_longer_leaves_no_descriptor_open(imports, name):
    # https://github.com/python/cpython/issues/155003
    code = f"""
import warnings
warnings.simplefilter("ignore")
before = len(os.listdir("/proc/self/fd"))
def view():
    segment = SharedMemory({name!r}, create=True, size=8)
    segment.unlink()
    return segment.buf.cast("q")
v = view()
del v
assert len(os.listdir("/proc/self/fd")) <= before
os._exit(0)
"""
    done = program(imports, code)
    assert (done.returncode, done.stderr) == (0, "")
