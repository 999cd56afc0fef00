/* snapshot.h: a region as it was, while it goes on being written to.
 *
 *     taken          every page is write-protected: mprotect(2)
 *     first write    SIGSEGV ──> the hook keeps the page, allows writing, and the store runs again
 *     other writes   as fast as ever
 *
 *     region    [ page 0 ][ page 1 ][ page 2 ][ page 3 ]     1 and 3 were written since
 *     kept      [        ][ page 1 ][        ][ page 3 ]     as they were: what nobody wrote is read from the region
 *
 * Caught is every store of this process: by C code, by numpy, through views. Not by the kernel: a system call that
 * writes into a page that nobody has written yet answers EFAULT (read(2), recv(2)). mmk_region_populate(write) keeps
 * the pages and opens them beforehand.
 *
 * Of private anonymous memory only, which nobody else writes to; one at a time, and no other hook. While a region has
 * a snapshot, what would lose contents unseen answers -MMK_EPINNED, by force as well: closing, discarding, punching,
 * guarding, cutting, moving, and sealing. Protections may change, and the region grow where it is.
 *
 * Threads: any call from any thread; a writer waits for nobody but the thread that keeps the same page just now.
 *          While it is taken, writers to pages that are protected already wait: it is one instant for all threads,
 *          and whoever saw a write that is not in it writes nothing that is.
 * Fork:    the child has region and snapshot as they were, and each goes on by itself.
 * Signals: none of these; but handlers may write to the region.
 */
#ifndef MMKIT_SNAPSHOT_H
#define MMKIT_SNAPSHOT_H

#include <sys/types.h>

#include <mmkit/guarded.h>
#include <mmkit/region.h>

/* Owned by the caller, who keeps it at one address from take to release. All fields are the snapshot's own. */
struct mmk_snapshot {
    mmk_region *region;
    size_t length;                /* bytes: what was committed when it was taken */
    mmk_region kept;              /* pages as they were, `pages`, `faults`; address space until it is written to */
    _Atomic unsigned char *pages; /* what became of each: see src/snapshot.c */
    _Atomic size_t *faults;       /* 1 + offset of each first write, in their order */
    _Atomic size_t fault_count;
    _Atomic bool beginning; /* not all pages are protected yet: none is kept, whoever wants to write waits */
    bool ending;
};

/* Take a snapshot. mprotect(2).
 *
 * pre:     neither *snapshot nor this thread's stack lies in the region: the thread would wait for itself
 * returns  0
 *          -MMK_EUNSUPPORTED  not private anonymous memory
 *          -EBUSY             the region has a snapshot, or another fault hook
 *          -ENOMEM            no address space for as much again, or too many areas
 *          -errno             of mprotect(2): -EPERM sealed
 *          -MMK_ECLOSED
 * On error nothing has changed, and there is nothing to release.
 * Costs memory only for pages written since. Each of them may split an area: after some thousands, and where the
 * process has too many (vm.max_map_count), pages around are kept as well. */
MMK_API MMK_MUST_CHECK int mmk_snapshot_take(mmk_snapshot *snapshot, mmk_region *region);

/* End it: no write is caught any more. Writers that are just being served come through. Does nothing for one that was
 * released, or never taken. Other calls on it have ended before, or answer -MMK_ECLOSED. */
MMK_API void mmk_snapshot_release(mmk_snapshot *snapshot);

/* Copy out what stood in [offset, offset + length) when it was taken.
 *
 * returns  0
 *          -ERANGE
 *          -EFAULT       with *fault filled: `into` cannot be written, or a page that was not kept cannot be read now
 *          -MMK_ECLOSED  it was released, or its region is not there in this process */
MMK_API MMK_MUST_CHECK int mmk_snapshot_read(mmk_snapshot *snapshot, size_t offset, void *into, size_t length,
                                             mmk_fault *fault);

/* Write back every page that was written since. It stays taken, and those pages stay kept.
 *
 * returns  0
 *          -EFAULT  with *fault filled: a page may not be written now; if by its protection, nothing has changed
 *          -MMK_ECLOSED
 * A write that another thread makes meanwhile may stay. */
MMK_API MMK_MUST_CHECK int mmk_snapshot_restore(mmk_snapshot *snapshot, mmk_fault *fault);

/* The first run of kept pages at or behind *offset.
 * returns  1 with *offset and *length, in bytes; 0 if there is none; -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_snapshot_next_dirty(mmk_snapshot *snapshot, size_t *offset, size_t *length);

/* Where the first writes hit, one for each page that a write was caught on, from number `first` on.
 * returns  how many there were, at most `count`; -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK ssize_t mmk_snapshot_faults(mmk_snapshot *snapshot, size_t first, size_t *offsets, size_t count);

#endif
