/* Guarded blocks: slots of pages, given, taken away, and given again later. heap_guard.h draws them. */
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <mmkit/fault.h>
#include <mmkit/resize.h>

#include "heap_guard.h"

enum {
    AREA_ROOM = 1 << 20,   /* pages of address space of the first area; each further one has twice as much */
    LEAST_PAGES = 1 << 10, /* to commit at once */
    USUAL_AREAS = 65530,   /* vm.max_map_count where nobody has changed it */
};

/* ---- guards ---- */

static size_t most_areas(void)
{
    char text[24] = {0};
    int fd = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0)
        close(fd);
    size_t most = 0;
    for (const char *digit = text; got > 0 && '0' <= *digit && *digit <= '9'; digit++)
        most = most * 10 + (size_t)(*digit - '0');
    return most ? most : USUAL_AREAS;
}

static int guard_pages(heap_guard *guard, char *from, size_t length)
{
    int error = guard->by_mprotect ? -EINVAL : mmk_sys_madvise(from, length, MMK_MADV_GUARD_INSTALL);
    if (!error)
        return 0;
    /* Locked pages keep their contents, then. */
    guard->keeps_contents = true;
    if (error != -EINVAL)
        return error;
    /* Not known before 6.13, and refused of locked pages (mlockall). */
    if (!guard->by_mprotect)
        guard->most_live = most_areas() / 8 * 3;
    guard->by_mprotect = true;
    error = mmk_sys_mprotect(from, length, PROT_NONE);
    mmk_sys_madvise(from, length, MMK_MADV_DONTNEED);
    return error;
}

/* An area may have been guarded first in one way, then in the other. */
static int unguard_pages(const heap_guard *guard, char *from, size_t length)
{
    int error = guard->by_mprotect ? mmk_sys_mprotect(from, length, PROT_READ | PROT_WRITE) : 0;
    int refused = error ? error : mmk_sys_madvise(from, length, MMK_MADV_GUARD_REMOVE);
    return guard->by_mprotect ? error : refused;
}

/* ---- areas ---- */

static MMK_MUST_CHECK int map_area(mmk_heap *heap, size_t pages)
{
    heap_guard *guard = heap->guard;
    if (guard->area_count == GUARD_AREAS)
        return -ENOMEM;
    guard_area *area = &guard->areas[guard->area_count];
    size_t page = mmk_page_size(), room = (size_t)AREA_ROOM << (guard->area_count < 10 ? guard->area_count : 10);
    room = room < pages ? pages : room;
    mmk_request request = {.length = page,
                           .reserve = room * page,
                           .prot = PROT_READ | PROT_WRITE,
                           .flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                           .fd = -1};
    int error = mmk_region_map(&area->region, &request);
    /* RLIMIT_AS */
    while (error == -ENOMEM && request.reserve / 2 >= pages * page) {
        request.reserve /= 2;
        error = mmk_region_map(&area->region, &request);
    }
    if (error)
        return -ENOMEM;
    request.reserve = area->region.reserved / page * sizeof(guard_record);
    error = mmk_region_map(&area->records, &request);
    if (!error)
        error = guard_pages(guard, area->region.base, page);
    if (!error)
        error = mmk_region_set_fault_hook(&area->region, guard_tell_of_fault);
    if (error) {
        mmk_region_dispose(&area->region);
        mmk_region_dispose(&area->records);
        return -ENOMEM;
    }
    area->region.exposed = true;
    /* The page in front of the first slot stays a guard. */
    area->used = 1;
    heap->control->mapped_bytes += page;
    guard->area_count++;
    return 0;
}

static MMK_MUST_CHECK int lengthen(mmk_heap *heap, guard_area *area, size_t pages)
{
    size_t page = mmk_page_size(), before = mmk_region_length(&area->region), after = before + pages * page;
    if (after > area->region.reserved || !is_within_limit(heap, pages * page))
        return -ENOMEM;
    mmk_range vacated;
    size_t records = after / page * sizeof(guard_record);
    if (records > mmk_region_length(&area->records) && mmk_region_resize(&area->records, records, &vacated))
        return -ENOMEM;
    if (mmk_region_resize(&area->region, after, &vacated))
        return -ENOMEM;
    heap->control->mapped_bytes += pages * page;
    if (guard_pages(heap->guard, area->region.base + before, pages * page) == 0)
        return 0;
    /* Never used, then. */
    area->used = after / page;
    return -ENOMEM;
}

