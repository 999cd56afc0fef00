#include <mmkit/resize.h>

#include <sys/stat.h>
#include <unistd.h>

#include <mmkit/registry.h>
#include <mmkit/sys.h>

#include "region_internal.h"

enum { DONTUNMAP = 4 }; /* MREMAP_DONTUNMAP: 5.7 for private anonymous, 5.13 for other memory */

static bool is_private(const mmk_region *region)
{
    return (region->flags & MAP_TYPE) == MAP_PRIVATE;
}

static bool can_grow(const mmk_region *region)
{
    return region->fd >= 0 ? !is_private(region) : is_private(region);
}

/* Map the pages [from, to) of the region, inside its reservation. */
static int commit(const mmk_region *region, char *base, size_t from, size_t to)
{
    if (from == to)
        return 0;
    intptr_t got = mmk_sys_mmap(base + from, to - from, region->prot, region->flags | MAP_FIXED, region->fd,
                                (off_t)(region->file_offset + from));
    return got < 0 ? (int)got : 0;
}

/* Grow the reservation where it stands. */
static int extend_reservation(mmk_region *region, size_t length)
{
    char *end = region->base + region->reserved;
    if (region->outer.base + region->outer.length != end)
        return -EEXIST; /* the guard stands there */
    size_t extra = length - region->reserved;
    int error = region_hold_free(end, extra);
    if (error)
        return error;
    mmk_registry_move(region, (mmk_range){region->outer.base, region->outer.length + extra});
    region->reserved = length;
    return 0;
}

static void take_extension_back(mmk_region *region, size_t reserved)
{
    size_t extra = region->reserved - reserved;
    mmk_registry_move(region, (mmk_range){region->outer.base, region->outer.length - extra});
    mmk_sys_munmap(region->base + reserved, extra);
    region->reserved = reserved;
}

/* Address space for the region elsewhere: with room to grow if there is that much, else just enough. */
static int reserve_elsewhere(const mmk_region *region, size_t length, mmk_range *outer, char **base, size_t *reserved)
{
    size_t guard = (size_t)(region->base - region->outer.base);
    *reserved = length * 2;
    int error = region_reserve(*reserved, guard, region->granule, outer, base);
    if (error == -ENOMEM) {
        *reserved = length;
        error = region_reserve(*reserved, guard, region->granule, outer, base);
    }
    return error;
}

