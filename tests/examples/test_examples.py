"""The examples: each runs by itself, does what its docstring says, and leaves nothing behind."""

import ast
import contextlib
import errno
import functools
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import mmkit
from mmkit import PAGE_SIZE, Advice
from support import NOBODY, SANITIZED, left_for_good, locks, needs_root, sanitized, x86_64

ROOT = Path(__file__).parents[2]
PROGRAMS = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
# A sanitizer has a malloc and an mlock of its own, and takes addresses by the terabyte.
NOT_SANITIZED = {"process_layout", "anonymous_mapping", "memory_locking"} if SANITIZED else set()
EVERY_PROGRAM = pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - NOT_SANITIZED))
PUBLIC_MODULES = {
    "mmkit",
    "mmkit.errors",
    "mmkit.flags",
    "mmkit.heap",
    "mmkit.linux",
    "mmkit.maps",
    "mmkit.secret",
    "mmkit.shared",
    "mmkit.snapshot",
}

# The interpreter may lie where only root can read: all is loaded before root is given up.
AS_NOBODY = """
import ctypes, os, resource, sys
path, user, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "rb") as file:
    code = compile(file.read(), path, "exec")
exec(code, {"__name__": "loaded", "__file__": path})
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
os.setgroups([])
os.setgid(user)
os.setuid(user)
# Changing user closed /proc/self to the process; for one that was started by that user it is open.
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
sys.argv = [path]
exec(code, {"__name__": "__main__", "__file__": path})
"""

# What older kernels lack and containers refuse. x86-64.
REFUSED = {
    "cachestat": (451, errno.ENOSYS),
    "mlock2": (325, errno.ENOSYS),
    "memfd_secret": (447, errno.ENOSYS),
    "mseal": (462, errno.ENOSYS),
    "userfaultfd": (323, errno.EPERM),
    "process_vm_readv": (310, errno.EPERM),
    "process_vm_writev": (311, errno.EPERM),
    "populate, for reading": ((28, 22), errno.EINVAL),
    "populate, for writing": ((28, 23), errno.EINVAL),
    "guards": ((28, 102), errno.EINVAL),
    "guards removed": ((28, 103), errno.EINVAL),
    "shmget": (29, errno.ENOSYS),
    "shmat": (30, errno.ENOSYS),
    "shmctl": (31, errno.ENOSYS),
}
WHERE_MUCH_IS_REFUSED = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from support import refuse_calls
path = sys.argv[1]
with open(path, "rb") as file:
    code = compile(file.read(), path, "exec")
