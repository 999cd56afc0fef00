/* scan.h: copies of a needle in memory: whole ones and parts, as bytes and in the forms that programs give them.
 *
 *     needle    k0 .................................... k31
 *     pieces    [ piece 0 ][ piece 1 ][ piece 2 ][ piece 3 ]     up to four, each of at least 8 bytes of the needle
 *     texts     the needle in each form: as it is, hex, base64 at three alignments, wide characters, HMAC pads
 *
 * Every text is cut where the needle is. A place in memory is a hit when a piece of a text is there; the hit reaches
 * as far to both sides as the text does, and is told once, however many pieces it holds.
 *
 * How it is fast: a piece has at least 8 bytes there, so it holds every 4 bytes that begin in its first 5. Looking at
 * 4 bytes at every fifth place is enough, each with one multiplication and one bit of a filter. Wide characters are
 * half zeros, as much of memory is: they are looked for by 8 bytes at every ninth place.
 *
 * What is prepared here tells the needle: it stands in memory of the caller's, who locks and wipes it.
 *
 * Threads: a scan once prepared is only read; a stream belongs to one thread. Fork: all state is the caller's.
 * Signals: every call is async-signal-safe.
 */
#ifndef MMKIT_SCAN_H
#define MMKIT_SCAN_H

#include <mmkit/base.h>

enum {
    MMK_SCAN_NEEDLE_MIN = 8, /* fewer bytes are found by chance */
    MMK_SCAN_NEEDLE_MAX = 4096,
};

typedef enum mmk_scan_form {
    MMK_FORM_BYTES,
    MMK_FORM_HEX,    /* lower case, upper, or mixed */
    MMK_FORM_BASE64, /* standard or URL-safe, the needle anywhere in what was encoded */
    MMK_FORM_LATIN1, /* characters of the needle, which is UTF-8 and not ASCII, in one byte each */
    MMK_FORM_UCS2,   /* its bytes, or its characters, in two bytes each, little endian */
    MMK_FORM_UCS4,   /* in four */
    MMK_FORM_IPAD,   /* HMAC: its bytes xor 0x36; not of needles longer than 128, which HMAC hashes first */
    MMK_FORM_OPAD,   /* xor 0x5c */
} mmk_scan_form;

typedef struct mmk_scan_hit {
    uint64_t address; /* of the first byte */
    size_t length;    /* bytes that are the text's, from start on */
    size_t start;     /* byte of the text */
    size_t whole;     /* bytes that the text has */
    mmk_scan_form form;
} mmk_scan_hit;

/* Told of each hit. Anything but 0 ends the search, which returns it. */
typedef int mmk_scan_report(void *context, const mmk_scan_hit *hit);

typedef struct mmk_scan mmk_scan;

/* How much memory a scan for a needle of so many bytes takes. pre: MMK_SCAN_NEEDLE_MIN <= length <= …_MAX. */
MMK_API size_t mmk_scan_size(size_t length);

/* Prepare a search, in memory of mmk_scan_size(length) bytes, aligned to 16.
 * returns  0
 *          -EINVAL  length is not between MMK_SCAN_NEEDLE_MIN and MMK_SCAN_NEEDLE_MAX */
MMK_API MMK_MUST_CHECK int mmk_scan_prepare(mmk_scan *scan, const void *needle, size_t length);

/* How far the longest text reaches: bytes. */
MMK_API size_t mmk_scan_reach(const mmk_scan *scan);

/* Search bytes in memory, which are thought to be at an address.
 *
 * Hits whose first whole piece begins in [from, to) are told; they are measured in [0, length).
 * pre: length is up to SIZE_MAX / 2, and nothing writes to the bytes meanwhile.
 * returns  0, or what report returned */
MMK_API int mmk_scan_bytes(const mmk_scan *scan, const void *bytes, size_t length, size_t from, size_t to,
                           uint64_t address, mmk_scan_report *report, void *context);

/* Memory that comes piece by piece, through one buffer of the caller's:
 *
 *     [ searched, kept for its hits ][ not searched yet ][ room ]
 *     0                              next                filled  capacity
 *
 * What goes over the edge of two readings is found as if they had been one. */
typedef struct mmk_scan_stream {
    const mmk_scan *scan;
    mmk_scan_report *report;
    void *context;
    uint8_t *buffer;
    size_t capacity;  /* at least MMK_SCAN_ROOM(mmk_scan_reach) */
    uint64_t address; /* of the first byte in the buffer */
    size_t next;
    size_t filled;
} mmk_scan_stream;

#define MMK_SCAN_ROOM(reach) (4 * (reach))

/* Where the next bytes shall be put, and how many may be. The bytes at an address that does not follow on the ones
 * before begin anew: what was there is searched to its end first.
 * returns  0, or what report returned */
MMK_API MMK_MUST_CHECK int mmk_scan_room(mmk_scan_stream *stream, uint64_t address, uint8_t **place, size_t *room);

/* So many bytes were put there. returns 0, or what report returned */
MMK_API MMK_MUST_CHECK int mmk_scan_took(mmk_scan_stream *stream, size_t length);

/* No more will come. returns 0, or what report returned */
MMK_API MMK_MUST_CHECK int mmk_scan_end(mmk_scan_stream *stream);

#endif
