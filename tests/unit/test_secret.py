"""Secret: made, opened, compared, wiped, closed; what it refuses; what a child has of it."""

import copy
import ctypes
import errno
import gc
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import mmkit
from mmkit import Secret, linux
from mmkit.flags import MapFlag, Prot
from steps import run_until_step
from support import (
    NOBODY,
    PAGE,
    exit_signal,
    in_child,
    locked_bytes,
    locks,
    needs_root,
    perms,
    refuse_calls,
    run,
    x86_64,
)

KEY = bytes(range(1, 33))


def secret_of(content=KEY, **how):
    return Secret.take(bytearray(content), **how)


def content_of(secret):
    with secret.open() as view:
        return bytes(view)


@pytest.fixture
def secret():
    with secret_of() as secret:
        yield secret


memfd_secret = pytest.mark.skipif(not mmkit.supports("memfd_secret"), reason="memfd_secret(2) is off here")
KINDS = [
    {},
    {"isolated": True},
    {"lock": "off"},
    pytest.param({"backend": "memfd_secret"}, marks=memfd_secret),
    pytest.param({"backend": "memfd_secret", "isolated": True}, marks=memfd_secret),
]


# ---- made


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("length", [1, 32, 33, 4064, 4065, 3 * PAGE])
def test_a_new_secret_is_zeros_and_holds_what_is_written(length, how):
    content = bytes(i % 251 + 1 for i in range(length))
    with Secret(length, **how) as secret:
        assert content_of(secret) == bytes(length)
        with secret.open(write=True) as view:
            view[:] = content
        assert content_of(secret) == content
        assert len(secret) == length


@pytest.mark.parametrize("length", [0, -1])
def test_a_secret_has_at_least_one_byte(length):
    with pytest.raises(ValueError, match="at least one byte"):
        Secret(length)


@pytest.mark.parametrize(
    "how", [{"lock": "maybe"}, {"backend": "disk"}, {"backend": "memfd_secret", "lock": 1}]
)
def test_a_wrong_choice_is_refused_by_name(how):
    with pytest.raises(ValueError, match="must be"):
        Secret(32, **how)


def test_a_secret_is_made_once(secret):
    with pytest.raises(ValueError, match="made once"):
        secret.__init__(10)
    secret.close()
    with pytest.raises(ValueError, match="made once"):
        secret.__init__(10)


def test_more_than_there_is_is_out_of_memory():
    with pytest.raises(mmkit.OutOfMemory):
        Secret(1 << 62, lock="off")


def test_random_secrets_differ():
    with Secret.random(32) as one, Secret.random(32) as other:
        assert one != other
        assert content_of(one) != bytes(32)


def test_take_wipes_what_it_takes():
    source = bytearray(KEY)
    with Secret.take(source) as secret:
        assert content_of(secret) == KEY
    assert source == bytes(32)
    array = np.arange(10, dtype="u4")
    with Secret.take(array) as secret:
        assert len(secret) == 40
    assert not array.any()


@pytest.mark.parametrize(
    "source", [b"constant", memoryview(b"constant"), memoryview(bytearray(20))[::2], "text"]
)
def test_what_cannot_be_wiped_is_not_taken(source):
    with pytest.raises(TypeError):
        Secret.take(source)


def test_a_secret_that_cannot_be_made_leaves_its_source():
    source = bytearray(KEY)
    with pytest.raises(ValueError):
        Secret.take(source, lock="perhaps")
    assert source == KEY


def test_a_secret_comes_from_a_pipe_in_pieces_and_no_further():
    reader, writer = os.pipe()
    pieces = threading.Thread(target=lambda: [os.write(writer, KEY[i : i + 5]) for i in range(0, 40, 5)])
    pieces.start()
    with Secret.from_fd(reader, 20) as secret:
        assert content_of(secret) == KEY[:20]
    pieces.join()
    assert os.read(reader, 100) == KEY[20:]
    os.close(writer)
    with pytest.raises(EOFError, match="after 0 of 5"):
        Secret.from_fd(reader, 5)
    os.close(reader)
    with pytest.raises(mmkit.SyscallError, match="read"):
        Secret.from_fd(reader, 5)


