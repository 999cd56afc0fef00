"""Python processes at one shared pool, killed at random instants: what is left is whole."""

import os
import random
import signal
import time

from mmkit import OutOfMemory, Pool, Region

BLOCKS, SIZE, HELD, WORKERS = 64, 64, 4, 3
LONG = "MMKIT_STRESS_SECONDS" in os.environ
#: At least so many kills; the long form runs its time out as well.
KILLS = 300 if LONG else 36
SECONDS = float(os.environ.get("MMKIT_STRESS_SECONDS", "0"))
KILLS_AT_ONCE = 6


def work(region, ready):
    """Take, write, look whether what was written is there, give. Never returns."""
    mark = os.getpid().to_bytes(8, "little") * (SIZE // 8)
    pool = Pool.attach(region)
    os.write(ready, b"x")
    turn = 0
    while True:
        held = []
        try:
            held += [pool.take() for _ in range(1 + turn % HELD)]
        except OutOfMemory:
            time.sleep(0)
        for block in held:
            with memoryview(block) as view:
                view[:] = mark
        for block in held:
            with memoryview(block) as view:
                if view != mark:
                    os._exit(1)
            pool.give(block)
        turn += 1


def start(region):
    reader, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(region, ready)
        finally:
            os._exit(2)
    os.close(ready)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "a block was handed out twice, or a call failed"


def test_processes_killed_at_random_leave_a_pool_that_is_whole():
    random_moment, end, kills = random.Random(1), time.monotonic() + SECONDS, 0
    with Region.memfd(1 << 16) as region, Pool(SIZE, BLOCKS, source=region) as pool:
        while kills < KILLS or time.monotonic() < end:
            workers = [start(region) for _ in range(WORKERS)]
            for _ in range(KILLS_AT_ONCE):
                time.sleep(random_moment.random() / 500)
                kill(workers.pop(0))
                workers.append(start(region))
            for pid in workers:
                kill(pid)
            killed = KILLS_AT_ONCE + WORKERS
            kills += killed
            lost, live = pool.check(), pool.live()
            assert lost <= killed
            assert lost + len(live) <= killed * HELD
            for offset in live:
                pool.give(pool.at(offset))
            pool.repair()
            assert pool.check() == 0
            blocks = [pool.take() for _ in range(BLOCKS)]
            assert len({block.offset for block in blocks}) == BLOCKS
            for block in blocks:
                pool.give(block)
