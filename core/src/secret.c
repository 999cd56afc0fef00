#include <mmkit/secret.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <mmkit/sys.h>

#include "secret_internal.h"

TAILQ_HEAD(area_list, secret_area);

/* Over everything below, and over what is in areas and handles. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Areas by what stands behind them and by the size of their slots. Those with a free slot come first. */
static struct area_list lists[MMK_SECRET_KINDS][LISTS];
static uint64_t era = 1;
static size_t footprint;

/* ---- fork ------------------------------------------------------------------------------------------- */

static void for_each_area(void act(secret_area *area))
{
    for (int kind = 0; kind < MMK_SECRET_KINDS; kind++)
        for (int list = 0; list < LISTS; list++)
            for (secret_area *area = TAILQ_FIRST(&lists[kind][list]), *next; area; area = next) {
                next = TAILQ_NEXT(area, link);
                act(area);
            }
}

static void make_lists_empty(void)
{
    for (int kind = 0; kind < MMK_SECRET_KINDS; kind++)
        for (int list = 0; list < LISTS; list++)
            TAILQ_INIT(&lists[kind][list]);
}

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    for_each_area(secret_area_abandon);
    make_lists_empty();
    footprint = 0;
    era++;
    pthread_mutex_unlock(&lock);
}

/* ---- damage ----------------------------------------------------------------------------------------- */

static void damaged(const mmk_secret *secret, const char *place)
{
    char line[200];
    const char *what = !secret->used           ? "a slot that nobody had was written to"
                       : place < secret->bytes ? "the bytes before it were written to"
                                               : "the bytes behind it were written to";
    int length = snprintf(line, sizeof line, "mmkit: secret memory is corrupt at %#lx: %s (%zu bytes at %#lx)\n",
                          (unsigned long)place, what, secret->length, (unsigned long)secret->bytes);
    if (length > 0 && write(STDERR_FILENO, line, (size_t)length) < 0)
        abort();
    abort();
}

static inline char *slot_of(const mmk_secret *secret)
{
    return secret->area->base + secret->slot * secret->area->slot_size;
}

static void check_canaries(const mmk_secret *secret)
{
    char *slot = slot_of(secret);
    const char *place = canaries_find_damage(slot, secret->bytes);
    if (!place)
        place = canaries_find_damage(secret->bytes + secret->length, slot + secret->area->slot_size);
    if (place)
        damaged(secret, place);
}

/* ---- access ----------------------------------------------------------------------------------------- */

static int set_prot(secret_area *area, int prot)
{
    if (area->prot == prot)
        return 0;
    int error = mmk_sys_mprotect(area->base, area->length, prot);
    if (!error)
        area->prot = prot;
    return error;
}

static int needed_prot(const secret_area *area)
{
    return area->writers ? PROT_READ | PROT_WRITE : area->readers ? PROT_READ : PROT_NONE;
}

static inline bool is_closed(const mmk_secret *secret)
{
    return !secret->area || secret->era != era;
}

/* pre: its area is writable. Nobody has looked into the slot since it was filled with canaries. */
static void begin_use(mmk_secret *secret)
{
    char *slot = slot_of(secret);
    const char *place = canaries_find_damage(slot, slot + secret->area->slot_size);
    if (place)
        damaged(secret, place);
    mmk_secret_erase(secret->bytes, secret->length);
    secret->used = true;
}

static void count(mmk_secret *secret, bool write, int change)
{
    *(write ? &secret->writers : &secret->readers) += (size_t)change;
    *(write ? &secret->area->writers : &secret->area->readers) += (size_t)change;
}

static int open_locked(mmk_secret *secret, bool write)
{
    if (is_closed(secret))
        return -MMK_ECLOSED;
    secret_area *area = secret->area;
    count(secret, write, 1);
    int error = set_prot(area, secret->used ? needed_prot(area) : PROT_READ | PROT_WRITE);
    if (!error && !secret->used) {
        begin_use(secret);
        error = set_prot(area, needed_prot(area));
    }
    if (error) {
        count(secret, write, -1);
        /* It has as much access as before, or more where this call fails as well. */
        (void)set_prot(area, needed_prot(area));
    }
    return error;
}

