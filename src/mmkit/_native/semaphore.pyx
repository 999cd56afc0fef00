"""Semaphores, events and barriers in shared memory, as `mmkit.shared` makes them public."""

from mmkit._native.placed cimport *
from mmkit._native.region cimport MappedRegion

from mmkit.errors import BrokenBarrierError

cdef enum:
    EBUSY = 16
    ETIMEDOUT = 110

SEMAPHORE_SIZE = sizeof(mmk_semaphore)
EVENT_SIZE = sizeof(mmk_event)
BARRIER_SIZE = sizeof(mmk_barrier)


cdef class SemaphoreObject(Placed):
    """A semaphore of the core at its place."""

    # As LockObject.taken.
    cdef uint32_t taken

    def _place(self, MappedRegion region not None, size_t offset, bint create, uint32_t permits, bint held, str label):
        self.settle(region, offset, sizeof(mmk_semaphore), label)
        if create:
            self.check_made(mmk_semaphore_create(<mmk_semaphore *>self.at, permits, held))
        self.find(MMK_SEMAPHORE, sizeof(mmk_semaphore))

    cdef mmk_placed_kind kind(self) noexcept:
        return MMK_SEMAPHORE

    cdef size_t size(self) noexcept:
        return sizeof(mmk_semaphore)

    cdef bint acquire_slowly(self, uint64_t deadline) except -1:
        cdef patience call
        cdef int error
        have_patience(&call, deadline)
        self.waiting += 1
        with nogil:
            error = mmk_semaphore_acquire(<mmk_semaphore *>self.at, &call.wait)
        self.waiting -= 1
        check_patience(&call)
        if error == -ETIMEDOUT:
            return False
        if error:
            raise self.failure(error, "acquire")
        self.taken = mmk_process_generation + 1
        return True

    def acquire(self, object timeout=None):
        """Take a permit, and wait for one if none is free.

        Parameters
        ----------
        timeout : float or None
            How many seconds to wait; 0 does not wait, None waits for ever.

        Returns
        -------
        bool
            True if a permit was taken, False if the time is up.

        Raises
        ------
        SyscallError
            ``ENOSPC``: 256 processes hold permits.
        ClosedError
            It was closed.
        """
        cdef uint64_t deadline = MMK_FOREVER if timeout is None else as_deadline(timeout)
        self.check_open()
        cdef int error = mmk_semaphore_try(<mmk_semaphore *>self.at)
        if error == 0:
            self.taken = mmk_process_generation + 1
            return True
        return self.acquire_slowly(deadline)

    cdef int give_back(self) except? -1:
        cdef int error = mmk_semaphore_release(<mmk_semaphore *>self.at, NULL)
        if error != -EBUSY:
            return error
        cdef patience call
        have_patience(&call, MMK_FOREVER)
        self.waiting += 1
        with nogil:
            error = mmk_semaphore_release(<mmk_semaphore *>self.at, &call.wait)
        self.waiting -= 1
        check_patience(&call)
        return error

    def release(self):
        """Give a permit back; any thread of the process that took it may. Where permits are counted, add one.

        Raises
        ------
        SyscallError
            ``EPERM``: this process holds no permit.
        ClosedError
            It was closed.
        """
        self.check_open()
        cdef int error = self.give_back()
        if error:
            raise self.failure(error, "release")

    def __enter__(self):
        self.check_open()
        if mmk_semaphore_try(<mmk_semaphore *>self.at) == 0:
            self.taken = mmk_process_generation + 1
        else:
            self.acquire_slowly(MMK_FOREVER)
        return self

    def __exit__(self, kind, error, traceback):
        if self.at == NULL:
            self.check_open()
        # A child that was forked in the block leaves it, too: the permit is its parent's.
        if self.taken != mmk_process_generation + 1:
            return
        cdef int refused = self.give_back()
        if refused and error is None:
            raise self.failure(refused, "release")

    def recover(self):
        """Free the permits of processes that are gone, without waiting until somebody wants one.

        Returns
        -------
        int
            How many there were.

        Raises
        ------
        ClosedError
            It was closed.
        """
        cdef patience call
        cdef int64_t result
        self.check_open()
        have_patience(&call, MMK_FOREVER)
        self.waiting += 1
        with nogil:
            result = mmk_semaphore_recover(<mmk_semaphore *>self.at, &call.wait)
        self.waiting -= 1
        check_patience(&call)
        if result < 0:
            raise self.failure(<int>result, "recover")
        return result

    @property
    def value(self):
        """How many permits are free at this moment; those of the dead count once somebody has looked."""
        self.check_open()
        return mmk_semaphore_value(<mmk_semaphore *>self.at)


