#include <mmkit/scan.h>

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { MOST_HITS = 64, NEEDLE = 32, ADDRESS = 0x10000 };

static uint64_t random_state = 0x9e3779b97f4a7c15;

static size_t random_below(size_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (size_t)(random_state % limit);
}

static void fill_randomly(uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)random_below(256);
}

typedef struct hits {
    mmk_scan_hit hits[MOST_HITS];
    size_t count;
    size_t most;
} hits;

static int keep(void *context, const mmk_scan_hit *hit)
{
    hits *kept = context;
    if (kept->count == kept->most)
        return 7;
    kept->hits[kept->count++] = *hit;
    return 0;
}

static mmk_scan *prepared(const void *needle, size_t length)
{
    mmk_scan *scan = aligned_alloc(16, (mmk_scan_size(length) + 15) / 16 * 16);
    CHECK(scan && mmk_scan_prepare(scan, needle, length) == 0);
    return scan;
}

/* In a block of its own, so that a sanitizer sees a read beyond its end. */
static hits found(const mmk_scan *scan, const void *bytes, size_t length)
{
    hits all = {.most = MOST_HITS};
    uint8_t *block = malloc(length ? length : 1);
    memcpy(block, bytes, length);
    CHECK(mmk_scan_bytes(scan, block, length, 0, length, ADDRESS, keep, &all) == 0);
    free(block);
    return all;
}

static bool is_hit(const hits *all, size_t place, size_t length, size_t start, mmk_scan_form form)
{
    for (size_t i = 0; i < all->count; i++) {
        const mmk_scan_hit *hit = &all->hits[i];
        if (hit->address == ADDRESS + place && hit->length == length && hit->start == start && hit->form == form)
            return true;
    }
    return false;
}

TEST(a_whole_needle_is_one_hit_wherever_it_stands)
{
    uint8_t needle[NEEDLE], hay[3 * NEEDLE];
    fill_randomly(needle, sizeof needle);
    mmk_scan *scan = prepared(needle, sizeof needle);
    for (size_t place = 0; place <= sizeof hay - sizeof needle; place++) {
        memset(hay, 0, sizeof hay);
        memcpy(hay + place, needle, sizeof needle);
        hits all = found(scan, hay, sizeof hay);
        CHECK(all.count == 1 && is_hit(&all, place, sizeof needle, 0, MMK_FORM_BYTES));
        CHECK(all.hits[0].whole == sizeof needle);
    }
    free(scan);
}

TEST(a_hit_is_as_long_as_what_is_there_and_less_than_a_quarter_is_none)
{
    uint8_t needle[NEEDLE], hay[3 * NEEDLE];
    fill_randomly(needle, sizeof needle);
    mmk_scan *scan = prepared(needle, sizeof needle);
    for (size_t from = 0; from < NEEDLE; from++) {
        for (size_t to = from + 1; to <= NEEDLE; to++) {
            for (size_t i = 0; i < sizeof hay; i++)
                hay[i] = i < NEEDLE ? (uint8_t)~needle[i] : 0;
            /* Around it is what the needle has not. */
            memcpy(hay + from, needle + from, to - from);
            hits all = found(scan, hay, NEEDLE);
            bool has_quarter = (from + 7) / 8 * 8 + 8 <= to;
            CHECK(all.count == has_quarter);
            CHECK(!has_quarter || is_hit(&all, from, to - from, from, MMK_FORM_BYTES));
        }
    }
    free(scan);
}

TEST(parts_that_are_apart_are_hits_of_their_own)
{
    uint8_t needle[NEEDLE], hay[NEEDLE];
    fill_randomly(needle, sizeof needle);
    mmk_scan *scan = prepared(needle, sizeof needle);
    memcpy(hay, needle, sizeof hay);
    hay[12] ^= 1;
    hits all = found(scan, hay, sizeof hay);
    CHECK(all.count == 2 && is_hit(&all, 0, 12, 0, MMK_FORM_BYTES) && is_hit(&all, 13, 19, 13, MMK_FORM_BYTES));
    free(scan);
}

TEST(short_needles_have_fewer_parts_or_none)
{
    uint8_t needle[24], half[8];
    fill_randomly(needle, sizeof needle);
    for (size_t length = 8; length <= sizeof needle; length++) {
        mmk_scan *scan = prepared(needle, length);
        hits whole = found(scan, needle, length), most = found(scan, needle, length - 1);
        CHECK(whole.count == 1 && is_hit(&whole, 0, length, 0, MMK_FORM_BYTES));
        CHECK(most.count == (length >= 16));
        memcpy(half, needle, sizeof half);
        size_t pieces = length / 8, first_piece = length / pieces;
        CHECK(found(scan, half, sizeof half).count == (first_piece == sizeof half));
        free(scan);
    }
}

