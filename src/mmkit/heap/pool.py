"""The `Pool`: blocks of one size, for threads and processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from mmkit._native.pool import PoolHandle
from mmkit._native.region import adopt_methods
from mmkit.leaving import Closing
from mmkit.region import Region
from mmkit.wording import size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

__all__ = ["Pool", "PoolStats"]

# core/include/mmkit/pool.h
_PADDED = 1
_ON_GIVE = {"keep": 0, "zero": 2, "poison": 4}
_MOST = (1 << 32) - 2

Exhausted = Literal["error", "wait", "grow"]
OnGive = Literal["keep", "zero", "poison"]


class PoolStats(NamedTuple):
    """What a pool holds, in blocks, and what it did, in all processes together."""

    #: Blocks there are, and that it can grow to.
    blocks: int
    limit: int
    #: Taken and not given back.
    live: int
    #: The most that were live at one time. The memory of others was never touched.
    peak: int
    #: Written to after they were given back, and so not handed out any more.
    quarantined: int
    #: Blocks taken since the pool was made (of each block, modulo 2**30).
    takes: int
    #: Takes that found no block, and times that one slept for a block.
    refusals: int
    waits: int


@adopt_methods
class Pool(PoolHandle, Closing):
    """Blocks of one size, taken and given back in constant time and without a lock.

    Parameters
    ----------
    block_size
        Bytes of a block.
    count
        Blocks.
    source
        A `Region` for the pool to lie in, at its start, and which stays open as long as the pool. What was
        there is overwritten, a pool that other processes use too, but not what stands in this region object;
        in a shared region other processes `attach`. None: private memory of its own.
    exhausted
        What `take` does when all blocks are taken: ``"error"`` raises `OutOfMemory`; ``"wait"`` waits for one
        to come back; ``"grow"`` doubles the number of blocks, up to `limit`, and then raises.
    limit
        Blocks to grow to at most, for which address space is held from the start, and memory found when they
        are first used.
    on_give
        What happens to the bytes of a block that is given back: ``"keep"``; ``"zero"``: blocks are zeros when
        they are taken; ``"poison"``: they are filled with 0xDB, and a `take` that finds others raises
        `CorruptError`.
    padded
        Let no two blocks share a cache line, for blocks that different threads write to.
    warn
        Issue a `ResourceWarning` for each block that is dropped without `give`. (A block of a shared pool
        that is dropped stays taken.) Python shows these with ``-X dev`` or ``-W default``.

    A pool is a buffer itself: all its blocks in a row.

    Raises
    ------
    ValueError
        Numbers that make no sense, or a region that is too small.
    OutOfMemory
        No memory for the pool.
    Error
        A heap, an arena or another pool stands in the region.

    Notes
    -----
    Blocks are aligned to 16 bytes, to a cache line if `padded`, and to 4096 if they are a multiple of that.

    A process that is killed while it takes or gives a block loses that block at most: `check` counts such
    blocks, and `repair` brings them back. Blocks that it had taken stay live: `live` lists them, and `at`
    borrows one to give it. What is refused across processes is refused by the state that each block has in
    the pool; a live view in another process is not known here.

    A forked child has a copy of a pool in private memory, and the same pool where the region is shared.

    References
    ----------
    R. K. Treiber, "Systems programming: coping with parallelism", IBM RJ 5118, 1986; futex(2)

    Examples
    --------
    >>> import mmkit
    >>> with mmkit.Pool(256, 100, on_give="zero") as pool:
    ...     block = pool.take()
    ...     memoryview(block)[:5] = b"hello"
    ...     pool.give(block)
    ...     pool.stats().live
    0
    """

    __slots__ = ()

    def __init__(
        self,
        block_size: int,
        count: int,
        *,
        source: Region | None = None,
        exhausted: Exhausted = "error",
        limit: int | None = None,
        on_give: OnGive = "keep",
        padded: bool = False,
        warn: bool = False,
    ) -> None:
        if block_size < 1 or count < 1:
            raise ValueError(
                "a pool has blocks of at least one byte, and at least one of them: "
                f"{count} of {block_size} bytes are not possible"
            )
        if exhausted not in ("error", "wait", "grow"):
            raise ValueError(f"exhausted must be 'error', 'wait' or 'grow', not {exhausted!r}")
        if on_give not in _ON_GIVE:
            raise ValueError(f"on_give must be 'keep', 'zero' or 'poison', not {on_give!r}")
        if (exhausted == "grow") != (limit is not None):
            raise ValueError("exhausted='grow' and limit=, the blocks to grow to, go together")
        limit = count if limit is None else limit
        flags = _ON_GIVE[on_give] | (_PADDED if padded else 0)
        needed = (
            self._bytes_needed(block_size, count, limit, flags) if self._is_possible(block_size, limit) else 0
        )
        if limit < count or not needed:
            raise ValueError(
                f"{count} to {limit} blocks of {block_size} bytes are not possible: a pool grows, has at "
                f"most {_MOST} blocks, and fits into an address space"
            )
        if source is None:
            # What it may grow to is not counted against the commit limit: it is found, or not, on first use.
            region = Region.anonymous(needed, noreserve=limit > count)
            self._create(region, block_size, count, limit, flags, True)
        else:
            self._create(source, block_size, count, limit, flags, False)
        self._policy(exhausted == "wait", warn)

    @staticmethod
    def _is_possible(block_size: int, limit: int) -> bool:
        return block_size < 1 << 62 and 0 < limit <= _MOST

    @classmethod
    def attach(
        cls, region: Region, *, exhausted: Literal["error", "wait"] = "error", warn: bool = False
    ) -> Self:
        """Use the pool that another process, or an earlier run, made in a region.

        Parameters
        ----------
        region
            The memory that the pool was made in, mapped here.
        exhausted
            What `take` does here when all blocks are taken; a pool that can grow grows first.
        warn
            As for a new pool.

        Raises
        ------
        CorruptError
            There is no pool at the start of the region, or it is damaged.
        Error
            It has a format that this version does not know; or an arena stands in the region.
        """
        if exhausted not in ("error", "wait"):
            raise ValueError(f"exhausted must be 'error' or 'wait', not {exhausted!r}")
        pool = cls.__new__(cls)
        pool._attach(region)
        pool._policy(exhausted == "wait", warn)
        return pool

    def array(self, dtype: DTypeLike) -> np.ndarray[Any, np.dtype[Any]]:
        """Return the whole pool as one numpy array without copying: an element for each block, live or not.

        Parameters
        ----------
        dtype
            Of the elements: no larger than a block. Structured ones give the blocks fields.

        Returns
        -------
        numpy.ndarray
            One-dimensional, as long as the pool has blocks now; element `PoolBlock.index` is that block. It
            keeps the pool from being closed, but no block from being given.

        Raises
        ------
        ValueError
            `dtype` has no size, or is larger than a block.
        """
        try:
            import numpy as np
        except ImportError as error:
            raise ImportError("Pool.array needs numpy: pip install 'mmkit[numpy]'") from error
        kind = np.dtype(dtype)
        if not 0 < kind.itemsize <= self.block_size:
            raise ValueError(
                f"a {kind} has {kind.itemsize} bytes: blocks of this pool have {self.block_size}"
            )
        count = self.stats().blocks
        # ndarray() holds the object behind a buffer, but not the buffer: frombuffer() does.
        return np.ndarray((count,), kind, np.frombuffer(memoryview(self), "u1"), 0, (self._stride,))

    def stats(self) -> PoolStats:
        """Return what the pool holds and did; each figure is right for some moment of the call."""
        return PoolStats(*self._stats())

    # ---- life ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop using the pool; blocks that are left cannot be used any more here.

        A pool in a region of the caller's stays there. Closing twice does nothing.

        Raises
        ------
        BufferError
            Somebody looks at a block or at the array, or waits for a block; nothing has changed.
        """
        self._close()

    def __repr__(self) -> str:
        if self.closed:
            return "<mmkit.Pool: closed>"
        stats = self.stats()
        return f"<mmkit.Pool: {stats.live} of {stats.blocks} blocks of {size(self.block_size)} taken>"
