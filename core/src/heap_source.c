/* Where a heap's memory comes from: slices of regions that grow, of the break, or of the caller's region. */
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>

#include <mmkit/advice.h>
#include <mmkit/program_break.h>
#include <mmkit/resize.h>
#include <mmkit/storage.h>

#include "heap_internal.h"

enum {
    LEAST_STEP = 256 << 10, /* bytes to ask the source for at once; more as the heap grows */
    MOST_STEP = 1 << 30,    /* but no more: large blocks count for its size, and no slice may span 64 GiB */
    FIRST_ROOM = 64 << 20,  /* address space of the first slice to grow in; each further one has twice as much */
    BACK_AT_ONCE = 1 << 20, /* bytes whose memory is made sure of at once */
    OVERHEAD = 4 * UNIT,    /* of a slice: its END, and what alignment takes */
};

/* ---- slices ---- */

const heap_slice *source_slice_of(const mmk_heap *heap, const void *address)
{
    for (unsigned i = heap->slice_count; i-- > 0;) {
        const heap_slice *slice = &heap->slices[i];
        if ((uintptr_t)address - (uintptr_t)slice->start < (size_t)(slice->end - UNIT - slice->start))
            return slice;
    }
    return NULL;
}

/* How much to ask for when `need` bytes are missing: the more, the larger the heap is. */
static size_t step_for(const mmk_heap *heap, size_t need)
{
    size_t step = heap->control->mapped_bytes / 8;
    step = step < LEAST_STEP ? LEAST_STEP : step > MOST_STEP ? MOST_STEP : step;
    return mmk_round_up(need > step ? need : step, mmk_page_size());
}

/* The newest slice has another end. */
static void set_end(mmk_heap *heap, heap_slice *slice, char *end)
{
    slice->end = end;
    heap->newest = (uintptr_t)slice->start;
    heap->newest_length = (size_t)(end - UNIT - slice->start);
}

void source_note_slice(mmk_heap *heap, heap_slice *slice, char *start, char *end)
{
    slice->start = (char *)mmk_round_up((uintptr_t)start, UNIT);
    set_end(heap, slice, (char *)mmk_round_down((uintptr_t)end, UNIT));
}

/* A stretch of memory that is one free block. pre: there is a slice left, and the ends can be written. */
static heap_slice *begin_slice(mmk_heap *heap, char *start, char *end)
{
    heap_slice *slice = &heap->slices[heap->slice_count++];
    source_note_slice(heap, slice, start, end);
    block *first = (block *)slice->start, *last = (block *)slice->end - 1;
    write_head(heap, last, 1, (uint32_t)(last - first), END, 0);
    write_head(heap, first, (uint32_t)(last - first), 0, FREE, 0);
    blocks_keep(heap, first);
    return slice;
}

/* Turn the END of a slice into a block that reaches to a new END. */
static MMK_MUST_CHECK int lengthen(mmk_heap *heap, heap_slice *slice, char *new_end)
{
    block *old = (block *)slice->end - 1, *last = (block *)new_end - 1;
    if (!is_head(heap, old) || old->state != END)
        return heap_damaged(heap, old, "the head at the end of a slice is smashed");
    uint32_t units = (uint32_t)(last - old);
    write_head(heap, last, 1, units, END, 0);
    write_head(heap, old, units, old->before, LIVE, 0);
    set_end(heap, slice, new_end);
    return blocks_merge(heap, old);
}

/* ---- mmap ---- */

static bool address_space_is_scarce(void)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

static MMK_MUST_CHECK int map_slice(mmk_heap *heap, size_t need, size_t length)
{
    if (heap->slice_count == SLICES || length < need || !is_within_limit(heap, length))
        return -ENOMEM;
    size_t room = heap->slice_count < 10 ? (size_t)FIRST_ROOM << heap->slice_count : (size_t)FIRST_ROOM << 10;
    mmk_request request = {.length = length,
                           .reserve = room < length || address_space_is_scarce() ? length : room,
                           .prot = PROT_READ | PROT_WRITE,
                           .flags = MAP_PRIVATE | MAP_ANONYMOUS,
                           .fd = -1};
    mmk_region *region = &heap->slices[heap->slice_count].region;
    int error = mmk_region_map(region, &request);
    if (error && request.reserve > length) {
        request.reserve = length;
        error = mmk_region_map(region, &request);
    }
    if (error)
        return -ENOMEM;
    region->exposed = true;
    heap->control->mapped_bytes += length;
    const heap_slice *slice = begin_slice(heap, region->base, region->base + length);
    heap->fresh = slice->start;
    heap->fresh_end = slice->end - UNIT;
    return 0;
}

