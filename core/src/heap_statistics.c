/* What a heap holds: sums, rows by size, every block. */
#include <unistd.h>

#include "heap_lists.h"
#include "pagemap.h"

static size_t largest_free(const mmk_heap *heap)
{
    const heap_control *control = heap->control;
    uint32_t most = control->victim ? block_at(heap, control->victim)->units : 0;
    if (control->levels) {
        unsigned level = 31 - (unsigned)__builtin_clz(control->levels);
        unsigned sublevel = 31 - (unsigned)__builtin_clz(control->within[level]);
        /* Of the last list, which is short, each block. */
        list_place place = {level, sublevel};
        for (block *head = block_at(heap, control->heads[level][sublevel]); head && is_listed(heap, head, place);
             head = next_on_list(heap, head))
            most = head->units > most ? head->units : most;
    }
    return most ? ((size_t)most - 1) * UNIT : 0;
}

static mmk_heap_kind kind_of(const block *head)
{
    switch ((block_state)head->state) {
    case LIVE:
        return MMK_BLOCK_LIVE;
    case HOLE:
        return MMK_BLOCK_HOLE;
    case RECORD:
        return MMK_BLOCK_INTERNAL;
    case FREE:
    case PARKED:
    case END:
    case WIPED:
        break;
    }
    return MMK_BLOCK_FREE;
}

/* Show every block to `see`, in order. A smashed head ends the walk of its slice. */
static void walk(mmk_heap *heap, void see(const mmk_heap_block *seen, void *into), void *into)
{
    for (unsigned i = 0; i < heap->slice_count; i++) {
        const heap_slice *slice = &heap->slices[i];
        for (block *head = (block *)slice->start; is_head(heap, head) && head->state != END; head = block_after(head))
            see(&(mmk_heap_block){.address = (uintptr_t)bytes_of(head),
                                  .size = asked_of(head),
                                  .span = (size_t)head->units * UNIT,
                                  .kind = kind_of(head)},
                into);
    }
    for (const large_block *large = heap->control->large; large; large = large->next)
        see(&(mmk_heap_block){.address = (uintptr_t)large->bytes,
                              .size = large->size,
                              .span = mmk_region_length(&large->region),
                              .kind = MMK_BLOCK_LARGE},
            into);
    mmk_heap_block guarded;
    for (guard_place place = {0}; guard_next(heap, &place, &guarded);)
        see(&guarded, into);
}

/* ---- sums ---- */

static void add_free(const mmk_heap_block *seen, void *into)
{
    if (seen->kind == MMK_BLOCK_FREE)
        ((mmk_heap_stats *)into)->free_bytes += seen->size;
}

int mmk_heap_statistics(mmk_heap *heap, mmk_heap_stats *stats)
{
    int locked = heap_lock(heap);
    if (__builtin_expect(locked < 0, false))
        return locked;
    int error = heap->open ? blocks_settle(heap) : -MMK_ECLOSED;
    if (!error) {
        const heap_control *control = heap->control;
        *stats = (mmk_heap_stats){
            .live_bytes = control->live_bytes,
            .live_blocks = control->live_blocks,
            .peak_bytes = control->peak_bytes,
            .mapped_bytes = control->mapped_bytes,
            .largest_free = largest_free(heap),
            .slices = heap->slice_count,
            .large_blocks = control->large_blocks,
        };
        walk(heap, add_free, stats);
    }
    return (int)heap_unlock(heap, locked, error);
}

static void add_to_class(const mmk_heap_block *seen, void *into)
{
    size_t size = seen->size ? seen->size : 1;
    unsigned log = 63 - (unsigned)__builtin_clzll(size);
    mmk_heap_class *row = (mmk_heap_class *)into + (log < MMK_HEAP_SIZE_CLASSES ? log : MMK_HEAP_SIZE_CLASSES - 1);
    bool is_live = seen->kind == MMK_BLOCK_LIVE || seen->kind == MMK_BLOCK_LARGE;
    bool is_free = seen->kind == MMK_BLOCK_FREE;
    row->live_blocks += is_live;
    row->live_bytes += is_live ? seen->size : 0;
    row->free_blocks += is_free;
    row->free_bytes += is_free ? seen->size : 0;
}

int mmk_heap_classes(mmk_heap *heap, mmk_heap_class classes[MMK_HEAP_SIZE_CLASSES])
{
    memset(classes, 0, MMK_HEAP_SIZE_CLASSES * sizeof *classes);
    int locked = heap_lock(heap);
    if (__builtin_expect(locked < 0, false))
        return locked;
    int error = heap->open ? blocks_settle(heap) : -MMK_ECLOSED;
    if (!error)
        walk(heap, add_to_class, classes);
    return (int)heap_unlock(heap, locked, error);
}

/* ---- every block ---- */

typedef struct collection {
    mmk_heap_block *blocks;
    size_t capacity;
    size_t count;
} collection;

static void collect(const mmk_heap_block *seen, void *into)
{
    collection *blocks = into;
    if (blocks->count < blocks->capacity)
        blocks->blocks[blocks->count] = *seen;
    blocks->count++;
}

ssize_t mmk_heap_blocks(mmk_heap *heap, mmk_heap_block *blocks, size_t capacity)
{
    collection into = {blocks, capacity, 0};
    int locked = heap_lock(heap);
    if (__builtin_expect(locked < 0, false))
        return locked;
    int error = heap->open ? blocks_settle(heap) : -MMK_ECLOSED;
    if (!error)
        walk(heap, collect, &into);
    return heap_unlock(heap, locked, error ? error : (ssize_t)into.count);
}

/* ---- RAM ---- */

static int add_resident(int pagemap, const char *from, const char *to, size_t *bytes)
{
    size_t page = mmk_page_size(), present = 0;
    uintptr_t first = mmk_round_down((uintptr_t)from, page), end = mmk_round_up((uintptr_t)to, page);
    int error = pagemap_count_present(pagemap, first, (end - first) / page, &present);
    *bytes += present * page;
    return error;
}

/* Between holes, which are others' memory. */
static int add_slice_resident(const mmk_heap *heap, const heap_slice *slice, int pagemap, size_t *bytes)
{
    int error = 0;
    const char *from = slice->start;
    if (heap->source == MMK_HEAP_SBRK)
        for (block *head = (block *)slice->start; !error && is_head(heap, head) && head->state != END;
             head = block_after(head))
            if (head->state == HOLE) {
                error = add_resident(pagemap, from, (char *)head, bytes);
                from = (char *)block_after(head);
            }
    return error ? error : add_resident(pagemap, from, slice->end, bytes);
}

int mmk_heap_resident(mmk_heap *heap, int pagemap, size_t *bytes)
{
    *bytes = 0;
    int locked = heap_lock(heap);
    if (__builtin_expect(locked < 0, false))
        return locked;
    int error = heap->open ? 0 : -MMK_ECLOSED;
    for (unsigned i = 0; !error && i < heap->slice_count; i++)
        error = add_slice_resident(heap, &heap->slices[i], pagemap, bytes);
    const large_block *large = heap->open ? heap->control->large : NULL;
    for (; !error && large; large = large->next)
        error = add_resident(pagemap, large->bytes, large->bytes + large->size, bytes);
    mmk_heap_block guarded;
    for (guard_place place = {0}; !error && heap->open && guard_next(heap, &place, &guarded);)
        error = add_resident(pagemap, (char *)guarded.address, (char *)guarded.address + guarded.size, bytes);
    return (int)heap_unlock(heap, locked, error);
}
