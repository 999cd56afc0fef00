"""Promises of `mmkit.shared.segments` and of ``mmkit shm``."""

import errno
import json
import mmap
import os
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

import mmkit
from mmkit import SharedMemory, SystemVMemory, linux, shared
from mmkit.cli import main
from mmkit.flags import ShmCommand
from mmkit.shared import reaping
from segment_tools import (
    HERE,
    KEY,
    another_process,
    by_the_dead,
    found,
    names,
    needs_mounts,
    one,
    unshare,
)
from support import NOBODY, PAGE, in_child, needs_root

pytestmark = pytest.mark.usefixtures("no_system_v_segment_stays")

NOT_THERE = "mmkit shm: there is no such segment: `mmkit shm list` shows those that are there"


# ---- listing -----------------------------------------------------------------------------------------


def test_a_posix_segment_is_listed_with_its_maker_and_holders(name):
    with SharedMemory(name, create=True, size=2 * PAGE + 1, mode=0o640) as ours:
        with another_process(lambda: SharedMemory(name, readonly=True)) as pid:
            segment = one(kind="posix", name=name)
            assert (segment.size, segment.resident) == (2 * PAGE + 1, 3 * PAGE)
            assert (segment.owner, segment.mode) == (os.geteuid(), 0o640)
            assert (segment.creator, segment.creator_alive) == (os.getpid(), True)
            assert (segment.made_by_mmkit, segment.persist, segment.removed, segment.attached) == (
                True,
                False,
                False,
                True,
            )
            holders = {holder.pid: holder for holder in segment.holders}
            assert holders.keys() == {os.getpid(), pid}
            assert holders[pid] == (pid, 3 * PAGE, True) or holders[pid].mapped == 6 * PAGE
        ours.unlink()
        assert one(kind="posix", name=name).removed
    assert found(name=name) == []


def test_one_that_mmkit_did_not_make_is_listed_without_a_maker(name):
    with open(f"/dev/shm/{name}", "wb") as file:
        file.write(b"x" * 10)
        segment = one(name=name)
        assert (segment.creator, segment.creator_alive, segment.made_by_mmkit) == (None, None, False)
        assert [holder.pid for holder in segment.holders] == [os.getpid()]
        assert segment.holders[0] == (os.getpid(), 0, True)
    assert one(name=name).attached in (False, None)


def test_a_system_v_segment_is_listed_whoever_made_it(name):
    with SystemVMemory(KEY, PAGE + 1, create=True) as ours:
        ours.buf[0] = 1
        segment = one(kind="systemv", id=ours.id)
        assert (segment.name, segment.size, segment.resident) == (f"{KEY:#010x}", PAGE + 1, PAGE)
        assert (segment.creator, segment.creator_alive, segment.made_by_mmkit) == (os.getpid(), True, True)
        assert segment.holders == ((os.getpid(), 2 * PAGE, False),)
        ours.remove()
        assert one(kind="systemv", id=ours.id).removed
    identifier = linux.shmget(KEY, 10, 0o1600)
    segment = one(kind="systemv", id=identifier)
    assert (segment.creator, segment.creator_alive, segment.made_by_mmkit) == (os.getpid(), True, False)
    assert (segment.attached, segment.holders) == (False, ())
    linux.shmctl(identifier, ShmCommand.RMID)
    by_the_dead(lambda: linux.shmget(KEY, 10, 0o1600))
    assert one(kind="systemv", name=f"{KEY:#010x}").creator_alive is False


def test_memfds_are_listed_by_name_mapped_or_only_open(name):
    with SharedMemory.memfd(PAGE, name=name) as segment:
        listed = one(kind="memfd", name=name)
        assert (listed.size, listed.resident, listed.owner) == (PAGE, PAGE, os.geteuid())
        assert (listed.creator, listed.made_by_mmkit, listed.attached) == (os.getpid(), True, True)
        assert listed.holders == ((os.getpid(), PAGE, True),)
        only_open = os.memfd_create(f"{name}-open")
        os.write(only_open, b"x")
        assert one(kind="memfd", name=f"{name}-open").holders == ((os.getpid(), 0, True),)
        os.close(only_open)
        segment.close()
    assert found(name=name) == []


def test_a_memfd_left_with_the_name_of_mmkit_is_listed_with_who_has_it_mapped():
    with mmkit.Region.memfd(PAGE) as region:
        inode = os.stat(region.fileno()).st_ino
        assert one(kind="memfd", inode=inode).holders == ((os.getpid(), PAGE, True),)
    address = linux.mmap(0, PAGE, 3, mmap.MAP_SHARED, fd := os.memfd_create("mmkit"), 0)
    inode = os.fstat(fd).st_ino
    os.close(fd)
    assert one(kind="memfd", inode=inode).holders == ((os.getpid(), PAGE, False),)
    linux.munmap(address, PAGE)


def test_shared_memory_that_mmkit_named_is_listed():
    with mmkit.Region.anonymous(PAGE, shared=True, name="named") as region:
        inode = mmkit.maps.find(region.address).inode
        assert one(kind="anonymous", inode=inode).holders == ((os.getpid(), PAGE, False),)


