/* maps.h: the text of /proc/PID/maps and smaps as columns.
 *
 *     7f60896d9000-7f608982f000 r-xp 00026000 fe:00 339380       /usr/lib/libc.so.6 (deleted)
 *     |            |            |    |        |     |            |                 |
 *     start        end          |    offset   |     inode        path              MMK_PATH_DELETED
 *                               perms         device
 *     Rss:                1332 kB        smaps alone: a field with a number of bytes,
 *     THPeligible:           0           with a number,
 *     VmFlags: rd ex mr mw me sd         or with text, of the area above it
 *
 * One such line is one area: [start, end), not empty, in ascending order. Columns belong to the caller, one
 * entry a row. Neighbours mostly are of one file, so an area holds the row of its path in a second table;
 * row 0 of that table is the empty path, of areas without a name:
 *
 *     areas   start  end  offset  device  inode  perms  path          paths   start  length  perms  facts
 *       0      ...                                       1 ---.         0       0      0      ...     0
 *       1      ...                                       1 ----\----->  1       0     18      r-xp    DELETED
 *       2      ...                                       0
 *
 * Kernels differ in the fields they tell: each gets a column when it is first met, whatever its name. An area
 * without it has 0 there.
 *
 * What a path holds is what some process chose: any byte but NUL. The kernel writes a newline in it as \012
 * and escapes nothing else, the backslash neither, so \012 may have been four characters of the name
 * (MMK_PATH_ESCAPED: maps_query.h knows), and a name may end in " (deleted)" by itself (stat(2) knows).
 *
 * The text is made page by page while the process runs. An area that changes in between may be told
 * twice: it is cut to what lies above the area before it, and counted as torn.
 *
 * Threads, fork: all state is the caller's. Signals: every call is async-signal-safe; errno is overwritten.
 * Stands on proc_pid_maps(5), proc_pid_smaps(5).
 */
#ifndef MMKIT_MAPS_H
#define MMKIT_MAPS_H

#include <stdbool.h>

#include <mmkit/base.h>

/* Permission bits: as PROT_READ, PROT_WRITE, PROT_EXEC and PROCMAP_QUERY_VMA_SHARED. */
enum {
    MMK_AREA_READ = 0x1,
    MMK_AREA_WRITE = 0x2,
    MMK_AREA_EXEC = 0x4,
    MMK_AREA_SHARED = 0x8,
};

/* What the text around a path told. */
enum {
    MMK_PATH_DELETED = 0x1, /* it ended in " (deleted)", which is not part of the path here */
    MMK_PATH_ESCAPED = 0x2, /* it held \012, taken for a newline */
};

typedef struct mmk_area {
    uint64_t start;  /* address of the first byte */
    uint64_t end;    /* address after the last byte */
    uint64_t offset; /* bytes into the file; 0 without one */
    uint64_t device; /* as st_dev of stat(2) has it */
    uint64_t inode;
    uint8_t perms; /* MMK_AREA_* */
} mmk_area;

/* The caller's columns for areas, `capacity` entries each. */
typedef struct mmk_area_columns {
    uint64_t *start;
    uint64_t *end;
    uint64_t *offset;
    uint64_t *device;
    uint64_t *inode;
    uint32_t *path; /* row in the path columns */
    uint8_t *perms;
    size_t capacity;
} mmk_area_columns;

/* The caller's columns for paths, one entry more than the area columns have. */
typedef struct mmk_path_columns {
    uint64_t *start;  /* offset of the first byte in the kept text */
    uint32_t *length; /* bytes */
    uint8_t *perms;   /* MMK_AREA_* that any area of the path has */
    uint8_t *facts;   /* MMK_PATH_* */
} mmk_path_columns;

/* What the value of a field is. */
enum {
    MMK_FIELD_BYTES = 1,  /* a number that the text has in kB */
    MMK_FIELD_NUMBER = 2, /* a number without a unit */
    MMK_FIELD_TEXT = 3,   /* a place in the text: MMK_TEXT_START, MMK_TEXT_LENGTH */
};

#define MMK_TEXT_START(value) ((value) >> 16)
#define MMK_TEXT_LENGTH(value) ((value) & 0xFFFF)

enum {
    MMK_FIELDS_MAX = 64,     /* Linux 6.18 has 26 */
    MMK_FIELD_NAME_MAX = 32, /* with its NUL */
    MMK_FIELD_LABEL = 16,    /* the kernel writes a name, a colon and spaces in so many columns */
};

/* A field of smaps and its column. */
typedef struct mmk_area_field {
    char name[MMK_FIELD_NAME_MAX]; /* as the kernel has it: Private_Dirty */
    char label[MMK_FIELD_LABEL];   /* the parser's: what its lines begin with; NUL first where that is longer */
    int unit;                      /* MMK_FIELD_*, as the first line with it had it */
    size_t filled;                 /* the parser's: rows that have their value */
    uint64_t *values;              /* the caller's column, as many entries as the area columns; NULL: none yet */
} mmk_area_field;

/* A reading in progress: what the caller provides, and what was found so far. Begins as zeros with the columns. */
typedef struct mmk_maps_parser {
    mmk_area_columns areas;
    mmk_path_columns paths;
    mmk_area_field fields[MMK_FIELDS_MAX]; /* in the order in which they are met; columns may be there before */

    size_t area_count;
    size_t path_count;  /* rows, the empty path included: at least 1 after the first call */
    size_t field_count; /* the last of them may need a column */
    size_t kept;        /* bytes at the start of the text that hold the paths and the values that are text */
    unsigned facts;     /* MMK_PATH_* that any path has */
    size_t malformed;   /* lines that are none of the kernel's, and were skipped */
    size_t torn;        /* areas that overlapped the one before, and were cut or dropped */

    uint64_t previous_end; /* where the last area ends */

    /* The parser's own. */
    uint64_t latest_device;
    uint64_t latest_inode;
    uint32_t latest_path; /* row of the last path that was not empty; 0: none yet */
    uint32_t next_field;  /* the field that is expected on the next line */
    bool is_dropped;      /* the fields that follow belong to no row */
} mmk_maps_parser;

/* Append a file to a buffer until its end. read(2).
 *
 * length   bytes in the buffer so far; grows by what was read, whatever is returned
 * returns  0         the whole file is in the buffer
 *          -ENOBUFS  the buffer is full: use it up or enlarge it, and call again
 *          -ESRCH    the process ended
 *          -errno    of read(2) */
MMK_API MMK_MUST_CHECK int mmk_maps_slurp(int fd, char *buffer, size_t capacity, size_t *length);

/* Parse what has been read of a maps or smaps file; any bytes will do. The text is spent as it goes:
 *
 *     [ kept: paths, unescaped, and values ][ text not parsed yet ][ room for more ]
 *     0                                     parser->kept           *length
 *
 * length   bytes in the text, the kept ones included; less afterwards, since the rest has moved down
 * is_end   no more will come: a last line without a newline counts, and columns are filled up with zeros
 * returns  0         all whole lines are parsed
 *          -ENOBUFS  a row more is needed, or a column for a new field: provide it and call again */
MMK_API MMK_MUST_CHECK int mmk_maps_parse(mmk_maps_parser *parser, char *text, size_t *length, bool is_end);

#endif