def test_a_signal_handler_may_end_the_wait_for_a_descriptor():
    reader, writer = os.pipe()

    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(TimeoutError):
            Secret.from_fd(reader, 5)
    finally:
        signal.signal(signal.SIGALRM, before)
        os.close(reader)
        os.close(writer)


def test_a_secret_comes_from_a_socket_and_goes_to_one(secret):
    here, there = socket.socketpair()
    with here, there, Secret(32) as received:
        with secret.open() as view:
            here.sendall(view)
        with received.open(write=True) as view:
            assert there.recv_into(view) == 32
        assert received == secret
        with received.open() as view:
            assert os.write(here.fileno(), view) == 32
        with Secret.from_fd(there.fileno(), 32) as again:
            assert again == secret


# ---- open


def test_bytes_are_seen_only_inside_the_block(secret):
    assert perms(secret._address) == "---p"
    with secret.open() as view:
        assert perms(secret._address) == "r--p"
        assert view.readonly
        assert bytes(view) == KEY
    assert perms(secret._address) == "---p"
    with pytest.raises(ValueError, match="released"):
        view[0]


def test_only_what_is_opened_for_writing_is_written(secret):
    with secret.open() as view, pytest.raises(TypeError):
        view[0] = 1
    with secret.open(write=True) as view:
        view[0] = 255
    assert content_of(secret) == b"\xff" + KEY[1:]


def test_opens_nest(secret):
    with secret.open() as outer:
        with secret.open(write=True) as inner:
            inner[0] = 9
            assert outer[0] == 9
        assert perms(secret._address) == "r--p"


def test_the_handle_gives_no_buffer_and_a_block_is_entered_once_at_a_time(secret):
    for refuses in (secret, secret.open()):
        with pytest.raises((TypeError, BufferError)):
            memoryview(refuses)
    opened = secret.open()
    with opened, pytest.raises(BufferError, match="entered already"):
        opened.__enter__()
    with opened as view:
        assert bytes(view) == KEY


def test_an_exception_in_the_block_passes_and_shuts_it(secret):
    with pytest.raises(ZeroDivisionError), secret.open():
        raise ZeroDivisionError
    assert perms(secret._address) == "---p"


@pytest.mark.parametrize(
    "make", [lambda view: view[3:], lambda view: np.frombuffer(view, "u1")], ids=["slice", "array"]
)
def test_what_outlives_the_block_is_told_and_never_reads_elsewhere(secret, make):
    with pytest.raises(BufferError, match="alive"), secret.open() as view:
        left = make(view)
    assert bytes(left[:2]) in (KEY[3:5], KEY[:2])
    with pytest.raises(BufferError, match="open"):
        secret.close()
    del left, view
    gc.collect()
    assert perms(secret._address) == "---p"
    secret.close()


def test_a_note_says_so_when_another_exception_is_on_its_way(secret):
    with pytest.raises(ZeroDivisionError) as caught, secret.open() as view:
        left = view[1:]
        raise ZeroDivisionError
    assert "alive" in caught.value.__notes__[0]
    left.release()


def test_a_block_that_is_never_left_ends_with_its_garbage():
    secret = secret_of()
    address = secret._address

    def hold(secret):
        with secret.open() as view:
            yield view

    generator = hold(secret)
    next(generator)
    del generator
    gc.collect()
    opened = secret.open()
    view = opened.__enter__()
    assert perms(address) == "r--p"
    gone = weakref.ref(secret)
    del opened, view, secret
    gc.collect()
    assert gone() is None
    assert perms(address) in ("---p", None)


# ---- closed


def test_closing_ends_it_for_good(secret):
    secret.close()
    secret.close()
    assert secret.closed
    for use in (
        secret.open().__enter__,
        secret.wipe,
        secret.status,
        lambda: secret == KEY,
        lambda: secret == secret,
    ):
        with pytest.raises(mmkit.ClosedError, match="closed"):
            use()
    assert len(secret) == 32


def test_closing_under_a_live_view_raises_and_changes_nothing(secret):
    with secret.open() as view:
        with pytest.raises(BufferError, match="open"):
            secret.close()
        assert bytes(view) == KEY
    assert content_of(secret) == KEY


def test_wiping_is_now_and_leaves_it_usable(secret):
    with secret.open() as view:
        secret.wipe()
        assert bytes(view) == bytes(32)
    with secret.open(write=True) as view:
        view[:] = KEY
    assert content_of(secret) == KEY


