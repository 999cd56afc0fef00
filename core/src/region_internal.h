/* region_internal.h: what the region's own source files share and nobody else may use. */
#ifndef MMKIT_REGION_INTERNAL_H
#define MMKIT_REGION_INTERNAL_H

#include <errno.h>
#include <sys/mman.h>

#include <mmkit/guarded.h>
#include <mmkit/region.h>

enum { HOLD_FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE };

/* Take the region's lock for a change of its bookkeeping.
 * returns 0, or -MMK_ECLOSED with the lock not held. */
MMK_MUST_CHECK int region_begin_change(mmk_region *region);

static inline void region_publish(mmk_region *region)
{
    bool uniform = region->protections.count == 0 && !region->covers;
    atomic_store_explicit(&region->uniform, uniform ? region->prot : -1, memory_order_relaxed);
}

static inline void region_end_change(mmk_region *region)
{
    region_publish(region);
    pthread_mutex_unlock(&region->lock);
}

/* Whoever holds the lock may wait for operations to end: so an operation never waits for the lock.
 *
 * Keep operations out, for as long as the lock is held: nobody runs inside, newcomers wait.
 * pre: the lock is held. returns 0, or -MMK_EPINNED. */
MMK_MUST_CHECK int region_exclude(mmk_region *region);
/* The same, but wait until those inside have left. */
void region_exclude_waiting(mmk_region *region);
void region_admit(mmk_region *region);

/* Take the lock; make sure that no snapshot needs the contents, and unless force is set that nobody looks at the range
 * or runs inside.
 * returns 0, -MMK_ECLOSED or -MMK_EPINNED; then the lock is not held. */
MMK_MUST_CHECK int region_begin_destroying(mmk_region *region, size_t offset, size_t length, bool force);
void region_end_destroying(mmk_region *region, bool force);

/* In a fork child, before anything else can be mapped there: the threads that were inside are not here, nor perhaps
 * the pages. returns false if its addresses are no longer the region's own: it has left the registry then. */
bool region_after_fork(mmk_region *region);

/* pre: the lock is held. When it returns, the hook before is not running any more. */
void region_set_hook(mmk_region *region, mmk_fault_hook *hook);

/* See backing.c: does the kernel give no signal for what lies behind the end of the file; may it come to that? */
bool region_hides_end(const mmk_region *region);
bool region_may_hide_end(const mmk_region *region);

static inline bool region_is_private_anonymous(const mmk_region *region)
{
    return region->fd < 0 && (region->flags & MAP_TYPE) == MAP_PRIVATE;
}

/* May a first touch of a page find nothing to back it, and be answered by a signal? A full tmpfs, a pool of huge pages
 * in which none were reserved. */
static inline bool region_may_lack_memory(const mmk_region *region)
{
    return region->fd >= 0 || (region->flags & MAP_HUGETLB && region->flags & MAP_NORESERVE);
}

static inline bool is_inside(const mmk_region *region, size_t offset, size_t length)
{
    size_t committed = mmk_region_length(region);
    return offset <= committed && length <= committed - offset;
}

/* 0 if [offset, offset + length) is whole granules inside the committed range, -ERANGE if it is not inside,
 * -EINVAL if it is not whole granules. */
static inline int check_range(const mmk_region *region, size_t offset, size_t length)
{
    bool aligned = ((offset | length) & (region->granule - 1)) == 0;
    return !is_inside(region, offset, length) ? -ERANGE : aligned ? 0 : -EINVAL;
}

/* The protections in force, and-ed over every page of a range. pre: the lock is held. */
int region_prot_of_range(const mmk_region *region, size_t offset, size_t length);

/* Bring the kernel in line with the protections recorded for a range of whole granules.
 * Returns the first error, but goes on. pre: the lock is held. */
int region_enforce(const mmk_region *region, size_t offset, size_t length);

/* Write zeros. pre: the lock is held; the range lies inside. returns 0 or -EFAULT */
int region_zero(const mmk_region *region, size_t offset, size_t length, mmk_fault *fault);

/* Would writing there be allowed, and not meet a guard? pre: as for region_zero. returns 0 or -EFAULT */
MMK_MUST_CHECK int region_check_write(const mmk_region *region, size_t offset, size_t length, mmk_fault *fault);
/* Does a guard stand on a page of the range? pre: the lock is held; the range lies inside, writable, not empty. */
bool region_is_guarded(const mmk_region *region, size_t offset, size_t length);

/* Does a view of [offset, offset + length) live (a writable one, with `writable`)? pre: the lock is held. */
bool region_is_viewed(const mmk_region *region, size_t offset, size_t length, bool writable);

/* Hold address space: `reserved` bytes from *base (a multiple of the granule) on, and `guard` bytes at each end.
 * returns 0 or -ENOMEM. pre: the sizes are multiples of the page size, below SIZE_MAX / 4 + a granule. */
MMK_MUST_CHECK int region_reserve(size_t reserved, size_t guard, size_t granule, mmk_range *outer, char **base);

/* Hold address space at exactly this place: -EEXIST if something is there. */
MMK_MUST_CHECK int region_hold_free(char *address, size_t length);

/* Replace a range by address space that faults on every access. */
static inline intptr_t hold(char *address, size_t length)
{
    return (intptr_t)mmap(address, length, PROT_NONE, HOLD_FLAGS | MAP_FIXED, -1, 0) == -1 ? -errno : 0;
}

#endif