TEST(lengths_that_cannot_be_looked_for_are_refused)
{
    uint8_t needle[MMK_SCAN_NEEDLE_MAX + 1] = {0};
    mmk_scan *scan = aligned_alloc(16, (mmk_scan_size(sizeof needle) + 15) / 16 * 16);
    CHECK(mmk_scan_prepare(scan, needle, 0) == -EINVAL);
    CHECK(mmk_scan_prepare(scan, needle, MMK_SCAN_NEEDLE_MIN - 1) == -EINVAL);
    CHECK(mmk_scan_prepare(scan, needle, sizeof needle) == -EINVAL);
    CHECK(mmk_scan_prepare(scan, needle, MMK_SCAN_NEEDLE_MAX) == 0);
    CHECK(mmk_scan_prepare(scan, needle, MMK_SCAN_NEEDLE_MIN) == 0);
    free(scan);
}

/* ---- forms ------------------------------------------------------------------------------------------- */

/* Look for a text among other bytes, at every alignment. */
static void expect(const mmk_scan *scan, const void *text, size_t length, size_t from, size_t part, mmk_scan_form form)
{
    uint8_t hay[1024];
    for (size_t before = 1; before < 20; before++) {
        memset(hay, '!', sizeof hay);
        memcpy(hay + before, text, length);
        hits all = found(scan, hay, before + length + 16);
        CHECK(all.count == 1 && is_hit(&all, before + from, part, 0, form) && all.hits[0].whole == part);
    }
}

static const char secret[] = "correct horse battery staple 42?";
_Static_assert(sizeof secret == NEEDLE + 1, "quarters of 8");

TEST(hex_is_found_in_either_case_and_mixed)
{
    static const char digits[] = "0123456789ABCDEF";
    uint8_t needle[NEEDLE];
    char text[2 * NEEDLE];
    fill_randomly(needle, sizeof needle);
    mmk_scan *scan = prepared(needle, sizeof needle);
    for (int way = 0; way < 3; way++) {
        for (size_t i = 0; i < sizeof text; i++) {
            char digit = digits[i % 2 ? needle[i / 2] & 15 : needle[i / 2] >> 4];
            text[i] = (char)(way == 0 || (way == 1 && i % 3) ? digit : tolower(digit));
        }
        expect(scan, text, sizeof text, 0, sizeof text, MMK_FORM_HEX);
    }
    free(scan);
}

TEST(base64_is_found_at_each_alignment_in_both_alphabets)
{
    /* As Python's base64 encodes them with 0, 1, and 2 bytes of "xy" in front and "z" after them. */
    static const uint8_t needle[] = {0xfb, 0xff, 0xbf, 0x3e, 0xfe, 0x00, 0x01, 0x02, 0xff, 0xfe, 0xfd, 0xfc};
    static const char *const texts[] = {"+/+/Pv4AAQL//v38eg==", "ePv/vz7+AAEC//79/Ho=", "eHn7/78+/gABAv/+/fx6"};
    mmk_scan *scan = prepared(needle, sizeof needle);
    for (size_t before = 0; before < 3; before++) {
        size_t first = (8 * before + 5) / 6, end = 8 * (before + sizeof needle) / 6;
        char other[21];
        strcpy(other, texts[before]);
        for (char *at = other; *at; at++)
            *at = (char)(*at == '+' ? '-' : *at == '/' ? '_' : *at);
        expect(scan, texts[before], strlen(texts[before]), first, end - first, MMK_FORM_BASE64);
        expect(scan, other, strlen(other), first, end - first, MMK_FORM_BASE64);
    }
    free(scan);
}

static size_t widen(uint8_t *wide, const uint32_t *characters, size_t count, size_t width)
{
    memset(wide, 0, width * count);
    for (size_t i = 0; i < count; i++)
        for (size_t byte = 0; byte < width; byte++)
            wide[width * i + byte] = (uint8_t)(characters[i] >> (8 * byte));
    return width * count;
}

TEST(wide_characters_are_found)
{
    uint32_t characters[NEEDLE];
    uint8_t wide[4 * NEEDLE];
    for (size_t i = 0; i < NEEDLE; i++)
        characters[i] = (uint8_t)secret[i];
    mmk_scan *scan = prepared(secret, NEEDLE);
    expect(scan, wide, widen(wide, characters, NEEDLE, 2), 0, 2 * NEEDLE, MMK_FORM_UCS2);
    expect(scan, wide, widen(wide, characters, NEEDLE, 4), 0, 4 * NEEDLE, MMK_FORM_UCS4);
    free(scan);
}

