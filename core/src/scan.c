#include <mmkit/scan.h>

#include <errno.h>
#include <string.h>

#include "scan_texts.h"

/* A filter has a bit for each value of a hash, and what has the hash of a gram (some bytes of a piece) is looked up
 * in the list of those grams. */
enum {
    NARROW = 4, /* bytes of a gram */
    WIDE = 8,
    NARROW_STRIDE = SCAN_PIECE_MIN - NARROW + 1,
    WIDE_STRIDE = 2 * SCAN_PIECE_MIN - WIDE + 1, /* of pieces with 16 bytes at least */
    HASH_BITS = 15,
    LIST_BITS = 10, /* lists that share a head */

    /* In hex and base64 every byte of a gram may be spelled in two ways. */
    SPELLED_GRAMS = 4 * SCAN_PIECES * NARROW_STRIDE * (1 << NARROW),
    OTHER_GRAMS = (SCAN_TEXTS - 4) * SCAN_PIECES * WIDE_STRIDE,
    MOST_GRAMS = SPELLED_GRAMS + OTHER_GRAMS,
};

_Static_assert(MOST_GRAMS < UINT16_MAX, "numbers of grams, from 1 on, fit in 16 bits");

typedef struct gram {
    uint16_t next; /* in its list; 0 ends it */
    uint8_t text;
    uint8_t piece;
    uint8_t offset; /* bytes of the piece in front of it */
} gram;

/* All grams of one size. */
typedef struct gram_table {
    uint32_t filter[(1 << HASH_BITS) / 32];
    uint16_t heads[1 << LIST_BITS];
} gram_table;

struct mmk_scan {
    gram_table narrow;
    gram_table wide;
    gram list[MOST_GRAMS + 1]; /* from 1 on */
    size_t gram_count;
    size_t reach;
    scan_text texts[SCAN_TEXTS];
    unsigned text_count;
    uint8_t bytes[]; /* of the texts */
};

/* ---- preparing --------------------------------------------------------------------------------------- */

static uint32_t narrow_hash(const uint8_t *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return (value * UINT32_C(0x9E3779B1)) >> (32 - HASH_BITS);
}

static uint32_t wide_hash(const uint8_t *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return (uint32_t)((value * UINT64_C(0x9E3779B97F4A7C15)) >> (64 - HASH_BITS));
}

static bool is_wide(const scan_text *text)
{
    return (text->form == MMK_FORM_UCS2 || text->form == MMK_FORM_UCS4) &&
           text->pieces[0].end - text->pieces[0].start >= 2 * SCAN_PIECE_MIN;
}

static void add_gram(mmk_scan *scan, gram_table *table, uint32_t hash, gram added)
{
    uint16_t *head = &table->heads[hash >> (HASH_BITS - LIST_BITS)];
    added.next = *head;
    *head = (uint16_t)++scan->gram_count;
    scan->list[scan->gram_count] = added;
    table->filter[hash / 32] |= UINT32_C(1) << hash % 32;
}

/* Add a gram in all its spellings: `spelled` has `done` bytes of it so far. */
static void add_spellings(mmk_scan *scan, gram added, const uint8_t *bytes, uint8_t spelled[NARROW], unsigned done)
{
    if (done == NARROW) {
        add_gram(scan, &scan->narrow, narrow_hash(spelled), added);
        return;
    }
    uint8_t spellings[SCAN_SPELLINGS];
    unsigned count = scan_spellings(scan->texts[added.text].form, bytes[done], spellings);
    for (unsigned i = 0; i < count; i++) {
        spelled[done] = spellings[i];
        add_spellings(scan, added, bytes, spelled, done + 1);
    }
}

static void add_piece(mmk_scan *scan, uint8_t text, uint8_t piece)
{
    const uint8_t *bytes = scan->texts[text].bytes + scan->texts[text].pieces[piece].start;
    bool wide = is_wide(&scan->texts[text]);
    for (uint8_t offset = 0; offset < (wide ? WIDE_STRIDE : NARROW_STRIDE); offset++) {
        gram added = {.text = text, .piece = piece, .offset = offset};
        uint8_t spelled[NARROW];
        if (wide)
            add_gram(scan, &scan->wide, wide_hash(bytes + offset), added);
        else
            add_spellings(scan, added, bytes + offset, spelled, 0);
    }
}

