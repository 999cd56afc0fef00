import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from mmkit import maps as mmkit_maps
from mmkit.cli import main
from mmkit.wording import size
from support import disturbed_by_others, needs_root, undisturbed

NEVER_A_PID = str((1 << 31) - 1)


def run(*arguments):
    return CliRunner().invoke(main, ["maps", *map(str, arguments)])


def test_the_table_has_a_line_for_each_area_and_the_total(child):
    result = run(child)
    assert result.exit_code == 0
    header, *lines, total = result.output.splitlines()
    areas = mmkit_maps.read(child)
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
    assert result.output.rstrip("\n") == mmkit_maps.layout(child)


def test_json_has_every_field_of_every_area(child):
    document = json.loads(run(child, "--json").output)
    areas = mmkit_maps.read(child)
    assert document["format"] == 1
    assert document["pid"] == child
    assert document["program"].encode() == areas.program
    assert document["program_deleted"] is False
    for entry, area in zip(document["areas"], areas, strict=True):
        assert {**entry, "costs": None} == area._asdict() | {"path": area.path.decode()}
        assert "costs" not in entry
    totals = areas.total(by="kind")
    assert document["total"] == {
        "size": sum(areas.column("size")),
        "areas": len(areas),
        "by_kind": {kind: {"size": total, "areas": total.areas} for kind, total in totals.items()},
    }


