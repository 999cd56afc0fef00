/* base.h: what every header of the core stands on: linkage, error codes, pages.
 *
 * Calls return 0 (or a size, or an address) or a negative error: -errno as the kernel gave it, or
 * one of mmkit's own codes, which start below the kernel's range (errno(3) ends at 4095).
 */
#ifndef MMKIT_BASE_H
#define MMKIT_BASE_H

#include <stddef.h>
#include <stdint.h>

#define MMK_API __attribute__((visibility("default")))
#define MMK_MUST_CHECK __attribute__((warn_unused_result))

enum {
    MMK_ECLOSED = 4097,      /* the region was closed, or is not there in this process */
    MMK_EPINNED = 4098,      /* a live view, snapshot or running operation needs what the call would take away */
    MMK_EOVERLAP = 4099,     /* the address range overlaps a live region */
    MMK_EUNSUPPORTED = 4100, /* this kind of region cannot do that */
    MMK_ESHRUNK = 4101,      /* the file ends before the range does: part of the range is no longer stored */
    MMK_EFOREIGN = 4102,     /* it would take memory that belongs to somebody else in the process */
    MMK_ETHREADS = 4103,     /* not while the process has other threads */
    MMK_ETAKEN = 4104,       /* a heap, a pool or an arena that stands there would be overwritten */
    MMK_ECORRUPT = 4110,     /* the contents are damaged, or are something else */
    MMK_EFORMAT = 4111,      /* the contents have a format that this version does not know */
    MMK_EOTHERPIDS = 4112,   /* made in another PID or time namespace: nobody here can tell who of its users lives */
    MMK_ENOTBLOCK = 4120,    /* no live block of the heap is there: freed already, or never allocated */
};

/* A range of addresses, in bytes; empty when length is 0. */
typedef struct mmk_range {
    char *base;
    size_t length;
} mmk_range;

/* The kernel's base page size in bytes: a power of two, at least 4096. sysconf(3), _SC_PAGESIZE. */
MMK_API size_t mmk_page_size(void);

static inline size_t mmk_round_down(size_t value, size_t power_of_two)
{
    return value & ~(power_of_two - 1);
}

/* pre: value + power_of_two - 1 does not wrap. */
static inline size_t mmk_round_up(size_t value, size_t power_of_two)
{
    return (value + power_of_two - 1) & ~(power_of_two - 1);
}

#endif
