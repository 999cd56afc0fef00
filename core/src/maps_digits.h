/* maps_digits.h: eight digits of a maps or smaps line at a time, as the bytes of one word.
 *
 * The kernel makes the text of an area in about 150 ns. Digit by digit its numbers would take a third of that
 * to read back. */
#ifndef MMKIT_MAPS_DIGITS_H
#define MMKIT_MAPS_DIGITS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first digit is in the lowest byte");

#define EACH_BYTE(byte) (UINT64_C(0x0101010101010101) * (byte))

static inline uint64_t load_word(const char *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* Eight hexadecimal digits, lower-case. Clears *valid where one is not. */
static inline uint64_t hex_word(const char *at, bool *valid)
{
    uint64_t word = load_word(at);
    uint64_t low = word & EACH_BYTE(0x0F);
    uint64_t letters = word >> 6 & EACH_BYTE(0x01);
    uint64_t nibbles = low + letters * 9;
    /* A letter is 0x60 and more, a digit 0x30 and more; of a letter 1 to 6 are left, of a digit 0 to 9. */
    uint64_t is_letter = letters << 4;
    uint64_t wrong = word ^ (EACH_BYTE(0x30) + letters * 0x30 + low);
    wrong |= (low + EACH_BYTE(0x06)) & EACH_BYTE(0x10) & ~is_letter;
    wrong |= ((low + EACH_BYTE(0x09)) | ~(low + EACH_BYTE(0x0F))) & is_letter;
    *valid &= wrong == 0;
    uint64_t value = __builtin_bswap64(nibbles);
    value = (value | value >> 4) & UINT64_C(0x00FF00FF00FF00FF);
    value = (value | value >> 8) & UINT64_C(0x0000FFFF0000FFFF);
    return (value | value >> 16) & UINT32_MAX;
}

/* Twelve of them, as most addresses of user space have. */
static inline uint64_t hex_address(const char *at, bool *valid)
{
    uint64_t upper = hex_word(at, valid);
    return upper << 16 | (hex_word(at + 4, valid) & 0xFFFF);
}

/* A decimal number at the right end of eight columns. Clears *valid where there is none. */
static inline uint64_t decimal_word(const char *at, bool *valid)
{
    uint64_t word = load_word(at);
    if (word == (EACH_BYTE(' ') ^ (uint64_t)(' ' ^ '0') << 56))
        return 0;
    uint64_t not_space = word ^ EACH_BYTE(' ');
    if (not_space == 0) {
        *valid = false;
        return 0;
    }
    /* Make the leading spaces zeros. */
    uint64_t digits_mask = ~UINT64_C(0) << (__builtin_ctzll(not_space) & ~7);
    uint64_t digits = (word ^ EACH_BYTE('0')) & digits_mask;
    *valid &= (((digits + EACH_BYTE(0x06)) | digits) & EACH_BYTE(0xF0)) == 0;
    digits = digits * 10 + (digits >> 8);
    uint64_t hundreds = (digits & UINT64_C(0x000000FF000000FF)) * UINT64_C(0x000F424000000064);
    uint64_t units = (digits >> 16 & UINT64_C(0x000000FF000000FF)) * UINT64_C(0x0000271000000001);
    return (hundreds + units) >> 32;
}

#endif
