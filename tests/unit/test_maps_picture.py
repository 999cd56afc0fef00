from bisect import bisect_right

from rich.cells import cell_len

from mmkit import maps
from mmkit.maps import Areas
from mmkit.maps.picture import draw
from saved_maps import PROGRAM_TEXT
from support import sanitized


def edges(picture):
    return [int(line[:18], 16) for line in picture.splitlines() if line[:18].strip() and line[19] in "┌├└┏┗"]


def test_the_picture_has_the_real_addresses_from_the_top_down(child):
    areas = maps.read(child)
    picture = maps.layout(child)
    found = edges(picture)
    assert found == sorted(found, reverse=True)
    assert found[0] == (1 << 64) - 1
    assert found[-1] == 0
    for kind in ("stack", "heap", "text"):
        for area in areas.where(kind=kind):
            assert area.start in found
            assert area.end in found
    starts = sorted(found[3:])
    for area in areas:
        if area.end < 1 << 63:
            box = bisect_right(starts, area.start)
            assert area.end <= starts[box]


@sanitized
def test_the_picture_fits_in_80_columns_without_colour(child):
    for picture in (maps.layout(), maps.layout(child)):
        assert max(map(len, picture.splitlines())) <= 80
        assert picture.replace("\n", "").isprintable()
        for word in (
            "kernel space",
            "stack",
            "mmap area",
            "libraries",
            "heap (brk)",
            "data",
            "rodata",
            "text",
        ):
            assert word in picture


def test_the_sizes_in_the_picture_cover_the_whole_user_space():
    text = b"400000-401000 r-xp 0 fe:00 7 /bin/program\n7ffc00000000-7ffc00001000 rw-p 0 00:00 0 [stack]\n"
    picture = draw(Areas.parse(text, program=b"/bin/program"))
    assert [line.split("┊")[2].strip() for line in picture.splitlines() if "┊" in line][2] == "4 MiB"


def test_the_sizes_of_the_boxes_are_what_is_mapped_and_add_up_to_the_title():
    text = b"10000-30000 r--p 0 00:00 0 \n50000-60000 r--p 0 00:00 0 \n7ffc00000000-7ffc00004000 rw-p 0 00:00 0 [stack]\n"
    lines = draw(Areas.parse(text)).splitlines()
    assert lines[1].strip() == "a process: 3 areas, 208 KiB mapped"
    sizes = {
        line.split("│")[1].split("  ")[0].strip(): line.split("│")[2].strip() for line in lines if "│" in line
    }
    assert sizes["stack"] == "16 KiB"
    assert sizes["mmap area: 2 areas"] == "192 KiB"
    assert any("free between them" in line and line.endswith(" 128 KiB") for line in lines)


def test_a_hostile_or_scattered_map_still_makes_a_picture():
    scattered = b"".join(
        b"%x-%x r-xp 0 fe:00 %d /%d\xff\x1b%s.so\n" % (i << 37, (i << 37) + 4096, i, i, b"x" * 99)
        for i in range(1, 800)
    )
    for text in (b"", b"1000-2000 r--p 00000000 00:00 0 \n", scattered, PROGRAM_TEXT):
        picture = draw(Areas.parse(text, program=b"/" + b"p" * 300))
        assert max(map(len, picture.splitlines())) <= 80
        assert len(picture.splitlines()) < 200
        assert picture.replace("\n", "").isprintable()


def test_wide_letters_count_as_the_columns_that_they_take():
    text = "7f0000000000-7f0000001000 r-xp 00000000 fe:00 7 /lib/%s.so\n" % ("中" * 38)
    text += "ffffffffff600000-ffffffffff601000 r-xp 00000000 00:00 0 /%s\n" % ("中" * 99)
    picture = draw(Areas.parse(text.encode(), program=("/" + "中" * 99).encode()))
    widths = [cell_len(line) for line in picture.splitlines()]
    assert max(widths) <= 80
    sides = [line for line in picture.splitlines() if line.rstrip().endswith("iB")]
    assert "中" in picture
    assert len({cell_len(line) for line in sides}) == 1
