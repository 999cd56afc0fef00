"""A pool of the core as a Python object."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX

from mmkit._native.arguments cimport as_size
from mmkit._native.base cimport MMK_ECLOSED, MMK_ECORRUPT, MMK_ENOTBLOCK, MMK_EFORMAT
from mmkit._native.block cimport Block, BlockOwner, PoolBlock, check_unseen
from mmkit._native.buffers cimport fill_with_bytes
from mmkit._native.region cimport MappedRegion

import time
import warnings

from mmkit.errors import ClosedError, CorruptError, Error, OutOfMemory
from mmkit.hints import failure as system_failure
from mmkit.wording import size as written_size

cdef enum:
    EINTR = 4
    ENOMEM = 12
    ENOSPC = 28
    ENODATA = 61
    ETIMEDOUT = 110
    MAP_PRIVATE = 2


cdef int64_t deadline_of(object timeout) except -1:
    """When to stop waiting, by CLOCK_MONOTONIC, in ns."""
    cdef double seconds = timeout
    if not seconds >= 0:
        raise ValueError(f"timeout is a number of seconds, at least 0, or None: {timeout} is not possible")
    cdef int64_t now = time.monotonic_ns()
    return INT64_MAX if seconds > 9e9 else now + <int64_t>(seconds * 1e9)


@cython.no_gc_clear  # __dealloc__ needs the region
cdef class PoolHandle(BlockOwner):
    """A pool of the core. `mmkit.Pool` is the public class."""

    _kind = "a pool"

    def __dealloc__(self):
        mmk_pool_close(&self.handle)

    cdef int drop(self, Block block) except -1:
        if self.warns:
            return self.drop_warning(block)
        # Refused where the pool is closed, or somebody else gave it.
        mmk_pool_give(&self.handle, &block.own.taken)
        return 0

    cdef int drop_warning(self, Block block) except -1:
        if self.is_open:
            mmk_pool_give(&self.handle, &block.own.taken)
            # Last: a warning may be an error.
            text = f"block {block.own.taken.index} of a pool was dropped without give()"
            warnings.warn(text, ResourceWarning, stacklevel=1)
        return 0

    @staticmethod
    def _bytes_needed(size_t block_size, uint32_t count, uint32_t limit, unsigned flags):
        cdef mmk_pool_geometry geometry = mmk_pool_geometry(block_size, count, limit, flags)
        return mmk_pool_size(&geometry)

    def _create(
        self, MappedRegion region not None, size_t block_size, uint32_t count, uint32_t limit, unsigned flags,
        bint zeros
    ):
        cdef mmk_pool_geometry geometry = mmk_pool_geometry(block_size, count, limit, flags)
        self.check_unmade(region)
        cdef size_t offset = self.start_in(region)
        cdef int error = mmk_pool_create(&self.handle, &region.handle, offset, &geometry, zeros)
        if error == -ENOSPC:
            needed = mmk_pool_size(&geometry) + offset - region.skew
            raise ValueError(
                f"{limit} blocks of {written_size(block_size)} need a region of {needed} bytes: "
                f"this one has {region.size()}"
            )
        self.settle(region, error)

    def _attach(self, MappedRegion region not None):
        self.check_unmade(region)
        self.settle(region, mmk_pool_attach(&self.handle, &region.handle, self.start_in(region)))

    cdef size_t start_in(self, MappedRegion region) noexcept:
        return (region.skew + MMK_POOL_LINE - 1) & ~(MMK_POOL_LINE - 1)

    cdef object opening_failure(self, int error, MappedRegion region):
        if error == -MMK_ECORRUPT:
            return CorruptError("there is no pool at the start of this region, or it is damaged, or cut short")
        if error == -MMK_EFORMAT:
            return Error("the pool in this region was made by another version of mmkit, with another format")
        if error == -ENOMEM:
            return OutOfMemory("there is no memory for the pool's list: the file system of the region is full")
        return BlockOwner.opening_failure(self, error, region)

    cdef int settle(self, MappedRegion region, int error) except -1:
        if error:
            raise self.opening_failure(error, region)
        self.stand_in(region)
        self.size = self.handle.block_size
        self.span = self.handle.stride * self.handle.limit
        self.is_shared = not region.handle.flags & MAP_PRIVATE
        return 0

    def _policy(self, bint waits, bint warns):
        self.waits = waits
        self.warns = warns

    # ---- blocks -------------------------------------------------------------------------------------

    def take(self, timeout=None):
        """Take a block.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most where the pool waits for blocks (``exhausted="wait"``); None: for ever.

        Returns
        -------
        PoolBlock
            Writable memory, until it is given back. What it holds is said by the pool's `on_give`.

        Raises
        ------
        OutOfMemory
            All blocks are taken, and the pool does not wait; or the file system of its region is full.
        TimeoutError
            All blocks are taken, and none came back in time.
        CorruptError
            A poisoned block was written to after it was given back. It is not handed out any more; the next
            `take` takes another.
        ClosedError
            The pool was closed.
        """
        cdef int64_t deadline = INT64_MAX
        if timeout is not None:
            if not self.waits:
                raise ValueError("timeout= is for pools that wait for blocks: make the pool with exhausted='wait'")
            deadline = deadline_of(timeout)
        # Made first: when there is no memory for it, no block is lost.
        cdef PoolBlock block = <PoolBlock>PoolBlock.__new__(PoolBlock)
        cdef int error = mmk_pool_take(&self.handle, &block.own.taken)
        if error:
            self.take_late(&block.own.taken, error, deadline)
        block.owner = self
        block.bytes = block.own.taken.bytes
        block.size = self.size
        block.stays = self.is_shared
        return block

    @cython.final
    cdef int take_late(self, mmk_pool_block *taken, int error, int64_t deadline) except -1:
        """What take does when it cannot just take."""
        if error == -ENOMEM and self.waits:
            # Nobody closes it meanwhile.
            self.exports += 1
            try:
                while True:
                    with nogil:
                        error = mmk_pool_take_until(&self.handle, taken, deadline)
                    if error != -EINTR:
                        break
                    PyErr_CheckSignals()
            finally:
                self.exports -= 1
        if error:
            raise self.failure(error, "take", taken)
        return 0

    def give(self, PoolBlock block not None):
        """Give a block back.

        Parameters
        ----------
        block : PoolBlock
            Of this pool, and nobody's any more after that.

        Raises
        ------
        ClosedError
            It was given already, or the pool is closed.
        BufferError
            Somebody looks at it (memoryview, numpy array); nothing has changed.
        ValueError
            It is another pool's; or somebody else gave it, through a block borrowed by `at`.
        """
        if block.owner is not self:
            raise ValueError("give: the block is another pool's")
        check_unseen(block, "give")
        self.give_back(block)

    def at(self, offset):
        """Borrow the live block at an offset from the start of the pool's region.

        The offset travels between processes, where addresses do not. Dropping a borrowed block gives nothing
        back; `give` does.

        Parameters
        ----------
        offset : int
            As `PoolBlock.offset` said, in bytes.

        Returns
        -------
        PoolBlock

        Raises
        ------
        ValueError
            No live block starts there.
        """
        cdef PoolBlock block = <PoolBlock>PoolBlock.__new__(PoolBlock)
        # A pool that is closed has no region, and the core says so.
        cdef size_t skew = self.region.skew if self.region is not None else 0
        cdef int error = mmk_pool_find(&self.handle, as_size(offset, "at", "offset") + skew, &block.own.taken)
        if error:
            raise self.failure(error, f"at({offset})", NULL)
        block.owner = self
        block.bytes = block.own.taken.bytes
        block.size = self.size
        block.stays = True
        return block

    @cython.final
    cdef object failure(self, int error, str call, const mmk_pool_block *block):
        """The exception for what the core answers."""
        if error == -MMK_ECLOSED:
            return ClosedError(f"{call}: the pool is closed")
        if error == -ENOMEM:
            return OutOfMemory(
                f"{call}: all {self.handle.limit} blocks are taken: give some back, or make the pool larger, or have "
                "it wait (exhausted='wait')"
            )
        if error == -ENODATA:
            return OutOfMemory(f"{call}: there is no memory for another block: the file system of the region is full")
        if error == -ETIMEDOUT:
            return TimeoutError(f"{call}: all {self.handle.limit} blocks are taken, and none came back in time")
        if error == -MMK_ENOTBLOCK:
            return ValueError(f"{call}: no live block of this pool is there: it was given already, or never taken")
        if error == -MMK_ECORRUPT and block is not NULL and block.bytes is not NULL:
            return CorruptError(
                f"{call}: the block at {<size_t>block.bytes:#x} was written to after it was given back; it is not "
                "handed out any more"
            )
        if error == -MMK_ECORRUPT:
            return CorruptError(f"{call}: the pool is damaged: with nobody else using it, repair() makes its list anew")
        return system_failure(error, call)

    @cython.final
    cdef int give_back(self, Block block) except -1:
        """Give a live block that nobody looks at."""
        cdef int error = mmk_pool_give(&self.handle, &block.own.taken)
        block.bytes = NULL
        if error:
            raise self.failure(error, "give", NULL)
        return 0

    # ---- what it holds ------------------------------------------------------------------------------

    def _stats(self):
        cdef mmk_pool_stats stats
        cdef int error
        with nogil:
            error = mmk_pool_statistics(&self.handle, &stats)
        if error:
            raise self.failure(error, "stats", NULL)
        return (
            stats.count, stats.limit, stats.live, stats.peak, stats.quarantined, stats.takes, stats.refusals,
            stats.waits,
        )

    def live(self):
        """Return the offsets of all live blocks in the pool's region, for `at`: in bytes, ascending.

        Returns
        -------
        list of int
        """
        cdef mmk_pool_block block
        cdef uint32_t start = 0
        cdef int error
        offsets = []
        while True:
            error = mmk_pool_next_live(&self.handle, start, &block)
            if error == -MMK_ENOTBLOCK:
                return offsets
            if error:
                raise self.failure(error, "live", NULL)
            offsets.append(block.bytes - self.origin)
            start = block.index + 1

    def check(self):
        """Walk the list of free blocks and the state of each block.

        Nobody may take or give meanwhile, in any process.

        Returns
        -------
        int
            How many blocks are lost: neither live nor to be had, because a process was killed while it took
            or gave them. `repair` brings them back.

        Raises
        ------
        CorruptError
            The list is broken.
        """
        cdef uint32_t lost, damaged
        cdef int error
        with nogil:
            error = mmk_pool_check(&self.handle, &lost, &damaged)
        if error == -MMK_ECORRUPT:
            raise CorruptError(
                f"the pool's list of free blocks is broken at block {damaged}: with nobody else using the pool, "
                "repair() makes the list anew"
            )
        if error:
            raise self.failure(error, "check", NULL)
        return lost

    def repair(self):
        """Make the list of free blocks anew, of all blocks that are not live, lost ones included.

        Nobody may take or give meanwhile, in any process.

        Raises
        ------
        CorruptError
            The pool's counts make no sense: there is nothing to make a list from.
        """
        cdef int error
        with nogil:
            error = mmk_pool_repair(&self.handle)
        if error == -MMK_ECORRUPT:
            raise CorruptError("repair: the counts in the pool's header are damaged")
        if error:
            raise self.failure(error, "repair", NULL)

    @property
    def block_size(self):
        """Bytes of each block."""
        return self.size

    @property
    def _stride(self):
        return self.handle.stride

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if not self.is_open:
            raise self.failure(-MMK_ECLOSED, "view", NULL)
        fill_with_bytes(buffer, self, self.handle.blocks, &self.span, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1

    # ---- life ---------------------------------------------------------------------------------------

    def _close(self):
        if self.exports:
            raise BufferError(
                "close: views of blocks are live (memoryview, numpy array), or a thread waits for a block"
            )
        mmk_pool_close(&self.handle)
        self.is_open = False
