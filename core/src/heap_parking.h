/* heap_parking.h: freed blocks that wait a while before they merge with their neighbours.
 *
 * A program that frees a block mostly wants one of that size again soon. So a freed block is parked first: it keeps its
 * size, and the next alloc of exactly that size takes it without looking at a neighbour or a list.
 *
 *     up to 1 KiB   a stack for each size, PARKED_MOST blocks deep: what does not fit merges at once
 *     larger        one place for all: the next such block takes it, and the one before merges
 *
 * Nobody sees that blocks wait: whoever asks what is free has all of them merged first, and so has an alloc before it
 * asks the source for more.
 */
#ifndef MMKIT_HEAP_PARKING_H
#define MMKIT_HEAP_PARKING_H

#include "heap_internal.h"

/* The link of a stack stands where the first link of a list would. */
static inline uint64_t *parked_link(block *head)
{
    return (uint64_t *)bytes_of(head);
}

static inline uint64_t hide_parked(const mmk_heap *heap, const block *head, uint64_t offset)
{
    return offset ^ heap->key ^ offset_of(heap, head) << 16;
}

static inline uint64_t parked_below(const mmk_heap *heap, block *head)
{
    return hide_parked(heap, head, *parked_link(head));
}

/* Is there a parked block at this offset, which a smashed link may have led to? */
static inline bool is_parked(const mmk_heap *heap, uint64_t offset)
{
    const block *head = block_at(heap, offset);
    if (__builtin_expect(offset % UNIT || !is_in_slice(heap, head), false))
        return false;
    words both = words_of(head);
    return fits(heap, both, offset) && state_of(both) == PARKED;
}

/* Take a block of exactly this size, which is below PARKED_SIZES. NULL: none waits, or what waits is damaged, which
 * merging it will say. */
static inline block *unpark(mmk_heap *heap, uint32_t units, size_t slack)
{
    heap_control *control = heap->control;
    uint64_t offset = control->parked[units];
    block *head = block_at(heap, offset);
    if (!offset || __builtin_expect(!is_parked(heap, offset) || head->units != units, false))
        return NULL;
    control->parked[units] = parked_below(heap, head);
    control->parked_count[units]--;
    write_state(heap, head, words_of(head), LIVE, slack);
    return head;
}

/* Free a live block without merging it. returns false if there is no room: it has to be merged. */
static inline bool park(mmk_heap *heap, block *head, words both)
{
    heap_control *control = heap->control;
    uint32_t units = (uint32_t)both.sizes;
    if (units >= PARKED_SIZES || control->parked_count[units] == PARKED_MOST)
        return false;
    write_state(heap, head, both, PARKED, 0);
    close_bytes(heap, head);
    *parked_link(head) = hide_parked(heap, head, control->parked[units]);
    control->parked[units] = offset_of(heap, head);
    control->parked_count[units]++;
    return true;
}

/* The same for larger blocks. */
static inline block *unpark_last(mmk_heap *heap, uint32_t units, size_t align, size_t slack)
{
    uint64_t offset = heap->control->parked_last;
    block *head = block_at(heap, offset);
    if (!offset || (uintptr_t)bytes_of(head) & (align - 1) || !is_parked(heap, offset) || head->units != units)
        return NULL;
    heap->control->parked_last = 0;
    write_state(heap, head, words_of(head), LIVE, slack);
    return head;
}

#endif
