/* maps_internal.h: what areas (maps.c), fields (maps_fields.c) and queries (maps_query.c) share. */
#ifndef MMKIT_MAPS_INTERNAL_H
#define MMKIT_MAPS_INTERNAL_H

#include <mmkit/maps.h>

/* What became of a line. */
typedef enum line_outcome {
    LINE_TAKEN,
    LINE_FOREIGN, /* it is not of this kind */
    LINE_NO_ROOM, /* the caller must provide a row or a column; nothing was changed but field_count */
} line_outcome;

/* Take as many lines as look like the fields of the last area did, from [at, end). Returns what is left. */
char *mmk_maps_take_usual_fields(mmk_maps_parser *parser, char *at, const char *end);

/* Take a line, [line, end), as a field of the last area. */
line_outcome mmk_maps_take_field(mmk_maps_parser *parser, char *text, char *line, const char *end);

/* Give rows without a value of a field a 0. */
void mmk_maps_fill_fields(mmk_maps_parser *parser);

/* Take " (deleted)" off the end of a path, which is not empty without it. Returns the new length. */
size_t mmk_maps_strip_deleted(const char *path, size_t length, unsigned *facts);

#endif
