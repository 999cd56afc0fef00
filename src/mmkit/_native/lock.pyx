"""Locks and conditions in shared memory, as `mmkit.shared` makes them public."""

cimport cython

from mmkit._native.placed cimport *
from mmkit._native.region cimport MappedRegion

from mmkit.errors import OwnerDied

cdef enum:
    EBUSY = 16
    ETIMEDOUT = 110
    EOWNERDEAD = 130

LOCK_SIZE = sizeof(mmk_lock)
CONDITION_SIZE = sizeof(mmk_condition)


cdef class LockObject(Placed):
    """A lock of the core at its place."""

    # In which generation of the process it was taken through this object last, plus 1; 0: never.
    cdef uint32_t taken
    cdef bint reentrant

    def _place(self, MappedRegion region not None, size_t offset, bint create, bint reentrant, str label):
        self.reentrant = reentrant
        self.settle(region, offset, sizeof(mmk_lock), label)
        if create:
            self.check_made(mmk_lock_create(<mmk_lock *>self.at, self.kind()))
        self.find(self.kind(), sizeof(mmk_lock))

    cdef mmk_placed_kind kind(self) noexcept:
        return MMK_RLOCK if self.reentrant else MMK_LOCK

    cdef size_t size(self) noexcept:
        return sizeof(mmk_lock)

    cdef bint must_stay(self) noexcept:
        return self.taken == mmk_process_generation + 1 and mmk_lock_is_held_here(<mmk_lock *>self.at)

    cdef object owner_died(self):
        cdef uint32_t pid = mmk_lock_last_dead(<mmk_lock *>self.at)
        return OwnerDied(
            f"{self._label}: {f'process {pid}' if pid else 'whoever held it'} died holding it, and may have left what "
            "it protects half done. Put that right in `with lock.repairing():`, or call recover() if nothing is wrong.",
            pid or None,
        )

    cdef bint answer(self, int error, str call) except -1:
        """True if taken, False if the time is up, or the exception for it."""
        if error == 0:
            self.taken = mmk_process_generation + 1
            return True
        if error == -ETIMEDOUT:
            return False
        if error == -EOWNERDEAD:
            raise self.owner_died()
        raise self.failure(error, call)

    cdef bint acquire_slowly(self, uint64_t deadline) except -1:
        cdef patience call
        cdef int error
        have_patience(&call, deadline)
        self.waiting += 1
        with nogil:
            error = mmk_lock_acquire(<mmk_lock *>self.at, &call.wait)
        self.waiting -= 1
        check_patience(&call)
        return self.answer(error, "acquire")

    def acquire(self, object timeout=None):
        """Take the lock, and wait for it if another has it.

        Parameters
        ----------
        timeout : float or None
            How many seconds to wait; 0 does not wait, None waits for ever.

        Returns
        -------
        bool
            True if this thread has the lock now, False if the time is up.

        Raises
        ------
        OwnerDied
            A holder died with it, and nobody has recovered it since. The lock is not held.
        SyscallError
            ``EDEADLK``: this thread has it already, and it is not an `RLock`.
            ``ENOLCK``: this thread holds 2000 locks; the kernel looks after so many.
        ClosedError
            It was closed.

        References
        ----------
        pthread_mutex_lock(3), pthread_mutexattr_setrobust(3)
        """
        cdef uint64_t deadline = MMK_FOREVER if timeout is None else as_deadline(timeout)
        self.check_open()
        cdef int error = mmk_lock_try(<mmk_lock *>self.at)
        if error == 0:
            self.taken = mmk_process_generation + 1
            return True
        if error == -EBUSY:
            return deadline != 0 and self.acquire_slowly(deadline)
        return self.answer(error, "acquire")

    def release(self):
        """Give the lock back. The thread that took it does that, and no other.

        Raises
        ------
        SyscallError
            ``EPERM``: this thread does not hold it: another does, nobody, or the parent that was forked.
        ClosedError
            It was closed.
        """
        self.check_open()
        cdef int error = mmk_lock_release(<mmk_lock *>self.at)
        if error:
            raise self.failure(error, "release")

    def __enter__(self):
        self.check_open()
        cdef int error = mmk_lock_try(<mmk_lock *>self.at)
        if error == 0:
            self.taken = mmk_process_generation + 1
        elif error == -EBUSY:
            self.acquire_slowly(MMK_FOREVER)
        else:
            self.answer(error, "acquire")
        return self

    def __exit__(self, kind, error, traceback):
        if self.at == NULL:
            self.check_open()
        # A child that was forked in the block leaves it, too: the lock is its parent's, and the memory may be.
        if self.taken != mmk_process_generation + 1:
            return
        cdef int refused = mmk_lock_release(<mmk_lock *>self.at)
        # A wait() that has raised may have left the lock behind: its exception says why.
        if refused and error is None:
            raise self.failure(refused, "release")

    def recover(self):
        """Clear the mark that a dead holder has left: what the lock protects is in order.

        It does not take the lock. A repair that is under way is waited for.

        Returns
        -------
        bool
            Whether the lock was abandoned.

        Raises
        ------
        SyscallError
            ``EDEADLK``: this thread is repairing.
        ClosedError
            It was closed.

        See Also
        --------
        repairing : holds the lock while what it protects is put right.
        """
        cdef patience call
        cdef int result
        self.check_open()
        have_patience(&call, MMK_FOREVER)
        self.waiting += 1
        with nogil:
            result = mmk_lock_recover(<mmk_lock *>self.at, &call.wait)
        self.waiting -= 1
        check_patience(&call)
        if result < 0:
            raise self.failure(result, "recover")
        return result > 0

    def repairing(self):
        """Hold the lock for a ``with`` block that puts right what a dead holder has left.

        At the end of the block the mark is cleared and the lock released. If the block raises, or dies, the
        mark stays. Of several who were told `OwnerDied`, one after the other comes in: the first finds True.

        Returns
        -------
        context manager
            It gives a bool: whether the lock is abandoned; if not, another has repaired, or nobody died.

        Raises
        ------
        SyscallError
            ``EDEADLK``: this thread has the lock already.
        ClosedError
            It was closed.
        """
        return Repair(self)

    cdef bint begin_repair(self) except -1:
        cdef patience call
        cdef int result
        self.check_open()
        have_patience(&call, MMK_FOREVER)
        self.waiting += 1
        with nogil:
            result = mmk_lock_begin_repair(<mmk_lock *>self.at, &call.wait)
        self.waiting -= 1
        check_patience(&call)
        if result < 0:
            raise self.failure(result, "repairing")
        self.taken = mmk_process_generation + 1
        return result > 0

    cdef int end_repair(self, bint repaired) except -1:
        # As in __exit__: a child that was forked in the block has nothing to end.
        if self.taken != mmk_process_generation + 1:
            return 0
        self.check_open()
        cdef int refused = mmk_lock_end_repair(<mmk_lock *>self.at, repaired)
        if refused and repaired:
            raise self.failure(refused, "repairing")
        return 0