def test_a_dropped_secret_is_wiped(secret):
    dropped = secret_of()
    place = dropped._address
    del dropped
    with Secret(32) as again:
        assert again._address == place
        assert content_of(again) == bytes(32)


def test_a_dropped_secret_that_cannot_be_wiped_is_told():
    def drop():
        told = []
        sys.unraisablehook = told.append
        dropped = Secret.random(32)
        refuse_calls([((10, 3), errno.EACCES)])  # mprotect(…, PROT_READ | PROT_WRITE)
        del dropped
        sys.unraisablehook = sys.__unraisablehook__
        return [(type(each.exc_value).__name__, str(each.exc_value)) for each in told]

    [(name, text)] = in_child(drop)
    assert name == "SyscallPermissionError"
    assert "mprotect(the secret at 0x" in text


def test_the_with_block_of_a_secret_notes_what_kept_it_from_closing():
    with pytest.raises(ZeroDivisionError) as caught, secret_of() as secret:
        view = secret.open().__enter__()
        raise ZeroDivisionError
    assert "open" in caught.value.__notes__[0]
    view.release()
    secret.close()


# ---- compared, shown, copied


def test_equality_is_by_content_and_length(secret):
    with secret_of() as same, secret_of(KEY[:31]) as shorter, secret_of(KEY[:31] + b"x") as other:
        assert secret == same
        assert secret == KEY
        assert secret == bytearray(KEY)
        assert secret == secret
        assert secret != shorter
        assert secret != other
        assert secret != KEY[:31]
        assert secret != "text"
        assert perms(secret._address) == "---p"


@pytest.mark.parametrize(
    "use", [hash, bytes, copy.copy, copy.deepcopy, pickle.dumps, memoryview, iter, lambda s: s[0]]
)
def test_what_would_make_a_copy_is_refused(secret, use):
    with pytest.raises(TypeError):
        use(secret)


def test_neither_repr_nor_text_nor_errors_show_it(secret):
    shown = [repr(secret), str(secret), f"{secret}", repr(secret.open()), str(secret.status())]
    with secret.open():
        shown.append(repr(secret))
    secret.close()
    shown.append(repr(secret))
    assert shown[0] == "<mmkit.Secret: 32 bytes>"
    assert shown[-2] == "<mmkit.Secret: 32 bytes, open>"
    assert shown[-1] == "<mmkit.Secret: closed>"
    assert not any(piece in text for text in shown for piece in (KEY.hex()[:16], repr(KEY)[2:20]))


# ---- facts


@locks
@pytest.mark.parametrize(
    ("how", "flags"),
    [
        ({}, "lo dd wf"),
        ({"isolated": True}, "lo dd wf"),
        ({"lock": "off"}, "dd wf"),
        pytest.param({"backend": "memfd_secret"}, "lo dd dc", marks=memfd_secret),
    ],
)
def test_status_is_what_the_kernel_says(how, flags):
    with Secret(32, **how) as secret:
        status = secret.status()
        measured = (status.locked, status.not_dumped, status.wiped_on_fork, status.not_forked)
        assert measured == tuple(flag in flags.split() for flag in ("lo", "dd", "wf", "dc"))
        assert status.perms[:3] == "---"
        assert (status.length, status.area) == (32, PAGE)
        assert status.footprint >= PAGE
        assert status.locked_in_ram == (PAGE if status.locked else 0)
        assert status.lock_used == locked_bytes()


@locks
def test_a_status_that_meets_close_is_of_the_secret_or_says_that_it_is_closed():
    outcomes, step, acted = set(), 1, True
    while acted:
        secret = Secret(32, isolated=True)
        address = secret.status().address // PAGE * PAGE
        there = []

        def close_and_take_the_place(secret=secret, address=address, there=there):
            secret.close()
            how = MapFlag.PRIVATE | MapFlag.ANONYMOUS | MapFlag.FIXED_NOREPLACE
            there.append(linux.mmap(address, PAGE, Prot.READ, how, -1, 0))

        try:
            acted, status = run_until_step(secret.status, step, close_and_take_the_place)
        except mmkit.ClosedError:
            outcomes.add("closed")
        else:
            outcomes.add("locked" if status.locked else "of other memory")
        for place in there:
            linux.munmap(place, PAGE)
        secret.close()
        # Close to its beginning every step, then in strides: it reads all of smaps.
        step += 1 + step // 8
    assert outcomes == {"closed", "locked"}


