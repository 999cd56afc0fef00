/* malloc(3), for a whole program, by LD_PRELOAD: what the C library promises of each call, over blocks.h.
 *
 * The rules are glibc's where POSIX leaves a choice: malloc(0) is a block, realloc(p, 0) frees. Objects are smaller
 * than PTRDIFF_MAX, since the heap has none of more than SIZE_MAX / 8. errno is written on failure; otherwise it stays
 * as it was, of free, too. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include <malloc.h>

#include "blocks.h"

static bool is_power_of_two(size_t value)
{
    return value && !(value & (value - 1));
}

static void *alloc(size_t size, size_t align, bool zero)
{
    int saved = errno;
    void *bytes = blocks_alloc(size ? size : 1, align, zero);
    errno = bytes ? saved : ENOMEM;
    return bytes;
}

MMK_API void *malloc(size_t size)
{
    return alloc(size, MMK_HEAP_ALIGNMENT, false);
}

MMK_API void *calloc(size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        bytes = SIZE_MAX;
    return alloc(bytes, MMK_HEAP_ALIGNMENT, true);
}

MMK_API void free(void *bytes)
{
    if (!bytes)
        return;
    int saved = errno;
    blocks_free(bytes, "free");
    errno = saved;
}

MMK_API void *realloc(void *bytes, size_t size)
{
    if (!bytes)
        return malloc(size);
    if (size == 0) {
        free(bytes);
        return NULL;
    }
    int saved = errno;
    void *resized = blocks_resize(bytes, size, "realloc");
    errno = resized ? saved : ENOMEM;
    return resized;
}

MMK_API void *reallocarray(void *bytes, size_t count, size_t size)
{
    size_t total;
    if (__builtin_mul_overflow(count, size, &total)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(bytes, total);
}

MMK_API size_t malloc_usable_size(void *bytes)
{
    return bytes ? blocks_size(bytes, "malloc_usable_size") : 0;
}

/* ---- aligned ---------------------------------------------------------------------------------------- */

MMK_API int posix_memalign(void **block, size_t align, size_t size)
{
    if (!is_power_of_two(align) || align % sizeof(void *))
        return EINVAL;
    int saved = errno;
    void *bytes = alloc(size, align, false);
    errno = saved;
    if (!bytes)
        return ENOMEM;
    *block = bytes;
    return 0;
}

/* glibc, which knows programs that ask for any alignment, takes the next power of two. */
MMK_API void *memalign(size_t align, size_t size)
{
    if (align > SIZE_MAX / 2 + 1) {
        errno = EINVAL;
        return NULL;
    }
    size_t rounded = MMK_HEAP_ALIGNMENT;
    while (rounded < align)
        rounded *= 2;
    return alloc(size, rounded, false);
}

/* C17 wants a power of two; glibc before 2.38 did not. */
MMK_API void *aligned_alloc(size_t align, size_t size)
{
    if (is_power_of_two(align))
        return alloc(size, align, false);
    errno = EINVAL;
    return NULL;
}

MMK_API void *valloc(size_t size)
{
    return alloc(size, mmk_page_size(), false);
}

MMK_API void *pvalloc(size_t size)
{
    size_t page = mmk_page_size();
    /* What cannot be rounded up is too much as it is. */
    return alloc(size <= PTRDIFF_MAX ? mmk_round_up(size ? size : 1, page) : size, page, false);
}
