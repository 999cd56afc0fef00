/* storing.h: what the tests of hooks and of snapshots share: plain stores to pages that may not be written yet, by one
 * thread or by several that meet, none of which may die or be lost.
 */
#ifndef MMKIT_TEST_STORING_H
#define MMKIT_TEST_STORING_H

#include <signal.h>

#include "support.h"

enum {
    PAGES = 64,
    STORERS = 4,
};

/* The compiler does not know what else an access may change. */
static inline void forget_what_memory_holds(void)
{
    __asm__ volatile("" ::: "memory");
}

static inline void store(char *address, char byte)
{
    forget_what_memory_holds();
    *(volatile char *)address = byte;
    forget_what_memory_holds();
}

static inline void never_called(int signal)
{
    (void)signal;
    CHECK(!"a fault was passed on that was none");
}

/* From now on, for good: in a child. */
static inline void let_no_fault_be_passed_on(void)
{
    CHECK(signal(SIGSEGV, never_called) != SIG_ERR);
}

/* ---- once on every page ---- */

static char *stored_to;
static pthread_barrier_t together;

/* A byte of its own on every page: threads of odd numbers from the last page on. */
static inline void *store_on_every_page(void *number)
{
    size_t own = (size_t)number;
    (void)pthread_barrier_wait(&together);
    for (size_t step = 0; step < PAGES; step++) {
        size_t page = own % 2 ? PAGES - 1 - step : step;
        store(stored_to + pages(page) + own, (char)(100 + own));
    }
    return NULL;
}

static pthread_t storers[STORERS];

static inline void begin_storing_on_every_page(char *base)
{
    stored_to = base;
    CHECK(pthread_barrier_init(&together, NULL, STORERS) == 0);
    for (size_t i = 0; i < STORERS; i++)
        CHECK(pthread_create(&storers[i], NULL, store_on_every_page, (void *)i) == 0);
}

static inline void end_storing_on_every_page(void)
{
    for (size_t i = 0; i < STORERS; i++)
        CHECK(pthread_join(storers[i], NULL) == 0);
    CHECK(pthread_barrier_destroy(&together) == 0);
    for (size_t page = 0; page < PAGES; page++)
        for (size_t i = 0; i < STORERS; i++)
            CHECK(stored_to[pages(page) + i] == (char)(100 + i));
}

/* ---- all the time ---- */

static atomic_bool stop;
static size_t counters[STORERS];

/* A storer's number has a place on a page near the start, and one near the end. */
static inline char *first_place(char *memory, size_t own)
{
    return memory + pages(own) + own * 8;
}

static inline char *second_place(char *memory, size_t own)
{
    return memory + pages(PAGES - 1 - own) + own * 8;
}

static inline size_t number_at(const char *place)
{
    size_t number;
    memcpy(&number, place, sizeof number);
    return number;
}

static inline void store_number(char *place, size_t number)
{
    __atomic_store_n((size_t *)(void *)place, number, __ATOMIC_SEQ_CST);
    CHECK(__atomic_load_n((size_t *)(void *)place, __ATOMIC_SEQ_CST) == number);
}

/* Each stores a rising number into its two places, the first one first. */
static inline void *count_up(void *number)
{
    size_t own = (size_t)number, turn = 0;
    while (!atomic_load(&stop)) {
        turn++;
        store_number(first_place(stored_to, own), turn);
        store_number(second_place(stored_to, own), turn);
    }
    counters[own] = turn;
    return NULL;
}

static inline void begin_counting(char *base)
{
    stored_to = base;
    atomic_store(&stop, false);
    for (size_t i = 0; i < STORERS; i++)
        CHECK(pthread_create(&storers[i], NULL, count_up, (void *)i) == 0);
}

static inline void end_counting(void)
{
    atomic_store(&stop, true);
    for (size_t i = 0; i < STORERS; i++) {
        CHECK(pthread_join(storers[i], NULL) == 0);
        CHECK(number_at(first_place(stored_to, i)) == counters[i]);
        CHECK(number_at(second_place(stored_to, i)) == counters[i]);
    }
}

#endif
