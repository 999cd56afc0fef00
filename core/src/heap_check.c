/* Is every head, link and bit of a heap as it should be? */
#include "heap_lists.h"
#include "heap_parking.h"

/* What a walk of the slices counts, for comparing with what the lists and the control say. */
typedef struct tally {
    size_t free_blocks;
    size_t live_blocks;
    size_t live_bytes;
    size_t records;
    size_t parked;
    size_t waiting;
    size_t listed;
    mmk_heap_damage *damage;
} tally;

static bool is_known(const block *head)
{
    switch ((block_state)head->state) {
    case LIVE:
    case FREE:
    case PARKED:
    case RECORD:
        return head->units >= LEAST_UNITS && head->slack <= room_of(head);
    case HOLE:
    case END:
        return head->units >= 1;
    case WIPED:
        break;
    }
    return false;
}

static int report(mmk_heap *heap, tally *found, const block *head, const char *what)
{
    heap_describe(heap, head, what, found->damage);
    return -MMK_ECORRUPT;
}

static void count(tally *found, const block *head)
{
    found->free_blocks += head->state == FREE;
    found->records += head->state == RECORD;
    found->live_blocks += head->state == LIVE;
    found->live_bytes += head->state == LIVE ? asked_of(head) : 0;
    found->parked += head->state == PARKED;
}

static MMK_MUST_CHECK int check_slice(mmk_heap *heap, const heap_slice *slice, tally *found)
{
    const block *last = (const block *)slice->end - 1, *before = NULL;
    for (const block *head = (const block *)slice->start;; head = block_after(head)) {
        if (head > last || !is_head(heap, head) || !is_known(head))
            return report(heap, found, head, "the head is smashed");
        if (before ? head->before != before->units : head->before != 0)
            return report(heap, found, head, "it does not know the size of the block before it");
        if (before && before->state == FREE && head->state == FREE)
            return report(heap, found, head, "two free blocks lie side by side");
        count(found, head);
        if (head->state == END || head == last)
            return head->state == END && head == last
                       ? 0
                       : report(heap, found, head, "the slice does not end where its last block does");
        if (head->units > (size_t)(last - head))
            return report(heap, found, head, "the block reaches past its slice");
        before = head;
    }
}

static MMK_MUST_CHECK int check_list(mmk_heap *heap, list_place place, tally *found)
{
    const heap_control *control = heap->control;
    uint64_t offset = control->heads[place.level][place.sublevel];
    block *before = NULL;
    for (block *head = offset ? block_at(heap, offset) : NULL; head; head = next_on_list(heap, head)) {
        if (!is_listed(heap, head, place))
            return report(heap, found, before ? before : head, "the link of a free block leads astray");
        if (previous_on_list(heap, head) != before)
            return report(heap, found, head, "a free block does not know the one before it on its list");
        if (++found->listed > found->free_blocks)
            return report(heap, found, head, "a list of free blocks is a circle");
        before = head;
    }
    bool said = control->within[place.level] >> place.sublevel & 1;
    if (said != (offset != 0))
        return report(heap, found, before, "a bit says of a list what is not so");
    return 0;
}

static MMK_MUST_CHECK int check_lists(mmk_heap *heap, tally *found)
{
    const heap_control *control = heap->control;
    for (unsigned level = 0; level < LEVELS; level++) {
        for (unsigned sublevel = 0; sublevel < SUBLEVELS; sublevel++) {
            int error = check_list(heap, (list_place){level, sublevel}, found);
            if (error)
                return error;
        }
        if ((control->levels >> level & 1) != (control->within[level] != 0))
            return report(heap, found, NULL, "a bit says of a level what is not so");
    }
    if (control->victim) {
        const block *victim = block_at(heap, control->victim);
        if (!source_slice_of(heap, victim) || !is_head(heap, victim) || victim->state != FREE)
            return report(heap, found, victim, "the block to cut from is not free");
        found->listed++;
    }
    return 0;
}

static MMK_MUST_CHECK int check_parked(mmk_heap *heap, tally *found)
{
    const heap_control *control = heap->control;
    for (uint32_t stack = 0; stack < PARKED_SIZES; stack++) {
        unsigned count = 0;
        for (uint64_t offset = control->parked[stack]; offset; offset = parked_below(heap, block_at(heap, offset))) {
            block *head = block_at(heap, offset);
            if (!is_parked(heap, offset) || stack_of(head->units) != stack || count == stack_most(stack))
                return report(heap, found, head, "the link of a freed block led astray");
            count++;
        }
        if (count != control->parked_count[stack])
            return report(heap, found, NULL, "the freed blocks that wait are not as many as were counted");
        found->waiting += count;
    }
    return 0;
}

static MMK_MUST_CHECK int check_guarded(mmk_heap *heap, tally *found)
{
    mmk_heap_block one;
    for (guard_place place = {0}; guard_next(heap, &place, &one);) {
        const char *smashed = guard_first_smashed(heap, one.address);
        if (smashed) {
            *found->damage = (mmk_heap_damage){
                .what = "a block was written out of its bounds", .address = (uintptr_t)smashed, .before = one.address};
            return -MMK_ECORRUPT;
        }
        found->live_blocks++;
        found->live_bytes += one.size;
    }
    return 0;
}

static MMK_MUST_CHECK int check_counts(mmk_heap *heap, tally *found)
{
    const heap_control *control = heap->control;
    size_t large = 0;
    for (const large_block *one = control->large; one && large <= found->records; one = one->next) {
        large++;
        found->live_blocks++;
        found->live_bytes += one->size;
    }
    if (found->listed != found->free_blocks)
        return report(heap, found, NULL, "a free block is on no list");
    if (found->waiting != found->parked)
        return report(heap, found, NULL, "a freed block is neither free nor waiting");
    if (large != found->records || large != control->large_blocks)
        return report(heap, found, NULL, "the list of large blocks is not whole");
    if (found->live_blocks != control->live_blocks || found->live_bytes != control->live_bytes)
        return report(heap, found, NULL, "the live blocks are not as many as were counted");
    return 0;
}

static MMK_MUST_CHECK int check_all(mmk_heap *heap, tally *found)
{
    int error = heap->open ? 0 : -MMK_ECLOSED;
    for (unsigned i = 0; !error && i < heap->slice_count; i++)
        error = check_slice(heap, &heap->slices[i], found);
    if (!error)
        error = check_lists(heap, found);
    if (!error)
        error = check_parked(heap, found);
    if (!error)
        error = check_guarded(heap, found);
    if (!error)
        error = check_counts(heap, found);
    return error;
}

/* A shared heap that is known to be damaged lets nobody in: look from outside. */
static MMK_MUST_CHECK int check_from_outside(mmk_heap *heap, tally *found)
{
    int error = watch_begin(heap);
    if (error)
        return error;
    error = check_all(heap, found);
    if (!error)
        error = report(heap, found, NULL, "what was damaged cannot be found any more");
    return watch_end(heap) ? -MMK_ECORRUPT : error;
}

int mmk_heap_check(mmk_heap *heap, mmk_heap_damage *damage)
{
    tally found = {.damage = damage};
    *damage = (mmk_heap_damage){0};
    int locked = heap_lock(heap), error;
    if (locked >= 0)
        error = (int)heap_unlock(heap, locked, check_all(heap, &found));
    else
        error = locked == -MMK_ECORRUPT ? check_from_outside(heap, &found) : locked;
    uintptr_t torn = watch_torn(heap);
    if (error == -MMK_ECORRUPT && torn)
        *damage = (mmk_heap_damage){.what = "its file was made shorter, or cannot be read there", .address = torn};
    return error;
}
