import ctypes
import mmap
import os
import re
import signal
import subprocess
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mmkit import maps
from mmkit.errors import Error, SyscallError
from mmkit.flags import Prot
from mmkit.maps import Area, Areas, Kind, process
from saved_maps import PROGRAM_TEXT
from support import in_child, needs_root, run, sanitized

PAGE = mmap.PAGESIZE
MAP_HUGETLB = 0x40000
NEVER_A_PID = (1 << 31) - 1


@contextmanager
def mapped(descriptor, length=PAGE, **options):
    """Map a descriptor, and give the address."""
    memory = mmap.mmap(descriptor, length, **options)
    view = (ctypes.c_char * length).from_buffer(memory)
    try:
        yield ctypes.addressof(view)
    finally:
        del view
        memory.close()


@contextmanager
def mapped_file(path, unlink=False):
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(descriptor, PAGE)
        with mapped(descriptor) as address:
            if unlink:
                os.remove(path)
            yield address
    finally:
        os.close(descriptor)


def both_ways(address):
    """Look an area up by a query and by reading: they must tell the same."""
    area = maps.find(address)
    assert area == maps.read().find(address)
    return area


@pytest.fixture
def no_query(monkeypatch):
    """A kernel older than Linux 6.11."""

    def query(*_arguments):
        raise process.native.UnansweredError

    monkeypatch.setattr(process.native, "query", query)
    monkeypatch.setattr(process.native, "query_own", query)


def has_query():
    with Path("/proc/self/maps").open("rb") as text:
        try:
            process.native.query(text.fileno(), 0)
        except process.native.UnansweredError:
            return False
    return True


needs_query = pytest.mark.skipif(not has_query(), reason="PROCMAP_QUERY came with Linux 6.11")


# What is read


def test_every_line_of_the_text_is_an_area_with_all_its_fields(child):
    lines = Path(f"/proc/{child}/maps").read_bytes().splitlines()
    areas = maps.read(child)
    assert len(areas) == len(lines)
    for area, line in zip(areas, lines, strict=True):
        addresses, perms, offset, device, inode, *path = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split(b"-"))
        major, minor = (int(part, 16) for part in device.split(b":"))
        assert (area.start, area.end, area.size) == (start, end, end - start)
        assert area.perms == perms.decode()
        assert area.offset == int(offset, 16)
        assert (area.device, area.inode) == (os.makedev(major, minor), int(inode))
        assert area.path == (path[0] if path else b"")
        assert not area.deleted


def test_without_a_pid_it_is_this_process():
    buffer = ctypes.create_string_buffer(100)
    areas = maps.read()
    assert areas.pid == os.getpid()
    assert os.fsencode(Path("/proc/self/exe").readlink()) == areas.program
    assert areas.find(ctypes.addressof(buffer)).perms == "rw-p"
    assert not areas.torn
    assert areas.malformed == 0


def test_device_and_inode_are_those_of_stat(tmp_path):
    with mapped_file(tmp_path / "data") as address:
        area = both_ways(address)
        stat = (tmp_path / "data").stat()
        assert (area.device, area.inode) == (stat.st_dev, stat.st_ino)
        assert area.path == os.fsencode(tmp_path / "data")
        assert area.kind is Kind.FILE


