"""Promises of `mmkit.shared.array`: numpy arrays by name."""

import contextlib
import gc
import itertools
import multiprocessing
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

import mmkit
from mmkit import SharedMemory, shared
from mmkit.shared import array_type
from segment_tools import names
from steps import Interruption, interrupt, run_until_step
from support import run

DTYPES = [
    "f8", "?", "i1", ">i4", "c16", "S5", "U3", "M8[ns]", "m8[s]", "V7",
    [("x", "f4"), ("y", "<i8", (2, 3))],
    {"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 16], "itemsize": 32},
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4), (3, 0, 2)], ids=str)
def test_dtype_and_shape_come_back_and_the_memory_is_the_same(name, dtype, shape):
    with shared.array(name, shape, dtype, create=True) as ours:
        theirs = shared.array(name)
        assert (theirs.dtype, theirs.shape) == (np.dtype(dtype), shape) == (ours.dtype, ours.shape)
        assert not ours.view("u1").any() if ours.size and shape else True
        ours.reshape(-1).view(f"V{ours.itemsize}")[:] = b"\x01" * ours.itemsize
        assert theirs.tobytes() == ours.tobytes()
        assert ours.flags.aligned
        assert ours.flags.c_contiguous
    assert name not in names()


@pytest.mark.parametrize("persist", [False, True])
@pytest.mark.parametrize("given", [True, False], ids=["named", "unnamed"])
def test_an_array_that_numpy_cannot_make_leaves_nothing_behind(name, persist, given):
    before, open_before = names(), os.listdir("/proc/self/fd")
    with pytest.raises(ValueError, match="dimension"):
        shared.array(name if given else None, (1,) * 65, "f8", create=True, persist=persist)
    assert (names(), os.listdir("/proc/self/fd")) == (before, open_before)
    with shared.array(name, 3, create=True) as array:
        array.segment.unlink()


def test_an_exception_at_any_step_of_making_the_array_itself_leaves_nothing_behind(name, monkeypatch):
    # From the step on at which the segment has its name.
    whole = array_type.array_in
    steps = iter(itertools.count(1))

    def interrupted(segment, dtype, shape):
        assert name in names()
        return run_until_step(lambda: whole(segment, dtype, shape), next(steps), interrupt)[1]

    monkeypatch.setattr(array_type, "array_in", interrupted)
    array = None
    with warnings.catch_warnings():
        # An array that was whole when the exception came goes with that.
        warnings.simplefilter("ignore", ResourceWarning)
        while array is None:
            with contextlib.suppress(Interruption):
                array = shared.array(name, 3, create=True)
            assert (name in names()) == (array is not None)
    assert next(steps) > 20
    array.segment.unlink()


def test_data_begins_at_offset_0_for_programs_that_know_nothing_of_arrays(name):
    with shared.array(name, 3, "<i4", create=True) as array:
        array[:] = [1, 2, 3]
        with SharedMemory(name) as segment:
            assert struct.unpack_from("<3i", segment.buf) == (1, 2, 3)


def test_reading_only_means_that(name):
    with shared.array(name, 3, create=True) as ours:
        reader = shared.array(name, readonly=True)
        ours[1] = 7
        assert reader[1] == 7
        with pytest.raises(ValueError, match="read-only"):
            reader[1] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            reader.flags.writeable = True


def test_what_is_given_must_agree_with_what_is_there(name):
    with shared.array(name, (2, 3), "i4", create=True):
        assert shared.array(name, (2, 3), "i4").shape == (2, 3)
        with pytest.raises(ValueError, match=r"shape \(2, 3\), not \(3, 2\)"):
            shared.array(name, (3, 2))
        with pytest.raises(ValueError, match="dtype int32, not float32"):
            shared.array(name, dtype="f4")
        assert name in names()


def test_arguments_that_make_no_sense_are_refused(name):
    for arguments, error, words in (
        ((None,), ValueError, "nothing to attach"),
        ((name, None, "f8", True), ValueError, "needs a shape"),
        ((name, (-1,), "f8", True), ValueError, "negative"),
        ((name, 3, object, True), TypeError, "references to objects"),
        ((name, 3, [("a", "O")], True), TypeError, "references to objects"),
        ((name, 1 << 60, "f8", True), mmkit.OutOfMemory, "more than any address space|MemAvailable"),
        (("a/b", 3, "f8", True), ValueError, "cannot name"),
    ):
        with pytest.raises(error, match=words):
            shared.array(*arguments)
    with pytest.raises(ValueError, match="reading only"):
        shared.array(name, 3, create=True, readonly=True)
    with pytest.raises(FileNotFoundError):
        shared.array(name)
    assert name not in names()


@pytest.mark.parametrize("contents", [b"x", b"x" * 31, bytes(4096), b"mmkarray" * 512])
def test_a_segment_without_an_array_is_told_and_stays(name, contents):
    with SharedMemory(name, create=True, size=len(contents)) as segment:
        segment.buf[:] = contents
        with pytest.raises(mmkit.Error, match="holds no array|has format"):
            shared.array(name)
        assert name in names()


def end(text, *, version=1, text_length=None, length=24, checksum=None):
    crc = zlib.crc32(text) if checksum is None else checksum
    return text + struct.pack(
        "<8sIIQII", b"mmkarray", version, len(text) if text_length is None else text_length, length, crc, 0
    )


GOOD = b"{'descr': '<f8', 'shape': (3,)}"