@cython.final
cdef class Repair:
    """A repair of a lock. No generator: a signal's exception could come between its taking the lock and its `try`."""

    cdef LockObject lock

    def __cinit__(self, LockObject lock not None):
        self.lock = lock

    def __enter__(self):
        return self.lock.begin_repair()

    def __exit__(self, kind, error, traceback):
        self.lock.end_repair(kind is None)


cdef class ConditionObject(LockObject):
    """A condition of the core at its place; its lock comes first in it."""

    def _place(self, MappedRegion region not None, size_t offset, bint create, str label):
        self.settle(region, offset, sizeof(mmk_condition), label)
        if create:
            self.check_made(mmk_condition_create(<mmk_condition *>self.at))
        self.find(MMK_CONDITION, sizeof(mmk_condition))

    cdef mmk_placed_kind kind(self) noexcept:
        return MMK_CONDITION

    cdef size_t size(self) noexcept:
        return sizeof(mmk_condition)

    def wait(self, object timeout=None):
        """Release the lock, wait until notified, and take the lock again.

        However often this thread has taken the lock, it is released, and taken again as often. What was waited for
        may have changed once more by then: wait in a loop, or use `wait_for`.

        Parameters
        ----------
        timeout : float or None
            How many seconds to wait to be notified; None waits for ever. Taking the lock again is waited for in
            any case.

        Returns
        -------
        bool
            True if notified, False if the time is up.

        Raises
        ------
        OwnerDied
            A process died holding the lock, before or while this one waited. The lock is not held.
        SyscallError
            ``EPERM``: this thread does not hold the lock. ``ENOSPC``: 256 wait already.
        ClosedError
            It was closed.
        """
        cdef patience call
        cdef int error
        cdef uint64_t deadline = as_deadline(timeout)
        self.check_open()
        have_patience(&call, deadline)
        self.waiting += 1
        with nogil:
            error = mmk_condition_wait(<mmk_condition *>self.at, &call.wait)
        self.waiting -= 1
        check_patience(&call)
        return self.answer(error, "wait")

    def notify(self, Py_ssize_t n=1):
        """Wake those who have waited longest. They go on when they have the lock.

        Parameters
        ----------
        n : int
            How many, at most.

        Raises
        ------
        SyscallError
            ``EPERM``: this thread does not hold the lock.
        ClosedError
            It was closed.
        """
        if n < 0:
            raise ValueError(f"notify: n must be at least 0, not {n}")
        self.check_open()
        cdef int error = mmk_condition_notify(<mmk_condition *>self.at, <uint32_t>min(n, 1 << 30))
        if error < 0:
            raise self.failure(error, "notify")
