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
static void zero_block(char *bytes, size_t size, const char *fresh, bool is_fresh_after)
{
    size_t dirty = size;
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
    uint32_t units = units_for(size), stack = stack_of(units);
    size_t slack = slack_for(size, units);
    block *head = unpark(heap, units, align, slack, false);
    /* One of this size waits, and was not to be had: unless it is for its alignment, it is damaged. */
    int error = !head && stack != PARKED_LARGER && heap->control->parked[stack] ? blocks_settle(heap) : 0;
    if (!head && !error)
        error = blocks_take(heap, units, align, slack, &head);
    if (error)
        return error;
    open_bytes(heap, head);
    char *fresh = heap->fresh;
    spend_fresh(heap, head);
    if (zero)
        zero_block(bytes_of(head), size, fresh, heap->fresh != fresh);
    *bytes = bytes_of(head);
    return 0;
}

__attribute__((noinline)) static int alloc_locked(mmk_heap *heap, size_t size, size_t align, bool zero, void **bytes)
{
    if (size == 0 || !is_power_of_two(align))
        return -EINVAL;
    if (align < MMK_HEAP_ALIGNMENT)
        align = MMK_HEAP_ALIGNMENT;
    int locked = heap_lock(heap);
    if (locked < 0)
        return locked;
    int error = -MMK_ECLOSED;
    if (heap->open && heap->guard)
        error = guard_alloc(heap, size, align, zero, bytes);
    else if (heap->open)
        error =
            is_large(heap, size) ? large_alloc(heap, size, align, bytes) : alloc_block(heap, size, align, zero, bytes);
    if (!error)
        count_live(heap, size);
    return (int)heap_unlock(heap, locked, error);
}

/* What most calls ask for, a size that was freed lately, is had without a lock and without calling anything: a function
 * that calls nothing saves no registers, and saving them costs as much as all else. */
int mmk_heap_alloc(mmk_heap *heap, size_t size, size_t align, bool zero, void **bytes)
{
    if (is_all_ours(heap) && !zero && align == MMK_HEAP_ALIGNMENT && size - 1 < MMK_HEAP_LARGE - 1) {
        uint32_t units = units_for(size);
        block *head = unpark(heap, units, MMK_HEAP_ALIGNMENT, slack_for(size, units), true);
        if (__builtin_expect(head != NULL, true)) {
            open_bytes(heap, head);
            count_live(heap, size);
            *bytes = bytes_of(head);
            return 0;
        }
    }
    return alloc_locked(heap, size, align, zero, bytes);
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
    words copy = words_of_any(bytes);
    if (!fits(heap, copy, offset_of(heap, *head))) {
        bool is_wiped = copy.sizes == 0 && copy.rest == 0;
        return is_wiped ? -MMK_ENOTBLOCK
                        : heap_damaged(heap, *head, "the head of a block is smashed, or no block was ever here");
    }
    return state_of(copy) == LIVE ? 0 : -MMK_ENOTBLOCK;
}

static MMK_MUST_CHECK int free_found(mmk_heap *heap, void *bytes)
{
    block *head;
    large_block *large;
    int error = look_up(heap, bytes, &head, &large);
    if (error)
        return error;
    size_t size = head ? asked_of(head) : large->size;
    error = head ? blocks_give(heap, head) : large_free(heap, large);
    if (!error)
        count_freed(heap, size);
    return error;
}

__attribute__((noinline)) static int free_locked(mmk_heap *heap, void *bytes)
{
    int locked = heap_lock(heap);
    if (locked < 0)
        return locked;
    int error = -MMK_ECLOSED;
    if (heap->open)
        error = heap->guard ? guard_free(heap, bytes) : free_found(heap, bytes);
    return (int)heap_unlock(heap, locked, error);
}

/* As mmk_heap_alloc: a live block that is as it should be, and has room to wait. */
int mmk_heap_free(mmk_heap *heap, void *bytes)
{
    block *head = head_of(bytes);
    if (is_all_ours(heap) && (uintptr_t)bytes % UNIT == 0 && is_in_newest_slice(heap, head)) {
        words both = words_of_any(bytes);
        if (__builtin_expect(park(heap, head, both, true), true)) {
            count_freed(heap, asked_of_words(both));
            return 0;
        }
    }
    return free_locked(heap, bytes);
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
    size_t slack = slack_for(size, units);
    ASAN_UNPOISON_MEMORY_REGION(bytes_of(head), room_of(head));
    int error = units > head->units ? source_back(heap, head + units + LEAST_UNITS) : 0;
    if (!error)
        error = blocks_fit(heap, head, units, slack);
    open_bytes(heap, head);
    spend_fresh(heap, head);
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
    return (int)heap_unlock(heap, locked, error);
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
        words copy = words_of_any(bytes);
        if (state_of(copy) == LIVE && fits(heap, copy, offset_of(heap, head_of(bytes))))
            answer = (ssize_t)asked_of_words(copy);
    } else if (!slice) {
        const large_block *large = large_find(heap, bytes);
        answer = large ? (ssize_t)large->size : answer;
    }
    return heap_unlock(heap, locked, answer);
}

int mmk_heap_trim(mmk_heap *heap)
{
    int locked = heap_lock(heap);
    if (__builtin_expect(locked < 0, false))
        return locked;
    int error = heap->open ? source_trim(heap) : -MMK_ECLOSED;
    return (int)heap_unlock(heap, locked, error);
}
