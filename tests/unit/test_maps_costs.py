import copy
import ctypes
import json
import mmap
import os
import pickle
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import mmkit
from mmkit import maps
from mmkit._native import maps as native
from mmkit.maps import Areas, Kind, Total, Totals
from support import PAGE, disturbed_by_others, in_child, needs_root, sanitized, undisturbed

MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


@contextmanager
def written(length, flags=PRIVATE):
    """Memory of which every page was written; gives the address."""
    # Between guards, so that it does not become one area with a neighbour.
    with mmap.mmap(-1, length + 2 * PAGE, flags=flags) as memory:
        view = (ctypes.c_char * len(memory)).from_buffer(memory)
        address = ctypes.addressof(view) + PAGE
        mmkit.linux.mprotect(address - PAGE, PAGE, 0)
        mmkit.linux.mprotect(address + length, PAGE, 0)
        for page in range(length // PAGE):
            memory[PAGE + page * PAGE] = 1
        yield address
        del view


def told_by_the_kernel(pid):
    """smaps in plain Python: for each area its fields, as text."""
    areas = []
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="surrogateescape").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.isidentifier() and not name.islower():
            areas[-1][name.lower()] = value.strip()
        else:
            areas.append({})
    return areas


def as_bytes(value):
    if value.endswith(" kB"):
        return int(value.removesuffix(" kB")) * 1024
    return int(value) if value.isdecimal() else value


# Fields


@disturbed_by_others
def test_every_field_of_smaps_is_there_in_bytes_under_its_lower_case_name(stopped):
    expected, areas = undisturbed(lambda: told_by_the_kernel(stopped), lambda: maps.read(stopped, costs=True))
    assert len(areas) == len(expected) > 10
    for area, fields in zip(areas, expected, strict=True):
        values = {name: as_bytes(value) for name, value in fields.items()}
        assert values.pop("size") == area.size
        assert {name: value for name, value in area.costs.items() if name != "uss"} == values
        assert all(getattr(area, name) == value for name, value in values.items())
        assert area.uss == area.private_clean + area.private_dirty + values.get("private_hugetlb", 0)
        assert area.vmflags == fields["vmflags"]
    assert any(area.rss for area in areas)


def test_the_areas_with_costs_are_those_without(stopped):
    plain = list(maps.read(stopped))
    assert [area._replace(costs=None) for area in maps.read(stopped, costs=True)] == plain
    assert all(area.costs is None for area in plain)


def test_what_is_written_is_private_dirty_and_what_is_locked_is_locked():
    with written(8 * PAGE) as address:
        area = maps.read(costs=True).find(address)
        assert (area.start, area.size, area.perms) == (address, 8 * PAGE, "rw-p")
        assert area.rss == area.pss == area.uss == area.private_dirty == area.anonymous == 8 * PAGE
        assert area.locked == 0
        mmkit.linux.madvise(address, 4 * PAGE, mmkit.Advice.DONTNEED)
        assert maps.read(costs=True).find(address).rss == 4 * PAGE


