"""``mmkit doctor``: as root and as nobody, with little to read, with calls refused, with tiny limits."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

import mmkit
from mmkit.cli import main
from mmkit.cli.output import OutputConsole
from mmkit.doctor import document, examine
from mmkit.doctor.confinement import control_group
from mmkit.features import FEATURES
from raw import in_mount, mount
from support import KILLED, NOBODY, SANITIZED, in_child, needs_root, sanitized, x86_64

MIB = 1 << 20


def run(*arguments):
    result = CliRunner().invoke(main, ["doctor", *arguments])
    assert result.exception is None, result.output
    assert result.exit_code == 0
    return result.output


def by_name(entries):
    names = [entry["name"] for entry in entries]
    assert len(set(names)) == len(names)
    return {entry["name"]: entry for entry in entries}


def report():
    """The document as a program gets it: features and facts by name."""
    found = json.loads(run("--json"))
    return by_name(found["features"]), by_name(found["facts"])


# ---- the shape


def test_json_has_the_documented_shape():
    found = json.loads(run("--json"))
    assert list(found) == ["format", "features", "facts"]
    assert found["format"] == 1
    for feature in found["features"]:
        assert list(feature) == ["name", "group", "works", "answer", "errno", "since", "change"]
        assert feature["works"] in (True, False, None)
        assert (feature["change"] is None) == (feature["works"] is True)
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?", feature["since"])
        if feature["errno"]:
            assert not feature["works"]
    for fact in found["facts"]:
        assert list(fact) == ["name", "group", "value", "unit", "used", "means", "change"]
        assert fact["means"]
        assert fact["value"] is None or isinstance(fact["value"], int | str)


def test_the_page_describes_every_field_and_every_group():
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
    found = json.loads(run("--json"))
    for entry in (found["features"][0], found["facts"][0]):
        for field in entry:
            assert f"`{field}`" in page, field
    for entry in found["features"] + found["facts"]:
        assert entry["group"] in page, entry["group"]
    for feature in found["features"]:
        assert feature["name"] in page, feature["name"]


def test_the_table_has_a_line_for_each_feature_and_fits_80_columns():
    output = run()
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80
    assert output.isascii()
    assert "\x1b" not in output
    for finding in examine().findings:
        feature = finding.feature
        line = next(line for line in lines if line.startswith(f"{feature.name}  "))
        # What depends on the moment, such as a pool of huge pages, may have changed in between.
        assert line.endswith(f" {feature.since}")


def test_a_terminal_gets_colours_and_no_longer_lines(monkeypatch):
    terminal = partial(OutputConsole, force_terminal=True, width=80)
    # mmkit.cli.doctor is the command as an attribute, and the module in sys.modules.
    monkeypatch.setattr(sys.modules["mmkit.cli.doctor"], "OutputConsole", terminal)
    output = run()
    assert "\x1b[" in output
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines())) <= 80


def test_the_last_lines_count_every_row_of_the_tables():
    found = examine()
    works = [finding.answer.works for finding in found.findings]
    counted = f"{works.count(True)} of {len(works)} features work here, {works.count(None)} not tried; "
    assert counted in run()


def test_one_fact_is_not_told_as_many(monkeypatch):
    import mmkit.doctor.limits as limits

    found = examine()
    one = found._replace(facts=[limits.Fact("only", "machine", None, "unknown", change="look")])
    monkeypatch.setattr(sys.modules["mmkit.cli.doctor"], "examine", lambda: one)
    output = run()
    assert "advice comes with 1 fact.\n" in output
    assert "Not told here: 1 fact. " in output


def test_what_does_not_work_says_what_to_change():
    for finding in examine().findings:
        assert bool(finding.change) == (finding.answer.works is not True), finding


def test_the_exit_status_is_1_where_the_report_cannot_be_written():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mmkit", "doctor"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr
    assert CliRunner().invoke(main, ["doctor", "--nonsense"]).exit_code == 2


# ---- the figures are those of the system


def test_limits_are_those_of_this_process():
    def attempt():
        limits = {"MEMLOCK": 3 * MIB, "CORE": 5 * MIB, "FSIZE": 1 << 40, "NOFILE": 99}
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        _, facts = report()
        return {name: facts[f"RLIMIT_{name}"]["value"] == value for name, value in limits.items()}, facts[
            "RLIMIT_AS"
        ]

    same, address_space = in_child(attempt)
    assert all(same.values()), same
    assert address_space["value"] in ("unlimited", resource.getrlimit(resource.RLIMIT_AS)[0])
    assert address_space["used"] > MIB


def test_locked_memory_and_areas_are_counted():
    with mmkit.Region.anonymous(16 * mmkit.PAGE_SIZE) as region, region.locked():
        _, facts = report()
        status = Path("/proc/self/status").read_text()
        assert facts["RLIMIT_MEMLOCK"]["used"] == int(re.search(r"VmLck:\s+(\d+)", status)[1]) * 1024
    assert (
        abs(facts["vm.max_map_count"]["used"] - len(Path("/proc/self/maps").read_bytes().splitlines())) < 20
    )


def test_system_facts_are_what_the_kernels_files_say():
    _, facts = report()
    assert facts["kernel"]["value"] == os.uname().release
    assert facts["page size"]["value"] == mmkit.PAGE_SIZE
    assert facts["vm.max_map_count"]["value"] == int(Path("/proc/sys/vm/max_map_count").read_text())
    assert facts["kernel.shmmni"]["value"] == int(Path("/proc/sys/kernel/shmmni").read_text())
    total = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    assert facts["RAM"]["value"] == total
    for pool in Path("/sys/kernel/mm/hugepages").glob("*"):
        size = int(re.sub(r"\D", "", pool.name)) * 1024
        assert f"pool of {mmkit.wording.size(size)}" in facts
    if (thp := Path("/sys/kernel/mm/transparent_hugepage/enabled")).exists():
        assert f"[{facts['THP enabled']['value']}]" in thp.read_text()
    found = os.statvfs("/dev/shm")
    assert facts["/dev/shm"]["value"] == found.f_blocks * found.f_frsize


def test_what_reads_as_none_or_as_a_riddle_is_written_for_people(monkeypatch):
    import mmkit.doctor.limits as limits
    import mmkit.doctor.machine as machine

    unset = (1 << 64) - 1 - (1 << 24)
    monkeypatch.setattr(limits, "number", lambda path: 4096 if path.endswith("shmmni") else unset)
    facts = {fact.name: fact.value for fact in limits.shared_memory()}
    assert [facts[f"kernel.{name}"] for name in ("shmmax", "shmall", "shmmni")] == [
        "unlimited",
        "unlimited",
        4096,
    ]
    for numbers, told in (("0", "1 (0)"), ("0-3,6", "5 (0-3,6)"), (None, None)):
        monkeypatch.setattr(machine, "text", lambda _, numbers=numbers: numbers)
        assert {fact.name: fact.value for fact in machine.versions()}["NUMA nodes"] == told


@needs_root
def test_a_small_dev_shm_is_said_to_be_small(tmp_path):
    def attempt(_):
        return report()[1]["/dev/shm"]

    fact = in_mount(attempt, Path("/dev/shm"), "tmpfs", "size=1m")
    assert fact["value"] == MIB
    assert "--shm-size" in fact["change"]
    assert in_mount(attempt, Path("/dev/shm"), "tmpfs", "size=0")["value"] == "unlimited"


# ---- control groups


def a_control_group(tmp_path, monkeypatch, version, own, mounted_root, files):
    """Lay out a hierarchy as the kernel shows it, and have it read instead of the kernel's own."""
    import mmkit.doctor.confinement as module

    for name, content in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", "rw,memory")
    controllers = "" if version == 2 else "memory"
    shown = {
        "/proc/self/cgroup": f"0:{controllers}:{own}",
        "/proc/self/mountinfo": f"30 23 0:26 {mounted_root} {tmp_path / 'mount'} rw shared:4 - {kind} none {options}",
    }
    real = module.text
    monkeypatch.setattr(module, "text", lambda path: shown.get(str(path)) or real(path))
    return {fact.name: fact for fact in control_group()}


