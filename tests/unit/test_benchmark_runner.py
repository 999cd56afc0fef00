"""The shared benchmark runner: what it promises about a race, not how fast anybody is."""

import gc
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def runner(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("runner")
    del sys.modules["runner"]


def a_race(runner, contestants, **how):
    return runner.race("a race", peer="peer", **how)(lambda scope: contestants)


def figures(result):
    return {row.contestant: row for row in result.rows}


def test_a_statement_runs_as_often_as_it_is_told_with_its_names(runner):
    seen = []
    assert runner.Statement("seen.append(value)", seen=seen, value=7)(3) >= 0
    assert seen == [7, 7, 7]


def test_minima_medians_and_their_ratios_to_the_peer(runner):
    race = a_race(runner, {})
    result = runner.judge(race, ["one", "peer"], {"one": [20, 40, 30], "peer": [10, 11, 12]}, {})
    one = figures(result)["one"]
    assert (one.cost.minimum, one.cost.median) == (20, 30)
    assert (one.to_peer.minima, one.to_peer.medians) == (2, 30 / 11)


def judge_above(runner, work, floors, *targets):
    """Judge `work`, each of whose contestants has a floor of its own."""
    return runner.judge(a_race(runner, {}, targets=targets), work, work, floors)


def test_beyond_the_floor_is_taken_round_by_round_from_ones_own(runner):
    # The machine slowed down in the second half: for all. And the peer's mapping is slower in the kernel.
    floors = {"one": [100.0] * 4 + [200.0] * 4, "peer": [150.0] * 4 + [250.0] * 4}
    work = {"one": [cost + 30 for cost in floors["one"]], "peer": [cost + 60 for cost in floors["peer"]]}
    rows = figures(judge_above(runner, work, floors))
    assert (rows["one"].beyond.minimum, rows["one"].beyond.median) == (30, 30)
    assert rows["one"].beyond_to_peer.medians == 0.5
    assert (rows["one"].floor.minimum, rows["peer"].floor.minimum) == (100, 150)


def test_a_difference_smaller_than_its_uncertainty_has_no_ratio(runner):
    floor = [1000.0, 2000, 1500, 1200, 1900]
    work = {"one": floor[::-1], "peer": [cost + 5 for cost in floor]}
    result = judge_above(runner, work, dict.fromkeys(work, floor), runner.Target("one", "peer", 1.0))
    assert figures(result)["one"].beyond_to_peer.medians is None
    assert [verdict.word for verdict in result.verdicts] == ["—"]


def test_a_miss_does_not_hide_behind_the_noise_of_the_other(runner):
    floor = [1000.0, 2000, 1500, 1200, 1900]
    work = {"one": [cost + 9000 for cost in floor], "peer": floor[::-1]}
    result = judge_above(runner, work, dict.fromkeys(work, floor), runner.Target("one", "peer", 1.0))
    assert [verdict.word for verdict in result.verdicts] == ["missed"]


@pytest.mark.parametrize(("at_most", "word"), [(0.6, "held"), (0.4, "missed")])
def test_a_target_is_on_what_is_spent_beyond_the_floor(runner, at_most, word):
    work = {"one": [130.0] * 3, "peer": [160.0] * 3}
    result = judge_above(
        runner, work, dict.fromkeys(work, [100.0] * 3), runner.Target("one", "peer", at_most)
    )
    assert [verdict.word for verdict in result.verdicts] == [word]


@pytest.mark.parametrize(("cost", "word"), [(1004.0, "held"), (1006.0, "missed")])
def test_a_target_is_judged_on_the_ratio_as_printed(runner, cost, word):
    summary = {name: runner.Summary.of([ns] * 3) for name, ns in (("one", cost), ("peer", 1000.0))}
    assert runner.Verdict.on(runner.Target("one", "peer", 1.0), summary).word == word


def test_contestants_take_turns_and_the_collector_is_off(runner):
    turns = []

    def contestant(name):
        def loop(n):
            turns.append((name, gc.isenabled()))
            return n * 1000

        return loop

    race = a_race(runner, {"one": contestant("one"), "peer": contestant("peer")})
    runner.run(race, runner.Effort(rounds=20, loop_ns=4000))
    rounds = [turns[i : i + 2] for i in range(len(turns) - 40, len(turns), 2)]
    assert all({name for name, _ in pair} == {"one", "peer"} for pair in rounds)
    assert {pair[0][0] for pair in rounds} == {"one", "peer"}
    assert not any(collecting for _, collecting in turns)
    assert gc.isenabled()


def test_the_loop_itself_is_not_charged(runner):
    race = a_race(runner, {"peer": runner.Statement("pass")})
    result = runner.run(race, runner.Effort(rounds=20, loop_ns=200_000))
    assert figures(result)["peer"].cost.minimum < min(runner.EMPTY(10_000) for _ in range(20)) / 10_000


def test_two_contestants_on_one_floor_share_its_loop(runner):
    runs = []

    def floor(n):
        runs.append(n)
        return n * 100

    above = {name: runner.Above(floor, lambda n: n * 150) for name in ("one", "peer")}
    result = runner.run(a_race(runner, above), runner.Effort(rounds=20, loop_ns=1000))
    assert figures(result)["one"].beyond.median == 50
    assert runs[-20:] == [10] * 20
    assert len(runs) < 30


def test_who_cannot_take_part_and_who_loses_stay_in_the_table(runner):
    race = a_race(runner, {"slow": lambda n: n * 900, "peer": lambda n: n * 300, "absent": None})
    table = runner.markdown(runner.run(race, runner.Effort.quick())).replace(" ", "")
    assert "|slow|900|900|3.00|3.00|" in table
    assert "|absent|—|—|—|—|" in table


def test_a_peer_that_is_not_there_is_an_error(runner):
    with pytest.raises(ValueError, match="no contestant 'peer'"):
        runner.run(a_race(runner, {"one": lambda n: n}), runner.Effort.quick())


def bench(*arguments):
    command = [sys.executable, str(BENCHMARKS / "bench_region.py"), "--quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_the_region_benchmark_runs_and_writes_what_it_prints(tmp_path):
    report = tmp_path / "region.json"
    done = bench("--json", str(report))
    assert done.returncode == 0, done.stderr
    races = json.loads(report.read_text())["races"]
    assert all(f"### {race['name']}\n" in done.stdout for race in races)
    assert {row["contestant"] for row in races[0]["rows"]} >= {"mmkit", "mmap", "ctypes"}


def test_only_holds_the_races_named(tmp_path):
    done = bench("--only", "read one")
    sections = [line for line in done.stdout.splitlines() if line.startswith("### ")]
    assert sections == ["### read one byte", "### Targets"]
    assert bench("--only", "no such race").returncode == 2
