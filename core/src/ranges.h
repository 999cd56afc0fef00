/* ranges.h: the sorted set of address ranges behind the registry, which signal handlers read without locks.
 *
 *     root:  [ from 0, leaf 0 | from key 1, leaf 1 | ... ]
 *               |                 \
 *     leaf 0: [ entry, entry, ... ]  leaf 1: [ entry, ... ]
 *
 * A leaf that readers can reach never changes: a change copies it and puts the copy in its place; where leaves are
 * split or joined, the root is copied too. The old ones are used again when readers_wait says so. So each change is
 * seen whole or not at all; and what a call takes out, no reader has or can find when the call returns.
 *
 * Entries are disjoint, but for one case: while a region moves on an old kernel, another may have been mapped where it
 * was (see resize.c). Then a lookup in either may find the other one, or nothing.
 *
 * Memory: the set's own mappings, not malloc's, because a malloc may one day stand on regions. It grows with the
 * largest number of entries there ever was, in ranges_make_room only: no other call can fail.
 *
 * Threads: one caller at a time (the registry's lock), and at the same time any number of ranges_find between
 *          readers_enter and readers_leave.
 * Signals: ranges_find is async-signal-safe.
 */
#ifndef MMKIT_RANGES_H
#define MMKIT_RANGES_H

#include <mmkit/region.h>

/* Who holds a range: a region, or nobody in particular (NULL), for addresses that a region left behind. */
typedef struct entry {
    mmk_range range;
    mmk_region *region;
} entry;

/* Make sure that there is room for one entry more. returns 0; or -ENOMEM, and nothing has changed. */
MMK_MUST_CHECK int ranges_make_room(void);

/* Put an entry in.
 * pre: ranges_make_room has promised room; and what was taken out since may be put back without asking again. */
void ranges_put(const entry *added);

/* Take the entry with this base and region out. pre: it is in. */
void ranges_take(const entry *gone);

/* Give an entry another range: readers find it throughout. pre: it is in. */
void ranges_move(const entry *moved, mmk_range to);

/* The lowest entry that ends after address. */
bool ranges_find(uintptr_t address, entry *found);

size_t ranges_count(void);

/* A walk over all entries in order of address, from {0} on:
 *     for (ranges_place place = {0}; ranges_next(&place, &found);)
 * After an entry was taken out, the walk goes on at ranges_place_of it. */
typedef struct ranges_place {
    size_t leaf;
    size_t index;
} ranges_place;

bool ranges_next(ranges_place *place, entry *found);
ranges_place ranges_place_of(const entry *wanted);

/* Is everything as ranges.c wants it? For tests. */
bool ranges_check(void);

#endif