TEST(characters_of_utf_8_are_found_in_every_width_that_holds_them)
{
    static const char narrow[] = "na\303\257ve \303\251t\303\251 cr\303\250me",
                      beyond[] = "\360\237\220\216\360\237\220\216";
    static const char middle[] = "\342\202\254\342\202\254\342\202\254\303\251";
    static const uint32_t narrow_characters[] = {'n',  'a', 0xef, 'v', 'e',  ' ', 0xe9, 't',
                                                 0xe9, ' ', 'c',  'r', 0xe8, 'm', 'e'};
    static const uint32_t middle_characters[] = {0x20ac, 0x20ac, 0x20ac, 0xe9};
    static const uint32_t beyond_characters[] = {0x1f40e, 0x1f40e};
    uint8_t wide[4 * NEEDLE];
    mmk_scan *scan = prepared(narrow, sizeof narrow - 1);
    expect(scan, wide, widen(wide, narrow_characters, 15, 1), 0, 15, MMK_FORM_LATIN1);
    expect(scan, wide, widen(wide, narrow_characters, 15, 2), 0, 30, MMK_FORM_UCS2);
    expect(scan, wide, widen(wide, narrow_characters, 15, 4), 0, 60, MMK_FORM_UCS4);
    free(scan);
    scan = prepared(middle, sizeof middle - 1);
    expect(scan, wide, widen(wide, middle_characters, 4, 2), 0, 8, MMK_FORM_UCS2);
    expect(scan, wide, widen(wide, middle_characters, 4, 4), 0, 16, MMK_FORM_UCS4);
    free(scan);
    scan = prepared(beyond, sizeof beyond - 1);
    expect(scan, wide, widen(wide, beyond_characters, 2, 4), 0, 8, MMK_FORM_UCS4);
    free(scan);
}

TEST(what_is_no_utf_8_has_no_characters)
{
    static const char *const broken[] = {"12345678\200",     "12345678\303",         "12345678\303(",
                                         "12345678\300\200", "12345678\355\240\200", "12345678\364\220\200\200",
                                         "12345678\377"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        mmk_scan *scan = prepared(broken[i], strlen(broken[i]));
        CHECK(found(scan, "1\0002\0003\0004\0005\0006\0007\0008\0\0\330", 18).count == 0);
        free(scan);
    }
}

TEST(keys_in_hmac_pads_are_found_unless_hmac_hashes_them_first)
{
    uint8_t needle[129], block[129];
    fill_randomly(needle, sizeof needle);
    for (size_t length = 64; length <= 129; length += length == 64 ? 64 : 1) {
        mmk_scan *scan = prepared(needle, length);
        memset(block, 0x36, sizeof block);
        for (size_t i = 0; i < length; i++)
            block[i] = needle[i] ^ 0x36;
        if (length <= 128)
            expect(scan, block, sizeof block, 0, length, MMK_FORM_IPAD);
        else
            CHECK(found(scan, block, sizeof block).count == 0);
        for (size_t i = 0; i < sizeof block; i++)
            block[i] ^= 0x36 ^ 0x5C;
        if (length <= 128)
            expect(scan, block, sizeof block, 0, length, MMK_FORM_OPAD);
        free(scan);
    }
}

/* ---- piece by piece ---------------------------------------------------------------------------------- */

/* Give a stream bytes, at most so many at a time; a gap in the addresses after `gap` of them. */
static hits streamed(const mmk_scan *scan, const uint8_t *bytes, size_t length, size_t most, size_t gap)
{
    hits all = {.most = MOST_HITS};
    size_t capacity = MMK_SCAN_ROOM(mmk_scan_reach(scan));
    mmk_scan_stream stream = {
        .scan = scan, .report = keep, .context = &all, .buffer = malloc(capacity), .capacity = capacity};
    for (size_t done = 0; done < length;) {
        uint8_t *place;
        size_t room, part = 1 + random_below(most), rest = done < gap ? gap - done : length - done;
        CHECK(mmk_scan_room(&stream, ADDRESS + done + (done >= gap ? 0x1000 : 0), &place, &room) == 0);
        CHECK(room > 0);
        part = part < room ? part : room;
        part = part < rest ? part : rest;
        memcpy(place, bytes + done, part);
        CHECK(mmk_scan_took(&stream, part) == 0);
        done += part;
    }
    CHECK(mmk_scan_end(&stream) == 0);
    free(stream.buffer);
    return all;
}

