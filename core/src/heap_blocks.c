/* Cutting free blocks and merging freed ones. */
#include "heap_lists.h"
#include "heap_parking.h"

/* ---- free blocks, kept: one to cut from, all others on lists ---- */

void blocks_keep(mmk_heap *heap, block *head)
{
    close_bytes(heap, head);
    if (!heap->control->victim)
        heap->control->victim = offset_of(heap, head);
    else
        list_add(heap, head);
}

static MMK_MUST_CHECK int unkeep(mmk_heap *heap, block *head)
{
    if (heap->control->victim != offset_of(heap, head))
        return list_remove(heap, head);
    heap->control->victim = 0;
    return 0;
}

/* A head that is none any more. Its links go, too: what was never written to stays zeros. */
static void wipe(mmk_heap *heap, block *head)
{
    note(heap, head);
    ASAN_UNPOISON_MEMORY_REGION(head, sizeof *head + sizeof(links));
    memset(head, 0, sizeof *head + sizeof(links));
}

static void set_before(mmk_heap *heap, block *head, uint32_t before)
{
    write_head(heap, head, head->units, before, head->state, head->slack);
}

/* ---- merging ---- */

static inline bool is_joinable(const block *head)
{
    return head->state == FREE;
}

/* The neighbours are looked at before anything changes. NULL: there is none before. */
static MMK_MUST_CHECK int check_neighbours(mmk_heap *heap, block *head, block **before, block **after)
{
    *after = block_after(head);
    *before = head->before ? block_before(head) : NULL;
    if (!is_head(heap, *after) || (*after)->before != head->units)
        return heap_damaged(heap, *after, "the head behind a block is smashed: the block was written past its end");
    if (*before && (!is_head(heap, *before) || (*before)->units != head->before))
        return heap_damaged(heap, *before, "the head before a block is smashed");
    return 0;
}

int blocks_merge(mmk_heap *heap, block *head)
{
    block *before, *after;
    int error = check_neighbours(heap, head, &before, &after);
    if (error)
        return error;
    uint32_t units = head->units, in_front = head->before;
    block *first = head;
    bool joins_after = is_joinable(after), joins_before = before && is_joinable(before);
    if (joins_after) {
        block *behind = block_after(after);
        if (!is_head(heap, behind))
            return heap_damaged(heap, behind, "the head behind a free block is smashed");
        error = unkeep(heap, after);
        if (error)
            return error;
        units += after->units;
        wipe(heap, after);
        after = behind;
    }
    if (joins_before) {
        error = unkeep(heap, before);
        if (error)
            return error;
        units += before->units;
        in_front = before->before;
        first = before;
    }
    write_head(heap, first, units, in_front, FREE, 0);
    if (joins_before)
        wipe(heap, head);
    if (joins_after || joins_before)
        set_before(heap, after, units);
    blocks_keep(heap, first);
    commit(heap);
    return 0;
}

static MMK_MUST_CHECK int merge_parked(mmk_heap *heap, uint64_t offset)
{
    block *head = block_at(heap, offset);
    if (!is_parked(heap, offset))
        return heap_damaged(heap, head, "a freed block is smashed: written to after it was freed, or over its head");
    return blocks_merge(heap, head);
}

static MMK_MUST_CHECK int empty_stack(mmk_heap *heap, uint32_t stack)
{
    heap_control *control = heap->control;
    int error = 0;
    while (!error && control->parked[stack]) {
        uint64_t top = control->parked[stack];
        control->parked[stack] = is_parked(heap, top) ? parked_below(heap, block_at(heap, top)) : 0;
        control->parked_count[stack]--;
        error = merge_parked(heap, top);
    }
    return error;
}

int blocks_settle(mmk_heap *heap)
{
    int error = 0;
    for (uint32_t stack = 0; !error && stack < PARKED_SIZES; stack++)
        error = empty_stack(heap, stack);
    return error;
}

int blocks_give(mmk_heap *heap, block *head)
{
    words both = words_of(head);
    if (park(heap, head, both, false))
        return 0;
    if (stack_of(head->units) != PARKED_LARGER || state_of(both) != LIVE)
        return blocks_merge(heap, head);
    /* The one that waits makes room. */
    int error = empty_stack(heap, PARKED_LARGER);
    return error || park(heap, head, words_of(head), false) ? error : blocks_merge(heap, head);
}

/* ---- cutting ---- */

/* Make what lies behind the first `units` of a block, which is on no list, a free block; if it is enough for one. */
static MMK_MUST_CHECK int cut_tail(mmk_heap *heap, block *head, uint32_t units, block_state state, size_t slack)
{
    uint32_t rest = head->units - units;
    block *after = block_after(head);
    if (rest < LEAST_UNITS) {
        write_head(heap, head, head->units, head->before, state, slack + (size_t)rest * UNIT);
        return 0;
    }
    if (!is_head(heap, after))
        return heap_damaged(heap, after, "the head behind a block is smashed");
    block *tail = head + units;
    ASAN_UNPOISON_MEMORY_REGION(tail, sizeof *tail + sizeof(links));
    write_head(heap, tail, rest, units, FREE, 0);
    set_before(heap, after, rest);
    write_head(heap, head, units, head->before, state, slack);
    blocks_keep(heap, tail);
    return 0;
}

