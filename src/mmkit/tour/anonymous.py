"""Section: memory with no file behind it."""

from __future__ import annotations

from mmkit import maps
from mmkit.flags import MapFlag, Prot
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.company import ordinary_pages
from mmkit.tour.engine import Section, Stage, scene
from mmkit.tour.looking import permissions
from mmkit.tour.pictures import earlier, strip

__all__ = ["SECTION"]

_PAGES = 8
_LENGTH = _PAGES * PAGE_SIZE
_READ_WRITE = Prot.READ | Prot.WRITE


@scene(
    f"Take {_PAGES} pages: addresses, and nothing behind them yet",
    "Touch three pages: those, and only those, get memory",
    "Give it back: the addresses are free again",
)
def zeros(stage: Stage) -> None:
    """Take address space, see memory arrive as it is touched, and give all of it back."""
    flags, areas = MapFlag.PRIVATE | MapFlag.ANONYMOUS, maps.read()
    with stage.step() as step:
        step.call(
            "mmap",
            "NULL",
            _LENGTH,
            _READ_WRITE,
            flags,
            -1,
            0,
            assign="p",
            python=f"region = Region.anonymous({_LENGTH})",
        )
        region = Region.anonymous(_LENGTH)
        step.answer(region.address)
        step.show(earlier("before", areas, region.address, _PAGES), strip("after", region))
        step.check(
            f"/proc/self/maps: {permissions(region.address)}, p for private",
            permissions(region.address) == "rw-p",
        )
        step.check("/proc/self/pagemap, where each page is: none of it is in RAM", region.resident() == 0)
    _touch(stage, region)
    with stage.step() as step:
        address, before = region.address, strip("before", region, holds=True)
        step.call(
            "munmap",
            "p",
            _LENGTH,
            python="region.close();  del region   # as long as it lives, nothing else gets its addresses",
        )
        region.close()
        del region
        step.answer(0)
        step.show(before, strip("after", address, _PAGES))
        step.check("/proc/self/maps: nothing is mapped there", permissions(address) == "")


def _touch(stage: Stage, region: Region) -> None:
    with stage.step() as step:
        step.prepare(*ordinary_pages(region))
        before = strip("before", region, holds=True)
        offsets = 0, 3 * PAGE_SIZE, 4 * PAGE_SIZE
        step.code(
            " = ".join(f"p[{offset}]" for offset in offsets) + " = 'x';",
            f"for offset in {offsets}: region[offset] = ord('x')",
        )
        for offset in offsets:
            region[offset] = ord("x")
        step.say("not called: each first touch is a page fault, which the kernel serves")
        step.show(before, strip("after", region, holds=True))
        resident = region.resident()
        step.check(
            f"pagemap: {resident} bytes in RAM, {resident // PAGE_SIZE} pages", resident == 3 * PAGE_SIZE
        )
        step.check("what nobody wrote reads as zeros", region[1:PAGE_SIZE] == bytes(PAGE_SIZE - 1))


@scene("Grow in place, into addresses held for it")
def growing(stage: Stage) -> None:
    """Grow in place, into addresses that were held for it."""
    reserve = _LENGTH
    with Region.anonymous(_LENGTH // 2, reserve=reserve) as region:
        region[0:3] = b"old"
        with stage.step() as step:
            step.prepare(
                f"region = Region.anonymous({_LENGTH // 2}, reserve={reserve})", 'region[0:3] = b"old"'
            )
            before = strip("before", region.address, _PAGES, holds=True)
            step.call(
                "mprotect",
                f"p + {_LENGTH // 2}",
                _LENGTH // 2,
                _READ_WRITE,
                python=f"region.resize({_LENGTH})",
            )
            address = region.address
            region.resize(_LENGTH)
            step.answer(0)
            step.code(
                f'memcpy(p + {_LENGTH // 2}, "new", 3);',
                f'region[{_LENGTH // 2}:{_LENGTH // 2 + 3}] = b"new"',
            )
            step.say("not called: a store, the first touch of the new part")
            region[_LENGTH // 2 : _LENGTH // 2 + 3] = b"new"
            step.show(before, strip("after", region.address, _PAGES, holds=True))
            step.check(
                "it has not moved, and holds what it held",
                region.address == address and region[0:3] == b"old",
            )


SECTION = Section(
    key="anonymous",
    title="Memory without a file: mmap",
    introduction=(
        "Most memory has no file behind it and starts as zeros. Asking for it costs next to nothing: the "
        "kernel hands out addresses only. Memory itself arrives page by page, when each is first touched."
    ),
    scenes=(zeros, growing),
)
