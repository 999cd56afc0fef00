/* access.h: the one place through which mmkit itself touches the contents of a region.
 *
 * Offsets are bytes from the region's base, and need no alignment. Each call pins the region for as long
 * as it runs. On -EACCES and -ERANGE nothing was touched.
 *
 * returns (all)  0, or an offset found
 *                -MMK_ECLOSED
 *                -ERANGE   the range is not inside the region
 *                -EACCES   the region's protection forbids it
 * Threads: any call from any thread; bytes themselves are not protected against racing writers.
 * Fork: nothing is kept. Signals: no.
 */
#ifndef MMKIT_ACCESS_H
#define MMKIT_ACCESS_H

#include <sys/types.h>

#include <mmkit/region.h>

/* Copy out of the region. pre: `into` is not part of the range. */
MMK_API MMK_MUST_CHECK int mmk_access_load(mmk_region *region, size_t offset, void *into, size_t length);

/* Copy into the region; `from` may overlap the range. */
MMK_API MMK_MUST_CHECK int mmk_access_store(mmk_region *region, size_t offset, const void *from, size_t length);

/* Where needle first (last) stands in the range: its offset from base, or -ENOENT.
 * An empty needle stands at the start (end). */
MMK_API MMK_MUST_CHECK ssize_t mmk_access_find(mmk_region *region, size_t offset, size_t length, const void *needle,
                                               size_t needle_length);
MMK_API MMK_MUST_CHECK ssize_t mmk_access_rfind(mmk_region *region, size_t offset, size_t length, const void *needle,
                                                size_t needle_length);

#endif
