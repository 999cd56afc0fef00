/* snapshot_internal.h: what changes of a region have to know of its snapshot. */
#ifndef MMKIT_SNAPSHOT_INTERNAL_H
#define MMKIT_SNAPSHOT_INTERNAL_H

#include <mmkit/snapshot.h>

/* mprotect(2) of pages [first, end) of a region that has a snapshot: those that nobody has written yet stay
 * write-protected until somebody does. pre: the region's lock is held. returns 0 or -errno */
int snapshot_mprotect(mmk_snapshot *snapshot, size_t first, size_t end, int prot);

/* Keep the pages of a range, as if they were written to, and let everybody write there. Does nothing without a
 * snapshot. pre: the range lies inside the region, which is pinned; the lock need not be held. */
void snapshot_keep(mmk_region *region, size_t offset, size_t length);

/* In a fork child: the threads that were keeping pages are not here. */
void snapshot_after_fork(mmk_snapshot *snapshot);

#endif
