#include <mmkit/maps.h>

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* struct procmap_query of linux/fs.h, 6.11. */
typedef struct procmap_query {
    uint64_t size;
    uint64_t query_flags;
    uint64_t query_addr;
    uint64_t vma_start;
    uint64_t vma_end;
    uint64_t vma_flags;
    uint64_t vma_page_size;
    uint64_t vma_offset;
    uint64_t inode;
    uint32_t dev_major;
    uint32_t dev_minor;
    uint32_t vma_name_size; /* room for it on the way in, its length with NUL on the way out; 0: no name */
    uint32_t build_id_size;
    uint64_t vma_name_addr;
    uint64_t build_id_addr;
} procmap_query;

_Static_assert(sizeof(procmap_query) == 104, "the kernel's struct has 104 bytes");

static const unsigned long PROCMAP_QUERY_CALL = _IOWR('f', 17, procmap_query);

static const char DELETED[] = " (deleted)";
static const char NEWLINE[] = "\\012";

enum {
    DELETED_LENGTH = sizeof DELETED - 1,
    NEWLINE_LENGTH = sizeof NEWLINE - 1,
    PERMS_LENGTH = 4,
};

/* What is carried from line to line. */
typedef struct parser {
    char *text;
    const mmk_area_columns *areas;
    const mmk_path_columns *paths;
    mmk_maps_found *found;
    uint64_t previous_end;
    uint32_t latest_path; /* row of the last path that was not empty; 0: none yet */
    uint64_t latest_device;
    uint64_t latest_inode;
} parser;

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

size_t mmk_maps_count_lines(const char *text, size_t length)
{
    size_t lines = 0;
    for (const char *at = text, *end = text + length; at < end; at = end_of_line(at, end) + 1)
        lines++;
    return lines;
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

static const char *take_area(const char *at, const char *end, mmk_area *area)
{
    uint64_t major, minor;
    at = take_hex(at, end, '-', &area->start);
    at = take_hex(at, end, ' ', &area->end);
    at = take_perms(at, end, &area->perms);
    at = take_hex(at, end, ' ', &area->offset);
    at = take_hex(at, end, ':', &major);
    at = take_hex(at, end, ' ', &minor);
    at = take_decimal(at, end, &area->inode);
    if (!at || area->start >= area->end || major > UINT32_MAX || minor > UINT32_MAX)
        return NULL;
    area->device = makedev((unsigned)major, (unsigned)minor);
    return at;
}

/* Turn each \012 into a newline, in place. Returns the new length. */
static size_t unescape(char *path, size_t length, unsigned *facts)
{
    const char *end = path + length;
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

/* Take " (deleted)" off the end; a path is not empty without it. Returns the new length. */
static size_t strip_deleted(const char *path, size_t length, unsigned *facts)
{
    if (length <= DELETED_LENGTH || memcmp(path + length - DELETED_LENGTH, DELETED, DELETED_LENGTH) != 0)
        return length;
    *facts |= MMK_PATH_DELETED;
    return length - DELETED_LENGTH;
}

static bool is_latest(const parser *state, const mmk_area *area, const char *path, size_t length, unsigned facts)
{
    uint32_t row = state->latest_path;
    return row && area->inode == state->latest_inode && area->device == state->latest_device &&
           state->paths->length[row] == length && state->paths->facts[row] == facts &&
           memcmp(state->text + state->paths->start[row], path, length) == 0;
}

/* Move a path to the others at the start of the text (it never moves up) and give it a row. */
static void keep_path(parser *state, const mmk_area *area, const char *path, size_t length, unsigned facts)
{
    mmk_maps_found *found = state->found;
    size_t row = found->paths++;
    memmove(state->text + found->path_bytes, path, length);
    state->paths->start[row] = found->path_bytes;
    state->paths->length[row] = (uint32_t)length;
    state->paths->perms[row] = 0;
    state->paths->facts[row] = (uint8_t)facts;
    found->path_bytes += length;
    found->escaped += (facts & MMK_PATH_ESCAPED) != 0;
    state->latest_path = (uint32_t)row;
    state->latest_device = area->device;
    state->latest_inode = area->inode;
}

/* The row of the path at the end of a line, [at, end): it begins after the padding. */
static uint32_t path_row(parser *state, const mmk_area *area, char *at, const char *end)
{
    while (at < end && *at == ' ')
        at++;
    if (at == end)
        return 0;
    unsigned facts = 0;
    size_t length = unescape(at, (size_t)(end - at), &facts);
    length = strip_deleted(at, length, &facts);
    if (!is_latest(state, area, at, length, facts))
        keep_path(state, area, at, length, facts);
    return state->latest_path;
}

/* Cut what an earlier line has told already. Returns whether anything is left. */
static bool cut_overlap(parser *state, mmk_area *area)
{
    if (area->start >= state->previous_end)
        return true;
    state->found->torn++;
    if (area->end <= state->previous_end)
        return false;
    if (area->device || area->inode)
        area->offset += state->previous_end - area->start;
    area->start = state->previous_end;
    return true;
}

static void keep_area(parser *state, const mmk_area *area, uint32_t path)
{
    const mmk_area_columns *areas = state->areas;
    size_t row = state->found->areas++;
    areas->start[row] = area->start;
    areas->end[row] = area->end;
    areas->offset[row] = area->offset;
    areas->device[row] = area->device;
    areas->inode[row] = area->inode;
    areas->perms[row] = area->perms;
    areas->path[row] = path;
    state->paths->perms[path] |= area->perms;
    state->previous_end = area->end;
}

static void parse_line(parser *state, char *line, const char *end)
{
    mmk_area area;
    const char *path = take_area(line, end, &area);
    if (!path || (uint64_t)(end - path) > UINT32_MAX)
        state->found->malformed++;
    else if (cut_overlap(state, &area))
        keep_area(state, &area, path_row(state, &area, line + (path - line), end));
}

void mmk_maps_parse(char *text, size_t length, const mmk_area_columns *areas, const mmk_path_columns *paths,
                    mmk_maps_found *found)
{
    parser state = {.text = text, .areas = areas, .paths = paths, .found = found};
    *found = (mmk_maps_found){.paths = 1};
    paths->start[0] = 0;
    paths->length[0] = 0;
    paths->perms[0] = 0;
    paths->facts[0] = 0;
    const char *end = text + length;
    for (char *line = text; line < end && found->areas < areas->capacity;) {
        const char *line_end = end_of_line(line, end);
        parse_line(&state, line, line_end);
        line += line_end - line + 1;
    }
}

int mmk_maps_query(int fd, uint64_t address, mmk_area *area, char *path, size_t *path_length, unsigned *facts)
{
    procmap_query query = {
        .size = sizeof query,
        .query_addr = address,
        .vma_name_addr = (uintptr_t)path,
        .vma_name_size = MMK_MAPS_PATH_MAX,
    };
    if (ioctl(fd, PROCMAP_QUERY_CALL, &query) == -1)
        return -errno;
    *area = (mmk_area){
        .start = query.vma_start,
        .end = query.vma_end,
        .offset = query.vma_offset,
        .device = makedev(query.dev_major, query.dev_minor),
        .inode = query.inode,
        .perms = (uint8_t)(query.vma_flags & 0xF),
    };
    size_t length = query.vma_name_size ? query.vma_name_size - 1 : 0;
    *facts = 0;
    *path_length = strip_deleted(path, length, facts);
    return 0;
}
