/* runs.h: a step function over page numbers: for each page a small integer, stored as sorted runs.
 *
 *     page      0        8    12        30            oo
 *               |  (gap) | 3  |  (gap)  |  7 ...
 *     runs      { [8, 12) = 3, [30, 40) = 7 }         gaps have the caller's default value
 *
 * It is how a region remembers what differs from page to page: protections and lock counts.
 * A region treated as a whole stores no run and costs nothing.
 *
 * Threads: none; the owner's lock serialises. Fork: plain memory. Signals: no.
 */
#ifndef MMKIT_RUNS_H
#define MMKIT_RUNS_H

#include <stdbool.h>

#include <mmkit/base.h>

typedef struct mmk_run {
    size_t first; /* first page */
    size_t end;   /* page after the last */
    int value;
} mmk_run;

/* All zero is an empty step function. Runs are sorted, disjoint, not empty; equal neighbours are merged. */
typedef struct mmk_runs {
    mmk_run *items;
    size_t count;
    size_t capacity;
} mmk_runs;

/* Make room, so that what follows a successful system call cannot fail.
 *
 * extra    how many runs more than now may be needed: 2 for each mmk_runs_set.
 * returns  0, or -ENOMEM with nothing changed. */
MMK_API MMK_MUST_CHECK int mmk_runs_reserve(mmk_runs *runs, size_t extra);

/* Give [first, end) one value; a value equal to otherwise (the value of gaps) stores nothing.
 * pre: first < end, and mmk_runs_reserve gave room for two more runs. */
MMK_API void mmk_runs_set(mmk_runs *runs, size_t first, size_t end, int value, int otherwise);

/* The value at page, and in *end the page up to which it stays the same (at most limit).
 * pre: page < limit. */
MMK_API int mmk_runs_at(const mmk_runs *runs, size_t page, size_t limit, int otherwise, size_t *end);

/* Forget every page from first on. */
MMK_API void mmk_runs_cut(mmk_runs *runs, size_t first);

/* Forget everything and free the memory. */
MMK_API void mmk_runs_clear(mmk_runs *runs);

/* Are the runs sorted, disjoint, not empty and merged? For tests and debug builds. */
MMK_API bool mmk_runs_check(const mmk_runs *runs, int otherwise);

#endif
