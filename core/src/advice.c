#include <mmkit/advice.h>

#include <mmkit/sys.h>

#include "region_internal.h"
#include "snapshot_internal.h"

enum {
    MADV_FREE_ = 8,
    MADV_HUGEPAGE_ = 14,
    MADV_DONTNEED_LOCKED_ = 24,
    MADV_COLLAPSE_ = 25,
    MADV_HWPOISON_ = 100,
    MADV_SOFT_OFFLINE_ = 101,
};

bool mmk_advice_destroys(const mmk_region *region, int advice)
{
    switch (advice) {
    case MMK_MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED_:
        return (region->flags & MAP_TYPE) == MAP_PRIVATE;
    case MADV_FREE_:
    case MMK_MADV_REMOVE:
    case MMK_MADV_GUARD_INSTALL:
    case MADV_HWPOISON_:
    case MADV_SOFT_OFFLINE_:
        return true;
    default:
        return false;
    }
}

int mmk_region_advise(mmk_region *region, size_t offset, size_t length, int advice)
{
    int error = mmk_region_enter(region);
    if (error)
        return error;
    error = mmk_advice_destroys(region, advice) ? -MMK_EUNSUPPORTED : check_range(region, offset, length);
    if (!error)
        error = mmk_sys_madvise(region->base + offset, length, advice);
    if (!error && (advice == MADV_HUGEPAGE_ || advice == MADV_COLLAPSE_) && region_may_hide_end(region))
        region->hides_end = true;
    mmk_region_leave(region);
    return error;
}

int mmk_region_populate(mmk_region *region, size_t offset, size_t length, bool write)
{
    if (write) {
        int error = mmk_region_enter(region);
        if (error)
            return error;
        if (check_range(region, offset, length) == 0)
            snapshot_keep(region, offset, length);
        mmk_region_leave(region);
    }
    return mmk_region_advise(region, offset, length, write ? MMK_MADV_POPULATE_WRITE : MMK_MADV_POPULATE_READ);
}

int mmk_region_destroy(mmk_region *region, size_t offset, size_t length, int advice, bool force)
{
    int error = region_begin_destroying(region, offset, length, force);
    if (error)
        return error;
    error = check_range(region, offset, length);
    if (!error)
        error = mmk_sys_madvise(region->base + offset, length, advice);
    region_end_destroying(region, force);
    return error;
}

int mmk_region_discard(mmk_region *region, size_t offset, size_t length, bool force)
{
    return mmk_region_destroy(region, offset, length, MMK_MADV_DONTNEED, force);
}
