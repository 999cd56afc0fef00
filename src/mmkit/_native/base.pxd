"""core/include/mmkit/base.h, and the one way an error gets out."""

cdef extern from "mmkit/base.h" nogil:
    int MMK_ECLOSED
    int MMK_EPINNED
    int MMK_EOVERLAP
    int MMK_EUNSUPPORTED
    int MMK_ESHRUNK
    int MMK_EFOREIGN
    int MMK_ETHREADS
    int MMK_ETAKEN
    int MMK_ECORRUPT
    int MMK_EFORMAT
    int MMK_ENOTBLOCK

    ctypedef struct mmk_range:
        char *base
        size_t length

    size_t mmk_page_size()