static MMK_MUST_CHECK int lengthen_region(mmk_heap *heap, size_t more)
{
    heap_slice *slice = &heap->slices[heap->slice_count - 1];
    mmk_region *region = &slice->region;
    size_t length = mmk_region_length(region);
    if (more > region->reserved - length || !is_within_limit(heap, more))
        return -ENOMEM;
    mmk_range vacated;
    if (mmk_region_resize(region, length + more, &vacated))
        return -ENOMEM;
    heap->control->mapped_bytes += more;
    bool was_fresh = heap->fresh_end == slice->end - UNIT;
    int error = lengthen(heap, slice, region->base + length + more);
    if (was_fresh)
        heap->fresh_end = slice->end - UNIT;
    return error;
}

static MMK_MUST_CHECK int grow_by_mmap(mmk_heap *heap, size_t need, size_t step)
{
    int error = heap->slice_count ? lengthen_region(heap, step) : -ENOMEM;
    return error == -ENOMEM ? map_slice(heap, need, step) : error;
}

/* ---- the break ---- */

/* What others took of the break since our last piece becomes a block of the chain: nobody frees it. */
static MMK_MUST_CHECK int span_hole(mmk_heap *heap, heap_slice *slice, char *start, char *end)
{
    block *old = (block *)slice->end - 1, *first = (block *)start, *last = (block *)end - 1;
    if (!is_head(heap, old) || old->state != END)
        return heap_damaged(heap, old, "the head at the end of a slice is smashed");
    uint32_t hole = (uint32_t)(first - old), units = (uint32_t)(last - first);
    write_head(heap, last, 1, units, END, 0);
    write_head(heap, first, units, hole, FREE, 0);
    write_head(heap, old, hole, old->before, HOLE, 0);
    set_end(heap, slice, end);
    blocks_keep(heap, first);
    return 0;
}

static MMK_MUST_CHECK int grow_by_break(mmk_heap *heap, size_t need, size_t step)
{
    intptr_t now = mmk_break_move_piece(&heap->piece, 0);
    /* To a page boundary, so that the next piece starts on one, too. */
    size_t more = mmk_round_up((size_t)now + step, mmk_page_size()) - (size_t)now;
    if (more < need || !is_within_limit(heap, more))
        return -ENOMEM;
    heap_slice *slice = heap->slice_count ? &heap->slices[0] : NULL;
    size_t span = slice ? (size_t)now + more - (size_t)slice->start : more;
    if (span > MMK_HEAP_LARGEST || (slice && (char *)now < slice->end))
        return -ENOMEM;
    intptr_t before = mmk_break_move_piece(&heap->piece, (intptr_t)more);
    if (before < 0)
        return -ENOMEM;

    char *start = (char *)mmk_round_up((uintptr_t)before, UNIT), *end = (char *)before + more;
    heap->control->mapped_bytes += more;
    bool continues = slice && start == slice->end;
    int error = 0;
    if (continues) {
        error = lengthen(heap, slice, end);
    } else {
        heap->fresh = (char *)mmk_round_up((uintptr_t)before, mmk_page_size());
        if (slice)
            error = span_hole(heap, slice, start, end);
        else
            begin_slice(heap, start, end);
    }
    heap->fresh_end = end - UNIT;
    return error;
}

int source_grow(mmk_heap *heap, uint32_t units)
{
    size_t need = mmk_round_up((size_t)units * UNIT + OVERHEAD, mmk_page_size());
    if (heap->source == MMK_HEAP_REGION)
        return -ENOMEM;
    int (*grow)(mmk_heap *, size_t, size_t) = heap->source == MMK_HEAP_SBRK ? grow_by_break : grow_by_mmap;
    int error = grow(heap, need, step_for(heap, need));
    return error == -ENOMEM ? grow(heap, need, need) : error;
}

/* ---- the caller's region ---- */

int source_back(mmk_heap *heap, const void *end)
{
    uint64_t offset = (uint64_t)((const char *)end - heap->origin);
    if (heap->control->backed == 0 || offset <= heap->control->backed)
        return 0;
    size_t from = (size_t)(heap->origin + heap->control->backed - heap->region->base);
    size_t length = mmk_region_length(heap->region);
    size_t need = (size_t)((const char *)end - heap->region->base);
    size_t to = from + BACK_AT_ONCE > need ? from + BACK_AT_ONCE : need;
    from = mmk_round_down(from, heap->region->granule);
    to = mmk_round_up(to, heap->region->granule);
    to = to > length ? length : to;
    int error = mmk_region_populate(heap->region, from, to - from, true);
    if (error) {
        /* Less may be there: no more than has to be. */
        to = mmk_round_up(need, heap->region->granule);
        to = to > length ? length : to;
        error = mmk_region_populate(heap->region, from, to - from, true);
    }
    if (error)
        return -ENOMEM;
    heap->control->backed = (uint64_t)(heap->region->base + to - heap->origin);
    return 0;
}

