/* Guarded blocks; and the core's ordinary ones when there is no guard to be had any more, which is said once. */
#include <stdatomic.h>
#include <stdlib.h>

#include "blocks.h"
#include "heap_guard.h"

static mmk_heap guarded, plain;
static atomic_bool ran_out;

static bool is_open(mmk_heap *heap, bool guard)
{
    return heap->open || mmk_heap_open(heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP, .guard = guard}) == 0;
}

__attribute__((constructor)) static void open_heaps(void)
{
    (void)(is_open(&guarded, true) && is_open(&plain, false));
}

static void tell_that_guards_ran_out(void)
{
    if (atomic_exchange(&ran_out, true))
        return;
    line said = {0};
    line_add(&said, "mmkit: no more guards: ");
    line_add(&said, guarded.guard && guarded.guard->by_mprotect
                        ? "each takes two areas of the process, and three quarters of vm.max_map_count are used"
                        : "no memory, or no addresses, are left for them");
    line_add(&said, "; blocks are not guarded from here on");
    line_write(&said);
}

__attribute__((cold, noreturn)) static void refuse(const void *bytes, const char *call)
{
    line said = {0};
    line_add(&said, "mmkit: ");
    line_add(&said, call);
    line_add(&said, "(");
    line_add_address(&said, (uintptr_t)bytes);
    line_add(&said, "): ");
    guard_describe(guarded.guard, (uintptr_t)bytes, &said);
    line_write(&said);
    abort();
}

void *blocks_alloc(size_t size, size_t align, bool zero)
{
    void *bytes;
    if (is_open(&guarded, true) && mmk_heap_alloc(&guarded, size, align, zero, &bytes) == 0)
        return bytes;
    if (!is_open(&plain, false) || mmk_heap_alloc(&plain, size, align, zero, &bytes))
        return NULL;
    tell_that_guards_ran_out();
    return bytes;
}

void blocks_free(void *bytes, const char *call)
{
    if (mmk_heap_free(&guarded, bytes) && mmk_heap_free(&plain, bytes))
        refuse(bytes, call);
}

size_t blocks_size(void *bytes, const char *call)
{
    ssize_t size = mmk_heap_size(&guarded, bytes);
    if (size < 0)
        size = mmk_heap_size(&plain, bytes);
    if (size < 0)
        refuse(bytes, call);
    return (size_t)size;
}

/* Also from one heap to the other. */
void *blocks_resize(void *bytes, size_t size, const char *call)
{
    size_t before = blocks_size(bytes, call);
    void *moved = blocks_alloc(size, MMK_HEAP_ALIGNMENT, false);
    if (!moved)
        return NULL;
    memcpy(moved, bytes, before < size ? before : size);
    blocks_free(bytes, call);
    return moved;
}
