"""Pictures of memory: what they show, and that they fit."""

import pytest

import mmkit
from mmkit.tour.company import scratch_file
from mmkit.tour.drawing import draw
from mmkit.tour.lines import code, in_ascii
from mmkit.tour.pictures import Bar, Fill, Ladder, Rung, Strip, bar, strip
from support import locks

PAGE = mmkit.PAGE_SIZE


def drawn(pictures, width=76):
    return [line.plain for line in draw(pictures, width)]


@locks
def test_a_strip_shows_each_page_as_it_is():
    with mmkit.Region.anonymous(4 * PAGE) as region:
        region[0:3] = b"abc"
        region[PAGE] = 1
        region.protect(mmkit.Prot.NONE, PAGE, PAGE)
        region.lock(2 * PAGE, PAGE)
        picture = strip("now", region, holds=True)
    assert picture.access == ("rw-", "---", "rw-", "rw-")
    assert picture.fill == (Fill.RESIDENT, Fill.RESIDENT, Fill.LOCKED, Fill.NOTHING)
    assert picture.holds == ("abc", "", "0", "")


def test_a_strip_shows_guards_and_what_is_only_cached():
    with mmkit.Region.anonymous(2 * PAGE) as region:
        region[0] = region[PAGE] = 1
        region.guard(PAGE, PAGE)
        guarded = strip("now", region, guards=True)
    assert guarded.fill == (Fill.RESIDENT, Fill.GUARD) or guarded.access[1] == "---"
    with scratch_file(bytes(2 * PAGE)) as fd, mmkit.Region.file(fd) as region:
        region.advise(mmkit.Advice.RANDOM)
        assert strip("now", region).fill == (Fill.CACHED, Fill.CACHED)


def test_a_bar_shows_the_share_of_pages_that_is_there():
    with mmkit.Region.anonymous(128 * PAGE) as region:
        region.advise(mmkit.Advice.NOHUGEPAGE)
        region[0] = region[2 * PAGE] = region[3 * PAGE] = 1
        picture = bar("now", region)
    assert picture.column == 2 * PAGE
    assert picture.resident[:3] == (0.5, 1, 0)
    line = next(line for line in drawn([picture]) if line.startswith("in RAM"))
    assert line.startswith("in RAM │▄█ ")


def test_what_is_there_at_all_is_seen_in_a_bar_and_only_what_is_all_there_looks_full():
    shares = (0.0, 0.001, 0.999, 1.0)
    lines = drawn([Bar("now", PAGE, shares * 16, (0.0,) * 64)])
    assert lines[1].startswith("cached │ ▁▇█ ▁▇█")


def test_strips_stand_side_by_side_as_far_as_they_fit():
    def of(pages):
        return Strip("here", 0x7F0000000000, 4096, ("rw-",) * pages, (Fill.NOTHING,) * pages)

    assert len(drawn([of(8), of(8)], 76)) == 6
    stacked = drawn([of(8), of(8)], 75)
    assert len(stacked) == 13
    assert stacked[6] == ""


@pytest.mark.parametrize("width", [44, 60, 76, 108])
def test_nothing_is_wider_than_it_may_be(width):
    strips = [Strip("here", 0x7F0000000000, 4096, ("rw-",) * 8, (Fill.NOTHING,) * 8)] * 2
    bars = [Bar("before", PAGE, (0.5,) * 64, (0.0,) * 64), Bar("after", PAGE, (1.0,) * 64, (0.0,) * 64)]
    ladder = Ladder((Rung(1 << 40, 1 << 41, "stack", "what C functions work on"), Rung(0, 1 << 40)))
    for picture in (strips, bars, [ladder]):
        assert max(map(len, drawn(picture, width))) <= max(width, 50 if picture == [ladder] else 0)


def test_bars_share_a_frame_and_a_scale():
    lines = drawn(
        [Bar("before", 1 << 14, (0.0,) * 64, (0.0,) * 64), Bar("after", 1 << 14, (1.0,) * 64, (0.0,) * 64)]
    )
    assert [line[7] for line in lines] == list("┌││├││└0")
    assert lines[-1].endswith("1 MiB")
    assert "16 KiB a column, ▁ a part" in lines[-1]
    assert len({len(line) for line in lines[:-1]}) == 1


@pytest.mark.parametrize("width", [30, 50, 80])
@pytest.mark.parametrize(
    "statement",
    [
        "p = mmap(NULL, 4194304, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB, -1, 0);",
        "region = Region.anonymous(32768);  p = region.address;  region[0:3] = b'abc'",
        "x" * 200,
    ],
)
def test_a_statement_is_broken_so_that_it_fits_and_loses_nothing(statement, width):
    lines = [line.plain for line in code("C", statement, width)]
    assert max(map(len, lines)) <= width
    assert "".join("".join(line[10:].split()) for line in lines) == "".join(statement.split())


def test_every_letter_of_the_pictures_has_one_of_ascii():
    assert in_ascii("┌┬┐├┼┤└┴┘│┊─╌━▁▂▃▄▅▆▇█░╳✓✗–○•▸·↓↑…×") == "+++++++++||---1234567#.X+x-o*>.v^~x"
    assert in_ascii("é") == "?"
