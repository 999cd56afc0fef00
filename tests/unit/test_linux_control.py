"""Protection keys, userfaultfd, membarrier, and acting on other processes' memory, against the real kernel."""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import struct
import threading

import pytest

import mmkit
from mmkit import Advice, Prot, linux
from mmkit.flags import MapFlag, MembarrierCommand, ProtectionKey, UserfaultFlag
from raw import process
from support import NOBODY, PAGE, exit_signal, in_child, needs_root, perms, x86_64

READ_WRITE = Prot.READ | Prot.WRITE
PRIVATE = MapFlag.PRIVATE | MapFlag.ANONYMOUS


@pytest.fixture
def page():
    address = linux.mmap(0, PAGE, READ_WRITE, PRIVATE)
    yield address
    linux.munmap(address, PAGE)


@contextlib.contextmanager
def descriptor_of(pid):
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


# ---- protection keys

has_keys = pytest.mark.skipif(not mmkit.supports("pkey_alloc"), reason="no protection keys here")


@has_keys
def test_memory_whose_key_forbids_writing_is_not_written(page):
    def write():
        key = linux.pkey_alloc(0, ProtectionKey.DISABLE_WRITE)
        linux.pkey_mprotect(page, PAGE, READ_WRITE, key)
        assert ctypes.string_at(page, 1) == b"\0"
        ctypes.memset(page, 1, 1)

    assert exit_signal(write) == signal.SIGSEGV


@has_keys
def test_a_key_can_be_taken_until_all_are_and_given_back():
    def attempt():
        keys = []
        with pytest.raises(mmkit.SyscallError, match="keys") as refusal:
            while True:
                keys.append(linux.pkey_alloc())
        linux.pkey_free(keys[0])
        return refusal.value.errno, len(set(keys)) == len(keys) > 0, linux.pkey_alloc() == keys[0]

    assert in_child(attempt) == (errno.ENOSPC, True, True)


def test_a_key_nobody_took_is_refused_and_minus_one_is_mprotect(page):
    with pytest.raises(mmkit.SyscallError):
        linux.pkey_mprotect(page, PAGE, Prot.READ, 14)
    with pytest.raises(mmkit.SyscallError):
        linux.pkey_free(14)
    assert perms(page) == "rw-p"
    linux.pkey_mprotect(page, PAGE, Prot.READ, -1)
    assert perms(page) == "r--p"


# ---- userfaultfd

# linux/userfaultfd.h
_API, _REGISTER, _COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03


@pytest.mark.skipif(not mmkit.supports("UFFD_USER_MODE_ONLY"), reason="no userfaultfd here")
def test_a_fault_is_handed_over_and_mended(page):
    fd = linux.userfaultfd()
    assert not os.get_inheritable(fd)
    fcntl.ioctl(fd, _API, bytearray(struct.pack("3Q", 0xAA, 0, 0)))
    fcntl.ioctl(fd, _REGISTER, bytearray(struct.pack("4Q", page, PAGE, 1, 0)))
    filling = linux.mmap(0, PAGE, READ_WRITE, PRIVATE)
    ctypes.memmove(filling, b"mended", 6)
    # ctypes gives up the GIL for a foreign function: the fault is waited for without it.
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(6)
    thread = threading.Thread(target=lambda: libc.memcpy(buffer, ctypes.c_void_p(page), ctypes.c_size_t(6)))
    thread.start()
    assert select.select([fd], [], [], 60)[0]
    message = os.read(fd, 32)
    assert message[0] == 0x12
    assert struct.unpack("Q", message[16:24])[0] & ~(PAGE - 1) == page
    fcntl.ioctl(fd, _COPY, bytearray(struct.pack("5Q", page, filling, PAGE, 0, 0)))
    thread.join()
    assert buffer.raw == b"mended"
    os.close(fd)
    linux.munmap(filling, PAGE)


@needs_root
def test_faults_in_the_kernel_need_a_privilege_and_the_error_says_what_to_do():
    with open("/proc/sys/vm/unprivileged_userfaultfd") as setting:
        if setting.read().strip() != "0":
            pytest.skip("vm.unprivileged_userfaultfd is 1")

    def attempt():
        os.close(linux.userfaultfd(os.O_CLOEXEC | UserfaultFlag.USER_MODE_ONLY))
        with pytest.raises(PermissionError, match="USER_MODE_ONLY"):
            linux.userfaultfd(os.O_CLOEXEC)
        return True

    assert in_child(attempt, user=NOBODY)


# ---- membarrier