def test_shared_pages_are_nobodys_alone():
    with written(4 * PAGE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as address:

        def seen_in_the_child():
            ctypes.string_at(address, 4 * PAGE)
            area = maps.read(costs=True).find(address)
            return area.rss, area.pss, area.uss, area.shared_dirty

        assert in_child(seen_in_the_child) == (4 * PAGE, 2 * PAGE, 0, 4 * PAGE)
        assert maps.read(costs=True).find(address).uss == 4 * PAGE


def test_a_field_that_was_not_read_says_how_to():
    area = maps.read()[0]
    with pytest.raises(AttributeError, match=r"'rss'.*read\(costs=True\)"):
        area.rss  # noqa: B018
    with pytest.raises(AttributeError, match=r"read\(costs=True\)"):
        area.vmflags  # noqa: B018
    with pytest.raises(AttributeError, match="'rsss'.*tells .*rss.*pss"):
        maps.read(costs=True)[0].rsss  # noqa: B018


def test_an_area_with_costs_is_a_value():
    area = maps.read(costs=True)[0]
    for twin in (copy.copy(area), copy.deepcopy(area), pickle.loads(pickle.dumps(area))):
        assert twin == area
        assert hash(twin) == hash(area)
        assert twin.rss == area.rss
    assert "resident" in repr(area)


SMAPS = b"""\
1000-3000 rw-p 00000000 00:00 0 
Size:                  8 kB
KernelPageSize:        4 kB
Rss:                   8 kB
Pss:                   7 kB
Private_Clean:         4 kB
Private_Dirty:         3 kB
Tomorrows_Field:    1234 kB
Colour:             blue
Level:                 7
3000-4000 r-xp 00000000 fe:00 7                                  /lib/x.so
Rss:                   4 kB
nonsense
"""  # noqa: W291


def test_unknown_fields_are_kept_and_missing_ones_are_zero():
    one, two = areas = Areas.parse(SMAPS)
    assert (one.tomorrows_field, one.colour, one.level) == (1234 * 1024, "blue", 7)
    assert (two.rss, two.pss, two.tomorrows_field, two.colour) == (4096, 0, 0, "")
    assert one.uss == 7 * 1024
    assert areas.malformed == 1
    assert areas.costs == (
        "kernelpagesize", "rss", "pss", "uss", "private_clean", "private_dirty", "tomorrows_field", "colour", "level",
    )  # fmt: skip


def test_a_kernel_that_tells_little_is_read_as_well():
    (area,) = areas = Areas.parse(b"1000-3000 rw-p 00000000 00:00 0 \nRss:   8 kB\n")
    assert area.rss == 8192
    assert areas.costs == ("rss",)
    assert areas.total()["anonymous"].rss == 8192
    with pytest.raises(AttributeError):
        area.uss  # noqa: B018


@pytest.mark.parametrize(
    "name", ["Start", "End", "Offset", "Perms", "Path", "Kind", "path_start", "path_x", "Costs"]
)
def test_a_field_that_is_called_as_a_column_is_a_cost_and_changes_no_column(name):
    plain = b"1000-3000 rw-p 00000000 00:00 0 \nRss:   8 kB\n"
    (expected,), areas = Areas.parse(plain), Areas.parse(plain + name.encode() + b": 5 kB\n")
    assert areas[0]._replace(costs=None) == expected._replace(costs=None)
    assert list(areas) == [areas[0]]
    assert dict(areas[0].costs) == {"rss": 8192, name.lower(): 5120}
    assert areas.column("start").tolist() == [0x1000]
    assert areas.column("size").tolist() == [0x2000]
    assert areas.total().sum.costs == {"rss": 8192, name.lower(): 5120}
    assert areas.total().sum == 0x2000


def test_of_fields_that_are_one_in_lower_case_the_first_counts():
    areas = Areas.parse(
        b"1000-3000 rw-p 00000000 00:00 0 \n"
        b"Rss: 8 kB\nRSS: 16 kB\nUss: 9\nUSS: 7 kB\nPss: 1 kB\nPrivate_Dirty: 4 kB\nSIZE: 1 kB\n"
    )
    assert dict(areas[0].costs) == {"rss": 8192, "uss": 9, "pss": 1024, "private_dirty": 4096}
    assert areas.column("uss").tolist() == [9]
    assert areas.total().sum.costs == {"rss": 8192, "pss": 1024, "private_dirty": 4096}


def test_the_uss_has_private_pages_of_the_huge_page_pool():
    (area,) = Areas.parse(
        b"1000-3000 rw-p 00000000 00:00 0 \nPrivate_Clean: 1 kB\nPrivate_Dirty: 2 kB\nPrivate_Hugetlb: 4 kB\n"
    )
    assert area.uss == 7 * 1024


# Columns and totals


def test_costs_are_columns_that_numpy_takes_as_they_are(stopped):
    areas = maps.read(stopped, costs=True)
    for selection in (areas, areas.where(perms="w"), areas[::-2]):
        for name in areas.costs:
            if name == "vmflags":
                continue
            column = np.asarray(selection.column(name))
            assert column.dtype == np.uint64
            assert column.tolist() == [getattr(area, name) for area in selection]
    rss = areas.column("rss")
    assert np.shares_memory(np.asarray(rss), np.asarray(areas.column("rss")))
    assert not np.asarray(rss).flags.writeable
    with pytest.raises(ValueError, match="no column 'vmflags'"):
        areas.column("vmflags")
    with pytest.raises(ValueError, match=r"no column 'rss'.*costs=True"):
        maps.read(stopped).column("rss")


def told_in_all(pid):
    """smaps_rollup, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0].lower(): int(line.split()[1]) * 1024 for line in lines}


@disturbed_by_others
@pytest.mark.parametrize("by", ["kind", "path", "perms"])
def test_totals_have_every_cost_and_together_they_are_the_rollup(stopped, by):
    rollup, areas = undisturbed(lambda: told_in_all(stopped), lambda: maps.read(stopped, costs=True))
    totals = areas.total(by=by)
    whole = totals.sum
    assert whole == whole.size == sum(area.size for area in areas)
    assert whole.areas == len(areas)
    for name, expected in rollup.items():
        # Only the proportional shares are rounded down, once an area and here once in all.
        rounding = len(areas) * 1024 if "pss" in name and name in whole.costs else 0
        if name in whole.costs:
            assert expected - rounding <= whole.costs[name] <= expected, name
    assert whole.rss == rollup["rss"] > 0
    assert {"rss", "pss", "uss", "swap", "locked"} <= whole.costs.keys()
    assert "kernelpagesize" not in whole.costs
    for name, total in totals.items():
        group = [
            area
            for area in areas
            if {"kind": area.kind, "path": os.fsdecode(area.path), "perms": area.perms}[by] == name
        ]
        assert (total.areas, total.rss, total.pss) == (
            len(group), sum(area.rss for area in group), sum(area.pss for area in group),
        )  # fmt: skip
    assert [total.rss for total in totals.values()] == sorted((t.rss for t in totals.values()), reverse=True)


def test_totals_print_as_a_table():
    totals = Areas.parse(SMAPS, program=b"/bin/x").total(by="path")
    header, *rows, last = repr(totals).splitlines()
    assert header.split() == ["areas", "size", "rss", "pss", "uss"]
    assert rows[0].split() == ["(no", "path)", "1", "8", "KiB", "8", "KiB", "7", "KiB", "7", "KiB"]
    assert rows[1].startswith("/lib/x.so")
    assert last.split()[:6] == ["total", "2", "12", "KiB", "12", "KiB"]
    assert repr(totals[""]) == "<Total 8 KiB in 1 area, rss 8 KiB, pss 7 KiB, uss 7 KiB>"
    hostile = Areas.parse(b"1000-2000 r--p 00000000 fe:00 7 /\x1b[31m\xff\n").total(by="path")
    assert "\x1b" not in repr(hostile)


def test_a_total_is_a_number_that_travels():
    total = Total(4096, 2, {"rss": 100})
    assert total + 1 == 4097
    assert json.dumps({"size": total}) == '{"size": 4096}'
    for twin in (pickle.loads(pickle.dumps(total)), copy.deepcopy(total)):
        assert (twin, twin.areas, twin.rss) == (4096, 2, 100)
    with pytest.raises(AttributeError, match="no total of 'pss'"):
        total.pss  # noqa: B018
    assert [repr(Total(size)) for size in (0, 5)] == ["<Total 0 B in 0 areas>", "<Total 5 B in 0 areas>"]
    assert f"{total}" == str(total) == f"{total:d}" == "4096"
    totals = Totals({"small": Total(1), "large": Total(2)})
    assert list(totals) == ["large", "small"]
    assert pickle.loads(pickle.dumps(totals)) == totals


def test_many_areas_with_costs_are_read():
    with written(3000 * PAGE) as address:
        for page in range(0, 3000, 2):
            mmkit.linux.mprotect(address + page * PAGE, PAGE, 1)
        areas = maps.read(costs=True)
        rows = [area for area in areas if address <= area.start < address + 3000 * PAGE]
        assert len(rows) == 3000
        assert all(area.rss == area.private_dirty == PAGE for area in rows)
        assert sum(areas.column("rss")) == areas.total().sum.rss


# Whom it can be asked about


def test_the_costs_of_what_cannot_be_read_are_refused_in_the_same_words():
    with pytest.raises(ProcessLookupError, match="There is no process"):
        maps.read((1 << 31) - 1, costs=True)
    with subprocess.Popen(["true"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError, match="zombie"):
            maps.read(zombie.pid, costs=True)
    if Path("/proc/2/comm").exists():
        with pytest.raises(mmkit.Error, match="is a kernel thread"):
            maps.read(2, costs=True)


@needs_root
def test_the_costs_of_another_users_process_need_the_same_right(stopped):
    def refused():
        with pytest.raises(PermissionError, match="belongs to user 0"):
            maps.read(stopped, costs=True)

    in_child(refused, user=65534)


def test_a_process_that_ends_while_its_costs_are_read_is_not_taken_for_a_smaller_one(monkeypatch):
    read = native.read

    def read_and_kill(descriptor):
        columns = read(descriptor)
        victim.kill()
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        return columns

    monkeypatch.setattr(native, "read", read_and_kill)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as victim, pytest.raises(ProcessLookupError):
        maps.read(victim.pid, costs=True)


def test_a_hostile_name_survives_with_costs(tmp_path):
    for name in (
        b"new\nline",
        b"Rss:  99 kB",
        b"\nRss:    99 kB\n",
        b"\xff\\012",
        b"x (deleted)",
        b"t\tab",
        b"n" * 255,
    ):
        path = os.fsencode(tmp_path) + b"/" + name
        with open(path, "wb+") as file:
            file.truncate(PAGE)
            with mmap.mmap(file.fileno(), PAGE, access=mmap.ACCESS_READ) as memory:
                memory[0]
                (area,) = maps.read(costs=True).where(path=path)
                assert (area.rss, area.deleted, area.kind) == (PAGE, False, Kind.FILE)


# Threads


@contextmanager
def thread_that_tells_its_stack(stack_size=256 << 10):
    """A thread that waits; gives an address in its stack."""
    ready, done, addresses = threading.Event(), threading.Event(), []

    def body():
        attributes = ctypes.create_string_buffer(64)
        libc = ctypes.CDLL(None)
        libc.pthread_self.restype = ctypes.c_ulong
        assert libc.pthread_getattr_np(ctypes.c_ulong(libc.pthread_self()), attributes) == 0
        start, size = ctypes.c_void_p(), ctypes.c_size_t()
        assert libc.pthread_attr_getstack(attributes, ctypes.byref(start), ctypes.byref(size)) == 0
        addresses.append(start.value + size.value // 2)
        ready.set()
        done.wait()

    before = threading.stack_size(stack_size)
    thread = threading.Thread(target=body)
    thread.start()
    threading.stack_size(before)
    ready.wait()
    try:
        yield addresses[0]
    finally:
        done.set()
        thread.join()


@sanitized
def test_the_stacks_of_this_process_are_told_from_memory_that_looks_like_them():
    # A guard below, as a stack has it.
    with written(64 * PAGE) as imposter, thread_that_tells_its_stack() as stack:
        areas = maps.read()
        assert areas.find(stack).kind is Kind.THREAD_STACK
        assert areas.find(imposter).kind is Kind.ANONYMOUS
        assert maps.find(stack) == areas.find(stack)
        assert maps.find(imposter) == areas.find(imposter)
        assert areas.total()["thread_stack"] >= 256 << 10
        # As far as the text alone tells, both are stacks.
        saved = Areas.parse(Path("/proc/self/maps").read_bytes())
        assert saved.find(stack).kind is saved.find(imposter).kind is Kind.THREAD_STACK


@sanitized
def test_the_stacks_of_another_process_are_found():
    code = (
        "import threading\n"
        "for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        stacks = maps.read(other.pid).where(kind="thread_stack")
        assert len(stacks) == 3
        assert maps.find(stacks[0].start, other.pid).kind is Kind.THREAD_STACK
        assert "stacks of threads" in maps.layout(other.pid)
        other.communicate(b"\n")


# mmkit's own


def test_regions_that_have_a_name_are_mmkits():
    with mmkit.Region.memfd(PAGE) as region:
        assert maps.read().find(region.address).kind is Kind.MMKIT
        assert maps.find(region.address).kind is Kind.MMKIT
    with mmkit.Region.memfd(PAGE, name="theirs") as region:
        assert maps.find(region.address).kind is Kind.MEMFD
    named = Areas.parse(b"1000-2000 rw-p 00000000 00:00 0    [anon:mmkit:scratch]\n"
                        b"2000-3000 rw-s 00000000 00:01 7    [anon_shmem:mmkit:x y]\n"
                        b"3000-4000 rw-p 00000000 00:00 0    [anon:mmkitchen]\n")  # fmt: skip
    assert [area.kind for area in named] == [Kind.MMKIT, Kind.MMKIT, Kind.ANONYMOUS]


# find


def opened_maps():
    """The descriptors of this process that show a map."""
    links = {fd: Path(f"/proc/self/fd/{fd}") for fd in map(int, os.listdir("/proc/self/fd"))}
    return [fd for fd, link in links.items() if link.is_symlink() and str(link.readlink()).endswith("/maps")]


def test_find_keeps_one_descriptor_and_opens_no_more(tmp_path):
    maps.find(id(maps))
    before = os.listdir("/proc/self/fd")
    for _ in range(100):
        maps.find(id(maps))
    assert os.listdir("/proc/self/fd") == before


def test_find_looks_at_its_own_memory_in_a_child_of_a_child():
    with written(PAGE) as address:
        assert maps.find(address).start == address

        def in_a_child():
            mmkit.linux.munmap(address, PAGE)
            return maps.find(address), opened_maps(), in_child(lambda: (maps.find(address), opened_maps()))

        gone, opened, (still_gone, opened_there) = in_child(in_a_child)
        assert gone is still_gone is None
        # Each child closes what it inherits.
        assert len(opened) == len(opened_there) == 1
        assert maps.find(address) is not None


def test_find_survives_somebody_closing_all_descriptors(tmp_path):
    with written(PAGE) as address:

        def close_all_and_look():
            maps.find(address)
            maps_fds = opened_maps()
            for fd in maps_fds:
                os.close(fd)
            # Now these numbers belong to another file.
            others = [os.open(tmp_path, os.O_RDONLY) for _ in maps_fds]
            assert maps.find(address).start == address
            assert all(os.path.samestat(os.fstat(fd), os.stat(tmp_path)) for fd in others)
            return len(maps_fds)

        assert in_child(close_all_and_look) == 1
