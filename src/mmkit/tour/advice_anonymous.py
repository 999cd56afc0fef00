"""Scenes of advice: memory that no file backs is given back, at once or when the system wants it."""

from __future__ import annotations

import errno

from mmkit import linux
from mmkit.flags import Advice
from mmkit.region import PAGE_SIZE, Region
from mmkit.tour.company import ordinary_pages
from mmkit.tour.engine import Stage, scene
from mmkit.tour.looking import area_facts
from mmkit.tour.pictures import strip
from mmkit.tour.step import Step

__all__ = ["free", "lost"]

_PAGES = 8
_LENGTH = _PAGES * PAGE_SIZE
_HALF = _LENGTH // 2


def _fill(step: Step, region: Region) -> None:
    step.prepare(
        f"region = Region.anonymous({_LENGTH})",
        *ordinary_pages(region),
        f"for at in range(0, {_LENGTH}, {PAGE_SIZE}): region[at:at + 3] = b'abc'",
    )
    for offset in range(0, _LENGTH, PAGE_SIZE):
        region[offset : offset + 3] = b"abc"


@scene("DONTNEED without a file: the contents are gone")
def lost(stage: Stage) -> None:
    """Show that the same advice destroys what no file backs."""
    with Region.anonymous(_LENGTH) as region, stage.step() as step:
        _fill(step, region)
        before = strip("before", region, holds=True)
        step.call(
            "madvise",
            "p",
            _HALF,
            Advice.DONTNEED,
            python=f"region.discard(0, {_HALF})   # advise() takes hints only",
        )
        region.discard(0, _HALF)
        step.answer(0)
        step.show(before, strip("after", region, holds=True))
        step.check(f"pagemap: {region.resident() // PAGE_SIZE} pages left in RAM", region.resident() == _HALF)
        step.check(f"region[0:3] is now {region[0:3]!r}: zeros", region[0:3] == bytes(3))


@scene("FREE: take it when you need it. A store takes a page back")
def free(stage: Stage) -> None:
    """Offer pages to the kernel, and take one back."""
    with Region.anonymous(_LENGTH) as region, stage.step(may_refuse=(errno.EINVAL,)) as step:
        _fill(step, region)
        before, dirty = strip("before", region, holds=True), _dirty(region)
        step.call(
            "madvise",
            "p",
            _LENGTH,
            Advice.FREE,
            python=f"linux.madvise(region.address, {_LENGTH}, Advice.FREE)",
        )
        linux.madvise(region.address, _LENGTH, Advice.FREE)
        step.answer(0)
        now_dirty = _dirty(region)
        step.code('memcpy(p, "new", 3);', 'region[0:3] = b"new"')
        region[0:3] = b"new"
        step.say("not called: a store, by which the first page is no longer on offer")
        step.show(before, strip("after", region, holds=True))
        rest = {region[offset : offset + 3] for offset in range(PAGE_SIZE, _LENGTH, PAGE_SIZE)}
        step.check(f"region[0:3] is {region[0:3]!r}: what was stored since stays", region[0:3] == b"new")
        step.check("each other page holds what it held, or zeros", rest <= {b"abc", bytes(3)})
        step.note(
            f"smaps: Private_Dirty {dirty} before, {now_dirty} right after the call. Such pages the kernel "
            "may take without saving them, when memory is short: nobody promises when"
        )


def _dirty(region: Region) -> str:
    return area_facts(region.address).get("Private_Dirty", "unknown")
