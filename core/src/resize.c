#include <mmkit/resize.h>

#include <sys/stat.h>
#include <unistd.h>

#include <mmkit/registry.h>
#include <mmkit/sys.h>

#include "region_internal.h"

enum {
    FIXED_NOREPLACE = 0x100000, /* MAP_FIXED_NOREPLACE, Linux 4.17 */
    DONTUNMAP = 4,              /* MREMAP_DONTUNMAP: 5.7 for private anonymous, 5.13 for other memory */
};

static bool is_private(const mmk_region *region)
{
    return (region->flags & MAP_TYPE) == MAP_PRIVATE;
}

static bool can_grow(const mmk_region *region)
{
    return region->fd >= 0 ? !is_private(region) : is_private(region);
}

/* Hold address space at exactly this place, unless something is there. */
static int hold_free(char *address, size_t length)
{
    intptr_t got = mmk_sys_mmap(address, length, PROT_NONE, HOLD_FLAGS | FIXED_NOREPLACE, -1, 0);
    if (got < 0)
        return (int)got;
    if (got == (intptr_t)address)
        return 0;
    /* Before 4.17 the flag is unknown and the address only a hint. */
    mmk_sys_munmap((void *)got, length);
    return -EEXIST;
}

/* Make the pages [from, to) of the reservation usable. */
static int commit(const mmk_region *region, size_t from, size_t to)
{
    if (from == to)
        return 0;
    if (region->moved)
        return mmk_sys_mprotect(region->base + from, to - from, region->prot);
    intptr_t got = mmk_sys_mmap(region->base + from, to - from, region->prot, region->flags | MAP_FIXED, region->fd,
                                (off_t)(region->file_offset + from));
    return got < 0 ? (int)got : 0;
}

/* Give the pages [from, to) back and keep their addresses. */
static int decommit(const mmk_region *region, size_t from, size_t to)
{
    if (from == to)
        return 0;
    if (!region->moved)
        return (int)hold(region->base + from, to - from);
    (void)mmk_sys_munlock(region->base + from, to - from);
    int error = mmk_sys_mprotect(region->base + from, to - from, PROT_NONE);
    return error ? error : mmk_sys_madvise(region->base + from, to - from, MMK_MADV_DONTNEED);
}

/* Grow the reservation where it stands. */
static int extend_reservation(mmk_region *region, size_t length)
{
    char *end = region->base + region->reserved;
    if (region->moved || region->outer.base + region->outer.length != end)
        return -EEXIST; /* what is added would be an area of its own; or the guard stands there */
    size_t extra = length - region->reserved;
    int error = hold_free(end, extra);
    if (error)
        return error;
    mmk_registry_move(region, (mmk_range){region->outer.base, region->outer.length + extra});
    region->reserved = length;
    return 0;
}

/* A new home for a region: its outer range, and where in it the data goes. */
typedef struct new_home {
    mmk_range outer;
    char *base;
    size_t reserved;
} new_home;

/* With room to grow if there is that much, else just enough. */
static int reserve_elsewhere(const mmk_region *region, size_t length, new_home *home)
{
    size_t guard = (size_t)(region->base - region->outer.base);
    home->reserved = length * 2;
    int error = region_reserve(home->reserved, guard, region->granule, &home->outer, &home->base);
    if (error == -ENOMEM) {
        home->reserved = length;
        error = region_reserve(home->reserved, guard, region->granule, &home->outer, &home->base);
    }
    return error;
}

/* Move an area to its new home and make it `grown` bytes long. Neither call takes more than one area
 * (a fixed move to the same length would, since 6.17, and may fail half-way: so it is never the first).
 * The old addresses are held afterwards. */
