"""The exercises of the tutorial: what the logger, the database, the snapshot and the best practices claim."""

import contextlib
import functools
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mmkit
from mmkit import PAGE_SIZE, Channel, Region
from support import exit_signal, sanitized

ROOT = Path(__file__).parents[2]


@functools.cache
def printed(name):
    program = ROOT / "examples" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    return done.stdout


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


logger = loaded("shared_memory_logger")
database = loaded("memory_mapped_database")


# ---- the logger -------------------------------------------------------------------------------------


def test_the_reader_has_every_record_that_was_committed_and_none_half_written():
    rows = re.findall(
        r"^  writer (\d) +(\d+) +(\d+)   (\w+) +(\d+)   (.+)$", printed("shared_memory_logger"), re.M
    )
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    for writer, committed, read, in_order, half, end in rows:
        assert committed == read == ("1500" if writer == "1" else "3000")
        assert (in_order, half) == ("True", "0")
        assert end == ("killed by SIGKILL" if writer == "1" else "ended with 0")


def test_the_logger_would_notice_a_record_that_is_missing():
    with Region.anonymous(logger.WRITERS * 8) as counts:
        counts[:8] = (2).to_bytes(8, sys.byteorder)
        record = logger.HEADER.pack(0, 0, 0) + b"debug: this is record 0"
        with pytest.raises(AssertionError):
            logger.judge([record], counts, ["ended with 0"] * logger.WRITERS)


def test_a_writer_killed_from_outside_at_any_instant_loses_nothing_it_has_counted():
    for round_ in range(5):
        with (
            Channel(f"mmkit_test_log_{os.getpid()}_{round_}", 1 << 18, create=True) as log,
            Region.anonymous(logger.WRITERS * 8, shared=True) as counts,
        ):
            pid = logger.start(0, log, counts)
            first = [log.recv(timeout=30) for _ in range(50 * (round_ + 1))]
            os.kill(pid, signal.SIGKILL)
            rest = logger.read_all(log, [pid])
            assert logger.how_it_ended(pid) in ("killed by SIGKILL", "ended with 0")
            (committed,) = memoryview(counts)[:8].cast("Q")
            numbers = [logger.HEADER.unpack_from(record)[2] for record in first + rest]
            assert numbers == list(range(len(numbers)))
            assert committed <= len(numbers) <= committed + 1


# ---- the database -----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "test.db"


def test_what_was_put_is_there_after_opening_again(path):
    expected = {}
    with contextlib.closing(database.Database(path)) as db:
        for number in range(300):  # several to a bucket; the file grows
            key, value = b"key %d" % (number % 120), b"value %d" % number * (number % 9)
            db.put(key, value)
            expected[key] = value
        for number in range(0, 120, 7):
            db.put(b"key %d" % number, None)
            del expected[b"key %d" % number]
    with contextlib.closing(database.Database(path)) as db:
        assert {key: value for _, key, value in db.live()} == expected
        assert all(db.get(key) == value for key, value in expected.items())
        assert db.get(b"key 0") is db.get(b"never put") is None
        size = db.word(database.END)
        db.compact()
        assert {key: value for _, key, value in db.live()} == expected
        assert db.word(database.END) < size
        db.put(b"key 0", b"again")
    with contextlib.closing(database.Database(path)) as db:
        assert db.get(b"key 0") == b"again"
    assert [each.name for each in path.parent.iterdir()] == ["test.db"]


def test_a_value_may_be_larger_than_the_file_and_one_that_would_read_as_deleted_is_refused(path):
    large = b"x" * (database.GONE - 1)
    with contextlib.closing(database.Database(path)) as db:
        db.put(b"large", large)
        with pytest.raises(ValueError, match="less than 65535 bytes"):
            db.put(b"large", large + b"x")
    with contextlib.closing(database.Database(path)) as db:
        assert db.get(b"large") == large


def test_what_was_deleted_after_a_killed_compaction_does_not_come_back_by_the_next(path):
    with contextlib.closing(database.Database(path.with_suffix(".new"))) as left:
        left.put(b"a", b"old")
    with contextlib.closing(database.Database(path)) as db:
        db.put(b"a", b"old")
        db.put(b"a", None)
        db.put(b"b", b"kept")
        db.compact()
        assert [(key, value) for _, key, value in db.live()] == [(b"b", b"kept")]


