/* The calls of heap.h: what is asked is looked at, the lock is taken, and blocks or large blocks do the work. */
#include "heap_parking.h"

static bool is_power_of_two(size_t value)
{
    return value && !(value & (value - 1));
}

static MMK_MUST_CHECK int open_heap(mmk_heap *heap, const mmk_heap_request *request, bool joins)
{
    if (request->guard && request->source != MMK_HEAP_MMAP)
        return -EINVAL;
    *heap = (mmk_heap){
        .source = request->source,
        .region = request->region,
        .limit = request->limit ? request->limit : SIZE_MAX,
        .lock = PTHREAD_MUTEX_INITIALIZER,
    };
    int error = source_open(heap, request, joins);
    if (error)
        return error;
    heap->open = true;
    fork_watch(heap);
    return 0;
}

int mmk_heap_open(mmk_heap *heap, const mmk_heap_request *request)
{
    return open_heap(heap, request, false);
}

int mmk_heap_attach(mmk_heap *heap, mmk_region *region, size_t offset)
{
    mmk_heap_request request = {.source = MMK_HEAP_REGION, .region = region, .offset = offset};
    return open_heap(heap, &request, true);
}

int mmk_heap_close(mmk_heap *heap)
{
    /* A shared heap is only left: its lock has nothing to do with that. */
    if (!heap->shared)
        pthread_mutex_lock(&heap->lock);
    bool was_open = heap->open;
    heap->open = false;
    if (was_open) {
        if (heap->guard)
            guard_close(heap);
        if (heap->source == MMK_HEAP_MMAP)
            large_close_all(heap);
        source_close(heap);
    }
    if (!heap->shared)
        pthread_mutex_unlock(&heap->lock);
    if (was_open)
        fork_forget(heap);
    return was_open ? 0 : -MMK_ECLOSED;
}

void mmk_heap_dispose(mmk_heap *heap)
{
    (void)mmk_heap_close(heap);
    if (heap->guard)
        guard_dispose(heap);
    source_dispose(heap);
}

/* ---- alloc ---- */

static inline bool is_large(const mmk_heap *heap, size_t size)
{
    return heap->source == MMK_HEAP_MMAP && size >= MMK_HEAP_LARGE;
}

/* Zeros: what was never written to is not touched. */
static void zero_block(const block *head, const char *fresh, bool is_fresh_after)
{
    char *bytes = bytes_of(head);
    size_t size = asked_of(head), dirty = size;
    if (is_fresh_after) {
        size_t used = fresh > bytes + sizeof(links) ? (size_t)(fresh - bytes) : sizeof(links);
        dirty = used < size ? used : size;
    }
    memset(bytes, 0, dirty);
}

static MMK_MUST_CHECK int alloc_block(mmk_heap *heap, size_t size, size_t align, bool zero, void **bytes)
{
    if (size > MMK_HEAP_LARGEST || align > MMK_HEAP_LARGEST - size)
        return -ENOMEM;
    uint32_t units = units_for(size);
    size_t slack = (size_t)(units - 1) * UNIT - size;
    /* One of this size waits, and was not to be had: unless it is for its alignment, it is damaged. */
    int error = units < PARKED_SIZES && heap->control->parked[units] ? blocks_settle(heap) : 0;
    if (error)
        return error;
    block *head = unpark_last(heap, units, align, slack);
    error = head ? 0 : blocks_take(heap, units, align, slack, &head);
    if (error)
        return error;
    open_bytes(heap, head);
    char *end = (char *)block_after(head), *fresh = heap->fresh;
    bool is_fresh_after = end > fresh && end <= heap->fresh_end;
    if (is_fresh_after)
        heap->fresh = end;
    if (zero)
        zero_block(head, fresh, is_fresh_after);
    *bytes = bytes_of(head);
    return 0;
}

/* A small block of a size that was freed lately: what most calls ask for. returns false where none waits. */
static inline bool alloc_parked(mmk_heap *heap, size_t size, size_t align, bool zero, void **bytes)
{
    if (!heap->open || size > (PARKED_SIZES - 2) * UNIT || align > MMK_HEAP_ALIGNMENT)
        return false;
    uint32_t units = units_for(size);
    block *head = unpark(heap, units, (size_t)(units - 1) * UNIT - size);
    if (!head)
        return false;
    open_bytes(heap, head);
    if (zero)
        memset(bytes_of(head), 0, size);
    *bytes = bytes_of(head);
    count_live(heap, size);
    return true;
}

