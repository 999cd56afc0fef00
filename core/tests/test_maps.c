#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <mmkit/maps.h>

#include "check.h"

enum {
    ROWS = 64,
};

typedef struct table {
    uint64_t start[ROWS], end[ROWS], offset[ROWS], device[ROWS], inode[ROWS];
    uint32_t path[ROWS];
    uint8_t perms[ROWS];
    uint64_t path_start[ROWS + 1];
    uint32_t path_length[ROWS + 1];
    uint8_t path_perms[ROWS + 1], path_facts[ROWS + 1];
    mmk_maps_found found;
    char *text;
} table;

/* Parse a copy that ends exactly where the text ends, so that a sanitizer sees a byte too many. */
static void parse_bytes(table *into, const char *bytes, size_t length)
{
    mmk_area_columns areas = {into->start, into->end,  into->offset, into->device,
                              into->inode, into->path, into->perms,  ROWS};
    mmk_path_columns paths = {into->path_start, into->path_length, into->path_perms, into->path_facts};
    into->text = malloc(length ? length : 1);
    CHECK(into->text);
    if (length)
        memcpy(into->text, bytes, length);
    mmk_maps_parse(into->text, length, &areas, &paths, &into->found);
}

static table parse(const char *text)
{
    table result;
    parse_bytes(&result, text, strlen(text));
    return result;
}

static int path_is(const table *in, size_t row, const char *path)
{
    size_t length = in->path_length[in->path[row]];
    return length == strlen(path) && memcmp(in->text + in->path_start[in->path[row]], path, length) == 0;
}

TEST(every_field_of_a_line_is_read)
{
    table t = parse("7f60896d9000-7f608982f000 r-xp 00026000 fe:01 339380                     /usr/lib/libc.so.6\n");
    CHECK(t.found.areas == 1 && t.found.malformed == 0 && t.found.torn == 0);
    CHECK(t.start[0] == 0x7f60896d9000 && t.end[0] == 0x7f608982f000);
    CHECK(t.perms[0] == (MMK_AREA_READ | MMK_AREA_EXEC));
    CHECK(t.offset[0] == 0x26000 && t.device[0] == makedev(0xfe, 1) && t.inode[0] == 339380);
    CHECK(path_is(&t, 0, "/usr/lib/libc.so.6"));
    free(t.text);
}

TEST(the_highest_addresses_fit)
{
    table t = parse("fffffffffffff000-ffffffffffffffff --xs ffffffffffffffff ff:ff 18446744073709551615 [vsyscall]\n");
    CHECK(t.found.areas == 1 && t.start[0] == 0xfffffffffffff000 && t.end[0] == UINT64_MAX);
    CHECK(t.inode[0] == UINT64_MAX && t.perms[0] == (MMK_AREA_EXEC | MMK_AREA_SHARED));
    free(t.text);
}

TEST(areas_of_one_file_share_its_path_also_around_an_anonymous_one)
{
    table t = parse("1000-2000 r--p 00000000 fe:00 7 /a\n"
                    "2000-3000 rw-p 00000000 00:00 0 \n"
                    "3000-4000 r-xp 00001000 fe:00 7 /a\n"
                    "4000-5000 r--p 00000000 fe:00 8 /b\n");
    CHECK(t.found.areas == 4 && t.found.paths == 3 && t.found.path_bytes == 4 && t.path[3] == 2);
    CHECK(t.path[0] == t.path[2] && t.path[1] == 0 && path_is(&t, 1, "") && path_is(&t, 3, "/b"));
    CHECK(t.path_perms[t.path[0]] == (MMK_AREA_READ | MMK_AREA_EXEC));
    free(t.text);
}

TEST(two_files_of_one_path_have_a_row_each)
{
    table t = parse("1000-2000 r--p 00000000 fe:00 7 /a (deleted)\n"
                    "2000-3000 r-xp 00000000 fe:00 8 /a (deleted)\n");
    CHECK(t.found.paths == 3 && t.path[0] != t.path[1] && path_is(&t, 1, "/a"));
    free(t.text);
}

TEST(only_the_escaped_newline_is_unescaped)
{
    table t = parse("1000-2000 r--p 00000000 fe:00 7 /new\\012line\n"
                    "2000-3000 r--p 00000000 fe:00 8 /back\\slash\\\n"
                    "3000-4000 r--p 00000000 fe:00 9 /tab\there \n"
                    "4000-5000 r--p 00000000 fe:00 9 \\012\\012\\01");
    CHECK(t.found.areas == 4 && t.found.escaped == 2);
    CHECK(path_is(&t, 0, "/new\nline") && (t.path_facts[t.path[0]] & MMK_PATH_ESCAPED));
    CHECK(path_is(&t, 1, "/back\\slash\\") && t.path_facts[t.path[1]] == 0);
    CHECK(path_is(&t, 2, "/tab\there ") && path_is(&t, 3, "\n\n\\01"));
    free(t.text);
}

