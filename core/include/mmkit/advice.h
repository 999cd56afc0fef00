/* advice.h: madvise(2) on a region: hints, populating, giving pages back.
 *
 * Ranges are whole granules (else -EINVAL) inside the region (else -ERANGE); every call answers -MMK_ECLOSED on a
 * closed region. Threads, fork, signals: see region.h.
 */
#ifndef MMKIT_ADVICE_H
#define MMKIT_ADVICE_H

#include <mmkit/region.h>

/* Would this advice destroy data in this region, or forge damage? Then mmk_region_advise refuses it:
 * giving data up has calls of its own, which look at live views first. */
MMK_API bool mmk_advice_destroys(const mmk_region *region, int advice);

/* Give a hint about a range. madvise(2).
 *
 * returns  0
 *          -MMK_EUNSUPPORTED  the advice destroys data: mmk_region_discard, _punch or _guard do that
 *          -EINVAL            unknown to this kernel, or not for this kind of region
 *          -errno             -EAGAIN, -ENOMEM, -EIO: see the man page */
MMK_API MMK_MUST_CHECK int mmk_region_advise(mmk_region *region, size_t offset, size_t length, int advice);

/* Fault every page of a range in, for reading, or for writing (which allocates or copies them).
 * MADV_POPULATE_READ, MADV_POPULATE_WRITE, Linux 5.14. A snapshot keeps pages that are populated for writing, also
 * where the kernel does not know the advice (-EINVAL): system calls may write to them then.
 *
 * returns  0
 *          -EFAULT  an access would get a signal: past the end of the file, a guard, no huge page, no space
 *          -ENOMEM  no memory
 *          -errno */
MMK_API MMK_MUST_CHECK int mmk_region_populate(mmk_region *region, size_t offset, size_t length, bool write);

/* Give the pages back. Private anonymous memory reads as zeros then, a private file mapping reads the
 * file again; shared memory keeps its contents, and only this process's hold on them goes. MADV_DONTNEED.
 *
 * returns  0
 *          -MMK_EPINNED  a live view or a running operation needs the range, and force is false
 *          -EINVAL       the range holds locked pages */
MMK_API MMK_MUST_CHECK int mmk_region_discard(mmk_region *region, size_t offset, size_t length, bool force);

/* The same by another advice that destroys: MADV_FREE, MADV_REMOVE, MADV_DONTNEED_LOCKED, MADV_HWPOISON,
 * MADV_SOFT_OFFLINE. Guards have calls of their own, which remember them: mmk_region_guard.
 *
 * returns  0
 *          -MMK_EPINNED  as above
 *          -errno        of madvise(2) */
MMK_API MMK_MUST_CHECK int mmk_region_destroy(mmk_region *region, size_t offset, size_t length, int advice, bool force);

#endif