def test_many_areas_are_read():
    with mapped(-1, 2000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as address:
        libc = ctypes.CDLL(None, use_errno=True)
        for page in range(0, 2000, 2):
            assert libc.mprotect(ctypes.c_void_p(address + page * PAGE), ctypes.c_size_t(PAGE), 1) == 0
        areas = [area for area in maps.read() if address <= area.start < address + 2000 * PAGE]
    assert [area.perms for area in areas[:1999]] == (["r--p", "rw-p"] * 1000)[:1999]


# Names


@pytest.mark.parametrize(
    "name",
    [
        b"new\nline",
        b"\n",
        b"back\\slash\\",
        b"tab\t",
        b" spaces  ",
        b"\xff\xfe not UTF-8",
        b"\x1b[31mred",
        b"n" * 255,
        b"[heap]",
        "Ünïcödé".encode(),
    ],
    ids=repr,
)
def test_any_name_of_a_file_survives(tmp_path, name):
    path = os.fsencode(tmp_path) + b"/" + name
    with mapped_file(path) as address:
        area = both_ways(address)
    assert area.path == path
    assert not area.deleted
    assert area.kind is Kind.FILE
    assert area.name.isprintable()


@needs_query
def test_a_literal_backslash_012_is_told_from_a_newline(tmp_path):
    path = os.fsencode(tmp_path) + rb"/literal\012"
    with mapped_file(path) as address:
        assert both_ways(address).path == path


def test_a_literal_backslash_012_counts_as_a_newline_on_older_kernels(tmp_path, no_query):
    with mapped_file(os.fsencode(tmp_path) + rb"/literal\012") as address:
        assert both_ways(address).path == os.fsencode(tmp_path) + b"/literal\n"


def test_a_deleted_file_is_told_with_the_path_that_it_had(tmp_path):
    path = tmp_path / "gone"
    with mapped_file(path, unlink=True) as address:
        area = both_ways(address)
    assert area.deleted
    assert area.path == os.fsencode(path)


def test_a_file_that_is_only_named_deleted_is_told_from_a_deleted_one(tmp_path):
    path = tmp_path / "here (deleted)"
    with mapped_file(path) as address:
        area = both_ways(address)
        assert (area.path, area.deleted) == (os.fsencode(path), False)
        path.unlink()
        area = both_ways(address)
        assert (area.path, area.deleted) == (os.fsencode(path), True)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/plain", "/plain"),
        (b"/new\nline", r"/new\nline"),
        (b"/\x1b[31m", r"/\x1b[31m"),
        (b"/\xff", r"/\xff"),
        ("/\u202egnp".encode(), r"/\u202egnp"),
        ("/Ünïcödé".encode(), "/Ünïcödé"),
    ],
)
def test_a_name_for_people_holds_nothing_that_misleads_a_terminal(path, name):
    area = Area(0, 4096, 4096, "r--p", 0, 0, 0, path, False, Kind.FILE)
    assert area.name == name
    assert repr(area) == f"<Area 0-1000 r--p file {name}>"


def test_a_deleted_file_is_not_taken_for_another_that_is_named_so(tmp_path):
    (tmp_path / "gone (deleted)").write_bytes(b"another")
    with mapped_file(tmp_path / "gone", unlink=True) as address:
        area = both_ways(address)
    assert (area.path, area.deleted) == (os.fsencode(tmp_path / "gone"), True)


def test_a_name_that_leads_to_the_file_is_its_path(tmp_path):
    path = tmp_path / "was"
    with mapped_file(path) as address:
        # No call tells whether the kernel means this one.
        (tmp_path / "was (deleted)").hardlink_to(path)
        path.unlink()
        area = both_ways(address)
        assert (area.path, area.deleted) == (os.fsencode(path) + b" (deleted)", False)
        assert Path(os.fsdecode(area.path)).stat().st_ino == area.inode


@needs_query
def test_a_path_is_not_taken_from_another_file_that_came_there_meanwhile(tmp_path, monkeypatch):
    ours, theirs = (os.fsencode(tmp_path) + name for name in (rb"/ours\012", b"/theirs"))
    read = process.native.read
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    with open(theirs, "wb+") as other, mapped_file(ours) as address:
        other.truncate(PAGE)

        def read_and_replace(descriptor):
            columns = read(descriptor)
            shared, fixed = 1, 0x10
            where, length = ctypes.c_void_p(address), ctypes.c_size_t(PAGE)
            assert libc.mmap(where, length, 1, shared | fixed, other.fileno(), ctypes.c_long(0)) == address
            return columns

        monkeypatch.setattr(process.native, "read", read_and_replace)
        area = maps.read().find(address)
    assert area.path == os.fsencode(tmp_path) + b"/ours\n"


# Kinds


@sanitized
def test_the_kernels_own_names_tell_their_kinds(child):
    areas = maps.read(child)
    kinds = {area.path: area.kind for area in areas}
    assert kinds[b"[heap]"] is Kind.HEAP
    assert kinds[b"[stack]"] is Kind.STACK
    assert kinds[b"[vdso]"] is Kind.VDSO
    assert [area.path for area in areas.where(kind="text")] == [areas.program]
    assert {area.path for area in areas.where(kind=["data", "rodata"])} == {areas.program}
    assert len(areas.where(kind="library", path=re.compile(r"/libc\.so"))) > 1


