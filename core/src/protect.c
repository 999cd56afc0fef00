#include <mmkit/protect.h>

#include <mmkit/sys.h>

#include "region_internal.h"
#include "snapshot_internal.h"

typedef struct page_span {
    size_t first;
    size_t end;
} page_span;

static page_span pages_of(const mmk_region *region, size_t offset, size_t length)
{
    return (page_span){offset / region->granule, (offset + length) / region->granule};
}

/* The newest cover over page, and in *end the page up to which no other cover begins or ends. */
static const mmk_cover *cover_at(const mmk_region *region, size_t page, size_t *end)
{
    const mmk_cover *found = NULL;
    for (const mmk_cover *cover = region->covers; cover; cover = cover->below) {
        bool inside = cover->first <= page && page < cover->end;
        size_t change = inside ? cover->end : cover->first;
        if (change > page && change < *end)
            *end = change;
        if (inside && !found)
            found = cover;
    }
    return found;
}

static int prot_at(const mmk_region *region, size_t page, size_t limit, size_t *end)
{
    int prot = mmk_runs_at(&region->protections, page, limit, region->prot, end);
    const mmk_cover *cover = cover_at(region, page, end);
    return cover ? cover->prot : prot;
}

int region_prot_of_range(const mmk_region *region, size_t offset, size_t length)
{
    if (length == 0)
        return PROT_READ | PROT_WRITE | PROT_EXEC;
    if (region->protections.count == 0 && !region->covers)
        return region->prot;
    page_span span = {offset / region->granule, (offset + length + region->granule - 1) / region->granule};
    int common = ~0;
    for (size_t page = span.first, end; page < span.end; page = end)
        common &= prot_at(region, page, span.end, &end);
    return common;
}

int mmk_region_prot_of_range(mmk_region *region, size_t offset, size_t length)
{
    pthread_mutex_lock(&region->lock);
    int prot = region_prot_of_range(region, offset, length);
    pthread_mutex_unlock(&region->lock);
    return prot;
}

static int mprotect_pages(const mmk_region *region, size_t first, size_t end, int prot)
{
    mmk_snapshot *snapshot = atomic_load_explicit(&region->snapshot, memory_order_relaxed);
    if (snapshot)
        return snapshot_mprotect(snapshot, first, end, prot);
    return mmk_sys_mprotect(region->base + first * region->granule, (end - first) * region->granule, prot);
}

/* Give the pages [first, end) one protection, except where a guard stands for PROT_NONE. */
static int mprotect_unguarded(const mmk_region *region, size_t first, size_t end, int prot)
{
    int error = 0;
    for (size_t page = first, next; page < end && !error; page = next)
        if (!mmk_runs_at(&region->guards, page, end, 0, &next))
            error = mprotect_pages(region, page, next, prot);
    return error;
}

/* Bring the kernel in line with what is recorded for the span. Returns the first error, but goes on. */
static int enforce(const mmk_region *region, page_span span)
{
    int error = 0;
    for (size_t page = span.first, end; page < span.end; page = end) {
        int prot = prot_at(region, page, span.end, &end);
        int refused = mprotect_unguarded(region, page, end, prot);
        error = error ? error : refused;
    }
    return error;
}

int region_enforce(const mmk_region *region, size_t offset, size_t length)
{
    return enforce(region, pages_of(region, offset, length));
}

/* Set the pages of the span that no cover holds. */
static int enforce_uncovered(const mmk_region *region, page_span span, int prot)
{
    int error = 0;
    for (size_t page = span.first, end; page < span.end && !error; page = end) {
        end = span.end;
        if (!cover_at(region, page, &end))
            error = mprotect_unguarded(region, page, end, prot);
    }
    return error;
}

static bool takes_from_views(const mmk_region *region, size_t offset, size_t length, int prot)
{
    if (!(prot & PROT_READ) && region_is_viewed(region, offset, length, false))
        return true;
    return !(prot & PROT_WRITE) && region_is_viewed(region, offset, length, true);
}

/* The same for what is recorded, page by page. */
static bool records_take_from_views(const mmk_region *region, page_span span)
{
    bool takes = false;
    for (size_t page = span.first, end; region->views && page < span.end && !takes; page = end) {
        int prot = prot_at(region, page, span.end, &end);
        takes = takes_from_views(region, page * region->granule, (end - page) * region->granule, prot);
    }
    return takes;
}

/* Keep operations out while access shrinks; nothing to do when it only grows, or by force.
 * On success *excluded tells whether region_admit is due. */
static int exclude_if_shrinking(mmk_region *region, bool viewed, int prot, bool force, bool *excluded)
{
    *excluded = false;
    if (force || (prot & (PROT_READ | PROT_WRITE)) == (PROT_READ | PROT_WRITE))
        return 0;
    if (viewed)
        return -MMK_EPINNED;
    int error = region_exclude(region);
    *excluded = error == 0;
    return error;
}

static void record(mmk_region *region, page_span span, int prot)
{
    if (span.first == 0 && span.end == mmk_region_length(region) / region->granule) {
        region->protections.count = 0;
        region->prot = prot;
    } else {
        mmk_runs_set(&region->protections, span.first, span.end, prot, region->prot);
    }
}

