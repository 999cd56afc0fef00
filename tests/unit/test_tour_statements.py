"""What the tour shows as Python is what was done: whoever types it in sees the same."""

import ast
import builtins
import gc
import json
import os
import signal
import subprocess
import sys
import warnings

import pytest

from mmkit.tour import SECTIONS, Outcome, run
from mmkit.tour.step import Call, Step
from mmkit.tour.summary import IMPORTS
from support import SANITIZED, in_child, needs_root

pytestmark = [
    pytest.mark.skipif(SANITIZED, reason="a sanitizer's malloc needs no break, and its mlock does nothing"),
    needs_root,  # an ordinary user may be refused what the statements need
]
EVERY_SECTION = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.key)


class Nobody:
    """An audience that does not look."""

    def section_begins(self, number, section): ...

    def step_ended(self, step): ...


def shown(*options):
    command = [sys.executable, "-m", "mmkit", "tour", "--json", *options]
    document = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return json.loads(document)


def try_it(document):
    """Execute all that a document shows, in order; return what did not come out as it says."""
    (section,) = document["sections"]
    namespace = {}
    for statement in document["imports"]:
        exec(statement, namespace)
    wrong = []
    for step in section["steps"]:
        for statement in step["prepared"]:
            exec(statement, namespace)
        calls = iter(step["calls"])
        for call in calls:
            caught_as = names_of_what_is_raised_by(call["python"], namespace)
            if (call["raised"] or "nothing").partition(":")[0] not in caught_as:
                wrong.append((step["title"], call["python"], caught_as))
            if call["name"] == "fork":
                do_as_the_child(calls, namespace)
                break
    namespace.clear()
    gc.collect()
    return wrong


def do_as_the_child(calls, namespace):
    """Go on in the child, which does the rest of the step, and wait for it in the parent."""
    if namespace["child"] == 0:
        try:
            for call in calls:
                exec(call["python"], namespace)
            os._exit(0)
        finally:
            os._exit(1)
    # One shows that it is killed.
    assert os.waitpid(namespace["child"], 0)[1] in (0, signal.SIGKILL)


def names_of_what_is_raised_by(statement, namespace):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # memory is forgotten on purpose
        try:
            exec(statement, namespace)
        except Exception as error:
            return [kind.__name__ for kind in type(error).__mro__]
    return ["nothing"]


@EVERY_SECTION
def test_the_statements_of_a_section_can_be_executed_in_order_and_do_what_it_shows(section):
    document = shown("--section", section.key)
    if document["steps"]["refused"]:
        pytest.skip("this kernel refuses a part of it")
    assert in_child(lambda: try_it(document)) == []


def names(step):
    """The names that the statements of a step use, and do not make."""
    used, made = set(), set()
    for statement in [*step.prepared, *(call.python for call in step.calls)]:
        nodes = [node for node in ast.walk(ast.parse(statement)) if isinstance(node, ast.Name)]
        made |= {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
        used |= {node.id for node in nodes if not isinstance(node.ctx, ast.Store)} - made
    return used


@EVERY_SECTION
def test_a_step_that_is_shown_alone_says_where_everything_it_uses_is_from(section):
    known = set(dir(builtins)) | {
        alias.asname or alias.name for node in ast.parse("\n".join(IMPORTS)).body for alias in node.names
    }
    count = sum(len(scene.titles) for scene in section.scenes)

    def unexplained():
        alone = [run([section], Nobody(), {number})[section.key][-1] for number in range(1, count + 1)]
        return [(step.title, names(step) - known) for step in alone if step.outcome is Outcome.DONE]

    assert [each for each in in_child(unexplained) if each[1]] == []


def test_what_comes_before_a_step_and_is_not_shown_is_its_preparation():
    step = Step(3, "before")
    step.prepare("a = 1")
    step.calls = [
        Call("", (), "x = p[0];", "peek(p, 1)", raised="MemoryFault: there is nothing"),
        Call("fork", (), "child = fork();", "child = os.fork()", "child"),
        Call("", (), "p[0] = 1;", 'poke(p, b"1")'),
    ]
    assert step.statements() == ["a = 1", "child = os.fork()   # the child: see step 3"]