TEST(deleted_is_a_fact_and_not_part_of_the_path)
{
    table t = parse("1000-2000 r--p 00000000 fe:00 7 /gone (deleted)\n"
                    "2000-3000 r--p 00000000 fe:00 7 /gone\n"
                    "3000-4000 r--p 00000000 fe:00 8 /x (deleted) (deleted)\n"
                    "4000-5000 r--p 00000000 fe:00 9    (deleted)\n");
    CHECK(path_is(&t, 0, "/gone") && t.path_facts[t.path[0]] == MMK_PATH_DELETED);
    CHECK(path_is(&t, 1, "/gone") && t.path_facts[t.path[1]] == 0 && t.path[0] != t.path[1]);
    CHECK(path_is(&t, 2, "/x (deleted)"));
    CHECK(path_is(&t, 3, "(deleted)") && t.path_facts[t.path[3]] == 0);
    free(t.text);
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
        table t = parse(text);
        CHECK(t.found.malformed == 1 && t.found.areas == 1 && t.start[0] == 0x3000);
        free(t.text);
    }
}

TEST(an_area_told_twice_is_cut_and_counted)
{
    table t = parse("1000-3000 r--p 00000000 fe:00 7 /a\n"
                    "2000-3000 r--p 00000000 fe:00 7 /a\n"
                    "2000-5000 r--p 00001000 fe:00 7 /a\n"
                    "4000-6000 rw-p 00000000 00:00 0 \n");
    CHECK(t.found.areas == 3 && t.found.torn == 3 && t.found.malformed == 0);
    CHECK(t.start[1] == 0x3000 && t.end[1] == 0x5000 && t.offset[1] == 0x2000);
    CHECK(t.start[2] == 0x5000 && t.end[2] == 0x6000 && t.offset[2] == 0);
    free(t.text);
}

TEST(every_prefix_and_every_changed_byte_is_survived)
{
    static const char text[] = "1000-2000 r--p 00000000 fe:00 7                /a\\012b (deleted)\n"
                               "2000-3000 rw-p 00000000 00:00 0 \n"
                               "7ffe86db3000-7ffe86dd4000 rw-p 00000000 00:00 0    [stack]\n";
    for (size_t length = 0; length < sizeof text; length++) {
        table t;
        parse_bytes(&t, text, length);
        CHECK(t.found.areas + t.found.malformed + t.found.torn >= mmk_maps_count_lines(text, length));
        free(t.text);
    }
    char changed[sizeof text];
    for (size_t at = 0; at < sizeof text - 1; at++) {
        for (int byte = 0; byte < 256; byte++) {
            memcpy(changed, text, sizeof text);
            changed[at] = (char)byte;
            table t;
            parse_bytes(&t, changed, sizeof text - 1);
            CHECK(t.found.areas <= 4 && t.found.path_bytes < sizeof text);
            free(t.text);
        }
    }
}

TEST(rows_beyond_the_capacity_are_not_written)
{
    char text[] = "1000-2000 r--p 00000000 fe:00 7 /a\n2000-3000 r--p 00000000 fe:00 8 /b\n";
    table t = {.start = {0, 77}};
    mmk_area_columns areas = {t.start, t.end, t.offset, t.device, t.inode, t.path, t.perms, 1};
    mmk_path_columns paths = {t.path_start, t.path_length, t.path_perms, t.path_facts};
    mmk_maps_parse(text, sizeof text - 1, &areas, &paths, &t.found);
    CHECK(t.found.areas == 1 && t.start[1] == 77);
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
    CHECK(mmk_maps_count_lines(buffer, length) > 3 && buffer[length - 1] == '\n');
    CHECK(close(fd) == 0);
    CHECK(mmk_maps_slurp(-1, buffer, sizeof buffer, &length) == -EBADF);
}

TEST(a_query_tells_the_area_at_an_address)
{
    size_t page = mmk_page_size();
    char *memory = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && munmap(memory + 2 * page, page) == 0 && munmap(memory, page) == 0);
    int fd = open_maps();
    mmk_area area;
    char path[MMK_MAPS_PATH_MAX];
    size_t length;
    unsigned facts;
    int error = mmk_maps_query(fd, (uintptr_t)memory + page, &area, path, &length, &facts);
    if (error == -ENOTTY) {
        printf("  (not on this kernel: PROCMAP_QUERY came with Linux 6.11)\n");
        CHECK(close(fd) == 0);
        return;
    }
    CHECK(error == 0 && area.start == (uintptr_t)memory + page && area.end == area.start + page);
    CHECK(area.perms == (MMK_AREA_READ | MMK_AREA_WRITE | MMK_AREA_SHARED));
    CHECK(length == strlen("/dev/zero") && memcmp(path, "/dev/zero", length) == 0 && facts == MMK_PATH_DELETED);
    CHECK(mmk_maps_query(fd, 1, &area, path, &length, &facts) == -ENOENT);
    CHECK(close(fd) == 0 && munmap(memory + page, page) == 0);
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
    RUN(every_prefix_and_every_changed_byte_is_survived);
    RUN(rows_beyond_the_capacity_are_not_written);
    RUN(a_full_buffer_is_told_and_reading_goes_on_where_it_stopped);
    RUN(a_query_tells_the_area_at_an_address);
    return 0;
}
