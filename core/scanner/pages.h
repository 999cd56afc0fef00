/* pages.h: which pages of private memory hold anything, from /proc/PID/pagemap. */
#ifndef MMKIT_SCANNER_PAGES_H
#define MMKIT_SCANNER_PAGES_H

#include <stdint.h>

/* Find the next run of pages in [*start, end) that were ever written; reading others would make them.
 * Where pagemap cannot be read, that is all of it.
 *
 * pagemap  open for reading, or negative
 * start    of a page; moves to the start of the run
 * returns  where the run ends; *start == end if there is none */
uint64_t pages_next_run(int pagemap, uint64_t *start, uint64_t end);

#endif