/* How many units in front of an aligned block have to be free: 0, or enough for a block. */
static uint32_t lead_of(const block *head, size_t align)
{
    uintptr_t bytes = (uintptr_t)bytes_of(head);
    uintptr_t aligned = mmk_round_up(bytes, align);
    while (aligned != bytes && aligned - bytes < LEAST_UNITS * UNIT)
        aligned += align;
    return (uint32_t)((aligned - bytes) / UNIT);
}

/* Split the first `lead` units off a block that is on no list, as a free block. */
static MMK_MUST_CHECK int cut_lead(mmk_heap *heap, block *head, uint32_t lead, block **part)
{
    block *rest = head + lead, *after = block_after(head);
    if (!is_head(heap, after))
        return heap_damaged(heap, after, "the head behind a free block is smashed");
    uint32_t units = head->units - lead;
    ASAN_UNPOISON_MEMORY_REGION(rest, sizeof *rest + sizeof(links));
    write_head(heap, rest, units, lead, FREE, 0);
    set_before(heap, after, units);
    write_head(heap, head, lead, head->before, FREE, 0);
    blocks_keep(heap, head);
    *part = rest;
    return 0;
}

/* The smallest free block that has so many units, within a sixteenth; still kept. NULL: none. */
static MMK_MUST_CHECK int find(mmk_heap *heap, uint32_t units, block **found)
{
    heap_control *control = heap->control;
    block *victim = control->victim ? block_at(heap, control->victim) : NULL;
    *found = NULL;
    if (victim && !is_head(heap, victim))
        return heap_damaged(heap, victim, "the head of a free block is smashed");

    /* The first block of its own list may do: that is what a program that frees and allocates one size finds. */
    list_place own = list_of(units), place = list_for(units);
    uint64_t first = control->heads[own.level][own.sublevel];
    if (first && block_at(heap, first)->units >= units)
        *found = block_at(heap, first);
    else if (victim && victim->units >= units && (!list_search(control, &place) || victim->units <= list_least(place)))
        *found = victim;
    else if (list_search(control, &place))
        *found = block_at(heap, control->heads[place.level][place.sublevel]);
    if (*found && (!is_head(heap, *found) || (*found)->state != FREE))
        return heap_damaged(heap, *found, "the head of a free block is smashed");
    return 0;
}

static MMK_MUST_CHECK int find_or_grow(mmk_heap *heap, uint32_t units, block **found)
{
    int error = find(heap, units, found);
    if (error || *found)
        return error;
    error = blocks_settle(heap);
    if (!error)
        error = find(heap, units, found);
    if (error || *found)
        return error;
    error = source_grow(heap, units);
    if (!error)
        error = find(heap, units, found);
    return error || *found ? error : -ENOMEM;
}

int blocks_take(mmk_heap *heap, uint32_t units, size_t align, size_t slack, block **found)
{
    block *head;
    /* Enough for any lead. */
    uint32_t wanted = align > UNIT ? units + (uint32_t)(align / UNIT) + LEAST_UNITS : units;
    int error = find_or_grow(heap, wanted, &head);
    uint32_t lead = !error && align > UNIT ? lead_of(head, align) : 0;
    if (!error)
        error = source_back(heap, head + lead + units + LEAST_UNITS);
    if (!error)
        error = unkeep(heap, head);
    if (!error && lead)
        error = cut_lead(heap, head, lead, &head);
    if (!error)
        error = cut_tail(heap, head, units, LIVE, slack);
    *found = head;
    return error;
}

/* ---- resizing ---- */

int blocks_fit(mmk_heap *heap, block *head, uint32_t units, size_t slack)
{
    int error = blocks_settle(heap);
    if (error)
        return error;
    block *before, *after;
    error = check_neighbours(heap, head, &before, &after);
    if (error)
        return error;
    if (units > head->units && (!is_joinable(after) || (uint64_t)head->units + after->units < units))
        return -ENOMEM;
    if (units != head->units && is_joinable(after)) {
        block *behind = block_after(after);
        if (!is_head(heap, behind))
            return heap_damaged(heap, behind, "the head behind a free block is smashed");
        error = unkeep(heap, after);
        if (error)
            return error;
        uint32_t joined = head->units + after->units;
        wipe(heap, after);
        write_head(heap, head, joined, head->before, LIVE, 0);
        set_before(heap, behind, joined);
    }
    return cut_tail(heap, head, units, LIVE, slack);
}

block *blocks_take_last(mmk_heap *heap, const heap_slice *slice)
{
    block *end = (block *)slice->end - 1;
    block *last = end->before ? block_before(end) : NULL;
    if (!last || !is_head(heap, end) || !is_head(heap, last) || last->state != FREE || unkeep(heap, last))
        return NULL;
    return last;
}
