#include "maps_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "maps_digits.h"

static const char DELETED[] = " (deleted)";
static const char NEWLINE[] = "\\012";

enum {
    DELETED_LENGTH = sizeof DELETED - 1,
    NEWLINE_LENGTH = sizeof NEWLINE - 1,
    PERMS_LENGTH = 4,
};

int mmk_maps_slurp(int fd, char *buffer, size_t capacity, size_t *length)
{
    while (*length < capacity) {
        ssize_t got = read(fd, buffer + *length, capacity - *length);
        if (got == 0)
            return 0;
        if (got > 0)
            *length += (size_t)got;
        else if (errno != EINTR)
            return -errno;
    }
    return -ENOBUFS;
}

static const char *end_of_line(const char *at, const char *end)
{
    const char *newline = memchr(at, '\n', (size_t)(end - at));
    return newline ? newline : end;
}

/* The take_ functions read one field, and the separator after it, from [at, end).
 * They return where the next one begins, or NULL: at NULL, and at what is not such a field. */

static const char *take_separator(const char *at, const char *end, char separator)
{
    return at && at < end && *at == separator ? at + 1 : NULL;
}

static const char *take_hex(const char *at, const char *end, char separator, uint64_t *value)
{
    uint64_t sum = 0;
    const char *digit = at;
    for (; digit && digit < end; digit++) {
        unsigned code = (unsigned char)*digit;
        unsigned nibble = code - '0' < 10 ? code - '0' : code - 'a' < 6 ? code - 'a' + 10 : 16;
        if (nibble == 16)
            break;
        if (sum >> 60)
            return NULL;
        sum = sum << 4 | nibble;
    }
    *value = sum;
    return digit == at ? NULL : take_separator(digit, end, separator);
}

static const char *take_perms(const char *at, const char *end, uint8_t *perms)
{
    static const char set[PERMS_LENGTH] = {'r', 'w', 'x', 's'};
    static const char unset[PERMS_LENGTH] = {'-', '-', '-', 'p'};
    if (!at || end - at < PERMS_LENGTH)
        return NULL;
    *perms = 0;
    for (unsigned i = 0; i < PERMS_LENGTH; i++) {
        if (at[i] == set[i])
            *perms |= (uint8_t)(1u << i);
        else if (at[i] != unset[i])
            return NULL;
    }
    return take_separator(at + PERMS_LENGTH, end, ' ');
}

/* The inode number, the last field, may end the line. */
static const char *take_decimal(const char *at, const char *end, uint64_t *value)
{
    uint64_t sum = 0;
    const char *digit = at;
    for (; digit && digit < end && (unsigned)(*digit - '0') < 10; digit++) {
        if (__builtin_mul_overflow(sum, UINT64_C(10), &sum) ||
            __builtin_add_overflow(sum, (uint64_t)(*digit - '0'), &sum))
            return NULL;
    }
    *value = sum;
    return digit == at || (digit < end && *digit != ' ') ? NULL : digit;
}

/* "7f60896d9000-7f608982f000 r-xp 00026000 ", as most areas begin: twelve digits, eight digits. */
enum {
    USUAL_END = 13,
    USUAL_PERMS = 26,
    USUAL_OFFSET = 31,
    USUAL_FILE = 40,
};

/* NULL if this one begins otherwise. */
static const char *take_usual_span(const char *at, const char *end, mmk_area *area)
{
    if (end - at < USUAL_FILE || at[USUAL_END - 1] != '-' || at[USUAL_PERMS - 1] != ' ' || at[USUAL_FILE - 1] != ' ')
        return NULL;
    bool valid = take_perms(at + USUAL_PERMS, end, &area->perms);
    area->start = hex_address(at, &valid);
    area->end = hex_address(at + USUAL_END, &valid);
    area->offset = hex_word(at + USUAL_OFFSET, &valid);
    return valid ? at + USUAL_FILE : NULL;
}

static const char *take_span(const char *at, const char *end, mmk_area *area)
{
    at = take_hex(at, end, '-', &area->start);
    at = take_hex(at, end, ' ', &area->end);
    at = take_perms(at, end, &area->perms);
    return take_hex(at, end, ' ', &area->offset);
}

