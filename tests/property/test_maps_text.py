"""Any text that the kernel can make is read back, and any other is survived."""

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mmkit.maps import Areas, Kind
from mmkit.maps.picture import draw

PAGE = 4096
PERMS = st.tuples(st.sampled_from("r-"), st.sampled_from("w-"), st.sampled_from("x-"), st.sampled_from("ps"))
# Without the literal \012, which the kernel does not tell from a newline.
PATH_BYTES = st.binary(min_size=1, max_size=300).filter(
    lambda path: b"\0" not in path and b"\\012" not in path and not path.endswith(b" (deleted)")
)
PATHS = st.one_of(
    st.just(b""),
    st.sampled_from([b"[heap]", b"[stack]", b"/bin/program", b"/lib/libc.so.6", b"/dev/zero"]),
    PATH_BYTES.map(lambda path: b"/" + path),
)


@st.composite
def area_lists(draw_, most=12):
    """Areas in ascending order: start, end, perms, offset, major, minor, inode, path, deleted."""
    areas, address = [], 0
    for _ in range(draw_(st.integers(0, most))):
        start = address + PAGE * draw_(st.integers(0, 1 << 30))
        address = start + PAGE * draw_(st.integers(1, 1 << 20))
        path = draw_(PATHS)
        areas.append(
            (
                start,
                address,
                "".join(draw_(PERMS)),
                draw_(st.integers(0, (1 << 64) - 1)),
                draw_(st.integers(0, (1 << 12) - 1)),
                draw_(st.integers(0, (1 << 20) - 1)),
                draw_(st.integers(0, (1 << 64) - 1)),
                path,
                bool(path) and draw_(st.booleans()),
            )
        )
    return areas


def written(area):
    """Write a line as show_map_vma of the kernel does."""
    start, end, perms, offset, major, minor, inode, path, deleted = area
    line = b"%08x-%08x %s %08x %02x:%02x %d " % (start, end, perms.encode(), offset, major, minor, inode)
    if path:
        line = line.ljust(73) + path.replace(b"\n", rb"\012") + (b" (deleted)" if deleted else b"")
    return line + b"\n"


@given(area_lists())
def test_what_the_kernel_writes_is_read_back(areas):
    read = Areas.parse(b"".join(map(written, areas)))
    assert (read.malformed, read.torn) == (0, False)
    assert len(read) == len(areas)
    for area, (start, end, perms, offset, major, minor, inode, path, deleted) in zip(
        read, areas, strict=True
    ):
        assert (area.start, area.end, area.size) == (start, end, end - start)
        assert (area.perms, area.offset, area.inode) == (perms, offset, inode)
        assert area.device == (minor & 0xFF) | major << 8 & 0xFFF00 | (minor & ~0xFF) << 12
        assert (area.path, area.deleted) == (path, deleted)
        assert area.kind in Kind
        assert area.name.isprintable()


@given(
    st.lists(
        st.one_of(st.binary(max_size=120), area_lists().map(lambda areas: b"".join(map(written, areas))))
    )
)
def test_any_bytes_are_survived_and_areas_stay_in_order(parts):
    text = b"".join(parts)
    areas = Areas.parse(text)
    ends = [0, *areas.column("end")]
    for area, previous_end in zip(areas, ends, strict=False):
        assert previous_end <= area.start < area.end
    lines = text.removesuffix(b"\n").split(b"\n") if text else []
    assert len(areas) + areas.malformed <= len(lines)
    # A name and a colon are a field, as smaps has them, of the area above.
    fields = sum(b":" in line.partition(b" ")[0] for line in lines)
    assert areas.torn or len(areas) + areas.malformed + fields >= len(lines)
    assert max(map(cell_len, draw(areas).splitlines())) <= 80


@given(area_lists(), st.data())
def test_an_address_is_found_where_a_linear_search_finds_it(areas, data):
    read = Areas.parse(b"".join(map(written, areas)))
    near = [edge + step for area in read for edge in (area.start, area.end) for step in (-1, 0)]
    address = data.draw(st.sampled_from(near) if near else st.integers(0, (1 << 64) - 1))
    expected = next((area for area in read if area.start <= address < area.end), None)
    assert read.find(address) == expected