exec(code, {{"__name__": "loaded", "__file__": path}})
refuse_calls({list(REFUSED.values())})
sys.argv = [path]
exec(code, {{"__name__": "__main__", "__file__": path}})
"""
#: What they say then.
SAID = {
    "anonymous_mapping": ["populate(): Invalid argument; so it is written to"],
    "best_practices": ["not on this machine: [Errno 38] shmget"],
    "copy_on_write": ["populate: Invalid argument; the page is kept all the same", "b'from a pipe'"],
    "file_mapping": ["unknown after"],
    "memory_advice": ["refused: Invalid argument"],
    "memory_locking": ["refused: ", "has none"],
    "shared_heap": ["Not on this machine: there is no memory"],
    "system_v_hello": ["Not on this machine: [Errno 38] shmget"],
}
NEEDS_DEV_SHM = ["channel_pipeline", "posix_hello", "shared_array", "shared_memory_logger"]


@pytest.fixture
def folder():
    """A folder that every user may use, as pytest's own may not; what is left in it is a mistake."""
    with tempfile.TemporaryDirectory(prefix="mmkit-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("cwd", "tmp"):
            (folder / part).mkdir()
            (folder / part).chmod(0o777)
        before = left_elsewhere()
        yield folder
        assert [path.name for part in ("cwd", "tmp") for path in (folder / part).iterdir()] == []
        assert left_for_good(left_elsewhere, before) == set()


def left_elsewhere():
    """What could outlive a process outside its folder: System V segments, shared memory, files."""
    segments = {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}
    shared = {path.name for path in Path("/dev/shm").iterdir()}
    files = {path.name for place in ("/tmp", "/var/tmp") for path in Path(place).glob("mmkit-example-*")}
    return segments | shared | files


def python(folder, *arguments, **how):
    """Start a fresh interpreter in the folder, with warnings as errors."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, cwd=folder / "cwd", env=environment, timeout=60, **how)


@functools.cache
def output(name):
    """What a program prints, with its stdout a pipe."""
    with tempfile.TemporaryDirectory() as place:
        for part in ("cwd", "tmp"):
            Path(place, part).mkdir()
        done = python(Path(place), PROGRAMS[name])
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(name):
    return [line.strip() for line in output(name).splitlines()]


# ---- all of them ------------------------------------------------------------------------------------


@EVERY_PROGRAM
def test_a_program_runs_by_itself_and_leaves_nothing_behind(name, folder):
    done = python(folder, PROGRAMS[name], stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 10
    assert "ot on this machine" not in done.stdout


@needs_root
@EVERY_PROGRAM
def test_a_program_runs_for_a_user_without_rights(name, folder):
    done = python(folder, "-c", AS_NOBODY, PROGRAMS[name], NOBODY, 8 << 20)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 10
    assert "ot on this machine" not in done.stdout


@x86_64
@EVERY_PROGRAM
def test_a_program_says_what_is_refused_and_goes_on(name, folder):
    done = python(folder, "-c", WHERE_MUCH_IS_REFUSED, PROGRAMS[name])
    assert (done.returncode, done.stderr) == (0, "")
    for told in SAID.get(name, []):
        assert told in done.stdout


@needs_root
@pytest.mark.parametrize("name", NEEDS_DEV_SHM)
def test_a_program_says_where_there_is_no_shared_memory_to_be_had(name, folder):
    script = 'mount -t tmpfs -o ro none /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-W", "error", PROGRAMS[name]]
    done = subprocess.run(command, cwd=folder / "cwd", capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no namespace to be had: {done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Not on this machine: [Errno 30] open('/dev/shm'")


@needs_root
@EVERY_PROGRAM
def test_a_program_runs_for_a_user_who_may_lock_nothing_and_open_few_files(name, folder):
    code = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n" + AS_NOBODY
    done = python(folder, "-c", code, PROGRAMS[name], NOBODY, 0)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Not on this machine" not in done.stdout


@EVERY_PROGRAM
@pytest.mark.parametrize("unbuffered", ["1", ""], ids=["unbuffered", "buffered"])
def test_a_program_ends_in_silence_when_nobody_reads_on(name, unbuffered, folder, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert python(folder, PROGRAMS[name], stdout=writer).stderr == ""
    finally:
        os.close(writer)


@pytest.mark.parametrize("lines", [1, 8])
@EVERY_PROGRAM
def test_a_program_ends_in_silence_after_some_lines_were_read(name, lines, folder):
    command = [sys.executable, "-u", PROGRAMS[name]]
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, cwd=folder / "cwd", **how) as running:
        for _ in range(lines):
            assert running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == ""


@EVERY_PROGRAM
def test_a_program_runs_on_a_terminal(name, folder):
    here, there = pty.openpty()
    try:
        command = [sys.executable, "-W", "error", PROGRAMS[name]]
        environment = os.environ | {"TMPDIR": str(folder / "tmp")}
        with subprocess.Popen(
            command, cwd=folder / "cwd", env=environment, stdin=there, stdout=there, stderr=there
        ) as process:
            os.close(there)
            shown = b""
            while part := read_or_end(here):
                shown += part
        assert process.returncode == 0, shown
        # Two runs of the profiler do not measure quite the same.
        differing = 3 if name == "memory_profiler" else 0
        assert abs(len(shown.splitlines()) - len(output(name).splitlines())) <= differing
    finally:
        os.close(here)


def read_or_end(fd):
    try:
        return os.read(fd, 1 << 16)
    except OSError:  # EIO: nobody has the other side of the terminal any more
        return b""


@EVERY_PROGRAM
def test_a_program_names_the_chapter_that_names_it(name):
    docstring = " ".join(ast.get_docstring(ast.parse(PROGRAMS[name].read_text())).split())
    (chapter,) = re.findall(r'Belongs to the chapter "[\w ]+" \(docs/([\w-]+)\.md\)\.', docstring)
    assert f"examples/{name}.py" in (ROOT / "docs" / f"{chapter}.md").read_text()
    # It opens with the C calls that it is about.
    assert re.search(r" In C: (\w+\(\d\)|[\w/,. ])+\. Belongs to the chapter", docstring)


@EVERY_PROGRAM
def test_a_program_is_a_page_long(name):
    assert 60 <= len(PROGRAMS[name].read_text().splitlines()) <= 200


@EVERY_PROGRAM
def test_a_program_uses_what_is_public(name):
    for node in ast.walk(ast.parse(PROGRAMS[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "mmkit":
            assert node.module in PUBLIC_MODULES
        if isinstance(node, ast.Import):
            assert {each.name for each in node.names if each.name.startswith("mmkit")} <= PUBLIC_MODULES
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            assert node.attr == "_exit" or node.attr.endswith("__")


# ---- each of them -----------------------------------------------------------------------------------


@sanitized
def test_layout_finds_each_segment_and_what_lies_in_it():
    text = output("process_layout")
    for segment, access in (("text", "r-xp"), ("heap", "rw-p"), ("stack", "rw-p")):
        assert re.search(rf"^  {segment} +[0-9a-f]+ +[0-9a-f]+ +\d+ +[\d,]+  {access}", text, re.M), segment
    end, break_ = re.search(r"heap ends at ([0-9a-f]+); sbrk\(0\) says ([0-9a-f]+)", text).groups()
    assert end == break_
    assert "peek(0, 1) raises MemoryFault: read of 0: unmapped or guard" in text

    things = re.findall(r"^ +([0-9a-f]+)  (\w+) +([rwxsp-]{4})  (?:[0-9a-f]{2} ?){4}  (.+)$", text, re.M)
    assert [int(address, 16) for address, *_ in things] == sorted(
        (int(address, 16) for address, *_ in things), reverse=True
    )
    where = {what: (kind, access) for _, kind, access, what in things}
    assert where["a local variable of a C function"] == ("stack", "rw-p")
    assert where["malloc(100)"] == ("heap", "rw-p")
    assert where["malloc(64 MiB)"] == where["mmap(), by Region.anonymous(…)"] == ("anonymous", "rw-p")
    assert where["mmap() of a file, by Region.file(…)"] == ("file", "r--s")
    assert where["the function malloc()"][1] == "r-xp"
    assert where["a list of Python"][1] == "rw-p"


def test_file_mapping_reads_writes_and_copies():
    text = output("file_mapping")
    assert "6800 bytes of the file at 0x" in text
    assert f"its area has {-(-6800 // PAGE_SIZE) * PAGE_SIZE} bytes" in text
    assert f"behind the end of the file are {-6800 % PAGE_SIZE} more, all of them zeros: True" in text
    assert "a write raises MemoryFault: protection" in text
    assert "and the file begins with b'LINE 000'" in text
    after = "0" if mmkit.supports("cachestat") else "unknown"
    assert re.search(rf"flush\(\) covered \(0, 6800\).*, {after} after$", text, re.M)
    assert "after file.write(b'Line') memory holds b'Line 000'" in text
    assert "19 bytes from offset 1034: b'file that is memory'" in text
    assert "from 6800 to 6818 bytes; its last line is b'and one line more\\n'" in text
    assert "memory has b'mine 000', the file b'Line 000'" in text
    assert "after discard() memory has b'Line 000'" in text


@sanitized
def test_anonymous_mapping_takes_memory_when_it_is_touched_and_gives_it_back():
    text = output("anonymous_mapping")
    assert re.search(r"[\d,]+ MiB from 0x[0-9a-f]+ on: 0 bytes in RAM", text)
    assert text.count("a byte is stored at offset") == 3
    assert f"now there are {3 * PAGE_SIZE} bytes in RAM" in text
    assert "1 MiB became 256 MiB, at the same address" in text
    assert "a view made before still sees b'first'" in text
    assert "it begins with b'moved'" in text
    assert "under a live view it may not move: BufferError" in text

    held = re.findall(r"(\d+) MiB of it in RAM, the process has (\d+) MiB", text)
    (full, process_full), (part, process_part) = [(int(a), int(b)) for a, b in held]
    assert (full, part) == (32, 8)
    assert process_full - process_part >= 20
    assert "the first byte is 0 now, the last 7" in text
    assert re.search(r"held, without access: <Area \S+ ---p", text)
    assert "after that they are free: None" in text


def test_protection_allows_and_refuses_as_it_says():
    text = output("memory_protection")
    store = "MemoryFault: write at offset 0: protection"
    for expected in (
        rf"protect\(READ\): .* r--p\n +load region\[0\] +done\n +store region\[0\] +{store}",
        rf"protect\(NONE\): .* ---p\n +load .*: read at offset 0: protection\n +store region\[0\] +{store}",
        r"protect\(READ\|WRITE\): .* rw-p\n +load region\[0\] +done\n +store region\[0\] +done",
        rf"store over both +MemoryFault: write at offset {PAGE_SIZE}: protection\n.*nothing was written: b'Hello'",
        rf"store inside the block +{store}\n +store after the block +done\n.* BufferError",
        r"the last byte +done\n +one byte further +MemoryFault: read at 0x[0-9a-f]+: ",
        r"a byte in front +MemoryFault: write at 0x[0-9a-f]+: ",
        rf"a guard in the middle +MemoryFault: read at offset {PAGE_SIZE}: ",
        rf"find\(\) runs into it +MemoryFault: read at offset {PAGE_SIZE}: .*\n +after unguard\(\) +done",
        rf"behind its end +MemoryFault: read at offset {2 * PAGE_SIZE}: beyond end of file",
        r"in front of it +done",
        r"a child stored through a memoryview, and died of SIGSEGV\n"
        r" +its handler's last words: Fatal Python error: Segmentation fault\n"
        r" +and where it was: line \d+ in do_as_c_does",
    ):
        assert re.search(expected, text), expected


@locks
def test_locking_counts_and_refuses():
    text = output("memory_locking")
    page = PAGE_SIZE // 1024
    counted = re.findall(r"^  (.+?) +locked: +(\d+) KiB   of the region in RAM: +(\d+) KiB", text, re.M)
    assert [(what, int(locked) // page, int(ram) // page) for what, locked, ram in counted[:10]] == [
        ("before", 0, 0),
        ("lock() of 4 pages", 4, 4),
        ("and of one byte in them", 4, 4),
        ("unlock() of the 4", 1, 4),
        ("and of the byte", 0, 4),
        ("with region.locked()", 8, 8),
        ("mlock2(ONFAULT)", 8, 0),
        ("after one store", 8, 1),
        ("the parent", 8, 8),
        ("its child", 0, 8),
    ]
    if mmkit.supports("memfd_secret"):
        assert "we can read it: b'password'" in text
        assert "the kernel cannot: process_vm_readv() of it is 'Bad address'" in text
    limited, without = text.split("An ordinary user with a limit of ")[1:]
    assert f"lock() of 12 pages: done, {12 * page} KiB are locked" in limited
    assert "lock() of 8 pages: SyscallOutOfMemory" in limited
    assert f"RLIMIT_MEMLOCK is {16 * page} KiB, {12 * page} KiB of it is used" in limited
    assert f"what fails locks nothing: {12 * page} KiB are locked" in limited
    assert without.startswith("0 KiB")
    assert without.count("SyscallPermissionError") == 2
    assert "what fails locks nothing: 0 KiB are locked" in without
    assert text.count("lock='warn' goes on, with a RuntimeWarning") == 2


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("shared_array", "numpy", "numpy"), ("secure_memory", "cryptography", "secret")],
)
def test_a_program_says_what_to_install_where_a_library_is_missing(name, library, extra, folder):
    code = (
        f"import sys, runpy; sys.modules[{library!r}] = None; runpy.run_path(sys.argv[1], None, '__main__')"
    )
    done = python(folder, "-c", code, PROGRAMS[name])
    assert f"pip install 'mmkit[{extra}]'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@needs_root
@locks
def test_locking_goes_on_where_root_cannot_become_another_user(folder):
    alone = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    done = subprocess.run(
        [*alone, sys.executable, PROGRAMS["memory_locking"]], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("not here: root cannot become another user") == 2


@needs_root
@locks
def test_locking_tells_a_user_who_may_lock_nothing_what_is_refused(folder):
    done = python(folder, "-c", AS_NOBODY, PROGRAMS["memory_locking"], NOBODY, 0)
    assert done.stdout.startswith("This process may lock: 0 KiB")
    assert done.stdout.count("  refused: [Errno 1] mlock") >= 2


def test_advice_shows_in_what_is_brought_in():
    text = output("memory_advice")
    if "keeps its files in memory" not in text:
        touched = re.findall(r"^  (\w+) +(\d+) KiB before it, +(\d+) KiB from it on", text, re.M)
        brought = {advice: (int(before), int(after)) for advice, before, after in touched}
        assert brought["SEQUENTIAL"][0] == 0
        assert sum(brought["RANDOM"]) <= sum(brought["NORMAL"])
        scattered = dict(re.findall(r"^  (NORMAL|RANDOM) +(\d+) KiB +\d", text, re.M))
        assert int(scattered["RANDOM"]) <= int(scattered["NORMAL"])
        came = re.findall(r"^  (.+?) +(\d+) KiB cached, +(\d+) here", text, re.M)
        here = {what: (int(cached), int(resident)) for what, cached, resident in came}
        assert here["WILLNEED"][1] == here["WILLNEED, piece by piece"][1] == 0
        whole = here["populate(), which waits"]
        assert whole[0] == whole[1] > 0
        assert here["discard(), by DONTNEED"] == (whole[0], 0)
    assert "DONTNEED   0 MiB are still in RAM, the first byte is b'\\x00'" in text
    assert re.search(r"FREE       [0-8] MiB are still in RAM, the first byte is b'(x|\\x00)'", text)
    assert "a page that is written to stays: b'y'" in text
    if mmkit.supports(Advice.NOHUGEPAGE):
        assert re.search(rf"NOHUGEPAGE one touch: +{PAGE_SIZE // 1024} KiB", text)


def test_messages_arrive_nobody_polls_and_a_crash_is_noticed():
    many, late, crash = re.split(r"\n\n", output("mmap_ipc"))[1:]
    sent, received = re.findall(r"(?:sent|received) 10000, checksum (\w+)", many)
    assert sent == received
    assert "10000 begun, 10000 finished, 0 lost" in many
    waited, worked = map(int, re.search(r"(\d+) ms went by, (\d+) ms on the processor", late).groups())
    assert waited >= 95
    assert worked < waited / 2
    assert "received 3" in crash
    assert "4 begun, 3 finished, 1 lost" in crash
    assert "ended with SIGKILL" in crash


def test_the_mapper_shows_each_command():
    text = output("memory_mapper")
    commands = re.findall(r"^\$ memory_mapper.py (\w+)", text, re.M)
    assert set(commands) == {"search", "copy", "edit", "window", "sparse"}
    assert "search lines 0999\n19985\n" in text
    assert "10000 replaced" in text
    assert "10000 lines, checksum " in text


# ---- shared memory ----------------------------------------------------------------------------------


def test_system_v_hello_has_the_child_write_the_parent_read_and_the_segment_gone():
    shown = output("system_v_hello")
    (pid,) = re.findall(r"child: wrote +'hello from process (\d+)'", shown)
    assert f"the parent reads 'hello from process {pid}'" in shown
    assert re.search(r"afterwards: +segment \d+: (Invalid argument|Identifier removed)", shown)


def test_posix_hello_survives_the_others_death_and_leaves_no_name():
    shown = output("posix_hello")
    assert shown.count("memory holds b'hello world'; the name is there: True") == 2
    assert "it ended by  SIGKILL" in shown
    assert "afterwards:  the name is there: False" in shown


def test_shared_array_is_filled_by_every_process_and_read_without_copying():
    shown = output("shared_array")
    assert "which ended with [0, 0, 0, 0]" in shown
    assert shown.count("filled: True") == 4
    assert "written there, read here: [1, 2, 3]" in shown
    assert "a part of it is as it was: True" in shown


@locks
def test_secure_memory_leaves_nothing_and_finds_what_is_careless():
    pytest.importorskip("cryptography")
    text = output("secure_memory")
    assert re.search(r"36 bytes at 0x[0-9a-f]+, ---p; locked; in no core dump; zeros in a child", text)
    assert re.findall(r"(\w+): (\d) full and (\d) partial copies", text) == [
        ("password", "0", "0"),
        ("key", "0", "0"),
        ("password", "1", "0"),
    ]
    assert "a forked child has none of its parent's secrets" in text


def typed_into_secure_memory(line):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, str(PROGRAMS["secure_memory"]), "--ask"])
    shown = b""
    while b"characters: " not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, line)
    with contextlib.suppress(OSError):  # EIO: it has ended
        while piece := os.read(terminal, 1000):
            shown += piece
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    return shown


@locks
def test_secure_memory_asks_at_the_terminal():
    pytest.importorskip("cryptography")
    shown = typed_into_secure_memory(b"correct horse battery\n")
    assert b"correct" not in shown
    assert b"key: 0 full and 0 partial copies" in shown


@locks
@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"short\n", b"too short"),
        (b"\n", b"nothing was typed"),
        (b"\x04", b"gave no line"),
        (b"\x03", b"broken off"),
    ],
)
def test_secure_memory_says_what_was_wrong_with_what_was_typed(line, told):
    shown = typed_into_secure_memory(line)
    assert told in shown
    assert b"Traceback" not in shown