/* Have so many pages ready behind what was given of the newest area. */
static MMK_MUST_CHECK int grow(mmk_heap *heap, size_t pages)
{
    heap_guard *guard = heap->guard;
    for (int tries = 0; tries < 2; tries++) {
        guard_area *area = guard->area_count ? &guard->areas[guard->area_count - 1] : NULL;
        if (area) {
            size_t there = mmk_region_length(&area->region) / mmk_page_size() - area->used;
            size_t step = there + area->used > LEAST_PAGES * 8 ? (there + area->used) / 8 : LEAST_PAGES;
            if (there >= pages || (step > pages - there && lengthen(heap, area, step) == 0) ||
                lengthen(heap, area, pages - there) == 0)
                return 0;
        }
        int error = tries ? -ENOMEM : map_area(heap, pages + 1);
        if (error)
            return error;
    }
    return -ENOMEM;
}

/* ---- slots ---- */

/* The class of slots that have this many pages, made as many as all of the class have. */
static unsigned class_of(size_t *pages)
{
    if (*pages <= 16)
        return (unsigned)*pages;
    unsigned log = 63 - (unsigned)__builtin_clzll(*pages - 1);
    size_t eighth = (size_t)1 << (log - 3);
    *pages = mmk_round_up(*pages, eighth);
    return 16 + (log - 4) * 8 + (unsigned)((*pages - ((size_t)1 << log)) / eighth);
}

static void release_oldest(heap_guard *guard)
{
    guard_record *oldest = guard->first;
    size_t pages = oldest->pages;
    guard->first = oldest->next;
    guard->waiting -= pages;
    guard_record **slots = &guard->slots[class_of(&pages)];
    oldest->next = *slots;
    *slots = oldest;
}

static void quarantine(heap_guard *guard, guard_record *record)
{
    record->next = NULL;
    if (guard->first)
        guard->last->next = record;
    else
        guard->first = record;
    guard->last = record;
    guard->waiting += record->pages;
    while (guard->waiting > GUARD_QUARANTINE && guard->first != record)
        release_oldest(guard);
}

static bool take_free_slot(heap_guard *guard, unsigned class, guard_record *slot)
{
    guard_record *old = guard->slots[class];
    if (!old)
        return false;
    guard->slots[class] = old->next;
    *slot = *old;
    *old = (guard_record){0};
    return true;
}

/* A slot nobody has: the record says where it is. */
static MMK_MUST_CHECK int take_slot(mmk_heap *heap, size_t pages, guard_record *slot)
{
    heap_guard *guard = heap->guard;
    unsigned class = class_of(&pages);
    if (take_free_slot(guard, class, slot))
        return 0;
    if (grow(heap, pages)) {
        /* Rather see less of what is done to freed blocks than have no memory. */
        while (guard->first)
            release_oldest(guard);
        return take_free_slot(guard, class, slot) ? 0 : -ENOMEM;
    }
    guard_area *area = &guard->areas[guard->area_count - 1];
    *slot = (guard_record){.area = area, .slot = (uint32_t)area->used, .pages = (uint32_t)pages};
    area->used += pages;
    return 0;
}

static void put_back(heap_guard *guard, guard_record *slot)
{
    size_t pages = slot->pages;
    guard_record **slots = &guard->slots[class_of(&pages)];
    slot->next = *slots;
    *slots = slot;
}

/* ---- canaries ---- */

static void fill_canaries(const guard_record *record)
{
    char *data = guard_data_of(record), *behind = record->start + record->size;
    memset(data, CANARY, (size_t)(record->start - data));
    memset(behind, CANARY, (size_t)(guard_end_of(record) - behind));
}

static const char *first_other(const char *from, const char *to)
{
    /* Bytes that are the same as the ones behind them are all the same as the first. */
    if (from < to && (unsigned char)*from == CANARY && memcmp(from, from + 1, (size_t)(to - from) - 1) == 0)
        return NULL;
    while (from < to && (unsigned char)*from == CANARY)
        from++;
    return from < to ? from : NULL;
}

/* The byte behind the block, or else in front of it, that is not as it was; NULL: all are. */
static const char *smashed_canary(const guard_record *record)
{
    const char *behind = first_other(record->start + record->size, guard_end_of(record));
    return behind ? behind : first_other(guard_data_of(record), record->start);
}

/* ---- blocks ---- */

static MMK_MUST_CHECK int find(mmk_heap *heap, const void *bytes, guard_record **record)
{
    guard_area *area = guard_area_of(heap->guard, (uintptr_t)bytes);
    *record = area ? guard_record_at(area, guard_page_of(area, (uintptr_t)bytes)) : NULL;
    return *record && (*record)->state == GUARD_LIVE && (*record)->start == bytes ? 0 : -MMK_ENOTBLOCK;
}

/* Who installs a handler of SIGSEGV later would hide what ours has to say. Its own is called next. */
static void stay_first(heap_guard *guard)
{
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC_COARSE, &now) == 0 &&
        (now.tv_nsec != guard->tick.tv_nsec || now.tv_sec != guard->tick.tv_sec)) {
        guard->tick = now;
        mmk_fault_come_first();
    }
}

