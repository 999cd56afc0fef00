/* maps.h: the text of /proc/PID/maps as columns, and the one area at an address.
 *
 *     7f60896d9000-7f608982f000 r-xp 00026000 fe:00 339380       /usr/lib/libc.so.6 (deleted)
 *     |            |            |    |        |     |            |                 |
 *     start        end          |    offset   |     inode        path              MMK_PATH_DELETED
 *                               perms         device
 *
 * One line is one area: [start, end), not empty, in ascending order. Columns belong to the caller, one
 * entry a row. Neighbours mostly are of one file, so an area holds the row of its path in a second table;
 * row 0 of that table is the empty path, of areas without a name:
 *
 *     areas   start  end  offset  device  inode  perms  path          paths   start  length  perms  facts
 *       0      ...                                       1 ---.         0       0      0      ...     0
 *       1      ...                                       1 ----\----->  1       0     18      r-xp    DELETED
 *       2      ...                                       0
 *
 * What a path holds is what some process chose: any byte but NUL. The kernel writes a newline in it as \012
 * and escapes nothing else, the backslash neither, so \012 may have been four characters of the name
 * (MMK_PATH_ESCAPED: mmk_maps_query knows), and a name may end in " (deleted)" by itself (stat(2) knows).
 *
 * The text is made page by page while the process runs. An area that changes in between may be told
 * twice: it is cut to what lies above the area before it, and counted as torn.
 *
 * Threads, fork: no state is kept. Signals: every call is async-signal-safe; errno is overwritten.
 * Stands on proc_pid_maps(5).
 */
#ifndef MMKIT_MAPS_H
#define MMKIT_MAPS_H

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

/* The longest path that the kernel writes, with its NUL: PATH_MAX. */
enum {
    MMK_MAPS_PATH_MAX = 4096,
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
    uint64_t *start;  /* offset of the first byte in the text */
    uint32_t *length; /* bytes */
    uint8_t *perms;   /* MMK_AREA_* that any area of the path has */
    uint8_t *facts;   /* MMK_PATH_* */
} mmk_path_columns;

/* What mmk_maps_parse found. */
typedef struct mmk_maps_found {
    size_t areas;
    size_t paths;      /* rows, the empty path included: at least 1 */
    size_t path_bytes; /* bytes at the start of the text that now hold the paths */
    size_t escaped;    /* path rows with MMK_PATH_ESCAPED */
    size_t malformed;  /* lines that are none of the kernel's, and were skipped */
    size_t torn;       /* lines that overlapped the one before, and were cut or dropped */
} mmk_maps_found;

/* Append a file to a buffer until its end. read(2).
 *
 * length   bytes in the buffer so far; grows by what was read, whatever is returned
 * returns  0         the whole file is in the buffer
 *          -ENOBUFS  the buffer is full: enlarge it and call again
 *          -ESRCH    the process ended
 *          -errno    of read(2) */
MMK_API MMK_MUST_CHECK int mmk_maps_slurp(int fd, char *buffer, size_t capacity, size_t *length);

/* How many rows the text can have: its lines, the last one without a newline included. */
MMK_API size_t mmk_maps_count_lines(const char *text, size_t length);

/* Fill the columns from the text of a maps file; any bytes will do. The text is spent: afterwards its
 * beginning holds the paths, unescaped, and the rest is undefined.
 *
 * pre:     columns->capacity >= mmk_maps_count_lines(text, length); rows beyond it are dropped. */
MMK_API void mmk_maps_parse(char *text, size_t length, const mmk_area_columns *areas, const mmk_path_columns *paths,
                            mmk_maps_found *found);

/* The area that holds an address. ioctl(2) PROCMAP_QUERY on an open /proc/PID/maps, Linux 6.11.
 *
 * path     gets the path as it is (nothing in it is escaped), without " (deleted)" and without NUL
 * pre:     path has room for MMK_MAPS_PATH_MAX bytes.
 * returns  0 with *area, *path_length and *facts (MMK_PATH_*) filled
 *          -ENOENT  no area holds the address (vsyscall, which is no area of the process, counts as none)
 *          -ENOTTY  the kernel does not have the call: read and parse instead
 *          -ESRCH   the process ended
 *          -errno   of ioctl(2) */
MMK_API MMK_MUST_CHECK int mmk_maps_query(int fd, uint64_t address, mmk_area *area, char *path, size_t *path_length,
                                          unsigned *facts);

#endif