static const char *take_area(const char *at, const char *end, mmk_area *area)
{
    const char *rest = take_usual_span(at, end, area);
    if (!rest)
        rest = take_span(at, end, area);
    uint64_t major, minor;
    rest = take_hex(rest, end, ':', &major);
    rest = take_hex(rest, end, ' ', &minor);
    rest = take_decimal(rest, end, &area->inode);
    if (!rest || area->start >= area->end || major > UINT32_MAX || minor > UINT32_MAX)
        return NULL;
    area->device = major | minor ? makedev((unsigned)major, (unsigned)minor) : 0;
    return rest;
}

/* Turn each \012 into a newline, in place. Returns the new length. */
static size_t unescape(char *path, size_t length, unsigned *facts)
{
    const char *end = path + length;
    if (!memchr(path, '\\', length))
        return length;
    char *to = path;
    for (const char *from = path; from < end;) {
        const char *backslash = memchr(from, '\\', (size_t)(end - from));
        size_t plain = (size_t)((backslash ? backslash : end) - from);
        memmove(to, from, plain);
        to += plain;
        from += plain;
        if (!backslash)
            break;
        bool is_newline = end - from >= NEWLINE_LENGTH && memcmp(from, NEWLINE, NEWLINE_LENGTH) == 0;
        *to++ = is_newline ? '\n' : '\\';
        from += is_newline ? NEWLINE_LENGTH : 1;
        *facts |= is_newline ? MMK_PATH_ESCAPED : 0;
    }
    return (size_t)(to - path);
}

size_t mmk_maps_strip_deleted(const char *path, size_t length, unsigned *facts)
{
    if (length <= DELETED_LENGTH || memcmp(path + length - DELETED_LENGTH, DELETED, DELETED_LENGTH) != 0)
        return length;
    *facts |= MMK_PATH_DELETED;
    return length - DELETED_LENGTH;
}

static bool is_latest(const mmk_maps_parser *parser, const char *text, const mmk_area *area, const char *path,
                      size_t length, unsigned facts)
{
    uint32_t row = parser->latest_path;
    return row && area->inode == parser->latest_inode && area->device == parser->latest_device &&
           parser->paths.length[row] == length && parser->paths.facts[row] == facts &&
           memcmp(text + parser->paths.start[row], path, length) == 0;
}

/* Move a path to the others at the start of the text (it never moves up) and give it a row. */
static void keep_path(mmk_maps_parser *parser, char *text, const mmk_area *area, const char *path, size_t length,
                      unsigned facts)
{
    size_t row = parser->path_count++;
    memmove(text + parser->kept, path, length);
    parser->paths.start[row] = parser->kept;
    parser->paths.length[row] = (uint32_t)length;
    parser->paths.perms[row] = 0;
    parser->paths.facts[row] = (uint8_t)facts;
    parser->kept += length;
    parser->facts |= facts;
    parser->latest_path = (uint32_t)row;
    parser->latest_device = area->device;
    parser->latest_inode = area->inode;
}

/* The row of the path at the end of a line, [at, end): it begins after the padding. */
static uint32_t path_row(mmk_maps_parser *parser, char *text, const mmk_area *area, char *at, const char *end)
{
    while (end - at >= 8 && load_word(at) == EACH_BYTE(' '))
        at += 8;
    while (at < end && *at == ' ')
        at++;
    if (at == end)
        return 0;
    unsigned facts = 0;
    size_t length = unescape(at, (size_t)(end - at), &facts);
    length = mmk_maps_strip_deleted(at, length, &facts);
    if (!is_latest(parser, text, area, at, length, facts))
        keep_path(parser, text, area, at, length, facts);
    return parser->latest_path;
}

/* Cut what an earlier line has told already. Returns whether anything is left. */
static bool cut_overlap(mmk_maps_parser *parser, mmk_area *area)
{
    if (area->start >= parser->previous_end)
        return true;
    parser->torn++;
    if (area->end <= parser->previous_end)
        return false;
    if (area->device || area->inode)
        area->offset += parser->previous_end - area->start;
    area->start = parser->previous_end;
    return true;
}

static void keep_area(mmk_maps_parser *parser, const mmk_area *area, uint32_t path)
{
    const mmk_area_columns *areas = &parser->areas;
    size_t row = parser->area_count++;
    areas->start[row] = area->start;
    areas->end[row] = area->end;
    areas->offset[row] = area->offset;
    areas->device[row] = area->device;
    areas->inode[row] = area->inode;
    areas->perms[row] = area->perms;
    areas->path[row] = path;
    parser->paths.perms[path] |= area->perms;
    parser->previous_end = area->end;
}

