"""mbind, get_mempolicy, set_mempolicy and move_pages, against the real kernel."""

import ctypes
import errno
import os

import pytest

import mmkit
from mmkit import Prot, linux
from mmkit.flags import BindFlag, MapFlag, Policy, PolicyFlag, PolicyQuery
from support import NOBODY, PAGE, in_child, needs_root, x86_64

READ_WRITE = Prot.READ | Prot.WRITE
PRIVATE = MapFlag.PRIVATE | MapFlag.ANONYMOUS

if not mmkit.supports("get_mempolicy"):
    pytest.skip("a kernel without NUMA, or a sandbox that refuses it", allow_module_level=True)

ALLOWED = linux.get_mempolicy(0, PolicyQuery.MEMS_ALLOWED).nodemask
FIRST = (ALLOWED & -ALLOWED).bit_length() - 1


@pytest.fixture
def pages():
    """Two pages; the first is there."""
    address = linux.mmap(0, 2 * PAGE, READ_WRITE, PRIVATE)
    ctypes.memset(address, 1, 1)
    yield address
    linux.munmap(address, 2 * PAGE)


def test_a_process_may_use_some_node():
    assert ALLOWED > 0
    assert os.path.exists(f"/sys/devices/system/node/node{FIRST}")


@pytest.mark.parametrize(
    ("mode", "mask"),
    [
        (Policy.BIND, 1 << FIRST), (Policy.PREFERRED, 1 << FIRST), (Policy.INTERLEAVE, ALLOWED), (Policy.LOCAL, 0),
        (Policy.BIND | PolicyFlag.STATIC_NODES, 1 << FIRST),
    ],
)  # fmt: skip
def test_what_mbind_sets_for_a_range_get_mempolicy_tells(pages, mode, mask):
    before = linux.get_mempolicy()
    linux.mbind(pages, 2 * PAGE, mode, mask)
    assert linux.get_mempolicy(pages, PolicyQuery.ADDR) == (mode, mask)
    assert linux.get_mempolicy() == before
    linux.mbind(pages, 2 * PAGE, Policy.DEFAULT)
    assert linux.get_mempolicy(pages, PolicyQuery.ADDR) == (Policy.DEFAULT, 0)


def test_mbind_moves_what_is_there_and_keeps_it(pages):
    linux.mbind(pages, 2 * PAGE, Policy.BIND, 1 << FIRST, BindFlag.MOVE | BindFlag.STRICT)
    assert ctypes.string_at(pages, 2) == b"\1\0"
    assert linux.get_mempolicy(pages, PolicyQuery.NODE | PolicyQuery.ADDR).mode == FIRST


def test_what_set_mempolicy_sets_holds_for_the_thread_and_its_children():
    def attempt():
        linux.set_mempolicy(Policy.BIND, 1 << FIRST)
        return linux.get_mempolicy(), in_child(linux.get_mempolicy)

    before = linux.get_mempolicy()
    assert in_child(attempt) == ((Policy.BIND, 1 << FIRST),) * 2
    assert linux.get_mempolicy() == before


def test_move_pages_tells_where_each_page_is(pages):
    assert linux.move_pages(0, [pages, pages + PAGE]) == (FIRST, -errno.ENOENT)
    assert linux.move_pages(os.getpid(), [pages, 0]) == (FIRST, -errno.EFAULT)
    assert linux.move_pages(0, []) == ()


def test_move_pages_moves_to_the_node_that_is_asked_for(pages):
    assert linux.move_pages(0, [pages], [FIRST], BindFlag.MOVE) == (FIRST,)
    with pytest.raises(mmkit.SyscallError) as refusal:
        linux.move_pages(0, [pages], [1023], BindFlag.MOVE)
    assert refusal.value.errno == errno.ENODEV


@pytest.mark.parametrize(
    "call",
    [
        lambda a: linux.mbind(a, PAGE, Policy.BIND, 0),
        lambda a: linux.mbind(a, PAGE, Policy.BIND, 1 << 1000),
        lambda a: linux.mbind(a + 1, PAGE, Policy.DEFAULT),
        lambda a: linux.mbind(a, PAGE, 99),
        lambda a: linux.set_mempolicy(Policy.BIND, 0),
        lambda a: linux.set_mempolicy(99),
        lambda a: linux.get_mempolicy(a, 0x100),
    ],
)
def test_what_the_kernel_cannot_mean_is_einval(pages, call):
    before = linux.get_mempolicy()
    with pytest.raises(mmkit.SyscallError) as refusal:
        call(pages)
    assert refusal.value.errno == errno.EINVAL
    assert linux.get_mempolicy() == before


def test_where_nothing_is_mapped_is_efault():
    hole = linux.mmap(0, PAGE, READ_WRITE, PRIVATE)
    linux.munmap(hole, PAGE)
    for call in (
        lambda: linux.mbind(hole, PAGE, Policy.BIND, 1 << FIRST),
        lambda: linux.get_mempolicy(hole, PolicyQuery.ADDR),
    ):
        with pytest.raises(mmkit.SyscallError) as refusal:
            call()
        assert refusal.value.errno == errno.EFAULT


@needs_root
def test_moving_what_others_use_needs_a_privilege():
    def attempt():
        address = linux.mmap(0, PAGE, READ_WRITE, PRIVATE)
        with pytest.raises(PermissionError):
            linux.mbind(address, PAGE, Policy.BIND, 1 << FIRST, BindFlag.MOVE_ALL)
        with pytest.raises(PermissionError):
            linux.move_pages(1, [address])
        return True

    assert in_child(attempt, user=NOBODY)


@x86_64
def test_a_kernel_without_nodes_says_enosys():
    def attempt():
        found = []
        for call in (
            lambda: linux.mbind(0, PAGE, Policy.DEFAULT),
            linux.get_mempolicy,
            lambda: linux.set_mempolicy(Policy.DEFAULT),
            lambda: linux.move_pages(0, [0]),
        ):
            with pytest.raises(mmkit.SyscallError) as refusal:
                call()
            found.append((refusal.value.errno, refusal.value.call.partition("(")[0]))
        return found

    names = ("mbind", "get_mempolicy", "set_mempolicy", "move_pages")
    refused = in_child(attempt, refuse=[(number, errno.ENOSYS) for number in (237, 239, 238, 279)])
    assert refused == [(errno.ENOSYS, name) for name in names]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (linux.mbind, (0, -1, 0)),
        (linux.mbind, (2**63 - PAGE, 2 * PAGE, 0)),
        (linux.mbind, (0, PAGE, 0, -1)),
        (linux.mbind, (0, PAGE, 0, 1 << 1024)),
        (linux.mbind, (0, PAGE, 2**40)),
        (linux.get_mempolicy, (-1,)),
        (linux.set_mempolicy, (0, -1)),
        (linux.set_mempolicy, (0, 1 << 1024)),
        (linux.move_pages, (0, [-1])),
        (linux.move_pages, (0, [0], [])),
        (linux.move_pages, (0, [0], [2**40])),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_arguments_raise_before_the_kernel_sees_them(function, arguments):
    with pytest.raises(ValueError, match=function.__name__):
        function(*arguments)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (linux.mbind, ("0", PAGE, 0)), (linux.mbind, (0, PAGE, 0, [0])), (linux.set_mempolicy, (0, 1.5)),
        (linux.move_pages, (0, 5)), (linux.move_pages, (0, ["0"])), (linux.move_pages, (0, [0], 5)), (linux.get_mempolicy, (None,)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_arguments_of_the_wrong_type_are_type_errors(function, arguments):
    with pytest.raises(TypeError):
        function(*arguments)
