"""Random sequences of operations on a Heap, against a model: which bytes are whose, and what they hold."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmkit import ClosedError, Heap, OutOfMemory, Region

EXAMPLES = int(os.environ.get("MMKIT_EXAMPLES", "40"))
SIZES = st.one_of(st.integers(1, 300), st.integers(1, 20_000), st.sampled_from([1023, 1024, 1025, 300_000]))


class HeapMachine(RuleBasedStateMachine):
    """`model` has, for each live block, what its bytes are."""

    @initialize(source=st.sampled_from(["mmap", "sbrk", "region", "memfd", "limited"]))
    def make(self, source):
        self.region = None
        if source == "region":
            self.region = Region.anonymous(200_000)
        elif source == "memfd":
            self.region = Region.memfd(200_000)
        limit = 600_000 if source == "limited" else None
        self.heap = Heap(self.region or ("mmap" if source == "limited" else source), limit=limit)
        self.model = {}
        self.freed = []
        self.count = 0

    def teardown(self):
        if not hasattr(self, "heap"):
            return
        for block in self.model:
            block.free()
        assert self.heap.stats().live_blocks == 0
        self.heap.check()
        self.heap.close()
        if self.region:
            self.region.close()

    def pick(self, number):
        return list(self.model)[number % len(self.model)]

    def fill(self, block, size):
        self.count += 1
        contents = bytes((self.count * 31 + i) % 251 for i in range(min(size, 50)))
        contents = (contents * (size // len(contents) + 1))[:size]
        memoryview(block)[:] = contents
        self.model[block] = contents

    @rule(size=SIZES, shift=st.integers(0, 13), zero=st.booleans())
    def alloc(self, size, shift, zero):
        try:
            block = self.heap.alloc(size, 1 << shift, zero)
        except OutOfMemory:
            assert size + sum(map(len, self.model.values())) > 100_000
            return
        assert block.address % (1 << shift) == 0
        if zero:
            assert bytes(block) == bytes(size)
        self.fill(block, size)

    @precondition(lambda self: self.model)
    @rule(number=st.integers(0, 1000))
    def free(self, number):
        block = self.pick(number)
        assert bytes(block) == self.model.pop(block)
        block.free()
        self.freed.append(block)

    @precondition(lambda self: self.model)
    @rule(number=st.integers(0, 1000), size=SIZES)
    def resize(self, number, size):
        block = self.pick(number)
        before = self.model[block]
        try:
            block.resize(size)
        except OutOfMemory:
            assert bytes(block) == before
            return
        kept = min(size, len(before))
        assert bytes(memoryview(block)[:kept]) == before[:kept]
        self.fill(block, size)

    @precondition(lambda self: self.model)
    @rule(number=st.integers(0, 1000))
    def free_under_a_view(self, number):
        block = self.pick(number)
        with memoryview(block):
            with pytest.raises(BufferError):
                block.free()
            with pytest.raises(BufferError):
                block.resize(1)

    @precondition(lambda self: self.freed)
    @rule(number=st.integers(0, 1000))
    def use_after_free(self, number):
        block = self.freed[number % len(self.freed)]
        for use in (block.free, lambda: block.resize(5), lambda: bytes(block)):
            with pytest.raises(ClosedError):
                use()

    @rule()
    def trim(self):
        assert self.heap.trim() >= 0

    @rule()
    def check(self):
        self.heap.check()

    @invariant()
    def bytes_are_whose_they_should_be(self):
        if not hasattr(self, "heap"):
            return
        ranges = sorted((block.address, block.address + len(block)) for block in self.model)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))
        stats = self.heap.stats()
        assert (stats.live_blocks, stats.live_bytes) == (
            len(self.model),
            sum(map(len, self.model.values())),
        )
        for block, contents in self.model.items():
            assert bytes(block) == contents


TestHeapModel = HeapMachine.TestCase
TestHeapModel.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
