"""A small memory profiler: snapshot, work, snapshot, and the difference by kind of memory, with bars.

It runs three jobs again and again and looks what each leaves behind. One fills a cache and then stays as it
is, one gives back all that it takes, one loses memory on every run: the profiler finds it, and says where its
memory is. It looks at what the kernel says of this process in /proc/self/smaps; so it sees memory that no
Python object owns, too.
In C: open(2), read(2) of /proc/self/smaps, malloc(3). Belongs to the chapter "Memory" (docs/memory.md).
"""

import contextlib
import sys
from collections.abc import Callable
from typing import NamedTuple

from mmkit import PAGE_SIZE, MapFlag, Prot, linux, maps, poke
from mmkit.maps import Area, Areas

ROUNDS = 4
MIB = 1 << 20
BAR = 24


class Change(NamedTuple):
    """How much more memory a kind has than before, in bytes."""

    kind: str
    size: int
    resident: int


def snapshot() -> Areas:
    """Look at all memory of this process, and what it costs."""
    return maps.read(costs=True)


def difference(before: Areas, after: Areas) -> list[Change]:
    """Tell which kinds of memory have changed, the one that grew most first."""
    old, new = before.total(by="kind"), after.total(by="kind")
    changes = []
    for kind in old | new:
        # A kind that was not there, or is not there any more, counts as nothing.
        size = new.get(kind, 0) - old.get(kind, 0)
        resident = (new[kind].rss if kind in new else 0) - (old[kind].rss if kind in old else 0)
        if size or resident:
            changes.append(Change(kind, size, resident))
    return sorted(changes, key=lambda change: change.resident, reverse=True)


def grown_areas(before: Areas, after: Areas) -> list[Area]:
    """List the areas that have more memory now than what was there before, the largest first."""
    resident = {area.start: area.rss for area in before}
    grown = [area for area in after if area.rss > resident.get(area.start, 0)]
    return sorted(grown, key=lambda area: area.rss - resident.get(area.start, 0), reverse=True)


def in_mib(amount: int) -> str:
    """Write a change of some bytes."""
    return f"{amount / MIB:+8.2f} MiB"


def bar(amount: int, largest: int) -> str:
    """Draw a change: full blocks for more memory, light ones for less."""
    length = round(BAR * abs(amount) / largest) if largest else 0
    return ("█" if amount > 0 else "░") * length


def profile(job: Callable[[], object]) -> list[list[Change]]:
    """Run a job some times; return what changed in each round."""
    rounds = []
    for _ in range(ROUNDS):
        before = snapshot()
        job()
        rounds.append(difference(before, snapshot()))
    return rounds


def show(rounds: list[list[Change]]) -> None:
    """Print what each round changed, with bars that can be compared."""
    largest = max((abs(change.resident) for changes in rounds for change in changes), default=0)
    for number, changes in enumerate(rounds, start=1):
        # Less than a bar can show is what Python and the profiler itself need by the way.
        shown = [change for change in changes if abs(change.resident) * 2 * BAR >= max(largest, MIB)]
        for change in shown:
            drawn = bar(change.resident, largest)
            print(f"  round {number}  {change.kind:<12} {in_mib(change.resident)} resident  {drawn}")
        if not shown:
            print(f"  round {number}  nothing to speak of")


def leaking_kind(rounds: list[list[Change]]) -> str | None:
    """Name the kind of memory that has grown by more than a quarter of a MiB in every round; or None."""
    grown = [{change.kind for change in changes if change.resident > MIB // 4} for changes in rounds]
    always = set.intersection(*grown)
    return min(always) if always else None


# ---- three jobs ---------------------------------------------------------------------------------------

cache: dict[int, bytearray] = {}
lost: list[tuple[int, int]] = []


def written(length: int) -> bytearray:
    """Take memory and write to each of its pages: only then is it there."""
    memory = bytearray(length)  # so large a block Python takes from malloc()
    memory[::PAGE_SIZE] = b"x" * (length // PAGE_SIZE)
    return memory


def caching() -> None:
    """Keep 4 MiB for the next time: that is no leak."""
    if 1 not in cache:
        cache[1] = written(4 * MIB)


def careful() -> None:
    """Take 8 MiB, write to it, and give it back. If malloc keeps it for the next time, it does so once."""
    memory = written(8 * MIB)
    del memory


def leaking() -> None:
    """Map 2 MiB, use it, and forget it. No Python object has this memory; tracemalloc would not see it."""
    address = linux.mmap(0, 2 * MIB, Prot.READ | Prot.WRITE, MapFlag.PRIVATE | MapFlag.ANONYMOUS)
    for page in range(0, 2 * MIB, PAGE_SIZE):
        poke(address + page, b"x")
    lost.append((address, 2 * MIB))


def main() -> None:
    """Profile the three jobs."""
    profile(lambda: None)  # what the profiler itself needs is there from now on
    for job in (caching, careful, leaking):
        start = snapshot()
        print(f"{job.__name__}: {job.__doc__}")
        rounds = profile(job)
        show(rounds)
        kind = leaking_kind(rounds)
        if kind is None:
            print("  does not grow from round to round\n")
            continue
        print(f"  leaks: {kind} memory grows in every round. Where most of it is:")
        for area in grown_areas(start, snapshot().where(kind=kind))[:3]:
            print(f"    {area.start:x}-{area.end:x} {area.perms} {area.rss / MIB:.2f} MiB resident")
        print()
    print("All together, at the end:")
    print(snapshot().total(by="kind"))
    for address, length in lost:
        linux.munmap(address, length)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()