def test_the_tightest_limit_on_the_way_up_counts(tmp_path, monkeypatch):
    facts = a_control_group(
        tmp_path, monkeypatch, 2, "/outer/inner", "/",
        {
            "outer/memory.max": "1048576", "outer/memory.current": "1000000", "outer/memory.swap.max": "0",
            "outer/inner/memory.max": "max", "outer/inner/memory.current": "4096", "outer/inner/memory.swap.max": "max",
        },
    )  # fmt: skip
    fact = facts["cgroup v2 memory"]
    assert (fact.value, fact.used) == (MIB, 1000000)
    assert "killed" in fact.change
    assert facts["cgroup v2 swap"].value == 0


@pytest.mark.parametrize(("outer", "inner"), [(MIB, 2 * MIB), (2 * MIB, MIB)])
def test_of_two_limits_the_tighter_counts_wherever_it_stands(tmp_path, monkeypatch, outer, inner):
    files = {
        f"{group}/memory.{name}": str(value)
        for group, limit in (("outer", outer), ("outer/inner", inner))
        for name, value in (("max", limit), ("current", limit // 2), ("swap.max", limit))
    }
    facts = a_control_group(tmp_path, monkeypatch, 2, "/outer/inner", "/", files)
    fact = facts["cgroup v2 memory"]
    assert (fact.value, fact.used) == (MIB, MIB // 2)
    assert facts["cgroup v2 swap"].value == MIB


def test_a_container_that_sees_its_own_group_as_the_root_finds_it(tmp_path, monkeypatch):
    files = {"memory.limit_in_bytes": "2097152", "memory.usage_in_bytes": "4096"}
    facts = a_control_group(tmp_path, monkeypatch, 1, "/docker/abc", "/docker/abc", files)
    assert facts["cgroup v1 memory"].value == 2 * MIB
    assert not facts["cgroup v1 memory"].change


def test_no_limit_is_said_to_be_none(tmp_path, monkeypatch):
    files = {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "4096"}
    facts = a_control_group(tmp_path, monkeypatch, 1, "/a", "/", files)
    assert facts["cgroup v1 memory"].value == "unlimited"


# ---- little to read, little allowed


def emptied(*directories):
    """The report in a mount namespace in which nothing is in some directories."""
    first, *others = map(Path, directories)

    def attempt(_):
        for directory in others:
            mount(directory, "tmpfs", "size=64k")
        return report(), run()

    return in_mount(attempt, first, "tmpfs", "size=64k")


@needs_root
def test_it_works_without_sys_and_without_proc_sys():
    (features, facts), table = emptied("/sys", "/proc/sys")
    assert len(features) == len(FEATURES)
    for name in ("vm.max_map_count", "THP enabled", "kernel.shmmax", "NUMA nodes", "huge page pools"):
        assert facts[name]["value"] is None
    assert features["/proc/PID/maps"]["works"]
    assert "Not told here: " in table


@needs_root
def test_it_works_without_any_proc():
    (features, facts), table = emptied("/proc", "/sys")
    for name in ("/proc/PID/maps", "PROCMAP_QUERY", "PAGEMAP_SCAN"):
        assert features[name]["answer"] == "ENOENT"
        assert features[name]["change"] == "mount /proc"
    assert features["mprotect"]["works"]
    assert features["memfd_create"]["works"]
    for name in ("RAM", "seccomp", "CAP_IPC_LOCK", "user namespace"):
        assert facts[name]["value"] is None
    assert facts["RLIMIT_MEMLOCK"]["value"] is not None
    assert "not told" in table


@needs_root
def test_it_works_without_shared_memory():
    (features, facts), _ = emptied("/dev")
    assert features["shm_open"]["answer"] == "ENOENT"
    assert "mount a tmpfs on /dev/shm" in features["shm_open"]["change"]
    assert facts["/dev/shm"]["value"] is None


@needs_root
def test_it_works_as_an_unprivileged_user():
    features, facts = in_child(report, user=NOBODY, limits={resource.RLIMIT_MEMLOCK: 64 << 10})
    assert facts["user"]["value"] == f"uid {NOBODY}, effective {NOBODY}"
    assert {facts[name]["value"] for name in facts if name.startswith("CAP_")} == {"no"}
    assert facts["RLIMIT_MEMLOCK"]["value"] == 64 << 10
    assert "ulimit -l" in facts["RLIMIT_MEMLOCK"]["change"]
    if not SANITIZED:  # whose mlockall does nothing
        assert features["mlockall"]["answer"] == "ENOMEM"
        assert "RLIMIT_MEMLOCK" in features["mlockall"]["change"]
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "0":
        assert features["userfaultfd"]["answer"] == "EPERM"
    assert features["UFFD_USER_MODE_ONLY"]["works"]


@needs_root
def test_who_may_lock_anyway_is_not_told_to_raise_the_limit():
    _, facts = in_child(report, limits={resource.RLIMIT_MEMLOCK: 64 << 10})
    assert facts["CAP_IPC_LOCK"]["value"] == "yes"
    assert facts["RLIMIT_MEMLOCK"]["change"] is None


def test_it_works_in_namespaces_of_its_own():
    command = ["unshare", "-Urpimf", "--mount-proc", sys.executable, "-m", "mmkit", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "unshare:" in done.stderr:
        pytest.skip(done.stderr.strip())
    facts = by_name(json.loads(done.stdout)["facts"])
    assert [facts[f"{kind} namespace"]["value"] for kind in ("user", "pid", "ipc")] == ["own"] * 3
    assert "namespaces" in facts["container"]["value"]


def test_the_variable_of_systemds_container_interface_is_seen(monkeypatch):
    monkeypatch.setenv("container", "systemd-nspawn")
    assert "systemd-nspawn ($container)" in report()[1]["container"]["value"]


_MSEAL, _USERFAULTFD, _MBIND, _CACHESTAT, _SHMGET, _KCMP = 462, 323, 237, 451, 29, 312


@x86_64
def test_what_a_container_refuses_is_said_to_be_refused():
    refuse = [
        (_USERFAULTFD, errno.EPERM),
        (_MBIND, errno.EPERM),
        (_CACHESTAT, errno.ENOSYS),
        (_SHMGET, errno.ENOSYS),
    ]
    features, facts = in_child(report, refuse=refuse)
    assert features["mbind"]["answer"] == "EPERM"
    assert "CAP_SYS_NICE" in features["mbind"]["change"]
    for name in ("cachestat", "shmget"):
        assert features[name]["answer"] == "ENOSYS"
        assert features[name]["errno"] == errno.ENOSYS
        assert "seccomp" in features[name]["change"]
    assert facts["seccomp"]["value"] == "filter"
    assert "seccomp=" in facts["seccomp"]["change"]


@x86_64
def test_a_filter_that_kills_does_not_kill_the_doctor():
    features, _ = in_child(report, refuse=[(_MSEAL, KILLED), (_USERFAULTFD, KILLED)])
    assert features["mseal"]["answer"] == features["userfaultfd"]["answer"] == signal.SIGSYS.name
    assert "kills" in features["mseal"]["change"]
    assert features["mprotect"]["works"]
    assert features["rseq"]["works"] is not None


@x86_64
def test_every_call_may_be_refused():
    # All that a probe makes and that Python itself does not need.
    numbers = [
        25,
        27,
        28,
        29,
        30,
        31,
        67,
        149,
        150,
        151,
        152,
        237,
        238,
        239,
        274,
        279,
        310,
        311,
        319,
        323,
        324,
    ]
    numbers += [325, 329, 330, 331, 434, 440, 447, 448, 449, 451, 462]
    for error in (errno.ENOSYS, errno.EPERM):
        features, _ = in_child(report, refuse=[(number, error) for number in numbers])
        refused = [name for name, feature in features.items() if feature["answer"] == errno.errorcode[error]]
        assert len(refused) > 55, refused
        assert all(features[name]["change"] for name in refused)


@needs_root
@sanitized
@pytest.mark.parametrize(
    ("which", "value"),
    [
        ("NOFILE", 4), ("NOFILE", 8), ("NPROC", 0), ("FSIZE", 0), ("MEMLOCK", 0), ("STACK", 256 << 10), ("DATA", 0),
        ("CORE", 0),
    ],
)  # fmt: skip
def test_it_works_with_tiny_limits(which, value):
    # What in_child itself has open needs a few descriptors.
    def attempt():
        number = getattr(resource, f"RLIMIT_{which}")
        examine()
        resource.setrlimit(number, (value, value))
        return document(examine())

    found = in_child(attempt, user=NOBODY)
    assert len(found["features"]) == len(FEATURES)
    assert all(feature["change"] for feature in found["features"] if not feature["works"])
    assert by_name(found["facts"])[f"RLIMIT_{which}"]["value"] == value


def untried_and_as_always(features):
    """Features that were not tried for want of something; the others answer as they always do."""
    always, _ = report()
    untried = {name: feature for name, feature in features.items() if feature["works"] is None}
    for name, feature in features.items():
        assert name in untried or feature["answer"] == always[name]["answer"], name
    return {name: feature for name, feature in untried.items() if feature["errno"]}


@sanitized
@pytest.mark.parametrize("limit", [5, 6, 7])
def test_without_descriptors_to_ask_nothing_is_given_as_the_kernels_answer(limit):
    # In a program of its own: in_child has files open itself.
    command = 'ulimit -n "$1" && exec "$0" -m mmkit doctor --json'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, str(limit)], capture_output=True, text=True, check=True
    )
    untried = untried_and_as_always(by_name(json.loads(done.stdout)["features"]))
    assert {"brk", "mseal", "mlockall"} <= set(untried) or limit > 5
    for feature in untried.values():
        assert feature["errno"] == errno.EMFILE
        assert "RLIMIT_NOFILE" in feature["change"]


@needs_root
def test_without_a_child_to_ask_nothing_is_given_as_the_kernels_answer():
    def attempt():
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        return report()

    features, facts = in_child(attempt, user=NOBODY)
    untried = {
        name: feature for name, feature in features.items() if feature["errno"] and feature["works"] is None
    }
    assert set(untried) == {"brk", "mseal", "mlockall"}
    for feature in untried.values():
        assert feature["errno"] == errno.EAGAIN
        assert "RLIMIT_NPROC" in feature["change"]
        assert "MEMLOCK" not in feature["change"]
    assert facts["RLIMIT_NPROC"]["value"] == 1
    assert "ulimit -u" in facts["RLIMIT_NPROC"]["change"]


@needs_root
def test_with_no_file_to_be_written_the_file_system_is_asked_all_the_same():
    features, _ = in_child(report, user=NOBODY, limits={resource.RLIMIT_FSIZE: 0})
    assert features["MAP_SYNC"]["answer"] in ("yes", "EOPNOTSUPP")


@sanitized
def test_it_works_with_no_address_space_left():
    def attempt():
        examine()
        used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + MIB, used + MIB))
        return document(examine())

    found = in_child(attempt)
    assert by_name(found["features"])["mprotect"]["works"] in (True, False)
    assert by_name(found["facts"])["RLIMIT_AS"]["change"]


def test_an_older_kernel_is_told_which_one_it_takes(monkeypatch):
    from mmkit.doctor import examination
    from mmkit.features import Answer, Feature

    feature = Feature("new", "mapping", "99.1", lambda: None)
    assert examination._change(feature, Answer(False, errno.ENOSYS)) == "Linux 99.1 or later"
    old = feature._replace(since="2.6")
    assert "built without it" in examination._change(old, Answer(False, errno.ENOSYS))
