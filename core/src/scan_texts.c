#include "scan_texts.h"

/* HMAC hashes keys that are longer than a block, and the longest block of a common hash has 128 bytes. RFC 2104. */
enum { LONGEST_BLOCK = 128 };

/* Texts so far, and where the next one goes. */
typedef struct writer {
    scan_text *texts;
    unsigned count;
    uint8_t *bytes;
} writer;

/* A text takes up so many bits of its source for each byte it has, from so many bits in front of the source on. */
static size_t first_whole_byte(size_t source_bits, size_t bits)
{
    return (source_bits + bits - 1) / bits;
}

/* Enter the text that has just been written, cut into pieces where its source of `length` symbols is cut.
 * bits   of a symbol, which has 8, stand in each byte of the text
 * before symbols stand in front of the source, in what was encoded */
static void enter(writer *w, mmk_scan_form form, size_t length, size_t bits, size_t before)
{
    size_t first = first_whole_byte(8 * before, bits), end = 8 * (before + length) / bits;
    if (end - first < SCAN_PIECE_MIN)
        return;
    scan_text *text = &w->texts[w->count++];
    *text = (scan_text){.bytes = w->bytes, .length = end - first, .form = form};
    size_t pieces = length / SCAN_PIECE_MIN;
    text->piece_count = pieces < 1 ? 1 : pieces < SCAN_PIECES ? (unsigned)pieces : SCAN_PIECES;
    for (size_t piece = 0; piece < text->piece_count; piece++) {
        size_t from = before + piece * length / text->piece_count,
               to = before + (piece + 1) * length / text->piece_count;
        text->pieces[piece].start = (uint32_t)(first_whole_byte(8 * from, bits) - first);
        text->pieces[piece].end = (uint32_t)(8 * to / bits - first);
    }
    w->bytes += text->length;
}

static void write_xored(writer *w, mmk_scan_form form, const uint8_t *needle, size_t length, uint8_t pad)
{
    for (size_t i = 0; i < length; i++)
        w->bytes[i] = needle[i] ^ pad;
    enter(w, form, length, 8, 0);
}

static void write_hex(writer *w, const uint8_t *needle, size_t length)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < length; i++) {
        w->bytes[2 * i] = (uint8_t)digits[needle[i] >> 4];
        w->bytes[2 * i + 1] = (uint8_t)digits[needle[i] & 15];
    }
    enter(w, MMK_FORM_HEX, length, 4, 0);
}

/* Only the characters that the needle alone decides: those at its ends hold bits of its neighbours. */
static void write_base64(writer *w, const uint8_t *needle, size_t length, size_t before)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t first = first_whole_byte(8 * before, 6), end = 8 * (before + length) / 6;
    for (size_t place = first; place < end; place++) {
        size_t bit = 6 * place - 8 * before, byte = bit / 8;
        unsigned two = (unsigned)needle[byte] << 8 | (byte + 1 < length ? needle[byte + 1] : 0);
        w->bytes[place - first] = (uint8_t)digits[two >> (10 - bit % 8) & 63];
    }
    enter(w, MMK_FORM_BASE64, length, 6, before);
}

/* Read one character of UTF-8. returns how many bytes it has, 0 if they are none */
static size_t read_character(const uint8_t *bytes, size_t length, uint32_t *character)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint8_t lead = bytes[0];
    size_t size = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
    if (size == 0 || size > length)
        return 0;
    *character = size == 1 ? lead : lead & (0x7Fu >> size);
    for (size_t i = 1; i < size; i++) {
        if (bytes[i] >> 6 != 2)
            return 0;
        *character = *character << 6 | (bytes[i] & 63);
    }
    bool is_surrogate = *character >> 11 == 0x1B;
    return *character >= least[size] && *character <= 0x10FFFF && !is_surrogate ? size : 0;
}

/* Write the needle's characters, if it is UTF-8, or its bytes, each in `width` bytes, if all fit. */
static void write_wide(writer *w, mmk_scan_form form, const uint8_t *needle, size_t length, size_t width, bool utf8)
{
    size_t count = 0;
    for (size_t i = 0; i < length; count++) {
        uint32_t character = needle[i];
        size_t size = utf8 ? read_character(needle + i, length - i, &character) : 1;
        if (size == 0 || (width < 4 && character >> (8 * width)))
            return;
        for (size_t byte = 0; byte < width; byte++)
            w->bytes[width * count + byte] = (uint8_t)(character >> (8 * byte));
        i += size;
    }
    enter(w, form, count, 8 / width, 0);
}

static bool is_ascii(const uint8_t *needle, size_t length)
{
    uint8_t all = 0;
    for (size_t i = 0; i < length; i++)
        all |= needle[i];
    return all < 0x80;
}

size_t scan_texts_size(size_t length)
{
    /* 1 as bytes, 2 as pads, 2 in hex, 3 * 4/3 in base64, 1 as Latin-1, twice 2 and twice 4 in wide characters. */
    return 22 * length;
}

unsigned scan_texts_write(scan_text texts[SCAN_TEXTS], uint8_t *bytes, const uint8_t *needle, size_t length)
{
    writer w = {texts, 0, bytes};
    write_xored(&w, MMK_FORM_BYTES, needle, length, 0);
    write_hex(&w, needle, length);
    for (size_t before = 0; before < 3; before++)
        write_base64(&w, needle, length, before);
    write_wide(&w, MMK_FORM_UCS2, needle, length, 2, false);
    write_wide(&w, MMK_FORM_UCS4, needle, length, 4, false);
    if (!is_ascii(needle, length)) {
        write_wide(&w, MMK_FORM_LATIN1, needle, length, 1, true);
        write_wide(&w, MMK_FORM_UCS2, needle, length, 2, true);
        write_wide(&w, MMK_FORM_UCS4, needle, length, 4, true);
    }
    if (length <= LONGEST_BLOCK) {
        write_xored(&w, MMK_FORM_IPAD, needle, length, 0x36);
        write_xored(&w, MMK_FORM_OPAD, needle, length, 0x5C);
    }
    return w.count;
}
