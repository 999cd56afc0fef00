/* resize.h: growing and shrinking a region.
 *
 *     in place      the address space behind the data is the region's own (reserved), or free
 *     by moving     otherwise: the pages go to a new place, no byte is copied, and the old addresses
 *                   stay taken (PROT_NONE) so that a stale pointer faults
 *
 * A region that has to move takes as much again in reserve, so that growing step by step moves it
 * a logarithmic number of times. Threads, fork, signals: see region.h.
 */
#ifndef MMKIT_RESIZE_H
#define MMKIT_RESIZE_H

#include <mmkit/region.h>

/* Make the region `asked` bytes long (committed length: rounded up to the granule). mremap(2), ftruncate(2).
 *
 * A file that ended within the region ends at its new end; a file that goes on behind the region keeps
 * its size. New bytes are zeros, or what the file has there. Locks, guards and partial protections stay
 * with their pages; the grown part has none.
 *
 * *vacated  the addresses left behind by a move, or empty; the caller unmaps them (mmk_sys_munmap) once
 *           nobody can hold a pointer into them
 * returns   0
 *           -EINVAL            asked is 0
 *           -MMK_EPINNED       a live view, a snapshot or a running operation needs what would be cut off or moved
 *           -MMK_EUNSUPPORTED  a private file region; growing shared memory that has no file (mremap(2)
 *                              "succeeds" there, and the new part gets SIGBUS); or moving locked pages
 *           -ENOMEM            no address space or no memory
 *           -errno             of ftruncate(2): -EINVAL opened for reading only, -EPERM sealed, -EFBIG, -ENOSPC
 *           -MMK_ECLOSED
 * On error nothing has changed. */
MMK_API MMK_MUST_CHECK int mmk_region_resize(mmk_region *region, size_t asked, mmk_range *vacated);

/* The same, and the file ends where the region does, even if it went on behind it: what is there is cut off.
 * Without a file it is mmk_region_resize.
 *
 * returns  as mmk_region_resize; a file that cannot be cut (-EPERM: sealed) leaves region and file as long as they
 *          were, but the region may have moved: *vacated is filled then, beside the error. */
MMK_API MMK_MUST_CHECK int mmk_region_resize_with_file(mmk_region *region, size_t asked, mmk_range *vacated);

#endif
