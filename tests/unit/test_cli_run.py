"""`mmkit run`: how it starts a program, which it refuses, and that real ones run on its heap."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from mmkit.cli.executable import Refusal, refusal
from support import NOBODY, SANITIZED, in_child, needs_root

pytestmark = pytest.mark.skipif(SANITIZED, reason="a sanitizer brings its own malloc")

RUN = [sys.executable, "-m", "mmkit", "run"]
#: Whether the heap is guarded: what holds of one kind of block holds of the other.
EITHER = pytest.mark.parametrize("options", [[], ["--guard"]], ids=["plain", "guard"])


def run(*arguments, options=(), **how):
    how = {"text": True, "timeout": 110} | how
    return subprocess.run([*RUN, *options, "--", *arguments], capture_output=True, check=False, **how)


@pytest.fixture(scope="module")
def compiler():
    return shutil.which("cc") or pytest.skip("no C compiler")


def compiled(compiler, path, source, *flags):
    path.with_suffix(".c").write_text(source)
    subprocess.run([compiler, path.with_suffix(".c"), "-o", path, *flags], check=True)
    return str(path)


# ---- how it starts a program --------------------------------------------------------------------------


@EITHER
def test_the_malloc_of_the_program_and_of_what_it_starts_is_mmkits(options):
    program = "import ctypes; print(ctypes.CDLL(None).malloc and 'preload' in open('/proc/self/maps').read())"
    script = f'"{sys.executable}" -c "{program}"; exit 3'
    done = run("sh", "-c", script, options=options)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 3)


def test_the_program_takes_the_place_of_the_command_and_its_end_is_the_commands():
    started = subprocess.Popen([*RUN, "sh", "-c", "echo $$; kill -9 $$"], stdout=subprocess.PIPE, text=True)
    output, _ = started.communicate(timeout=60)
    assert int(output) == started.pid
    assert started.returncode == -signal.SIGKILL


def test_arguments_are_the_programs_with_dashes_and_without():
    assert run("printf", "%s|", "--guard", "-h", "a b", "").stdout == "--guard|-h|a b||"
    done = subprocess.run([*RUN, "printf", "%s|", "--guard"], capture_output=True, text=True, check=False)
    assert done.stdout == "--guard|"


def test_what_was_preloaded_before_stays(tmp_path, compiler):
    source = "int twelve(void) { return 12; }"
    other = compiled(compiler, tmp_path / "other.so", source, "-shared", "-fPIC")
    program = "import ctypes; print(ctypes.CDLL(None).twelve())"
    done = run(sys.executable, "-c", program, env=os.environ | {"LD_PRELOAD": other})
    assert done.stdout == "12\n"


def test_a_pipe_that_nobody_reads_ends_the_program_as_without_it():
    done = subprocess.run(
        ["bash", "-c", '"$@" | true; echo ${PIPESTATUS[0]}', "sh", *RUN, "yes"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{128 + signal.SIGPIPE}\n", "")


# ---- what it refuses ----------------------------------------------------------------------------------


def refused(status, words, *arguments, **how):
    done = run(*arguments, **how)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.startswith("mmkit run: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_program_that_is_not_there_is_127_as_in_a_shell(tmp_path):
    refused(127, "no such program", "no-such-program")
    refused(127, "No such file", str(tmp_path / "none"))
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    refused(127, "No such file", str(script))


def test_what_cannot_be_executed_is_126(tmp_path):
    refused(126, "not executable", "/etc/passwd")
    refused(126, "is a directory", str(tmp_path))
    nothing = tmp_path / "nothing"
    nothing.write_bytes(b"\x7fELF")
    nothing.chmod(0o755)
    refused(126, "Exec format error", str(nothing))


@pytest.mark.parametrize("flags", [["-static"], ["-static-pie"]], ids=" ".join)
def test_a_static_program_is_refused(tmp_path, compiler, flags):
    static = compiled(compiler, tmp_path / "static", "int main(void) { return 0; }", *flags)
    assert subprocess.run([static], check=False).returncode == 0
    refused(125, "statically linked", static)
    script = tmp_path / "script"
    script.write_text(f"#! {static} -x\n")
    script.chmod(0o755)
    refused(125, "statically linked", str(script))


def test_a_program_for_another_processor_is_refused(tmp_path):
    head = bytearray(Path("/bin/sh").read_bytes()[:64])
    head[18] ^= 0xFF
    other = tmp_path / "other"
    other.write_bytes(head)
    other.chmod(0o755)
    refused(125, "another kind of processor", str(other))


@needs_root
@pytest.mark.parametrize(
    ("mode", "is_refused"),
    [(0o4711, True), (0o2755, True), (0o755, False)],
    ids=["set-uid", "set-gid", "none"],
)
def test_a_program_with_more_rights_than_its_user_is_refused(tmp_path, mode, is_refused):
    program = tmp_path / "true"
    shutil.copy("/bin/true", program)
    program.chmod(mode)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    found = in_child(lambda: refusal(str(program)), user=NOBODY)
    assert found == (Refusal.PRIVILEGED if is_refused else None)
    # Root has no fewer rights than the program.
    assert run(str(program)).returncode == 0


# ---- real programs ------------------------------------------------------------------------------------


@EITHER
def test_ls_lists_the_same(options):
    assert run("ls", "-laR", "/usr/include/linux", options=options).stdout == (
        subprocess.run(
            ["ls", "-laR", "/usr/include/linux"], capture_output=True, text=True, check=True
        ).stdout
    )


@EITHER
def test_sort_with_threads_sorts(options, tmp_path):
    numbers = tmp_path / "numbers"
    count = 20_000 if options else 400_000
    numbers.write_text("".join(f"{i * 2654435761 % 4294967296}\n" for i in range(count)))
    done = run("sort", "-n", "--parallel=2", "-S", "2M", str(numbers), options=options)
    assert done.stderr == ""
    assert done.stdout.splitlines() == sorted(numbers.read_text().splitlines(), key=int)


@EITHER
def test_git_makes_a_repository(options, tmp_path):
    if not shutil.which("git"):
        pytest.skip("no git")
    script = """
        set -e
        git init -q .; seq 10000 > numbers; git add numbers
        git -c user.name=x -c user.email=x@y commit -qm "Count"
        seq 5000 > numbers; git diff --stat; git gc -q; git fsck --strict; git log --format=%s
    """
    environment = os.environ | {"HOME": str(tmp_path)}
    done = run("sh", "-c", script, options=options, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "5000 deletions" in done.stdout
    assert done.stdout.endswith("Count\n")


@EITHER
def test_a_compiler_makes_the_same(options, tmp_path, compiler):
    source = tmp_path / "program.c"
    source.write_text('#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n')
    objects = [tmp_path / "with.o", tmp_path / "without.o"]
    command = [compiler, "-O2", "-c", str(source), "-o"]
    done = run(*command, str(objects[0]), options=options)
    assert (done.returncode, done.stderr) == (0, "")
    subprocess.run([*command, str(objects[1])], check=True)
    assert objects[0].read_bytes() == objects[1].read_bytes()


@pytest.mark.parametrize("allocator", ["pymalloc", "malloc"])
@EITHER
def test_python_runs_with_each_of_its_allocators(options, allocator):
    program = "import json, threading; print(len(json.dumps([{'a': [i] * 10} for i in range(2000)])))"
    environment = os.environ | {"PYTHONMALLOC": allocator}
    done = run(sys.executable, "-c", program, options=options, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 80_000


@pytest.mark.parametrize("tests", ["test_json", "test_list", "test_threading_local"])
def test_the_interpreters_own_tests_pass(tests, tmp_path):
    if not Path(sysconfig.get_path("stdlib"), "test", "test_json").is_dir():
        pytest.skip("this interpreter came without its tests")
    environment = os.environ | {"PYTHONMALLOC": "malloc"}
    done = run(sys.executable, "-m", "test", tests, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@EITHER
def test_mmkit_itself_runs_on_it(options):
    program = (
        "import mmkit\n"
        "with mmkit.Heap(guard=True) as heap:\n"
        "    block = heap.alloc(100)\n"
        "    try: mmkit.peek(block.address + 112, 1)\n"
        "    except mmkit.MemoryFault: print('fault')\n"
    )
    done = run(sys.executable, "-c", program, options=options)
    assert (done.stdout, done.stderr, done.returncode) == ("fault\n", "", 0)
