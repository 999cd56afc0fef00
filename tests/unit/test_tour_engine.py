"""What the tour is made of: scenes that go wrong, children that die, and what was chosen."""

import errno
import faulthandler
import os
import re
import signal
from pathlib import Path

import pytest

import mmkit
from mmkit.errors import MemoryFault
from mmkit.tour import SECTIONS, AudienceLeft, Outcome, Section, run
from mmkit.tour.company import ChildDiedError, in_a_child, scratch_file, uninterrupted
from mmkit.tour.engine import scene
from mmkit.tour.faulting import fault_twice
from mmkit.tour.plan import NoSuchStepError, chosen, listing
from mmkit.tour.readahead import file_length, fill, read_ahead
from mmkit.tour.step import Step
from mmkit.tour.summary import Tally, document, tally
from mmkit.tour.witness import Death, bare_access
from support import NOBODY, in_child, needs_root, sanitized, x86_64


class Listener:
    """An audience that remembers."""

    def __init__(self):
        self.told = []

    def section_begins(self, number, section):
        self.told.append(f"{number} {section.key}")

    def step_ended(self, step):
        self.told.append(step.title)


def a_section(*scenes, key="made-up"):
    return Section(key=key, title="Made up", introduction="For a test.", scenes=scenes)


def play(*scenes, only=None):
    (steps,) = run([a_section(*scenes)], Listener(), only).values()
    return steps


def outcomes(*scenes):
    return {step.title: step.outcome for step in play(*scenes)}


def refuse():
    raise PermissionError(errno.EPERM, "no")


@scene("one", "two")
def two_steps(stage):
    for _ in range(2):
        with stage.step() as step:
            step.check("it is", True)


# ---- steps and scenes -------------------------------------------------------------------------------


def test_a_claim_that_does_not_hold_fails_the_step_and_the_scene_goes_on():
    @scene("wrong", "right")
    def arithmetic(stage):
        with stage.step() as step:
            step.check("two and two are five", 2 + 2 == 5)
        with stage.step() as step:
            step.check("two and two are four", 2 + 2 == 4)

    assert outcomes(arithmetic) == {"wrong": Outcome.FAILED, "right": Outcome.DONE}


def test_an_errno_that_is_no_refusal_fails_the_step():
    @scene("a bad descriptor")
    def bad(stage):
        with stage.step():
            os.fstat(1 << 20)

    assert outcomes(bad) == {"a bad descriptor": Outcome.FAILED}


def test_what_a_refused_step_would_have_made_is_not_reached_and_not_needed_by_the_next_scene():
    @scene("refused", "after it")
    def no(stage):
        with stage.step():
            refuse()
        raise AssertionError("the scene is over")

    assert outcomes(no, two_steps) == {
        "refused": Outcome.REFUSED,
        "after it": Outcome.NOT_REACHED,
        "one": Outcome.DONE,
        "two": Outcome.DONE,
    }


def test_steps_done_in_one_go_are_told_when_all_are_done():
    listener = Listener()

    @scene("one", "two")
    def in_one_go(stage):
        with stage.in_one_go():
            with stage.step():
                pass
            with stage.step():
                assert listener.told == ["1 made-up"]
                refuse()

    run([a_section(in_one_go)], listener)
    assert listener.told == ["1 made-up", "one", "two"]


def test_what_goes_wrong_between_two_steps_is_a_failure_and_what_is_refused_there_a_refusal():
    @scene("never")
    def forgets(stage):
        raise KeyError("forgotten")

    @scene("never")
    def may_not(stage):
        refuse()

    (wrong, never), (refused, _) = play(forgets), play(may_not)
    assert (wrong.outcome, never.outcome) == (Outcome.FAILED, Outcome.NOT_REACHED)
    assert "forgotten" in wrong.mistake
    assert refused.outcome is Outcome.REFUSED


def test_a_scene_makes_the_steps_that_it_announces_no_more_and_no_fewer():
    @scene("one", "two")
    def too_few(stage):
        with stage.step():
            pass

    @scene("one")
    def too_many(stage):
        for _ in range(2):
            with stage.step():
                pass

    for each in (too_few, too_many):
        assert Outcome.FAILED in outcomes(each).values()


def test_an_audience_that_leaves_ends_the_tour_and_is_no_failure_of_a_step():
    cleaned_up = []

    class Leaves(Listener):
        def step_ended(self, step):
            raise AudienceLeft(BrokenPipeError())

    @scene("one", "two")
    def careful(stage):
        try:
            with stage.step():
                pass
        finally:
            cleaned_up.append(True)

    with pytest.raises(AudienceLeft):
        run([a_section(careful)], Leaves())
    assert cleaned_up == [True]


def test_a_call_is_checked_by_the_checks_that_come_after_it():
    step = Step(1, "a step")
    step.call("mlock", "p", 1, python="region.lock()")
    step.check("it is locked", True)
    step.call("munlock", "p", 1, python="region.unlock()")
    first, second = step.calls
    assert [len(step.checks_of(call)) for call in (first, second)] == [1, 0]
    step.check("it is not", False)
    assert (step.outcome_of(first), step.outcome_of(second)) == (Outcome.FAILED, Outcome.FAILED)


