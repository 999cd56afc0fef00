"""A secret of the core as a Python object: its bytes are a buffer inside ``with secret.open()``, and nowhere else."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EINTR, errno
from posix.unistd cimport read as c_read

from mmkit._native.base cimport MMK_ECLOSED, MMK_EPINNED
from mmkit._native.buffers cimport fill_with_bytes

from mmkit.errors import ClosedError
from mmkit.hints import Verbatim, failure as system_failure
from mmkit.wording import size as written_size

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long argument)

cdef enum:
    PR_SET_DUMPABLE = 4


def forbid_dumps():
    """Close the process to others of its user, and to core dumps (prctl(2), PR_SET_DUMPABLE 0)."""
    if prctl(PR_SET_DUMPABLE, 0) < 0:
        raise system_failure(-errno, "prctl", None, (Verbatim("PR_SET_DUMPABLE"), 0))


def footprint():
    """Return how many bytes of slabs and pages secrets have mapped."""
    return mmk_secret_footprint()


cdef class SecretHandle:
    """A secret of the core. `mmkit.Secret` is the public class."""

    def __dealloc__(self):
        # Nobody can have it open: who has holds the object.
        cdef int error = mmk_secret_give(&self.handle)
        if error:
            raise self.failure(error, "close")

    def _take(self, Py_ssize_t length, mmk_secret_kind kind, bint isolated):
        cdef mmk_secret_refusal refusal
        if self.size:
            raise ValueError("a Secret is made once: make another one")
        if length < 1:
            raise ValueError(f"a secret needs at least one byte, not {length}")
        cdef int error = mmk_secret_take(&self.handle, length, kind, isolated, &refusal)
        if error:
            call = (<bytes>refusal.call).decode()
            raise system_failure(error, call, None, (Verbatim(written_size(refusal.length)),))
        self.size = length

    @cython.final
    cdef object failure(self, int error, str call):
        if error == -MMK_ECLOSED and self.handle.area is not NULL:
            return ClosedError(f"{call}: a forked child has none of its parent's secrets: make them after the fork")
        if error == -MMK_ECLOSED:
            return ClosedError(f"{call}: the secret is closed")
        if error == -MMK_EPINNED:
            return BufferError(f"{call}: the secret is open: leave its with block, and release views made of it, first")
        return system_failure(error, "mprotect", None, (Verbatim(f"the secret at {<size_t>self.handle.bytes:#x}"),))

    @cython.final
    cdef int open_now(self, bint write, str call) except -1:
        cdef int error = mmk_secret_open(&self.handle, write)
        if error:
            raise self.failure(error, call)
        return 0

    @cython.final
    cdef int shut_now(self, bint write, str call) except -1:
        cdef int error = mmk_secret_shut(&self.handle, write)
        mmk_secret_scrub()
        if error:
            raise self.failure(error, call)
        return 0

    def open(self, bint write=False):
        """Let its bytes be seen inside a ``with`` block.

        Parameters
        ----------
        write : bool, default False
            They may be changed, too.

        Returns
        -------
        OpenSecret
            ``with`` it, a :class:`memoryview` of the bytes: it dies with the block. Other secrets of the same
            size may be readable meanwhile, for whoever has a stray pointer.

        Raises
        ------
        ClosedError
            On entry: the secret is closed, or this is a forked child of the process that made it.
        BufferError
            On exit: a slice of the view, or an array over it, is alive. The secret stays open until that goes.

        References
        ----------
        mprotect(2)
        """
        cdef OpenSecret opened = OpenSecret.__new__(OpenSecret)
        opened.secret = self
        opened.write = write
        return opened

    def __len__(self):
        return self.size

    def __eq__(self, other):
        if isinstance(other, SecretHandle):
            return self.equals_secret(<SecretHandle>other)
        if PyObject_CheckBuffer(other):
            return self.equals_buffer(other)
        return NotImplemented

    @cython.final
    cdef bint equals_secret(self, SecretHandle other) except -1:
        cdef bint same
        self.open_now(False, "==")
        try:
            other.open_now(False, "==")
            same = self.size == other.size and mmk_secret_equal(self.handle.bytes, other.handle.bytes, self.size)
            other.shut_now(False, "==")
        finally:
            self.shut_now(False, "==")
        return same

    @cython.final
    cdef bint equals_buffer(self, object other) except -1:
        cdef Py_buffer buffer
        cdef bint same
        PyObject_GetBuffer(other, &buffer, PyBUF_SIMPLE)
        try:
            self.open_now(False, "==")
            same = self.size == buffer.len and mmk_secret_equal(self.handle.bytes, buffer.buf, self.size)
            self.shut_now(False, "==")
        finally:
            PyBuffer_Release(&buffer)
        return same

    def wipe(self):
        """Overwrite it with zeros, now. It stays what it is otherwise, and may be written anew.

        Raises
        ------
        ClosedError
            There is nothing to wipe any more.
        """
        cdef int error = mmk_secret_wipe(&self.handle)
        mmk_secret_scrub()
        if error:
            raise self.failure(error, "wipe")

    def close(self):
        """Wipe it, and give its memory back. Closing twice does nothing.

        Raises
        ------
        BufferError
            It is open; nothing has changed.
        """
        cdef int error = mmk_secret_give(&self.handle)
        if error:
            raise self.failure(error, "close")

    @property
    def closed(self):
        """Whether it is closed, in this process."""
        return mmk_secret_is_closed(&self.handle)

    @property
    def _address(self):
        return <size_t>self.handle.bytes

    @property
    def _is_open(self):
        return self.handle.readers + self.handle.writers > 0

    def __reduce_ex__(self, protocol):
        raise TypeError("a Secret is neither copied nor pickled: that would put its bytes where nobody wipes them")

    # ---- sources ------------------------------------------------------------------------------------

    def _randomize(self):
        cdef int error = mmk_secret_randomize(&self.handle)
        if error:
            raise self.failure(error, "random")

    def _read_from(self, int fd):
        """Fill it from a descriptor; return how many bytes there were before the end of the file."""
        cdef Py_ssize_t have = 0
        cdef Py_ssize_t got
        cdef int error
        self.open_now(True, "from_fd")
        try:
            while have < self.size:
                with nogil:
                    got = c_read(fd, self.handle.bytes + have, self.size - have)
                    error = errno if got < 0 else 0
                if error == EINTR:
                    PyErr_CheckSignals()
                elif error:
                    raise system_failure(-error, "read", None, (fd,))
                elif got == 0:
                    break
                else:
                    have += got
        finally:
            self.shut_now(True, "from_fd")
        return have

    def _take_from(self, object source):
        """Copy a writable buffer of the same length, and wipe it."""
        cdef Py_buffer buffer
        PyObject_GetBuffer(source, &buffer, PyBUF_WRITABLE)
        try:
            if buffer.len != self.size:
                raise BufferError("the source has changed its length meanwhile")
            self.open_now(True, "take")
            mmk_secret_copy(self.handle.bytes, buffer.buf, self.size)
            mmk_secret_erase(buffer.buf, self.size)
            self.shut_now(True, "take")
        finally:
            PyBuffer_Release(&buffer)

    def _take_start_of(self, SecretHandle other):
        """Copy as many bytes as it has of another secret."""
        other.open_now(False, "take")
        try:
            self.open_now(True, "take")
            mmk_secret_copy(self.handle.bytes, other.handle.bytes, self.size)
            self.shut_now(True, "take")
        finally:
            other.shut_now(False, "take")

    def _prompt(self, int terminal, bytes text):
        """Read a line from a terminal that does not show it; return its length."""
        cdef const char *words = text
        cdef bint again = False
        cdef Py_ssize_t got
        self.open_now(True, "prompt")
        try:
            while True:
                with nogil:
                    got = mmk_secret_prompt(terminal, words, again, self.handle.bytes, self.size)
                if got != -EINTR:
                    break
                PyErr_CheckSignals()
                again = True
        finally:
            self.shut_now(True, "prompt")
        return got


@cython.final
@cython.freelist(8)
cdef class OpenSecret:
    """What `Secret.open` returns: the bytes of a secret for the length of a ``with`` block."""

    def __init__(self):
        raise TypeError("an OpenSecret is made by Secret.open()")

    def __enter__(self):
        if self.view is not None:
            raise BufferError("open: this with block is entered already: call open() again for another one")
        self.entering = True
        try:
            self.view = PyMemoryView_FromObject(self)
        finally:
            self.entering = False
        return self.view

    def __exit__(self, kind, error, traceback):
        view, self.view = self.view, None
        try:
            view.release()
        except BufferError:
            # An array over it; what lives is looked at below, which slices of the view are also.
            pass
        del view
        mmk_secret_scrub()
        if self.exports:
            text = "open: something made of the view (a slice, an array) is alive: the secret is open until that goes"
            if error is None:
                raise BufferError(text)
            error.add_note(f"mmkit: {text}")

    # What is open is counted with the buffer, so that it ends when the last that looks into it goes, and not before.
    # The buffer holds the secret itself: the collector may take it from here first.

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if not self.entering:
            raise BufferError("the bytes of a secret are seen in a with block: with secret.open() as view")
        if flags & PyBUF_WRITABLE and not self.write:
            raise BufferError("the secret is open for reading: open(write=True)")
        self.secret.open_now(self.write, "open")
        fill_with_bytes(buffer, self, self.secret.handle.bytes, &self.secret.size, flags)
        buffer.readonly = not self.write
        buffer.internal = <void *>self.secret
        Py_INCREF(self.secret)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        cdef SecretHandle secret = <SecretHandle>buffer.internal
        cdef int error = mmk_secret_shut(&secret.handle, not buffer.readonly)
        self.exports -= 1
        Py_DECREF(secret)
        if error:
            raise secret.failure(error, "close")
