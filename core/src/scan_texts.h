/* scan_texts.h: a needle in the forms that programs give it, and the pieces that tell it. */
#ifndef MMKIT_SCAN_TEXTS_H
#define MMKIT_SCAN_TEXTS_H

#include <stdbool.h>

#include <mmkit/scan.h>

enum {
    SCAN_PIECES = 4,
    SCAN_PIECE_MIN = 8, /* bytes of the needle, and of any piece in memory */
    SCAN_TEXTS = 12,    /* bytes, hex, ipad, opad; base64 at 3 alignments; bytes and characters in 2 and 4; Latin-1 */
    SCAN_SPELLINGS = 2, /* as many bytes of memory, at most, stand for the same in a text */
};

typedef struct scan_piece {
    uint32_t start; /* bytes of the text */
    uint32_t end;
} scan_piece;

typedef struct scan_text {
    const uint8_t *bytes;
    size_t length;
    scan_piece pieces[SCAN_PIECES];
    unsigned piece_count;
    mmk_scan_form form;
} scan_text;

/* How many bytes all texts of a needle have together, at most. */
size_t scan_texts_size(size_t length);

/* Write the texts of a needle to `bytes`. returns how many there are */
unsigned scan_texts_write(scan_text texts[SCAN_TEXTS], uint8_t *bytes, const uint8_t *needle, size_t length);

/* Which byte of a text a byte of memory stands for: programs write hex in capitals, and base64 for addresses. */
static inline uint8_t scan_folded(mmk_scan_form form, uint8_t byte)
{
    if (form == MMK_FORM_HEX && byte >= 'A' && byte <= 'F')
        return byte + ('a' - 'A');
    if (form == MMK_FORM_BASE64)
        return byte == '-' ? '+' : byte == '_' ? '/' : byte;
    return byte;
}

/* All bytes of memory that stand for a byte of a text. returns how many there are */
static inline unsigned scan_spellings(mmk_scan_form form, uint8_t byte, uint8_t spellings[SCAN_SPELLINGS])
{
    spellings[0] = byte;
    if (form == MMK_FORM_HEX && byte >= 'a' && byte <= 'f')
        spellings[1] = byte - ('a' - 'A');
    else if (form == MMK_FORM_BASE64 && (byte == '+' || byte == '/'))
        spellings[1] = byte == '+' ? '-' : '_';
    else
        return 1;
    return 2;
}

#endif
