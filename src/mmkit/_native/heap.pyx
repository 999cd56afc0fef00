"""A heap of the core as a Python object."""

cimport cython
from cpython.exc cimport PyErr_Clear
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.number cimport PyNumber_Index
from libc.errno cimport errno
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as c_open
from posix.unistd cimport close as c_close

from mmkit._native.arguments cimport as_size
from mmkit._native.base cimport MMK_ECLOSED, MMK_ECORRUPT, MMK_ENOTBLOCK, MMK_EUNSUPPORTED, MMK_EFORMAT
from mmkit._native.block cimport Block, BlockOwner, HeapBlock, check_unseen
from mmkit._native.region cimport MappedRegion

import sys
import warnings

from mmkit.errors import ClosedError, CorruptError, Error, OutOfMemory
from mmkit.hints import failure as system_failure
from mmkit.wording import size as written_size

cdef extern from "Python.h":
    # Its error is looked at, and cleared, where it is not above 0.
    long PyLong_AsLong(object number) noexcept

cdef enum:
    # Above this much memory to write, other threads may have the GIL; releasing it costs 25 to 40 ns.
    QUICK = 256 * 1024
    EINVAL = 22
    EEXIST = 17
    ENOMEM = 12

# By mmk_heap_kind.
cdef tuple KINDS = ("", "live", "free", "hole", "internal", "large")


cdef inline Py_ssize_t as_length(object value, str call) except 0:
    """A number of bytes: from 1 to what any address space has."""
    cdef long number = PyLong_AsLong(value)
    return number if number > 0 else refuse_length(value, call)


cdef Py_ssize_t refuse_length(object value, str call) except 0:
    PyErr_Clear()
    if PyNumber_Index(value) > 0:
        raise ValueError(f"{call}: {value} bytes are more than any address space has")
    raise ValueError(f"{call}: a block has at least one byte: {value} is not possible")


cdef tuple call_stack(int count):
    """The Python frames that called, innermost first: file, line, function."""
    frames = []
    frame = sys._getframe(0)
    while frame is not None and len(frames) < count:
        frames.append((frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_qualname))
        frame = frame.f_back
    return tuple(frames)


