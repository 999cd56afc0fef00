"""The pools of examples/memory_pool.py: every claim that the program prints."""

import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import mmkit
from mmkit import Pool, Region

PROGRAM = Path(__file__).parents[2] / "examples" / "memory_pool.py"


def loaded():
    spec = importlib.util.spec_from_file_location("memory_pool", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = loaded()


@pytest.fixture(scope="module")
def printed():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "they lie 64 bytes apart",
        "a fourth: OutOfMemory",
        "the next to be taken is block 1",
        # The square roots of 0 to 4, and of 0 to 11.
        f"the roots add up to {sum(n**0.5 for n in range(5)):.3f}",
        f"sent 12 blocks by their offsets, 4 bytes each; the roots add up to {sum(n**0.5 for n in range(12)):.3f}",
        "block 4 now has 4.0",
        "give it while somebody looks: BufferError",
        "give it to another pool: ValueError",
        "give it twice: ClosedError",
        "look at it after that: ClosedError",
        "write to it after that, in C: CorruptError",
        "a process is killed with 5 blocks in its hands; 0 after we gave them back for it, 0 lost",
        "after them: 100 used",
        "the header stays",
        "rewind under a view: BufferError",
    ],
)
def test_the_program_shows(printed, line):
    assert line in printed


def test_what_nobody_refused_would_be_seen(capsys):
    example.refused("nothing", lambda: None)
    assert capsys.readouterr().out == "  nothing: nobody minded\n"


def test_a_worker_sends_the_offsets_of_blocks_that_stay_taken():
    reader, writer = os.pipe()
    with Region.memfd(1 << 16) as region, Pool(example.RECORD.size, 10, source=region) as pool:
        worker = example.start(partial(example.fill, region, 2, writer))
        assert os.waitpid(worker, 0)[1] == 0
        offsets = [int.from_bytes(os.read(reader, 4), "little") for _ in range(example.PARTS)]
        assert sorted(offsets) == pool.live()
        values = [example.RECORD.unpack_from(memoryview(pool.at(offset))) for offset in offsets]
        assert values == [(number, number**0.5) for number in (6, 7, 8)]
    os.close(reader)
    os.close(writer)


def test_a_worker_that_finds_no_pool_ends_and_does_not_come_back():
    reader, writer = os.pipe()
    with Region.memfd(1 << 16) as region:
        worker = example.start(partial(example.fill, region, 0, writer))
        os.waitpid(worker, 0)
        with pytest.raises(mmkit.CorruptError):
            Pool.attach(region)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