@pytest.mark.parametrize(
    "damage",
    [
        end(GOOD, version=2),
        end(GOOD, text_length=1 << 31),
        end(GOOD, text_length=100000),
        end(GOOD, length=1 << 63),
        end(GOOD, length=16),
        end(GOOD, checksum=0),
        end(b"{'descr': '<f8', 'shape': (4,)}"),
        end(b"{'descr': '|O', 'shape': (3,)}"),
        end(b"{'descr': '<f8', 'shape': (-3,)}"),
        end(b"{'descr': '<f8', 'shape': (3.0,)}"),
        end(b"{'descr': '<f8', 'shape': 3}"),
        end(b"{'descr': 'nonsense', 'shape': (3,)}"),
        end(b"{'shape': (3,)}"),
        end(b"__import__('os').abort()"),
        end(b"(" * 5000),
        end(b"\xff\xfe"),
        end(b""),
    ],
    ids=range(17),
)
def test_a_damaged_description_is_an_error_and_nothing_worse(name, damage):
    data = bytes(24) + damage
    with SharedMemory(name, create=True, size=len(data)) as segment:
        segment.buf[:] = data
        with pytest.raises(mmkit.Error, match="format 2|says more bytes|damaged|need others"):
            shared.array(name)
    with SharedMemory(name, create=True, size=8 + len(end(GOOD))) as segment:
        segment.buf[8:] = end(GOOD)
        with pytest.raises(mmkit.CorruptError, match="more bytes than there are"):
            shared.array(name)
    data = bytes(24) + end(GOOD)
    with SharedMemory(name, create=True, size=len(data)) as segment:
        segment.buf[:] = data
        assert shared.array(name).shape == (3,)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        (b"{'descr': (), 'shape': (3,)}", 24),
        (b"{'descr': ('<f8',), 'shape': (3,)}", 24),
        (b"{'descr': '<f8', 'shape': " + repr((0,) * 100).encode() + b"}", 0),
        (b"{'descr': '<f8', 'shape': (0, 9223372036854775807, 9223372036854775807)}", 0),
    ],
    ids=["no-dtype", "half-a-tuple", "dimensions", "extents"],
)
def test_what_numpy_cannot_have_is_damage_and_the_segment_is_closed(name, text, length):
    data = bytes(length) + end(text, length=length)
    with SharedMemory(name, create=True, size=len(data)) as segment:
        segment.buf[:] = data
        before = mappings(name)
        with pytest.raises(mmkit.CorruptError) as caught:
            shared.array(name)
        assert name in str(caught.value)
        assert mappings(name) == before


def mappings(name):
    return Path("/proc/self/maps").read_text().count(f"/dev/shm/{name}")


# ---- life -----------------------------------------------------------------------------------------------


def test_the_memory_stays_as_long_as_any_array_on_it(name):
    with shared.array(name, 10, "i8", create=True) as array:
        array[:] = range(10)
        part = array[3:5]
        segment = array.segment
        with pytest.raises(BufferError, match="live view"):
            segment.close()
    del array, segment
    gc.collect()
    assert part.tolist() == [3, 4]
    assert name not in names()
    before = len(mmkit.regions())
    del part
    assert len(mmkit.regions()) == before - 1


def test_only_a_maker_who_forgot_to_remove_it_is_warned(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with shared.array(name, 3, create=True):
            shared.array(name)
            gc.collect()
        shared.array(name, 3, create=True, persist=True)
        gc.collect()
        shared.array(name).segment.unlink()
        shared.array(name, 3, create=True).segment.unlink()
    with pytest.warns(ResourceWarning, match="unclosed"):
        shared.array(name, 3, create=True)
        gc.collect()
    assert name in names()


def test_what_is_computed_from_it_is_plain(name):
    with shared.array(name, (2, 3), create=True) as array:
        array[:] = 2
        assert type(array + 1) is np.ndarray
        assert type(array.sum()) is np.float64
        assert type(array.sum(axis=0)) is np.ndarray
        assert type(np.sqrt(array)) is np.ndarray
        assert array[0].segment is None
        assert array.copy().segment is None
        array += 1
        assert array.segment is not None
        array *= 2
        np.add(array, 0, out=array)
        assert shared.array(name).sum() == 36


# ---- pickled ----------------------------------------------------------------------------------------------


def add_one(array):
    array += 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_gets_the_same_memory(name, method):
    with shared.array(name, 1000, "i4", create=True) as array:
        process = multiprocessing.get_context(method).Process(target=add_one, args=(array,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert array.sum() == 1000
        assert name in names()


def test_through_a_pipe_the_whole_goes_by_name_and_a_part_by_its_contents(name):
    ours, theirs = multiprocessing.Pipe()
    with shared.array(name, 1000, "i4", create=True) as array:
        ours.send(array)
        received = theirs.recv()
        received[3] = 7
        assert array[3] == 7
        ours.send(array[2:5])
        part = theirs.recv()
        assert type(part) is np.ndarray
        assert part.tolist() == [0, 7, 0]
        part[0] = 9
        assert array[2] == 0


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickle_carries_contents(name, protocol):
    with shared.array(name, 5, "i4", create=True) as array:
        array[:] = range(5)
        copy = pickle.loads(pickle.dumps(array, protocol))
    assert type(copy) is np.ndarray
    assert copy.tolist() == [0, 1, 2, 3, 4]


def test_an_array_whose_name_another_took_is_told_from_the_one_sent(name):
    from multiprocessing.reduction import ForkingPickler

    with shared.array(name, 5, create=True) as array:
        data = bytes(ForkingPickler.dumps(array))
    with shared.array(name, 5, create=True), pytest.raises(mmkit.Error, match="another segment has its name"):
        pickle.loads(data)


def test_importing_mmkit_imports_neither_numpy_nor_multiprocessing():
    done = run("import mmkit, sys\nassert not {'numpy', 'multiprocessing'} & set(sys.modules), 1")
    assert (done.returncode, done.stderr) == (0, "")
