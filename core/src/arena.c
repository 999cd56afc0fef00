/* Allocating by moving a pointer. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include <mmkit/arena.h>
#include <mmkit/resize.h>

enum {
    FIRST_STEP = 64 << 10,   /* bytes to start with */
    LONGEST_STEP = 64 << 20, /* an arena doubles, but takes no more than this beyond what it needs */
};

static MMK_MUST_CHECK int map_own(mmk_arena *arena, size_t limit)
{
    if (limit == 0)
        return -EINVAL;
    size_t page = mmk_page_size();
    if (limit > PTRDIFF_MAX - page)
        return -ENOMEM;
    mmk_request request = {.length = limit < FIRST_STEP ? limit : FIRST_STEP,
                           .reserve = mmk_round_up(limit, page),
                           .prot = PROT_READ | PROT_WRITE,
                           .flags = MAP_PRIVATE | MAP_ANONYMOUS,
                           .fd = -1};
    int error = mmk_region_map(&arena->own, &request);
    if (error)
        return error;
    arena->own.exposed = true;
    arena->region = &arena->own;
    arena->was_zeros = true;
    return 0;
}

int mmk_arena_open(mmk_arena *arena, mmk_region *region, size_t offset, size_t limit)
{
    memset(arena, 0, sizeof *arena);
    if (!region) {
        int error = map_own(arena, limit);
        if (error)
            return error;
    } else {
        if (mmk_region_is_closed(region))
            return -MMK_ECLOSED;
        size_t length = atomic_load(&region->asked);
        if (offset >= length)
            return -EINVAL;
        int error = mmk_view_settle(region, &arena->view, offset, length - offset, "an arena", false);
        if (error)
            return error;
        region->exposed = true;
        arena->region = region;
        arena->start = offset;
    }
    arena->base = arena->region->base;
    arena->used = arena->touched = arena->start;
    return 0;
}

int mmk_arena_close(mmk_arena *arena)
{
    if (!arena->base)
        return -MMK_ECLOSED;
    int error = 0;
    if (arena->region == &arena->own)
        error = mmk_region_close(&arena->own);
    else
        mmk_view_close(arena->region, &arena->view);
    if (!error)
        arena->base = NULL;
    return error;
}

void mmk_arena_dispose(mmk_arena *arena)
{
    if (arena->region == &arena->own)
        mmk_region_dispose(&arena->own);
    else if (arena->base)
        mmk_view_close(arena->region, &arena->view);
    arena->base = NULL;
    arena->region = NULL;
}

/* Have `end` bytes: twice as many as there are, or no more than it takes. */
static MMK_MUST_CHECK int grow(mmk_arena *arena, size_t end)
{
    if (arena->region != &arena->own || end > arena->own.reserved)
        return -ENOMEM;
    size_t length = mmk_region_length(&arena->own);
    size_t step = length < LONGEST_STEP ? length : LONGEST_STEP;
    size_t generous = length + step > end ? length + step : end;
    if (generous > arena->own.reserved)
        generous = arena->own.reserved;
    mmk_range vacated;
    int error = mmk_region_resize(&arena->own, generous, &vacated);
    if (error && generous > end)
        error = mmk_region_resize(&arena->own, end, &vacated);
    return error ? -ENOMEM : 0;
}

int mmk_arena_alloc(mmk_arena *arena, size_t size, size_t align, bool zero, char **block)
{
    if (!arena->base)
        return -MMK_ECLOSED;
    if (size == 0 || align == 0 || align & (align - 1))
        return -EINVAL;
    /* By address: the base is a page's, and align may be more. */
    uintptr_t base = (uintptr_t)arena->base, start = base + arena->used, end;
    if (start > UINTPTR_MAX - (align - 1))
        return -ENOMEM;
    start = mmk_round_up(start, align);
    if (__builtin_add_overflow(start, size, &end))
        return -ENOMEM;
    end -= base;
    if (end > mmk_arena_capacity(arena)) {
        int error = grow(arena, end);
        if (error)
            return error;
    }
    *block = arena->base + (start - base);
    size_t first = start - base;
    if (zero) {
        size_t dirty = arena->was_zeros ? arena->touched : end;
        if (first < dirty)
            memset(*block, 0, (dirty < end ? dirty : end) - first);
    }
    arena->used = end;
    arena->touched = end > arena->touched ? end : arena->touched;
    return 0;
}

int mmk_arena_rewind(mmk_arena *arena, size_t mark)
{
    if (!arena->base)
        return -MMK_ECLOSED;
    if (mark < arena->start || mark > arena->used)
        return -EINVAL;
    arena->used = mark;
    return 0;
}

size_t mmk_arena_capacity(const mmk_arena *arena)
{
    return arena->base ? atomic_load_explicit(&((mmk_arena *)arena)->region->asked, memory_order_relaxed) : 0;
}