def test_killed_between_the_two_syncs_a_put_has_changed_nothing(path):
    with contextlib.closing(database.Database(path)) as db:
        db.put(b"a", b"old")
    for key in (b"a", b"b"):
        assert (
            exit_signal(lambda key=key: database.Database(path).put(key, b"new", die=True)) == signal.SIGKILL
        )
        with contextlib.closing(database.Database(path)) as db:
            assert [(k, v) for _, k, v in db.live()] == [(b"a", b"old")]
    with contextlib.closing(database.Database(path)) as db:
        db.put(b"a", b"new")
        assert db.get(b"a") == b"new"


def test_in_the_wrong_order_the_checksum_tells(path):
    with contextlib.closing(database.Database(path)) as db:
        db.put(b"a", b"old")
    died = exit_signal(lambda: database.Database(path).put(b"a", b"new", die=True, wrong=True))
    assert died == signal.SIGKILL
    with (
        contextlib.closing(database.Database(path)) as db,
        pytest.raises(mmkit.CorruptError, match="not written whole"),
    ):
        db.get(b"a")


def test_what_is_no_database_is_refused(path):
    path.write_bytes(bytes(PAGE_SIZE))
    with pytest.raises(mmkit.CorruptError):
        database.Database(path)


def test_the_database_shows_the_crash_and_the_compaction():
    text = printed("memory_mapped_database")
    assert "closed and opened again: 11 keys, 'fruit 3' is b'a better value'" in text
    assert "record first, then index: 'fruit 7' is still b'value 7 value 7'…, 11 keys" in text
    assert re.search(r"the wrong way round: +CorruptError: the record at 0x\w+ was not written whole", text)
    before, after = map(int, re.search(r"from (\d+) to (\d+) bytes; the same: True", text).groups())
    assert after < before
    first, second, compacted = re.findall(r"│([█░·]+)│", text)
    assert "░" not in first + compacted
    assert "░" in second
    assert len(first) == 64


# ---- copy on write ----------------------------------------------------------------------------------


def test_each_first_write_is_a_fault_and_the_old_page_stays():
    text = printed("copy_on_write")
    faults = re.findall(r"fault at offset +(\d+): page (\d) is kept", text)
    assert [(int(offset), int(page)) for offset, page in faults] == [
        (page * PAGE_SIZE + rest, page) for page, rest in ((1, 5), (3, 0), (4, 0), (6, 0), (7, 0))
    ]
    assert "the same page once more         no fault" in text
    assert text.splitlines()[1].endswith(" ".join(["r-"] * 8))
    assert "written to again: r- rw r- rw rw r- rw rw" in text.replace(
        "can be written again", "written to again"
    )
    now, then, copied = (
        re.search(rf"^  {row} +│(.*)│$", text, re.M)[1].split("│") for row in ("now", "then", "copied")
    )
    assert [cell.strip() for cell in now] == ["A", "Bx", "C", "Dx", "Ex", "F", "Gx", "Hx"]
    assert [cell.strip() for cell in then] == list("ABCDEFGH")
    assert [cell.strip() == "yes" for cell in copied] == [False, True, False, True, True, False, True, True]
    assert "refused: [Errno 14] Bad address" in text
    assert "keeps the page: b'from a pipe'" in text
    assert "in the snapshot it is as it was: b'AAAAAAAAAAA'" in text
    assert "both are in: True; faults that copied it: 1" in text
    assert "after restore() all are as before: True, and page 0 begins with b'AAAAA'" in text
    assert text.endswith(f"The snapshot is released: {' '.join(['rw'] * 8)}\n")


# ---- best practices ---------------------------------------------------------------------------------


@sanitized
def test_each_mistake_and_its_cure_come_out_as_told():
    lessons = re.split(r"^\d\. ", printed("best_practices"), flags=re.M)[1:]
    expected = [
        ("a child died of SIGSEGV", "SyscallOutOfMemory, errno 12"),
        ("give up: OutOfMemory", "MiB of addresses"),
        ("mprotect() inside a malloc() block: -1, Invalid argument", "tells which: \\(0, "),
        ("a child died of SIGABRT", "undoes it"),
        ("2 regions are still open: request 0, request 1", "0 are left"),
        ("it is there: True", "there afterwards: False"),
        ("opened for reading: EACCES", "mode='r\\+'"),
        ("cut short: 0, as if all were well", "size as well: EIO"),
    ]
    assert len(lessons) == len(expected)
    for lesson, (wrong, right) in zip(lessons, expected, strict=True):
        assert re.search(r"^   wrong: .*" + re.escape(wrong), lesson, re.M), lesson
        assert re.search(r"^   right: .*(" + right + ")", lesson, re.M), lesson
