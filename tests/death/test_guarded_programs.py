"""Programs with one mistake each, under `mmkit run`: by which signal they end, and what is said of it."""

import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import SANITIZED, in_child, refuse_calls, x86_64

pytestmark = pytest.mark.skipif(SANITIZED, reason="a sanitizer brings its own malloc")

SEGV, ABRT = -signal.SIGSEGV, -signal.SIGABRT
RUN = [sys.executable, "-m", "mmkit", "run"]
SYS_MADVISE, EINVAL = 28, 22
GUARD_INSTALL = 102

GUARDED = {
    "past_the_end": (SEGV, "out of bounds: write at A, 0 bytes past the end of the block of 32 bytes at A"),
    "read_past_an_array": (
        SEGV,
        "out of bounds: read at A, 0 bytes past the end of the block of 1600 bytes at A",
    ),
    "use_after_free": (SEGV, "use after free: read at A, 60 bytes into the freed block of 100 bytes at A"),
    "use_after_realloc": (
        SEGV,
        "use after free: write at A, 0 bytes into the freed block of 100 bytes at A",
    ),
    "use_after_many_frees": (
        SEGV,
        "use after free: read at A, 60 bytes into the freed block of 100 bytes at A",
    ),
    "double_free": (ABRT, "free(A): freed already: the freed block of 100 bytes at A"),
    "realloc_after_free": (ABRT, "realloc(A): freed already: the freed block of 100 bytes at A"),
    "free_inside": (ABRT, "free(A): 16 bytes into the block of 100 bytes at A"),
    "free_of_the_stack": (ABRT, "free(A): malloc never gave it"),
    "past_the_end_in_a_thread": (
        SEGV,
        "out of bounds: write at A, 0 bytes past the end of the block of 32 bytes at A",
    ),
    "use_after_free_in_a_child": (
        128 + signal.SIGSEGV,
        "use after free: read at A, 60 bytes into the freed block of 100 bytes at A",
    ),
}


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("mistakes") / "mistakes"
    source = Path(__file__).with_name("mistakes.c")
    subprocess.run([compiler, "-O1", "-fno-builtin", "-w", "-pthread", "-o", program, source], check=True)
    return str(program)


def make(program, name, *options):
    done = subprocess.run(
        [*RUN, *options, program, name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )
    return done.returncode, re.sub("0x[0-9a-f]+", "A", done.stderr)


@pytest.mark.parametrize("name", GUARDED)
def test_a_mistake_ends_a_guarded_program_and_one_line_names_the_block(mistakes, name):
    status, words = GUARDED[name]
    assert make(mistakes, name, "--guard") == (status, f"mmkit: {words}\n")


@x86_64
@pytest.mark.parametrize("name", GUARDED)
def test_kernels_without_guards_catch_the_same(mistakes, name):
    def without_guards():
        refuse_calls([((SYS_MADVISE, GUARD_INSTALL), EINVAL)])
        return make(mistakes, name, "--guard")

    status, words = GUARDED[name]
    assert in_child(without_guards) == (status, f"mmkit: {words}\n")


def test_an_overrun_into_what_alignment_left_is_found_when_the_block_is_freed(mistakes):
    words = "byte A was written, 0 bytes past the end of the block of 20 bytes at A"
    assert make(mistakes, "past_the_end_within_16", "--guard") == (
        ABRT,
        f"alive\nmmkit: out of bounds, found at free: {words}\n",
    )


def test_a_fault_that_has_nothing_to_do_with_blocks_is_left_as_it_is(mistakes):
    assert make(mistakes, "null_pointer", "--guard") == (SEGV, "")


@pytest.mark.parametrize("name", ["double_free", "realloc_after_free", "free_of_the_stack"])
def test_a_program_that_is_not_guarded_dies_of_a_free_that_is_none(mistakes, name):
    status, said = make(mistakes, name)
    assert status == ABRT
    assert said.startswith("mmkit: ")
    assert said.count("\n") == 1


def test_a_handler_that_the_program_installs_is_called_after_the_line_was_said():
    program = (
        "import ctypes, faulthandler, time; faulthandler.enable()\n"
        "start = time.clock_gettime_ns(6)\n"
        "while time.clock_gettime_ns(6) == start: pass\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "ctypes.memset(libc.malloc(ctypes.c_size_t(64)) + 64, 0, 1)\n"
    )
    done = subprocess.run(
        [*RUN, "--guard", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )
    assert done.returncode == SEGV
    line, _, traceback = done.stderr.partition("\n")
    assert line.startswith("mmkit: out of bounds: write at")
    assert traceback.startswith("Fatal Python error: Segmentation fault")
    assert "mmkit" not in traceback


@x86_64
def test_where_areas_run_out_it_is_said_once_and_the_program_goes_on():
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if most > 100_000:
        pytest.skip("vm.max_map_count is too large to be reached")
    program = (
        f"import sys; kept = [bytes(600 + i % 5) for i in range({most})]\n"
        "assert all(len(one) == 600 + i % 5 for i, one in enumerate(kept)); print('done')\n"
    )

    def without_guards():
        refuse_calls([((SYS_MADVISE, GUARD_INSTALL), EINVAL)])
        done = subprocess.run(
            [*RUN, "--guard", sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    status, output, said = in_child(without_guards)
    assert (status, output) == (0, "done\n")
    assert said.startswith("mmkit: no more guards: ")
    assert "vm.max_map_count" in said
    assert said.count("\n") == 1
