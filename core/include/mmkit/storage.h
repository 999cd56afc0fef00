/* storage.h: a region and what stands behind it: writing changes to the file, giving storage back.
 *
 * A range that is not inside the region is -ERANGE; every call answers -MMK_ECLOSED on a closed region.
 * Threads, fork, signals: see region.h.
 */
#ifndef MMKIT_STORAGE_H
#define MMKIT_STORAGE_H

#include <mmkit/guarded.h>
#include <mmkit/region.h>

/* Write changed pages of a shared file region to the file. msync(2).
 *
 * pre:     offset and length are whole granules inside the region.
 * flags    MS_SYNC (wait) or MS_ASYNC (since Linux 2.6.19 a no-op), with or without MS_INVALIDATE
 * returns  0
 *          -MMK_ESHRUNK  the file now ends before the range does: what lay beyond is lost. The kernel
 *                        does not say so; asked only with MS_SYNC
 *          -ENOMEM       part of the range is not mapped
 *          -EBUSY        MS_INVALIDATE, and part of the range is locked
 *          -EIO          writing failed */
MMK_API MMK_MUST_CHECK int mmk_region_flush(mmk_region *region, size_t offset, size_t length, int flags);

/* Make [offset, offset + length) read as zeros and give back the memory or the storage of its whole pages.
 * Files: fallocate(2), FALLOC_FL_PUNCH_HOLE. Anonymous memory: madvise(2), DONTNEED or REMOVE.
 *
 * pre:     the range lies inside the region; it need not be whole pages.
 * returns  0
 *          -MMK_EPINNED       a live view or a running operation needs the range, and force is false
 *          -MMK_EUNSUPPORTED  a private file region: its pages come from the file, there is nothing to give back
 *          -EFAULT            with *fault filled: an edge that must be zeroed is not writable, guarded, or not backed
 *          -EBADF             the file was opened for reading only
 *          -EINVAL            private anonymous memory: the range holds locked pages
 *          -errno             of fallocate(2) */
MMK_API MMK_MUST_CHECK int mmk_region_punch(mmk_region *region, size_t offset, size_t length, bool force,
                                            mmk_fault *fault);

/* How long the file behind the region is, in bytes: it can reach further than the region. fstat(2).
 *
 * returns  0 with *size filled
 *          -EBADF  no file stands behind it */
MMK_API MMK_MUST_CHECK int mmk_region_file_size(mmk_region *region, uint64_t *size);

/* Forbid things to everybody who has the memory file behind the region, for ever. fcntl(2), F_ADD_SEALS.
 * With F_SEAL_SHRINK among the seals the region no longer looks whether its file was cut.
 *
 * returns  0
 *          -EBADF   no file stands behind it
 *          -EBUSY   F_SEAL_WRITE, and a writable mapping lives
 *          -EPERM   sealed by F_SEAL_SEAL, or opened for reading only
 *          -EINVAL  the file's kind has no seals */
MMK_API MMK_MUST_CHECK int mmk_region_add_seals(mmk_region *region, int seals);

#endif