int source_add_slices(mmk_heap *heap, size_t offset, size_t end)
{
    mmk_region *region = heap->region;
    int error = 0;
    heap->control->mapped_bytes = end - offset;
    if (region_may_lack_memory(region))
        heap->control->backed = (uint64_t)(region->base + offset - heap->origin);
    while (!error && end - offset >= 4 * UNIT && heap->slice_count < SLICES) {
        size_t span = end - offset < MMK_HEAP_LARGEST ? end - offset : MMK_HEAP_LARGEST;
        size_t last = mmk_round_down(offset + span - UNIT, region->granule);
        size_t first = mmk_round_down(offset, region->granule);
        if (region_may_lack_memory(region))
            error = mmk_region_populate(region, first, region->granule, true);
        if (region_may_lack_memory(region) && !error)
            error = mmk_region_populate(region, last, region->granule, true);
        if (!error)
            begin_slice(heap, region->base + offset, region->base + offset + span);
        offset += span;
    }
    if (!error && heap->slice_count == 0)
        error = -EINVAL;
    return error == -EFAULT ? -ENOMEM : error;
}

static MMK_MUST_CHECK int use_region(mmk_heap *heap, size_t offset, bool joins)
{
    mmk_region *region = heap->region;
    size_t length = region->asked;
    bool is_shared = region->flags & MAP_SHARED;
    if (offset % UNIT || offset > length)
        return -EINVAL;
    if (joins && !is_shared)
        return -MMK_EUNSUPPORTED;
    int error = mmk_view_settle(region, &heap->view, offset, length - offset, "a heap", joins);
    if (error)
        return error;
    size_t end = length - offset > heap->limit ? offset + heap->limit : length;
    if (!is_shared)
        error = source_add_slices(heap, offset, end);
    else
        error = shared_open(heap, offset, end - offset, joins);
    if (error)
        mmk_view_close(region, &heap->view);
    return error;
}

/* ---- life ---- */

static uint64_t secret_key(const mmk_heap *heap)
{
    uint64_t key;
    if (getrandom(&key, sizeof key, GRND_NONBLOCK) == sizeof key)
        return key;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return ((uint64_t)now.tv_nsec << 32 ^ (uintptr_t)heap) * UINT64_C(0x9e3779b97f4a7c15);
}

int source_open(mmk_heap *heap, const mmk_heap_request *request, bool joins)
{
    size_t control = mmk_round_up(sizeof(heap_control), UNIT), slices = SLICES * sizeof(heap_slice);
    size_t room = request->guard ? guard_room() : HEAP_WATCH_ROOM;
    int error = mmk_region_map(&heap->own, &(mmk_request){.length = control + slices + room,
                                                          .prot = PROT_READ | PROT_WRITE,
                                                          .flags = MAP_PRIVATE | MAP_ANONYMOUS,
                                                          .fd = -1});
    if (error)
        return error;
    heap->control = (heap_control *)heap->own.base;
    heap->slices = (heap_slice *)(heap->own.base + control);
    heap->key = secret_key(heap);
    if (heap->source == MMK_HEAP_REGION)
        error = use_region(heap, request->offset, joins);
    if (request->guard)
        heap->guard = (struct heap_guard *)(heap->own.base + control + slices);
    if (error) {
        heap->slices = NULL;
        mmk_region_dispose(&heap->own);
    }
    return error;
}

static void discard_whole_pages(char *from, char *to)
{
    char *first = (char *)mmk_round_up((uintptr_t)from, mmk_page_size());
    char *end = (char *)mmk_round_down((uintptr_t)to, mmk_page_size());
    if (first < end)
        mmk_sys_madvise(first, (size_t)(end - first), MMK_MADV_DONTNEED);
}

/* The last piece by lowering the break; the others, and that one where it may not be lowered, page by page. */
static void close_break(mmk_heap *heap, heap_slice *slice)
{
    if (mmk_break_move_piece(&heap->piece, heap->piece.floor - (intptr_t)slice->end) >= 0)
        slice->end = (char *)heap->piece.floor;
    char *from = slice->start;
    for (block *head = (block *)slice->start; (char *)head < slice->end && is_head(heap, head);
         head = block_after(head)) {
        if (head->state == HOLE)
            discard_whole_pages(from, (char *)head);
        if (head->state == HOLE)
            from = (char *)block_after(head);
        if (head->state == END)
            break;
    }
    if (from < slice->end)
        discard_whole_pages(from, slice->end);
}

