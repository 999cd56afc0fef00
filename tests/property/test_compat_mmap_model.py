"""The same random calls on the standard mmap and on mmkit's: the same answers, the same kinds of errors.

What docs/compat-mmap.md lists as different is not called, or its answer is not compared.
"""

from __future__ import annotations

import contextlib
import mmap as standard
import os
import sys
import tempfile

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmkit.compat import mmap as ours
from support import PAGE

EXAMPLES = int(os.environ.get("MMKIT_EXAMPLES", "100"))
SIZE = 2 * PAGE + 100
PATTERN = (b"ab\ncab\0abc\n" * (SIZE // 11 + 1))[:SIZE]

near = st.one_of(
    st.integers(-12, 12),
    st.integers(-SIZE - 2, SIZE + 2),
    st.sampled_from([SIZE - 1, SIZE, -SIZE, PAGE, 2 * PAGE, sys.maxsize, -sys.maxsize - 1, 2**63, -(2**70)]),
)
index = st.one_of(near, st.booleans(), st.sampled_from([1.5, "1", None, b"0"]))
end = st.one_of(st.none(), near)
step = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([255, 256, 257, -300, PAGE, -PAGE, 10**6]))
slices = st.builds(slice, end, end, step)
data = st.one_of(
    st.binary(max_size=12),
    st.builds(bytearray, st.binary(max_size=4)),
    st.builds(lambda unit, times: unit * times, st.binary(min_size=1, max_size=3), st.integers(0, 2000)),
    st.sampled_from(["text", 5, None, memoryview(b"12345678")[::2]]),
)
byte = st.one_of(st.integers(-2, 257), st.sampled_from(["x", b"x", 1.0, None]))
needle = st.sampled_from([b"", b"a", b"ab", b"abc", b"\n", b"\0", bytearray(b"ca"), b"zz"])


def call(name, *arguments):
    return st.tuples(st.just(name), st.tuples(*arguments))


CALLS = st.one_of(
    call("get", index),
    call("get", slices),
    call("set", index, byte),
    call("set", slices, data),
    call("fill", slices, st.integers(0, 255)),
    call("delete", st.one_of(index, st.just(slice(1, 5)))),
    call("read"),
    call("read", st.one_of(near, st.none(), st.just("x"))),
    call("read_byte"),
    call("readline"),
    call("write", data),
    call("write_byte", st.one_of(byte, st.just(2**70))),
    call("seek", near),
    call("seek", near, st.integers(-1, 4)),
    call("tell"),
    call("find", needle),
    call("find", st.sampled_from(["a", 5, None])),
    call("rfind", needle, near),
    call("find", needle, near, near),
    call("rfind", needle, near, near),
    call("move", near, near, near),
    call("len"),
    call("flush"),
    call("flush", st.integers(0, SIZE + 2), st.integers(0, SIZE + 2)),
    call("flush", st.sampled_from([0, PAGE, 2 * PAGE]), st.sampled_from([0, 1, 100, PAGE])),
    call("madvise", st.sampled_from([0, 1, 2, 3, 4, 10, 11, 999])),
    call("madvise", st.sampled_from([0, 4]), st.sampled_from([0, 1, PAGE, 2 * PAGE, -1, SIZE]), near),
    call("resize", st.one_of(st.integers(1, 2 * SIZE), st.sampled_from([PAGE, 3 * PAGE, -1, sys.maxsize]))),
    call("start", st.integers(0, 40)),
    call("holds", st.sampled_from([b"a", b"z", b"ab", 97, "a"])),
    call("view"),
    call("release"),
    call("closed"),
    call("enter"),
    call("repr"),
    call("close"),
)


def first_bytes(mapping, count):
    iterator = iter(mapping)
    return [next(iterator, None) for _ in range(count)]


class Side:
    """One module's map, and the view that may be held of it."""

    def __init__(self, module, path, kind):
        self.kind = kind
        self.view = None
        self.path = path
        path_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.write(path_fd, PATTERN)
        options = {
            "default": {},
            "read": {"access": module.ACCESS_READ},
            "write": {"access": module.ACCESS_WRITE},
            "copy": {"access": module.ACCESS_COPY},
            "second page": {"offset": PAGE},
            "part": {},
            "anonymous": {"flags": module.MAP_PRIVATE},
            "shared": {},
        }[kind]
        if kind in ("anonymous", "shared"):
            self.map = module.mmap(-1, SIZE, **options)
            self.map[:] = PATTERN
        else:
            self.map = module.mmap(path_fd, PAGE if kind == "part" else 0, **options)
        os.close(path_fd)

    def do(self, name, arguments):
        map_ = self.map
        match name:
            case "get":
                return map_[arguments[0]]
            case "set":
                map_[arguments[0]] = arguments[1]
            case "fill":
                where, value = arguments
                map_[where] = bytes([value]) * len(range(*where.indices(len(map_))))
            case "delete":
                del map_[arguments[0]]
            case "len":
                return len(map_)
            case "start":
                return first_bytes(map_, *arguments)
            case "holds":
                return arguments[0] in map_
            case "view":
                self.view = self.view or memoryview(map_)
                return self.view.readonly, self.view.nbytes, self.view.format
            case "release":
                if self.view is not None:
                    self.view.release()
                self.view = None
            case "resize":
                if self.kind == "anonymous" and 0 < arguments[0] < len(map_):
                    # What is cut off within a page comes back with the standard module, and as zeros with mmkit.
                    map_[arguments[0] :] = bytes(len(map_) - arguments[0])
                map_.resize(*arguments)
            case "closed":
                return map_.closed
            case "enter":
                return map_.__enter__() is map_
            case "repr":
                return repr(map_)
            case "seek":
                map_.seek(*arguments)  # what it returns, only newer Pythons do
                return map_.tell()
            case _:
                return getattr(map_, name)(*arguments)
        return None

    def outcome(self, name, arguments):
        try:
            return self.do(name, arguments), None
        except Exception as error:
            return None, error

    def state(self):
        contents = None if self.map.closed else (self.map[:], self.map.tell())
        with open(self.path, "rb") as file:
            return contents, file.read()

    def end(self):
        self.do("release", ())
        self.map.close()


def is_left_out(name, arguments, side):
    """Does docs/compat-mmap.md list it?"""
    if side.map.closed:
        return False
    if name == "resize" and side.kind == "shared":
        return arguments[0] > len(side.map)  # the new part gets SIGBUS in old Pythons
    if name == "write" and side.kind == "read":
        return isinstance(arguments[0], memoryview)  # wrong in two ways: which is seen first?
    # Of private memory there is nothing to flush.
    return name == "flush" and side.kind == "anonymous" and arguments and arguments[0] % PAGE


@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    kind=st.sampled_from(["default", "read", "write", "copy", "second page", "part", "anonymous", "shared"]),
    calls=st.lists(CALLS, max_size=30),
)
@example(kind="default", calls=[("get", (slice(-300, None, -1),)), ("get", (slice(5, -1, 300),))])
@example(kind="default", calls=[("seek", (2,)), ("resize", (1,)), ("readline", ())])
@example(
    kind="copy", calls=[("view", ()), ("resize", (PAGE,)), ("close", ()), ("release", ()), ("close", ())]
)
def test_the_same_calls_have_the_same_outcomes(kind, calls):
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as scope:
        theirs, mine = (Side(module, f"{directory}/{module.__name__}", kind) for module in (standard, ours))
        scope.callback(theirs.end)
        scope.callback(mine.end)
        for name, arguments in calls:
            if is_left_out(name, arguments, theirs):
                continue
            (expected, their_error), (answer, my_error) = (
                side.outcome(name, arguments) for side in (theirs, mine)
            )
            said = f"{name}{arguments}: {their_error!r} there, {my_error!r} here"
            assert (type(answer), answer) == (type(expected), expected), said
            assert (my_error is None) == (their_error is None), said
            if theirs.map.closed:
                # Which Pythons differ in, too: are arguments or is the map looked at first?
                continue
            assert my_error is None or isinstance(my_error, type(their_error)), said
            # Which limit is met first differs: of the file or of the address space.
            if isinstance(their_error, OSError) and name != "resize":
                assert my_error.errno == their_error.errno, said
            assert mine.state() == theirs.state(), said