@locks
def test_a_key_costs_sixty_four_bytes_of_the_lock_limit():
    before = locked_bytes()
    keys = [Secret(32) for _ in range(640)]
    assert locked_bytes() - before <= 11 * PAGE
    for key in keys:
        key.close()
    assert locked_bytes() - before <= PAGE


# ---- limits

LIMIT = {resource.RLIMIT_MEMLOCK: 64 << 10}


@locks
@needs_root
def test_five_hundred_keys_fit_an_ordinary_users_limit_and_the_one_too_many_says_why():
    def fill():
        keys = [Secret.random(32) for _ in range(500)]
        before = [content_of(key) for key in keys]
        more = []
        with pytest.raises(mmkit.OutOfMemory) as caught:
            while True:
                more.append(Secret(32))
        assert [content_of(key) for key in keys] == before
        assert len(set(before)) == 500
        with pytest.raises(mmkit.OutOfMemory):
            Secret(100)
        more.pop().close()
        assert content_of(Secret(32)) == bytes(32)
        return len(more), str(caught.value), isinstance(caught.value, OSError)

    count, text, is_os_error = in_child(fill, user=NOBODY, limits=LIMIT)
    assert count > 500
    assert is_os_error
    assert "mlock(4 KiB)" in text
    assert "RLIMIT_MEMLOCK is 64 KiB, 64 KiB of it is used" in text
    assert "ulimit -l" in text


@locks
@needs_root
def test_where_nothing_may_be_locked_the_caller_decides():
    def use():
        with pytest.raises(PermissionError):
            Secret(32)
        with pytest.warns(RuntimeWarning, match="not locked") as seen:
            warned = Secret.random(32, lock="warn")
            Secret(32, lock="warn").close()
        # Shown once a place: here, not where mmkit warns.
        assert [each.filename for each in seen] == [__file__] * 2
        with Secret.take(bytearray(KEY), lock="off") as off:
            return warned.status().locked, off.status().locked, content_of(off)

    assert in_child(use, user=NOBODY, limits={resource.RLIMIT_MEMLOCK: 0}) == (False, False, KEY)


@locks
@needs_root
@memfd_secret
def test_secret_pages_count_against_the_limit_too():
    def fill():
        kept = []
        with pytest.raises(mmkit.SyscallError, match="RLIMIT_MEMLOCK"):
            while len(kept) < 100:
                kept.append(Secret(PAGE, backend="memfd_secret"))
        return len(kept)

    assert in_child(fill, user=NOBODY, limits=LIMIT) == 16


@x86_64
def test_where_secret_memory_is_off_the_message_says_how_to_have_it():
    def use():
        with pytest.raises(mmkit.SyscallError, match=r"secretmem\.enable"):
            Secret(32, backend="memfd_secret")
        return True

    assert in_child(use, refuse=[(447, 38)])


@locks
def test_when_the_process_has_too_many_areas_the_limit_is_named_and_nothing_left():
    def exhaust():
        secret = secret_of()
        maximum = int(Path("/proc/sys/vm/max_map_count").read_text())
        region = mmkit.Region.anonymous((maximum + 1000) * PAGE, noreserve=True)
        with pytest.raises(mmkit.OutOfMemory):
            for page in range(0, maximum, 2):
                mmkit.linux.mprotect(region.address + page * PAGE, PAGE, mmkit.Prot.READ)
        before = locked_bytes()
        with pytest.raises(mmkit.OutOfMemory, match="vm.max_map_count"):
            Secret(100, isolated=True)
        assert locked_bytes() == before
        # Those that live are protected by no new areas.
        with secret.open(write=True) as view:
            view[0] = 7
        secret.close()
        region.close()
        return content_of(Secret(100, isolated=True)) == bytes(100)

    assert in_child(exhaust)


# ---- what C code does to it


OVERRUN = """
import ctypes, resource, sys
from mmkit import Secret
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
secret = Secret(32)
with secret.open(write=True):
    ctypes.memset(secret.status().address + int(sys.argv[1]), 0, 1)
print("not reached")
"""