static int move_area(char *from, size_t length, char *to, size_t grown)
{
    intptr_t aside = mmk_sys_mremap(from, length, length, MREMAP_MAYMOVE | DONTUNMAP, NULL);
    if (aside >= 0) {
        intptr_t moved = mmk_sys_mremap((char *)aside, length, grown, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        if (moved < 0)
            (void)mmk_sys_mremap((char *)aside, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, from);
        else
            (void)hold(from, length);
        return moved < 0 ? (int)moved : 0;
    }
    if (aside != -EINVAL)
        return (int)aside;
    /* Kernels before 5.7 (5.13 for shared memory), and huge pages: the old addresses are free for a moment. */
    intptr_t moved = mmk_sys_mremap(from, length, grown, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    if (moved >= 0)
        (void)hold_free(from, length);
    return moved < 0 ? (int)moved : 0;
}

/* Private memory remembers the addresses it was first used at, and only what continues them joins the same
 * area. So the whole new reservation comes from growing the area itself, and its tail is made inaccessible:
 * a later growth is then still one area, which can move again. */
static int move_private(const mmk_region *region, const new_home *home, size_t length)
{
    int error = move_area(region->base, mmk_region_length(region), home->base, home->reserved);
    /* If this is refused the tail is merely accessible: it is nobody else's. */
    if (!error && home->reserved > length)
        (void)mmk_sys_mprotect(home->base + length, home->reserved - length, PROT_NONE);
    return error;
}

static int move_shared(const mmk_region *region, const new_home *home, size_t length)
{
    size_t had = mmk_region_length(region);
    intptr_t got = mmk_sys_mmap(home->base + had, length - had, region->prot, region->flags | MAP_FIXED, region->fd,
                                (off_t)(region->file_offset + had));
    return got < 0 ? (int)got : move_area(region->base, had, home->base, had);
}

/* mremap(2) moves one area. Parts that differ are areas of their own; and a move counts locked pages twice,
 * and never takes that back (seen in 6.18). What advice did to parts only the kernel knows: it says EFAULT. */
static bool can_move(const mmk_region *region)
{
    return !region->protections.count && !region->covers && !region->guards.count && !region->locks.count;
}

static int grow_by_moving(mmk_region *region, size_t length, mmk_range *vacated)
{
    if (!can_move(region))
        return -MMK_EUNSUPPORTED;
    int error = region->views ? -MMK_EPINNED : region_exclude(region);
    if (error)
        return error;
    new_home home;
    error = reserve_elsewhere(region, length, &home);
    if (!error) {
        error = is_private(region) ? move_private(region, &home, length) : move_shared(region, &home, length);
        if (error) {
            mmk_sys_munmap(home.outer.base, home.outer.length);
        } else {
            *vacated = region->outer;
            region->base = home.base;
            region->reserved = home.reserved;
            region->moved = is_private(region);
            mmk_registry_move(region, home.outer);
        }
    }
    region_admit(region);
    return error == -EFAULT ? -MMK_EUNSUPPORTED : error;
}

static int grow_mapping(mmk_region *region, size_t length, mmk_range *vacated)
{
    int error = length > region->reserved ? extend_reservation(region, length) : 0;
    if (!error)
        return commit(region, mmk_region_length(region), length);
    return grow_by_moving(region, length, vacated);
}

/* The file's size, and whether the region reaches its end. */
static int file_reach(const mmk_region *region, uint64_t *size, bool *reaches)
{
    struct stat status;
    if (fstat(region->fd, &status) < 0)
        return -errno;
    *size = (uint64_t)status.st_size;
    *reaches = *size <= region->file_offset + region->asked;
    return 0;
}

static int set_file_size(const mmk_region *region, uint64_t size)
{
    return ftruncate(region->fd, (off_t)size) < 0 ? -errno : 0;
}

static int grow(mmk_region *region, size_t asked, size_t length, mmk_range *vacated)
{
    uint64_t size = 0, needed = region->file_offset + asked;
    bool reaches = false;
    if (!can_grow(region))
        return -MMK_EUNSUPPORTED;
    int error = region->fd >= 0 ? file_reach(region, &size, &reaches) : 0;
    bool longer = !error && region->fd >= 0 && size < needed;
    if (longer)
        error = set_file_size(region, needed);
    if (!error && length > mmk_region_length(region))
        error = grow_mapping(region, length, vacated);
    if (error && longer)
        (void)set_file_size(region, size);
    return error;
}

/* What is cut off within the last page must not come back when the region grows again. */
static int zero_tail_of_last_page(const mmk_region *region, size_t asked, size_t length)
{
    int error = region_zero(region, asked, length - asked);
    return error == -EACCES ? 0 : error;
}

static int shrink_mapping(mmk_region *region, size_t asked, size_t length)
{
    size_t committed = mmk_region_length(region);
    uint64_t size = 0;
    bool reaches = false;
    int error = region->fd >= 0 ? file_reach(region, &size, &reaches) : 0;
    if (!error && reaches)
        error = set_file_size(region, region->file_offset + asked);
    if (!error)
        error = decommit(region, length, committed);
    if (error && reaches)
        (void)set_file_size(region, size);
    return error;
}

static int shrink(mmk_region *region, size_t asked, size_t length)
{
    if (region->fd >= 0 && is_private(region))
        return -MMK_EUNSUPPORTED;
    if (region_is_viewed(region, asked, region->asked - asked, false))
        return -MMK_EPINNED;
    int error = region_exclude(region);
    if (error)
        return error;
    error = shrink_mapping(region, asked, length);
    if (!error && region->fd < 0)
        error = zero_tail_of_last_page(region, asked, length);
    if (!error) {
        size_t pages = length / region->granule;
        mmk_runs_cut(&region->protections, pages);
        mmk_runs_cut(&region->locks, pages);
        mmk_runs_cut(&region->guards, pages);
    }
    region_admit(region);
    return error;
}

int mmk_region_resize(mmk_region *region, size_t asked, mmk_range *vacated)
{
    *vacated = (mmk_range){0};
    if (asked == 0 || asked > SIZE_MAX / 4)
        return asked == 0 ? -EINVAL : -ENOMEM;
    int error = region_begin_change(region);
    if (error)
        return error;
    size_t length = mmk_round_up(asked, region->granule);
    if (asked > region->asked)
        error = grow(region, asked, length, vacated);
    else if (asked < region->asked)
        error = shrink(region, asked, length);
    if (!error) {
        region->asked = asked;
        atomic_store_explicit(&region->length, length, memory_order_relaxed);
    }
    region_end_change(region);
    return error;
}
