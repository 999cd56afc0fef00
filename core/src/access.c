#include <mmkit/access.h>

#include <string.h>

#include <mmkit/protect.h>

#include "region_internal.h"

static int allowed(mmk_region *region, size_t offset, size_t length)
{
    bool uniform = length && region->protections.count == 0 && !region->covers;
    return uniform ? region->prot : mmk_region_prot_of_range(region, offset, length);
}

/* Pin the region for an access that needs prot. On error it is not pinned. */
static int begin(mmk_region *region, size_t offset, size_t length, int prot)
{
    int error = mmk_region_enter(region);
    if (error)
        return error;
    size_t committed = mmk_region_length(region);
    if (offset > committed || length > committed - offset)
        error = -ERANGE;
    else if ((allowed(region, offset, length) & prot) != prot)
        error = -EACCES;
    if (error)
        mmk_region_leave(region);
    return error;
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

int region_zero(const mmk_region *region, size_t offset, size_t length)
{
    if (length == 0)
        return 0;
    if (!(region_prot_of_range(region, offset, length) & PROT_WRITE))
        return -EACCES;
    memset(region->base + offset, 0, length);
    return 0;
}
