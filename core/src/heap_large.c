/* Large blocks of an mmap heap: each in a region of its own, which grows and moves by mremap(2). */
#include <sys/mman.h>

#include <mmkit/resize.h>

#include "heap_internal.h"

/* Records stand in the heap itself: nothing else is asked for memory. */
static MMK_MUST_CHECK int take_record(mmk_heap *heap, large_block **large)
{
    block *head;
    int error = blocks_take(heap, units_for(sizeof **large), MMK_HEAP_ALIGNMENT, 0, &head);
    if (error)
        return error;
    write_head(heap, head, head->units, head->before, RECORD, head->slack);
    ASAN_UNPOISON_MEMORY_REGION(bytes_of(head), room_of(head));
    spend_fresh(heap, head);
    *large = (large_block *)bytes_of(head);
    **large = (large_block){0};
    return 0;
}

static void link_in(heap_control *control, large_block *large)
{
    large->next = control->large;
    if (large->next)
        large->next->previous = large;
    control->large = large;
}

static void link_out(heap_control *control, large_block *large)
{
    if (large->previous)
        large->previous->next = large->next;
    else
        control->large = large->next;
    if (large->next)
        large->next->previous = large->previous;
}

int large_alloc(mmk_heap *heap, size_t size, size_t align, void **bytes)
{
    size_t lead = align > mmk_page_size() ? align : 0;
    if (size > SIZE_MAX / 8 || lead > SIZE_MAX / 8)
        return -ENOMEM;
    size_t length = mmk_round_up(size + lead, mmk_page_size());
    if (!is_within_limit(heap, length))
        return -ENOMEM;
    large_block *large;
    int error = take_record(heap, &large);
    if (error)
        return error;
    /* The record may have cost a new slice. */
    error = is_within_limit(heap, length) ? 0 : -ENOMEM;
    if (!error)
        error = mmk_region_map(&large->region, &(mmk_request){.length = length,
                                                              .prot = PROT_READ | PROT_WRITE,
                                                              .flags = MAP_PRIVATE | MAP_ANONYMOUS,
                                                              .fd = -1});
    if (error) {
        int damaged = blocks_give(heap, head_of(large));
        return damaged ? damaged : -ENOMEM;
    }
    large->bytes = (char *)mmk_round_up((uintptr_t)large->region.base, align);
    large->size = size;
    link_in(heap->control, large);
    heap->control->mapped_bytes += length;
    heap->control->large_blocks++;
    *bytes = large->bytes;
    return 0;
}

int large_free(mmk_heap *heap, large_block *large)
{
    if (!is_head(heap, head_of(large)) || head_of(large)->state != RECORD)
        return heap_damaged(heap, head_of(large), "the head of a large block's record is smashed");
    link_out(heap->control, large);
    heap->control->mapped_bytes -= mmk_region_length(&large->region);
    heap->control->large_blocks--;
    mmk_region_dispose(&large->region);
    return blocks_give(heap, head_of(large));
}

int large_resize(mmk_heap *heap, large_block *large, void **bytes, size_t size)
{
    size_t lead = (size_t)(large->bytes - large->region.base);
    size_t before = mmk_region_length(&large->region);
    if (size > SIZE_MAX / 8)
        return -ENOMEM;
    size_t length = mmk_round_up(size + lead, mmk_page_size());
    if (length > before && !is_within_limit(heap, length - before))
        return -ENOMEM;
    /* What was aligned to more than a page would not be after a move. */
    if (lead && length > before)
        return -ENOMEM;
    if (length != before) {
        mmk_range vacated;
        if (mmk_region_resize(&large->region, length, &vacated))
            return -ENOMEM;
        if (vacated.length)
            mmk_sys_munmap(vacated.base, vacated.length);
    }
    heap->control->mapped_bytes += length - before;
    large->bytes = large->region.base + lead;
    large->size = size;
    *bytes = large->bytes;
    return 0;
}

large_block *large_find(const mmk_heap *heap, const void *bytes)
{
    large_block *large = heap->control->large;
    while (large && large->bytes != bytes)
        large = large->next;
    return large;
}

void large_close_all(mmk_heap *heap)
{
    for (large_block *large = heap->control->large; large; large = large->next)
        mmk_region_dispose(&large->region);
    heap->control->large = NULL;
}