static int by_address(const void *one, const void *other)
{
    const mmk_scan_hit *a = one, *b = other;
    return a->address < b->address ? -1 : a->address > b->address;
}

static bool same(hits *one, hits *other)
{
    qsort(one->hits, one->count, sizeof one->hits[0], by_address);
    qsort(other->hits, other->count, sizeof other->hits[0], by_address);
    for (size_t i = 0; i < one->count && i < other->count; i++) {
        const mmk_scan_hit *a = &one->hits[i], *b = &other->hits[i];
        if (a->address != b->address || a->length != b->length || a->start != b->start || a->form != b->form)
            return false;
    }
    return one->count == other->count;
}

TEST(what_goes_over_the_edges_of_readings_is_found_once)
{
    uint8_t needle[NEEDLE], hay[4096];
    fill_randomly(needle, sizeof needle);
    mmk_scan *scan = prepared(needle, sizeof needle);
    for (int round = 0; round < 300; round++) {
        fill_randomly(hay, sizeof hay);
        for (int copy = 0; copy < 16; copy++) {
            size_t from = random_below(NEEDLE), length = 1 + random_below(NEEDLE - from);
            if (random_below(2))
                from = 0, length = NEEDLE;
            memcpy(hay + 256 * (size_t)copy + random_below(224), needle + from, length);
        }
        hits whole = found(scan, hay, sizeof hay);
        static const size_t parts[] = {1, 16, 4096};
        hits split = streamed(scan, hay, sizeof hay, parts[round % 3], sizeof hay);
        CHECK(whole.count >= 1 && same(&whole, &split));
    }
    free(scan);
}

TEST(bytes_on_both_sides_of_a_gap_are_no_neighbours)
{
    uint8_t needle[NEEDLE];
    fill_randomly(needle, sizeof needle);
    mmk_scan *scan = prepared(needle, sizeof needle);
    hits all = streamed(scan, needle, sizeof needle, 16, 16);
    CHECK(all.count == 2 && is_hit(&all, 0, 16, 0, MMK_FORM_BYTES) &&
          is_hit(&all, 16 + 0x1000, 16, 16, MMK_FORM_BYTES));
    all = streamed(scan, needle, sizeof needle, 16, NEEDLE);
    CHECK(all.count == 1 && is_hit(&all, 0, NEEDLE, 0, MMK_FORM_BYTES));
    free(scan);
}

TEST(the_receiver_of_hits_can_end_the_search)
{
    uint8_t needle[NEEDLE], hay[8 * NEEDLE];
    fill_randomly(needle, sizeof needle);
    mmk_scan *scan = prepared(needle, sizeof needle);
    for (size_t i = 0; i < sizeof hay; i++)
        hay[i] = needle[i % NEEDLE];
    hits all = {.most = 3};
    CHECK(mmk_scan_bytes(scan, hay, sizeof hay, 0, sizeof hay, ADDRESS, keep, &all) == 7 && all.count == 3);
    free(scan);
}

TEST(a_needle_that_repeats_itself_is_found_at_every_place_where_it_is)
{
    uint8_t needle[NEEDLE], hay[NEEDLE + 4];
    memset(needle, 'a', sizeof needle);
    memset(hay, 'a', sizeof hay);
    mmk_scan *scan = prepared(needle, sizeof needle);
    hits all = found(scan, hay, sizeof hay);
    for (size_t place = 0; place <= 4; place++)
        CHECK(is_hit(&all, place, NEEDLE, 0, MMK_FORM_BYTES));
    free(scan);
}

int main(void)
{
    RUN(a_whole_needle_is_one_hit_wherever_it_stands);
    RUN(a_hit_is_as_long_as_what_is_there_and_less_than_a_quarter_is_none);
    RUN(parts_that_are_apart_are_hits_of_their_own);
    RUN(short_needles_have_fewer_parts_or_none);
    RUN(lengths_that_cannot_be_looked_for_are_refused);
    RUN(hex_is_found_in_either_case_and_mixed);
    RUN(base64_is_found_at_each_alignment_in_both_alphabets);
    RUN(wide_characters_are_found);
    RUN(characters_of_utf_8_are_found_in_every_width_that_holds_them);
    RUN(what_is_no_utf_8_has_no_characters);
    RUN(keys_in_hmac_pads_are_found_unless_hmac_hashes_them_first);
    RUN(what_goes_over_the_edges_of_readings_is_found_once);
    RUN(bytes_on_both_sides_of_a_gap_are_no_neighbours);
    RUN(the_receiver_of_hits_can_end_the_search);
    RUN(a_needle_that_repeats_itself_is_found_at_every_place_where_it_is);
    return 0;
}