def test_anonymous_shared_memory_is_listed_with_the_family_that_has_it():
    before = {segment.inode for segment in found(kind="anonymous")}
    with mmap.mmap(-1, 3 * PAGE) as memory:
        memory[0] = 1
        with another_process(lambda: None) as pid:
            new = [segment for segment in found(kind="anonymous") if segment.inode not in before]
            (segment,) = [
                segment for segment in new if os.getpid() in {holder.pid for holder in segment.holders}
            ]
            assert segment.size == 3 * PAGE
            assert segment.resident in (PAGE, None)
            assert set(segment.holders) == {(os.getpid(), 3 * PAGE, False), (pid, 3 * PAGE, False)}


def test_hostile_names_are_listed_as_they_are_and_shown_so_that_no_terminal_is_misled(name):
    for suffix in ("\n", "\x1b[31m", " (deleted)", "\udcff", "\u202e", "\\012", "/../x".replace("/", " ")):
        with SharedMemory(name + suffix, create=True, size=1) as segment:
            assert one(name=name + suffix).holders[0].pid == os.getpid()
            shown = CliRunner().invoke(main, ["shm", "list"]).output
            line = next(line for line in shown.splitlines() if name in line)
            assert line.isprintable()
            assert json.loads(CliRunner().invoke(main, ["shm", "list", "--json"]).output)
            assert segment.name in names()


def test_two_pieces_with_one_inode_number_are_two(name):
    # The inode of a System V segment is its identifier, on the device of memory files.
    with SystemVMemory(size=PAGE, create=True) as segment:
        kinds = {each.kind for each in shared.segments() if each.inode == segment.id}
        assert "systemv" in kinds
        assert len(found(kind="systemv", id=segment.id)) == 1


@needs_root
def test_what_a_user_may_not_look_at_is_unknown_and_never_free(name):
    def look():
        segment = one(name=name)
        return segment.holders, segment.attached, segment.creator_alive, segment.made_by_mmkit

    def look_at_system_v():
        listed = one(kind="systemv", name=f"{KEY:#010x}")
        return listed.holders, listed.attached, listed.creator_alive, listed.made_by_mmkit

    with another_process(lambda: SharedMemory(name, create=True, size=1)):
        assert in_child(look, user=NOBODY) == ((), None, None, False)
        os.chmod(f"/dev/shm/{name}", 0o644)
        assert in_child(look, user=NOBODY) == ((), None, True, True)
    with another_process(lambda: SystemVMemory(KEY, 1, create=True)):
        # The kernel counts for everybody; who it is, not everybody may know.
        assert in_child(look_at_system_v, user=NOBODY) == ((), True, True, False)


def test_a_creator_that_began_after_its_segment_is_unknown_and_not_dead_for_the_clock_may_have_been_set(
    monkeypatch,
):
    identifier = linux.shmget(0, 1, 0o600)
    try:
        assert one(kind="systemv", id=identifier).creator_alive is True
        begun = time.time() + 10
        monkeypatch.setattr("mmkit.shared.listing.start_time", lambda pid: begun)
        assert one(kind="systemv", id=identifier).creator_alive is None
        monkeypatch.setattr("mmkit.shared.listing.start_time", lambda pid: False)
        assert one(kind="systemv", id=identifier).creator_alive is False
    finally:
        linux.shmctl(identifier, ShmCommand.RMID)


LOOK = """
import sys
import time
from mmkit import shared
found = [each for each in shared.segments() if each.name == sys.argv[1]]
print([(each.attached, each.creator_alive, len(each.holders)) for each in found])
"""