static int shut_locked(mmk_secret *secret, bool write)
{
    if (is_closed(secret))
        return 0;
    if (write)
        check_canaries(secret);
    count(secret, write, -1);
    return set_prot(secret->area, needed_prot(secret->area));
}

int mmk_secret_open(mmk_secret *secret, bool write)
{
    pthread_mutex_lock(&lock);
    int error = open_locked(secret, write);
    pthread_mutex_unlock(&lock);
    return error;
}

int mmk_secret_shut(mmk_secret *secret, bool write)
{
    pthread_mutex_lock(&lock);
    int error = shut_locked(secret, write);
    pthread_mutex_unlock(&lock);
    return error;
}

bool mmk_secret_is_closed(const mmk_secret *secret)
{
    pthread_mutex_lock(&lock);
    bool closed = is_closed(secret);
    pthread_mutex_unlock(&lock);
    return closed;
}

/* getrandom(3) of libc makes them in the process since glibc 2.41: in a buffer and registers of its own. */
static int fill_with_random(char *bytes, size_t length)
{
    for (size_t have = 0; have < length;) {
        long got = syscall(SYS_getrandom, bytes + have, length - have, 0);
        if (got < 0 && errno != EINTR)
            return -errno;
        have += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

static int fill_with_zeros(char *bytes, size_t length)
{
    mmk_secret_erase(bytes, length);
    return 0;
}

static int fill(mmk_secret *secret, int with(char *bytes, size_t length))
{
    int error = mmk_secret_open(secret, true);
    if (error)
        return error;
    error = with(secret->bytes, secret->length);
    int shut = mmk_secret_shut(secret, true);
    return error ? error : shut;
}

int mmk_secret_wipe(mmk_secret *secret)
{
    return fill(secret, fill_with_zeros);
}

int mmk_secret_randomize(mmk_secret *secret)
{
    return fill(secret, fill_with_random);
}

/* ---- the first secret, and exit ---------------------------------------------------------------------- */

static void wipe_area(secret_area *area)
{
    if (set_prot(area, PROT_READ | PROT_WRITE) == 0)
        canaries_write(area->base, area->base + area->length);
    (void)set_prot(area, needed_prot(area));
}

/* Threads may still run, with secrets open, and handlers of exit(3) that make new ones: what was there is closed, and
 * its slots are canaries, as those that nobody has are. */
static void wipe_all(void)
{
    pthread_mutex_lock(&lock);
    era++;
    for_each_area(wipe_area);
    pthread_mutex_unlock(&lock);
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int begin_error;

/* With the first secret, and so after the registry, which registers at load: handlers run before a fork in the
 * reverse order, so this lock is taken before the registry's. */
static void begin(void)
{
    make_lists_empty();
    if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0 || atexit(wipe_all) != 0)
        begin_error = -ENOMEM;
}

/* ---- slots ------------------------------------------------------------------------------------------ */

static int list_for(size_t length, bool alone, size_t *slot_size)
{
    *slot_size = length;
    if (alone || length > LARGEST_SLOT - 2 * CANARY)
        return ALONE;
    int list = 0;
    for (*slot_size = SMALLEST_SLOT; *slot_size - 2 * CANARY < length; *slot_size *= 2)
        list++;
    return list;
}

static void take_slot(mmk_secret *secret, size_t length, secret_area *area)
{
    struct area_list *list = &lists[area->kind][area->list];
    secret->area = area;
    secret->slot = area->free[--area->free_slots];
    secret->length = length;
    secret->bytes = slot_of(secret) + (area->list == ALONE ? area->length - length : CANARY);
    secret->readers = secret->writers = 0;
    secret->used = false;
    secret->era = era;
    if (area->free_slots == 0) {
        TAILQ_REMOVE(list, area, link);
        TAILQ_INSERT_TAIL(list, area, link);
    }
}

static bool take_free_slot(mmk_secret *secret, size_t length, mmk_secret_kind kind, int list)
{
    pthread_mutex_lock(&lock);
    secret_area *area = TAILQ_FIRST(&lists[kind][list]);
    bool found = area && area->free_slots;
    if (found)
        take_slot(secret, length, area);
    pthread_mutex_unlock(&lock);
    return found;
}

/* Take it off its list. To be unmapped when the lock is free again. */
static void remove_area(secret_area *area)
{
    TAILQ_REMOVE(&lists[area->kind][area->list], area, link);
    footprint -= area->length;
}

/* Empty slabs that wait for the next secret of their size count as locked, too. */
static bool give_back_empty_slabs(void)
{
    struct area_list empty = TAILQ_HEAD_INITIALIZER(empty);
    pthread_mutex_lock(&lock);
    for (int kind = 0; kind < MMK_SECRET_KINDS; kind++)
        for (int list = 0; list < SLOT_SIZES; list++)
            for (secret_area *area = TAILQ_FIRST(&lists[kind][list]), *next; area && area->free_slots; area = next) {
                next = TAILQ_NEXT(area, link);
                if (area->free_slots < area->slots)
                    continue;
                remove_area(area);
                TAILQ_INSERT_TAIL(&empty, area, link);
            }
    pthread_mutex_unlock(&lock);
    bool any = !TAILQ_EMPTY(&empty);
    for (secret_area *area; (area = TAILQ_FIRST(&empty));) {
        TAILQ_REMOVE(&empty, area, link);
        secret_area_unmap(area);
    }
    return any;
}

static int take_new_slot(mmk_secret *secret, size_t length, mmk_secret_kind kind, int list, size_t slot_size,
                         mmk_secret_refusal *refusal)
{
    secret_area *area;
    int error = secret_area_map(&area, list, slot_size, kind, refusal);
    if (error && give_back_empty_slabs())
        error = secret_area_map(&area, list, slot_size, kind, refusal);
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    TAILQ_INSERT_HEAD(&lists[kind][list], area, link);
    footprint += area->length;
    take_slot(secret, length, area);
    pthread_mutex_unlock(&lock);
    return 0;
}

int mmk_secret_take(mmk_secret *secret, size_t length, mmk_secret_kind kind, bool alone, mmk_secret_refusal *refusal)
{
    size_t slot_size;
    pthread_once(&once, begin);
    if (begin_error) {
        *refusal = (mmk_secret_refusal){"malloc", 0};
        return begin_error;
    }
    pthread_mutex_lock(&lock);
    int error = canaries_begin();
    pthread_mutex_unlock(&lock);
    if (error) {
        *refusal = (mmk_secret_refusal){"getrandom", 0};
        return error;
    }
    int list = list_for(length, alone, &slot_size);
    if (list != ALONE && take_free_slot(secret, length, kind, list))
        return 0;
    return take_new_slot(secret, length, kind, list, slot_size, refusal);
}

static int wipe_slot(mmk_secret *secret)
{
    int error = secret->used ? set_prot(secret->area, PROT_READ | PROT_WRITE) : 0;
    if (error || !secret->used)
        return error;
    check_canaries(secret);
    canaries_write(secret->bytes, secret->bytes + secret->length);
    /* Nothing is left to be seen: should this fail, the area is closed by the next who shuts a secret in it. */
    (void)set_prot(secret->area, needed_prot(secret->area));
    return 0;
}

/* Returns the area if nobody needs it any more. One empty slab of each size is kept. */
static secret_area *give_slot(mmk_secret *secret)
{
    secret_area *area = secret->area, *next;
    struct area_list *list = &lists[area->kind][area->list];
    secret->area = NULL;
    area->free[area->free_slots++] = (uint16_t)secret->slot;
    if (area->list != ALONE) {
        TAILQ_REMOVE(list, area, link);
        TAILQ_INSERT_HEAD(list, area, link);
        next = TAILQ_NEXT(area, link);
        if (area->free_slots < area->slots || !next || !next->free_slots)
            return NULL;
    }
    remove_area(area);
    return area;
}

int mmk_secret_give(mmk_secret *secret)
{
    secret_area *unused = NULL;
    pthread_mutex_lock(&lock);
    int error = 0;
    if (is_closed(secret))
        secret->area = NULL;
    else if (secret->readers || secret->writers)
        error = -MMK_EPINNED;
    else if (!(error = wipe_slot(secret)))
        unused = give_slot(secret);
    pthread_mutex_unlock(&lock);
    if (unused)
        secret_area_unmap(unused);
    return error;
}

size_t mmk_secret_footprint(void)
{
    pthread_mutex_lock(&lock);
    size_t bytes = footprint;
    pthread_mutex_unlock(&lock);
    return bytes;
}