int guard_alloc(mmk_heap *heap, size_t size, size_t align, bool zero, void **bytes)
{
    size_t page = mmk_page_size();
    if (size > SIZE_MAX / 8 || align > SIZE_MAX / 8)
        return -ENOMEM;
    size_t reach = mmk_round_up(size, align < page ? align : page);
    size_t data = mmk_round_up(reach, page) / page;
    size_t lead = align > page ? align / page - 1 : 0;
    if (data + lead >= UINT32_MAX / 2)
        return -ENOMEM;
    if (heap->guard->by_mprotect && heap->control->live_blocks >= heap->guard->most_live)
        return -ENOMEM;
    stay_first(heap->guard);
    guard_record slot;
    int error = take_slot(heap, data + lead + 1, &slot);
    if (error)
        return error;
    uintptr_t base = (uintptr_t)slot.area->region.base;
    uintptr_t last = base + (slot.slot + (size_t)slot.pages - 1) * page;
    uintptr_t first = mmk_round_down(last - data * page, align > page ? align : page);
    guard_record *record = guard_record_at(slot.area, (first - base) / page);
    *record = slot;
    record->start = (char *)first + data * page - reach;
    record->size = size;
    record->data = (uint32_t)data;
    record->state = GUARD_LIVE;
    error = unguard_pages(heap->guard, (char *)first, data * page);
    if (error) {
        record->state = GUARD_NONE;
        put_back(heap->guard, record);
        return -ENOMEM;
    }
    if (zero && heap->guard->keeps_contents)
        memset(record->start, 0, size);
    fill_canaries(record);
    *bytes = record->start;
    return 0;
}

int guard_free(mmk_heap *heap, void *bytes)
{
    guard_record *record;
    int error = find(heap, bytes, &record);
    if (error)
        return error;
    const char *smashed = smashed_canary(record);
    if (smashed)
        guard_damaged(record, smashed);
    count_freed(heap, record->size);
    record->state = GUARD_FREED;
    /* Refused at the limit of areas: then the block is not used again, but an access to it is not seen. */
    (void)guard_pages(heap->guard, guard_data_of(record), record->data * mmk_page_size());
    quarantine(heap->guard, record);
    return 0;
}

/* Always elsewhere: a pointer to where the block was is stale, and is found to be. */
int guard_resize(mmk_heap *heap, void **bytes, size_t size, size_t align)
{
    guard_record *record;
    void *moved;
    int error = find(heap, *bytes, &record);
    if (!error)
        error = guard_alloc(heap, size, align, false, &moved);
    if (error)
        return error;
    count_live(heap, size);
    memcpy(moved, *bytes, record->size < size ? record->size : size);
    error = guard_free(heap, *bytes);
    *bytes = moved;
    return error;
}

ssize_t guard_size(mmk_heap *heap, const void *bytes)
{
    guard_record *record;
    int error = find(heap, bytes, &record);
    return error ? error : (ssize_t)record->size;
}

/* ---- all of them ---- */

bool guard_next(const mmk_heap *heap, guard_place *place, mmk_heap_block *found)
{
    const heap_guard *guard = heap->guard;
    for (; guard && place->area < guard->area_count; place->area++, place->page = 0) {
        const guard_area *area = &guard->areas[place->area];
        while (place->page < area->used) {
            const guard_record *record = guard_record_at(area, place->page++);
            if (record->state != GUARD_LIVE)
                continue;
            *found = (mmk_heap_block){.address = (uintptr_t)record->start,
                                      .size = record->size,
                                      .span = record->pages * mmk_page_size(),
                                      .kind = MMK_BLOCK_LIVE};
            return true;
        }
    }
    return false;
}

const char *guard_first_smashed(const mmk_heap *heap, uintptr_t start)
{
    guard_record *record;
    return find((mmk_heap *)heap, (const void *)start, &record) ? NULL : smashed_canary(record);
}

/* ---- life ---- */

size_t guard_room(void)
{
    return sizeof(heap_guard);
}

void guard_close(mmk_heap *heap)
{
    for (unsigned i = 0; i < heap->guard->area_count; i++) {
        (void)!mmk_region_close(&heap->guard->areas[i].region);
        (void)!mmk_region_close(&heap->guard->areas[i].records);
    }
}

void guard_dispose(mmk_heap *heap)
{
    for (unsigned i = 0; i < heap->guard->area_count; i++) {
        mmk_region_dispose(&heap->guard->areas[i].region);
        mmk_region_dispose(&heap->guard->areas[i].records);
    }
    heap->guard = NULL;
}