def test_anonymous_memory_is_anonymous_shared_or_private():
    for flags, perms in ((mmap.MAP_PRIVATE, "rw-p"), (mmap.MAP_SHARED, "rw-s")):
        with mapped(-1, flags=flags | mmap.MAP_ANONYMOUS) as address:
            area = both_ways(address)
        assert (area.kind, area.perms, area.shared) == (Kind.ANONYMOUS, perms, perms[3] == "s")
        assert area.prot == Prot.READ | Prot.WRITE


def test_a_memfd_is_told():
    descriptor = os.memfd_create("named\nso")
    os.ftruncate(descriptor, PAGE)
    with mapped(descriptor) as address:
        area = both_ways(address)
    os.close(descriptor)
    assert (area.kind, area.path, area.deleted) == (Kind.MEMFD, b"/memfd:named\nso", True)


def test_posix_shared_memory_is_told():
    path = Path(f"/dev/shm/mmkit-test-{os.getpid()}")
    try:
        with mapped_file(path) as address:
            assert both_ways(address).kind is Kind.SHM
    finally:
        path.unlink()


def test_a_system_v_segment_is_told():
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmdt.argtypes = [ctypes.c_void_p]
    segment = libc.shmget(0, PAGE, 0o1600)
    assert segment >= 0
    address = libc.shmat(segment, None, 0)
    libc.shmctl(segment, 0, None)
    area = both_ways(address)
    assert (area.kind, area.inode, area.path) == (Kind.SYSTEMV, segment, b"/SYSV00000000")
    assert libc.shmdt(address) == 0


def test_huge_pages_are_told():
    try:
        memory = mapped(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
        with memory as address:
            assert both_ways(address).kind is Kind.HUGETLB
    except OSError:
        pytest.skip("no huge pages in the pool")


def test_a_file_with_a_part_that_is_executed_is_a_library_all_over(tmp_path):
    with mapped_file(tmp_path / "plugin") as address:
        assert both_ways(address).kind is Kind.FILE
        descriptor = os.open(tmp_path / "plugin", os.O_RDONLY)
        with mmap.mmap(descriptor, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC):
            assert both_ways(address).kind is Kind.LIBRARY
        os.close(descriptor)


@sanitized
def test_a_process_of_one_thread_finds_each_of_its_areas_as_it_reads_them():
    result = run(
        "from mmkit import linux, maps\n"
        "from mmkit.flags import MapFlag\n"
        "end = maps.read().where(kind='data')[-1].end\n"
        "if maps.read().find(end) is None:\n"  # not every Python has a bss of its own
        "    linux.mmap(end, 4096, 3, MapFlag.PRIVATE | MapFlag.ANONYMOUS | MapFlag.FIXED_NOREPLACE, -1, 0)\n"
        "for _ in range(20):\n"  # until the heap has not grown meanwhile
        "    areas = list(maps.read())\n"
        "    agrees = [maps.find(area.start) == area == maps.find(area.end - 1) for area in areas]\n"
        "    if list(maps.read()) == areas:\n"
        "        break\n"
        "assert all(agrees)\n"
        "print(*{area.kind for area in areas})\n"
    )
    assert result.stderr == ""
    assert {"anonymous", "bss", "data", "heap", "library", "stack", "text"} <= set(result.stdout.split())


def test_all_kinds_are_told_from_saved_text():
    areas = Areas.parse(PROGRAM_TEXT, program=b"/bin/program")
    assert [str(area.kind) for area in areas] == [
        *("rodata", "text", "rodata", "data", "bss", "anonymous", "heap", "anonymous", "anonymous"),
        *("library", "anonymous", "library", "library", "file", "device", "device", "memfd", "systemv"),
        *("file", "anonymous", "hugetlb", "stack", "vdso"),
    ]


def test_without_a_known_program_it_counts_as_a_library():
    areas = Areas.parse(PROGRAM_TEXT)
    assert [str(area.kind) for area in areas[:5]] == ["library"] * 4 + ["anonymous"]


def test_a_deleted_program_is_still_the_program():
    areas = Areas.parse(
        PROGRAM_TEXT.replace(b"program\n", b"program (deleted)\n"), program=b"/bin/program (deleted)"
    )
    assert [str(area.kind) for area in areas[:5]] == ["rodata", "text", "rodata", "data", "bss"]
    assert areas[0].deleted


# find


@sanitized
def test_finding_by_query_tells_the_same_as_reading(child):
    for pid in (child, None):
        for area in maps.read(pid):
            assert maps.find(area.start, pid) == area
            assert maps.find(area.end - 1, pid) == area


def test_finding_on_older_kernels_tells_the_same(child, no_query):
    for area in maps.read(child):
        assert maps.find(area.start, child) == area


def test_between_areas_nothing_is_found(child):
    areas = maps.read(child)
    for below, above in pairwise(areas):
        if below.end < above.start:
            assert maps.find(below.end, child) is None
            assert areas.find(above.start - 1) is None
    assert maps.find(0, child) is None
    assert areas.find(0) is None


@pytest.mark.parametrize("address", [-1, 1 << 64])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="between 0 and"):
        maps.find(address)


