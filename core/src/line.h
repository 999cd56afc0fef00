/* line.h: one line on standard error, made where stdio and malloc cannot be used: in a signal handler, or by the
 * allocator itself. What does not fit is cut off. */
#ifndef MMKIT_LINE_H
#define MMKIT_LINE_H

#include <errno.h>
#include <stdint.h>
#include <unistd.h>

typedef struct line {
    size_t length;
    char text[400];
} line;

static inline void line_add(line *to, const char *text)
{
    while (*text && to->length < sizeof to->text - 1)
        to->text[to->length++] = *text++;
}

static inline void line_add_digits(line *to, uintptr_t number, unsigned base)
{
    char digits[24], *first = digits + sizeof digits - 1;
    *first = 0;
    do {
        *--first = "0123456789abcdef"[number % base];
        number /= base;
    } while (number);
    line_add(to, first);
}

static inline void line_add_number(line *to, size_t number)
{
    line_add_digits(to, number, 10);
}

static inline void line_add_address(line *to, uintptr_t address)
{
    line_add(to, "0x");
    line_add_digits(to, address, 16);
}

/* "1 byte", "2 bytes" */
static inline void line_add_bytes(line *to, size_t bytes)
{
    line_add_number(to, bytes);
    line_add(to, bytes == 1 ? " byte" : " bytes");
}

/* End it, and write it in one piece. Nobody can be told if that fails. errno stays as it was. */
static inline void line_write(line *to)
{
    int saved = errno;
    to->text[to->length++] = '\n';
    ssize_t written = write(STDERR_FILENO, to->text, to->length);
    (void)written;
    errno = saved;
}

#endif
