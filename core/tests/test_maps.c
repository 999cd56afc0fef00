#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <mmkit/maps.h>

#include "check.h"
#include "maps_table.h"

/* In one piece, and every byte by itself: what comes out must be the same, so both are compared. */
static maps_table parse_bytes(const char *bytes, size_t length)
{
    maps_table whole = maps_table_parse(bytes, length, length + 1), pieces = maps_table_parse(bytes, length, 1);
    const mmk_maps_parser *one = &whole.parser, *other = &pieces.parser;
    size_t rows = one->area_count;
    CHECK(rows == other->area_count && one->path_count == other->path_count && one->kept == other->kept);
    CHECK(one->malformed == other->malformed && one->torn == other->torn && one->field_count == other->field_count);
    CHECK(memcmp(whole.text, pieces.text, one->kept) == 0);
    if (rows) {
        CHECK(memcmp(one->areas.start, other->areas.start, rows * sizeof(uint64_t)) == 0);
        CHECK(memcmp(one->areas.end, other->areas.end, rows * sizeof(uint64_t)) == 0);
        CHECK(memcmp(one->areas.offset, other->areas.offset, rows * sizeof(uint64_t)) == 0);
        CHECK(memcmp(one->areas.path, other->areas.path, rows * sizeof(uint32_t)) == 0);
        for (size_t i = 0; i < one->field_count; i++)
            CHECK(memcmp(one->fields[i].values, other->fields[i].values, rows * sizeof(uint64_t)) == 0);
    }
    maps_table_free(&pieces);
    return whole;
}

static maps_table parse(const char *text)
{
    return parse_bytes(text, strlen(text));
}

static int path_is(const maps_table *in, size_t row, const char *path)
{
    const mmk_path_columns *paths = &in->parser.paths;
    uint32_t at = in->parser.areas.path[row];
    return paths->length[at] == strlen(path) && memcmp(in->text + paths->start[at], path, paths->length[at]) == 0;
}

/* The values of a field, by its name. */
static const uint64_t *values_of(const maps_table *in, const char *name, int unit)
{
    for (size_t i = 0; i < in->parser.field_count; i++) {
        if (strcmp(in->parser.fields[i].name, name) == 0) {
            CHECK(in->parser.fields[i].unit == unit);
            return in->parser.fields[i].values;
        }
    }
    CHECK(!"the field is there");
    return NULL;
}

static int text_is(const maps_table *in, uint64_t value, const char *text)
{
    return MMK_TEXT_LENGTH(value) == strlen(text) &&
           memcmp(in->text + MMK_TEXT_START(value), text, MMK_TEXT_LENGTH(value)) == 0;
}

TEST(every_field_of_a_line_is_read)
{
    maps_table t =
        parse("7f60896d9000-7f608982f000 r-xp 00026000 fe:01 339380                     /usr/lib/libc.so.6\n");
    CHECK(t.parser.area_count == 1 && t.parser.malformed == 0 && t.parser.torn == 0);
    CHECK(t.parser.areas.start[0] == 0x7f60896d9000 && t.parser.areas.end[0] == 0x7f608982f000);
    CHECK(t.parser.areas.perms[0] == (MMK_AREA_READ | MMK_AREA_EXEC));
    CHECK(t.parser.areas.offset[0] == 0x26000 && t.parser.areas.device[0] == makedev(0xfe, 1) &&
          t.parser.areas.inode[0] == 339380);
    CHECK(path_is(&t, 0, "/usr/lib/libc.so.6"));
    maps_table_free(&t);
}

TEST(the_highest_addresses_fit)
{
    maps_table t =
        parse("fffffffffffff000-ffffffffffffffff --xs ffffffffffffffff ff:ff 18446744073709551615 [vsyscall]\n");
    CHECK(t.parser.area_count == 1 && t.parser.areas.start[0] == 0xfffffffffffff000 &&
          t.parser.areas.end[0] == UINT64_MAX);
    CHECK(t.parser.areas.inode[0] == UINT64_MAX && t.parser.areas.perms[0] == (MMK_AREA_EXEC | MMK_AREA_SHARED));
    maps_table_free(&t);
}