# Processes that cannot be read


def test_a_process_that_never_was_is_not_found():
    with pytest.raises(ProcessLookupError, match=f"There is no process {NEVER_A_PID}") as caught:
        maps.read(NEVER_A_PID)
    assert isinstance(caught.value, SyscallError)
    with pytest.raises(ProcessLookupError):
        maps.find(0x1000, NEVER_A_PID)


def test_a_zombie_is_said_to_be_one():
    with subprocess.Popen(["true"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError, match="zombie"):
            maps.read(zombie.pid)
        with pytest.raises(ProcessLookupError):
            maps.find(0x1000, zombie.pid)


@pytest.mark.skipif(not Path("/proc/2/comm").exists(), reason="kernel threads are hidden in a container")
def test_a_kernel_thread_is_said_to_be_one():
    with pytest.raises(Error, match="is a kernel thread"):
        maps.read(2)


@pytest.mark.parametrize("kernel", ["this", "before 6.11"])
def test_a_process_that_ends_while_it_is_read_is_not_taken_for_a_smaller_one(monkeypatch, request, kernel):
    if kernel == "before 6.11":
        request.getfixturevalue("no_query")
    read = process.native.read

    def read_and_kill(descriptor):
        columns = read(descriptor)
        victim.kill()
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        return columns

    monkeypatch.setattr(process.native, "read", read_and_kill)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as victim, pytest.raises(ProcessLookupError):
        maps.read(victim.pid)


@needs_root
def test_another_users_process_says_what_is_needed(child):
    def look():
        for attempt in (lambda: maps.read(child), lambda: maps.find(0x1000, child)):
            with pytest.raises(
                PermissionError, match=r"belongs to user 0.*user 65534.*CAP_SYS_PTRACE"
            ) as caught:
                attempt()
            assert isinstance(caught.value, SyscallError)

    in_child(look, user=65534)


def test_a_forked_child_reads_its_own_map():
    buffer = mmap.mmap(-1, 7 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))

    def look():
        buffer.madvise(mmap.MADV_NORMAL)
        assert maps.read().pid == os.getpid()
        assert ctypes.CDLL(None).munmap(ctypes.c_void_p(address), ctypes.c_size_t(7 * PAGE)) == 0
        return maps.find(address)

    assert in_child(look) is None
    assert maps.find(address) is not None


@pytest.mark.parametrize("pid", [0, -1])
def test_what_is_no_pid_is_refused(pid):
    with pytest.raises(ValueError, match="pid must be positive"):
        maps.read(pid)
    with pytest.raises(TypeError):
        maps.read("1")


def test_no_descriptor_is_left_open(child):
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    maps.read(child)
    maps.find(0x1000, child)
    for failing in (NEVER_A_PID, 2):
        with pytest.raises(Error):
            maps.read(failing)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


# The sequence


@pytest.fixture(scope="module")
def saved():
    return Areas.parse(PROGRAM_TEXT, pid=7, program=b"/bin/program")


def test_areas_are_a_sequence(saved):
    rows = list(saved)
    assert len(saved) == len(rows) == 23
    assert saved[3] == rows[3]
    assert saved[-1] == rows[-1]
    assert list(saved[2:9:3]) == rows[2:9:3]
    assert list(saved[::-1]) == rows[::-1] == list(reversed(saved))
    assert list(saved[5:][:3][::-1]) == rows[7:4:-1]
    assert rows[4] in saved
    assert rows[4] not in saved[5:]
    assert "no area" not in saved
    assert saved.index(rows[4]) == 4
    with pytest.raises(IndexError):
        saved[23]
    assert repr(saved) == "<Areas of process 7: 23 areas, 1.1 MiB of address space>"
    assert repr(saved[:1]) == "<Areas of process 7: 1 area, 4 KiB of address space>"


