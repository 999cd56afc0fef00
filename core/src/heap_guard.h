/* heap_guard.h: guarded blocks, each on pages of its own, which nothing else is on.
 *
 *     area:   … guard │ slot                                          │ slot …
 *                     │ [ not used ][ canary | block ][ canary ][ guard ] │
 *                       no access    its pages, to the end of     no access
 *                                    which it reaches             always
 *
 * The block ends where its last page does, but for what its alignment takes: so an access past that faults. What is
 * left of its pages holds a canary, which free looks at. A freed block's pages are taken away, with their contents, and
 * wait in quarantine, in the order in which they were freed, before the slot is used again: an access faults as well.
 *
 * Everything in an area is guarded but the pages of live blocks: by MADV_GUARD_INSTALL, which costs no area of the
 * process; before Linux 6.13 by mprotect(2), which costs two for each block: blocks take three quarters of the
 * vm.max_map_count there are at most. What is known of a block stands apart, in the record of its first page, where no
 * block's overrun reaches.
 *
 * The idea is Electric Fence's (B. Perens, 1987).
 */
#ifndef MMKIT_HEAP_GUARD_H
#define MMKIT_HEAP_GUARD_H

#include "heap_internal.h"
#include "line.h"

enum {
    GUARD_AREAS = 32,
    GUARD_CLASSES = 256,        /* sizes of slots: each of 1 to 16 pages, then 8 for each power of two */
    GUARD_QUARANTINE = 1 << 16, /* pages that wait at most, but for the last block freed: no memory, but addresses */
    CANARY = 0xcb,
};

typedef enum guard_state {
    GUARD_NONE, /* no block starts on the page */
    GUARD_LIVE,
    GUARD_FREED,
} guard_state;

/* The block that starts on a page. */
typedef struct guard_record {
    char *start;
    size_t size;
    struct guard_record *next; /* behind it in quarantine, or on a list of free slots */
    struct guard_area *area;
    uint32_t slot;  /* page of the area at which the slot starts */
    uint32_t pages; /* of the slot, with its guard at the end */
    uint32_t data;  /* pages of the block */
    uint32_t state;
} guard_record;

typedef struct guard_area {
    mmk_region region;      /* first: the fault hook is told of the region */
    mmk_region records;     /* a guard_record for each page */
    size_t used;            /* pages of slots that were ever given */
    _Atomic uintptr_t told; /* the last address whose fault was told of: the instruction may fault again */
} guard_area;

typedef struct heap_guard {
    unsigned area_count;
    bool by_mprotect;
    size_t most_live;     /* by_mprotect: blocks, so that the program has areas left for other things */
    struct timespec tick; /* in which the fault handler was last put in front of others' */
    bool keeps_contents;  /* some page that is free is perhaps not zeros */
    guard_area areas[GUARD_AREAS];
    guard_record *slots[GUARD_CLASSES]; /* free ones, out of quarantine */
    guard_record *first, *last;         /* in quarantine */
    size_t waiting;                     /* pages of them */
} heap_guard;

static inline guard_record *guard_record_at(const guard_area *area, size_t page)
{
    return (guard_record *)area->records.base + page;
}

static inline size_t guard_page_of(const guard_area *area, uintptr_t address)
{
    return (address - (uintptr_t)area->region.base) / mmk_page_size();
}

static inline char *guard_data_of(const guard_record *record)
{
    return (char *)mmk_round_down((uintptr_t)record->start, mmk_page_size());
}

static inline char *guard_end_of(const guard_record *record)
{
    return guard_data_of(record) + record->data * mmk_page_size();
}

/* The area that has the address; NULL: none. */
static inline guard_area *guard_area_of(heap_guard *guard, uintptr_t address)
{
    for (unsigned i = 0; i < guard->area_count; i++) {
        guard_area *area = &guard->areas[i];
        if (address - (uintptr_t)area->region.base < mmk_region_length(&area->region))
            return area;
    }
    return NULL;
}

/* ---- heap_guard_report.c ---- */

/* Of the area's region: tells of a fault in it, and passes it on. */
mmk_fault_hook guard_tell_of_fault;

/* A canary of a live block is not as it was. Ends the process. */
__attribute__((cold, noreturn)) void guard_damaged(const guard_record *record, const char *at);

/* Add what is known of an address that is no live block's: "4 bytes into the freed block of …". */
void guard_describe(heap_guard *guard, uintptr_t address, line *to);

#endif
