"""Whatever mmkit touches, and whatever is wrong with it: MemoryFault, and the process goes on."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import raw
from mmkit import Error, MemoryFault, Prot, Region, peek, poke
from support import PAGE, in_child, needs_root, with_huge_pages, x86_64

HUGE = 2 << 20
SYS_MADVISE = 28


class Bad(NamedTuple):
    """A region of which the bytes [start, end) are bad, and those in front of them good."""

    region: Region
    start: int
    end: int


# ---- ways of touching memory: each meets [start, end), or a part of it


class Way(NamedTuple):
    run: Callable[[Region, int, int], object]
    access: str
    first: Callable[[int, int], int] | None  # the first bad byte that it touches; None: some bad byte
    of_anonymous_memory: bool = False
    position: Callable[[int], int] | None = None  # where the region's position stays


def at_start(start: int, end: int) -> int:
    return start


def store(key: Callable[[int, int], slice]) -> Callable[[Region, int, int], object]:
    def run(region: Region, start: int, end: int) -> None:
        where = key(start, end)
        region[where] = b"x" * len(range(*where.indices(len(region))))

    return run


def seek_and(method: str, *arguments: object) -> Callable[[Region, int, int], object]:
    def run(region: Region, start: int, end: int) -> None:
        region.seek(start - 10)
        getattr(region, method)(*arguments)

    return run


WAYS = {
    "load an item": Way(lambda r, a, _: r[a + 5], "read", lambda a, _: a + 5),
    "load an item from the end": Way(lambda r, a, _: r[a + 5 - len(r)], "read", lambda a, _: a + 5),
    "load a slice inside": Way(lambda r, a, _: r[a + 5 : a + 25], "read", lambda a, _: a + 5),
    "load a slice into it": Way(lambda r, a, _: r[a - 10 : a + 10], "read", at_start),
    "load all": Way(lambda r, a, b: r[:b], "read", at_start),
    "load with steps": Way(lambda r, a, _: r[a - 10 : a + 10 : 3], "read", at_start),
    "load backwards": Way(lambda r, a, _: r[a + 10 : a - 10 : -1], "read", at_start),
    "store an item": Way(lambda r, a, _: r.__setitem__(a + 5, 1), "write", lambda a, _: a + 5),
    "store a slice inside": Way(store(lambda a, _: slice(a + 5, a + 25)), "write", lambda a, _: a + 5),
    "store a slice into it": Way(store(lambda a, _: slice(a - 10, a + 10)), "write", at_start),
    "store all": Way(store(lambda a, b: slice(0, b)), "write", at_start),
    "store with steps": Way(store(lambda a, _: slice(a - 10, a + 10, 3)), "write", lambda a, _: a + 2),
    "store backwards": Way(store(lambda a, _: slice(a + 10, a - 10, -3)), "write", lambda a, _: a + 10),
    "read": Way(seek_and("read", 20), "read", at_start, position=lambda a: a - 10),
    "read to the end": Way(seek_and("read"), "read", at_start, position=lambda a: a - 10),
    "readline": Way(seek_and("readline"), "read", at_start, position=lambda a: a - 10),
    "write": Way(seek_and("write", b"x" * 20), "write", at_start, position=lambda a: a - 10),
    "find": Way(lambda r, a, _: r.find(b"nowhere", 0), "read", at_start),
    "find a long needle": Way(lambda r, a, _: r.find(b"nowhere" * 100, 0), "read", at_start),
    "rfind": Way(lambda r, a, _: r.rfind(b"nowhere", a - 10, a + 10), "read", at_start),
    "rfind from its end": Way(lambda r, a, b: r.rfind(b"nowhere", 0, b), "read", None),
    "punch an edge": Way(lambda r, a, _: r.punch(a + 5, 10), "write", lambda a, _: a + 5, True),
    "punch into it": Way(lambda r, a, _: r.punch(a - 10, 20), "write", at_start, True),
    "peek": Way(lambda r, a, _: peek(r.address + a - 10, 20), "read", at_start),
    "peek at all": Way(lambda r, a, b: peek(r.address, b), "read", at_start),
    "poke": Way(lambda r, a, _: poke(r.address + a - 10, bytes(20)), "write", at_start),
}


# ---- kinds of bad memory


@contextlib.contextmanager
def protected(directory: Path) -> Iterator[Bad]:
    with Region.anonymous(3 * PAGE) as region:
        region.protect(Prot.NONE, PAGE, PAGE)
        yield Bad(region, PAGE, 2 * PAGE)


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[Bad]:
    with Region.anonymous(3 * PAGE) as region:
        region.protect(Prot.READ, PAGE, PAGE)
        yield Bad(region, PAGE, 2 * PAGE)


@contextlib.contextmanager
def protected_by_others(directory: Path, prot: Prot = Prot.NONE) -> Iterator[Bad]:
    with Region.anonymous(3 * PAGE) as region:
        raw.mprotect(region.address + PAGE, PAGE, prot)
        yield Bad(region, PAGE, 2 * PAGE)


def read_only_by_others(directory: Path) -> contextlib.AbstractContextManager[Bad]:
    return protected_by_others(directory, Prot.READ)


@contextlib.contextmanager
def unmapped_by_others(directory: Path) -> Iterator[Bad]:
    with Region.anonymous(3 * PAGE) as region:
        raw.munmap(region.address + PAGE, PAGE)
        try:
            yield Bad(region, PAGE, 2 * PAGE)
        finally:
            # What the region unmaps when it closes must be its own again.
            raw.map_at(region.address + PAGE, PAGE)


@contextlib.contextmanager
def guarded(directory: Path) -> Iterator[Bad]:
    with Region.anonymous(3 * PAGE) as region:
        region.guard(PAGE, PAGE)
        yield Bad(region, PAGE, 2 * PAGE)


@contextlib.contextmanager
def cut(directory: Path, mode: str = "r+", offset: int = 0) -> Iterator[Bad]:
    path = directory / "file"
    path.write_bytes(bytes(3 * PAGE))
    with Region.file(path, None, offset, mode=mode) as region:
        os.truncate(path, PAGE)
        yield Bad(region, PAGE - offset, 3 * PAGE - offset)


def cut_read_only(directory: Path) -> contextlib.AbstractContextManager[Bad]:
    return cut(directory, "r")


def cut_under_a_private_copy(directory: Path) -> contextlib.AbstractContextManager[Bad]:
    return cut(directory, "c")


def cut_off_the_page(directory: Path) -> contextlib.AbstractContextManager[Bad]:
    return cut(directory, "r+", 100)


@contextlib.contextmanager
def cut_memfd(directory: Path) -> Iterator[Bad]:
    with Region.memfd(3 * PAGE) as region:
        os.truncate(region.fileno(), PAGE)
        yield Bad(region, PAGE, 3 * PAGE)


@contextlib.contextmanager
def cut_huge_memfd(directory: Path) -> Iterator[Bad]:
    if not with_huge_pages(2):
        pytest.skip("no huge pages")
    with Region.memfd(2 * HUGE, hugepages="require") as region:
        os.truncate(region.fileno(), HUGE)
        yield Bad(region, HUGE, 2 * HUGE)


@contextlib.contextmanager
def out_of_huge_pages(directory: Path) -> Iterator[Bad]:
    if not with_huge_pages(1):
        pytest.skip("no huge pages")
    with contextlib.ExitStack() as taken:
        region = taken.enter_context(Region.anonymous(3 * HUGE, hugepages="require", noreserve=True))
        region[0] = 1
        # What is reserved is gone for who has not reserved.
        with contextlib.suppress(Error):
            while True:
                taken.enter_context(Region.anonymous(HUGE, hugepages="require"))
        yield Bad(region, HUGE, 2 * HUGE)


@contextlib.contextmanager
def out_of_file_system(directory: Path) -> Iterator[Bad]:
    path = directory / "sparse"
    path.write_bytes(b"\0")
    os.truncate(path, 3 * PAGE)
    with Region.file(path, mode="r+") as region, (directory / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(PAGE))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        yield Bad(region, PAGE, 3 * PAGE)


def here(function: Callable[[Path], None], directory: Path) -> None:
    function(directory)


def on_an_old_kernel(function: Callable[[Path], None], directory: Path) -> None:
    """Before 6.13 no advice sets guards."""
    guards = [((SYS_MADVISE, advice), errno.EINVAL) for advice in (102, 103)]
    in_child(lambda: function(directory), refuse=guards)


def on_a_small_tmpfs(function: Callable[[Path], None], directory: Path) -> None:
    raw.in_mount(function, directory, "tmpfs", "size=1m")


class Kind(NamedTuple):
    make: Callable[[Path], contextlib.AbstractContextManager[Bad]]
    reason: str | tuple[str, ...]
    accesses: tuple[str, ...] = ("read", "write")
    run: Callable[[Callable[[Path], None], Path], None] = here
    anonymous: bool = True
    #: What the raw memory, of which peek and poke know no more than the kernel tells, answers.
    raw_reason: str | None = None
    marks: tuple[pytest.MarkDecorator, ...] = ()

    def reasons_for(self, way: str) -> tuple[str, ...]:
        reason = self.raw_reason or self.reason if is_raw(way) else self.reason
        return (reason,) if isinstance(reason, str) else reason


def is_raw(way: str) -> bool:
    return way.startswith(("peek", "poke"))


def file_kind(make: Callable[[Path], contextlib.AbstractContextManager[Bad]], **more: object) -> Kind:
    return Kind(make, "beyond end of file", anonymous=False, raw_reason="not backed", **more)


BAD = {
    "protected": Kind(protected, "protection"),
    "read-only": Kind(read_only, "protection", ("write",)),
    "protected by others": Kind(protected_by_others, "protection"),
    "read-only by others": Kind(read_only_by_others, "protection", ("write",)),
    "unmapped by others": Kind(unmapped_by_others, "unmapped or guard"),
    "guarded": Kind(guarded, "unmapped or guard"),
    # A guard is a protection there, of which only punch, that writes nothing before it has looked, knows more.
    "guarded on an old kernel": Kind(
        guarded,
        ("protection", "unmapped or guard"),
        run=on_an_old_kernel,
        raw_reason="protection",
        marks=(x86_64,),
    ),
    "cut": file_kind(cut),
    "cut, read-only": file_kind(cut_read_only, accesses=("read",)),
    "cut under a private copy": file_kind(cut_under_a_private_copy),
    "cut, not from a page on": file_kind(cut_off_the_page),
    "cut memfd": file_kind(cut_memfd),
    "cut memfd of huge pages": file_kind(cut_huge_memfd),
    "out of huge pages": Kind(out_of_huge_pages, "no memory", raw_reason="not backed"),
    "out of file system": Kind(
        out_of_file_system,
        "no memory",
        run=on_a_small_tmpfs,
        anonymous=False,
        raw_reason="not backed",
        marks=(needs_root,),
    ),
}


def is_left_alone(region: Region, start: int, writable: bool) -> None:
    """The good part works as ever."""
    assert region[0:4] == peek(region.address, 4)
    assert region.find(region[start - 1 : start], start - 1, start) == start - 1
    if writable:
        region[start - 4 : start] = b"good"
        assert region.rfind(b"good", 0, start) == start - 4
        poke(region.address, b"G")
        assert region[0] == ord("G")


def meet(kind: Kind, name: str, directory: Path) -> None:
    way = WAYS[name]
    with kind.make(directory) as (region, start, end):
        with pytest.raises(MemoryFault) as caught:
            way.run(region, start, end)
        fault = caught.value
        offset = fault.address - region.address
        outside = is_raw(name)
        assert fault.reason in kind.reasons_for(name)
        assert (fault.access, fault.offset) == (way.access, None if outside else offset)
        assert offset == way.first(start, end) if way.first else start <= offset < end
        place = f"{fault.address:#x}" if outside else f"{fault.address:#x} (offset {offset:#x})"
        assert str(fault).startswith(f"{way.access} at {place}: {fault.reason}: ")
        if way.position:
            assert region.tell() == way.position(start)
        is_left_alone(region, start, "write" in kind.accesses)


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        pytest.param(kind, way, marks=BAD[kind].marks, id=f"{way}-{kind}")
        for kind in BAD
        for way in WAYS
        if WAYS[way].access in BAD[kind].accesses
        and (BAD[kind].anonymous or not WAYS[way].of_anonymous_memory)
    ],
)
def test_a_bad_access_raises_what_is_known_of_it_and_the_rest_works(kind, way, tmp_path):
    BAD[kind].run(lambda directory: meet(BAD[kind], way, directory), tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=BAD[kind].marks)
        for kind in BAD
        if BAD[kind].make not in (cut_read_only, cut_under_a_private_copy)  # these keep their size
    ],
)
def test_cutting_a_region_within_a_bad_page_is_no_crash(kind, tmp_path):
    def cut_there(directory: Path) -> None:
        with BAD[kind].make(directory) as (region, start, _):
            region.resize(start + 10)
            assert len(region) == start + 10
            is_left_alone(region, start, True)

    BAD[kind].run(cut_there, tmp_path)


# ---- the caller's buffer is the bad side


@contextlib.contextmanager
def bad_view(kind: str) -> Iterator[tuple[memoryview, int, str]]:
    """Two pages, of which the second is bad, its address, and what the kernel says of it."""
    with (
        Region.memfd(2 * PAGE) if kind == "cut" else Region.anonymous(2 * PAGE) as region,
        memoryview(region) as view,
    ):
        address = region.address + PAGE
        if kind == "cut":
            os.truncate(region.fileno(), PAGE)
            yield view, address, "not backed"
        elif kind == "protected":
            raw.mprotect(address, PAGE, Prot.NONE)
            yield view, address, "protection"
        else:
            region.guard(PAGE, PAGE, force=True)
            yield view, address, "unmapped or guard"


USES = {
    "store": lambda region, view: region.__setitem__(slice(0, 2 * PAGE), view),
    "store with steps": lambda region, view: region.__setitem__(slice(0, 4 * PAGE, 2), view),
    "store a little": lambda region, view: region.__setitem__(slice(0, 20), view[PAGE - 10 : PAGE + 10]),
    "write": lambda region, view: region.write(view),
    "find": lambda region, view: region.find(view),
    "find a little": lambda region, view: region.find(view[PAGE - 10 : PAGE + 10]),
    "rfind": lambda region, view: region.rfind(view),
    "poke": lambda region, view: poke(region.address, view),
}


@pytest.mark.parametrize("kind", ["cut", "protected", "guarded"])
@pytest.mark.parametrize("use", USES)
def test_a_bad_buffer_given_to_a_method_raises_too(use, kind):
    with Region.anonymous(4 * PAGE) as region, bad_view(kind) as (view, address, reason):
        with pytest.raises(MemoryFault) as caught:
            USES[use](region, view)
        fault = caught.value
        assert (fault.address, fault.offset, fault.access, fault.reason) == (address, None, "read", reason)
        assert region.tell() == 0
        region[:4] = b"good"
        assert region[:4] == b"good"


def test_a_part_of_the_region_itself_may_be_the_bad_buffer():
    with Region.memfd(2 * PAGE) as region:
        with region.view(PAGE) as view:
            os.truncate(region.fileno(), PAGE)
            with pytest.raises(MemoryFault, match="read at .* beyond end of file") as caught:
                region[:PAGE] = view
        assert caught.value.offset == PAGE


def test_a_thousand_faults_leave_nothing_behind():
    with Region.anonymous(2 * PAGE) as region, Region.anonymous(2 * PAGE) as needle:
        region.guard(PAGE)
        fds = len(os.listdir("/proc/self/fd"))
        with needle.view() as view:
            needle.guard(PAGE, force=True)
            for _ in range(1000):
                for access in (region.read, lambda: region[PAGE], lambda: region.find(view)):
                    with pytest.raises(MemoryFault):
                        access()
        assert len(os.listdir("/proc/self/fd")) == fds
        # Nothing is pinned.
        region.resize(PAGE)
        region.close()
        needle.close()
