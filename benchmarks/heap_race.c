/* The same work for mmkit's heap and for glibc's malloc, in C: what bench_heap.py compares without Python.
 *
 * Times are the thread's CPU time, but for the slowest single call, which is of the clock.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdlib.h>
#include <time.h>

#include <mmkit/heap.h>

typedef void *alloc_function(size_t size);
typedef void free_function(void *block);

enum { MOST = 100000 };

static mmk_heap heap;

static void *heap_alloc(size_t size)
{
    void *block;
    return mmk_heap_alloc(&heap, size, 16, false, &block) ? NULL : block;
}

static void heap_free(void *block)
{
    if (mmk_heap_free(&heap, block))
        abort();
}

static void libc_free(void *block)
{
    free(block);
}

static int64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int64_t pairs(alloc_function *alloc, free_function *give, size_t size, int64_t n)
{
    int64_t start = now(CLOCK_THREAD_CPUTIME_ID);
    for (int64_t i = 0; i < n; i++) {
        void *block = alloc(size);
        __asm__ volatile("" : : "r"(block) : "memory");
        give(block);
    }
    return now(CLOCK_THREAD_CPUTIME_ID) - start;
}

typedef struct population {
    void *blocks[MOST];
    size_t live, least, most;
    uint64_t random;
} population;

static size_t random_size(population *of)
{
    return of->least + (size_t)(((next_random(&of->random) & UINT32_MAX) * (of->most - of->least + 1)) >> 32);
}

static void settle(population *of, alloc_function *alloc, size_t live, size_t least, size_t most)
{
    of->live = live;
    of->least = least;
    of->most = most;
    of->random = 88172645463325252;
    for (size_t i = 0; i < live; i++)
        of->blocks[i] = alloc(random_size(of));
}

static void replace_one(population *of, alloc_function *alloc, free_function *give)
{
    size_t i = (next_random(&of->random) >> 33) % of->live;
    give(of->blocks[i]);
    of->blocks[i] = alloc(random_size(of));
    *(char *)of->blocks[i] = 1;
}

static void end(population *of, free_function *give)
{
    for (size_t i = 0; i < of->live; i++)
        give(of->blocks[i]);
    of->live = 0;
}

static population ours, theirs;

/* ---- what bench_heap.py calls; whose: 0 mmkit's heap, 1 glibc ---- */

int race_open(void)
{
    return mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP});
}

/* Give back what is free, so that what an earlier race needed does not count; of ours, begin anew. */
int race_begin_anew(void)
{
    malloc_trim(0);
    mmk_heap_dispose(&heap);
    return race_open();
}

int64_t race_pairs(int whose, size_t size, int64_t n)
{
    return whose ? pairs(malloc, libc_free, size, n) : pairs(heap_alloc, heap_free, size, n);
}

void race_settle(int whose, size_t live, size_t least, size_t most)
{
    settle(whose ? &theirs : &ours, whose ? malloc : heap_alloc, live, least, most);
}

void race_end(int whose)
{
    end(whose ? &theirs : &ours, whose ? libc_free : heap_free);
}

int64_t race_churn(int whose, int64_t n)
{
    population *of = whose ? &theirs : &ours;
    alloc_function *alloc = whose ? malloc : heap_alloc;
    free_function *give = whose ? libc_free : heap_free;
    int64_t start = now(CLOCK_THREAD_CPUTIME_ID);
    for (int64_t i = 0; i < n; i++)
        replace_one(of, alloc, give);
    return now(CLOCK_THREAD_CPUTIME_ID) - start;
}

/* How long each replacement took, in ns of the clock, into times[n]. */
void race_latencies(int whose, int64_t n, int64_t *times)
{
    population *of = whose ? &theirs : &ours;
    for (int64_t i = 0; i < n; i++) {
        int64_t start = now(CLOCK_MONOTONIC);
        replace_one(of, whose ? malloc : heap_alloc, whose ? libc_free : heap_free);
        times[i] = now(CLOCK_MONOTONIC) - start;
    }
}

/* Bytes that ours has taken from the system, and that were asked of it by live blocks. */
void race_footprint(size_t *held, size_t *live)
{
    mmk_heap_stats stats;
    if (mmk_heap_statistics(&heap, &stats))
        abort();
    *held = stats.mapped_bytes;
    *live = stats.live_bytes;
}

/* Bytes that glibc has taken from the system, and how many of them are in blocks, heads included. */
void race_libc_footprint(size_t *held, size_t *used)
{
    struct mallinfo2 libc = mallinfo2();
    *held = libc.arena + libc.hblkhd;
    *used = libc.uordblks + libc.hblkhd;
}
