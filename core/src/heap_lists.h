/* heap_lists.h: the free blocks of a heap, on lists by size: TLSF's two levels.
 *
 *     units       2 … 15   16 17 18 …  31   32 34 … 62   64 68 … 124   …
 *     level         0          1               2             3
 *     sublevel   = units   16 lists each, every 1, 2, 4 … units
 *
 * A bit says of each list whether it has a block, and a bit of each level whether it has a list that has. Two counts
 * of trailing zeros find the first list behind a given one that is not empty.
 */
#ifndef MMKIT_HEAP_LISTS_H
#define MMKIT_HEAP_LISTS_H

#include "heap_internal.h"

typedef struct list_place {
    unsigned level;
    unsigned sublevel;
} list_place;

/* The list on which a block of this size stands. */
static inline list_place list_of(uint32_t units)
{
    if (units < SUBLEVELS)
        return (list_place){0, units};
    unsigned log = 31 - (unsigned)__builtin_clz(units);
    return (list_place){log - 3, units >> (log - 4) & (SUBLEVELS - 1)};
}

/* The first list all of whose blocks are this large. level LEVELS: none is. */
static inline list_place list_for(uint32_t units)
{
    if (units < SUBLEVELS)
        return (list_place){0, units};
    unsigned log = 31 - (unsigned)__builtin_clz(units);
    uint64_t rounded = (uint64_t)units + (UINT32_C(1) << (log - 4)) - 1;
    return rounded > UINT32_MAX ? (list_place){LEVELS, 0} : list_of((uint32_t)rounded);
}

/* The smallest block that can stand on a list. */
static inline uint32_t list_least(list_place place)
{
    return place.level == 0 ? place.sublevel : (SUBLEVELS + place.sublevel) << (place.level - 1);
}

/* The first list at or behind a place that has a block. returns false if none has. */
static inline bool list_search(const heap_control *control, list_place *place)
{
    if (place->level >= LEVELS)
        return false;
    unsigned here = control->within[place->level] & (~0u << place->sublevel);
    if (!here) {
        uint32_t higher = control->levels & (~UINT32_C(0) << place->level << 1);
        if (!higher)
            return false;
        place->level = (unsigned)__builtin_ctz(higher);
        here = control->within[place->level];
    }
    place->sublevel = (unsigned)__builtin_ctz(here);
    return true;
}

/* ---- links ---- */

static inline links *links_of(block *head)
{
    return (links *)bytes_of(head);
}

/* The same both ways. Of the place, too: a link copied elsewhere is none there. */
static inline uint64_t hide(const mmk_heap *heap, const uint64_t *link, uint64_t offset)
{
    return offset ^ heap->key ^ (uint64_t)((const char *)link - heap->origin);
}

static inline block *next_on_list(const mmk_heap *heap, block *head)
{
    uint64_t offset = hide(heap, &links_of(head)->next, links_of(head)->next);
    return offset ? block_at(heap, offset) : NULL;
}

static inline block *previous_on_list(const mmk_heap *heap, block *head)
{
    uint64_t offset = hide(heap, &links_of(head)->previous, links_of(head)->previous);
    return offset ? block_at(heap, offset) : NULL;
}

static inline void set_next(const mmk_heap *heap, block *head, const block *next)
{
    links_of(head)->next = hide(heap, &links_of(head)->next, next ? offset_of(heap, next) : 0);
}

static inline void set_previous(const mmk_heap *heap, block *head, const block *previous)
{
    links_of(head)->previous = hide(heap, &links_of(head)->previous, previous ? offset_of(heap, previous) : 0);
}

/* ---- changes ---- */

static inline void list_add(mmk_heap *heap, block *head)
{
    heap_control *control = heap->control;
    list_place place = list_of(head->units);
    uint64_t *first = &control->heads[place.level][place.sublevel];
    block *next = *first ? block_at(heap, *first) : NULL;
    set_next(heap, head, next);
    set_previous(heap, head, NULL);
    if (next)
        set_previous(heap, next, head);
    *first = offset_of(heap, head);
    control->within[place.level] |= (uint16_t)(1u << place.sublevel);
    control->levels |= UINT32_C(1) << place.level;
}

/* Is this what a link of a list may lead to? Asked before anything is read there. */
static inline bool is_listed(const mmk_heap *heap, const block *head, list_place place)
{
    if ((uintptr_t)head % UNIT || !is_in_slice(heap, head) || !is_head(heap, head) || head->state != FREE)
        return false;
    list_place its = list_of(head->units);
    return its.level == place.level && its.sublevel == place.sublevel;
}

/* Take a block off its list, if the links around it are whole. returns 0, -MMK_ECORRUPT. */
static inline MMK_MUST_CHECK int list_remove(mmk_heap *heap, block *head)
{
    heap_control *control = heap->control;
    list_place place = list_of(head->units);
    uint64_t *first = &control->heads[place.level][place.sublevel];
    block *next = next_on_list(heap, head), *previous = previous_on_list(heap, head);
    bool good = (!next || (is_listed(heap, next, place) && previous_on_list(heap, next) == head)) &&
                (previous ? is_listed(heap, previous, place) && next_on_list(heap, previous) == head
                          : *first == offset_of(heap, head));
    if (__builtin_expect(!good, false))
        return heap_damaged(heap, head, "the links of a free block are smashed: written to after it was freed");

    if (next)
        set_previous(heap, next, previous);
    if (previous)
        set_next(heap, previous, next);
    else
        *first = next ? offset_of(heap, next) : 0;
    if (!*first) {
        control->within[place.level] &= (uint16_t)~(1u << place.sublevel);
        if (!control->within[place.level])
            control->levels &= ~(UINT32_C(1) << place.level);
    }
    return 0;
}

#endif
