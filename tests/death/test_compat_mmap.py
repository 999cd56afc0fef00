"""What ends a process with the standard mmap is an exception with mmkit's."""

import mmap as standard
import os
import signal

import pytest

from mmkit import MemoryFault
from mmkit.compat import mmap
from support import PAGE, exit_signal, sanitized


@pytest.fixture(params=[True, False], ids=["trackfd", "no trackfd"])
def cut(request, tmp_path):
    """A map of three pages of which the file has lost the last two."""
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"x" * 3 * PAGE)
        file.flush()
        with mmap.mmap(file.fileno(), 0, trackfd=request.param) as memory:
            file.truncate(PAGE)
            yield memory


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m[PAGE],
        lambda m: m[:],
        lambda m: m[::3],
        lambda m: m[::-1],
        lambda m: m[:: PAGE // 2],
        lambda m: m.__setitem__(2 * PAGE, 1),
        lambda m: m.__setitem__(slice(PAGE - 1, PAGE + 1), b"ab"),
        lambda m: m.__setitem__(slice(0, None, PAGE), b"abc"),
        lambda m: m.read(),
        lambda m: (m.seek(PAGE), m.read_byte()),
        lambda m: (m.seek(PAGE), m.write_byte(1)),
        lambda m: (m.seek(PAGE), m.write(b"abc")),
        lambda m: m.readline(),
        lambda m: m.find(b"y"),
        lambda m: m.rfind(b"y"),
        lambda m: m.move(0, PAGE, 5),
        lambda m: m.move(PAGE, 0, 5),
        lambda m: list(m),
        lambda m: list(reversed(m)),
        lambda m: b"y" in m,
    ],
)
def test_a_file_cut_short_under_it_raises_and_the_process_lives(cut, use):
    position = cut.tell()
    with pytest.raises(MemoryFault) as fault:
        use(cut)
    # Without a descriptor nobody can say whether the file has ended.
    assert fault.value.reason in ("beyond end of file", "not backed")
    assert fault.value.offset >= PAGE
    assert cut.tell() in (position, PAGE)
    assert cut[:PAGE] == b"x" * PAGE or cut[PAGE - 1] == ord("a") or cut[0] == ord("a")


def test_flushing_what_a_cut_file_has_lost_is_an_error_where_the_file_is_known(tmp_path):
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(2 * PAGE)
        with mmap.mmap(file.fileno(), 0) as memory:
            file.truncate(PAGE)
            with pytest.raises(OSError, match="lost"):
                memory.flush()
            memory.flush(0, PAGE)


@sanitized
def test_the_standard_module_dies_of_it(tmp_path):
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(2 * PAGE)
        memory = standard.mmap(file.fileno(), 0)
        os.truncate(file.fileno(), PAGE)
        assert exit_signal(lambda: memory[PAGE]) == signal.SIGBUS
        memory.close()


def test_an_access_that_protection_forbids_raises(tmp_path):
    with mmap.mmap(-1, 2 * PAGE) as memory:
        memory.protect(0, PAGE)
        for use in (
            lambda: memory[PAGE],
            lambda: memory.find(b"x"),
            lambda: memory.__setitem__(PAGE, 1),
            lambda: memory.move(0, PAGE, 1),
            lambda: list(memory),
        ):
            with pytest.raises(MemoryFault, match="protection"):
                use()
        with pytest.raises(BufferError):
            memoryview(memory)
    with mmap.mmap(-1, PAGE, prot=mmap.PROT_NONE) as nothing, pytest.raises(MemoryFault):
        nothing[0]
