"""The profiler of examples/memory_profiler.py: on memory that a test takes, keeps and loses itself."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmkit import MapFlag, Prot, linux, poke
from mmkit.maps import Areas
from support import PAGE, sanitized

PROGRAM = Path(__file__).parents[2] / "examples" / "memory_profiler.py"
MIB = 1 << 20


def loaded():
    spec = importlib.util.spec_from_file_location("memory_profiler", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


profiler = loaded()


@pytest.fixture
def take():
    """Map memory and write to it, as often as it is called; gives the addresses."""
    taken = []

    def take(length=MIB, touch=True):
        taken.append(
            (linux.mmap(0, length, Prot.READ | Prot.WRITE, MapFlag.PRIVATE | MapFlag.ANONYMOUS), length)
        )
        for page in range(0, length if touch else 0, PAGE):
            poke(taken[-1][0] + page, b"x")
        return taken[-1][0]

    yield take
    for address, length in taken:
        linux.munmap(address, length)


def test_the_difference_is_what_was_taken_in_between(take):
    before = profiler.snapshot()
    take(8 * MIB)
    first, *_ = changes = profiler.difference(before, profiler.snapshot())
    assert first.kind == "anonymous"
    # The profiler's own objects are in the same memory.
    assert 8 * MIB <= first.size <= 10 * MIB
    assert 8 * MIB <= first.resident <= 10 * MIB
    assert [change.resident for change in changes] == sorted((c.resident for c in changes), reverse=True)


def test_address_space_that_nobody_touched_is_not_resident(take):
    before = profiler.snapshot()
    take(64 * MIB, touch=False)
    changes = {change.kind: change for change in profiler.difference(before, profiler.snapshot())}
    assert changes["anonymous"].size >= 64 * MIB
    assert changes["anonymous"].resident < 2 * MIB


def test_the_area_that_grew_is_named(take):
    before = profiler.snapshot()
    address = take(8 * MIB)
    area = profiler.grown_areas(before, profiler.snapshot())[0]
    assert area.start <= address < address + 8 * MIB <= area.end


def test_a_kind_that_comes_and_one_that_goes_are_both_told():
    line = b"%x000-%x000 rw-p 00000000 00:00 0 %s\nRss: 4 kB\n"
    before, after = Areas.parse(line % (1, 2, b"[heap]")), Areas.parse(line % (1, 2, b"[stack]"))
    assert {change.kind: change.resident for change in profiler.difference(before, after)} == {
        "heap": -4096, "stack": 4096,
    }  # fmt: skip
    assert profiler.difference(before, before) == []


@sanitized
def test_only_the_job_that_leaks_is_found(take, capsys):
    profiler.profile(lambda: None)
    kept = {}
    assert profiler.leaking_kind(profiler.profile(lambda: profiler.written(4 * MIB))) is None
    assert (
        profiler.leaking_kind(profiler.profile(lambda: kept or kept.update(x=profiler.written(4 * MIB))))
        is None
    )
    assert profiler.leaking_kind(profiler.profile(take)) == "anonymous"


def test_bars_have_the_length_of_what_they_stand_for():
    assert profiler.bar(MIB, MIB) == "█" * profiler.BAR
    assert profiler.bar(-MIB, 2 * MIB) == "░" * (profiler.BAR // 2)
    assert profiler.bar(0, 0) == profiler.bar(1, MIB) == ""


@sanitized
def test_the_program_finds_its_leak_and_gives_the_memory_back():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    jobs = dict(re.findall(r"^(careful|caching|leaking): (.*?)(?=^$)", done.stdout, re.M | re.S))
    assert "does not grow" in jobs["careful"]
    assert "does not grow" in jobs["caching"]
    assert len(re.findall(r"round \d  anonymous +\+2\.\d\d MiB", jobs["leaking"])) == profiler.ROUNDS
    assert "leaks: anonymous memory" in jobs["leaking"]
    blamed = [float(size) for size in re.findall(r"rw-p (\d+\.\d\d) MiB resident", jobs["leaking"])]
    assert blamed[0] >= 2 * profiler.ROUNDS
    # The 4 MiB of the cache were there before.
    assert all(size < 2 for size in blamed[1:])
    assert done.stderr == ""
