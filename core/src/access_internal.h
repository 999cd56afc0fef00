/* access_internal.h: touching the contents inside an operation. */
#ifndef MMKIT_ACCESS_INTERNAL_H
#define MMKIT_ACCESS_INTERNAL_H

#include <mmkit/access.h>

/* Pin the region for an access that needs prot. On error it is not pinned. returns as access.h */
MMK_MUST_CHECK int access_begin(mmk_region *region, size_t offset, size_t length, int needed, mmk_fault *fault);

/* mmk_access_load inside an operation. pre: the range lies inside the region. returns 0 or -EFAULT */
MMK_MUST_CHECK int access_load(const mmk_region *region, size_t offset, void *into, size_t length, mmk_fault *fault);

/* Say more of a fault than the kernel did. */
void region_explain_fault(const mmk_region *region, mmk_fault *fault);

/* Where the kernel gives no signal behind the end of the file, look. returns 0 or -EFAULT */
MMK_MUST_CHECK int region_check_end(const mmk_region *region, size_t offset, size_t length, bool write,
                                    mmk_fault *fault);

#endif
