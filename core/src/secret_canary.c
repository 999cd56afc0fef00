/* Canaries: what stands around secrets, and in slots that nobody has. */
#include <errno.h>
#include <sys/random.h>

#include "secret_internal.h"

static uint64_t key[2];

/* pre: nobody draws at the same time. The key never changes once it is drawn. */
int canaries_begin(void)
{
    if (key[1])
        return 0;
    uint64_t drawn[2];
    if (getrandom(drawn, sizeof drawn, 0) != sizeof drawn)
        return -errno;
    key[0] = drawn[0];
    key[1] = drawn[1] | 1;
    return 0;
}

/* Of the 8 bytes at a multiple of 8. */
static inline uint64_t word_at(uintptr_t address)
{
    uint64_t word = (address ^ key[0]) * key[1];
    word = (word ^ word >> 32) * UINT64_C(0x9e3779b97f4a7c15);
    return (word ^ word >> 29) | UINT64_C(0x0101010101010101);
}

static inline unsigned char byte_at(const char *place)
{
    uintptr_t address = (uintptr_t)place;
    return (unsigned char)(word_at(mmk_round_down(address, 8)) >> address % 8 * 8);
}

/* Where whole words begin; canaries may begin and end anywhere. */
static inline char *end_of_bytes(char *from, char *to)
{
    char *words = (char *)mmk_round_up((uintptr_t)from, 8);
    return words < to ? words : to;
}

void canaries_write(char *from, char *to)
{
    for (char *end = end_of_bytes(from, to); from < end; from++)
        *from = (char)byte_at(from);
    for (; to - from >= 8; from += 8)
        *(uint64_t *)(void *)from = word_at((uintptr_t)from);
    for (; from < to; from++)
        *from = (char)byte_at(from);
    /* They also wipe, and must not be thought away. */
    __asm__ volatile("" ::: "memory");
}

char *canaries_find_damage(char *from, char *to)
{
    for (char *end = end_of_bytes(from, to); from < end; from++)
        if ((unsigned char)*from != byte_at(from))
            return from;
    while (to - from >= 8 && *(const uint64_t *)(const void *)from == word_at((uintptr_t)from))
        from += 8;
    for (; from < to; from++)
        if ((unsigned char)*from != byte_at(from))
            return from;
    return NULL;
}