def look_from(name, script):
    """What a new interpreter sees of a segment, started by a script of the shell."""
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", LOOK, name]
    done = subprocess.run(command, capture_output=True, text=True, env=HERE, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@needs_mounts
def test_where_proc_hides_processes_nobody_is_said_to_have_nobody(name):
    hide = "mount -t proc -o hidepid=2 none /proc && "
    user = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "
    with another_process(lambda: SharedMemory(name, create=True, size=1, mode=0o644)):
        assert look_from(name, hide + user + '"$@"') == "[(None, None, 0)]"
        # From root nothing is hidden.
        assert look_from(name, hide + '"$@"') == "[(True, True, 1)]"
    plainly = look_from(name, '"$@"')
    assert look_from(name, hide + '"$@"') == plainly in ("[(False, False, 0)]", "[(None, False, 0)]")
    assert look_from(name, hide + user + '"$@"') == "[(None, False, 0)]"


@needs_mounts
@pytest.mark.parametrize("proc", ["--mount-proc", ""])
def test_in_a_pid_namespace_others_may_have_what_nobody_there_has(name, proc):
    inside = f'unshare --pid --fork {proc} "$@"'
    with another_process(lambda: SharedMemory(name, create=True, size=1)):
        assert look_from(name, inside) in ("[(None, None, 0)]", "[(True, None, 1)]")
    assert look_from(name, inside) == "[(None, None, 0)]"
    assert name not in [each.name for each in in_a_pid_namespace(shared.reap)]


def in_a_pid_namespace(function):
    def inside():
        unshare(0x20000000)
        return in_child(function)

    return in_child(inside)


# ---- the command --------------------------------------------------------------------------------------


def shm(*arguments):
    return CliRunner().invoke(main, ["shm", *arguments])


def test_the_command_lists_for_people_and_for_programs(name):
    with SharedMemory(name, create=True, size=5 * PAGE), SystemVMemory(KEY, 10, create=True) as other:
        shown = shm("list")
        assert shown.exit_code == 0
        line = next(line for line in shown.output.splitlines() if name in line)
        assert line.split() == [
            "posix",
            name,
            "-",
            "20",
            "KiB",
            "20",
            "KiB",
            str(os.geteuid()),
            "0600",
            *f"{os.getpid()} alive {os.getpid()}".split(),
        ]
        assert f"id {other.id} key {KEY:#010x}" in shown.output
        documents = {document["name"]: document for document in json.loads(shm("list", "--json").output)}
        assert documents[name]["holders"] == [{"pid": os.getpid(), "mapped": 5 * PAGE, "opened": True}]
        assert name not in shm("list", "--leaked").output


def test_the_command_tells_who_has_one(name):
    with SharedMemory(name, create=True, size=PAGE), SystemVMemory(KEY, 10, create=True) as other:
        for arguments in (
            (name,),
            (f"/{name}",),
            (f"/dev/shm/{name}",),
            ("--id", str(other.id)),
            ("--key", hex(KEY)),
            ("--key", str(KEY)),
        ):
            answer = shm("attached", *arguments)
            assert answer.exit_code == 0
            assert "1 process has it" in answer.output
            assert str(os.getpid()) in answer.output
    gone = shm("attached", name)
    assert (gone.exit_code, gone.output) == (1, f"{NOT_THERE}\n")
    assert shm("attached").exit_code == 2


def test_the_command_removes_by_name_and_number_what_it_is_told_to(name):
    for written in (name, f"/{name}", f"/dev/shm/{name}"):
        os.close(os.open(f"/dev/shm/{name}", os.O_CREAT))
        assert shm("remove", written).exit_code == 0
        assert name not in names()
    for flag in ("--id", "--key"):
        segment = SystemVMemory(KEY, 10, create=True)
        assert shm("remove", flag, str(segment.id if flag == "--id" else KEY)).exit_code == 0
        segment.detach()
        assert found(kind="systemv", id=segment.id) == []
    for arguments, words in (
        ((name,), NOT_THERE),
        (("a/b",), "cannot name a segment"),
        (("/dev/shm/a/b",), "cannot name a segment"),
        (("/dev/shm/",), "cannot name a segment"),
        (("/dev/shm/..",), "cannot name a segment"),
        ((f"/tmp/{name}",), "cannot name a segment"),
        (("..",), "cannot name a segment"),
        (("--key", hex(KEY)), NOT_THERE),
        (("--id", "2000000000"), "no such segment"),
    ):
        refused = shm("remove", *arguments)
        assert refused.exit_code == 1
        assert words in refused.output
        assert "create" not in refused.output
    assert shm("remove").exit_code == 2
    assert shm("remove", name, "--id", "1").exit_code == 2
    assert shm("remove", "--key", "x").exit_code == 2


def test_the_command_says_why_a_memfd_is_not_removed(name):
    with SharedMemory.memfd(PAGE, name=name):
        refused = shm("remove", name)
        assert refused.exit_code == 1
        assert "goes with its last holder" in refused.output


def test_the_command_does_not_remove_what_is_no_shared_memory(name):
    os.mkdir(f"/dev/shm/{name}")
    try:
        refused = shm("remove", name)
        assert refused.exit_code == 1
        assert "no regular file" in refused.output
    finally:
        os.rmdir(f"/dev/shm/{name}")


@needs_root
def test_the_command_says_what_an_ordinary_user_may_not(name):
    def refused():
        answer = shm("remove", name)
        return answer.exit_code, "Only its owner or root" in answer.output

    with SharedMemory(name, create=True, size=1):
        assert in_child(refused, user=NOBODY) == (1, True)
        assert name in names()


def test_the_command_reaps_and_shows_what_it_would(name):
    by_the_dead(lambda: SharedMemory(name, create=True, size=PAGE))
    assert name in shm("list", "--leaked").output
    assert f"would remove posix {name} (4 KiB)" in shm("reap", "--dry-run").output
    assert name in names()
    assert f"removed posix {name} (4 KiB)" in shm("reap").output
    assert name not in names()
    assert shm("reap").output == "nothing is provably leaked\n"


def test_errors_of_the_kernel_keep_their_numbers(name):
    with pytest.raises(mmkit.SyscallError) as caught:
        reaping.remove_name(name)
    assert caught.value.errno == errno.ENOENT
    assert "create" not in str(caught.value)
