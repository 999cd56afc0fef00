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

static inline uint32_t stack_of(uint32_t units)
{
    return units < PARKED_SIZES ? units : PARKED_LARGER;
}

static inline unsigned stack_most(uint32_t stack)
{
    return stack == PARKED_LARGER ? 1 : PARKED_MOST;
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

/* Both of these can be told to be quick: to call nothing, which they can in a heap that is all ours, and for a block
 * in its newest slice; others they leave alone. */

/* Take a block of exactly this size, so aligned. NULL: none waits, or one that is damaged, as merging it will say. */
static inline block *unpark(mmk_heap *heap, uint32_t units, size_t align, size_t slack, bool is_quick)
{
    heap_control *control = heap->control;
    uint32_t stack = stack_of(units);
    uint64_t offset = control->parked[stack];
    block *head = block_at(heap, offset);
    if (!offset || offset % UNIT || !(is_in_newest_slice(heap, head) || (!is_quick && source_slice_of(heap, head))))
        return NULL;
    words both = words_of(head);
    uint32_t sum = sum_of_sizes(heap, both.sizes, offset);
    if (both.rest != rest_of(sum, PARKED, 0) || (uint32_t)both.sizes != units ||
        (align > UNIT && (uintptr_t)bytes_of(head) & (align - 1)))
        return NULL;
    if (!is_quick)
        note(heap, head);
    write_rest(head, rest_of(sum, LIVE, slack));
    control->parked[stack] = parked_below(heap, head);
    control->parked_count[stack]--;
    return head;
}

/* Free a live block without merging it. returns false if it is none, or there is no room: it has to be merged. */
static inline bool park(mmk_heap *heap, block *head, words both, bool is_quick)
{
    heap_control *control = heap->control;
    uint32_t stack = stack_of((uint32_t)both.sizes);
    uint32_t sum = sum_of_sizes(heap, both.sizes, offset_of(heap, head));
    if (both.rest != rest_of(sum, LIVE, slack_of(both)) || control->parked_count[stack] == stack_most(stack))
        return false;
    if (!is_quick)
        note(heap, head);
    write_rest(head, rest_of(sum, PARKED, 0));
    close_bytes(heap, head);
    *parked_link(head) = hide_parked(heap, head, control->parked[stack]);
    control->parked[stack] = offset_of(heap, head);
    control->parked_count[stack]++;
    return true;
}

#endif