static int set_protection(mmk_region *region, page_span span, int prot)
{
    int error = mmk_runs_reserve(&region->protections, 2);
    if (error)
        return error;
    error = enforce_uncovered(region, span, prot);
    if (error)
        (void)enforce(region, span);
    else
        record(region, span, prot);
    return error;
}

int mmk_region_protect(mmk_region *region, size_t offset, size_t length, int prot, bool force)
{
    int error = region_begin_change(region);
    if (error)
        return error;
    bool excluded = false;
    error = check_range(region, offset, length);
    if (!error)
        error = exclude_if_shrinking(region, takes_from_views(region, offset, length, prot), prot, force, &excluded);
    if (!error && length)
        error = set_protection(region, pages_of(region, offset, length), prot);
    if (excluded)
        region_admit(region);
    region_end_change(region);
    return error;
}

int mmk_region_cover(mmk_region *region, mmk_cover *cover, size_t offset, size_t length, int prot, bool force)
{
    int error = region_begin_change(region);
    if (error)
        return error;
    bool excluded = false;
    error = check_range(region, offset, length);
    if (!error)
        error = exclude_if_shrinking(region, takes_from_views(region, offset, length, prot), prot, force, &excluded);
    if (!error) {
        page_span span = pages_of(region, offset, length);
        *cover = (mmk_cover){.below = region->covers, .first = span.first, .end = span.end, .prot = prot};
        region->covers = cover;
        error = enforce(region, span);
        if (error) {
            region->covers = cover->below;
            (void)enforce(region, span);
        }
    }
    if (excluded)
        region_admit(region);
    region_end_change(region);
    return error;
}

static mmk_cover **link_to(mmk_region *region, const mmk_cover *cover)
{
    mmk_cover **link = &region->covers;
    while (*link && *link != cover)
        link = &(*link)->below;
    return link;
}

int mmk_region_uncover(mmk_region *region, mmk_cover *cover, bool force)
{
    int error = region_begin_change(region);
    if (error)
        return error == -MMK_ECLOSED ? 0 : error;
    mmk_cover **link = link_to(region, cover);
    if (*link) {
        page_span span = {cover->first, cover->end};
        /* The region may have shrunk since. */
        size_t committed = mmk_region_length(region) / region->granule;
        span.end = span.end < committed ? span.end : committed;
        span.first = span.first < span.end ? span.first : span.end;

        *link = cover->below;
        if (!force && records_take_from_views(region, span)) {
            *link = cover;
            error = -MMK_EPINNED;
        } else {
            /* The end of a block must not fail for an access that happens to run: wait for it. */
            region_exclude_waiting(region);
            error = enforce(region, span);
            region_admit(region);
        }
    }
    region_end_change(region);
    return error;
}

/* Kernels before 6.13 do not know the advice; before 6.15 they know it for anonymous memory only. */
static int guard_by_mprotect(mmk_region *region, size_t offset, size_t length)
{
    page_span span = pages_of(region, offset, length);
    int error = mmk_runs_reserve(&region->guards, 2);
    if (!error)
        error = mmk_sys_mprotect(region->base + offset, length, PROT_NONE);
    /* Gives up the contents, as the kernel's guards do; refuses locked pages, as they do. */
    if (!error && region_is_private_anonymous(region))
        error = mmk_sys_madvise(region->base + offset, length, MMK_MADV_DONTNEED);
    if (error)
        (void)enforce(region, span);
    else
        mmk_runs_set(&region->guards, span.first, span.end, 1, 0);
    return error;
}

static bool is_locked(const mmk_region *region, page_span span)
{
    size_t next;
    return mmk_runs_at(&region->locks, span.first, span.end, 0, &next) > 0 || next < span.end;
}

static int install_guard(mmk_region *region, size_t offset, size_t length)
{
    /* The kernel guards the areas before a locked one, and then says EINVAL; it also says that of areas it
     * cannot guard at all, where PROT_NONE takes over. */
    if (is_locked(region, pages_of(region, offset, length)))
        return -EINVAL;
    int error = mmk_sys_madvise(region->base + offset, length, MMK_MADV_GUARD_INSTALL);
    if (!error)
        region->kernel_guards = true;
    return error == -EINVAL ? guard_by_mprotect(region, offset, length) : error;
}

int mmk_region_guard(mmk_region *region, size_t offset, size_t length, bool force)
{
    int error = region_begin_destroying(region, offset, length, force);
    if (error)
        return error;
    error = check_range(region, offset, length);
    if (!error && length)
        error = install_guard(region, offset, length);
    region_end_destroying(region, force);
    return error;
}

static int remove_guards(mmk_region *region, size_t offset, size_t length)
{
    int error = 0;
    if (region->kernel_guards)
        error = mmk_sys_madvise(region->base + offset, length, MMK_MADV_GUARD_REMOVE);
    if (error || region->guards.count == 0)
        return error;
    error = mmk_runs_reserve(&region->guards, 2);
    if (error)
        return error;
    page_span span = pages_of(region, offset, length);
    mmk_runs_set(&region->guards, span.first, span.end, 0, 0);
    return enforce(region, span);
}

int mmk_region_unguard(mmk_region *region, size_t offset, size_t length)
{
    int error = region_begin_change(region);
    if (error)
        return error;
    error = check_range(region, offset, length);
    if (!error && length)
        error = remove_guards(region, offset, length);
    region_end_change(region);
    return error;
}
