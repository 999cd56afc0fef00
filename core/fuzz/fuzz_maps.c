/* fuzz_maps.c: any bytes, in pieces of any size, through the parser of maps and smaps. libFuzzer's entry.
 * What must hold is checked here; what must not be touched is AddressSanitizer's to see. */
#include "../tests/maps_table.h"

enum {
    MOST_PIECES = 16, /* each costs an allocation */
};

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s does not hold\n", #condition);                                                         \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Are two columns the same? */
#define is_same(a, b, rows) (!(rows) || memcmp(a, b, (rows) * sizeof *(a)) == 0)

static void areas_ascend(const mmk_maps_parser *parser)
{
    uint64_t end = 0;
    for (size_t row = 0; row < parser->area_count; row++) {
        MUST(parser->areas.start[row] >= end && parser->areas.start[row] < parser->areas.end[row]);
        MUST(parser->areas.path[row] < parser->path_count);
        end = parser->areas.end[row];
    }
}

static void what_was_kept_is_in_the_text(const mmk_maps_parser *parser, size_t length)
{
    MUST(parser->kept <= length && parser->path_count >= 1);
    for (size_t row = 0; row < parser->path_count; row++)
        MUST(parser->paths.start[row] + parser->paths.length[row] <= parser->kept);
    for (size_t i = 0; i < parser->field_count; i++) {
        const mmk_area_field *field = &parser->fields[i];
        for (size_t row = 0; field->unit == MMK_FIELD_TEXT && row < parser->area_count; row++)
            MUST(MMK_TEXT_START(field->values[row]) + MMK_TEXT_LENGTH(field->values[row]) <= parser->kept);
    }
}

static void are_equal(const maps_table *one, const maps_table *other)
{
    const mmk_maps_parser *a = &one->parser, *b = &other->parser;
    MUST(a->area_count == b->area_count && a->path_count == b->path_count && a->field_count == b->field_count);
    MUST(a->malformed == b->malformed && a->torn == b->torn && a->kept == b->kept);
    MUST(memcmp(one->text, other->text, a->kept) == 0);
    MUST(a->facts == b->facts && a->previous_end == b->previous_end);
    size_t rows = a->area_count, paths = a->path_count;
    MUST(is_same(a->areas.start, b->areas.start, rows) && is_same(a->areas.end, b->areas.end, rows));
    MUST(is_same(a->areas.offset, b->areas.offset, rows) && is_same(a->areas.device, b->areas.device, rows));
    MUST(is_same(a->areas.inode, b->areas.inode, rows) && is_same(a->areas.path, b->areas.path, rows));
    MUST(is_same(a->areas.perms, b->areas.perms, rows));
    MUST(is_same(a->paths.start, b->paths.start, paths) && is_same(a->paths.length, b->paths.length, paths));
    MUST(is_same(a->paths.perms, b->paths.perms, paths) && is_same(a->paths.facts, b->paths.facts, paths));
    for (size_t i = 0; i < a->field_count; i++) {
        MUST(strcmp(a->fields[i].name, b->fields[i].name) == 0 && a->fields[i].unit == b->fields[i].unit);
        MUST(is_same(a->fields[i].values, b->fields[i].values, rows));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The first byte is the size of the pieces. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    const char *text = (const char *)data + 1;
    size_t length = size - 1;
    size_t least = length / MOST_PIECES + 1, piece = 1u + data[0];
    maps_table whole = maps_table_parse(text, length, size);
    maps_table pieces = maps_table_parse(text, length, piece > least ? piece : least);
    areas_ascend(&whole.parser);
    what_was_kept_is_in_the_text(&whole.parser, length);
    are_equal(&whole, &pieces);
    maps_table_free(&whole);
    maps_table_free(&pieces);
    return 0;
}