# ---- what was chosen --------------------------------------------------------------------------------


@scene("three", "four, and One more")
def two_more(stage):
    for _ in range(2):
        with stage.step() as step:
            step.check("it is", True)


PLAN = (a_section(two_steps, key="first"), a_section(two_more, key="second"))


@pytest.mark.parametrize(
    ("keys", "steps", "numbers"),
    [
        ((), (), None),
        (("second",), (), {3, 4}),
        ((), ("2",), {2}),
        ((), ("one",), {1, 4}),
        (("second",), ("ONE", "3"), {3, 4}),
    ],
)
def test_steps_are_chosen_by_section_by_number_and_by_words_of_their_titles(keys, steps, numbers):
    assert chosen(PLAN, keys, steps) == numbers


@pytest.mark.parametrize(("keys", "step"), [((), "5"), ((), "0"), (("first",), "3"), ((), "five")])
def test_a_step_that_is_not_there_is_an_error(keys, step):
    with pytest.raises(NoSuchStepError, match="--list"):
        chosen(PLAN, keys, [step])


def test_only_what_was_chosen_is_told_under_the_numbers_of_the_whole_tour():
    listener = Listener()
    played = run(PLAN, listener, {4})
    assert listener.told == ["2 second", "four, and One more"]
    assert [step.number for step in played["second"]] == [4]


def test_what_is_done_for_a_chosen_step_and_not_shown_is_its_preparation():
    @scene("first", "second", "third", "fourth")
    def four(stage):
        for number in range(1, 5):
            with stage.step() as step:
                step.prepare(f"prepare({number})")
                step.code(f"p = {number};", f"p = {number}")

    second, fourth = play(four, only={2, 4})
    assert second.prepared == ["prepare(1)", "p = 1", "prepare(2)"]
    assert fourth.prepared == ["prepare(3)", "p = 3", "prepare(4)"]
    assert [step.prepared for step in play(four)] == [[f"prepare({number})"] for number in range(1, 5)]


def test_a_step_that_was_not_chosen_is_told_if_the_chosen_one_is_not_reached_for_it():
    @scene("refused", "chosen")
    def no(stage):
        with stage.step():
            refuse()

    assert [step.title for step in play(no, only={2})] == ["refused", "chosen"]


def test_every_step_is_listed_with_its_number_and_every_section_with_its_key():
    lines = list(listing(SECTIONS, None))
    titles = [title for section in SECTIONS for each in section.scenes for title in each.titles]
    for number, title in enumerate(titles, 1):
        assert f"{number}  {title}" in " ".join(lines)
    assert [line.split()[0] for line in lines if line[:1].strip()] == [section.key for section in SECTIONS]


# ---- the summary ------------------------------------------------------------------------------------


def test_calls_are_counted_as_they_were_recorded_refused_ones_too():
    @scene("calls")
    def calls(stage):
        with stage.step() as step:
            for _ in range(2):
                step.call("mlock", "p", 1, python="region.lock()")
                step.answer(0)
            step.code("p[0] = 1;", "region[0] = 1")
            step.call("mmap", "NULL", 0, assign="p", python="linux.mmap(0, 0)")
            refuse()

    played = run([a_section(calls)], Listener())
    assert tally(played) == [Tally("mlock", 2, 0), Tally("mmap", 1, 1)]
    (section,) = document([a_section(calls)], played, 1)["sections"]
    assert [call["name"] for call in section["steps"][0]["calls"]] == ["mlock", "mlock", None, "mmap"]
    assert section["steps"][0]["calls"][3]["kernel"] == "MAP_FAILED, errno EPERM"


# ---- children and faults ----------------------------------------------------------------------------


