#include <mmkit/residency.h>

#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <mmkit/sys.h>

#include "pagemap.h"
#include "region_internal.h"

enum {
    PAGES_A_READ = 1024, /* 8 KiB of pagemap, or 1 KiB of mincore, on the stack */
};

static const uint64_t PAGEMAP_PRESENT = UINT64_C(1) << 63;

static void *page_address(const mmk_region *region, size_t page)
{
    return region->base + page * region->granule;
}

/* Lock each run of pages in [first, end) that nobody has locked yet. On error *failed is where. */
static int lock_unlocked(const mmk_region *region, size_t first, size_t end, size_t *failed)
{
    for (size_t page = first, next; page < end; page = next) {
        if (mmk_runs_at(&region->locks, page, end, 0, &next) > 0)
            continue;
        int error = mmk_sys_mlock(page_address(region, page), (next - page) * region->granule);
        if (error) {
            *failed = next;
            return error;
        }
    }
    return 0;
}

/* Unlock each run of pages in [first, end) whose count is the given one. Returns the first error, but goes on. */
static int unlock_counted(const mmk_region *region, size_t first, size_t end, int count)
{
    int error = 0;
    for (size_t page = first, next; page < end; page = next) {
        if (mmk_runs_at(&region->locks, page, end, 0, &next) != count)
            continue;
        int refused = mmk_sys_munlock(page_address(region, page), (next - page) * region->granule);
        error = error ? error : refused;
    }
    return error;
}

/* Add delta to the count of each page of [first, end), but never go below 0. */
static void add_to_counts(mmk_region *region, size_t first, size_t end, int delta)
{
    for (size_t page = first, next; page < end; page = next) {
        int count = mmk_runs_at(&region->locks, page, end, 0, &next) + delta;
        mmk_runs_set(&region->locks, page, next, count > 0 ? count : 0, 0);
    }
}

/* Adding splits at most the two runs at the ends, and gives each gap in between a run of its own. */
static int reserve_for_adding(mmk_region *region)
{
    return mmk_runs_reserve(&region->locks, region->locks.count + 3);
}

static int lock_pages(mmk_region *region, size_t first, size_t end)
{
    int error = reserve_for_adding(region);
    if (error)
        return error;
    size_t failed = first;
    error = lock_unlocked(region, first, end, &failed);
    if (error)
        /* A failed mlock leaves its whole range marked as locked: take back that one too. */
        (void)unlock_counted(region, first, failed, 0);
    else
        add_to_counts(region, first, end, 1);
    return error;
}

static int unlock_pages(mmk_region *region, size_t first, size_t end)
{
    int error = reserve_for_adding(region);
    if (error)
        return error;
    error = unlock_counted(region, first, end, 1);
    add_to_counts(region, first, end, -1);
    return error;
}

static int change_locks(mmk_region *region, size_t offset, size_t length, int change(mmk_region *, size_t, size_t))
{
    int error = region_begin_change(region);
    if (error)
        return error;
    error = check_range(region, offset, length);
    if (!error && length && !region->always_locked)
        error = change(region, offset / region->granule, (offset + length) / region->granule);
    region_end_change(region);
    return error;
}

int mmk_region_lock(mmk_region *region, size_t offset, size_t length)
{
    return change_locks(region, offset, length, lock_pages);
}

int mmk_region_unlock(mmk_region *region, size_t offset, size_t length)
{
    return change_locks(region, offset, length, unlock_pages);
}

int pagemap_count_present(int pagemap, uintptr_t address, size_t pages, size_t *present)
{
    uint64_t entries[PAGES_A_READ];
    size_t page = address / mmk_page_size();
    while (pages > 0) {
        size_t wanted = pages < PAGES_A_READ ? pages : PAGES_A_READ;
        ssize_t got = pread(pagemap, entries, wanted * sizeof *entries, (off_t)(page * sizeof *entries));
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        size_t read = (size_t)got / sizeof *entries;
        for (size_t i = 0; i < read; i++)
            *present += (entries[i] & PAGEMAP_PRESENT) != 0;
        page += read;
        pages -= read;
    }
    return 0;
}

int mmk_region_resident(mmk_region *region, size_t offset, size_t length, int pagemap, size_t *bytes)
{
    int error = mmk_region_enter(region);
    if (error)
        return error;
    size_t present = 0;
    error = check_range(region, offset, length);
    if (!error)
        error = pagemap_count_present(pagemap, (uintptr_t)region->base + offset, length / mmk_page_size(), &present);
    mmk_region_leave(region);
    *bytes = present * mmk_page_size();
    return error;
}

static int count_incore(char *address, size_t pages, size_t *cached)
{
    unsigned char vector[PAGES_A_READ];
    while (pages > 0) {
        size_t wanted = pages < PAGES_A_READ ? pages : PAGES_A_READ;
        int error = mmk_sys_mincore(address, wanted * mmk_page_size(), vector);
        if (error)
            return error;
        for (size_t i = 0; i < wanted; i++)
            *cached += vector[i] & 1;
        address += wanted * mmk_page_size();
        pages -= wanted;
    }
    return 0;
}

/* There cachestat(2) looks at an inode that has no pages of its own. */
static bool is_overlaid(int fd)
{
    struct statfs system;
    return fstatfs(fd, &system) == 0 && system.f_type == OVERLAYFS_SUPER_MAGIC;
}

static int count_cached(const mmk_region *region, size_t offset, size_t length, size_t *cached)
{
    if (region->fd >= 0) {
        mmk_cachestat_range range = {region->file_offset + offset, length};
        mmk_cachestat stat = {0};
        int error = mmk_sys_cachestat(region->fd, &range, &stat, 0);
        *cached = stat.cached;
        /* Older kernels lack the call; hugetlbfs never had it. */
        if (error != -ENOSYS && error != -EOPNOTSUPP && !is_overlaid(region->fd))
            return error;
        *cached = 0;
    }
    return count_incore(region->base + offset, length / mmk_page_size(), cached);
}

int mmk_region_cached(mmk_region *region, size_t offset, size_t length, size_t *bytes)
{
    int error = mmk_region_enter(region);
    if (error)
        return error;
    size_t cached = 0;
    bool has_page_cache = region->fd >= 0 || (region->flags & MAP_TYPE) != MAP_PRIVATE;
    error = check_range(region, offset, length);
    /* A length of 0 would mean "to the end of the file" to cachestat. */
    if (!error && length && has_page_cache)
        error = count_cached(region, offset, length, &cached);
    mmk_region_leave(region);
    *bytes = cached * mmk_page_size();
    return error;
}