def test_membarrier_tells_what_it_has_and_does_it():
    has = linux.membarrier(MembarrierCommand.QUERY)
    assert has & MembarrierCommand.GLOBAL
    assert linux.membarrier(MembarrierCommand.GLOBAL) == 0
    if not has & MembarrierCommand.PRIVATE_EXPEDITED:
        pytest.skip("kernel before 4.14")

    def attempt():
        with contextlib.suppress(PermissionError):
            linux.membarrier(MembarrierCommand.PRIVATE_EXPEDITED_RSEQ)
            return "registered by somebody already"
        linux.membarrier(MembarrierCommand.REGISTER_PRIVATE_EXPEDITED)
        return linux.membarrier(MembarrierCommand.PRIVATE_EXPEDITED)

    assert in_child(attempt) == 0
    with pytest.raises(mmkit.SyscallError) as refusal:
        linux.membarrier(1 << 20)
    assert refusal.value.errno == errno.EINVAL


# ---- other processes


def wait():
    signal.pause()


@pytest.mark.skipif(not mmkit.supports("process_madvise"), reason="kernel before 5.10")
def test_another_processs_memory_can_be_advised():
    address = linux.mmap(0, 4 * PAGE, READ_WRITE, PRIVATE)
    ctypes.memset(address, 1, 4 * PAGE)
    with process(wait) as pid, descriptor_of(pid) as fd:
        assert (
            linux.process_madvise(fd, [(address, PAGE), (address + 2 * PAGE, 2 * PAGE)], Advice.COLD)
            == 3 * PAGE
        )
        with pytest.raises(mmkit.SyscallError) as refusal:
            linux.process_madvise(fd, [(address, PAGE)], Advice.DONTNEED)
        assert refusal.value.errno == errno.EINVAL
    linux.munmap(address, 4 * PAGE)
    with pytest.raises(mmkit.SyscallError) as refusal:
        linux.process_madvise(-1, [(0, PAGE)], Advice.COLD)
    assert refusal.value.errno == errno.EBADF


@needs_root
@pytest.mark.skipif(not mmkit.supports("process_madvise"), reason="kernel before 5.10")
def test_another_users_memory_is_not_advised():
    def attempt():
        with descriptor_of(1) as fd, pytest.raises(PermissionError, match="CAP_SYS_NICE"):
            linux.process_madvise(fd, [(PAGE, PAGE)], Advice.COLD)
        return True

    assert in_child(attempt, user=NOBODY)


@pytest.mark.skipif(not mmkit.supports("process_mrelease"), reason="kernel before 5.15")
def test_only_a_dying_processs_memory_is_taken():
    with process(wait) as pid, descriptor_of(pid) as fd:
        with pytest.raises(mmkit.SyscallError, match="SIGKILL") as refusal:
            linux.process_mrelease(fd)
        assert refusal.value.errno == errno.EINVAL
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    with descriptor_of(pid) as fd:
        os.kill(pid, signal.SIGKILL)
        # ESRCH: it was faster than we.
        with contextlib.suppress(ProcessLookupError):
            assert linux.process_mrelease(fd) is None
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@x86_64
def test_what_an_older_kernel_lacks_raises_under_its_own_name():
    def attempt():
        found = []
        for call in (
            linux.pkey_alloc,
            lambda: linux.pkey_free(1),
            lambda: linux.pkey_mprotect(0, 0, 0, 1),
            linux.userfaultfd,
            lambda: linux.membarrier(0),
            lambda: linux.process_madvise(0, [], 0),
            lambda: linux.process_mrelease(0),
        ):
            with pytest.raises(mmkit.SyscallError) as refusal:
                call()
            found.append((refusal.value.errno, refusal.value.call.partition("(")[0]))
        return found

    names = (
        "pkey_alloc",
        "pkey_free",
        "pkey_mprotect",
        "userfaultfd",
        "membarrier",
        "process_madvise",
        "process_mrelease",
    )
    refused = in_child(
        attempt, refuse=[(number, errno.ENOSYS) for number in (330, 331, 329, 323, 324, 440, 448)]
    )
    assert refused == [(errno.ENOSYS, name) for name in names]


# ---- bad arguments


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (linux.pkey_alloc, (2**40,)),
        (linux.pkey_free, (2**40,)),
        (linux.pkey_mprotect, (0, -1, 0, -1)),
        (linux.pkey_mprotect, (2**63 - PAGE, 2 * PAGE, 0, -1)),
        (linux.userfaultfd, (2**40,)),
        (linux.membarrier, (2**40,)),
        (linux.process_madvise, (0, [(0, -1)], 0)),
        (linux.process_madvise, (0, [(0, 2**62), (0, 2**62)], 0)),
        (linux.process_mrelease, (2**40,)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_arguments_raise_before_the_kernel_sees_them(function, arguments):
    with pytest.raises(ValueError, match=function.__name__):
        function(*arguments)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (linux.pkey_alloc, ("0",)), (linux.pkey_mprotect, (0, None, 0, 0)), (linux.userfaultfd, (0.5,)), (linux.membarrier, ("QUERY",)),
        (linux.process_madvise, (0, 5, 0)), (linux.process_madvise, (0, [5], 0)), (linux.process_mrelease, (None,)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_arguments_of_the_wrong_type_are_type_errors(function, arguments):
    with pytest.raises(TypeError):
        function(*arguments)
