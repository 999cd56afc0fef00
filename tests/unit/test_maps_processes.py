"""Maps of processes that fork, have threads, hide, or keep their files where no call reaches."""

import contextlib
import ctypes
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmkit import Error, maps
from mmkit._native import maps as native
from mmkit.maps import Areas, Kind
from mmkit.maps.process import Opened
from mmkit.maps.table import Table
from support import PAGE, in_child, needs_root, run, sanitized

THREADS = (
    "import threading\n"
    "for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
)


@contextmanager
def python(code):
    """A process that runs code, until it has said a line; gives that too."""
    command = [sys.executable, "-c", code + "\ninput()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        yield other.pid, other.stdout.readline().strip()
        other.kill()


# Forks


class Blocked:
    """What a thread waits for that looks at anything of it, or adds to it."""

    def __init__(self):
        self.reached, self.over = threading.Event(), threading.Event()

    def __getattr__(self, _name):
        self.reached.set()
        self.over.wait()
        raise AttributeError

    def __add__(self, _other):
        return self.anything


@pytest.mark.parametrize("attribute", ["fields", "places", "amounts", "paths", "program"])
def test_a_child_can_read_whatever_a_thread_of_its_parent_was_reading(attribute):
    blocked = Blocked()
    if attribute == "program":
        waiting = Opened(None)
        waiting._directory = blocked
    else:
        waiting = Table(blocked, 0, None, {}, None)
    thread = threading.Thread(target=lambda: getattr(waiting, attribute, None))
    thread.start()
    blocked.reached.wait()

    def look():
        signal.alarm(20)
        areas = maps.read(costs=True)
        assert list(areas)
        return areas.total(by="path").sum.areas == len(areas)

    try:
        assert in_child(look)
    finally:
        blocked.over.set()
        thread.join()


def test_a_childs_find_leaves_the_map_that_the_program_opened():
    code = (
        "import os\n"
        "from mmkit import maps\n"
        "maps.find(id(maps))\n"
        "os.closerange(3, 64)\n"
        # The number, the file and all that stat tells are those of the descriptor that find had.
        "theirs = os.open('/proc/self/maps', os.O_RDONLY)\n"
        "shown = os.readlink(f'/proc/self/fd/{theirs}')\n"
        "pid = os.fork()\n"
        "found = maps.find(id(maps))\n"
        "if pid == 0:\n"
        "    os._exit(os.readlink(f'/proc/self/fd/{theirs}') != shown)\n"
        "print(os.waitpid(pid, 0)[1])\n"
    )
    result = run(code)
    assert (result.stdout, result.stderr) == ("0\n", "")


# Threads


@sanitized
def test_the_number_of_a_thread_stands_for_its_process():
    code = THREADS + "print(*(thread.native_id for thread in threading.enumerate()[1:]), flush=True)"
    with python(code) as (pid, threads):
        expected = [area for area in maps.read(pid) if area.kind == "thread_stack"]
        assert len(expected) == 3
        for thread in map(int, threads.split()):
            assert list(maps.read(thread).where(kind="thread_stack")) == expected
            assert [maps.find(area.start, thread) for area in expected] == expected


@sanitized
def test_stacks_are_told_as_they_were_when_the_map_was_read():
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    areas, fresh = maps.read(), maps.read()
    expected = list(areas.where(kind="thread_stack"))
    assert len(expected) >= 3
    assert in_child(lambda: list(fresh.where(kind="thread_stack"))) == expected
    done.set()
    for thread in threads:
        thread.join()
    assert list(fresh.where(kind="thread_stack")) == expected


@sanitized
def test_where_a_thread_has_told_no_list_its_stack_is_told_by_its_looks():
    code = (
        "import ctypes, threading\n"
        "told, over = threading.Event(), threading.Event()\n"
        "def body():\n"
        "    libc = ctypes.CDLL(None)\n"
        "    assert libc.syscall(273, None, ctypes.c_size_t(24)) == 0\n"  # set_robust_list
        "    told.set(); over.wait()\n"
        "threading.Thread(target=body, daemon=True).start(); told.wait()\n"
        "print(flush=True)\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the number of set_robust_list is that of x86-64")
    with python(code) as (pid, _):
        stacks = maps.read(pid).where(kind="thread_stack")
        assert stacks
        assert all(maps.find(stack.start, pid) == stack for stack in stacks)


@pytest.mark.parametrize(
    ("guard", "size", "kind"),
    [
        (0x10000, 0x4000, Kind.THREAD_STACK),
        (0x11000, 0x4000, Kind.ANONYMOUS),
        (0x10000, 0x3000, Kind.ANONYMOUS),
    ],
)
def test_what_looks_like_a_stack_has_the_sizes_of_one(guard, size, kind):
    start = 0x10000000 + guard
    text = f"10000000-{start:x} ---p 00000000 00:00 0 \n{start:x}-{start + size:x} rw-p 00000000 00:00 0 \n"
    assert Areas.parse(text.encode())[1].kind is kind


@sanitized
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of exit is that of x86-64")
def test_a_process_that_goes_on_without_its_main_thread_is_read_through_another():
    code = THREADS + "print(flush=True)\nimport ctypes; ctypes.CDLL(None).syscall(60, 0)"
    with python(code) as (pid, _):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        areas = maps.read(pid, costs=True)
        assert areas.total()["heap"].rss > 0
        assert areas.find(areas[0].start) == areas[0]
        heap, *_ = maps.read(pid).where(kind="heap")
        assert maps.find(heap.start, pid) == heap


# Processes that cannot be read


def test_a_zombie_may_have_any_name():
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 0 (')"
    with subprocess.Popen([sys.executable, "-c", code]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError, match="zombie"):
            maps.read(zombie.pid)


def test_finding_says_the_same_of_a_zombie_and_a_kernel_thread_as_reading():
    with subprocess.Popen(["true"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError, match="zombie"):
            maps.find(0x1000, zombie.pid)
    if Path("/proc/2/comm").exists():
        with pytest.raises(Error, match="is a kernel thread"):
            maps.find(0x1000, 2)


@needs_root
def test_a_hidden_process_is_not_said_to_have_ended(child):
    def look():
        libc = ctypes.CDLL(None, use_errno=True)
        new_namespace, private, recursive = 0x20000, 1 << 18, 1 << 14
        libc.unshare(new_namespace)
        libc.mount(b"none", b"/", None, ctypes.c_ulong(private | recursive), None)
        if libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(0), b"hidepid=invisible"):
            return f"no mount of /proc: {os.strerror(ctypes.get_errno())}"
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        for attempt in (lambda: maps.read(child), lambda: maps.find(0x1000, child)):
            with pytest.raises(PermissionError, match=rf"Process {child} is there.*hidepid"):
                attempt()
        for never in ((1 << 31) - 1, 1 << 40):
            with pytest.raises(ProcessLookupError):
                maps.read(never)
        return None

    if refused := in_child(look):
        pytest.skip(refused)


# Paths longer than PATH_MAX


@pytest.fixture
def deep(tmp_path):
    """A folder whose path no call takes; the current one meanwhile."""
    before = os.getcwd()
    os.chdir(tmp_path)
    for _ in range(18):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    yield os.fsencode(tmp_path) + b"/" + b"/".join([b"d" * 250] * 18)
    os.chdir(before)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("name", ["new\nline", "plain"])
def test_a_path_that_no_call_takes_is_told_whole(deep, name):
    path = deep + b"/" + os.fsencode(name)
    with open(name, "wb+") as file:
        file.truncate(PAGE)
        with mmap.mmap(file.fileno(), PAGE) as memory:
            address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            assert maps.find(address) == maps.read().find(address)
            assert maps.find(address).path == path
            # Other files, too, are asked whether they are executed somewhere.
            pid = os.getpid()
            told = in_child(lambda: (maps.find(address, pid).path, maps.read(pid).find(address).path))
            assert told == (path, path)


def test_a_program_that_no_call_reaches_is_read_as_one_that_is_not_known(deep):
    shutil.copy(shutil.which("cat"), "program")
    with subprocess.Popen(["./program"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        running.stdin.write(b"ready\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"ready\n"
        areas = maps.read(running.pid)
        assert areas.program is None
        assert areas.where(kind="library")[0].path == deep + b"/program"
        assert maps.find(areas[0].start, running.pid) == areas[0]
        running.stdin.close()


def test_a_refusal_names_the_call_that_was_refused(monkeypatch):
    def refuse(_descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(native, "read", refuse)
    with pytest.raises(OSError, match=rf"read\('/proc/{os.getpid()}/maps'\): Input/output error"):
        maps.read()


# Memory


@sanitized
def test_a_large_text_that_was_parsed_costs_later_readings_nothing():
    def look():
        count = 1 << 20
        areas = Areas.parse(
            b"".join(
                b"%012x-%012x rw-p 00000000 00:00 0 \n" % (i << 12, (i + 1) << 12) for i in range(1, count)
            )
        )
        assert len(areas) == count - 1
        del areas
        used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20),) * 2)
        return len([maps.read(costs=True) for _ in range(10)])

    assert in_child(look) == 10


@sanitized
def test_a_reading_keeps_no_rows_that_it_guessed_for_nothing(child):
    with mmap.mmap(-1, 20000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        view = (ctypes.c_char * len(memory)).from_buffer(memory)
        libc = ctypes.CDLL(None)
        for page in range(0, 20000, 2):
            where = ctypes.c_void_p(ctypes.addressof(view) + page * PAGE)
            assert libc.mprotect(where, ctypes.c_size_t(PAGE), 1) == 0
        del view
        kept = []
        before = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        for _ in range(10):
            maps.read()
            kept.append(maps.read(child, costs=True))
        after = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    # 20,000 rows would be 5 MB each.
    assert after - before < 20 << 20


@sanitized
def test_a_guess_that_there_is_no_memory_for_is_taken_back():
    def look():
        with mmap.mmap(-1, 40000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            view = (ctypes.c_char * len(memory)).from_buffer(memory)
            libc = ctypes.CDLL(None)
            for page in range(0, 40000, 2):
                where = ctypes.c_void_p(ctypes.addressof(view) + page * PAGE)
                assert libc.mprotect(where, ctypes.c_size_t(PAGE), 1) == 0
            del view
            assert len(maps.read()) > 40000
        used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20),) * 2)
        # A column of so many areas has 340 KB: leave none so large, and some for what there really is.
        filler = []
        with contextlib.suppress(MemoryError):
            while True:
                filler.append(bytearray(64 << 10))
        del filler[-4:]
        try:
            return len(maps.read())
        finally:
            filler.clear()

    assert 10 < in_child(look) < 10000


# Signals


def test_a_handler_that_raises_ends_a_reading():
    class Enough(Exception):
        pass

    def raise_it(*_):
        raise Enough

    reader, writer = os.pipe()
    line = b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n"
    pieces, asked = 1000, []

    def write():
        for piece in range(pieces):
            if piece == 8:
                os.kill(os.getpid(), signal.SIGUSR1)
            asked.append(piece)
            try:
                os.write(writer, line * 1000)
            except BrokenPipeError:
                break
        os.close(writer)

    previous = signal.signal(signal.SIGUSR1, raise_it)
    thread = threading.Thread(target=write)
    try:
        with pytest.raises(Enough):
            thread.start()
            native.read(reader)
    finally:
        os.close(reader)
        thread.join()
        signal.signal(signal.SIGUSR1, previous)
    assert len(asked) < pieces
