"""Section: huge pages, and pages that guard."""

from __future__ import annotations

import errno
from pathlib import Path

from mmkit import maps, supports
from mmkit.errors import Error
from mmkit.flags import Advice, MapFlag, Prot
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.engine import Section, Stage, scene
from mmkit.tour.faulting import fault_twice
from mmkit.tour.looking import area_facts, permissions
from mmkit.tour.pictures import earlier, strip
from mmkit.wording import size

__all__ = ["SECTION"]

_PAGES = 8


def _huge_page_size() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) * 1024
    raise Error("this kernel was built without huge pages")


@scene("Huge pages from the pool that the administrator set aside")
def from_the_pool(stage: Stage) -> None:
    """Take two huge pages from the system's pool."""
    with stage.step() as step:
        page = _huge_page_size()
        flags, areas = MapFlag.PRIVATE | MapFlag.ANONYMOUS | MapFlag.HUGETLB, maps.read()
        step.call(
            "mmap",
            "NULL",
            2 * page,
            Prot.READ | Prot.WRITE,
            flags,
            -1,
            0,
            assign="p",
            python=f'region = Region.anonymous({2 * page}, hugepages="require")',
        )
        with Region.anonymous(2 * page, hugepages="require") as region:
            step.answer(region.address)
            step.code('memcpy(p, "big", 3);', 'region[0:3] = b"big"')
            step.say("not called: a store, and a page fault")
            region[0:3] = b"big"
            step.show(
                earlier(f"before: {size(page)} a cell", areas, region.address, 2, page=page),
                strip("after a store of 3 bytes", region, page=page, holds=True),
            )
            facts = area_facts(region.address)
            step.check(
                f"/proc/self/smaps: KernelPageSize {facts.get('KernelPageSize')}",
                facts.get("KernelPageSize") == f"{page // 1024} kB",
            )
            step.check(f"one touch brought in {size(region.resident())}", region.resident() == page)


@scene("Ordinary pages, put together to a huge one")
def made_by_the_kernel(stage: Stage) -> None:
    """Have the kernel make a huge page out of ordinary ones."""
    with stage.step(may_refuse=(errno.EINVAL, errno.EBUSY)) as step:
        page = _huge_page_size()
        with Region.anonymous(2 * page) as region:
            # A huge page begins at a multiple of its size, of which two such lengths hold at least one.
            offset = -region.address % page
            inside, count = region.address + offset, page // PAGE_SIZE
            region[offset : offset + 3] = b"big"
            step.prepare(
                f"region = Region.anonymous({2 * page});  at = -region.address % {page}",
                'region[at:at + 3] = b"big"',
            )
            before = strip(f"before: the first {_PAGES} of {count}", inside, _PAGES)
            step.call(
                "madvise",
                "p + at",
                page,
                Advice.COLLAPSE,
                python=f"region.advise(Advice.COLLAPSE, at, {page})",
            )
            region.advise(Advice.COLLAPSE, offset, page)
            step.answer(0)
            step.show(before, strip("after", inside, _PAGES))
            huge = area_facts(inside).get("AnonHugePages")
            step.check(f"/proc/self/smaps: AnonHugePages {huge}", huge == f"{page // 1024} kB")
            resident = region.resident(offset, page)
            step.check(f"pagemap: {size(resident)} in RAM, all {count} pages", resident == page)
            step.check("the 3 bytes are where they were", region[offset : offset + 3] == b"big")


@scene(
    "A guard page: whoever runs into it is stopped",
    "Take it away: the page is there again, as zeros",
)
def guards(stage: Stage) -> None:
    """Put a guard between pages, find it, and take it away."""
    with Region.anonymous(_PAGES * PAGE_SIZE) as region:
        for offset in range(0, len(region), PAGE_SIZE):
            region[offset : offset + 3] = b"abc"
        _install(stage, region)
        _remove(stage, region)


_AT = 4 * PAGE_SIZE


def _install(stage: Stage, region: Region) -> None:
    with stage.step() as step:
        step.prepare(
            f"region = Region.anonymous({len(region)})",
            f"for at in range(0, {len(region)}, {PAGE_SIZE}): region[at:at + 3] = b'abc'",
        )
        before = strip("before", region, holds=True)
        python, inside = f"region.guard({_AT}, {PAGE_SIZE})", region.address + _AT
        if supports(Advice.GUARD_INSTALL):
            step.call("madvise", f"p + {_AT}", PAGE_SIZE, Advice.GUARD_INSTALL, python=python)
            expected, remark = "rw-p", "still: a guard costs no entry there"
        else:
            # What mmkit does before Linux 6.13.
            step.call("mprotect", f"p + {_AT}", PAGE_SIZE, Prot.NONE, python=python)
            expected, remark = "---p", "now: before Linux 6.13 a guard is a protection"
        region.guard(_AT, PAGE_SIZE)
        step.answer(0)
        step.show(before, strip("after", region, holds=True, guards=True))
        fault_twice(
            step,
            f"x = p[{_AT}];",
            f"region[{_AT}]",
            address=inside,
            access="read",
            touch=lambda: region[_AT],
            codes=("SEGV_MAPERR", "SEGV_ACCERR"),
            reasons=("unmapped or guard", "protection"),
        )
        perms = permissions(inside)
        step.check(f"/proc/self/maps: {perms} {remark}", perms == expected)


def _remove(stage: Stage, region: Region) -> None:
    with stage.step() as step:
        before = strip("before", region, holds=True, guards=True)
        python = f"region.unguard({_AT}, {PAGE_SIZE})"
        if supports(Advice.GUARD_REMOVE):
            step.call("madvise", f"p + {_AT}", PAGE_SIZE, Advice.GUARD_REMOVE, python=python)
        else:
            step.call("mprotect", f"p + {_AT}", PAGE_SIZE, Prot.READ | Prot.WRITE, python=python)
        region.unguard(_AT, PAGE_SIZE)
        step.answer(0)
        now = region[_AT : _AT + 3]
        step.check(f"region[{_AT}:{_AT + 3}] is {now!r}", now == bytes(3))
        step.show(before, strip("after", region, holds=True))


SECTION = Section(
    key="pages",
    title="Huge pages, and pages that guard",
    introduction=(
        "Much memory in small pages needs large tables; huge pages, of some MiB each, make work on big "
        "arrays faster. A guard is the opposite of memory: a page that nobody may touch, so that an "
        "overrun stops there instead of destroying what lies behind."
    ),
    scenes=(from_the_pool, made_by_the_kernel, guards),
)