__attribute__((noinline)) static int alloc_slowly(mmk_heap *heap, size_t size, size_t align, bool zero, void **bytes)
{
    if (!heap->open)
        return -MMK_ECLOSED;
    if (align < MMK_HEAP_ALIGNMENT)
        align = MMK_HEAP_ALIGNMENT;
    int error;
    if (heap->guard)
        error = guard_alloc(heap, size, align, zero, bytes);
    else if (is_large(heap, size))
        error = large_alloc(heap, size, align, bytes);
    else
        error = alloc_block(heap, size, align, zero, bytes);
    if (!error)
        count_live(heap, size);
    return error;
}

int mmk_heap_alloc(mmk_heap *heap, size_t size, size_t align, bool zero, void **bytes)
{
    if (__builtin_expect(size == 0 || !is_power_of_two(align), false))
        return -EINVAL;
    int locked = heap_lock(heap);
    if (__builtin_expect(locked < 0, false))
        return locked;
    int error = 0;
    if (!alloc_parked(heap, size, align, zero, bytes))
        error = alloc_slowly(heap, size, align, zero, bytes);
    heap_unlock(heap, locked);
    return error;
}

/* ---- free, resize, size ---- */

/* A live block of the heap: its head, or its record where it is large.
 * returns 0, -MMK_ENOTBLOCK, -MMK_ECORRUPT where the head is smashed (or nobody's: that cannot be told apart) */
static inline MMK_MUST_CHECK int look_up(mmk_heap *heap, const void *bytes, block **head, large_block **large)
{
    *head = NULL;
    *large = NULL;
    if (__builtin_expect((uintptr_t)bytes % UNIT, false))
        return -MMK_ENOTBLOCK;
    if (__builtin_expect(!source_slice_of(heap, head_of(bytes)), false)) {
        *large = large_find(heap, bytes);
        return *large ? 0 : -MMK_ENOTBLOCK;
    }
    *head = head_of(bytes);
    block copy = read_head(bytes);
    if (__builtin_expect(copy.sum != sum_of_head_at(heap, &copy, offset_of(heap, *head)), false)) {
        bool is_wiped = copy.state == WIPED && copy.units == 0 && copy.sum == 0;
        return is_wiped ? -MMK_ENOTBLOCK
                        : heap_damaged(heap, *head, "the head of a block is smashed, or no block was ever here");
    }
    return copy.state == LIVE ? 0 : -MMK_ENOTBLOCK;
}

static MMK_MUST_CHECK int free_found(mmk_heap *heap, block *head, large_block *large)
{
    size_t size = head ? asked_of(head) : large->size;
    int error = head ? blocks_give(heap, head) : large_free(heap, large);
    if (!error)
        count_freed(heap, size);
    return error;
}

/* A small live block that is as it should be, with room to wait: what most calls free. returns false otherwise. */
static inline bool free_parked(mmk_heap *heap, void *bytes)
{
    block *head = head_of(bytes);
    if (!heap->open || (uintptr_t)bytes % UNIT || !is_in_slice(heap, head))
        return false;
    words both = words_of_any(bytes);
    size_t size = ((both.sizes & UINT32_MAX) - 1) * UNIT - (both.rest & UINT16_MAX);
    if (state_of(both) != LIVE || !fits(heap, both, offset_of(heap, head)) || !park(heap, head, both))
        return false;
    count_freed(heap, size);
    return true;
}

__attribute__((noinline)) static int free_slowly(mmk_heap *heap, void *bytes)
{
    if (!heap->open)
        return -MMK_ECLOSED;
    if (heap->guard)
        return guard_free(heap, bytes);
    block *head;
    large_block *large;
    int error = look_up(heap, bytes, &head, &large);
    return error ? error : free_found(heap, head, large);
}

