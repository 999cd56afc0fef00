import errno
import os
import pickle

import pytest

import mmkit
from mmkit import SyscallError
from mmkit.hints import failure
from mmkit.wording import size


@pytest.mark.parametrize(
    ("number", "standard"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EACCES, PermissionError),
        (errno.EPERM, PermissionError),
        (errno.EEXIST, FileExistsError),
        (errno.ESRCH, ProcessLookupError),
        (errno.EINTR, InterruptedError),
        (errno.ENOMEM, MemoryError),
        (errno.ENOMEM, mmkit.OutOfMemory),
    ],
)
def test_a_refusal_is_the_standard_exception_of_its_errno(number, standard):
    error = SyscallError(number, "mmap(0x0, 4 KiB)")
    assert isinstance(error, standard)
    assert isinstance(error, mmkit.Error)
    assert isinstance(error, OSError)
    assert error.errno == number


def test_a_refusal_without_a_standard_exception_is_plain():
    assert type(SyscallError(errno.EINVAL, "mmap()")) is SyscallError


def test_out_of_memory_from_the_kernel_keeps_its_errno_and_puts_syscall_error_first():
    bases = type(SyscallError(errno.ENOMEM, "mmap()")).__mro__
    assert bases.index(SyscallError) < bases.index(mmkit.OutOfMemory)


def test_a_refusal_says_the_call_the_reason_and_what_to_do():
    text = str(SyscallError(errno.ENOMEM, "mlock(0x7f3a2c000000, 16 MiB)", "Raise it."))
    assert text == "[Errno 12] mlock(0x7f3a2c000000, 16 MiB): Cannot allocate memory\nRaise it."


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOMEM, errno.EINVAL])
def test_errors_survive_pickling(number):
    error = SyscallError(number, "mmap()", "hint")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.errno, copy.call, copy.hint) == (
        type(error), str(error), number, "mmap()", "hint",
    )  # fmt: skip
    fault = mmkit.MemoryFault("text", 0x1000, 5, "write", "protection")
    copy = pickle.loads(pickle.dumps(fault))
    assert (str(copy), copy.address, copy.offset, copy.access, copy.reason) == (
        "text",
        0x1000,
        5,
        "write",
        "protection",
    )


def test_use_after_close_is_a_value_error_as_for_files():
    assert issubclass(mmkit.ClosedError, ValueError)
    assert issubclass(mmkit.ClosedError, mmkit.Error)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOMEM, errno.EINVAL, errno.EPERM])
def test_what_to_do_is_not_taken_for_the_name_of_a_file(number):
    error = SyscallError(number, "mlock(0x0, 4 KiB)", "Lock less.")
    assert (error.filename, error.filename2, error.hint) == (None, None, "Lock less.")
    assert (error.errno, str(error)) == (
        number,
        f"[Errno {number}] {error.call}: {error.strerror}\nLock less.",
    )


def test_flags_are_decoded_in_the_call():
    error = failure(
        -errno.EINVAL, "mmap", (0, 4096), (mmkit.Prot.READ | mmkit.Prot.WRITE, mmkit.MapFlag.SHARED_VALIDATE)
    )
    assert str(error).startswith("[Errno 22] mmap(0x0, 4 KiB, READ|WRITE, SHARED_VALIDATE)")


def test_addresses_are_written_as_numbers_and_names_in_quotes():
    with pytest.raises(OSError, match=r"shmdt\(0x10\): Invalid argument"):
        mmkit.linux.shmdt(0x10)
    with pytest.raises(OSError, match=r"process_vm_readv\(\d+, 1 ranges, 3 bytes\): "):
        mmkit.linux.process_vm_readv(os.getpid(), [(0, 3)])
    with pytest.raises(OSError, match=r"shm_unlink\('/mmkit-test-nobody'\): "):
        mmkit.linux.shm_unlink("/mmkit-test-nobody")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (4095, "4095 B"),
        (4096, "4 KiB"),
        (5000, "5000 B"),
        (50000, "48.8 KiB"),
        (16 << 20, "16 MiB"),
        (3 << 40, "3 TiB"),
    ],
)
def test_sizes_are_written_as_people_do(count, text):
    assert size(count) == text


def test_a_code_of_a_later_core_is_still_an_error():
    assert type(failure(-4999, "mmap")) is mmkit.Error
