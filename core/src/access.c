#include <mmkit/access.h>

#include <string.h>

#include <mmkit/sys.h>

#include "region_internal.h"

/* What the range allows. Inside an operation the lock may only be tried: who holds it may be waiting for the
 * operation to end. returns 0, or -EAGAIN. */
static int try_to_look_at_prot(mmk_region *region, size_t offset, size_t length, int *prot)
{
    *prot = atomic_load_explicit(&region->uniform, memory_order_relaxed);
    if (*prot >= 0 && length)
        return 0;
    if (pthread_mutex_trylock(&region->lock) != 0)
        return -EAGAIN;
    *prot = region_prot_of_range(region, offset, length);
    pthread_mutex_unlock(&region->lock);
    return 0;
}

static int check_access(mmk_region *region, size_t offset, size_t length, int needed)
{
    int prot;
    if (!is_inside(region, offset, length))
        return -ERANGE;
    int error = try_to_look_at_prot(region, offset, length, &prot);
    return error ? error : (prot & needed) == needed ? 0 : -EACCES;
}

/* Pin the region for an access that needs prot. On error it is not pinned. */
static int begin(mmk_region *region, size_t offset, size_t length, int needed)
{
    for (;;) {
        int error = mmk_region_enter(region);
        if (error)
            return error;
        error = check_access(region, offset, length, needed);
        if (!error)
            return 0;
        mmk_region_leave(region);
        if (error != -EAGAIN)
            return error;
        pthread_mutex_lock(&region->lock);
        pthread_mutex_unlock(&region->lock);
    }
}

int mmk_access_load(mmk_region *region, size_t offset, void *into, size_t length)
{
    int error = begin(region, offset, length, PROT_READ);
    if (error)
        return error;
    memcpy(into, region->base + offset, length);
    mmk_region_leave(region);
    return 0;
}

int mmk_access_store(mmk_region *region, size_t offset, const void *from, size_t length)
{
    int error = begin(region, offset, length, PROT_WRITE);
    if (error)
        return error;
    memmove(region->base + offset, from, length);
    mmk_region_leave(region);
    return 0;
}

static const char *last_occurrence(const char *hay, size_t length, const char *needle, size_t needle_length)
{
    if (needle_length > length)
        return NULL;
    if (needle_length == 0)
        return hay + length;
    /* Look for the needle's first byte from the end; each step goes on in front of the last candidate. */
    size_t candidates = length - needle_length + 1;
    const char *candidate;
    while ((candidate = memrchr(hay, needle[0], candidates))) {
        if (memcmp(candidate, needle, needle_length) == 0)
            return candidate;
        candidates = (size_t)(candidate - hay);
    }
    return NULL;
}

ssize_t mmk_access_find(mmk_region *region, size_t offset, size_t length, const void *needle, size_t needle_length)
{
    int error = begin(region, offset, length, PROT_READ);
    if (error)
        return error;
    const char *found = memmem(region->base + offset, length, needle, needle_length);
    ssize_t answer = found ? found - region->base : -ENOENT;
    mmk_region_leave(region);
    return answer;
}

ssize_t mmk_access_rfind(mmk_region *region, size_t offset, size_t length, const void *needle, size_t needle_length)
{
    int error = begin(region, offset, length, PROT_READ);
    if (error)
        return error;
    const char *found = last_occurrence(region->base + offset, length, needle, needle_length);
    ssize_t answer = found ? found - region->base : -ENOENT;
    mmk_region_leave(region);
    return answer;
}

bool region_is_guarded(const mmk_region *region, size_t offset, size_t length)
{
    size_t first = offset / region->granule, end = (offset + length - 1) / region->granule + 1, next;
    if (mmk_runs_at(&region->guards, first, end, 0, &next) || next < end)
        return true;
    /* The kernel keeps its guards in the page table and shows them to nobody; a kernel that has them can populate. */
    return region->kernel_guards &&
           mmk_sys_madvise(region->base + first * region->granule, (end - first) * region->granule,
                           MMK_MADV_POPULATE_WRITE) == -EFAULT;
}

bool region_can_write(const mmk_region *region, size_t offset, size_t length)
{
    if (length == 0)
        return true;
    return (region_prot_of_range(region, offset, length) & PROT_WRITE) && !region_is_guarded(region, offset, length);
}

int region_zero(const mmk_region *region, size_t offset, size_t length)
{
    if (length == 0)
        return 0;
    if (!region_can_write(region, offset, length))
        return -EACCES;
    memset(region->base + offset, 0, length);
    return 0;
}