int mmk_heap_free(mmk_heap *heap, void *bytes)
{
    int locked = heap_lock(heap);
    if (__builtin_expect(locked < 0, false))
        return locked;
    int error = 0;
    if (!free_parked(heap, bytes))
        error = free_slowly(heap, bytes);
    heap_unlock(heap, locked);
    return error;
}

/* pre: the block cannot have the size where it is. */
static MMK_MUST_CHECK int move(mmk_heap *heap, void **bytes, size_t before, size_t size, size_t align)
{
    void *moved;
    int error =
        is_large(heap, size) ? large_alloc(heap, size, align, &moved) : alloc_block(heap, size, align, false, &moved);
    if (error)
        return error;
    memcpy(moved, *bytes, before < size ? before : size);
    block *head;
    large_block *large;
    error = look_up(heap, *bytes, &head, &large);
    if (!error)
        error = head ? blocks_give(heap, head) : large_free(heap, large);
    *bytes = moved;
    return error;
}

static MMK_MUST_CHECK int resize_block(mmk_heap *heap, block *head, size_t size)
{
    if (is_large(heap, size) || size > MMK_HEAP_LARGEST)
        return -ENOMEM;
    uint32_t units = units_for(size);
    size_t slack = (size_t)(units - 1) * UNIT - size;
    ASAN_UNPOISON_MEMORY_REGION(bytes_of(head), room_of(head));
    int error = units > head->units ? source_back(heap, head + units + LEAST_UNITS) : 0;
    if (!error)
        error = blocks_fit(heap, head, units, slack);
    open_bytes(heap, head);
    char *end = (char *)block_after(head);
    if (end > heap->fresh && end <= heap->fresh_end)
        heap->fresh = end;
    return error;
}

static MMK_MUST_CHECK int resize_found(mmk_heap *heap, void **bytes, size_t size, size_t align)
{
    block *head;
    large_block *large;
    int error = look_up(heap, *bytes, &head, &large);
    if (error)
        return error;
    size_t before = head ? asked_of(head) : large->size;
    error = head ? resize_block(heap, head, size) : large_resize(heap, large, bytes, size);
    if (error == -ENOMEM)
        error = move(heap, bytes, before, size, align);
    if (!error) {
        count_freed(heap, before);
        count_live(heap, size);
    }
    return error;
}

int mmk_heap_resize(mmk_heap *heap, void **bytes, size_t size, size_t align)
{
    if (size == 0 || !is_power_of_two(align))
        return -EINVAL;
    if (align < MMK_HEAP_ALIGNMENT)
        align = MMK_HEAP_ALIGNMENT;
    int locked = heap_lock(heap);
    if (__builtin_expect(locked < 0, false))
        return locked;
    int error = -MMK_ECLOSED;
    if (heap->open)
        error = heap->guard ? guard_resize(heap, bytes, size, align) : resize_found(heap, bytes, size, align);
    heap_unlock(heap, locked);
    return error;
}

ssize_t mmk_heap_size(mmk_heap *heap, const void *bytes)
{
    int locked = heap_lock(heap);
    if (__builtin_expect(locked < 0, false))
        return locked;
    ssize_t answer = -MMK_ENOTBLOCK;
    const heap_slice *slice = heap->open ? source_slice_of(heap, head_of(bytes)) : NULL;
    if (!heap->open) {
        answer = -MMK_ECLOSED;
    } else if (heap->guard) {
        answer = guard_size(heap, bytes);
    } else if (slice && (uintptr_t)bytes % UNIT == 0) {
        block copy = read_head(bytes);
        if (copy.state == LIVE && copy.sum == sum_of_head_at(heap, &copy, offset_of(heap, head_of(bytes))))
            answer = (ssize_t)asked_of(&copy);
    } else if (!slice) {
        const large_block *large = large_find(heap, bytes);
        answer = large ? (ssize_t)large->size : answer;
    }
    heap_unlock(heap, locked);
    return answer;
}

int mmk_heap_trim(mmk_heap *heap)
{
    int locked = heap_lock(heap);
    if (__builtin_expect(locked < 0, false))
        return locked;
    int error = heap->open ? source_trim(heap) : -MMK_ECLOSED;
    heap_unlock(heap, locked);
    return error;
}
