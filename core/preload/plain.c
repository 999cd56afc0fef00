/* Blocks as the core's heap gives them. */
#include <stdlib.h>

#include "blocks.h"
#include "line.h"

static mmk_heap heap;

static bool is_open(void)
{
    return __builtin_expect(heap.open, true) || mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP}) == 0;
}

__attribute__((constructor)) static void open_heap(void)
{
    (void)is_open();
}

__attribute__((cold, noreturn)) static void refuse(const void *bytes, const char *call)
{
    line said = {0};
    line_add(&said, "mmkit: ");
    line_add(&said, call);
    line_add(&said, "(");
    line_add_address(&said, (uintptr_t)bytes);
    line_add(&said, "): no block is there: it was freed already, or malloc never gave it");
    line_write(&said);
    abort();
}

void *blocks_alloc(size_t size, size_t align, bool zero)
{
    void *bytes;
    return is_open() && mmk_heap_alloc(&heap, size, align, zero, &bytes) == 0 ? bytes : NULL;
}

void blocks_free(void *bytes, const char *call)
{
    if (__builtin_expect(mmk_heap_free(&heap, bytes) != 0, false))
        refuse(bytes, call);
}

size_t blocks_size(void *bytes, const char *call)
{
    ssize_t size = mmk_heap_size(&heap, bytes);
    if (size < 0)
        refuse(bytes, call);
    return (size_t)size;
}

void *blocks_resize(void *bytes, size_t size, const char *call)
{
    int error = mmk_heap_resize(&heap, &bytes, size, MMK_HEAP_ALIGNMENT);
    if (error && error != -ENOMEM)
        refuse(bytes, call);
    return error ? NULL : bytes;
}
