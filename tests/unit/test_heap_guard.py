"""`Heap(guard=True)`: what an access beyond a block, or to a freed one, meets."""

import ctypes
import re
import signal

import pytest

import mmkit
from mmkit import CorruptError, Heap, MemoryFault, Region
from support import SANITIZED, run


def test_an_access_beyond_the_block_faults():
    with Heap(guard=True) as heap:
        block = heap.alloc(32, zero=True)
        assert mmkit.peek(block.address, 32) == bytes(32)
        for access in (lambda at: mmkit.peek(at, 1), lambda at: mmkit.poke(at, b"x")):
            with pytest.raises(MemoryFault):
                access(block.address + 32)


def test_a_freed_block_and_where_a_block_was_before_it_was_resized_fault():
    with Heap(guard=True) as heap:
        block = heap.alloc(100)
        with memoryview(block) as view:
            view[:] = b"a" * 100
        before = block.address
        block.resize(200)
        assert bytes(block)[:100] == b"a" * 100
        now = block.address
        block.free()
        for address in (before, now):
            with pytest.raises(MemoryFault):
                mmkit.peek(address, 1)


def test_a_write_to_what_alignment_left_is_found_by_check():
    with Heap(guard=True) as heap:
        block = heap.alloc(20)
        ctypes.memset(block.address + 20, 0, 1)
        with pytest.raises(CorruptError, match=f"{block.address + 20:#x}"):
            heap.check()
        ctypes.memset(block.address + 20, 0xCB, 1)
        heap.check()


@pytest.mark.skipif(SANITIZED, reason="a sanitizer reports the fault itself")
def test_c_code_that_runs_past_a_block_ends_the_process_and_one_line_names_the_block():
    done = run(
        "import ctypes, mmkit, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "block = mmkit.Heap(guard=True).alloc(48)\n"
        "ctypes.memset(block.address, 0, 49)\n"
    )
    assert done.returncode == -signal.SIGSEGV
    line = "mmkit: out of bounds: write at 0x[0-9a-f]+, 0 bytes past the end of the block of 48 bytes at 0x[0-9a-f]+\n"
    assert re.fullmatch(line, done.stderr)


def test_other_sources_cannot_be_guarded():
    with Region.anonymous(1 << 20) as region:
        for source in (region, "sbrk"):
            with pytest.raises(ValueError, match="guard=True"):
                Heap(source, guard=True)