TEST(areas_of_one_file_share_its_path_also_around_an_anonymous_one)
{
    maps_table t = parse("1000-2000 r--p 00000000 fe:00 7 /a\n"
                         "2000-3000 rw-p 00000000 00:00 0 \n"
                         "3000-4000 r-xp 00001000 fe:00 7 /a\n"
                         "4000-5000 r--p 00000000 fe:00 8 /b\n");
    CHECK(t.parser.area_count == 4 && t.parser.path_count == 3 && t.parser.kept == 4 && t.parser.areas.path[3] == 2);
    CHECK(t.parser.areas.path[0] == t.parser.areas.path[2] && t.parser.areas.path[1] == 0 && path_is(&t, 1, "") &&
          path_is(&t, 3, "/b"));
    CHECK(t.parser.paths.perms[t.parser.areas.path[0]] == (MMK_AREA_READ | MMK_AREA_EXEC));
    maps_table_free(&t);
}

TEST(two_files_of_one_path_have_a_row_each)
{
    maps_table t = parse("1000-2000 r--p 00000000 fe:00 7 /a (deleted)\n"
                         "2000-3000 r-xp 00000000 fe:00 8 /a (deleted)\n");
    CHECK(t.parser.path_count == 3 && t.parser.areas.path[0] != t.parser.areas.path[1] && path_is(&t, 1, "/a"));
    maps_table_free(&t);
}

TEST(only_the_escaped_newline_is_unescaped)
{
    maps_table t = parse("1000-2000 r--p 00000000 fe:00 7 /new\\012line\n"
                         "2000-3000 r--p 00000000 fe:00 8 /back\\slash\\\n"
                         "3000-4000 r--p 00000000 fe:00 9 /tab\there \n"
                         "4000-5000 r--p 00000000 fe:00 9 \\012\\012\\01");
    CHECK(t.parser.area_count == 4 && t.parser.facts == MMK_PATH_ESCAPED);
    CHECK(path_is(&t, 0, "/new\nline") && (t.parser.paths.facts[t.parser.areas.path[0]] & MMK_PATH_ESCAPED));
    CHECK(path_is(&t, 1, "/back\\slash\\") && t.parser.paths.facts[t.parser.areas.path[1]] == 0);
    CHECK(path_is(&t, 2, "/tab\there ") && path_is(&t, 3, "\n\n\\01"));
    maps_table_free(&t);
}

TEST(deleted_is_a_fact_and_not_part_of_the_path)
{
    maps_table t = parse("1000-2000 r--p 00000000 fe:00 7 /gone (deleted)\n"
                         "2000-3000 r--p 00000000 fe:00 7 /gone\n"
                         "3000-4000 r--p 00000000 fe:00 8 /x (deleted) (deleted)\n"
                         "4000-5000 r--p 00000000 fe:00 9    (deleted)\n");
    CHECK(path_is(&t, 0, "/gone") && t.parser.paths.facts[t.parser.areas.path[0]] == MMK_PATH_DELETED);
    CHECK(path_is(&t, 1, "/gone") && t.parser.paths.facts[t.parser.areas.path[1]] == 0 &&
          t.parser.areas.path[0] != t.parser.areas.path[1]);
    CHECK(path_is(&t, 2, "/x (deleted)"));
    CHECK(path_is(&t, 3, "(deleted)") && t.parser.paths.facts[t.parser.areas.path[3]] == 0);
    maps_table_free(&t);
}