static void unpoison(const heap_slice *slice)
{
    ASAN_UNPOISON_MEMORY_REGION(slice->start, (size_t)(slice->end - slice->start));
}

void source_close(mmk_heap *heap)
{
    for (unsigned i = 0; i < heap->slice_count; i++) {
        heap_slice *slice = &heap->slices[i];
        unpoison(slice);
        if (heap->source == MMK_HEAP_SBRK)
            close_break(heap, slice);
        else if (heap->source == MMK_HEAP_MMAP)
            (void)!mmk_region_close(&slice->region);
    }
    if (heap->source != MMK_HEAP_REGION)
        return;
    watch_close(heap);
    mmk_view_close(heap->region, &heap->view);
}

void source_dispose(mmk_heap *heap)
{
    for (unsigned i = 0; heap->source == MMK_HEAP_MMAP && i < heap->slice_count; i++)
        mmk_region_dispose(&heap->slices[i].region);
    mmk_region_dispose(&heap->own);
    heap->slice_count = 0;
}

/* ---- trimming ---- */

static int discard(mmk_heap *heap, const heap_slice *slice, char *from, char *to)
{
    const mmk_region *region = heap->source == MMK_HEAP_MMAP ? &slice->region : heap->region;
    size_t granule = region ? region->granule : mmk_page_size();
    from = (char *)mmk_round_up((uintptr_t)from, granule);
    to = (char *)mmk_round_down((uintptr_t)to, granule);
    if (from >= to)
        return 0;
    size_t length = (size_t)(to - from);
    if (heap->source == MMK_HEAP_SBRK)
        return mmk_sys_madvise(from, length, MMK_MADV_DONTNEED);
    if (heap->source == MMK_HEAP_MMAP)
        return mmk_region_discard((mmk_region *)region, (size_t)(from - region->base), length, true);
    if (!(region->flags & MAP_SHARED))
        return mmk_region_discard(heap->region, (size_t)(from - region->base), length, true);
    mmk_fault fault;
    uint64_t offset = (uint64_t)(from - heap->origin);
    if (heap->control->backed > offset)
        heap->control->backed = offset;
    return mmk_region_punch(heap->region, (size_t)(from - region->base), length, true, &fault);
}

/* Give the pages at the end of the last slice back. returns false where that cannot be. */
static bool give_back_end(mmk_heap *heap, heap_slice *slice, char *new_end)
{
    intptr_t less = slice->end - new_end;
    if (heap->source == MMK_HEAP_SBRK)
        return mmk_break_move_piece(&heap->piece, -less) >= 0;
    mmk_range vacated;
    return mmk_region_resize(&slice->region, mmk_region_length(&slice->region) - (size_t)less, &vacated) == 0;
}

static void shorten(mmk_heap *heap)
{
    heap_slice *slice = &heap->slices[heap->slice_count - 1];
    block *last = blocks_take_last(heap, slice);
    if (!last)
        return;
    char *new_end = (char *)mmk_round_up((uintptr_t)(last + LEAST_UNITS + 1), mmk_page_size());
    size_t before = (size_t)(slice->end - new_end);
    if (new_end < slice->end) {
        ASAN_UNPOISON_MEMORY_REGION(new_end - UNIT, (size_t)(slice->end - new_end) + UNIT);
        if (give_back_end(heap, slice, new_end)) {
            set_end(heap, slice, new_end);
            heap->control->mapped_bytes -= before;
            block *new_last = (block *)new_end - 1;
            uint32_t units = (uint32_t)(new_last - last);
            write_head(heap, new_last, 1, units, END, 0);
            write_head(heap, last, units, last->before, FREE, 0);
            if (heap->fresh_end > new_end - UNIT)
                heap->fresh_end = new_end - UNIT;
            if (heap->fresh > heap->fresh_end)
                heap->fresh = heap->fresh_end;
        }
    }
    blocks_keep(heap, last);
}

int source_trim(mmk_heap *heap)
{
    int error = blocks_settle(heap);
    if (error || heap->slice_count == 0)
        return error;
    if (heap->source != MMK_HEAP_REGION)
        shorten(heap);
    for (unsigned i = 0; i < heap->slice_count; i++) {
        const heap_slice *slice = &heap->slices[i];
        for (block *head = (block *)slice->start; head->state != END; head = block_after(head)) {
            if (!is_head(heap, head))
                return heap_damaged(heap, head, "the head of a block is smashed");
            int refused = head->state == FREE
                              ? discard(heap, slice, bytes_of(head) + sizeof(links), (char *)block_after(head))
                              : 0;
            error = error ? error : refused;
        }
    }
    return error;
}
