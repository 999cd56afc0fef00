"""Random sequences of operations on secrets of all sizes and kinds, against a model that knows every byte."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mmkit import ClosedError, Secret, supports
from support import PAGE

EXAMPLES = int(os.environ.get("MMKIT_EXAMPLES", "40"))
KINDS = [{}, {"isolated": True}, {"lock": "off"}]
if supports("memfd_secret"):
    KINDS += [{"backend": "memfd_secret"}]


def access_to(addresses: list[int]) -> list[str]:
    """What may be done at each address, by /proc/self/maps."""
    lines = [line.split(None, 2) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [(*(int(end, 16) for end in span.split("-")), perms) for span, perms, _ in lines]
    return [next(perms[:2] for start, end, perms in spans if start <= place < end) for place in addresses]


class SecretMachine(RuleBasedStateMachine):
    """The model: what each live secret holds, and who has it open; and those that were closed."""

    def __init__(self):
        super().__init__()
        # By identity: secrets have no hash.
        self.live: dict[int, tuple[Secret, bytearray]] = {}
        self.entered: list[tuple[Secret, object, memoryview, bool]] = []
        self.closed: list[Secret] = []

    def draw(self, data) -> Secret:
        return data.draw(st.sampled_from([secret for secret, _ in self.live.values()]))

    def content(self, secret: Secret) -> bytearray:
        return self.live[id(secret)][1]

    @rule(length=st.integers(1, 200) | st.integers(1, 3 * PAGE), how=st.sampled_from(KINDS))
    def make(self, length, how):
        secret = Secret(length, **how)
        self.live[id(secret)] = (secret, bytearray(length))

    @rule(content=st.binary(min_size=1, max_size=100))
    def take(self, content):
        source = bytearray(content)
        secret = Secret.take(source)
        assert source == bytes(len(content))
        self.live[id(secret)] = (secret, bytearray(content))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), write=st.booleans())
    def enter(self, data, write):
        secret = self.draw(data)
        opened = secret.open(write=write)
        self.entered.append((secret, opened, opened.__enter__(), write))

    @precondition(lambda self: self.entered)
    @rule(data=st.data())
    def leave(self, data):
        index = data.draw(st.integers(0, len(self.entered) - 1))
        _, opened, view, _ = self.entered.pop(index)
        opened.__exit__(None, None, None)
        with pytest.raises(ValueError, match="released"):
            view[0]

    @precondition(lambda self: any(write for *_, write in self.entered))
    @rule(data=st.data(), byte=st.integers(0, 255))
    def write(self, data, byte):
        secret, _, view, _ = data.draw(st.sampled_from([entry for entry in self.entered if entry[3]]))
        place = data.draw(st.integers(0, len(secret) - 1))
        view[place] = byte
        self.content(secret)[place] = byte

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def wipe(self, data):
        secret = self.draw(data)
        secret.wipe()
        self.content(secret)[:] = bytes(len(secret))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def close(self, data):
        secret = self.draw(data)
        if any(entry[0] is secret for entry in self.entered):
            with pytest.raises(BufferError):
                secret.close()
            return
        secret.close()
        del self.live[id(secret)]
        self.closed.append(secret)

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def use_what_is_closed(self, data):
        secret = data.draw(st.sampled_from(self.closed))
        secret.close()
        with pytest.raises(ClosedError):
            secret.open().__enter__()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def compare(self, data):
        one, other = self.draw(data), self.draw(data)
        assert (one == other) == (self.content(one) == self.content(other))

    @invariant()
    def what_is_open_holds_what_was_written(self):
        for secret, _, view, write in self.entered:
            assert view == self.content(secret)
            assert view.readonly == (not write)

    @invariant()
    def nothing_stands_in_anothers_place(self):
        spans = sorted((secret._address, len(secret)) for secret, _ in self.live.values())
        assert all(start + length + 16 <= after for (start, length), (after, _) in pairwise(spans))

    @invariant()
    def what_stands_alone_is_accessible_only_while_it_is_open(self):
        alone = [secret for secret, _ in self.live.values() if len(secret) > PAGE]
        for secret, access in zip(alone, access_to([secret._address for secret in alone]), strict=True):
            writes = [write for other, _, _, write in self.entered if other is secret]
            assert access == ("rw" if any(writes) else "r-" if writes else "--")

    def teardown(self):
        for _, opened, _, _ in self.entered:
            opened.__exit__(None, None, None)
        for secret, content in self.live.values():
            with secret.open() as view:
                assert view == content
            secret.close()


SecretMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
)

TestSecret = SecretMachine.TestCase
