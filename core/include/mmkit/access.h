/* access.h: the one place through which mmkit itself touches the contents of a region.
 *
 * Offsets are bytes from the region's base, and need no alignment. Each call pins the region for as long
 * as it runs. Memory that cannot be touched is no crash: see guarded.h. That holds for the caller's buffers, too,
 * which may be views of other regions.
 *
 * returns (all)  0, or an offset found
 *                -MMK_ECLOSED
 *                -ERANGE   the range is not inside the region; nothing was touched
 *                -EFAULT   with *fault filled: the region's protection forbids it, and nothing was touched; or
 *                          some byte is not there, and what lies in front of it may have been copied
 * Threads: any call from any thread; bytes themselves are not protected against racing writers.
 * Fork: nothing is kept. Signals: no.
 */
#ifndef MMKIT_ACCESS_H
#define MMKIT_ACCESS_H

#include <sys/types.h>

#include <mmkit/guarded.h>
#include <mmkit/region.h>

/* Copy out of the region. pre: `into` is not part of the range. */
MMK_API MMK_MUST_CHECK int mmk_access_load(mmk_region *region, size_t offset, void *into, size_t length,
                                           mmk_fault *fault);

/* Copy into the region; `from` may overlap the range. */
MMK_API MMK_MUST_CHECK int mmk_access_store(mmk_region *region, size_t offset, const void *from, size_t length,
                                            mmk_fault *fault);

/* Copy within the region, as memmove(3): the ranges may overlap. Reads one, writes the other. */
MMK_API MMK_MUST_CHECK int mmk_access_move(mmk_region *region, size_t to, size_t from, size_t length, mmk_fault *fault);

/* Where needle first (last) stands in the range: its offset from base, or -ENOENT; -ENOMEM where there is no memory
 * for a copy of a long needle. An empty needle stands at the start (end). */
MMK_API MMK_MUST_CHECK ssize_t mmk_access_find(mmk_region *region, size_t offset, size_t length, const void *needle,
                                               size_t needle_length, mmk_fault *fault);
MMK_API MMK_MUST_CHECK ssize_t mmk_access_rfind(mmk_region *region, size_t offset, size_t length, const void *needle,
                                                size_t needle_length, mmk_fault *fault);

#endif
