"""Pool: what its blocks are, what is refused, and what another process sees."""

import ctypes
import gc
import resource
import signal
import struct
import sys
import threading
import time

import numpy as np
import pytest

import mmkit
from mmkit import ClosedError, CorruptError, OutOfMemory, Pool, Region
from mmkit.heap import PoolBlock
from support import in_child, sanitized


def test_a_block_is_a_writable_buffer_of_the_size_asked():
    with Pool(100, 2) as pool:
        block = pool.take()
        assert isinstance(block, PoolBlock)
        assert len(block) == 100
        view = memoryview(block)
        assert (view.nbytes, view.format, view.readonly, view.contiguous) == (100, "B", False, True)
        view[:5] = b"hello"
        assert ctypes.string_at(block.address, 5) == b"hello"
        assert bytes(block)[:5] == b"hello"
        view.release()


def test_every_block_is_another_until_it_comes_back():
    with Pool(16, 50) as pool:
        blocks = [pool.take() for _ in range(50)]
        assert len({block.address for block in blocks}) == 50
        assert sorted(block.index for block in blocks) == list(range(50))
        with pytest.raises(OutOfMemory, match="all 50 blocks are taken"):
            pool.take()
        address = blocks[7].address
        pool.give(blocks[7])
        assert pool.take().address == address


def test_giving_twice_is_refused_and_changes_nothing():
    with Pool(16, 2) as pool:
        block = pool.take()
        pool.give(block)
        for call in (lambda: pool.give(block), block.free, lambda: memoryview(block), lambda: len(block)):
            with pytest.raises(ClosedError):
                call()
        assert pool.stats().live == 0
        assert pool.check() == 0


def test_another_pools_block_is_refused():
    with Pool(16, 2) as pool, Pool(16, 2) as other:
        block = other.take()
        with pytest.raises(ValueError, match="another pool's"):
            pool.give(block)
        with pytest.raises(TypeError):
            pool.give(memoryview(block))
        with pytest.raises(TypeError):
            pool.give(None)
        assert other.stats().live == 1
        other.give(block)


def test_giving_under_a_live_view_raises_and_changes_nothing():
    with Pool(16, 2) as pool:
        block = pool.take()
        view = memoryview(block)
        array = np.frombuffer(block, "u1")
        for call in (lambda: pool.give(block), block.free, pool.close):
            with pytest.raises(BufferError):
                call()
        view[0] = 7
        assert array[0] == 7
        view.release()
        with pytest.raises(BufferError):
            pool.give(block)
        del array
        pool.give(block)


def test_a_view_keeps_block_and_pool_alive():
    view = memoryview(Pool(16, 2).take())
    gc.collect()
    view[:] = b"x" * 16
    assert bytes(view) == b"x" * 16


def test_a_block_that_is_dropped_goes_back_to_a_private_pool_and_is_told_on_request():
    with Pool(16, 1, warn=True) as pool:
        pool.give(pool.take())
        with pytest.warns(ResourceWarning, match="without give"):
            pool.take()
        assert pool.stats().live == 0


def test_a_block_that_is_dropped_stays_taken_in_a_shared_pool():
    with Region.anonymous(1 << 16, shared=True) as region, Pool(16, 2, source=region) as pool:
        offset = pool.take().offset
        assert pool.live() == [offset]
        pool.at(offset)
        assert pool.stats().live == 1
        pool.give(pool.at(offset))
        assert pool.live() == []


def test_a_block_goes_back_at_the_end_of_a_with_block():
    with Pool(16, 1) as pool:
        with pool.take() as block:
            assert pool.stats().live == 1
        assert pool.stats().live == 0
        with pytest.raises(ClosedError), block:
            pass
        with pool.take() as block:
            pool.give(block)