@cython.no_gc_clear  # __dealloc__ needs the region
cdef class HeapHandle(BlockOwner):
    """A heap of the core. `mmkit.Heap` is the public class."""

    _kind = "a heap"

    def __dealloc__(self):
        mmk_heap_dispose(&self.handle)

    cdef int drop(self, Block block) except -1:
        if self.warns:
            return self.drop_warning(block)
        return self.give_back(block) if self.is_open else 0

    cdef int drop_warning(self, Block block) except -1:
        cdef size_t address = <size_t>block.bytes
        if self.is_open:
            self.give_back(block)
            # Last: a warning may be an error.
            text = f"a block of {block.size} bytes at {address:#x} was dropped without free()"
            warnings.warn(text, ResourceWarning, stacklevel=1)
        return 0

    def _open(self, int source, MappedRegion region, size_t limit, bint guard, int frames, bint warns):
        self.check_unmade(region)
        cdef mmk_heap_request request
        request.source = source
        request.region = NULL
        request.offset = 0
        request.limit = limit
        request.guard = guard
        if region is not None:
            request.region = &region.handle
            request.offset = (region.skew + 15) & ~<size_t>15
        self.settle(region, mmk_heap_open(&self.handle, &request), frames)
        self.warns = warns

    def _attach(self, MappedRegion region not None, int frames):
        self.check_unmade(region)
        self.settle(region, mmk_heap_attach(&self.handle, &region.handle, (region.skew + 15) & ~<size_t>15), frames)

    @cython.final
    cdef int settle(self, MappedRegion region, int error, int frames) except -1:
        if error:
            raise self.opening_failure(error, region)
        self.stand_in(region)
        self.frames = frames
        self.origins = {} if frames else None
        return 0

    cdef object opening_failure(self, int error, MappedRegion region):
        if error == -EINVAL:
            return ValueError("the region, or the limit, is too small for a heap, or larger than 64 GiB")
        if error == -EEXIST:
            return Error("a heap is in this region already: Heap.attach joins it")
        if error == -MMK_ECORRUPT:
            return CorruptError("no heap is in this region, or it is damaged: Heap(region) makes one in a fresh region")
        if error == -MMK_EFORMAT:
            return CorruptError("the heap in this region is of another version of mmkit, or another C library's")
        if error == -MMK_EUNSUPPORTED:
            return Error("this region is private: only a heap in shared memory, or a file, can be attached to")
        if error == -ENOMEM:
            return OutOfMemory("there is no memory for the heap's own records")
        return BlockOwner.opening_failure(self, error, region)

    # ---- blocks -------------------------------------------------------------------------------------

    def alloc(self, size, Py_ssize_t align=16, bint zero=False):
        """Allocate a block (malloc(3), calloc(3), aligned_alloc(3)).

        Parameters
        ----------
        size : int
            Bytes, at least one.
        align : int
            The block's address is a multiple of it: any power of two.
        zero : bool
            The block's bytes are 0. Pages that are known to be zeros are not touched for that. Else they are
            what was there before.

        Returns
        -------
        HeapBlock
            Writable memory, until its `free`.

        Raises
        ------
        ValueError
            `size` or `align` make no sense.
        OutOfMemory
            The limit, or what the source has, is exhausted; the heap can still be used.
        ClosedError
            The heap was closed.

        References
        ----------
        malloc(3)
        """
        cdef Py_ssize_t count = as_length(size, "alloc")
        cdef void *bytes = NULL
        cdef int error
        if align < 0:
            raise self.failure(-EINVAL, "alloc", count, align)
        # Made first: when there is no memory for it, no block is lost.
        cdef HeapBlock block = <HeapBlock>HeapBlock.__new__(HeapBlock)
        if not zero or count < QUICK or self.handle.source == MMK_HEAP_SBRK:
            error = mmk_heap_alloc(&self.handle, count, align, zero, &bytes)
        else:
            self.enter()
            with nogil:
                error = mmk_heap_alloc(&self.handle, count, align, zero, &bytes)
            self.leave()
        if error:
            raise self.failure(error, "alloc", count, align)
        block.owner = self
        block.bytes = <char *>bytes
        block.size = count
        block.own.align = align
        block.stays = self.handle.shared is not NULL
        if self.frames:
            self.origins[<size_t>bytes] = call_stack(self.frames)
        return block

    def at(self, offset):
        """Borrow the block at an offset from the start of the heap's region.

        The offset travels between processes, where addresses do not. Dropping a borrowed block frees nothing;
        its `free` does. Whoever frees or resizes a block leaves the other objects that are of it, here and in
        other processes, without one: nobody may use them then, since another block may be there by now.

        Parameters
        ----------
        offset : int
            As `HeapBlock.offset` gave it, in bytes.

        Returns
        -------
        HeapBlock

        Raises
        ------
        ValueError
            No live block is there.
        Error
            The heap is not in a region.
        """
        if not self.is_open:
            raise self.failure(-MMK_ECLOSED, f"at({offset})", 0, 0)
        if self.region is None:
            raise Error("only a heap in a region has offsets")
        cdef HeapBlock block = <HeapBlock>HeapBlock.__new__(HeapBlock)
        cdef char *bytes = self.origin + as_size(offset, "at", "offset")
        cdef Py_ssize_t size = mmk_heap_size(&self.handle, bytes)
        if size < 0:
            raise self.failure(size, f"at({offset})", 0, 0)
        block.owner = self
        block.bytes = bytes
        block.size = size
        block.own.align = 16
        block.stays = True
        return block

    @cython.final
    cdef object failure(self, int error, str call, size_t size, Py_ssize_t align):
        """The exception for what the core answers."""
        if error == -MMK_ECLOSED:
            return ClosedError(f"{call}: the heap is closed")
        if error == -ENOMEM:
            return OutOfMemory(
                f"{call}: no room for a block of {written_size(size)}: the heap's limit, or its source, is exhausted. "
                "stats() says what is held"
            )
        if error == -EINVAL:
            return ValueError(f"{call}: an alignment is a power of two, which {align} is not")
        if error == -MMK_ENOTBLOCK:
            return ValueError(f"{call}: no live block of this heap is there: it was freed already, or never allocated")
        if error == -MMK_ECORRUPT:
            return CorruptError(f"{call}: the heap is damaged: check() says where")
        return system_failure(error, call)

    @cython.final
    cdef int give_back(self, Block block) except -1:
        """Free a block that nobody looks at. It is as it was where that fails, unless it turns out to be gone."""
        cdef char *bytes = block.bytes
        cdef int error = mmk_heap_free(&self.handle, bytes)
        if error == 0 or error == -MMK_ENOTBLOCK:
            block.bytes = NULL
        if error:
            raise self.failure(error, "free", 0, 0)
        if self.frames:
            self.origins.pop(<size_t>bytes, None)
        return 0

    cdef int resize(self, Block block, object n) except -1:
        # First: whose __index__ is called may look at the block, free it, or close the heap.
        cdef Py_ssize_t count = as_length(n, "resize")
        check_unseen(block, "resize")
        cdef void *bytes = block.bytes
        cdef int error
        if max(count, block.size) < QUICK or self.handle.source == MMK_HEAP_SBRK:
            error = mmk_heap_resize(&self.handle, &bytes, count, block.own.align)
        else:
            # Others shall neither free it nor look at it meanwhile.
            block.exports += 1
            self.exports += 1
            block.is_moving = True
            with nogil:
                error = mmk_heap_resize(&self.handle, &bytes, count, block.own.align)
            block.is_moving = False
            block.exports -= 1
            self.exports -= 1
        if error:
            raise self.failure(error, "resize", count, block.own.align)
        cdef char *before = block.bytes
        block.bytes = <char *>bytes
        block.size = count
        # Last: it may fail, and the old memory is another's by now.
        if self.frames and bytes != before:
            self.origins[<size_t>bytes] = self.origins.pop(<size_t>before, ())
        return 0

    @cython.final
    cdef void enter(self) noexcept:
        """Before a call without the GIL: nobody closes a shared heap meanwhile, since that waits for no lock."""
        self.exports += self.handle.shared is not NULL

    @cython.final
    cdef void leave(self) noexcept:
        self.exports -= self.handle.shared is not NULL

    # ---- what it holds ------------------------------------------------------------------------------

    def _stats(self):
        cdef mmk_heap_stats stats
        cdef int error
        self.enter()
        with nogil:
            error = mmk_heap_statistics(&self.handle, &stats)
        self.leave()
        if error:
            raise self.failure(error, "stats", 0, 0)
        return (
            stats.live_bytes, stats.live_blocks, stats.peak_bytes, stats.mapped_bytes, stats.largest_free,
            stats.free_bytes,
        )

    def _classes(self):
        cdef mmk_heap_class rows[64]
        cdef int i, error
        self.enter()
        with nogil:
            error = mmk_heap_classes(&self.handle, rows)
        self.leave()
        if error:
            raise self.failure(error, "stats", 0, 0)
        return [
            (1 << i, rows[i].live_blocks, rows[i].live_bytes, rows[i].free_blocks, rows[i].free_bytes)
            for i in range(MMK_HEAP_SIZE_CLASSES)
            if rows[i].live_blocks or rows[i].free_blocks
        ]

    def _resident(self):
        cdef size_t bytes = 0
        cdef int error, pagemap = c_open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
        if pagemap < 0:
            raise system_failure(-errno, "open", None, ("/proc/self/pagemap",))
        self.enter()
        with nogil:
            error = mmk_heap_resident(&self.handle, pagemap, &bytes)
            c_close(pagemap)
        self.leave()
        if error == -MMK_ECLOSED:
            raise self.failure(error, "stats", 0, 0)
        if error:
            raise system_failure(error, "pread of /proc/self/pagemap")
        return bytes

    def _blocks(self):
        cdef Py_ssize_t count, capacity = 0, i
        cdef mmk_heap_block *blocks = NULL
        try:
            while True:
                self.enter()
                with nogil:
                    count = mmk_heap_blocks(&self.handle, blocks, capacity)
                self.leave()
                if count < 0:
                    raise self.failure(count, "blocks", 0, 0)
                if count <= capacity:
                    break
                # Others may allocate meanwhile.
                PyMem_Free(blocks)
                capacity = count + count // 8 + 16
                blocks = <mmk_heap_block *>PyMem_Malloc(capacity * sizeof(mmk_heap_block))
                if not blocks:
                    raise MemoryError
            return [
                (blocks[i].address, blocks[i].size, blocks[i].span, KINDS[blocks[i].kind]) for i in range(count)
            ]
        finally:
            PyMem_Free(blocks)

    def _origins(self):
        return None if self.origins is None else dict(self.origins)

    def _check(self):
        cdef mmk_heap_damage damage
        cdef int error
        self.enter()
        with nogil:
            error = mmk_heap_check(&self.handle, &damage)
        self.leave()
        if error == -MMK_ECORRUPT:
            return damage.what.decode(), damage.address, damage.before, damage.after
        if error:
            raise self.failure(error, "check", 0, 0)

    def _trim(self):
        cdef int error
        if self.handle.source == MMK_HEAP_SBRK:
            error = mmk_heap_trim(&self.handle)
        else:
            self.enter()
            with nogil:
                error = mmk_heap_trim(&self.handle)
            self.leave()
        if error:
            raise self.failure(error, "trim", 0, 0)

    # ---- life ---------------------------------------------------------------------------------------

    def close(self):
        """Give all memory back to the source; blocks that are left cannot be used any more.

        Closing twice does nothing.

        Raises
        ------
        BufferError
            Somebody looks at a block, or another thread is inside a call on a shared heap; nothing has changed.
        """
        if not self.is_open:
            return
        if self.exports:
            raise BufferError(
                "close: views of blocks are live (memoryview, numpy array), or a thread is inside a call"
            )
        mmk_heap_close(&self.handle)
        self.is_open = False
        if self.origins:
            self.origins.clear()
        self.region = None
