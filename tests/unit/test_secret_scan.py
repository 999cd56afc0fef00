import base64
import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

from mmkit import MapFlag, Region, linux, maps, poke, secret, supports
from mmkit.errors import Error, SyscallError
from mmkit.flags import Prot
from mmkit.secret import Form, scanner, scanning
from secret_holder import holder, made_in_place, started
from support import NOBODY, PAGE, in_child, needs_root


@pytest.fixture
def key():
    return made_in_place()


def places(copies, start=0):
    return [(hit.address - start, hit.length, str(hit.form)) for hit in copies]


# What is found


def test_exactly_the_copies_that_are_there_are_found(key):
    with holder(p100=key, p5000=key[8:24], p9000=key[:7], p20000=key[1:32], p65530=key) as (pid, start):
        found = secret.find_copies(key, pid)
        assert places(found, start) == [
            (100, 32, "bytes"),
            (5000, 16, "bytes"),
            (20000, 31, "bytes"),
            (65530, 32, "bytes"),
        ]
        assert [hit.fraction for hit in found] == [1, 0.5, 31 / 32, 1]
        assert [hit.partial for hit in found] == [False, True, True, False]
        assert found.full == (found[0], found[3])
        assert found.partial == (found[1], found[2])
        assert not found.own
        area = maps.find(start, pid)
        assert {hit.area for hit in found} == {area}


def test_a_process_without_a_copy_has_none_and_the_answer_says_so(key):
    with holder() as (pid, _):
        found = secret.find_copies(key, pid)
    assert not found
    assert len(found) == 0
    assert found.looked_at > 1 << 20
    assert repr(found).startswith("<Copies: none in ")


def test_every_form_is_told_by_its_name(key):
    forms = {
        Form.HEX: key.hex().encode(),
        Form.BASE64: base64.b64encode(key)[:42],
        Form.UCS2: bytes(key).decode("latin-1").encode("utf-16-le"),
        Form.UCS4: bytes(key).decode("latin-1").encode("utf-32-le"),
        Form.HMAC_IPAD: bytes(byte ^ 0x36 for byte in key) + b"\x36" * 32,
        Form.HMAC_OPAD: bytes(byte ^ 0x5C for byte in key) + b"\x5c" * 96,
    }
    with holder(**{f"p{place * 1000}": text for place, text in enumerate(forms.values())}) as (pid, start):
        found = secret.find_copies(key, pid)
    assert [(hit.address - start, hit.form, hit.partial) for hit in found] == [
        (place * 1000, form, False) for place, form in enumerate(forms)
    ]


def test_text_is_found_as_cpython_keeps_it():
    password = "pässword-très-secret"
    code = """
import sys
text = "".join(chr(ord(each) ^ 1) for each in sys.argv[1])
wide, wider = text + "\\u0142", text + "\\U0001f40e"
print(flush=True)
sys.stdin.readline()
"""
    hidden = "".join(chr(ord(each) ^ 1) for each in password)
    with started(sys.executable, "-c", code, hidden) as (pid, _):
        found = secret.find_copies(password.encode(), pid)
    assert {Form.LATIN1, Form.UCS2, Form.UCS4} <= {hit.form for hit in found.full}


def test_a_copy_over_the_border_of_two_areas_is_one_hit(key):
    with Region.anonymous(2 * PAGE) as region:
        region[PAGE - 10 : PAGE + 22] = key
        region.protect(Prot.READ, PAGE, PAGE)
        found = [hit for hit in secret.find_copies(key) if hit.address == region.address + PAGE - 10]
        assert [(hit.length, hit.partial) for hit in found] == [(32, False)]


def test_memory_that_the_process_may_not_access_itself_is_searched(key):
    with Region.anonymous(PAGE) as region:
        region[100:132] = key
        region.protect(Prot.NONE)
        found = secret.find_copies(key)
        assert (region.address + 100, 32) in [(hit.address, hit.length) for hit in found]