def test_after_close_blocks_and_pool_say_so():
    pool = Pool(16, 2)
    block = pool.take()
    pool.close()
    pool.close()
    assert pool.closed
    calls = (
        pool.take,
        lambda: pool.give(block),
        lambda: pool.at(0),
        lambda: memoryview(block),
        lambda: memoryview(pool),
        lambda: pool.array("u1"),
        pool.stats,
        pool.live,
        pool.check,
        pool.repair,
        lambda: block.address,
        lambda: block.offset,
    )
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    assert repr(pool) == "<mmkit.Pool: closed>"
    assert "closed pool" in repr(block)


def test_blocks_say_what_they_are():
    with Pool(16, 2) as pool:
        block = pool.take()
        assert repr(pool) == "<mmkit.Pool: 1 of 2 blocks of 16 B taken>"
        assert repr(block) == f"<mmkit.heap.PoolBlock 0: 16 bytes at {block.address:#x}>"
        pool.give(block)
        assert "given back" in repr(block)
    with pytest.raises(TypeError):
        PoolBlock()


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        ((0, 1), {}),
        ((-1, 1), {}),
        ((1, 0), {}),
        ((1, -5), {}),
        ((1 << 63, 1), {}),
        ((1 << 40, 1 << 30), {}),
        ((16, 1 << 32), {}),
        ((16, (1 << 32) - 1), {}),
        ((16, 4), {"exhausted": "grow"}),
        ((16, 4), {"limit": 8}),
        ((16, 4), {"exhausted": "grow", "limit": 3}),
        ((16, 4), {"exhausted": "grow", "limit": -1}),
        ((16, 4), {"exhausted": "sleep"}),
        ((16, 4), {"on_give": "burn"}),
    ],
)
def test_numbers_and_words_that_make_no_sense_are_refused(arguments, more):
    with pytest.raises(ValueError):
        Pool(*arguments, **more)


def test_a_pool_that_does_not_fit_its_region_says_what_it_needs():
    with Region.anonymous(4096) as region:
        with pytest.raises(ValueError, match=r"need a region of \d+ bytes: this one has 4096"):
            Pool(4096, 4, source=region)
        region.protect(mmkit.Prot.READ)
        with pytest.raises(mmkit.Error, match="written"):
            Pool(16, 4, source=region)
    with pytest.raises(ClosedError):
        Pool(16, 4, source=region)
    with pytest.raises(ClosedError):
        Pool.attach(region)


def test_a_region_stays_open_under_its_pool():
    region = Region.anonymous(4096)
    pool = Pool(16, 4, source=region)
    with pytest.raises(BufferError):
        region.close()
    pool.close()
    region.close()


def test_a_pool_grows_to_its_limit():
    with Pool(64, 2, exhausted="grow", limit=100) as pool:
        blocks = [pool.take() for _ in range(100)]
        assert pool.stats().blocks == 100
        with pytest.raises(OutOfMemory):
            pool.take()
        assert len({block.address for block in blocks}) == 100


def test_a_pool_that_may_grow_takes_no_memory_before():
    with Pool(4096, 1, exhausted="grow", limit=1 << 20) as pool:
        pool.take()
        assert pool._where.resident() < 1 << 20


def test_who_waits_hears_that_the_time_is_up():
    with Pool(16, 1, exhausted="wait") as pool:
        block = pool.take(timeout=5)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="in time"):
            pool.take(timeout=0.01)
        assert time.monotonic() - start >= 0.01
        with pytest.raises(TimeoutError):
            pool.take(timeout=0)
        for bad in (-1, float("nan")):
            with pytest.raises(ValueError):
                pool.take(timeout=bad)
        with pytest.raises(TypeError):
            pool.take(timeout="soon")
        pool.give(block)
    with Pool(16, 1) as pool, pytest.raises(ValueError, match="exhausted='wait'"):
        pool.take(timeout=1)
    with Region.memfd(1 << 16) as region, Pool(16, 1, source=region, exhausted="wait") as pool:
        with pytest.raises(ValueError):
            pool.take(timeout=-1)
        assert pool.stats().live == 0
    with pytest.raises(OutOfMemory), Pool(16, 1) as pool:
        kept = pool.take()
        pool.take()
    del kept