@pytest.mark.parametrize(("place", "words"), [(32, "behind it"), (-1, "before it"), (47, "behind it")])
def test_a_zero_past_either_end_ends_the_process_when_the_block_ends(place, words):
    ended = run(OVERRUN, str(place))
    assert (ended.returncode, ended.stdout) == (-signal.SIGABRT, "")
    assert ended.stderr.startswith("mmkit: secret memory is corrupt at 0x")
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("isolated", [False, True])
def test_what_is_not_open_cannot_be_touched(isolated):
    def touch():
        secret = secret_of(isolated=isolated)
        ctypes.string_at(secret._address, 1)

    def touch_behind():
        secret = secret_of(isolated=True)
        with secret.open():
            ctypes.string_at(secret._address + 32, 1)

    assert exit_signal(touch) == signal.SIGSEGV
    assert exit_signal(touch_behind) == signal.SIGSEGV


def test_a_guarded_access_to_what_is_not_open_is_an_exception(secret):
    with pytest.raises(mmkit.MemoryFault, match="protection"):
        mmkit.peek(secret._address, 1)
    with pytest.raises(mmkit.MemoryFault):
        mmkit.poke(secret._address, b"x")
    assert secret == KEY


def test_raw_calls_do_not_map_over_it(secret):
    page = secret._address // PAGE * PAGE
    with pytest.raises(mmkit.Error, match="overlaps"):
        mmkit.linux.munmap(page, PAGE)
    assert secret == KEY


# ---- fork


def test_a_child_has_no_secrets_of_its_parents_and_makes_its_own(secret):
    def use():
        for call in (lambda: secret == KEY, secret.open().__enter__, secret.wipe, secret.status):
            with pytest.raises(mmkit.ClosedError):
                call()
        with pytest.raises(mmkit.ClosedError, match="forked child"):
            secret.wipe()
        secret.close()
        with secret_of(b"own") as own:
            return secret.closed, content_of(own), own.status().locked

    assert in_child(use) == (True, b"own", True)
    assert content_of(secret) == KEY


def test_a_view_that_a_child_inherits_shows_zeros(secret):
    with secret.open() as view:
        assert in_child(lambda: bytes(view)) == bytes(32)
        assert bytes(view) == KEY


@memfd_secret
def test_where_the_kernel_gives_a_child_nothing_a_view_faults():
    with secret_of(backend="memfd_secret") as secret, secret.open() as view:
        assert exit_signal(lambda: bytes(view)) == signal.SIGSEGV


# ---- the process


def test_a_hardened_process_dumps_nothing_and_shows_nothing_to_its_user():
    def harden():
        mmkit.secret.harden_process()
        core = resource.getrlimit(resource.RLIMIT_CORE)
        with secret_of() as secret:
            return core, secret.status().not_dumped, os.stat("/proc/self/mem").st_uid

    assert in_child(harden, user=NOBODY) == ((0, 0), True, 0)


@locks
@needs_root
def test_a_process_that_does_not_fit_its_limit_is_told():
    def harden():
        with pytest.raises(mmkit.OutOfMemory, match="RLIMIT_MEMLOCK"):
            mmkit.secret.harden_process(lock="require")
        with pytest.warns(RuntimeWarning, match="not locked"):
            mmkit.secret.harden_process(lock="warn")
        with pytest.raises(ValueError, match="lock must be"):
            mmkit.secret.harden_process(lock="no")
        return True

    assert in_child(harden, user=NOBODY, limits=LIMIT)


@locks
@needs_root
def test_a_process_can_be_locked_as_a_whole():
    code = """
import mmkit
mmkit.secret.harden_process(lock="require")
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmLck")) > 4096)
with mmkit.Secret.random(32) as secret:
    print(secret.status().locked)
"""
    assert run(code).stdout.split() == ["True", "True"]


# ---- threads


def test_threads_share_a_secret():
    errors = []
    with secret_of() as secret:

        def use(write):
            for _ in range(300):
                with secret.open(write=write) as view:
                    if bytes(view) != KEY:
                        errors.append(bytes(view))
                with Secret.take(bytearray(KEY)) as own:
                    if own != secret:
                        errors.append("own")

        threads = [threading.Thread(target=use, args=(i % 2 == 0,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert perms(secret._address) == "---p"
    assert errors == []
