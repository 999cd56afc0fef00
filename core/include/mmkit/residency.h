/* residency.h: what of a region is in RAM, and what must stay there.
 *
 * Ranges are whole granules (else -EINVAL) inside the region (else -ERANGE); every call answers -MMK_ECLOSED on a
 * closed region. Threads, fork (locks are not inherited), signals: see region.h.
 */
#ifndef MMKIT_RESIDENCY_H
#define MMKIT_RESIDENCY_H

#include <mmkit/region.h>

/* Lock the pages of a range into RAM. mlock(2). Locks nest: each page stays locked until it has been
 * unlocked as often (the kernel itself unlocks at the first munlock).
 *
 * returns  0
 *          -ENOMEM  beyond RLIMIT_MEMLOCK, or a page that cannot be faulted in (guard, past end of file),
 *                   or no memory for bookkeeping
 *          -EPERM   RLIMIT_MEMLOCK is 0
 *          -EAGAIN  some pages could not be locked
 * On error no page of the range is locked that was not before. */
MMK_API MMK_MUST_CHECK int mmk_region_lock(mmk_region *region, size_t offset, size_t length);

/* Take one lock off each page of a range; pages that have none are left alone. munlock(2). */
MMK_API MMK_MUST_CHECK int mmk_region_unlock(mmk_region *region, size_t offset, size_t length);

/* Bytes of a range that this process has in RAM: pages present in its page table. /proc/self/pagemap.
 *
 * pagemap  an open file descriptor of /proc/self/pagemap
 * returns  0 with *bytes set, or -errno of pread(2) */
MMK_API MMK_MUST_CHECK int mmk_region_resident(mmk_region *region, size_t offset, size_t length, int pagemap,
                                               size_t *bytes);

/* Bytes of a range that the page cache holds, whoever brought them in; 0 for private anonymous memory,
 * which has no page cache. cachestat(2), or mincore(2) where there is none (before Linux 6.5).
 *
 * returns  0 with *bytes set
 *          -EPERM  the caller could not write the file, and may not know what is cached of it */
MMK_API MMK_MUST_CHECK int mmk_region_cached(mmk_region *region, size_t offset, size_t length, size_t *bytes);

#endif