def test_who_waits_gets_the_block_that_another_thread_gives():
    with Pool(16, 1, exhausted="wait") as pool:
        block, taken = pool.take(), []
        thread = threading.Thread(target=lambda: taken.append(pool.take()))
        thread.start()
        while not pool.stats().waits:
            time.sleep(0)
        with pytest.raises(BufferError):
            pool.close()
        pool.give(block)
        thread.join()
        assert taken[0].index == 0


def test_a_signal_handler_runs_and_may_end_the_waiting():
    def give_up(number, frame):
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, give_up)
    try:
        with Pool(16, 1, exhausted="wait") as pool:
            block = pool.take()
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(InterruptedError):
                pool.take()
            pool.give(block)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_blocks_are_zeros_when_that_was_asked():
    with Region.anonymous(1 << 16) as region:
        region[:] = b"\xff" * (1 << 16)
        with Pool(100, 3, source=region, on_give="zero") as pool:
            for _ in range(3):
                blocks = [pool.take() for _ in range(3)]
                for block in blocks:
                    assert bytes(block) == bytes(100)
                    memoryview(block)[:] = b"x" * 100
                for block in blocks:
                    pool.give(block)


def test_what_writes_to_a_poisoned_block_is_found_at_the_next_take():
    with Pool(100, 2, on_give="poison") as pool:
        block = pool.take()
        address = block.address
        pool.give(block)
        assert ctypes.string_at(address, 100) == b"\xdb" * 100
        mmkit.poke(address + 50, b"!")
        with pytest.raises(CorruptError, match=f"{address:#x} was written to after it was given back"):
            pool.take()
        assert pool.take().address != address
        assert pool.stats().quarantined == 1


def test_the_array_is_the_whole_pool():
    kind = np.dtype([("key", "i4"), ("value", "f8")], align=True)
    with Pool(24, 5) as pool:
        array = pool.array(kind)
        assert array.shape == (5,)
        assert not array.flags.owndata
        block = pool.take()
        memoryview(block)[:4] = struct.pack("i", 42)
        assert array["key"][block.index] == 42
        array["value"][block.index] = 0.5
        assert struct.unpack_from("d", block, 8) == (0.5,)
        assert array.ctypes.data + array.strides[0] * block.index == block.address
        pool.give(block)
        with pytest.raises(BufferError):
            pool.close()
        del array
        for bad in ("S25", "V0"):
            with pytest.raises(ValueError):
                pool.array(bad)


def test_padded_blocks_start_on_cache_lines():
    with Pool(24, 3, padded=True) as pool:
        one, two = pool.take(), pool.take()
        assert one.address % 64 == 0
        assert two.address - one.address == 64
        assert pool.array("u8").strides == (64,)


def test_figures_count_what_was_done():
    with Pool(16, 3) as pool:
        blocks = [pool.take(), pool.take()]
        pool.give(blocks.pop())
        blocks += [pool.take(), pool.take()]
        with pytest.raises(OutOfMemory):
            pool.take()
        stats = pool.stats()
        assert (stats.blocks, stats.limit, stats.live, stats.peak, stats.takes) == (3, 3, 3, 3, 4)
        assert (stats.refusals, stats.waits, stats.quarantined) == (1, 0, 0)


def test_a_pool_is_made_once():
    with Pool(16, 1) as pool, pytest.raises(mmkit.Error, match="made once"):
        pool.__init__(16, 1)


