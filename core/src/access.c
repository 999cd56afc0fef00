#include <mmkit/access.h>

#include <mmkit/sys.h>

#include "access_internal.h"
#include "guarded_internal.h"
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

/* The first page of the range that does not allow what is needed. returns 0, or -EAGAIN. */
static int find_what_is_forbidden(mmk_region *region, size_t offset, size_t length, int needed, mmk_fault *fault)
{
    size_t at = offset, end = offset + length;
    if (pthread_mutex_trylock(&region->lock) != 0)
        return -EAGAIN;
    for (size_t page_end; at < end; at = page_end) {
        page_end = mmk_round_down(at, region->granule) + region->granule;
        if ((region_prot_of_range(region, at, 1) & needed) != needed)
            break;
    }
    pthread_mutex_unlock(&region->lock);
    if (at >= end)
        return -EAGAIN;
    *fault = (mmk_fault){(uintptr_t)region->base + at, MMK_FAULT_PROTECTION, needed == PROT_WRITE};
    return -EFAULT;
}

static int check_access(mmk_region *region, size_t offset, size_t length, int needed, mmk_fault *fault)
{
    int prot;
    if (!is_inside(region, offset, length))
        return -ERANGE;
    int error = try_to_look_at_prot(region, offset, length, &prot);
    if (error || (prot & needed) == needed)
        return error;
    return find_what_is_forbidden(region, offset, length, needed, fault);
}

/* A range that an access touches, and what it must be allowed there. */
typedef struct need {
    size_t offset;
    size_t length;
    int prot;
} need;

/* Begin an access of which a look at the protection in force on all pages does not tell that it may go on.
 * pre: the region is pinned. On error it no longer is. */
static int begin_by_looking(mmk_region *region, const need *needs, size_t count, mmk_fault *fault)
{
    for (;;) {
        int error = 0;
        for (size_t i = 0; i < count && !error; i++)
            error = check_access(region, needs[i].offset, needs[i].length, needs[i].prot, fault);
        if (!error)
            return 0;
        mmk_region_leave(region);
        if (error != -EAGAIN)
            return error;
        pthread_mutex_lock(&region->lock);
        pthread_mutex_unlock(&region->lock);
        error = mmk_region_enter(region);
        if (error)
            return error;
    }
}

static inline int begin(mmk_region *region, size_t offset, size_t length, int needed, mmk_fault *fault)
{
    int error = mmk_region_enter(region);
    if (__builtin_expect(error, 0))
        return error;
    int prot = atomic_load_explicit(&region->uniform, memory_order_relaxed);
    bool allowed = prot >= 0 && (prot & needed) == needed && length && is_inside(region, offset, length);
    return __builtin_expect(allowed, true) ? 0 : begin_by_looking(region, &(need){offset, length, needed}, 1, fault);
}

int access_begin(mmk_region *region, size_t offset, size_t length, int needed, mmk_fault *fault)
{
    return begin(region, offset, length, needed, fault);
}

/* What became of a copy. */
static inline int copied(const mmk_region *region, size_t offset, size_t length, bool write, int error,
                         mmk_fault *fault)
{
    if (__builtin_expect(error, 0))
        region_explain_fault(region, fault);
    else if (__builtin_expect(region->hides_end, false))
        error = region_check_end(region, offset, length, write, fault);
    return error;
}

static inline int load(const mmk_region *region, size_t offset, void *into, size_t length, mmk_fault *fault)
{
    int error = guarded_copy(into, region->base + offset, length, fault);
    return copied(region, offset, length, false, error, fault);
}

int access_load(const mmk_region *region, size_t offset, void *into, size_t length, mmk_fault *fault)
{
    return load(region, offset, into, length, fault);
}

int mmk_access_load(mmk_region *region, size_t offset, void *into, size_t length, mmk_fault *fault)
{
    int error = begin(region, offset, length, PROT_READ, fault);
    if (error)
        return error;
    error = load(region, offset, into, length, fault);
    mmk_region_leave(region);
    return error;
}

int mmk_access_store(mmk_region *region, size_t offset, const void *from, size_t length, mmk_fault *fault)
{
    int error = begin(region, offset, length, PROT_WRITE, fault);
    if (error)
        return error;
    error = guarded_copy(region->base + offset, from, length, fault);
    error = copied(region, offset, length, true, error, fault);
    mmk_region_leave(region);
    return error;
}

int mmk_access_move(mmk_region *region, size_t to, size_t from, size_t length, mmk_fault *fault)
{
    const need needs[] = {{from, length, PROT_READ}, {to, length, PROT_WRITE}};
    int error = mmk_region_enter(region);
    error = error ? error : begin_by_looking(region, needs, 2, fault);
    if (error)
        return error;
    error = guarded_copy(region->base + to, region->base + from, length, fault);
    error = copied(region, from, length, false, error, fault);
    if (!error)
        error = copied(region, to, length, true, 0, fault);
    mmk_region_leave(region);
    return error;
}

/* ---- for those who hold the lock -------------------------------------------------------------------- */

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

int region_check_write(const mmk_region *region, size_t offset, size_t length, mmk_fault *fault)
{
    for (size_t at = offset, end = offset + length, page_end; at < end; at = page_end) {
        page_end = mmk_round_down(at, region->granule) + region->granule;
        bool allowed = region_prot_of_range(region, at, 1) & PROT_WRITE;
        if (allowed && !region_is_guarded(region, at, 1))
            continue;
        mmk_fault_reason reason = allowed ? MMK_FAULT_UNMAPPED : MMK_FAULT_PROTECTION;
        *fault = (mmk_fault){(uintptr_t)region->base + at, reason, true};
        return -EFAULT;
    }
    return 0;
}

int region_zero(const mmk_region *region, size_t offset, size_t length, mmk_fault *fault)
{
    static const char zeros[4096];
    for (size_t done = 0, part; done < length; done += part) {
        part = length - done < sizeof zeros ? length - done : sizeof zeros;
        int error = mmk_guarded_copy(region->base + offset + done, zeros, part, fault);
        if (error) {
            region_explain_fault(region, fault);
            return error;
        }
    }
    return 0;
}