def test_an_exception_of_the_child_is_raised_in_the_parent_and_the_child_is_gone():
    children = Path("/proc/thread-self/children")
    before = children.read_text()
    with pytest.raises(ZeroDivisionError):
        in_a_child(lambda: 1 // 0)
    assert children.read_text() == before


def test_a_child_that_dies_is_an_error_and_no_hang():
    with pytest.raises(ChildDiedError, match="without an answer: SIGKILL"):
        in_a_child(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_bare_access_tells_what_it_dies_of_and_none_if_it_does_not():
    with mmkit.Region.anonymous(mmkit.PAGE_SIZE) as region:
        assert bare_access(region.address, "write") is None
        region.protect(mmkit.Prot.READ)
        assert bare_access(region.address + 5, "read") is None
        death, address = bare_access(region.address + 5, "write"), region.address + 5
    assert (death.signal, death.code, death.address) == ("SIGSEGV", "SEGV_ACCERR", address)
    nowhere = bare_access(0, "read")
    assert (nowhere.code, nowhere.address) == ("SEGV_MAPERR", 0)


@x86_64
def test_the_processor_says_whether_it_was_a_write_and_whether_its_tables_have_the_page():
    with mmkit.Region.anonymous(mmkit.PAGE_SIZE) as region:
        region[0] = 1
        region.protect(mmkit.Prot.READ)
        assert bare_access(region.address, "write").error_code == 7
    assert bare_access(0, "read").error_code == 4
    # No page table can hold such an address: no page fault.
    assert bare_access(1 << 60, "read").error_code is None


@x86_64
@pytest.mark.parametrize("address", [(1 << 64) - 1, (1 << 64) - (1 << 47), (1 << 47) - 4096], ids=hex)
def test_of_the_kernels_addresses_nobody_claims_that_there_is_a_page(address):
    for access in ("read", "write"):
        assert bare_access(address, access).processor == (
            f"page fault, code {5 if access == 'read' else 7}: a {access}. The kernel hides whether there is a page"
        )


@x86_64
def test_below_them_the_processor_is_believed():
    assert bare_access((1 << 47) - 2 * 4096, "read").processor.endswith(
        "its tables have no page there to read"
    )


def test_a_child_that_is_ended_before_it_can_tell_is_told_by_its_signal(monkeypatch):
    # In place of a handler: and no traceback of pytest's either.
    monkeypatch.setattr("mmkit.tour.witness._tell_death", lambda writer: faulthandler.disable())
    assert in_child(lambda: bare_access(0, "read")) == Death("SIGSEGV")


@pytest.mark.parametrize("raises", [False, True])
def test_an_access_that_should_be_forbidden_and_is_not_fails_its_step(raises):
    with mmkit.Region.anonymous(mmkit.PAGE_SIZE) as region:
        fault = MemoryFault("made up", region.address, 0, "read", "protection")

        def touch():
            if raises:
                raise fault

        @scene("an access")
        def access(stage):
            with stage.step() as step:
                fault_twice(
                    step,
                    "x = p[0];",
                    "region[0]",
                    address=region.address,
                    access="read",
                    touch=touch,
                    codes=("SEGV_ACCERR",),
                    reasons=("protection",),
                )

        (step,) = play(access)
    assert [check.holds for check in step.checks] == [False, raises]


def test_an_interruption_waits_until_names_are_gone():
    reached = []

    def work():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end of the block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached


# ---- files ------------------------------------------------------------------------------------------


def test_a_scratch_file_has_no_name(monkeypatch):
    def without_tmpfile(path, flags, *rest):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "a file system without")
        return real(path, flags, *rest)

    real = os.open
    for opens in (real, without_tmpfile):
        monkeypatch.setattr(os, "open", opens)
        with scratch_file(b"abc") as fd:
            assert os.fstat(fd).st_nlink == 0
            assert os.pread(fd, 10, 0) == b"abc"


@pytest.mark.parametrize(
    ("ahead", "length"),
    [(0, 1 << 20), (128 << 10, 1 << 20), (300 << 10, 2 << 20), (8 << 20, 32 << 20), (1 << 30, 32 << 20)],
)
def test_the_file_is_a_few_times_longer_than_the_read_ahead_and_divided_into_columns(ahead, length):
    assert file_length(ahead) == length
    assert length % (64 * mmkit.PAGE_SIZE) == 0 or mmkit.PAGE_SIZE > 1 << 14


def test_the_read_ahead_is_read_or_said_to_be_assumed(monkeypatch, tmp_path):
    with scratch_file(b"", on_disk=True) as fd:
        length, source = read_ahead(fd)
        assert length > 0
        assert source.startswith(("/sys/", "assumed"))
        monkeypatch.setattr("mmkit.tour.readahead._DEVICES", tmp_path)
        assert read_ahead(fd) == (128 << 10, "assumed: this file system does not say")
        (tmp_path / "7:7").mkdir()
        (tmp_path / "7:7" / "read_ahead_kb").write_text("512\n")
        assert read_ahead(fd)[0] == 512 << 10


def test_a_disk_that_takes_a_part_at_a_time_gets_all(monkeypatch):
    with scratch_file(b"") as fd:
        real = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: real(fd, data[:1000]))
            fill(fd, 4096)
        assert os.fstat(fd).st_size == 4096


@sanitized
@needs_root
def test_a_refusal_in_a_shielded_process_names_the_file_and_what_to_do():
    def shielded():
        os.setgid(NOBODY)
        os.setuid(NOBODY)  # and from then on the process may not look at itself
        steps = [step for each in run(SECTIONS, Listener()).values() for step in each]
        assert [step.mistake for step in steps if step.mistake] == []
        return [step.refusal.error + " " + step.refusal.why for step in steps if step.refusal]

    refusals = in_child(shielded)
    files = [text for text in refusals if text.startswith("EACCES: ")]
    assert len(files) > 10
    for text in files:
        assert re.match(
            r"EACCES: open\('/proc/(self|\d+)/\w+'\): Permission denied .*PR_SET_DUMPABLE", text
        ), text
