/* pagemap.h: what of a range of addresses is in RAM, from /proc/self/pagemap. */
#ifndef MMKIT_PAGEMAP_H
#define MMKIT_PAGEMAP_H

#include <mmkit/base.h>

/* Add the number of pages from address on that this process has in RAM to *present. pagemap: open for reading.
 * returns 0, -errno of pread(2) */
MMK_MUST_CHECK int pagemap_count_present(int pagemap, uintptr_t address, size_t pages, size_t *present);

#endif
