"""What the kernel can do, as `supports` tells it."""

import errno
import glob
import os
import resource
import signal
from pathlib import Path

import pytest

import mmkit
from mmkit import Advice, MapFlag
from mmkit.features import FEATURES, Answer, Feature, ask, ask_all
from mmkit.features.feature import Absent, NeverTried
from mmkit.flags import MemfdFlag
from support import (
    KILLED,
    NOBODY,
    PAGE,
    areas,
    in_child,
    locked_bytes,
    locks,
    needs_root,
    perms,
    refuse_calls,
    sanitized,
    x86_64,
)

_GETPID_NUMBER, _MSEAL, _USERFAULTFD, _MEMBARRIER, _MADVISE, _CLONE, _FORK, _CLONE3 = (
    39,
    462,
    323,
    324,
    28,
    56,
    57,
    435,
)


def named(name):
    return next(feature for feature in FEATURES if feature.name == name)


def test_support_is_told_apart_by_type_and_not_by_number():
    assert mmkit.supports(Advice.NORMAL)
    with pytest.raises(ValueError, match="no probe"):
        mmkit.supports(MapFlag.FIXED)
    mmkit.supports(MemfdFlag.EXEC)
    with pytest.raises(ValueError, match="no probe"):
        mmkit.supports(MapFlag.FIXED)


def test_a_name_without_a_probe_is_answered_with_all_that_have_one():
    with pytest.raises(ValueError, match="telepathy") as refusal:
        mmkit.supports("telepathy")
    for name in ("memfd_secret", "mseal", "PROCMAP_QUERY", "userfaultfd", "anonymous VMA names"):
        assert name in str(refusal.value)


@pytest.mark.parametrize("advice", [Advice.HWPOISON, Advice.SOFT_OFFLINE])
def test_advice_that_takes_memory_from_the_machine_is_never_given(advice):
    with pytest.raises(ValueError, match="takes memory from the machine"):
        mmkit.supports(advice)


@x86_64
def test_advice_that_takes_memory_from_the_machine_never_reaches_the_kernel():
    # A filter kills whoever gives it: all others are answered, and nobody was killed.
    def attempt():
        refuse_calls([((_MADVISE, Advice.HWPOISON), KILLED), ((_MADVISE, Advice.SOFT_OFFLINE), KILLED)])
        return [answer.signal for answer in ask_all(FEATURES)]

    assert set(in_child(attempt)) == {0}


def test_every_advice_has_a_row_and_every_row_can_be_asked_for():
    assert {feature.key for feature in FEATURES if isinstance(feature.key, Advice)} == set(Advice)
    for feature in FEATURES:
        if feature.key not in (None, Advice.HWPOISON, Advice.SOFT_OFFLINE):
            assert mmkit.supports(feature.key) in (True, False)
    assert all(feature.key == feature.name for feature in FEATURES if isinstance(feature.key, str))
    keys = [(type(feature.key), feature.key) for feature in FEATURES]
    assert len(set(keys)) == len(keys)
    assert len({feature.name for feature in FEATURES}) == len(FEATURES)