@given(area_lists(), st.slices(12), st.slices(12))
def test_slices_and_columns_are_those_of_a_list(areas, first, second):
    read = Areas.parse(b"".join(map(written, areas)))
    selected, expected = read[first][second], list(read)[first][second]
    assert list(selected) == expected
    assert selected.column("start").tolist() == [area.start for area in expected]
    assert selected.column("kind").tolist() == [list(Kind).index(area.kind) for area in expected]


@given(area_lists())
def test_kinds_divide_the_areas(areas):
    read = Areas.parse(b"".join(map(written, areas)), program=b"/bin/program")
    parts = {kind: read.where(kind=kind) for kind in Kind}
    assert sum(map(len, parts.values())) == len(read)
    totals = {str(kind): sum(part.column("size")) for kind, part in parts.items() if len(part)}
    assert totals == read.total(by="kind")


# smaps

FIELD_NAMES = st.one_of(
    st.sampled_from(
        ["Rss", "Pss", "Private_Clean", "Private_Dirty", "Private_Hugetlb", "Swap", "THPeligible"]
    ),
    # What columns of areas, and mmkit's own sum, are called.
    st.sampled_from(
        ["Start", "End", "Offset", "Device", "Inode", "Perms", "Kind", "Path", "path_start", "Uss"]
    ),
    st.from_regex(r"[A-Z][A-Za-z0-9_]{0,30}", fullmatch=True),
).filter(lambda name: name.lower() != "size")
# As wide as the kernel writes them, and wider.
KILOBYTES = st.one_of(st.integers(0, 9999), st.integers(0, (1 << 45) - 1)).map(
    lambda number: (number, f"{number:8d} kB")
)
NUMBERS = st.integers(0, (1 << 64) - 1).map(lambda number: (number, f"{number:8d}"))
TEXTS = st.from_regex(r"[a-z]([a-z ]{0,40}[a-z])?", fullmatch=True).map(lambda text: (text, text))


@st.composite
def fields(draw_):
    """What a kernel tells of each area: names, no two of which are one in lower case, and how values are made."""
    names = draw_(st.lists(FIELD_NAMES, max_size=6, unique_by=str.lower))
    return [(name, draw_(st.sampled_from([KILOBYTES, NUMBERS, TEXTS]))) for name in names]


def written_field(name, text):
    return (
        f"{name}:".ljust(16).encode()
        + (b"" if text[:1].isspace() or text[:1].isdigit() else b" ")
        + text.encode()
        + b"\n"
    )


@given(area_lists(most=4), fields(), st.data())
def test_what_the_kernel_writes_of_costs_is_read_back(areas, known, data):
    text, expected = b"", []
    for area in areas:
        text += written(area)
        expected.append({})
        for name, values in known:
            # Fields may be missing, of this area or that.
            if data.draw(st.integers(0, 9)):
                value, told = data.draw(values)
                text += written_field(name, told)
                expected[-1][name.lower()] = value * (1024 if values is KILOBYTES else 1)
    read = Areas.parse(text)
    assert (read.malformed, len(read)) == (0, len(areas))
    plain = Areas.parse(b"".join(map(written, areas)))
    assert [area._replace(costs=None) for area in read] == list(plain)
    for area, costs in zip(read, expected, strict=True):
        told = dict(area.costs or {})
        if "uss" not in (name.lower() for name, _ in known):
            told.pop("uss", None)
        assert costs.items() <= told.items()
        assert not any(value for name, value in told.items() if name not in costs)
    amounts = [name for name, values in known if values is KILOBYTES and name.lower() in read.costs]
    for by in ("kind", "path", "perms"):
        whole = read.total(by=by).sum
        for name in amounts:
            assert whole.costs[name.lower()] == sum(area.costs[name.lower()] for area in read)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            area_lists().map(lambda areas: b"".join(map(written, areas))),
            st.tuples(FIELD_NAMES, st.one_of(KILOBYTES, NUMBERS, TEXTS)).map(
                lambda field: written_field(field[0], field[1][1])
            ),
        )
    )
)
def test_any_fields_among_any_bytes_are_survived(parts):
    areas = Areas.parse(b"".join(parts))
    ends = [0, *areas.column("end")]
    for row, (area, previous_end) in enumerate(zip(areas, ends, strict=False)):
        assert previous_end <= area.start < area.end
        # Row by row and column by column costs are found in two ways.
        assert area == areas[row]
        assert tuple(area.costs or ()) == areas.costs
    assert areas.total().sum == sum(areas.column("size"))