size_t mmk_scan_size(size_t length)
{
    return sizeof(mmk_scan) + scan_texts_size(length);
}

int mmk_scan_prepare(mmk_scan *scan, const void *needle, size_t length)
{
    if (length < MMK_SCAN_NEEDLE_MIN || length > MMK_SCAN_NEEDLE_MAX)
        return -EINVAL;
    memset(scan, 0, sizeof *scan);
    scan->text_count = scan_texts_write(scan->texts, scan->bytes, needle, length);
    for (unsigned text = 0; text < scan->text_count; text++) {
        if (scan->texts[text].length > scan->reach)
            scan->reach = scan->texts[text].length;
        for (unsigned piece = 0; piece < scan->texts[text].piece_count; piece++)
            add_piece(scan, (uint8_t)text, (uint8_t)piece);
    }
    return 0;
}

size_t mmk_scan_reach(const mmk_scan *scan)
{
    return scan->reach;
}

/* ---- searching --------------------------------------------------------------------------------------- */

typedef struct search {
    const mmk_scan *scan;
    const uint8_t *bytes;
    size_t length;
    size_t from; /* where pieces may begin */
    size_t to;
    uint64_t address;
    mmk_scan_report *report;
    void *context;
} search;

static bool is_there(const search *s, const scan_text *text, size_t place, size_t at)
{
    return scan_folded(text->form, s->bytes[place]) == text->bytes[at];
}

static bool is_first_piece(const scan_text *text, unsigned piece, size_t start)
{
    return piece == 0 || text->pieces[piece - 1].start < start;
}

/* Look whether a piece is at a place, and tell of it. returns 0, or what report returned */
static int try_piece(const search *s, const scan_text *text, unsigned number, size_t place)
{
    scan_piece piece = text->pieces[number];
    if (piece.end - piece.start > s->length - place)
        return 0;
    for (size_t at = piece.start; at < piece.end; at++)
        if (!is_there(s, text, place + (at - piece.start), at))
            return 0;
    /* It reaches as far to the left and the right as the text is there. */
    size_t start = piece.start, first = place, end = piece.end, last = place + (piece.end - piece.start);
    while (start > 0 && first > 0 && is_there(s, text, first - 1, start - 1))
        start--, first--;
    while (end < text->length && last < s->length && is_there(s, text, last, end))
        end++, last++;
    /* Of the pieces in one hit the first tells. */
    if (!is_first_piece(text, number, start))
        return 0;
    mmk_scan_hit hit = {s->address + first, end - start, start, text->length, text->form};
    return s->report(s->context, &hit);
}

/* Look at all grams that may be at a place. */
static int try_grams(const search *s, const gram_table *table, size_t place, uint32_t hash)
{
    const mmk_scan *scan = s->scan;
    for (unsigned i = table->heads[hash >> (HASH_BITS - LIST_BITS)]; i; i = scan->list[i].next) {
        gram found = scan->list[i];
        if (place < found.offset + s->from || place - found.offset >= s->to)
            continue;
        int answer = try_piece(s, &scan->texts[found.text], found.piece, place - found.offset);
        if (answer)
            return answer;
    }
    return 0;
}

static inline __attribute__((always_inline)) int search_grams(const search *s, const gram_table *table,
                                                              uint32_t hash_of(const uint8_t *bytes), size_t size,
                                                              size_t stride)
{
    if (s->length < size)
        return 0;
    size_t after = s->length - size + 1, end = s->to + stride - 1;
    if (end > after)
        end = after;
    for (size_t place = s->from; place < end; place += stride) {
        uint32_t hash = hash_of(s->bytes + place);
        if (__builtin_expect(table->filter[hash / 32] >> hash % 32 & 1, 0)) {
            int answer = try_grams(s, table, place, hash);
            if (answer)
                return answer;
        }
    }
    return 0;
}

int mmk_scan_bytes(const mmk_scan *scan, const void *bytes, size_t length, size_t from, size_t to, uint64_t address,
                   mmk_scan_report *report, void *context)
{
    search s = {scan, bytes, length, from, to < length ? to : length, address, report, context};
    if (s.from >= s.to)
        return 0;
    int answer = search_grams(&s, &scan->narrow, narrow_hash, NARROW, NARROW_STRIDE);
    return answer ? answer : search_grams(&s, &scan->wide, wide_hash, WIDE, WIDE_STRIDE);
}
