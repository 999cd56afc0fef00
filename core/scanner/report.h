/* report.h: what the scanner is told on its standard input, and what it answers on its standard output.
 *
 * Numbers are in the machine's order: both ends are one installation. */
#ifndef MMKIT_SCANNER_REPORT_H
#define MMKIT_SCANNER_REPORT_H

#include <stdint.h>
#include <sys/types.h>

/* A range to be searched. */
typedef struct scanner_range {
    uint64_t address; /* what hits are told by */
    uint64_t length;
    uint64_t offset;     /* where its bytes are in the file that is read; in /proc/PID/mem the address */
    uint64_t is_private; /* nothing is behind its pages: those that were never written are skipped */
} scanner_range;

enum {
    REPORT_HIT = 1,    /* form, address, length, start, whole: as mmk_scan_hit */
    REPORT_UNREAD = 2, /* address, length, error */
    REPORT_DONE = 3,   /* length: bytes read; whole: bytes of the needle; error: why its memory is not locked */
    REPORT_MANY = 4,   /* as REPORT_DONE, with the rest left out after so many hits */
    REPORT_FAILED = 5, /* error; form: the step that failed */
};

enum {
    STEP_NEEDLE = 1, /* reading it */
    STEP_LENGTH = 2, /* it has too few bytes, or too many */
    STEP_MEMORY = 3,
    STEP_RANGES = 4, /* reading what to search */
};

typedef struct scanner_record {
    uint32_t kind;
    uint32_t form;
    int64_t error; /* errno; ENODATA where the file ends, or the process has */
    uint64_t address;
    uint64_t length;
    uint64_t start;
    uint64_t whole;
} scanner_record;

/* Read until the end or so many bytes are there. returns how many, or -errno */
ssize_t read_fully(int fd, void *bytes, size_t length);

void report(const scanner_record *record);

/* Write what is waiting. */
void report_flush(void);

#endif
