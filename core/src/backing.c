#include <mmkit/access.h>

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "access_internal.h"
#include "region_internal.h"

static bool is_tmpfs(int fd)
{
    struct statfs system;
    return fstatfs(fd, &system) == 0 && system.f_type == TMPFS_MAGIC;
}

/* Can the file become shorter than the region? `may_shrink` is of shared mappings only. */
static bool may_lose_its_end(const mmk_region *region)
{
    return region->may_shrink || (region->fd >= 0 && (region->flags & MAP_TYPE) == MAP_PRIVATE);
}

bool region_may_hide_end(const mmk_region *region)
{
    return may_lose_its_end(region) && is_tmpfs(region->fd);
}

bool region_hides_end(const mmk_region *region)
{
    struct stat status;
    /* tmpfs gives its page size for st_blksize: a huge one where it hands huge pages out of its own accord. */
    return may_lose_its_end(region) && fstat(region->fd, &status) == 0 && (size_t)status.st_blksize > mmk_page_size() &&
           is_tmpfs(region->fd);
}

int region_check_end(const mmk_region *region, size_t offset, size_t length, bool write, mmk_fault *fault)
{
    struct stat status;
    if (fstat(region->fd, &status) < 0)
        return 0;
    uint64_t size = (uint64_t)status.st_size, start = region->file_offset + offset;
    if (start + length <= size)
        return 0;
    size_t there = size > start ? (size_t)(size - start) : 0;
    *fault = (mmk_fault){(uintptr_t)region->base + offset + there, MMK_FAULT_BEYOND_END, write};
    return -EFAULT;
}

/* Is there no room for the page that the access needs? On tmpfs reading needs one, too. */
static bool is_full(int fd, bool write)
{
    struct statfs system;
    if (fstatfs(fd, &system) < 0)
        return false;
    /* The kernel's own tmpfs, where memfds live, has no size. */
    return system.f_blocks && system.f_bavail == 0 && (write || system.f_type == TMPFS_MAGIC);
}

/* Without a descriptor: is it sure that no file stands behind it that others can cut? */
static bool is_memory(const mmk_region *region)
{
    return region->always_locked || (region->flags & MAP_ANONYMOUS);
}

/* Why no page stands behind an offset: what the file looks like now, a moment later. */
static mmk_fault_reason missing_page(const mmk_region *region, size_t offset, bool write)
{
    struct stat status;
    if (region->fd < 0)
        return is_memory(region) ? MMK_FAULT_NO_MEMORY : MMK_FAULT_NOT_BACKED;
    if (fstat(region->fd, &status) < 0)
        return MMK_FAULT_NOT_BACKED;
    if (region->file_offset + mmk_round_down(offset, region->granule) >= (uint64_t)status.st_size)
        return MMK_FAULT_BEYOND_END;
    if (region->granule > mmk_page_size() || is_full(region->fd, write))
        return MMK_FAULT_NO_MEMORY;
    /* It may have been shorter for a moment. */
    return may_lose_its_end(region) ? MMK_FAULT_NOT_BACKED : MMK_FAULT_IO_ERROR;
}

void region_explain_fault(const mmk_region *region, mmk_fault *fault)
{
    size_t offset = fault->address - (uintptr_t)region->base;
    if (fault->reason == MMK_FAULT_NOT_BACKED && offset < mmk_region_length(region))
        fault->reason = missing_page(region, offset, fault->write);
}
