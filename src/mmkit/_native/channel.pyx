"""A channel of the core as a Python object: messages in and out, views for as long as their blocks last."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.errno cimport EAGAIN, EBUSY, EMSGSIZE, ETIMEDOUT
from libc.string cimport memcpy

from mmkit._native.channel cimport *
from mmkit._native.descriptor cimport Descriptor
from mmkit._native.placed cimport as_deadline

from os import dup

from mmkit.errors import ClosedError, Error
from mmkit.hints import failure
from mmkit.wording import size

cdef enum:
    # Below this a copy is done before another thread could have used the GIL: releasing costs 25 to 40 ns.
    QUICK = 256 * 1024

cdef enum state:
    UNUSED
    OPEN
    LATE  # the block has ended, and somebody still looks at the bytes
    OVER

CAPACITY_MIN = MMK_LANE_CAPACITY_MIN
CAPACITY_MAX = MMK_LANE_CAPACITY_MAX


def channel_bytes(uint64_t capacity) -> int:
    """Return how many bytes the file of a channel has, with one lane."""
    return mmk_channel_bytes(capacity, 1)


def format_file(int fd, uint64_t capacity, *, bint single, bint at_most_once):
    """Make a file with space and without a name into a channel (mmk_channel_format).

    Parameters
    ----------
    fd
        Open for reading and writing, with `channel_bytes` zeros.
    capacity
        Bytes that one writer may have under way.
    single
        One writer, one reader.
    at_most_once
        What a dead reader had taken is gone.

    Raises
    ------
    SyscallError
        /proc is not there.
    """
    cdef uint32_t flags = (MMK_CHANNEL_SINGLE if single else 0) | (MMK_CHANNEL_AT_MOST_ONCE if at_most_once else 0)
    cdef int error = mmk_channel_format(fd, capacity, flags)
    if error:
        raise failure(error, "channel", None, (fd, size(capacity)))


cdef class ChannelHandle:
    """A process's use of a channel. `mmkit.shared.Channel` is the public class."""

    cdef mmk_channel handle
    cdef object label
    cdef object take_space
    cdef uint64_t spin_ns
    cdef Py_ssize_t running  # operations without the GIL
    cdef Py_ssize_t views
    cdef Py_ssize_t inherited  # views that a parent made: alive, or lost with its threads
    cdef uint32_t generation  # of the process that running and views are about

    def __cinit__(self, *args, **kwargs):
        self.handle.fd = -1
        self.generation = mmk_process_generation

    def __dealloc__(self):
        # Views and operations keep the object: there are none.
        mmk_channel_close(&self.handle)

    def _attach(self, Descriptor file not None, str name not None, double spin, take_space):
        """Open the channel in a file, and take that over; take_space(fd, start, end, name) is for further lanes."""
        if self.label is not None:
            raise ValueError(f"channel {self.label!r} was opened with this object: make another one for {name!r}")
        self.label = name
        self.take_space = take_space
        self.spin_ns = <uint64_t>(spin * 1e9)
        cdef int error = mmk_channel_attach(&self.handle, file.give_up())
        if error:
            raise failure(error, "channel", None, (name,))

    @property
    def name(self) -> str:
        """As it appears in /dev/shm."""
        return self.label

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.handle.fd < 0

    @property
    def capacity(self) -> int:
        """Bytes that one writer may have under way; a message counts in units of 64."""
        return self.handle.capacity

    @property
    def longest(self) -> int:
        """The length of the longest message, in bytes: half the capacity."""
        return self.handle.capacity // 128 * 64

    @property
    def single(self) -> bool:
        """Whether there is one writer and one reader."""
        return self.handle.flags & <uint32_t>MMK_CHANNEL_SINGLE != 0

    @property
    def at_most_once(self) -> bool:
        """Whether what a dead reader had taken is gone, rather than delivered again."""
        return self.handle.flags & <uint32_t>MMK_CHANNEL_AT_MOST_ONCE != 0

    def fileno(self) -> int:
        """Return the descriptor of the channel's file; it is the channel's.

        Raises
        ------
        ClosedError
            The channel is closed.
        """
        self.check_open()
        return self.handle.fd

    def close(self) -> None:
        """Give up this process's part: its claim to write, its claim to read, and the memory.

        What was sent stays for the readers. Closing twice is harmless.

        Raises
        ------
        BufferError
            A view of a message is alive, or a call is running in another thread: nothing was changed.
        """
        if self.handle.fd < 0:
            return
        self.notice_fork()
        if self.views:
            raise BufferError(
                f"channel {self.label!r}: a view of a message (memoryview, numpy array) is alive. Release it first."
            )
        if self.running:
            raise BufferError(f"channel {self.label!r}: a call in another thread is running")
        if self.inherited:
            mmk_channel_leave(&self.handle)
        else:
            mmk_channel_close(&self.handle)

    @cython.final
    cdef void notice_fork(self) noexcept:
        """In a child its parent's threads are gone, with their calls, and what the parent lent is the parent's."""
        if self.generation == mmk_process_generation:
            return
        self.generation = mmk_process_generation
        self.running = 0
        self.inherited += self.views
        self.views = 0

    @cython.final
    cdef int check_open(self) except -1:
        self.notice_fork()
        if self.handle.fd < 0:
            raise ClosedError(f"channel {self.label!r} is closed")
        return 0

    @cython.final
    cdef object refusal(self, int error, str kind, int most):
        """What to raise when no claim could be made, or the core refused."""
        if error != -EBUSY:
            return failure(error, "channel", None, (self.label,))
        if self.single:
            return Error(f"channel {self.label!r} has its one {kind} (single=True), and that lives: close it there")
        return Error(f"channel {self.label!r} has {most} living {kind}s, which are the most: close one")

    # ---- sending ------------------------------------------------------------------------------------

    @cython.final
    cdef int reserve(self, size_t length, object timeout, mmk_channel_message *message) except -1:
        self.check_open()
        cdef int error = mmk_channel_reserve(&self.handle, length, message)
        if error == 0:
            return 0
        if error == -EAGAIN or error == -MMK_ENOLANE:
            return self.reserve_later(length, timeout, message)
        if error == -EMSGSIZE:
            raise ValueError(
                f"channel {self.label!r}: a message of {size(length)} is too long: {size(self.longest)} are the most, "
                f"half of the capacity"
            )
        raise self.refusal(error, "writer", MMK_CHANNEL_WRITERS)

    @cython.final
    cdef int reserve_later(self, size_t length, object timeout, mmk_channel_message *message) except -1:
        cdef uint64_t deadline = as_deadline(timeout), spin = self.spin_ns
        cdef int outcome = 0, error = -EAGAIN
        cdef bint patient = True
        cdef mmk_channel_wait wait
        self.check_open()  # what converts a timeout may close
        while error == -EAGAIN or error == -MMK_ENOLANE:
            if error == -MMK_ENOLANE:
                self.add_lane()
                error = mmk_channel_reserve(&self.handle, length, message)
                continue
            if outcome == -ETIMEDOUT:
                raise TimeoutError(f"channel {self.label!r}: no room for {size(length)} within {timeout} s")
            mmk_channel_plan_wait(&self.handle, patient, &wait)
            self.running += 1
            with nogil:
                outcome = mmk_channel_await_room(&self.handle, &wait, spin, deadline)
            self.running -= 1
            PyErr_CheckSignals()
            self.check_open()  # so may a handler
            patient = False
            if outcome == -EAGAIN:
                spin = 0
            error = mmk_channel_reserve(&self.handle, length, message)
        if error:
            raise self.refusal(error, "writer", MMK_CHANNEL_WRITERS)
        return 0

    @cython.final
    cdef int add_lane(self) except -1:
        """Take space for one writer more, without the GIL, which others may have used to close; and have its lane."""
        cdef unsigned lanes = self.handle.mapped
        cdef uint64_t start = mmk_channel_bytes(self.handle.capacity, lanes)
        with Descriptor(dup, self.handle.fd) as file:
            self.take_space(file.fileno(), start, mmk_channel_bytes(self.handle.capacity, lanes + 1), self.label)
        self.check_open()
        cdef int error = mmk_channel_add_lane(&self.handle, lanes)
        if error:
            raise self.refusal(error, "writer", MMK_CHANNEL_WRITERS)
        return 0

    @cython.final
    cdef int send_bytes(self, const char *data, size_t length, object timeout) except -1:
        cdef mmk_channel_message message
        self.reserve(length, timeout, &message)
        if length <= QUICK:
            memcpy(message.message.data, data, length)
            mmk_channel_commit(&self.handle, &message)
            return 0
        self.running += 1
        with nogil:
            memcpy(message.message.data, data, length)
            mmk_channel_commit(&self.handle, &message)
        self.running -= 1
        return 0

    def send(self, buffer, timeout=None) -> None:
        """Send a message: a copy of a buffer's bytes.

        Parameters
        ----------
        buffer
            Any object with contiguous bytes: ``bytes``, ``memoryview``, a numpy array; at most half the capacity.
        timeout
            Seconds to wait for room; None waits for ever, 0 not at all.

        Raises
        ------
        TimeoutError
            No room within the time: the message was not sent.
        ValueError
            The message is longer than half the capacity.
        Error
            No further writer can be had: 256 are alive, or one with ``single=True``.
        SyscallError
            ``ENOSPC``: the process's first message, and no space for its lane in /dev/shm.
        OutOfMemory
            The same, and a control group's limit would not hold it (the kernel would kill).
        CorruptError
            Somebody has damaged the channel.
        ClosedError
            The channel is closed.
        """
        cdef Py_buffer view
        if PyBytes_CheckExact(buffer):
            self.send_bytes(PyBytes_AS_STRING(buffer), <size_t>PyBytes_GET_SIZE(buffer), timeout)
            return
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            self.send_bytes(<const char *>view.buf, <size_t>view.len, timeout)
        finally:
            PyBuffer_Release(&view)

    def loan(self, Py_ssize_t n, timeout=None) -> Loan:
        """Lend room for a message, to be written in place.

        ``with channel.loan(n) as view:`` gives a writable `memoryview` of `n` bytes, whose contents are undefined at
        first. The end of the block sends the message; a block that raises sends nothing.

        Parameters
        ----------
        n
            Bytes; at most half the capacity.
        timeout
            Seconds to wait for room, on entering the block; None waits for ever, 0 not at all.

        Raises
        ------
        BufferError
            At the end of the block: something made of the view (a slice, a numpy array) is alive. Nothing is sent,
            and the room comes back when that is gone; until then readers wait for it.
        """
        if n < 0:
            raise ValueError(f"a message cannot have {n} bytes")
        cdef Loan loan = Loan.__new__(Loan)
        loan.channel = self
        loan.message.message.length = <size_t>n
        loan.timeout = timeout
        loan.writes = True
        return loan

    # ---- receiving ----------------------------------------------------------------------------------

    @cython.final
    cdef int take(self, object timeout, mmk_channel_message *message) except -1:
        self.check_open()
        cdef int error = mmk_channel_take(&self.handle, message)
        if error == 0:
            return 0
        if error == -EAGAIN:
            return self.take_later(timeout, message)
        raise self.refusal(error, "reader", MMK_CHANNEL_READERS)

    @cython.final
    cdef int take_later(self, object timeout, mmk_channel_message *message) except -1:
        cdef uint64_t deadline = as_deadline(timeout), spin = self.spin_ns
        cdef int outcome = 0, error = -EAGAIN
        self.check_open()  # what converts a timeout may close
        while error == -EAGAIN:
            if outcome == -ETIMEDOUT:
                raise TimeoutError(f"channel {self.label!r}: no message within {timeout} s")
            self.running += 1
            with nogil:
                outcome = mmk_channel_await_message(&self.handle, spin, deadline)
            self.running -= 1
            PyErr_CheckSignals()
            self.check_open()  # so may a handler
            if outcome == -EAGAIN:
                spin = 0
            error = mmk_channel_take(&self.handle, message)
        if error:
            raise self.refusal(error, "reader", MMK_CHANNEL_READERS)
        return 0

    def recv(self, timeout=None) -> bytes:
        """Receive a message.

        It is finished, and gone from the channel, when its copy is made: just before this returns.

        Parameters
        ----------
        timeout
            Seconds to wait for a message; None waits for ever, 0 not at all.

        Returns
        -------
        bytes

        Raises
        ------
        TimeoutError
            No message within the time.
        Error
            No further reader can be had: 256 are alive, or one with ``single=True``.
        CorruptError
            Somebody has damaged the channel.
        ClosedError
            The channel is closed.
        """
        cdef mmk_channel_message message
        cdef bytes copy
        self.take(timeout, &message)
        cdef bint quick = message.message.length <= QUICK
        cdef char *source = message.message.data if quick else NULL
        try:
            copy = PyBytes_FromStringAndSize(source, <Py_ssize_t>message.message.length)
        except BaseException:
            mmk_channel_give_back(&self.handle, &message)
            raise
        if quick:
            mmk_channel_finish(&self.handle, &message)
            return copy
        cdef char *to = PyBytes_AS_STRING(copy)
        self.running += 1
        with nogil:
            memcpy(to, message.message.data, message.message.length)
            mmk_channel_finish(&self.handle, &message)
        self.running -= 1
        return copy

    def recv_view(self, timeout=None) -> Loan:
        """Receive a message in place.

        ``with channel.recv_view() as view:`` gives a read-only `memoryview` of the message. The end of the block
        finishes it. When the block raises, the message is delivered again (at least once) or gone (at most once).

        Parameters
        ----------
        timeout
            Seconds to wait for a message, on entering the block; None waits for ever, 0 not at all.

        Raises
        ------
        TimeoutError
            On entering the block: no message within the time.
        BufferError
            At the end of the block: something made of the view (a slice, a numpy array) is alive. The message is
            finished when that is gone.
        """
        cdef Loan loan = Loan.__new__(Loan)
        loan.channel = self
        loan.timeout = timeout
        return loan


