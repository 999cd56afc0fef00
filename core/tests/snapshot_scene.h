/* snapshot_scene.h: what the tests of snapshots share: a region whose pages are numbered, and a snapshot of it. */
#ifndef MMKIT_TEST_SNAPSHOT_SCENE_H
#define MMKIT_TEST_SNAPSHOT_SCENE_H

#include <mmkit/snapshot.h>

#include "storing.h"

static mmk_region region;
static mmk_snapshot snapshot;
static char copy[PAGES * 65536];

static inline void map_numbered_pages(void)
{
    map_pages(&region, PAGES);
    number_pages(&region);
}

static inline void open_scene(void)
{
    map_numbered_pages();
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
}

static inline void close_scene(void)
{
    mmk_snapshot_release(&snapshot);
    CHECK(mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
}

static inline bool snapshot_is_numbered(void)
{
    memset(copy, 0, sizeof copy);
    CHECK(mmk_snapshot_read(&snapshot, 0, copy, pages(PAGES), &fault) == 0);
    return pages_are_numbered(copy, PAGES);
}

static inline size_t dirty_bytes(void)
{
    size_t total = 0;
    for (size_t offset = 0, length = 0; mmk_snapshot_next_dirty(&snapshot, &offset, &length) == 1; offset += length)
        total += length;
    return total;
}

/* This thread's mprotect(2) is judged while watched.armed. In a child. */
static inline void watch_mprotect(call_judge *judge)
{
    watch_calls(judge, (const long[4]){SYS_mprotect, SYS_mprotect, SYS_mprotect, SYS_mprotect});
}

#endif