def own_segments():
    """System V segments that this process made: on a shared machine others have theirs."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [line.split()[1] for line in lines if int(line.split()[4]) == os.getpid()]


def test_asking_leaves_nothing_behind():
    def picture():
        files = sorted(os.listdir("/proc/self/fd"))
        return locked_bytes(), files, glob.glob("/dev/shm/mmkit-probe-*"), own_segments()

    def attempt():
        # The first time Python takes memory for the answers.
        for _ in range(3):
            before, mapped = picture(), len(areas())
            for feature in FEATURES:
                ask(feature)
        return before, picture(), len(areas()) - mapped

    before, after, more_areas = in_child(attempt)
    assert after == before
    assert more_areas <= 1


@sanitized
def test_asking_again_and_again_takes_no_memory_and_no_keys():
    def mapped():
        return sum(end - start for start, end, _ in areas())

    def attempt():
        times, grown = 400, {}
        for feature in FEATURES:
            # Pools of huge pages change while others use them.
            if feature.leaves_marks or feature.name.startswith("MAP_HUGE"):
                continue
            if feature.group not in ("mapping", "advice", "locking", "NUMA"):
                continue
            first, before = ask(feature), mapped()
            # All but the first: what is taken and not given back runs out, or adds up.
            last = [ask(feature) for _ in range(times)][-1]
            if last != first or mapped() - before >= times * PAGE:
                grown[feature.name] = (first, last, mapped() - before)
        return grown

    assert in_child(attempt) == {}


def test_a_probe_that_cannot_be_undone_is_made_in_a_child():
    leaving = {feature.name for feature in FEATURES if feature.leaves_marks}
    assert leaving == {"brk", "mseal", "mlockall"}
    asked_in = []
    feature = Feature("mark", "", "1.0", lambda: asked_in.append(os.getpid()), leaves_marks=True)
    assert ask(feature) == Answer(True)
    assert asked_in == []


def test_an_answer_comes_through_the_pipe_as_it_was_given():
    def refuse(number):
        def probe():
            raise OSError(number, "")

        return Feature(f"errno {number}", "", "1.0", probe)

    def absent():
        raise Absent

    numbers = sorted(set(errno.errorcode) - {errno.EMFILE, errno.ENFILE})
    features = [
        *map(refuse, numbers),
        Feature("absent", "", "", absent),
        Feature("works", "", "", lambda: None),
    ]
    answers = ask_all(features)
    assert [answer.errno for answer in answers[:-2]] == numbers
    assert answers[-2:] == [Answer(False), Answer(True)]
    assert answers[-2].word == "absent"


def test_a_probe_that_kills_is_answered_with_the_signal_and_the_next_is_asked():
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    works = Feature("works", "", "1.0", lambda: None)
    dies = Feature("dies", "", "1.0", die)
    answers = ask_all([works, dies, works, dies._replace(leaves_marks=True), works])
    assert [answer.word for answer in answers] == ["yes", "SIGKILL", "yes", "SIGKILL", "yes"]


@x86_64
def test_what_a_filter_refuses_is_answered_with_its_errno():
    def attempt():
        refuse_calls([(_MSEAL, errno.EPERM), (_USERFAULTFD, errno.ENOSYS), (_MEMBARRIER, errno.EACCES)])
        names = ("mseal", "UFFD_USER_MODE_ONLY", "membarrier GLOBAL")
        return [ask(named(name)).word for name in names], mmkit.supports("membarrier GLOBAL")

    mmkit.supports.cache_clear()
    assert in_child(attempt) == (["EPERM", "ENOSYS", "EACCES"], False)


@x86_64
def test_where_no_child_can_be_had_the_others_are_asked_all_the_same():
    def attempt():
        refuse_calls([(number, errno.EAGAIN) for number in (_CLONE, _FORK, _CLONE3)])
        with pytest.raises(BlockingIOError, match="supports"):
            mmkit.supports("mseal")
        return dict(zip([feature.name for feature in FEATURES], ask_all(FEATURES), strict=True))

    mmkit.supports.cache_clear()
    answers = in_child(attempt)
    # That is no answer of the kernel's to the feature.
    for name in ("mseal", "brk", "mlockall"):
        assert answers[name] == Answer(None, errno.EAGAIN)
    assert answers["mprotect"].works


def test_what_comes_in_the_way_of_asking_comes_through_the_pipe():
    def never(*arguments):
        def probe():
            raise NeverTried(*arguments)

        return Feature("never", "", "", probe)

    answers = ask_all([never(), never(errno.EACCES), never(errno.EROFS), named("MADV_NORMAL")])
    assert answers == [Answer(None), Answer(None, errno.EACCES), Answer(None, errno.EROFS), Answer(True)]


def test_a_process_that_does_not_wait_for_children_is_answered_all_the_same():
    def attempt():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        return [answer.works for answer in ask_all([named("mprotect"), named("mseal")])], mmkit.supports(
            "mseal"
        )

    expected = ask(named("mseal")).works
    assert in_child(attempt) == ([True, expected], expected)


def test_a_child_that_another_thread_forks_meanwhile_is_not_waited_for(monkeypatch):
    fork, strangers = os.fork, []

    def fork_beside():
        # As another thread would just then: this child has the pipe, too.
        stranger = fork()
        if stranger == 0:
            signal.alarm(20)
            signal.pause()
        strangers.append(stranger)
        return fork()

    def killed():
        os.kill(os.getpid(), signal.SIGKILL)

    kills = Feature("killed", "-", "2.4", killed)
    monkeypatch.setattr(os, "fork", fork_beside)
    answers = ask_all([kills, named("memfd_create")])
    # It has not ended meanwhile.
    assert [os.waitpid(stranger, os.WNOHANG) for stranger in strangers] == [(0, 0)] * 2
    for stranger in strangers:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)
    assert answers == [Answer(False, 0, signal.SIGKILL), Answer(True)]


def test_memory_that_python_lacks_is_enomem():
    def probe():
        raise MemoryError

    assert ask(Feature("large", "", "", probe)) == Answer(False, errno.ENOMEM)


def test_too_many_open_files_are_no_answer():
    def attempt():
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 64))
        with pytest.raises(mmkit.SyscallError) as refusal:
            mmkit.supports("cachestat")
        first = refusal.value.errno
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        return first, mmkit.supports("cachestat") in (True, False)

    mmkit.supports.cache_clear()
    assert in_child(attempt) == (errno.EMFILE, True)


@locks
@needs_root
def test_what_a_limit_forbids_does_not_work_here():
    def attempt():
        return [ask(named(name)).word for name in ("mlock", "mlockall", "MAP_LOCKED", "userfaultfd")]

    with_limit = in_child(attempt, user=NOBODY, limits={resource.RLIMIT_MEMLOCK: 0})
    assert with_limit[:3] == ["EPERM", "EPERM", "EPERM"]
    assert in_child(attempt, user=NOBODY, limits={resource.RLIMIT_MEMLOCK: 1 << 20})[:3] == [
        "yes",
        "ENOMEM",
        "yes",
    ]


def test_asking_for_mseal_seals_nothing_here():
    assert perms(0) is None
    before = len(areas())
    ask(named("mseal"))
    assert len(areas()) <= before + 1


@pytest.mark.parametrize("name", ["SHARED_VALIDATE", "POPULATE"])
def test_flags_that_every_supported_kernel_has_are_supported(name):
    assert mmkit.supports(MapFlag[name])