TEST(a_line_that_is_none_is_skipped_and_counted)
{
    static const char *const lines[] = {
        "",
        "garbage",
        "-2000 r--p 00000000 fe:00 7 /a",
        "1000 2000 r--p 00000000 fe:00 7 /a",
        "1000-2000 r--q 00000000 fe:00 7 /a",
        "1000-2000 r--p 00000000 fe-00 7 /a",
        "1000-2000 r--p 00000000 fe:00 /a",
        "1000-2000 r--p 00000000 fe:00 7/a",
        "2000-2000 r--p 00000000 fe:00 7 /a",
        "1000-2000 r--p 00000000 fe:00 18446744073709551616 /a",
        "10000000000001000-10000000000002000 r--p 00000000 fe:00 7 /a",
        "1000-2000 r--p 00000000 100000000:00 7 /a",
        "1000-2000 r-",
        "Rss:                   4 kB",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char text[256];
        snprintf(text, sizeof text, "%s\n3000-4000 rw-p 00000000 00:00 0 \n", lines[i]);
        maps_table t = parse(text);
        CHECK(t.parser.malformed == 1 && t.parser.area_count == 1 && t.parser.areas.start[0] == 0x3000);
        maps_table_free(&t);
    }
}

TEST(an_area_told_twice_is_cut_and_counted)
{
    maps_table t = parse("1000-3000 r--p 00000000 fe:00 7 /a\n"
                         "2000-3000 r--p 00000000 fe:00 7 /a\n"
                         "2000-5000 r--p 00001000 fe:00 7 /a\n"
                         "4000-6000 rw-p 00000000 00:00 0 \n");
    CHECK(t.parser.area_count == 3 && t.parser.torn == 3 && t.parser.malformed == 0);
    CHECK(t.parser.areas.start[1] == 0x3000 && t.parser.areas.end[1] == 0x5000 && t.parser.areas.offset[1] == 0x2000);
    CHECK(t.parser.areas.start[2] == 0x5000 && t.parser.areas.end[2] == 0x6000 && t.parser.areas.offset[2] == 0);
    maps_table_free(&t);
}

TEST(the_fields_of_smaps_are_columns)
{
    maps_table t = parse("7f0000000000-7f0000002000 r--p 00000000 fe:00 7                          /a\n"
                         "Rss:                   8 kB\n"
                         "Pss:            12345678 kB\n"
                         "THPeligible:           1\n"
                         "VmFlags: rd mr mw \n"
                         "7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \n"
                         "Rss:                   4 kB\n"
                         "Pss:                   0 kB\n"
                         "THPeligible:           0\n"
                         "VmFlags: rd mr mw \n");
    CHECK(t.parser.area_count == 2 && t.parser.field_count == 4 && t.parser.malformed == 0);
    const uint64_t *rss = values_of(&t, "Rss", MMK_FIELD_BYTES), *pss = values_of(&t, "Pss", MMK_FIELD_BYTES);
    const uint64_t *eligible = values_of(&t, "THPeligible", MMK_FIELD_NUMBER);
    const uint64_t *flags = values_of(&t, "VmFlags", MMK_FIELD_TEXT);
    CHECK(rss[0] == 8192 && rss[1] == 4096 && pss[0] == UINT64_C(12345678) * 1024 && pss[1] == 0);
    CHECK(eligible[0] == 1 && eligible[1] == 0);
    CHECK(text_is(&t, flags[0], "rd mr mw") && flags[1] == flags[0] && path_is(&t, 0, "/a"));
    maps_table_free(&t);
}

TEST(fields_that_are_unknown_missing_or_in_another_order_find_their_column)
{
    maps_table t = parse("1000-2000 r--p 00000000 fe:00 7 /a\n"
                         "Rss: 8 kB\n"
                         "Shiny_New_Field_With_A_Long_Nam: 1125899906842623 kB\n"
                         "Name:           [anon:x y]\n"
                         "2000-3000 rw-p 00000000 00:00 0 \n"
                         "3000-4000 rw-p 00000000 00:00 0 \n"
                         "Late:                 77\n"
                         "Rss:                 100 kB\n");
    const uint64_t *rss = values_of(&t, "Rss", MMK_FIELD_BYTES), *late = values_of(&t, "Late", MMK_FIELD_NUMBER);
    const uint64_t *name = values_of(&t, "Name", MMK_FIELD_TEXT);
    const uint64_t *shiny = values_of(&t, "Shiny_New_Field_With_A_Long_Nam", MMK_FIELD_BYTES);
    CHECK(t.parser.area_count == 3 && t.parser.malformed == 0);
    CHECK(rss[0] == 8192 && rss[1] == 0 && rss[2] == 102400);
    CHECK(late[0] == 0 && late[1] == 0 && late[2] == 77);
    CHECK(shiny[0] == (UINT64_C(1) << 60) - 1024 && shiny[1] == 0 && shiny[2] == 0);
    CHECK(text_is(&t, name[0], "[anon:x y]") && text_is(&t, name[1], "") && text_is(&t, name[2], ""));
    maps_table_free(&t);
}