def test_a_mapped_file_is_searched(key, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(bytes(5000) + key)
    with Region.file(path) as region:
        hits = [hit for hit in secret.find_copies(key) if hit.address == region.address + 5000]
        assert [hit.area.path for hit in hits] == [os.fsencode(path)]
        assert str(path) in repr(hits[0])


# What the search itself does


def test_looking_at_oneself_adds_no_copy(key):
    before = secret.find_copies(key)
    again = secret.find_copies(key)
    assert not before
    assert not again
    assert places(before.own) == places(again.own)
    assert [hit.length for hit in before.own] == [32]


def test_what_was_given_is_its_own_and_copies_are_not(key):
    copy = bytearray(key)
    found = secret.find_copies(memoryview(key))
    address = ctypes.addressof((ctypes.c_char * 32).from_buffer(copy))
    assert places(found, address) == [(0, 32, "bytes")]
    assert "beside the needle itself" in repr(found)


def test_the_needle_of_another_process_is_a_copy_there(key):
    with holder(p0=key) as (pid, _):
        found = secret.find_copies(key, pid)
        assert (len(found), found.own) == (1, ())


def test_the_memory_file_of_the_needle_is_wiped_whatever_happens(key, monkeypatch):
    left = []
    close = os.close

    def look_and_close(descriptor):
        if "mmkit-scan" in os.readlink(f"/proc/self/fd/{descriptor}"):
            left.append(os.pread(descriptor, 8192, 0))
        close(descriptor)

    monkeypatch.setattr(scanning.os, "close", look_and_close)
    secret.find_copies(key)
    monkeypatch.setattr(scanner, "_PROGRAM", Path("/bin/false"))
    with pytest.raises(Error):
        secret.find_copies(key)
    assert len(left) == 2
    assert not any(map(any, left))


def test_descriptors_are_closed_whatever_happens(key, monkeypatch):
    before = os.listdir("/proc/self/fd")
    secret.find_copies(key)
    monkeypatch.setattr(scanner, "_PROGRAM", Path("/nowhere"))
    with pytest.raises(FileNotFoundError):
        secret.find_copies(key)
    assert os.listdir("/proc/self/fd") == before


def test_pages_that_were_never_written_are_left_so(key):
    with Region.anonymous(64 << 20) as region:
        region[0] = 1
        before = region.resident()
        found = secret.find_copies(key)
        assert region.resident() == before
        assert found.looked_at < sum(maps.read().column("size")) - len(region) + (1 << 20)


def test_holes_of_shared_memory_are_left_so_and_what_stands_between_them_is_found(key):
    descriptor = os.memfd_create("holes")
    os.ftruncate(descriptor, 64 << 20)
    with mmap.mmap(descriptor, 64 << 20) as holes:
        holes[32 << 20 : (32 << 20) + 32] = key
        start = ctypes.addressof(ctypes.c_char.from_buffer(holes))
        before = os.fstat(descriptor).st_blocks
        found = secret.find_copies(key)
        assert os.fstat(descriptor).st_blocks == before
        assert places(found.full, start) == [(32 << 20, 32, "bytes")]
    os.close(descriptor)


def test_what_was_written_over_a_hole_of_a_private_mapping_is_found(key, tmp_path):
    path = tmp_path / "holes"
    path.touch()
    os.truncate(path, 16 << 20)
    with Region.file(path, mode="c") as region:
        region[8 << 20 : (8 << 20) + 32] = key
        found = secret.find_copies(key)
        assert places(found.full, region.address) == [(8 << 20, 32, "bytes")]
        assert region.resident() == PAGE


def test_a_terabyte_past_the_end_of_a_file_is_not_looked_through_page_by_page(key, tmp_path):
    path = tmp_path / "short"
    path.write_bytes(key)
    with path.open("rb") as file:
        os.truncate(path, 1 << 40)
        start = linux.mmap(0, 1 << 40, Prot.READ, MapFlag.SHARED, file.fileno(), 0)
        os.truncate(path, 32)
        try:
            found = secret.find_copies(key)
        finally:
            linux.munmap(start, 1 << 40)
    assert places(found.full, start) == [(0, 32, "bytes")]
    assert (start + PAGE, (1 << 40) - PAGE) in [(each.address, each.length) for each in found.unread]


@pytest.mark.skipif(not supports("PAGEMAP_SCAN"), reason="before Linux 6.7 each page is looked at: minutes")
def test_terabytes_that_were_never_touched_are_passed_over_and_what_stands_in_them_is_found(key):
    size = 16 << 40
    memory = MapFlag.PRIVATE | MapFlag.ANONYMOUS | MapFlag.NORESERVE
    start = linux.mmap(0, size, Prot.READ | Prot.WRITE, memory, -1, 0)
    try:
        wanted = [4 << 40, (4 << 40) + 100 * PAGE, 8 << 40, size - 32]
        for place in wanted:
            poke(start + place, key)
        # All that is asked about together is there, and nothing behind it.
        for page in range(512):
            poke(start + (8 << 40) + page * PAGE + 100, b"there")
        found = secret.find_copies(key)
    finally:
        linux.munmap(start, size)
    assert places(found.full, start) == [(place, 32, "bytes") for place in wanted]


def test_a_scanner_that_is_killed_is_told(key, monkeypatch, tmp_path):
    program = tmp_path / "mmkit-scan"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(scanner, "_PROGRAM", program)
    with pytest.raises(Error, match="ended before it was done"):
        secret.find_copies(key)


# What cannot be looked at


def test_what_cannot_be_read_is_listed(key, tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes(4 * PAGE))
    with Region.file(path) as region:
        os.truncate(path, PAGE)
        found = secret.find_copies(key)
        unread = [each for each in found.unread if each.area.path == os.fsencode(path)]
        assert [(each.address - region.address, each.length) for each in unread] == [(PAGE, 3 * PAGE)]
        assert "past the end of the file" in unread[0].reason
        assert {"[vvar]", "[vsyscall]"} <= {each.area.name for each in found.unread}
        assert "could not be looked at" in repr(found)


def test_what_stands_after_a_page_that_cannot_be_read_is_found(key):
    # As where the process unmaps a page while it is searched.
    start = linux.mmap(0, 3 * PAGE, Prot.READ | Prot.WRITE, MapFlag.PRIVATE | MapFlag.ANONYMOUS, -1, 0)
    poke(start + 2 * PAGE + 100, key)
    linux.munmap(start + PAGE, PAGE)
    needle, memory = os.memfd_create("test"), os.open("/proc/self/mem", os.O_RDONLY)
    os.pwrite(needle, key, 0)
    answer = scanner.scan(needle, False, memory, -1, array("Q", (start, 3 * PAGE, start, False)))
    os.close(needle)
    os.close(memory)
    linux.munmap(start, PAGE)
    linux.munmap(start + 2 * PAGE, PAGE)
    assert [(hit.address, hit.length) for hit in answer.found] == [(start + 2 * PAGE + 100, 32)]
    assert answer.missed == [(start + PAGE, PAGE, errno.EIO)]
    assert answer.looked_at == 2 * PAGE


def test_a_needle_of_another_length_is_refused():
    for length in (0, 7, 4097):
        with pytest.raises(ValueError, match=rf"8 to 4096 bytes.*this has {length}$"):
            secret.find_copies(bytes(length))
    with pytest.raises(TypeError):
        secret.find_copies("a password")


def test_the_longest_needle_is_found_in_every_form():
    needle = os.urandom(4096)
    region = mmap.mmap(-1, 1 << 16)
    region[100 : 100 + 4096] = needle
    region[10000 : 10000 + 8192] = needle.hex().encode()
    region[30000 : 30000 + 16384] = needle.decode("latin-1").encode("utf-32-le")
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    found = {(hit.address - start, hit.form) for hit in secret.find_copies(needle).full}
    assert {(100, Form.BYTES), (10000, Form.HEX), (30000, Form.UCS4)} <= found


def test_a_process_that_is_gone_is_told(key):
    with pytest.raises(ProcessLookupError, match="There is no process"):
        secret.find_copies(key, (1 << 31) - 1)
    with pytest.raises(ValueError, match="pid must be positive"):
        secret.find_copies(key, 0)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of exit is that of x86-64")
def test_a_process_that_goes_on_without_its_main_thread_is_searched(key):
    code = """
import ctypes, os, sys, threading
def go_on():
    # The main thread is a zombie in a process that is none.
    while open("/proc/self/stat").read().split()[2] != "Z":
        pass
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    os.read(0, 1)
    os._exit(0)
kept = bytes(int(byte) ^ 0x5A for byte in sys.argv[1].split(","))
threading.Thread(target=go_on).start()
ctypes.CDLL(None).syscall(60, 0)  # exit(2): of this thread alone
"""
    masked = ",".join(str(byte ^ 0x5A) for byte in key)
    with started(sys.executable, "-c", code, masked) as (pid, line):
        assert line == b"ready\n"
        assert len(secret.find_copies(key, pid).full) >= 1


def test_a_process_that_ends_while_it_is_searched_is_told(key, monkeypatch):
    with holder() as (pid, _):
        run = subprocess.Popen

        def kill_first(*arguments, **options):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            return run(*arguments, **options)

        monkeypatch.setattr(scanner.subprocess, "Popen", kill_first)
        with pytest.raises(ProcessLookupError, match="ended"):
            secret.find_copies(key, pid)


@needs_root
def test_who_may_not_look_is_told_what_is_needed(key):
    with holder() as (pid, _):

        def look():
            try:
                secret.find_copies(key, pid)
            except PermissionError as refused:
                return refused.errno, str(refused)

        number, text = in_child(look, user=NOBODY)
    assert number == errno.EACCES
    assert "CAP_SYS_PTRACE" in text


def test_a_user_without_privileges_searches_his_own_process():
    def look():
        needle = made_in_place()
        copy = bytearray(needle)
        try:
            found = secret.find_copies(needle)
        except SyscallError:
            raise
        except PermissionError:
            return None  # of running the scanner
        return len(found), len(found.own), found.locked, len(copy)

    seen = in_child(look, user=NOBODY)
    if seen is None:
        pytest.skip("other users may not enter the folder of this installation")
    assert seen == (1, 1, True, 32)
