"""core/include/mmkit/scan.h."""

cdef extern from "mmkit/scan.h" nogil:
    enum:
        MMK_SCAN_NEEDLE_MIN
        MMK_SCAN_NEEDLE_MAX
