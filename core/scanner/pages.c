#include "pages.h"

#include <stdbool.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <mmkit/base.h>

/* pagemap, Documentation/admin-guide/mm/pagemap.rst. A guard (Linux 6.15 tells) counts as swapped otherwise. */
#define PAGE_PRESENT (UINT64_C(1) << 63)
#define PAGE_SWAPPED (UINT64_C(1) << 62)
#define PAGE_GUARD (UINT64_C(1) << 58)

enum { ENTRIES = 512 };

/* struct pm_scan_arg and struct page_region of linux/fs.h, 6.7. */
typedef struct pagemap_scan {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
} pagemap_scan;
typedef struct page_region {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
} page_region;

_Static_assert(sizeof(pagemap_scan) == 96, "the kernel's struct has 96 bytes");

static const unsigned long PAGEMAP_SCAN_CALL = _IOWR('f', 16, pagemap_scan);
#define CATEGORY_PRESENT (UINT64_C(1) << 3)
#define CATEGORY_SWAPPED (UINT64_C(1) << 4)

/* Find the first page in [place, end) that is present or swapped, without looking at each: what was never touched
 * has no page tables, and terabytes of it are passed over at once. Before Linux 6.7 that is place. */
static uint64_t pass_over(int pagemap, uint64_t place, uint64_t end)
{
    page_region first = {0};
    pagemap_scan scan = {
        .size = sizeof scan,
        .start = place,
        .end = end,
        .vec = (uintptr_t)&first,
        .vec_len = 1,
        .max_pages = 1,
        .category_anyof_mask = CATEGORY_PRESENT | CATEGORY_SWAPPED,
        .return_mask = CATEGORY_PRESENT | CATEGORY_SWAPPED,
    };
    int found = ioctl(pagemap, PAGEMAP_SCAN_CALL, &scan);
    if (found < 0)
        return place;
    return found ? first.start : end;
}

static bool holds_something(uint64_t entry)
{
    return (entry & (PAGE_PRESENT | PAGE_SWAPPED)) && !(entry & PAGE_GUARD);
}

uint64_t pages_next_run(int pagemap, uint64_t *start, uint64_t end)
{
    static uint64_t entries[ENTRIES];
    uint64_t page = mmk_page_size(), place = *start;
    bool in_run = false;
    while (place < end) {
        uint64_t wanted = (end - place + page - 1) / page;
        size_t length = (wanted < ENTRIES ? wanted : ENTRIES) * sizeof entries[0];
        ssize_t got = pread(pagemap, entries, length, (off_t)(place / page * sizeof entries[0]));
        if (got < (ssize_t)sizeof entries[0])
            return end;
        for (size_t i = 0; i < (size_t)got / sizeof entries[0]; i++, place += page) {
            if (holds_something(entries[i]) == in_run)
                continue;
            if (in_run)
                return place;
            in_run = true;
            *start = place;
        }
        if (!in_run && place < end)
            place = pass_over(pagemap, place, end);
    }
    if (!in_run)
        *start = end;
    return end;
}