TEST(a_field_that_cannot_be_is_counted_and_changes_nothing)
{
    static const char *const lines[] = {
        "Rss:                   4",                      /* the unit was another */
        "Rss:                   x kB",                   /* no number any more */
        "Rss:                 4 4 kB",                   /* nor is this */
        "Rss:                   8 kB",                   /* told before */
        "Big:    1125899906842624 kB\nBig:        1 kB", /* more than memory has: text, then a number */
        "A_name_that_is_too_long_for_a_column_: 4 kB",
        "Rss                    4 kB",
        ": 4 kB",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char text[512];
        snprintf(text, sizeof text,
                 "7f0000000000-7f0000002000 r--p 00000000 00:00 0 \nRss:                   8 kB\n%s\n", lines[i]);
        maps_table t = parse(text);
        CHECK(t.parser.malformed == 1 && t.parser.area_count == 1);
        CHECK(values_of(&t, "Rss", MMK_FIELD_BYTES)[0] == 8192);
        maps_table_free(&t);
    }
}

TEST(more_fields_than_there_are_columns_are_counted)
{
    char text[64 * 1024];
    size_t length = (size_t)sprintf(text, "1000-2000 r--p 00000000 fe:00 7 /a\n");
    for (int i = 0; i < MMK_FIELDS_MAX + 3; i++)
        length += (size_t)sprintf(text + length, "Field_%d: %d kB\n", i, i);
    maps_table t = parse_bytes(text, length);
    CHECK(t.parser.field_count == MMK_FIELDS_MAX && t.parser.malformed == 3);
    CHECK(values_of(&t, "Field_63", MMK_FIELD_BYTES)[0] == 63 * 1024);
    maps_table_free(&t);
}

TEST(the_costs_of_an_area_that_was_told_before_are_dropped_with_it)
{
    maps_table t = parse("1000-3000 r--p 00000000 fe:00 7 /a\n"
                         "Rss:                   8 kB\n"
                         "2000-3000 r--p 00000000 fe:00 7 /a\n"
                         "Rss:                   4 kB\n"
                         "Other:                 4 kB\n"
                         "3000-4000 rw-p 00000000 00:00 0 \n"
                         "Rss:                  12 kB\n");
    const uint64_t *rss = values_of(&t, "Rss", MMK_FIELD_BYTES);
    CHECK(t.parser.area_count == 2 && t.parser.torn == 1 && t.parser.malformed == 0 && t.parser.field_count == 1);
    CHECK(rss[0] == 8192 && rss[1] == 12288);
    maps_table_free(&t);
}

TEST(plain_areas_that_do_not_touch_have_their_own_starts)
{
    maps_table t = parse("7f0000001000-7f0000002000 rw-p 00000000 00:00 0 \n"
                         "7f0000002000-7f0000003000 ---p 00000000 00:00 0 \n"
                         "7f0000004000-7f0000005000 rw-s 00000000 00:00 0 \n"
                         "7f0000004000-7f0000006000 rwxp 00000000 00:00 0 \n");
    const uint64_t *start = t.parser.areas.start;
    CHECK(t.parser.area_count == 4 && t.parser.torn == 1 && t.parser.malformed == 0);
    CHECK(start[0] == 0x7f0000001000 && start[1] == 0x7f0000002000 && start[2] == 0x7f0000004000);
    CHECK(start[3] == 0x7f0000005000 && t.parser.areas.end[3] == 0x7f0000006000);
    CHECK(t.parser.areas.perms[2] == (MMK_AREA_READ | MMK_AREA_WRITE | MMK_AREA_SHARED));
    maps_table_free(&t);
}