static intptr_t move_fixed(char *from, size_t length, char *to)
{
    return mmk_sys_mremap(from, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}

/* The old addresses are free for a moment; *lost if somebody else took them in it. */
static int move_at_once(char *from, size_t length, char *to, bool *lost)
{
    intptr_t moved = move_fixed(from, length, to);
    if (moved >= 0 && region_hold_free(from, length) < 0)
        *lost = true;
    return moved < 0 ? (int)moved : 0;
}

/* Since 6.17 a fixed move may take several areas, and fail half-way. So the pages first go wherever the
 * kernel likes, which it does for one area only; and MREMAP_DONTUNMAP keeps the old addresses taken. */
static int move_in_two_steps(char *from, size_t length, char *to)
{
    intptr_t aside = mmk_sys_mremap(from, length, length, MREMAP_MAYMOVE | DONTUNMAP, NULL);
    if (aside < 0)
        return (int)aside;
    intptr_t moved = move_fixed((char *)aside, length, to);
    if (moved < 0)
        (void)move_fixed((char *)aside, length, from);
    else
        (void)hold(from, length);
    return moved < 0 ? (int)moved : 0;
}

/* Move pages; their old addresses are held afterwards, unless *lost. Parts that differ in protection or advice
 * are areas of their own, and so is what was written before a move and what was added since: on EFAULT (more
 * than one area) halve until each part is one. */
static int move_areas(const mmk_region *region, char *from, size_t length, char *to, bool *lost)
{
    int error = move_in_two_steps(from, length, to);
    /* EINVAL: kernels before 5.7 (5.13 for shared memory), and huge pages. */
    if (error == -EINVAL)
        error = move_at_once(from, length, to, lost);
    if (error != -EFAULT || length == region->granule)
        return error;
    size_t half = mmk_round_up(length / 2, region->granule);
    error = move_areas(region, from, half, to, lost);
    if (error)
        return error;
    error = move_areas(region, from + half, length - half, to + half, lost);
    if (error)
        (void)move_areas(region, to, half, from, lost);
    return error;
}

/* Where somebody else has moved in meanwhile: give back only what is left around it. */
static void unmap_around(const mmk_region *region)
{
    char *end = region->base + mmk_region_length(region), *outer_end = region->outer.base + region->outer.length;
    if (region->base > region->outer.base)
        mmk_sys_munmap(region->outer.base, (size_t)(region->base - region->outer.base));
    if (outer_end > end)
        mmk_sys_munmap(end, (size_t)(outer_end - end));
}

static int grow_by_moving(mmk_region *region, size_t length, mmk_range *vacated)
{
    mmk_range outer;
    char *base;
    size_t reserved;
    bool lost = false;
    /* A move with DONTUNMAP counts locked pages twice, and never takes that back (seen in 6.18). */
    if (region->locks.count)
        return -MMK_EUNSUPPORTED;
    int error = region->views || atomic_load(&region->hook) ? -MMK_EPINNED : region_exclude(region);
    if (error)
        return error;
    error = reserve_elsewhere(region, length, &outer, &base, &reserved);
    if (!error) {
        error = commit(region, base, mmk_region_length(region), length);
        if (!error)
            error = move_areas(region, region->base, mmk_region_length(region), base, &lost);
        if (error) {
            mmk_sys_munmap(outer.base, outer.length);
        } else {
            *vacated = lost ? (mmk_range){0} : region->outer;
            if (lost)
                unmap_around(region);
            region->base = base;
            region->reserved = reserved;
            mmk_registry_move(region, outer);
        }
    }
    region_admit(region);
    return error;
}

static int grow_mapping(mmk_region *region, size_t length, mmk_range *vacated)
{
    size_t reserved = region->reserved;
    if (length > reserved && extend_reservation(region, length) < 0)
        return grow_by_moving(region, length, vacated);
    int error = commit(region, region->base, mmk_region_length(region), length);
    if (error && region->reserved > reserved)
        take_extension_back(region, reserved);
    return error;
}

/* Where in the file a region of this many bytes ends: files of huge pages have whole ones. */
static uint64_t stored_end(const mmk_region *region, size_t asked)
{
    bool huge = region->granule > mmk_page_size();
    return region->file_offset + (huge ? mmk_round_up(asked, region->granule) : asked);
}

/* The file's size, and whether the region reaches its end. */
static int file_reach(const mmk_region *region, uint64_t *size, bool *reaches)
{
    struct stat status;
    if (fstat(region->fd, &status) < 0)
        return -errno;
    *size = (uint64_t)status.st_size;
    *reaches = *size <= stored_end(region, region->asked);
    return 0;
}

static int set_file_size(const mmk_region *region, uint64_t size)
{
    return ftruncate(region->fd, (off_t)size) < 0 ? -errno : 0;
}

/* What was just mapped behind the region's end, and nobody has seen yet. */
static void take_growth_back(mmk_region *region, size_t length)
{
    size_t committed = mmk_region_length(region);
    if (length > committed)
        (void)hold(region->base + committed, length - committed);
}

static int grow(mmk_region *region, size_t asked, size_t length, bool with_file, mmk_range *vacated)
{
    uint64_t size = 0, needed = stored_end(region, asked);
    bool reaches = false;
    if (!can_grow(region))
        return -MMK_EUNSUPPORTED;
    int error = region->fd >= 0 ? file_reach(region, &size, &reaches) : 0;
    bool longer = !error && region->fd >= 0 && size < needed;
    if (longer)
        error = set_file_size(region, needed);
    if (!error && length > mmk_region_length(region))
        error = grow_mapping(region, length, vacated);
    /* What is cut off cannot be brought back: last. */
    if (!error && with_file && size > needed) {
        error = set_file_size(region, needed);
        if (error)
            take_growth_back(region, length);
    }
    if (error && longer)
        (void)set_file_size(region, size);
    return error;
}

/* What is cut off within the last page must not come back when the region grows again. */
static int zero_tail_of_last_page(const mmk_region *region, size_t asked, size_t length)
{
    mmk_fault fault;
    char *page = region->base + length - region->granule;
    /* A page that is guarded has no contents; nor has one that cannot be had. */
    if (asked == length || region_is_guarded(region, asked, length - asked) ||
        region_zero(region, asked, length - asked, &fault) == 0 || fault.reason != MMK_FAULT_PROTECTION)
        return 0;
    int error = mmk_sys_mprotect(page, region->granule, PROT_READ | PROT_WRITE);
    if (error)
        return error;
    (void)region_zero(region, asked, length - asked, &fault);
    return region_enforce(region, length - region->granule, region->granule);
}

static int shrink_mapping(mmk_region *region, size_t asked, size_t length, bool with_file)
{
    size_t committed = mmk_region_length(region);
    uint64_t size = 0;
    bool reaches = false;
    int error = region->fd >= 0 ? file_reach(region, &size, &reaches) : 0;
    if (error)
        return error;
    bool cuts = region->fd >= 0 && (reaches || with_file);
    if (!cuts)
        return length < committed ? (int)hold(region->base + length, committed - length) : 0;
    /* What is truncated cannot be taken back: first everything else that may be refused. */
    if (length < committed)
        error = mmk_sys_mprotect(region->base + length, committed - length, PROT_NONE);
    if (!error)
        error = set_file_size(region, stored_end(region, asked));
    if (length < committed) {
        if (error)
            (void)region_enforce(region, length, committed - length);
        else
            (void)hold(region->base + length, committed - length);
    }
    return error;
}

static void cut_covers(mmk_region *region, size_t pages)
{
    for (mmk_cover *cover = region->covers; cover; cover = cover->below) {
        cover->end = cover->end < pages ? cover->end : pages;
        cover->first = cover->first < cover->end ? cover->first : cover->end;
    }
}

static void set_length(mmk_region *region, size_t asked, size_t length)
{
    region->asked = asked;
    atomic_store_explicit(&region->length, length, memory_order_relaxed);
}

static int shrink(mmk_region *region, size_t asked, size_t length, bool with_file)
{
    if (region->fd >= 0 && is_private(region))
        return -MMK_EUNSUPPORTED;
    if (atomic_load(&region->snapshot) || region_is_viewed(region, asked, mmk_region_length(region) - asked, false))
        return -MMK_EPINNED;
    int error = region_exclude(region);
    if (error)
        return error;
    error = shrink_mapping(region, asked, length, with_file);
    if (!error && region->fd < 0)
        error = zero_tail_of_last_page(region, asked, length);
    if (!error) {
        size_t pages = length / region->granule;
        mmk_runs_cut(&region->protections, pages);
        mmk_runs_cut(&region->locks, pages);
        mmk_runs_cut(&region->guards, pages);
        cut_covers(region, pages);
        /* Before anybody is let in again, who would still believe that the pages are there. */
        set_length(region, asked, length);
    }
    region_admit(region);
    return error;
}

static int resize(mmk_region *region, size_t asked, bool with_file, mmk_range *vacated)
{
    *vacated = (mmk_range){0};
    if (asked == 0 || asked > SIZE_MAX / 4)
        return asked == 0 ? -EINVAL : -ENOMEM;
    int error = region_begin_change(region);
    if (error)
        return error;
    size_t length = mmk_round_up(asked, region->granule);
    if (asked > region->asked) {
        error = grow(region, asked, length, with_file, vacated);
        if (!error)
            set_length(region, asked, length);
    } else if (asked < region->asked) {
        error = shrink(region, asked, length, with_file);
    } else if (with_file && region->fd >= 0) {
        error = is_private(region) ? -MMK_EUNSUPPORTED : set_file_size(region, stored_end(region, asked));
    }
    region_end_change(region);
    return error;
}

int mmk_region_resize(mmk_region *region, size_t asked, mmk_range *vacated)
{
    return resize(region, asked, false, vacated);
}

int mmk_region_resize_with_file(mmk_region *region, size_t asked, mmk_range *vacated)
{
    return resize(region, asked, true, vacated);
}
