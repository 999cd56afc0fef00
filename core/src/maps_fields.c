#include "maps_internal.h"

#include <string.h>

#include "maps_digits.h"

enum {
    VALUE_WIDTH = 8,
    /* "Rss:            " "    1332" " kB\n" */
    USUAL_LINE = MMK_FIELD_LABEL + VALUE_WIDTH + 4,
    KILOBYTE = 1024,
    LONGEST_TEXT = 0xFFFF,
};

/* What an amount is below: more than any address space has, so that few of them do not overflow. */
static const uint64_t MOST_KILOBYTES = UINT64_C(1) << 50;

static uint32_t load_unit(const char *at)
{
    uint32_t unit;
    memcpy(&unit, at, sizeof unit);
    return unit;
}

static void zero_until(mmk_area_field *field, size_t row)
{
    if (field->filled < row)
        memset(field->values + field->filled, 0, (row - field->filled) * sizeof *field->values);
    field->filled = row;
}

static inline void set_value(mmk_area_field *field, size_t row, uint64_t value)
{
    if (field->filled != row)
        zero_until(field, row);
    field->values[row] = value;
    field->filled = row + 1;
}

/* What a line of a field begins with, if the kernel pads it as it pads all of its own. */
static void set_label(mmk_area_field *field, size_t length)
{
    if (length + 1 > MMK_FIELD_LABEL)
        return;
    memset(field->label, ' ', MMK_FIELD_LABEL);
    memcpy(field->label, field->name, length);
    field->label[length] = ':';
}

char *mmk_maps_take_usual_fields(mmk_maps_parser *parser, char *at, const char *end)
{
    static const char BYTES_END[] = " kB\n";
    if (!parser->area_count || parser->is_dropped)
        return at;
    size_t row = parser->area_count - 1;
    uint32_t next = parser->next_field;
    for (; next < parser->field_count && end - at >= USUAL_LINE; next++) {
        mmk_area_field *field = &parser->fields[next];
        if (memcmp(at, field->label, MMK_FIELD_LABEL) != 0 || !field->values || field->filled > row)
            break;
        bool valid = true;
        uint64_t value = decimal_word(at + MMK_FIELD_LABEL, &valid);
        const char *rest = at + MMK_FIELD_LABEL + VALUE_WIDTH;
        if (!valid)
            break;
        if (field->unit == MMK_FIELD_BYTES && load_unit(rest) == load_unit(BYTES_END)) {
            set_value(field, row, value * KILOBYTE);
            at += USUAL_LINE;
        } else if (field->unit == MMK_FIELD_NUMBER && *rest == '\n') {
            set_value(field, row, value);
            at += MMK_FIELD_LABEL + VALUE_WIDTH + 1;
        } else {
            break;
        }
    }
    parser->next_field = next;
    return at;
}

static bool is_name_byte(char byte)
{
    return (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9') || byte == '_';
}

/* The length of a name with a colon behind it; 0 if there is none. */
static size_t name_length(const char *line, const char *end)
{
    const char *at = line;
    while (at < end && is_name_byte(*at))
        at++;
    return at < end && *at == ':' && at - line < MMK_FIELD_NAME_MAX ? (size_t)(at - line) : 0;
}

/* A number, and what it counts: *unit. False if this is none. */
static bool read_number(const char *at, const char *end, uint64_t *value, int *unit)
{
    const char *digit = at;
    *value = 0;
    for (; digit < end && *digit >= '0' && *digit <= '9'; digit++) {
        if (__builtin_mul_overflow(*value, UINT64_C(10), value) ||
            __builtin_add_overflow(*value, (uint64_t)(*digit - '0'), value))
            return false;
    }
    if (digit == at)
        return false;
    *unit = MMK_FIELD_NUMBER;
    if (end - digit == 3 && memcmp(digit, " kB", 3) == 0) {
        *unit = MMK_FIELD_BYTES;
        bool is_amount = *value < MOST_KILOBYTES;
        *value *= KILOBYTE;
        return is_amount;
    }
    return digit == end;
}

/* Look for a field, first where the last area had it. */
static mmk_area_field *field_named(mmk_maps_parser *parser, const char *name, size_t length)
{
    uint32_t count = (uint32_t)parser->field_count;
    for (uint32_t i = 0, at = parser->next_field; i < count; i++, at++) {
        mmk_area_field *field = &parser->fields[at % count];
        if (memcmp(field->name, name, length) == 0 && !field->name[length]) {
            parser->next_field = at % count + 1;
            return field;
        }
    }
    return NULL;
}

static mmk_area_field *add_field(mmk_maps_parser *parser, const char *name, size_t length, int unit)
{
    mmk_area_field *field = &parser->fields[parser->field_count++];
    *field = (mmk_area_field){.unit = unit, .values = field->values};
    memcpy(field->name, name, length);
    set_label(field, length);
    return field;
}

/* Move a value that is text to the kept ones, unless the row before had the same. Returns its place. */
static uint64_t keep_text(mmk_maps_parser *parser, char *text, const mmk_area_field *field, const char *value,
                          size_t length)
{
    size_t row = parser->area_count - 1;
    if (row && field->filled == row) {
        uint64_t before = field->values[row - 1];
        if (MMK_TEXT_LENGTH(before) == length && memcmp(text + MMK_TEXT_START(before), value, length) == 0)
            return before;
    }
    uint64_t place = (uint64_t)parser->kept << 16 | length;
    memmove(text + parser->kept, value, length);
    parser->kept += length;
    return place;
}

line_outcome mmk_maps_take_field(mmk_maps_parser *parser, char *text, char *line, const char *end)
{
    size_t length = name_length(line, end);
    if (!length || (!parser->area_count && !parser->is_dropped))
        return LINE_FOREIGN;
    if (parser->is_dropped)
        return LINE_TAKEN;
    const char *at = line + length + 1;
    while (at < end && *at == ' ')
        at++;
    while (at < end && end[-1] == ' ')
        end--;
    uint64_t value;
    int unit;
    if (!read_number(at, end, &value, &unit))
        unit = MMK_FIELD_TEXT;
    mmk_area_field *field = field_named(parser, line, length);
    if (!field) {
        if (parser->field_count == MMK_FIELDS_MAX)
            return LINE_FOREIGN;
        field = add_field(parser, line, length, unit);
    }
    if (!field->values)
        return LINE_NO_ROOM;
    size_t row = parser->area_count - 1;
    if (field->unit != unit || field->filled > row || (unit == MMK_FIELD_TEXT && end - at > LONGEST_TEXT))
        return LINE_FOREIGN;
    if (unit == MMK_FIELD_TEXT)
        value = keep_text(parser, text, field, at, (size_t)(end - at));
    set_value(field, row, value);
    return LINE_TAKEN;
}

void mmk_maps_fill_fields(mmk_maps_parser *parser)
{
    for (size_t i = 0; i < parser->field_count; i++) {
        if (parser->fields[i].values)
            zero_until(&parser->fields[i], parser->area_count);
    }
}
