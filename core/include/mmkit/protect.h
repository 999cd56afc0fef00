/* protect.h: what may be done with the pages of a region: mprotect(2) with a memory.
 *
 * The kernel keeps one protection a page and forgets the one before. mmkit keeps, for each page:
 *
 *     guard            no access at all, until unguarded
 *     covers           newest first; each holds for a while (a `with` block) over a range
 *     base protection  what mmk_region_protect last set
 *
 * The topmost that says something about a page is in force. Covers end in any order: two threads may
 * hold overlapping ones, and when the last ends, each page has its base protection again.
 *
 * Ranges are whole granules (else -EINVAL) inside the region (else -ERANGE); every call answers -MMK_ECLOSED on a
 * closed region. Threads, fork, signals: see region.h.
 */
#ifndef MMKIT_PROTECT_H
#define MMKIT_PROTECT_H

#include <mmkit/region.h>

/* Set the base protection of a range. mprotect(2). Where a cover holds, it takes effect when that ends.
 *
 * force    go on even if a live view or a running operation loses access
 * returns  0
 *          -MMK_EPINNED  it would take access from a live view, or an operation is running
 *          -EACCES       the file was not opened for what prot asks
 *          -ENOMEM       the split would exceed vm.max_map_count, or no memory for bookkeeping
 *          -errno        of mprotect(2)
 * On error the recorded protections are in force again, as far as the kernel lets them. */
MMK_API MMK_MUST_CHECK int mmk_region_protect(mmk_region *region, size_t offset, size_t length, int prot, bool force);

/* Lay a protection over a range, until mmk_region_uncover. Errors as for mmk_region_protect.
 *
 * pre:     *cover stays where it is until it is uncovered, or the region closed. */
MMK_API MMK_MUST_CHECK int mmk_region_cover(mmk_region *region, mmk_cover *cover, size_t offset, size_t length,
                                            int prot, bool force);

/* Take a cover away: what lies below it is in force again.
 *
 * force    go on even if a live view loses access
 * returns  0, also when the region was closed meanwhile
 *          -MMK_EPINNED  a live view would lose access; the cover still holds
 *          (waits for operations that run)
 *          -errno        of mprotect(2); the cover is gone, the protection of its range unsure */
MMK_API int mmk_region_uncover(mmk_region *region, mmk_cover *cover, bool force);

/* Any access to a range faults from now on, whatever its protection. madvise(2), MADV_GUARD_INSTALL.
 *
 * returns  0
 *          -MMK_EPINNED  a live view or a running operation needs the range, and force is false
 *          -EINVAL       the range holds locked pages
 *          -errno
 * Private anonymous contents are lost. Guards cost no VMA; where the kernel has none (before 6.13, and
 * for files before 6.15) they are PROT_NONE pages and cost up to two. */
MMK_API MMK_MUST_CHECK int mmk_region_guard(mmk_region *region, size_t offset, size_t length, bool force);

/* Take the guards out of a range; pages that have none are left alone. MADV_GUARD_REMOVE. */
MMK_API MMK_MUST_CHECK int mmk_region_unguard(mmk_region *region, size_t offset, size_t length);

/* What every page of a range allows: the protections in force, and-ed. Guards are not looked at.
 * pre: the range lies inside the region. */
MMK_API int mmk_region_prot_of_range(mmk_region *region, size_t offset, size_t length);

#endif
