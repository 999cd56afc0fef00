"""Whatever stands in memory, the scanner finds what a plain search for every piece of every form finds."""

import base64
import os
from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.secret.scanner import scan

EXAMPLES = int(os.environ.get("MMKIT_EXAMPLES", "100"))

FORMS = ("bytes", "hex", "base64", "latin-1", "ucs-2", "ucs-4", "ipad", "opad")
HEX_CASE = bytes.maketrans(b"ABCDEF", b"abcdef")
URL_SAFE = bytes.maketrans(b"-_", b"+/")
FOLDS = {"hex": HEX_CASE, "base64": URL_SAFE}


# ---- the model ---------------------------------------------------------------------------------------


def cut(length):
    """Where a needle of so many bytes or characters is cut."""
    count = max(1, min(4, length // 8))
    return [(piece * length // count, (piece + 1) * length // count) for piece in range(count)]


def texts(needle):
    """Every text of a needle: its form, its bytes, the pieces as ranges of them."""
    size = len(needle)
    yield "bytes", needle, cut(size)
    yield "hex", needle.hex().encode(), [(2 * start, 2 * end) for start, end in cut(size)]
    for before in range(3):
        whole = base64.b64encode(bytes(before) + needle)
        first, last = -(-8 * before // 6), 8 * (before + size) // 6
        pieces = [
            (-(-8 * (before + start) // 6) - first, 8 * (before + end) // 6 - first)
            for start, end in cut(size)
        ]
        yield "base64", whole[first:last], pieces
    readings = [needle.decode("latin-1")]
    if not needle.isascii():
        try:
            readings.append(needle.decode())
        except UnicodeDecodeError:
            pass
    for reading in readings:
        for form, width, codec in (
            ("latin-1", 1, "latin-1"),
            ("ucs-2", 2, "utf-16-le"),
            ("ucs-4", 4, "utf-32-le"),
        ):
            highest = max(map(ord, reading))
            fits = highest < 1 << 8 * width and len(reading) * width >= 8
            if fits and (form, reading) != ("latin-1", readings[0]):
                yield form, reading.encode(codec), [(width * a, width * b) for a, b in cut(len(reading))]
    if size <= 128:
        for form, pad in (("ipad", 0x36), ("opad", 0x5C)):
            yield form, bytes(byte ^ pad for byte in needle), cut(size)


def occurrences(piece, hay):
    at = hay.find(piece)
    while at >= 0:
        yield at
        at = hay.find(piece, at + 1)


def searched(needle, hay):
    """Find every place where as much as possible of a text is, and a piece of it at least."""
    found = set()
    for number, (form, text, pieces) in enumerate(texts(needle)):
        folded = hay.translate(FOLDS.get(form, bytes(range(256))))
        for start, end in pieces:
            for at in occurrences(text[start:end], folded):
                base, first, last = at - start, start, end
                while first > 0 and base + first > 0 and folded[base + first - 1] == text[first - 1]:
                    first -= 1
                while last < len(text) and base + last < len(hay) and folded[base + last] == text[last]:
                    last += 1
                found.add((number, first, form, base + first, last - first, len(text)))
    return [hit[2:] for hit in found]


# ---- needles and memory ------------------------------------------------------------------------------

NEEDLES = st.one_of(
    st.binary(min_size=8, max_size=48),
    st.text(min_size=8, max_size=24).map(str.encode),
    st.text(alphabet="aé€🐎", min_size=8, max_size=16).map(str.encode),
    st.text(alphabet="ab", min_size=8, max_size=40).map(str.encode),
    st.binary(min_size=120, max_size=136),
    st.sampled_from([b"\xfb\xff\xbf" * 6, b"\xaa\xbb\xcc\xdd" * 8, bytes(32), bytes(range(32))]),
)


@st.composite
def pieces_of_memory(draw, needle):
    forms = list(texts(needle))
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        form, text, _ = draw(st.sampled_from(forms))
        first = draw(st.sampled_from([0, 0, draw(st.integers(0, len(text)))]))
        last = draw(st.sampled_from([len(text), len(text), draw(st.integers(0, len(text)))]))
        part = text[first:last]
        if form == "hex" and draw(st.booleans()):
            part = part.upper()
        if form == "base64" and draw(st.booleans()):
            part = part.translate(bytes.maketrans(b"+/", b"-_"))
        parts += [draw(st.binary(max_size=12)), part]
    return b"".join(parts)


@st.composite
def memories(draw):
    """A needle, and memory in ranges, some of them neighbours: (whether there is a gap in front, bytes)."""
    needle = draw(NEEDLES)
    ranges = []
    for _ in range(draw(st.integers(1, 3))):
        hay = draw(pieces_of_memory(needle))
        # Neighbours, cut anywhere.
        middle = draw(st.integers(0, len(hay)))
        ranges += [(True, hay[:middle]), (draw(st.booleans()), hay[middle:])]
    return needle, ranges


def in_file(data):
    descriptor = os.memfd_create("test")
    os.pwrite(descriptor, data, 0)
    return descriptor


@settings(max_examples=EXAMPLES)
@given(memories())
def test_the_scanner_finds_what_a_plain_search_finds(memory):
    needle, ranges = memory
    address, numbers, joined = 0x1000, array("Q"), []
    offset, stored = 0, b""
    for has_gap, data in ranges:
        if has_gap or not joined:
            address += 0x1000
            joined.append((address, b""))
        start, before = joined[-1]
        joined[-1] = (start, before + data)
        # In the file they stand apart, as the segments of a core file do.
        numbers.extend((address, len(data), offset, 0))
        stored += data + bytes(3)
        offset += len(data) + 3
        address += len(data)
    descriptors = in_file(needle), in_file(stored)
    try:
        answer = scan(descriptors[0], False, descriptors[1], -1, numbers)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    expected = [
        (form, start + at, length, whole)
        for start, hay in joined
        for form, at, length, whole in searched(needle, hay)
    ]
    told = [(FORMS[hit.form], hit.address, hit.length, hit.whole) for hit in answer.found]
    assert sorted(told) == sorted(expected)
    assert not answer.missed
    assert answer.looked_at == sum(len(data) for _, data in ranges)
