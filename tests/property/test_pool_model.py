"""Random sequences of operations on a Pool and on an Arena, against models that know every byte."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmkit import Arena, ClosedError, OutOfMemory, Pool, Region

EXAMPLES = int(os.environ.get("MMKIT_EXAMPLES", "40"))


class PoolMachine(RuleBasedStateMachine):
    """The model: the blocks that are live, with their bytes; and those that were given, which must stay dead."""

    @initialize(
        size=st.integers(1, 300),
        count=st.integers(1, 6),
        grows=st.integers(0, 6),
        on_give=st.sampled_from(["keep", "zero", "poison"]),
        padded=st.booleans(),
        shared=st.booleans(),
    )
    def make(self, size, count, grows, on_give, padded, shared):
        self.region = Region.anonymous(1 << 16, shared=True) if shared else None
        growing = {"exhausted": "grow", "limit": count + grows} if grows else {}
        self.pool = Pool(size, count, source=self.region, on_give=on_give, padded=padded, **growing)
        self.size, self.limit, self.on_give = size, count + grows, on_give
        self.live, self.given, self.views = {}, [], {}
        self.takes = 0

    def unseen(self):
        return [block for block in self.live if block not in self.views]

    @rule(data=st.data())
    def take(self, data):
        if len(self.live) == self.limit:
            with pytest.raises(OutOfMemory):
                self.pool.take()
            return
        block = self.pool.take()
        self.takes += 1
        assert block not in self.live
        if self.on_give == "zero":
            assert bytes(block) == bytes(self.size)
        content = data.draw(st.binary(min_size=self.size, max_size=self.size))
        with memoryview(block) as view:
            view[:] = content
        self.live[block] = content

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def give(self, data):
        block = data.draw(st.sampled_from(list(self.live)))
        if block in self.views:
            with pytest.raises(BufferError):
                self.pool.give(block)
            return
        self.pool.give(block)
        del self.live[block]
        self.given.append(block)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def look(self, data):
        block = data.draw(st.sampled_from(list(self.live)))
        self.views.setdefault(block, memoryview(block))

    @precondition(lambda self: self.views)
    @rule()
    def look_away(self):
        self.views.popitem()[1].release()

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def give_again(self, data):
        block = data.draw(st.sampled_from(self.given))
        with pytest.raises(ClosedError):
            self.pool.give(block)

    @precondition(lambda self: self.unseen())
    @rule(data=st.data())
    def give_through_another_borrower(self, data):
        block = data.draw(st.sampled_from(self.unseen()))
        borrowed = self.pool.at(block.offset)
        assert bytes(borrowed) == self.live.pop(block)
        self.pool.give(borrowed)
        with pytest.raises(ValueError):
            self.pool.give(block)
        self.given.append(block)

    @rule()
    def repair(self):
        self.pool.repair()

    @invariant()
    def all_is_as_the_model_says(self):
        if not hasattr(self, "pool"):
            return
        assert self.pool.check() == 0
        stats = self.pool.stats()
        assert (stats.live, stats.takes) == (len(self.live), self.takes)
        assert sorted(block.offset for block in self.live) == self.pool.live()
        for block, content in self.live.items():
            assert bytes(block) == content

    def teardown(self):
        if hasattr(self, "pool"):
            for view in self.views.values():
                view.release()
            self.pool.close()
            if self.region:
                self.region.close()


class ArenaMachine(RuleBasedStateMachine):
    """The model: a stack of blocks with their bytes, and of marks."""

    @initialize(in_region=st.booleans())
    def make(self, in_region):
        self.region = Region.anonymous(1 << 17) if in_region else None
        self.arena = Arena(self.region) if in_region else Arena(limit=1 << 18)
        self.room = 1 << 17 if in_region else 1 << 18
        self.stack, self.gone, self.views = [], [], {}

    def blocks(self):
        return [place for place in self.stack if place[1]]

    @rule(
        size=st.integers(1, 40_000),
        align=st.sampled_from([1, 8, 16, 64, 4096]),
        zero=st.booleans(),
        fill=st.binary(min_size=1, max_size=1),
    )
    def alloc(self, size, align, zero, fill):
        try:
            block = self.arena.alloc(size, align, zero)
        except OutOfMemory:
            assert self.arena.used + size + align > self.room
            return
        assert block.address % align == 0
        if zero:
            assert bytes(block) == bytes(size)
        with memoryview(block) as view:
            view[:] = fill * size
        self.stack.append((block, fill * size))

    @rule()
    def mark(self):
        self.stack.append((self.arena.mark(), None))

    @precondition(lambda self: self.stack)
    @rule(data=st.data())
    def rewind(self, data):
        marks = [i for i, (_, content) in enumerate(self.stack) if content is None]
        index = data.draw(st.sampled_from([-1, *marks]))
        # Marks at the same place stay; blocks behind it go.
        going = [place for place in self.stack[index + 1 :] if place[1] is not None]
        mark = self.stack[index][0] if index >= 0 else None
        if any(block in self.views for block, _ in going):
            with pytest.raises(BufferError):
                self.arena.rewind(mark)
            return
        self.arena.rewind(mark)
        first = next(
            (i for i, place in enumerate(self.stack) if i > index and place[1] is not None), len(self.stack)
        )
        self.gone += self.stack[first:]
        del self.stack[first:]

    @precondition(lambda self: self.blocks())
    @rule(data=st.data())
    def look(self, data):
        block, _ = data.draw(st.sampled_from(self.blocks()))
        self.views.setdefault(block, memoryview(block))

    @precondition(lambda self: self.views)
    @rule()
    def look_away(self):
        self.views.popitem()[1].release()

    @precondition(lambda self: self.blocks())
    @rule(data=st.data())
    def drop(self, data):
        """Forget an object; its bytes stay the arena's."""
        place = data.draw(st.sampled_from(self.blocks()))
        if place[0] not in self.views:
            # Its end still counts for marks behind it; nothing else does.
            self.stack[self.stack.index(place)] = ("dropped", b"")

    @invariant()
    def all_is_as_the_model_says(self):
        if not hasattr(self, "arena"):
            return
        end = 0
        for place, content in self.stack:
            if content:
                assert place.offset >= end
                end = place.offset + len(place)
                assert bytes(place) == content
        for place, content in self.gone:
            if content:
                with pytest.raises(ClosedError):
                    memoryview(place)
            elif content is None:
                with pytest.raises(ValueError):
                    self.arena.rewind(place)
        assert end <= self.arena.used <= self.arena.capacity

    def teardown(self):
        if hasattr(self, "arena"):
            for view in self.views.values():
                view.release()
            self.arena.close()
            if self.region:
                self.region.close()


for machine in (PoolMachine, ArenaMachine):
    machine.TestCase.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=40,
    )

TestPool = PoolMachine.TestCase
TestArena = ArenaMachine.TestCase