TEST(a_usual_line_with_a_digit_that_is_none_is_skipped)
{
    static const char digits[] = {':', 'g', '`', 'F', ' ', '/', '@', '\x7f'};
    for (size_t i = 0; i < sizeof digits; i++) {
        for (size_t at = 0; at < 38; at++) {
            char text[] = "7f0000001000-7f0000002000 rw-p 00000000 00:00 0 \n";
            if (text[at] == '-' || at == 25 || (at >= 26 && at <= 30))
                continue;
            text[at] = digits[i];
            maps_table t = parse(text);
            CHECK(t.parser.area_count == 0 && t.parser.malformed == 1);
            maps_table_free(&t);
        }
    }
}

TEST(plain_areas_that_nearly_touch_or_have_a_name_are_told_apart)
{
    /* The table grows by half: the third and fourth are read without a stop between them. */
    maps_table t = parse("7e0000001000-7e0000002000 rw-p 00000000 00:00 0 \n"
                         "7e0000003000-7e0000004000 rw-p 00000000 00:00 0 \n"
                         "7f0000001000-7f0000002000 rw-p 00000000 00:00 0 \n"
                         "7f0000002001-7f0000003000 rw-p 00000000 00:00 0 \n"
                         "7f0000003000-7f0000004000 rw-p 00000000 00:00 0 /x\n");
    CHECK(t.parser.area_count == 5 && t.parser.areas.start[3] == 0x7f0000002001);
    CHECK(path_is(&t, 3, "") && path_is(&t, 4, "/x"));
    maps_table_free(&t);
}

TEST(costs_go_to_the_area_above_them_also_around_one_that_was_dropped)
{
    maps_table t = parse("7f0000001000-7f0000003000 rw-p 00000000 00:00 0 \n"
                         "Rss:                   8 kB\n"
                         "Pss:                   8 kB\n"
                         "7f0000003000-7f0000005000 r--p 00000000 00:00 0 \n"
                         "Rss:                   4 kB\n"
                         "7f0000004000-7f0000005000 r--p 00000000 00:00 0 \n"
                         "Rss:                 100 kB\n"
                         "Pss:                 100 kB\n"
                         "7f0000005000-7f0000006000 rw-p 00000000 00:00 0 \n"
                         "Rss:                  16 kB\n"
                         "Pss:                  16 kB\n");
    const uint64_t *rss = values_of(&t, "Rss", MMK_FIELD_BYTES), *pss = values_of(&t, "Pss", MMK_FIELD_BYTES);
    CHECK(t.parser.area_count == 3 && t.parser.torn == 1 && t.parser.malformed == 0);
    CHECK(rss[0] == 8192 && rss[1] == 4096 && rss[2] == 16384);
    CHECK(pss[0] == 8192 && pss[1] == 0 && pss[2] == 16384);
    maps_table_free(&t);
}

TEST(fields_are_told_apart_by_their_whole_name_unit_and_value)
{
    maps_table t = parse("1000-2000 rw-p 00000000 00:00 0 \n"
                         "Rss:                   8 kB\n"
                         "Rs:                    4 kB\n"
                         "Huge:   1125899906842624 kB\n"
                         "A_name_of_thirty_two_characters_: 4 kB\n"
                         "VmFlags: rd mr\n"
                         "2000-3000 rw-p 00000000 00:00 0 \n"
                         "Rss:                   4\n"
                         "VmFlags: rd\n");
    const uint64_t *flags = values_of(&t, "VmFlags", MMK_FIELD_TEXT);
    CHECK(values_of(&t, "Rs", MMK_FIELD_BYTES)[0] == 4096);
    CHECK(values_of(&t, "Rss", MMK_FIELD_BYTES)[0] == 8192 && values_of(&t, "Rss", MMK_FIELD_BYTES)[1] == 0);
    CHECK(text_is(&t, values_of(&t, "Huge", MMK_FIELD_TEXT)[0], "1125899906842624 kB"));
    CHECK(text_is(&t, flags[0], "rd mr") && text_is(&t, flags[1], "rd"));
    CHECK(t.parser.malformed == 2);
    maps_table_free(&t);
}