cdef class EventObject(Placed):
    """An event of the core at its place."""

    def _place(self, MappedRegion region not None, size_t offset, bint create, str label):
        self.settle(region, offset, sizeof(mmk_event), label)
        if create:
            self.check_made(mmk_event_create(<mmk_event *>self.at))
        self.find(MMK_EVENT, sizeof(mmk_event))

    cdef mmk_placed_kind kind(self) noexcept:
        return MMK_EVENT

    cdef size_t size(self) noexcept:
        return sizeof(mmk_event)

    def set(self):
        """Set it, and wake all who wait. Setting what is set does nothing."""
        self.check_open()
        mmk_event_set(<mmk_event *>self.at)

    def clear(self):
        """Make it not set: who comes now waits."""
        self.check_open()
        mmk_event_clear(<mmk_event *>self.at)

    def is_set(self):
        """Return whether it is set at this moment."""
        self.check_open()
        return mmk_event_is_set(<mmk_event *>self.at)

    def wait(self, object timeout=None):
        """Wait until it is set. Being set and cleared at once is enough.

        Parameters
        ----------
        timeout : float or None
            How many seconds to wait; 0 only looks, None waits for ever.

        Returns
        -------
        bool
            True if it was set, False if the time is up.

        Raises
        ------
        ClosedError
            It was closed.
        """
        cdef patience call
        cdef int error
        cdef uint64_t deadline = as_deadline(timeout)
        self.check_open()
        if mmk_event_is_set(<mmk_event *>self.at):
            return True
        have_patience(&call, deadline)
        self.waiting += 1
        with nogil:
            error = mmk_event_wait(<mmk_event *>self.at, &call.wait)
        self.waiting -= 1
        check_patience(&call)
        return error == 0


cdef class BarrierObject(Placed):
    """A barrier of the core at its place."""

    def _place(self, MappedRegion region not None, size_t offset, bint create, uint32_t parties, str label):
        self.settle(region, offset, sizeof(mmk_barrier), label)
        if create:
            self.check_made(mmk_barrier_create(<mmk_barrier *>self.at, parties))
        self.find(MMK_BARRIER, sizeof(mmk_barrier))

    cdef mmk_placed_kind kind(self) noexcept:
        return MMK_BARRIER

    cdef size_t size(self) noexcept:
        return sizeof(mmk_barrier)

    def wait(self, object timeout=None):
        """Wait until all parties are here.

        Parameters
        ----------
        timeout : float or None
            How many seconds to wait; None waits for ever.

        Returns
        -------
        int
            From 0 to the number of parties less 1, another for each party.

        Raises
        ------
        BrokenBarrierError
            The barrier is broken: the time is up for this party or another, one died while it waited, or `abort` or
            `reset` was called.
        ClosedError
            It was closed.
        """
        cdef patience call
        cdef int result
        cdef uint64_t deadline = as_deadline(timeout)
        self.check_open()
        have_patience(&call, deadline)
        self.waiting += 1
        with nogil:
            result = mmk_barrier_wait(<mmk_barrier *>self.at, &call.wait)
        self.waiting -= 1
        check_patience(&call)
        if result == -ETIMEDOUT:
            raise BrokenBarrierError(f"{self._label}: the time is up, which breaks the barrier for all; see reset()")
        if result == -MMK_EBROKEN:
            raise BrokenBarrierError(
                f"{self._label} is broken: a party died while it waited, its time was up, or somebody called abort() "
                "or reset(). reset() makes it whole again"
            )
        if result < 0:
            raise self.failure(result, "wait")
        return result

    def abort(self):
        """Break the barrier: who waits and who comes gets a `BrokenBarrierError`, until `reset`.

        Raises
        ------
        ClosedError
            It was closed.
        """
        self.change(True)

    def reset(self):
        """Make the barrier whole and empty. Who waits at this moment gets a `BrokenBarrierError`.

        Raises
        ------
        ClosedError
            It was closed.
        """
        self.change(False)

    cdef int change(self, bint aborts) except -1:
        cdef patience call
        cdef int error
        self.check_open()
        have_patience(&call, MMK_FOREVER)
        self.waiting += 1
        with nogil:
            if aborts:
                error = mmk_barrier_abort(<mmk_barrier *>self.at, &call.wait)
            else:
                error = mmk_barrier_reset(<mmk_barrier *>self.at, &call.wait)
        self.waiting -= 1
        check_patience(&call)
        if error:
            raise self.failure(error, "abort" if aborts else "reset")
        return 0

    @property
    def parties(self):
        """How many must come."""
        self.check_open()
        return (<mmk_barrier *>self.at).parties

    @property
    def n_waiting(self):
        """How many are waiting at this moment."""
        self.check_open()
        return mmk_barrier_waiting(<mmk_barrier *>self.at)

    @property
    def broken(self):
        """Whether it is broken at this moment."""
        self.check_open()
        return mmk_barrier_is_broken(<mmk_barrier *>self.at)