/* Take lines of areas without file and name, as long as there are some: what a map has thousands of is these.
 * Most begin where the one before ended, which need not be read twice. Returns what is left of [at, end). */
static char *take_plain_areas(mmk_maps_parser *parser, char *at, const char *end)
{
    static const char NO_FILE[] = "00000000 00:00 0 \n";
    enum {
        ADDRESS = USUAL_END - 1,
        LINE = USUAL_OFFSET + sizeof NO_FILE - 1,
    };
    const char *end_before = NULL;
    for (; end - at >= LINE && parser->area_count < parser->areas.capacity; at += LINE) {
        mmk_area area = {.start = parser->previous_end};
        bool valid = at[ADDRESS] == '-' && at[USUAL_PERMS - 1] == ' ' &&
                     take_perms(at + USUAL_PERMS, end, &area.perms) &&
                     memcmp(at + USUAL_OFFSET, NO_FILE, sizeof NO_FILE - 1) == 0;
        if (!end_before || memcmp(at, end_before, ADDRESS) != 0)
            area.start = hex_address(at, &valid);
        area.end = hex_address(at + USUAL_END, &valid);
        if (!valid || area.start < parser->previous_end || area.start >= area.end)
            break;
        parser->next_field = 0;
        parser->is_dropped = false;
        keep_area(parser, &area, 0);
        end_before = at + USUAL_END;
    }
    return at;
}

/* Take a line, [line, end), as that of an area. */
static line_outcome take_area_line(mmk_maps_parser *parser, char *text, char *line, const char *end)
{
    mmk_area area;
    const char *path = take_area(line, end, &area);
    if (!path || (uint64_t)(end - path) > UINT32_MAX)
        return LINE_FOREIGN;
    if (parser->area_count == parser->areas.capacity)
        return LINE_NO_ROOM;
    parser->next_field = 0;
    parser->is_dropped = !cut_overlap(parser, &area);
    if (!parser->is_dropped)
        keep_area(parser, &area, path_row(parser, text, &area, line + (path - line), end));
    return LINE_TAKEN;
}

static void begin(mmk_maps_parser *parser)
{
    parser->path_count = 1;
    parser->paths.start[0] = 0;
    parser->paths.length[0] = 0;
    parser->paths.perms[0] = 0;
    parser->paths.facts[0] = 0;
}

/* Parse lines until `end`. Returns what is left of them: something only if there is no room. */
static char *parse_lines(mmk_maps_parser *parser, char *text, char *at, const char *end)
{
    for (;;) {
        at = take_plain_areas(parser, at, end);
        at = mmk_maps_take_usual_fields(parser, at, end);
        if (at == end)
            return at;
        const char *line_end = end_of_line(at, end);
        /* The kernel's hexadecimal digits are lower-case, its fields begin in upper case. */
        bool may_be_area = *at < 'A' || *at > 'Z';
        line_outcome outcome = may_be_area ? take_area_line(parser, text, at, line_end) : LINE_FOREIGN;
        if (outcome == LINE_FOREIGN)
            outcome = mmk_maps_take_field(parser, text, at, line_end);
        if (outcome == LINE_NO_ROOM)
            return at;
        parser->malformed += outcome == LINE_FOREIGN;
        at += line_end - at + (line_end < end);
    }
}

int mmk_maps_parse(mmk_maps_parser *parser, char *text, size_t *length, bool is_end)
{
    if (!parser->path_count) {
        if (!parser->areas.capacity)
            return -ENOBUFS;
        begin(parser);
    }
    char *at = text + parser->kept, *end = text + *length;
    const char *last_newline = memrchr(at, '\n', (size_t)(end - at));
    const char *whole = is_end ? end : last_newline ? last_newline + 1 : at;
    at = parse_lines(parser, text, at, whole);
    int error = at < whole ? -ENOBUFS : 0;
    memmove(text + parser->kept, at, (size_t)(end - at));
    *length = parser->kept + (size_t)(end - at);
    if (is_end && !error)
        mmk_maps_fill_fields(parser);
    return error;
}
