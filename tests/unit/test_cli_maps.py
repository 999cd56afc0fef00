import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from mmkit import maps as mmkit_maps
from mmkit.cli import main
from mmkit.hints import size

NEVER_A_PID = str((1 << 31) - 1)


def run(*arguments):
    return CliRunner().invoke(main, ["maps", *arguments])


@pytest.fixture
def child():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        running.stdin.write(b"ready\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"ready\n"
        yield str(running.pid)
        running.stdin.close()


def test_the_table_has_a_line_for_each_area_and_the_total(child):
    result = run(child)
    assert result.exit_code == 0
    header, *lines, total = result.output.splitlines()
    areas = mmkit_maps.read(int(child))
    assert header.split() == ["address", "size", "perm", "kind", "path"]
    for line, area in zip(lines, areas, strict=True):
        assert line.startswith(f"{area.start:x}-{area.end:x} ")
        assert line.split()[3:5] == [area.perms, area.kind]
        assert line.endswith(area.name or area.kind)
    assert total.split() == ["total", *size(sum(areas.column("size"))).split(), str(len(areas)), "areas"]


def test_a_table_that_is_no_terminals_has_no_colour_and_is_not_cut(child):
    result = run(child)
    assert "\x1b" not in result.output
    assert "…" not in result.output


def test_the_table_fits_in_a_terminal_of_80_columns(child, monkeypatch):
    terminal = partial(Console, force_terminal=True, width=80)
    # mmkit.cli.maps is the command as an attribute, and the module in sys.modules.
    monkeypatch.setattr(sys.modules["mmkit.cli.maps"], "OutputConsole", terminal)
    result = run(child)
    assert "\x1b[" in result.output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    assert max(map(len, plain.splitlines())) <= 80
    assert "libc.so.6" in plain


def test_the_layout_is_the_picture(child):
    result = run(child, "--layout")
    assert result.exit_code == 0
    assert result.output.rstrip("\n") == mmkit_maps.layout(int(child))


def test_json_has_every_field_of_every_area(child):
    document = json.loads(run(child, "--json").output)
    areas = mmkit_maps.read(int(child))
    assert document["pid"] == int(child)
    assert os.fsencode(document["program"]) == areas.program
    assert [list(area.values())[:7] for area in document["areas"]] == [list(area[:7]) for area in areas]
    assert [os.fsencode(area["path"]) for area in document["areas"]] == [area.path for area in areas]
    assert document["total"] == {"size": sum(areas.column("size")), "by_kind": areas.total()}


def test_without_a_pid_it_shows_this_process():
    assert json.loads(run("--json").output)["pid"] == os.getpid()


def test_a_pid_that_is_gone_exits_with_42():
    result = run(NEVER_A_PID)
    assert result.exit_code == 42
    assert f"There is no process {NEVER_A_PID}" in result.output


@pytest.mark.skipif(not Path("/proc/2/comm").exists(), reason="kernel threads are hidden in a container")
def test_any_other_error_exits_with_1():
    result = run("2")
    assert result.exit_code == 1
    assert "kernel thread" in result.output


def test_what_is_no_pid_is_a_usage_error():
    assert run("zero").exit_code == 2
    assert run("0").exit_code == 2
