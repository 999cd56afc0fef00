#include "pages.h"

#include <stdbool.h>
#include <unistd.h>

#include <mmkit/base.h>

/* pagemap, Documentation/admin-guide/mm/pagemap.rst. A guard (Linux 6.15 tells) counts as swapped otherwise. */
#define PAGE_PRESENT (UINT64_C(1) << 63)
#define PAGE_SWAPPED (UINT64_C(1) << 62)
#define PAGE_GUARD (UINT64_C(1) << 58)

enum { ENTRIES = 512 };

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
    }
    if (!in_run)
        *start = end;
    return end;
}
