"""Random sequences of operations on a Region, against a model in plain Python.

After each step the bytes, the kernel's protection of every page, and what is locked are compared with what
the model says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

import mmkit
from mmkit import Advice, Prot, Region
from support import PAGE, SANITIZED, areas, locked_bytes, perms

PAGES = 8
RESERVE = 16
PROTS = st.sampled_from([Prot.NONE, Prot.READ, Prot.READ | Prot.WRITE])
EXAMPLES = int(os.environ.get("MMKIT_EXAMPLES", "40"))


@dataclass
class Block:
    """A `protected` block of the model."""

    prot: Prot
    pages: range
    real: mmkit._native.pages.Protection


@dataclass
class Model:
    data: bytearray
    prots: list[Prot]
    locks: list[int]
    guarded: list[bool]
    blocks: list[Block] = field(default_factory=list)
    views: list[tuple[range, bool, memoryview]] = field(default_factory=list)
    whole: Prot = Prot.READ | Prot.WRITE  # what the region as a whole was last given: new pages get it

    def prot(self, page: int) -> Prot:
        for block in reversed(self.blocks):
            if page in block.pages:
                return block.prot
        return self.prots[page]

    def seen(self, pages: range, writable: bool = False) -> bool:
        return any(
            view
            and set(pages) & set(range(view.start // PAGE, -(-view.stop // PAGE)))
            and (can_write or not writable)
            for view, can_write, _ in self.views
        )

    def loses(self, pages: range, prot: Prot) -> bool:
        if Prot.READ not in prot and self.seen(pages):
            return True
        return Prot.WRITE not in prot and self.seen(pages, writable=True)


class RegionMachine(RuleBasedStateMachine):
    blocks = Bundle("blocks")
    views = Bundle("views")

    @initialize(
        kind=st.sampled_from(["anonymous", "guarded", "reserved", "shared", "memfd"]),
        length=st.integers(1, PAGES * PAGE),
    )
    def make(self, kind, length):
        self.resizable = kind != "shared"
        self.kind = kind
        self.region = {
            "anonymous": lambda: Region.anonymous(length),
            "guarded": lambda: Region.anonymous(length, guard=True),
            "reserved": lambda: Region.anonymous(length, reserve=RESERVE * PAGE),
            "shared": lambda: Region.anonymous(length, shared=True),
            "memfd": lambda: Region.memfd(length),
        }[kind]()
        pages = -(-length // PAGE)
        self.model = Model(bytearray(length), [Prot.READ | Prot.WRITE] * pages, [0] * pages, [False] * pages)
        self.locked_before = locked_bytes()

    def teardown(self):
        if not hasattr(self, "region"):
            return
        for *_, view in self.model.views:
            view.release()
        for block in self.model.blocks:
            block.real.release()
        address = self.region.address
        self.region.close()
        assert perms(address) == "---p"
        assert locked_bytes() == self.locked_before

    def span(self, offset, length):
        offset = min(offset, len(self.model.data))
        return offset, min(length, len(self.model.data) - offset)

    def wide(self, offset, length):
        return range(offset // PAGE, -(-(offset + length) // PAGE)) if length else range(0)

    def narrow(self, offset, length):
        end = offset + length
        last = len(self.model.prots) if end == len(self.model.data) else end // PAGE
        return range(-(-offset // PAGE), last) if length else range(0)

    def accessible(self, offset, length, need):
        pages = self.wide(offset, length)
        return all(need in self.model.prot(page) for page in pages) and not any(
            self.model.guarded[p] for p in pages
        )

    OFFSETS = st.integers(0, RESERVE * PAGE)
    LENGTHS = st.integers(0, RESERVE * PAGE) | st.just(0) | st.just(PAGE)

    @rule(offset=OFFSETS, length=LENGTHS, byte=st.integers(0, 255))
    def write(self, offset, length, byte):
        offset, length = self.span(offset, length)
        if any(self.model.guarded[page] for page in self.wide(offset, length)):
            return
        data = bytes([byte]) * length
        if self.accessible(offset, length, Prot.WRITE):
            self.region[offset : offset + length] = data
            self.model.data[offset : offset + length] = data
        else:
            with pytest.raises(mmkit.MemoryFault):
                self.region[offset : offset + length] = data

    @rule(offset=OFFSETS, length=LENGTHS, prot=PROTS)
    def protect(self, offset, length, prot):
        offset, length = self.span(offset, length)
        pages = self.wide(offset, length)
        if self.model.loses(pages, prot):
            with pytest.raises(BufferError):
                self.region.protect(prot, offset, length)
            return
        start, covered = self.region.protect(prot, offset, length)
        if length:
            assert (start, start + covered) == (
                pages.start * PAGE,
                min(pages.stop * PAGE, len(self.model.data)),
            )
        for page in pages:
            self.model.prots[page] = prot
        if len(pages) == len(self.model.prots):
            self.model.whole = prot

    @rule(target=blocks, offset=OFFSETS, length=LENGTHS, prot=PROTS)
    def enter_block(self, offset, length, prot):
        offset, length = self.span(offset, length)
        pages = self.wide(offset, length)
        real = self.region.protected(prot, offset, length)
        block = Block(prot, pages, real)
        if self.model.loses(pages, prot):
            with pytest.raises(BufferError):
                real.__enter__()
            block.pages = range(0)
        else:
            real.__enter__()
        self.model.blocks.append(block)
        return block

    @rule(block=consumes(blocks))
    def leave_block(self, block):
        if block not in self.model.blocks:
            return
        position = self.model.blocks.index(block)
        self.model.blocks.remove(block)
        # What is in force below may differ from page to page.
        pages = [page for page in block.pages if page < len(self.model.prots)]
        if any(self.model.loses(range(page, page + 1), self.model.prot(page)) for page in pages):
            self.model.blocks.insert(position, block)
            with pytest.raises(BufferError):
                block.real.release()
        else:
            block.real.release()

    @rule(offset=OFFSETS, length=LENGTHS)
    def discard(self, offset, length):
        offset, length = self.span(offset, length)
        pages = self.narrow(offset, length)
        if not pages:
            return
        if self.model.seen(pages):
            with pytest.raises(BufferError):
                self.region.discard(offset, length)
        elif any(self.model.locks[page] for page in pages):
            with pytest.raises(mmkit.SyscallError):
                self.region.discard(offset, length)
        else:
            self.region.discard(offset, length)
            if self.kind not in ("shared", "memfd"):
                end = min(pages.stop * PAGE, len(self.model.data))
                self.model.data[pages.start * PAGE : end] = bytes(max(0, end - pages.start * PAGE))

    # EINVAL on locked pages may come after some of the range was discarded: so the model keeps locks and
    # discards apart by checking first. A guard, too, refuses locked pages.

    @precondition(lambda self: not any(self.model.locks))
    @rule(offset=OFFSETS, length=LENGTHS)
    def guard(self, offset, length):
        offset, length = self.span(offset, length)
        pages = self.narrow(offset, length)
        if pages and self.model.seen(pages):
            with pytest.raises(BufferError):
                self.region.guard(offset, length)
            return
        self.region.guard(offset, length)
        for page in pages:
            self.model.guarded[page] = True
            if self.kind not in ("shared", "memfd"):
                end = min((page + 1) * PAGE, len(self.model.data))
                self.model.data[page * PAGE : end] = bytes(end - page * PAGE)

    @rule(offset=OFFSETS, length=LENGTHS)
    def unguard(self, offset, length):
        offset, length = self.span(offset, length)
        self.region.unguard(offset, length)
        for page in self.narrow(offset, length):
            self.model.guarded[page] = False

    @rule(offset=OFFSETS, length=LENGTHS)
    def punch(self, offset, length):
        offset, length = self.span(offset, length)
        pages = self.wide(offset, length)
        if any(
            self.model.locks[p] or self.model.guarded[p] or Prot.WRITE not in self.model.prot(p)
            for p in pages
        ):
            return
        view = range(offset, offset + length)
        seen = length and any(set(view) & set(r) for r, _, _ in self.model.views)
        if seen:
            with pytest.raises(BufferError):
                self.region.punch(offset, length)
        else:
            assert self.region.punch(offset, length) == (offset, length)
            self.model.data[offset : offset + length] = bytes(length)

    @precondition(lambda self: not SANITIZED)  # whose mlock does nothing
    @rule(offset=OFFSETS, length=LENGTHS)
    def lock(self, offset, length):
        offset, length = self.span(offset, length)
        pages = self.wide(offset, length)
        bad = any(
            self.model.guarded[p] or self.model.prot(p) == Prot.NONE for p in pages if not self.model.locks[p]
        )
        if bad:
            with pytest.raises(mmkit.SyscallError):
                self.region.lock(offset, length)
        else:
            self.region.lock(offset, length)
            for page in pages:
                self.model.locks[page] += 1

    @rule(offset=OFFSETS, length=LENGTHS)
    def unlock(self, offset, length):
        offset, length = self.span(offset, length)
        self.region.unlock(offset, length)
        for page in self.wide(offset, length):
            self.model.locks[page] = max(0, self.model.locks[page] - 1)

    @rule(
        advice=st.sampled_from(
            [Advice.NORMAL, Advice.RANDOM, Advice.SEQUENTIAL, Advice.WILLNEED, Advice.COLD]
        )
    )
    def advise(self, advice):
        try:
            self.region.advise(advice)
        except mmkit.SyscallError:
            assert advice is Advice.COLD  # refused on locked pages
            assert any(self.model.locks)

    @rule(target=views, offset=OFFSETS, length=LENGTHS)
    def open_view(self, offset, length):
        offset, length = self.span(offset, length)
        pages = self.wide(offset, length)
        prots = [self.model.prot(page) for page in pages]
        if not all(Prot.READ in prot for prot in prots):
            with pytest.raises(BufferError):
                self.region.view(offset, offset + length)
            return None
        view = self.region.view(offset, offset + length)
        assert len(view) == length
        if length:
            assert view.readonly == (not all(Prot.WRITE in prot for prot in prots))
        entry = (range(offset, offset + length), not view.readonly, view)
        self.model.views.append(entry)
        return entry

    @rule(entry=consumes(views))
    def release_view(self, entry):
        if entry:
            entry[2].release()
            if entry in self.model.views:
                self.model.views.remove(entry)

    @precondition(lambda self: self.resizable)
    @rule(length=st.integers(1, RESERVE * PAGE))
    def resize(self, length):
        old = len(self.model.data)
        if length < old and any(view and view.stop > length for view, _, _ in self.model.views):
            with pytest.raises(BufferError):
                self.region.resize(length)
            return
        tail_page = (length - 1) // PAGE
        if length < old and (self.model.guarded[tail_page] or Prot.WRITE not in self.model.prot(tail_page)):
            return  # what is cut off inside a page that cannot be written stays in it
        address = self.region.address
        try:
            self.region.resize(length)
        except BufferError:
            assert self.model.views
            return
        except mmkit.Error:
            assert length > old
            return
        if self.region.address != address:
            assert not self.model.views
        pages = -(-length // PAGE)
        model = self.model
        model.data = model.data[:length] + bytes(max(0, length - len(model.data)))
        model.prots = model.prots[:pages] + [model.whole] * (pages - len(model.prots))
        model.locks = model.locks[:pages] + [0] * (pages - len(model.locks))
        model.guarded = model.guarded[:pages] + [False] * (pages - len(model.guarded))
        for block in model.blocks:
            block.pages = range(block.pages.start, min(block.pages.stop, pages))

    @invariant()
    def the_kernel_agrees_with_the_model(self):
        if not hasattr(self, "region"):
            return
        model = self.model
        assert len(self.region) == len(model.data)
        address = self.region.address
        near = [area for area in areas() if area[1] > address and area[0] < address + len(model.prots) * PAGE]
        for page in range(len(model.prots)):
            text = next(p for start, end, p in near if start <= address + page * PAGE < end)
            prot = model.prot(page)
            assert text[:2] == ("r" if Prot.READ in prot else "-") + ("w" if Prot.WRITE in prot else "-"), (
                page
            )
            start, end = page * PAGE, min((page + 1) * PAGE, len(model.data))
            if Prot.READ in prot and not model.guarded[page]:
                assert self.region[start:end] == model.data[start:end], page
        assert locked_bytes() - self.locked_before == sum(1 for count in model.locks if count) * PAGE


RegionMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # explaining takes minutes here
    suppress_health_check=list(HealthCheck),
)
TestRegionAgainstAModel = RegionMachine.TestCase
