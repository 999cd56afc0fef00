/* maps_table.h: a caller of the parser in maps.h that provides exactly what it asks for, so that a sanitizer
 * sees a byte or a row too many. */
#ifndef MMKIT_TESTS_MAPS_TABLE_H
#define MMKIT_TESTS_MAPS_TABLE_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mmkit/maps.h>

typedef struct maps_table {
    mmk_maps_parser parser;
    char *text;
    size_t length;
} maps_table;

static inline void *maps_table_resized(void *memory, size_t count, size_t item)
{
    void *resized = realloc(memory, count * item);
    if (!resized)
        abort();
    return resized;
}

static inline void maps_table_provide(maps_table *table)
{
    mmk_maps_parser *parser = &table->parser;
    mmk_area_columns *areas = &parser->areas;
    mmk_path_columns *paths = &parser->paths;
    bool needs_column = parser->field_count && !parser->fields[parser->field_count - 1].values;
    size_t rows = needs_column ? areas->capacity : areas->capacity + areas->capacity / 2 + 1;
    areas->start = maps_table_resized(areas->start, rows, sizeof *areas->start);
    areas->end = maps_table_resized(areas->end, rows, sizeof *areas->end);
    areas->offset = maps_table_resized(areas->offset, rows, sizeof *areas->offset);
    areas->device = maps_table_resized(areas->device, rows, sizeof *areas->device);
    areas->inode = maps_table_resized(areas->inode, rows, sizeof *areas->inode);
    areas->path = maps_table_resized(areas->path, rows, sizeof *areas->path);
    areas->perms = maps_table_resized(areas->perms, rows, sizeof *areas->perms);
    paths->start = maps_table_resized(paths->start, rows + 1, sizeof *paths->start);
    paths->length = maps_table_resized(paths->length, rows + 1, sizeof *paths->length);
    paths->perms = maps_table_resized(paths->perms, rows + 1, sizeof *paths->perms);
    paths->facts = maps_table_resized(paths->facts, rows + 1, sizeof *paths->facts);
    for (size_t i = 0; i < parser->field_count; i++)
        parser->fields[i].values = maps_table_resized(parser->fields[i].values, rows, sizeof(uint64_t));
    areas->capacity = rows;
}

/* Give the parser the next piece of a text. */
static inline void maps_table_feed(maps_table *table, const char *piece, size_t length, bool is_end)
{
    table->text = maps_table_resized(table->text, table->length + length + 1, 1);
    if (length)
        memcpy(table->text + table->length + 1, piece, length);
    /* The text ends where the memory ends. */
    memmove(table->text + 1, table->text, table->length);
    table->length += length;
    int error;
    while ((error = mmk_maps_parse(&table->parser, table->text + 1, &table->length, is_end)) == -ENOBUFS)
        maps_table_provide(table);
    if (error)
        abort();
    memmove(table->text, table->text + 1, table->length);
}

/* Parse a text that comes in pieces of a size. */
static inline maps_table maps_table_parse(const char *text, size_t length, size_t piece)
{
    maps_table table = {0};
    for (; length > piece; text += piece, length -= piece)
        maps_table_feed(&table, text, piece, false);
    maps_table_feed(&table, text, length, true);
    return table;
}

static inline void maps_table_free(maps_table *table)
{
    mmk_maps_parser *parser = &table->parser;
    void *const columns[] = {parser->areas.start,  parser->areas.end,   parser->areas.offset, parser->areas.device,
                             parser->areas.inode,  parser->areas.path,  parser->areas.perms,  parser->paths.start,
                             parser->paths.length, parser->paths.perms, parser->paths.facts,  table->text};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        free(columns[i]);
    for (size_t i = 0; i < parser->field_count; i++)
        free(parser->fields[i].values);
}

#endif
