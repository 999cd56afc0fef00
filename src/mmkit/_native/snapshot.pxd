"""core/include/mmkit/snapshot.h."""

from mmkit._native.fault cimport mmk_fault
from mmkit._native.region cimport mmk_region

cdef extern from "mmkit/snapshot.h" nogil:
    ctypedef struct mmk_snapshot:
        pass

    int mmk_snapshot_take(mmk_snapshot *snapshot, mmk_region *region)
    void mmk_snapshot_release(mmk_snapshot *snapshot)
    int mmk_snapshot_read(mmk_snapshot *snapshot, size_t offset, void *into, size_t length, mmk_fault *fault)
    int mmk_snapshot_restore(mmk_snapshot *snapshot, mmk_fault *fault)
    int mmk_snapshot_next_dirty(mmk_snapshot *snapshot, size_t *offset, size_t *length)
    ssize_t mmk_snapshot_faults(mmk_snapshot *snapshot, size_t first, size_t *offsets, size_t count)