def test_json_is_unicode_whatever_a_path_is_and_says_what_was_deleted(tmp_path):
    path = os.fsencode(tmp_path) + b"/not-utf8-\xff"
    shutil.copy(shutil.which("cat"), path)
    with subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        running.stdin.write(b"ready\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"ready\n"
        os.unlink(path)
        output = run(str(running.pid), "--json").output
        running.stdin.close()
    document = json.loads(output)
    output.encode()
    assert not re.search(r"\\ud[89a-f]", output)
    assert bytes.fromhex(document["program_hex"]) == path
    assert document["program"] == path.decode(errors="replace")
    assert document["program_deleted"] is True
    entries = [entry for entry in document["areas"] if "path_hex" in entry]
    assert {bytes.fromhex(entry["path_hex"]) for entry in entries} == {path}
    assert all(entry["deleted"] for entry in entries)


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
    refused = run("zero")
    assert refused.exit_code == 2
    assert "'zero' is not a valid process id" in refused.output
    assert run("0").exit_code == 2


def test_areas_that_were_told_twice_are_spoken_of(monkeypatch):
    text = b"1000-3000 r--p 00000000 00:00 0 \n2000-4000 rw-p 00000000 00:00 0 \n"
    for torn, given in ((True, text), (False, text[:33])):
        monkeypatch.setattr(mmkit_maps, "read", lambda *_, given=given, **__: mmkit_maps.Areas.parse(given))
        result = run()
        assert result.exit_code == 0
        assert ("changed its areas meanwhile" in result.stderr) is torn


# What areas cost


def rollup(pid):
    """The sums that the kernel makes itself, in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split()[0].rstrip(":").lower(): int(line.split()[1]) for line in lines}


@disturbed_by_others
@pytest.mark.parametrize("option", ["-x", "-X"])
def test_the_sums_of_a_stopped_process_are_those_of_smaps_rollup(stopped, option):
    expected, result = undisturbed(lambda: rollup(stopped), lambda: run(stopped, option))
    header, *lines, total = result.output.splitlines()
    # Of the row only what stands under numbers: perm, kind and path have no sum.
    names = header.split()[1 : header.split().index("perm")]
    at = [header.index(f" {name} ") + len(name) + 1 for name in names]
    sums = {
        name: total[:end].split()[-1] for name, end in zip(names, at, strict=True) if total[end - 1] != " "
    }
    assert int(sums["rss"]) == expected["rss"] > 0
    assert 0 <= expected["pss"] - int(sums["pss"]) <= len(lines)
    assert int(sums["private_dirty"]) == expected["private_dirty"]
    assert int(sums["uss"]) == expected["private_clean"] + expected["private_dirty"]
    areas = mmkit_maps.read(stopped)
    assert int(sums["size"]) == sum(areas.column("size")) // 1024
    assert total.split()[-2:] == [str(len(areas)), "areas"]
    if option == "-X":
        told = {
            line.split(":")[0].lower()
            for line in Path(f"/proc/{stopped}/smaps").read_text().splitlines()
            if re.match(r"[A-Z]\w+:", line)
        }
        assert set(header.split()) >= told
        for line, area in zip(lines, areas, strict=True):
            assert area.kind in line
        for line, told in zip(lines, Path(f"/proc/{stopped}/maps").read_text().splitlines(), strict=True):
            assert " ".join(told.split()[1:5]) in " ".join(line.split())


@disturbed_by_others
def test_json_has_the_costs_when_they_are_asked_for(stopped):
    areas, result = undisturbed(
        lambda: list(mmkit_maps.read(stopped, costs=True)), lambda: run(stopped, "-x", "--json")
    )
    document = json.loads(result.output)
    assert [area["costs"] for area in document["areas"]] == [dict(area.costs) for area in areas]
    assert document["total"]["rss"] == rollup(stopped)["rss"] * 1024
    assert document["total"]["by_kind"]["stack"]["rss"] == sum(
        area.rss for area in areas if area.kind == "stack"
    )


def test_only_the_kinds_asked_for_are_shown(child):
    output = run(child, "--kind", "stack", "--kind", "text").output
    assert [line.split()[4] for line in output.splitlines()[1:-1]] == ["text", "stack"]
    assert output.splitlines()[-1].split()[-2:] == ["2", "areas"]
    assert run(child, "--kind", "spam").exit_code == 2


@pytest.mark.parametrize(
    "options",
    [
        "--layout --json", "--watch --json", "--layout --tree", "--watch --tree", "--layout --watch", "--json --tree",
        "--layout -x", "--layout -X", "--layout --kind heap", "--watch -x", "--watch -X", "--tree -X", "--interval 2",
        "--interval 1 --json",
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused_by_name(child, options):
    refused = run(child, *options.split())
    assert refused.exit_code == 2
    said = refused.output.splitlines()[-1]
    for option in options.split()[:1] if "--interval" in options else options.split()[:2]:
        assert option in said


def test_the_tree_has_every_area_under_its_file_and_kind(child):
    output = run(child, "--tree").output
    areas = mmkit_maps.read(child)
    assert all(f"{area.start:x}-{area.end:x} {area.perms}" in output for area in areas)
    lines = [line.lstrip("│├└─ ").partition(":")[0] for line in output.splitlines()]
    libc = next(area for area in areas if b"libc.so" in area.path and area.kind == "library")
    assert lines.index("library") < lines.index(libc.name)
    assert f"in {len(areas)} areas" in output.splitlines()[0]
    assert "rss" not in output


@disturbed_by_others
def test_the_tree_has_what_x_has_of_every_branch(stopped):
    totals, result = undisturbed(
        lambda: mmkit_maps.read(stopped, costs=True).total(by="kind"),
        lambda: run(stopped, "--tree", "-x"),
    )
    names = ("rss", "pss", "uss", "private_dirty", "swap")
    costs = ", ".join(f"{name} {size(totals['stack'].costs[name])}" for name in names)
    # Other processes share what else there is, and come and go.
    assert f"stack: {size(totals['stack'])} in 1 area, {costs}\n" in result.output
    assert f", rss {size(totals.sum.rss)}, pss " in result.output.splitlines()[0]
    assert result.output.count(" rss ") > totals.sum.areas


def test_what_nothing_is_of_is_shown_as_nothing(child):
    result = run(child, "--kind", "systemv", "--tree", "-x")
    assert result.exit_code == 0
    assert "0 B in 0 areas" in result.output


def test_watching_tells_what_has_changed_until_the_process_ends():
    code = (
        "import mmap, sys\n"
        "print(flush=True)\n"
        "for line in sys.stdin:\n"
        "    m = mmap.mmap(-1, 32 << 20)\n"
        "    for page in range(0, len(m), mmap.PAGESIZE):\n"
        "        m[page] = 1\n"
        "    print(flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as victim:
        victim.stdout.readline()
        command = [sys.executable, "-m", "mmkit", "maps", str(victim.pid), "--watch", "--interval", "0.05"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
            first = [watcher.stdout.readline() for _ in range(3)]
            victim.stdin.write(b"\n")
            victim.stdin.flush()
            victim.stdout.readline()
            seen = ""
            while "(+32 MiB)" not in seen:
                seen = watcher.stdout.readline()
                assert seen
            victim.kill()
            victim.wait()
            _, errors = watcher.communicate(timeout=30)
            assert watcher.returncode == 42
    assert first[1].split() == ["kind", "size", "rss", "pss", "uss", "swap"]
    assert "(" not in first[2]
    assert errors == f"mmkit maps: process {victim.pid} has ended\n"


def test_watching_ends_well_when_it_is_interrupted(child):
    command = [sys.executable, "-m", "mmkit", "maps", str(child), "--watch", "--interval", "0.01"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
        seen = [watcher.stdout.readline()]
        while seen[-1] != "\n":
            seen.append(watcher.stdout.readline())
        watcher.send_signal(signal.SIGINT)
        _, errors = watcher.communicate(timeout=30)
    # A blank line between two tables.
    assert seen[-2].startswith("total ")
    assert (watcher.returncode, errors) == (0, "")


def test_what_is_watched_fits_in_a_small_terminal(child, monkeypatch):
    module = sys.modules["mmkit.cli.maps"]
    monkeypatch.setattr(module, "OutputConsole", partial(Console, force_terminal=True, width=40, height=8))

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    result = run(child, "--watch")
    assert result.exit_code == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", result.output).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["process", "kind"]
    assert max(map(len, lines)) <= 40


def process_with_the_number(pid):
    """Start a process with a number of one's choice (clone3(2), set_tid)."""
    numbers = (ctypes.c_int * 1)(pid)
    arguments = (ctypes.c_uint64 * 11)()
    arguments[4], arguments[8], arguments[9] = signal.SIGCHLD, ctypes.addressof(numbers), 1
    # PyDLL: the child has the GIL as well.
    clone = ctypes.PyDLL(None, use_errno=True).syscall
    got = clone(435, arguments, ctypes.c_size_t(ctypes.sizeof(arguments)))
    if got == 0:
        os.execv("/bin/sleep", ["sleep", "60"])
    if got < 0:
        pytest.skip(f"clone3 with set_tid: {os.strerror(ctypes.get_errno())}")
    assert got == pid
    return pid


@needs_root
def test_watching_ends_when_another_process_gets_the_number():
    victim = subprocess.Popen(["sleep", "60"])
    command = [sys.executable, "-m", "mmkit", "maps", str(victim.pid), "--watch", "--interval", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
        for _ in range(3):
            watcher.stdout.readline()
        watcher.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, watcher.pid, os.WSTOPPED | os.WNOWAIT)
        victim.kill()
        victim.wait()
        # The kernel counts when a process began in hundredths of a second.
        time.sleep(0.02)
        other = process_with_the_number(victim.pid)
        try:
            watcher.send_signal(signal.SIGCONT)
            _, errors = watcher.communicate(timeout=30)
        finally:
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
            watcher.kill()
    assert watcher.returncode == 42
    assert errors == f"mmkit maps: process {victim.pid} has ended\n"
