/* What is said of a heap whose heads or links are not as they were written. */
#include <stdlib.h>

#include "heap_internal.h"
#include "line.h"

enum { SEARCH = 1 << 20 }; /* bytes to look through for the next good head */

static uintptr_t last_good_before(const mmk_heap *heap, const heap_slice *slice, const block *smashed)
{
    const block *good = NULL;
    const block *end = (const block *)slice->end;
    for (const block *head = (const block *)slice->start; head < smashed && is_head(heap, head); head += head->units) {
        good = head;
        if (head->units == 0 || head->units > (size_t)(end - head))
            break;
    }
    return (uintptr_t)good;
}

static uintptr_t first_good_behind(const mmk_heap *heap, const heap_slice *slice, const block *smashed)
{
    const block *end = (const block *)slice->end;
    if (end - smashed > SEARCH / UNIT)
        end = smashed + SEARCH / UNIT;
    for (const block *head = smashed + 1; head < end; head++) {
        words copy = words_of_any(head + 1);
        if (state_of(copy) != WIPED && fits(heap, copy, offset_of(heap, head)))
            return (uintptr_t)head;
    }
    return 0;
}

void heap_describe(mmk_heap *heap, const block *head, const char *what, mmk_heap_damage *damage)
{
    const heap_slice *slice = source_slice_of(heap, head);
    *damage = (mmk_heap_damage){.what = what, .address = (uintptr_t)head};
    if (slice) {
        damage->before = last_good_before(heap, slice, head);
        damage->after = first_good_behind(heap, slice, head);
    }
}

int heap_damaged(mmk_heap *heap, const block *head, const char *what)
{
    mmk_heap_damage damage;
    heap_describe(heap, head, what, &damage);
    if (heap->shared) {
        shared_give_up(heap);
        return -MMK_ECORRUPT;
    }
    line said = {0};
    line_add(&said, "mmkit: heap corruption at ");
    line_add_address(&said, damage.address);
    line_add(&said, ": ");
    line_add(&said, what);
    if (damage.before) {
        line_add(&said, "; the block before it has its head at ");
        line_add_address(&said, damage.before);
    }
    if (damage.after) {
        line_add(&said, "; the next good head is at ");
        line_add_address(&said, damage.after);
    }
    line_write(&said);
    abort();
}