def test_another_process_attaches_at_another_address_and_gives_what_was_taken_here():
    with Region.memfd(1 << 16) as region, Pool(200, 20, source=region) as pool:
        pool.take()
        block = pool.take()
        memoryview(block)[:2] = b"hi"
        offset = block.offset

        def child():
            with Region.file(region.fileno(), mode="r+") as mine, Pool.attach(mine) as same:
                assert mine.address != region.address
                there = same.at(offset)
                assert bytes(there)[:2] == b"hi"
                same.give(there)
                answer = same.take()
                memoryview(answer)[:3] = b"yes"
                return answer.offset

        assert bytes(pool.at(in_child(child)))[:3] == b"yes"
        with pytest.raises(ValueError, match="no live block"):
            pool.at(offset + 1)
        with pytest.raises(ValueError, match="at: offset must be between 0"):
            pool.at(-1)
        # Given by the child, and taken again since: not this block's any more.
        with pytest.raises(ValueError, match="given already"):
            pool.give(block)
        assert pool.check() == 0


def test_a_forked_child_has_the_same_shared_pool_and_a_copy_of_a_private_one():
    with Region.anonymous(1 << 16, shared=True) as region:
        shared, private = Pool(16, 4, source=region), Pool(16, 4)
        blocks = shared.take(), private.take()

        def child():
            shared.give(blocks[0])
            private.give(blocks[1])

        in_child(child)
        assert (shared.stats().live, private.stats().live) == (0, 1)
        with pytest.raises(ValueError, match="given already"):
            shared.give(blocks[0])
        private.give(blocks[1])
        shared.close()


def test_a_pool_in_a_file_is_there_in_the_next_run(tmp_path):
    path = tmp_path / "pool"
    path.write_bytes(bytes(1 << 16))
    # A region may start anywhere in a file.
    with Region.file(path, offset=100, mode="r+") as region, Pool(64, 9, source=region) as pool:
        memoryview(pool.take())[:4] = b"kept"
        offset = pool.live()[0]
    with Region.file(path, offset=100, mode="r+") as region, Pool.attach(region) as pool:
        assert pool.live() == [offset]
        assert bytes(pool.at(offset))[:4] == b"kept"


def test_what_is_no_pool_or_a_later_version_is_refused():
    with Region.anonymous(1 << 16) as region:
        with pytest.raises(CorruptError, match="no pool"):
            Pool.attach(region)
        Pool(16, 4, source=region).close()
        start = bytes(region[:64])
        assert start[:8] == b"mmkpool\0"
        region[8:12] = struct.pack("I", 2)
        with pytest.raises(mmkit.Error, match="another version"):
            Pool.attach(region)
        region[8:12] = start[8:12]
        region[16:24] = struct.pack("Q", 1 << 40)
        with pytest.raises(CorruptError):
            Pool.attach(region)
        region[:64] = start
        with pytest.raises(ValueError, match="exhausted"):
            Pool.attach(region, exhausted="grow")
        Pool.attach(region).close()


def test_a_smashed_list_raises_and_is_made_anew():
    with Region.anonymous(1 << 16) as region, Pool(16, 4, source=region) as pool:
        pool.give(pool.take())
        region[64:68] = struct.pack("I", 1000)
        with pytest.raises(CorruptError, match="repair"):
            pool.check()
        with pytest.raises(CorruptError, match="repair"):
            pool.take()
        pool.repair()
        assert pool.check() == 0
        assert len([pool.take() for _ in range(4)]) == 4


def test_threads_share_a_pool():
    def work(mark):
        for _ in range(2000):
            block = pool.take()
            view = memoryview(block)
            view[:] = mark
            assert view == mark
            view.release()
            pool.give(block)

    with Pool(32, 3, exhausted="wait") as pool:
        failures, switch = [], sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:

            def guarded(mark):
                try:
                    work(mark)
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=guarded, args=(bytes([i]) * 32,)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(switch)
        assert failures == []
        assert pool.stats().live == 0
        assert pool.check() == 0


@sanitized
def test_a_process_out_of_address_space_hears_so():
    def child():
        with pytest.raises(OutOfMemory):
            Pool(1 << 20, 1 << 12)
        Pool(16, 10).take()

    in_child(child, limits={resource.RLIMIT_AS: 1 << 31})