# No free list: an object out of one counts as finalized already, and its __del__ would not be called.
@cython.final
cdef class Loan:
    """Memory of a channel, lent for a block. Made by `Channel.loan` and `Channel.recv_view`."""

    cdef ChannelHandle channel
    cdef mmk_channel_message message
    cdef object timeout
    cdef object view
    cdef Py_ssize_t exports
    cdef uint32_t generation
    cdef state state
    cdef bint writes
    cdef bint raised

    def __enter__(self) -> memoryview:
        """Get the memory."""
        if self.state != UNUSED:
            raise ValueError("a loan is for one block: ask for another")
        if self.writes:
            self.channel.reserve(self.message.message.length, self.timeout, &self.message)
        else:
            self.channel.take(self.timeout, &self.message)
        self.generation = self.channel.handle.generation
        self.state = OPEN
        self.raised = True  # until the block ends well
        self.channel.views += 1
        self.view = PyMemoryView_FromObject(self)
        return self.view

    def __exit__(self, kind, error, traceback) -> None:
        """Send the message, or finish it."""
        if self.state != OPEN:
            return
        self.raised = kind is not None
        self.end()
        if self.state == LATE and kind is None:
            self.raised = self.writes
            raise BufferError(
                "something made of the view (a slice, a numpy array) is alive after the block: "
                + ("nothing was sent" if self.writes else "the message is finished when that is gone")
                + ". Delete it, or leave the function that has it, before the block ends."
            )

    @cython.final
    cdef int end(self) except -1:
        """Take the view back; what else looks at the bytes delays the end."""
        cdef object view = self.view
        self.view = None
        self.state = LATE
        try:
            view.release()
        except BufferError:
            pass
        if self.exports == 0 and self.state == LATE:
            self.settle()
        return 0

    @cython.final
    cdef int settle(self) except -1:
        """Do with the message what the end of the block asks for."""
        cdef mmk_channel *handle = &self.channel.handle
        self.state = OVER
        self.channel.notice_fork()
        if self.generation != mmk_process_generation:
            self.channel.inherited -= 1
            return 0  # a forked child: the message is its parent's
        self.channel.views -= 1
        if self.writes and self.raised:
            mmk_channel_abandon(handle, &self.message)
        elif self.writes:
            mmk_channel_commit(handle, &self.message)
        elif self.raised and not handle.flags & <uint32_t>MMK_CHANNEL_AT_MOST_ONCE:
            mmk_channel_give_back(handle, &self.message)
        else:
            mmk_channel_finish(handle, &self.message)
        return 0

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.state != OPEN:
            raise BufferError("the block of this loan has ended, or has not begun")
        PyBuffer_FillInfo(
            buffer, self, self.message.message.data, <Py_ssize_t>self.message.message.length, not self.writes, flags
        )
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1
        if self.exports == 0 and self.state == LATE:
            self.settle()

    def __del__(self):
        # A block that was entered by hand and never left. The view and this are a cycle: not for __dealloc__, before
        # which the collector has cleared both.
        if self.state == OPEN:
            self.end()
