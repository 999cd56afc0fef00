"""What acts on the pages of a region in core/include/mmkit; and the class that calls it."""

from mmkit._native.base cimport mmk_range
from mmkit._native.fault cimport mmk_fault
from mmkit._native.region cimport MappedRegion, bool, mmk_cover, mmk_region, span

cdef extern from "mmkit/protect.h" nogil:
    int mmk_region_protect(mmk_region *region, size_t offset, size_t length, int prot, bool force)
    int mmk_region_cover(mmk_region *region, mmk_cover *cover, size_t offset, size_t length, int prot, bool force)
    int mmk_region_uncover(mmk_region *region, mmk_cover *cover, bool force)
    int mmk_region_guard(mmk_region *region, size_t offset, size_t length, bool force)
    int mmk_region_unguard(mmk_region *region, size_t offset, size_t length)

cdef extern from "mmkit/advice.h" nogil:
    bool mmk_advice_destroys(const mmk_region *region, int advice)
    int mmk_region_advise(mmk_region *region, size_t offset, size_t length, int advice)
    int mmk_region_populate(mmk_region *region, size_t offset, size_t length, bool write)
    int mmk_region_discard(mmk_region *region, size_t offset, size_t length, bool force)
    int mmk_region_destroy(mmk_region *region, size_t offset, size_t length, int advice, bool force)

cdef extern from "mmkit/storage.h" nogil:
    int mmk_region_flush(mmk_region *region, size_t offset, size_t length, int flags)
    int mmk_region_punch(mmk_region *region, size_t offset, size_t length, bool force, mmk_fault *fault)

cdef extern from "mmkit/residency.h" nogil:
    int mmk_region_lock(mmk_region *region, size_t offset, size_t length)
    int mmk_region_unlock(mmk_region *region, size_t offset, size_t length)
    int mmk_region_resident(mmk_region *region, size_t offset, size_t length, int pagemap, size_t *bytes)
    int mmk_region_cached(mmk_region *region, size_t offset, size_t length, size_t *bytes)

cdef extern from "mmkit/resize.h" nogil:
    int mmk_region_resize(mmk_region *region, size_t asked, mmk_range *vacated)
    int mmk_region_resize_with_file(mmk_region *region, size_t asked, mmk_range *vacated)


cdef inline bint may_block(int advice) noexcept:
    """Everything but advice that only marks the area walks pages, and may wait for them."""
    # NORMAL RANDOM SEQUENTIAL, DONTFORK DOFORK, HUGEPAGE NOHUGEPAGE DONTDUMP DODUMP WIPEONFORK KEEPONFORK
    return not (0 <= advice <= 2 or 10 <= advice <= 11 or 14 <= advice <= 19)


cdef class RegionPages(MappedRegion):
    cdef tuple flush_pages(self, span pages, int flags)
    cdef object punch_failure(self, long code, span pages, const mmk_fault *fault)
    cdef object resize_failure(self, long code, size_t length)
