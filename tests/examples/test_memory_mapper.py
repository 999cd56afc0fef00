"""The file-mapping utilities of examples/memory_mapper.py, on real files of every shape."""

import errno
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmkit import PAGE_SIZE
from support import NOBODY, in_child, needs_root

PROGRAM = Path(__file__).parents[2] / "examples" / "memory_mapper.py"
LENGTHS = [0, 1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE + 17]
EVERY_LENGTH = pytest.mark.parametrize("length", LENGTHS)
# Windows that are no multiple of a page, that are one, and one that holds all.
EVERY_WINDOW = pytest.mark.parametrize("window", [1000, PAGE_SIZE, 5000, 1 << 20])


def loaded():
    spec = importlib.util.spec_from_file_location("memory_mapper", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mapper = loaded()


def run(*arguments):
    """Run a command in this process: its exit status, and what it says."""
    done = CliRunner().invoke(mapper.main, list(map(str, arguments)))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def start(*arguments, **how):
    """Start a command as a person does."""
    command = [sys.executable, "-W", "error", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def bytes_of(length):
    return random.Random(length).randbytes(length)


@pytest.fixture
def make(tmp_path):
    def make(contents, name="file"):
        path = tmp_path / name
        path.write_bytes(contents)
        return path

    return make


def has_holes(path):
    """Whether files here can have holes: some file systems keep none."""
    with path.with_name("hole").open("w+b") as file:
        file.truncate(1 << 20)
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 0


# ---- copy -------------------------------------------------------------------------------------------


@EVERY_LENGTH
@EVERY_WINDOW
def test_a_copy_is_equal(make, length, window):
    source = make(bytes_of(length))
    target = source.with_name("copy")
    assert run("copy", source, target, "--window", window)[0] == 0
    assert target.read_bytes() == bytes_of(length)


def test_a_copy_replaces_what_was_there_and_longer(make):
    source, target = make(b"short"), make(b"x" * 3 * PAGE_SIZE, "target")
    assert run("copy", source, target)[0] == 0
    assert target.read_bytes() == b"short"


def test_a_copy_has_the_holes_of_its_source(make):
    source = make(b"")
    if not has_holes(source):
        pytest.skip("this file system has no holes")
    with source.open("r+b") as file:
        file.truncate((64 << 20) + 5)
        for at in (0, 20 << 20, 64 << 20):
            os.pwrite(file.fileno(), b"data", at)
    target = source.with_name("copy")
    assert run("copy", source, target, "--window", 3 * PAGE_SIZE)[0] == 0
    assert target.stat().st_blocks == source.stat().st_blocks
    assert zlib.crc32(target.read_bytes()) == zlib.crc32(source.read_bytes())


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_a_file_is_not_copied_onto_itself(make, link):
    source = target = make(b"precious")
    if link:
        target = source.with_name("other")
        link(source, target)
    status, said = run("copy", source, target)
    assert status == 2
    assert "itself" in said
    assert source.read_bytes() == b"precious"


def test_a_target_is_left_alone_when_the_source_cannot_be_read(make, tmp_path):
    target = make(b"precious", "target")
    for source in (tmp_path / "none", tmp_path):
        assert run("copy", source, target)[0] == 2
    assert target.read_bytes() == b"precious"


def test_a_copy_that_has_no_room_says_so(make):
    source = make(b"x" * PAGE_SIZE)

    def attempt():
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        return run("copy", source, source.with_name("copy"))

    status, said = in_child(attempt)
    assert status == 2
    assert os.strerror(errno.EFBIG) in said


# ---- search and edit --------------------------------------------------------------------------------


def places(contents, wanted):
    """Where bytes stand, one after the other: what the program has to find."""
    found, at = [], contents.find(wanted)
    while at >= 0:
        found.append(at)
        at = contents.find(wanted, at + len(wanted))
    return found


@pytest.mark.parametrize("wanted", [b"a", b"ab", b"aa", b"aba", b"abab" * 3])
@pytest.mark.parametrize("window", [1, 2, 3, 7, 64, 1 << 20])
def test_a_search_finds_what_lies_in_a_window_and_across_two(make, wanted, window):
    contents = bytes(random.Random(3).choices(b"ab", k=500))
    status, said = run("search", make(contents), wanted.decode(), "--window", window)
    assert [int(line) for line in said.split()] == places(contents, wanted)
    assert status == (0 if places(contents, wanted) else 1)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize(("old", "new"), [(b"ab", b"xa"), (b"aa", b"ba"), (b"aba", b"bab")])
def test_an_edit_is_that_of_bytes_replace_wherever_windows_end(make, window, old, new):
    contents = bytes(random.Random(4).choices(b"ab", k=300))
    path = make(contents)
    status, said = run("edit", path, old.decode(), new.decode(), "--window", window)
    assert status == 0
    assert path.read_bytes() == contents.replace(old, new)
    assert said == f"{contents.count(old)} replaced\n"


def test_what_is_not_there_is_told_by_the_exit_status(make):
    assert run("search", make(b"hay"), "needle") == (1, "")


@pytest.mark.parametrize("command", [("search", ""), ("edit", "", "")])
def test_nothing_cannot_be_looked_for(make, command):
    name, *texts = command
    status, said = run(name, make(b"text"), *texts)
    assert status == 2
    assert "nothing to look for" in said


def test_an_edit_keeps_the_length(make):
    path = make(b"one two")
    status, said = run("edit", path, "one", "three")
    assert status == 2
    assert "3 bytes" in said
    assert "5" in said
    assert path.read_bytes() == b"one two"


@needs_root
def test_a_file_that_may_only_be_read_is_searched_and_not_edited():
    with tempfile.TemporaryDirectory(prefix="mmkit-test-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "file")
        path.write_bytes(b"text")
        path.chmod(0o644)
        assert in_child(lambda: run("search", path, "text"), user=NOBODY) == (0, "0\n")
        status, said = in_child(lambda: run("edit", path, "text", "TEXT"), user=NOBODY)
        assert status == 2
        assert "Permission denied" in said
        assert path.read_bytes() == b"text"


# ---- window and sparse ------------------------------------------------------------------------------


@EVERY_LENGTH
@EVERY_WINDOW
def test_a_walk_sees_every_byte_once(make, length, window):
    contents = bytes_of(length)
    status, said = run("window", make(contents), "--window", window)
    *walk, total = said.splitlines()
    assert status == 0
    assert total == f"{contents.count(10)} lines, checksum {zlib.crc32(contents):08x}"
    assert [(int(line.split()[0]), int(line.split()[3])) for line in walk] == [
        (min(window, length - offset), offset) for offset in range(0, length, window)
    ]


def test_holes_are_listed_and_dug(make):
    contents = b"head" + bytes(40 * PAGE_SIZE) + b"tail"
    path = make(contents)
    if not has_holes(path):
        pytest.skip("this file system has no holes")
    whole = run("sparse", path)
    assert whole[1].splitlines()[0].split() == ["data", "0", "to", str(len(contents))]
    status, said = run("sparse", path, "--dig")
    assert status == 0
    assert [line.split()[::3] for line in said.splitlines()[:-1]] == [
        ["data", str(PAGE_SIZE)],
        ["hole", str(40 * PAGE_SIZE)],
        ["data", str(len(contents))],
    ]
    assert path.read_bytes() == contents
    assert path.stat().st_blocks * 512 <= 4 * PAGE_SIZE


@pytest.mark.parametrize("length", [1, PAGE_SIZE, 300 * PAGE_SIZE + 1])
def test_a_file_of_zeros_becomes_one_hole_of_the_same_length(make, length):
    path = make(bytes(length))
    if not has_holes(path):
        pytest.skip("this file system has no holes")
    status, said = run("sparse", path, "--dig")
    assert status == 0
    assert path.read_bytes() == bytes(length)
    assert f"{length} bytes long" in said
    if length > PAGE_SIZE:
        assert said.startswith("hole ")


# ---- files that are none, and files that change -----------------------------------------------------


def test_an_empty_file_has_nothing_in_it(make):
    path = make(b"")
    assert run("search", path, "x") == (1, "")
    assert run("edit", path, "x", "y") == (0, "0 replaced\n")
    assert run("window", path) == (0, "0 lines, checksum 00000000\n")
    assert run("sparse", path, "--dig") == (0, "0 bytes long, 0 bytes on the disk\n")


COMMANDS = [
    ("search", "x"),
    ("edit", "x", "y"),
    ("window",),
    ("sparse",),
    ("sparse", "--dig"),
    ("copy", "target"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("kind", ["directory", "fifo", "none"])
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, command, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "directory":
        Path("it").mkdir()
    elif kind == "fifo":
        os.mkfifo("it")
    name, *rest = command
    status, said = run(name, "it", *rest)
    assert status == 2
    assert "does not exist" in said if kind == "none" else "not a regular file" in said
    assert not Path("target").exists()


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_nothing_is_copied_onto_what_is_no_file(make, tmp_path, kind):
    target = tmp_path / "target"
    target.mkdir() if kind == "directory" else os.mkfifo(target)
    assert run("copy", make(b"text"), target)[0] == 2


def test_a_file_cut_short_while_it_is_searched_is_told_and_the_process_lives(make):
    line = b"needle\n"
    path = make(line * 200_000)
    search = start("search", path, "needle", "--window", 1 << 30)
    # It prints each place as it is found; the pipe holds a small part of them, and then it has to wait.
    assert search.stdout.readline() == b"0\n"
    os.truncate(path, PAGE_SIZE)
    found, trouble = search.communicate(timeout=60)
    assert search.returncode == 2
    assert b"a file changed while it was mapped: read at" in trouble
    assert b"beyond end of file" in trouble
    assert trouble.count(b"\n") == 1
    assert len(found.split()) < 100_000


def test_a_file_cut_short_between_two_windows_is_told(make):
    path = make(b"x" * 4 * PAGE_SIZE)
    walk = mapper.windows(path, PAGE_SIZE)
    next(walk)
    os.truncate(path, PAGE_SIZE)
    with pytest.raises(mapper.Trouble, match=f"shorter than {4 * PAGE_SIZE} bytes"):
        next(walk)


def test_a_file_that_grows_meanwhile_is_walked_to_its_old_end(make):
    path = make(b"x" * 2 * PAGE_SIZE)
    walk = mapper.windows(path, PAGE_SIZE)
    next(walk)
    os.truncate(path, 8 * PAGE_SIZE)
    assert [offset for offset, _ in walk] == [PAGE_SIZE]


def test_a_path_that_comes_to_name_another_file_does_not_mislead(make):
    path = make(b"a" * 2 * PAGE_SIZE)
    walk = mapper.windows(path, PAGE_SIZE)
    next(walk)
    make(b"b" * 2 * PAGE_SIZE, "other").rename(path)
    assert [region[0] for _, region in walk] == [ord("a")]


def test_a_reader_that_goes_away_ends_it_without_a_word(make):
    search = start("search", make(b"needle\n" * 200_000), "needle")
    assert search.stdout.readline() == b"0\n"
    search.stdout.close()
    assert search.stderr.read() == b""
    search.stderr.close()
    assert search.wait(timeout=60) == 1