def test_a_selection_finds_only_what_it_holds(saved):
    heap = saved.where(kind="heap")
    assert heap.find(0x500000).kind is Kind.HEAP
    assert heap.find(0x400000) is None
    assert saved[::-1].find(0x500000).kind is Kind.HEAP


def test_areas_are_selected_by_kind_path_and_permission(saved):
    def names(areas):
        return [area.path.decode() for area in areas]

    assert len(saved.where()) == len(saved)
    assert names(saved.where(kind="heap")) == ["[heap]"]
    assert names(saved.where(kind={Kind.HEAP, "stack"})) == ["[heap]", "[stack:77]"]
    assert names(saved.where(path="/opt/plugin")) == ["/opt/plugin"] * 2
    assert names(saved.where(path=b"/opt/plugin")) == names(saved.where(path=Path("/opt/plugin")))
    assert names(saved.where(path="[heap]")) == ["[heap]"]
    assert names(saved.where(path=re.compile(r"\.so\b"))) == names(saved.where(path=re.compile(rb"\.so\b")))
    assert len(saved.where(path="")) == 3
    assert names(saved.where(path=re.compile("^/bin/"), perms="x")) == ["/bin/program"]
    assert {area.perms for area in saved.where(perms="rw")} == {"rw-p", "rw-s"}
    assert {area.perms for area in saved.where(perms="sw")} == {"rw-s"}
    assert {area.perms for area in saved.where(perms="r--p")} == {"r--p"}
    assert {area.perms for area in saved.where(perms="---p")} == {"---p"}
    assert len(saved.where(perms="wx")) == 0
    assert len(saved.where(kind="heap").where(perms="x")) == 0


def test_a_selection_that_cannot_be_meant_is_refused(saved):
    with pytest.raises(ValueError, match="spam"):
        saved.where(kind="spam")
    for perms in ("", "q", "r-w"):
        with pytest.raises(ValueError, match="perms must be"):
            saved.where(perms=perms)


def test_columns_are_buffers_that_numpy_takes_as_they_are(saved):
    rows = list(saved)
    start = np.asarray(saved.column("start"))
    assert start.dtype == np.uint64
    assert not start.flags.writeable
    assert start.tolist() == [area.start for area in rows]
    for name in ("start", "end", "size", "offset", "device", "inode"):
        for areas in (saved, saved[::-1], saved[4:1:-2], saved[:0], saved.where(perms="x")):
            column = areas.column(name)
            assert column.readonly
            assert column.tolist() == [getattr(area, name) for area in areas]
    assert [list(Kind)[code] for code in saved.column("kind")] == [area.kind for area in rows]
    assert [Prot(bits & 7) for bits in saved.column("perms")] == [area.prot for area in rows]
    with pytest.raises(ValueError, match="no column 'path'"):
        saved.column("path")


def test_a_column_outlives_its_areas(child):
    column = maps.read(child).column("start")
    assert column[0] == maps.read(child)[0].start


def test_totals_are_bytes_by_group_largest_first(saved):
    for by in ("kind", "path", "perms"):
        totals = saved.total(by=by)
        assert sum(totals.values()) == sum(area.size for area in saved)
        assert list(totals.values()) == sorted(totals.values(), reverse=True)
    assert saved.total()["heap"] == 0x100000
    assert saved.total(by="path")["/bin/program"] == 4 * 4096
    assert saved.where(kind="stack").total(by="perms") == {"rw-p": 4096}
    assert saved[:0].total() == {}
    with pytest.raises(ValueError, match="cannot group"):
        saved.total(by="colour")


def test_text_that_is_none_is_counted_and_overlaps_are_cut():
    areas = Areas.parse(b"nonsense\n1000-3000 r--p 00000000 00:00 0 \n2000-4000 rw-p 00000000 00:00 0 \n")
    assert (areas.malformed, areas.torn, areas.pid, areas.program) == (1, True, 0, None)
    assert [(area.start, area.end) for area in areas] == [(0x1000, 0x3000), (0x3000, 0x4000)]


def test_a_signal_does_not_disturb_a_reading():
    hits = []
    previous = signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(50):
            assert maps.read().malformed == 0
        while not hits:
            assert maps.read().malformed == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert hits