TEST(every_prefix_and_every_changed_byte_is_survived)
{
    static const char text[] = "1000-2000 r--p 00000000 fe:00 7                /a\\012b (deleted)\n"
                               "Rss:                1234 kB\n"
                               "VmFlags: rd \n"
                               "7ffe86da3000-7ffe86db3000 rw-p 00000000 00:00 0 \n"
                               "Rss:                   4 kB\n"
                               "7ffe86db3000-7ffe86dd4000 rw-p 00000000 00:00 0    [stack]\n";
    for (size_t length = 0; length < sizeof text; length++) {
        maps_table t = parse_bytes(text, length);
        CHECK(t.parser.area_count <= 3 && t.parser.malformed <= 1);
        maps_table_free(&t);
    }
    /* One of each kind that the parser tells apart. */
    static const char bytes[] = "\n -0fgAZ:k\\\xff";
    char changed[sizeof text];
    for (size_t at = 0; at < sizeof text - 1; at++) {
        for (size_t byte = 0; byte < sizeof bytes; byte++) {
            memcpy(changed, text, sizeof text);
            changed[at] = bytes[byte];
            maps_table t = parse_bytes(changed, sizeof text - 1);
            CHECK(t.parser.area_count <= 4 && t.parser.kept < sizeof text);
            maps_table_free(&t);
        }
    }
}

static int open_maps(void)
{
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

TEST(a_full_buffer_is_told_and_reading_goes_on_where_it_stopped)
{
    static char buffer[1 << 20];
    size_t length = 0;
    int fd = open_maps();
    CHECK(mmk_maps_slurp(fd, buffer, 10, &length) == -ENOBUFS && length == 10);
    CHECK(mmk_maps_slurp(fd, buffer, sizeof buffer, &length) == 0 && length > 10);
    CHECK(length > 100 && buffer[length - 1] == '\n');
    CHECK(close(fd) == 0);
    CHECK(mmk_maps_slurp(-1, buffer, sizeof buffer, &length) == -EBADF);
}

int main(void)
{
    RUN(every_field_of_a_line_is_read);
    RUN(the_highest_addresses_fit);
    RUN(areas_of_one_file_share_its_path_also_around_an_anonymous_one);
    RUN(two_files_of_one_path_have_a_row_each);
    RUN(only_the_escaped_newline_is_unescaped);
    RUN(deleted_is_a_fact_and_not_part_of_the_path);
    RUN(a_line_that_is_none_is_skipped_and_counted);
    RUN(an_area_told_twice_is_cut_and_counted);
    RUN(the_fields_of_smaps_are_columns);
    RUN(fields_that_are_unknown_missing_or_in_another_order_find_their_column);
    RUN(a_field_that_cannot_be_is_counted_and_changes_nothing);
    RUN(more_fields_than_there_are_columns_are_counted);
    RUN(the_costs_of_an_area_that_was_told_before_are_dropped_with_it);
    RUN(plain_areas_that_do_not_touch_have_their_own_starts);
    RUN(a_usual_line_with_a_digit_that_is_none_is_skipped);
    RUN(plain_areas_that_nearly_touch_or_have_a_name_are_told_apart);
    RUN(costs_go_to_the_area_above_them_also_around_one_that_was_dropped);
    RUN(fields_are_told_apart_by_their_whole_name_unit_and_value);
    RUN(every_prefix_and_every_changed_byte_is_survived);
    RUN(a_full_buffer_is_told_and_reading_goes_on_where_it_stopped);
    return 0;
}
