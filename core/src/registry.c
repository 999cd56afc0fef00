#include <mmkit/registry.h>

#include <pthread.h>
#include <time.h>

#include <mmkit/sys.h>

#include "ranges.h"
#include "readers.h"
#include "region_internal.h"
#include "registry_internal.h"
#include "signals.h"

/* Over `ranges` and `readers`. Handlers do without it: the thread they have interrupted may hold it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* See registry_removals. */
static atomic_ulong removals;

/* ---- fork ------------------------------------------------------------------------------------------- */

/* All of them, or those before one. */
static void unlock_regions(const mmk_region *end)
{
    entry found;
    for (ranges_place place = {0}; ranges_next(&place, &found) && !(end && found.region == end);)
        if (found.region)
            pthread_mutex_unlock(&found.region->lock);
}

static bool try_lock_every_region(void)
{
    entry found;
    for (ranges_place place = {0}; ranges_next(&place, &found);)
        if (found.region && pthread_mutex_trylock(&found.region->lock) != 0) {
            unlock_regions(found.region);
            return false;
        }
    return true;
}

/* The child must not inherit bookkeeping that another thread was half-way through changing. Region
 * locks come before the registry's, so here they are only tried, and everything is let go in between. */
static void before_fork(void)
{
    for (;;) {
        pthread_mutex_lock(&lock);
        if (try_lock_every_region()) {
            signals_before_fork();
            return;
        }
        pthread_mutex_unlock(&lock);
        /* Not sched_yield: whoever holds a lock may have a lower real-time priority. */
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
}

static void after_fork_in_parent(void)
{
    signals_after_fork();
    unlock_regions(NULL);
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    entry found;
    signals_after_fork();
    readers_forget();
    for (ranges_place place = {0}; ranges_next(&place, &found);) {
        if (!found.region)
            continue;
        bool is_here = region_after_fork(found.region);
        pthread_mutex_unlock(&found.region->lock);
        if (!is_here) {
            ranges_take(&found);
            place = ranges_place_of(&found);
        }
    }
    pthread_mutex_unlock(&lock);
}

static void handle_fork(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* At load, before any thread can fork in the middle of it. */
__attribute__((constructor)) void registry_handle_fork(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, handle_fork);
}

/* ---- changes ---------------------------------------------------------------------------------------- */

static int add(mmk_range range, mmk_region *region)
{
    pthread_mutex_lock(&lock);
    int error = ranges_make_room();
    if (!error)
        ranges_put(&(entry){range, region});
    pthread_mutex_unlock(&lock);
    return error;
}

int mmk_registry_add(mmk_region *region)
{
    return add(region->outer, region);
}

int mmk_registry_hold(mmk_range range)
{
    return add(range, NULL);
}

static void begin_removal(void)
{
    pthread_mutex_lock(&lock);
    atomic_fetch_add(&removals, 1);
}

static void end_removal(void)
{
    atomic_fetch_add(&removals, 1);
    pthread_mutex_unlock(&lock);
}

static void take(mmk_range range, mmk_region *region)
{
    begin_removal();
    ranges_take(&(entry){range, region});
    end_removal();
}

void mmk_registry_remove(mmk_region *region)
{
    take(region->outer, region);
}

void mmk_registry_release(mmk_range range)
{
    take(range, NULL);
}

int mmk_registry_unmap(mmk_region *region)
{
    entry gone = {region->outer, region};
    begin_removal();
    ranges_take(&gone);
    int error = mmk_sys_munmap(region->outer.base, region->outer.length);
    if (error)
        ranges_put(&gone);
    else
        region->outer = (mmk_range){0};
    end_removal();
    return error;
}

void mmk_registry_move(mmk_region *region, mmk_range outer)
{
    begin_removal();
    ranges_move(&(entry){region->outer, region}, outer);
    region->outer = outer;
    end_removal();
}

/* ---- questions -------------------------------------------------------------------------------------- */

mmk_range mmk_registry_overlap(uintptr_t address, size_t length)
{
    entry found;
    pthread_mutex_lock(&lock);
    bool overlaps = ranges_find(address, &found) && (uintptr_t)found.range.base < address + length;
    pthread_mutex_unlock(&lock);
    return overlaps ? found.range : (mmk_range){0};
}

size_t mmk_registry_count(void)
{
    pthread_mutex_lock(&lock);
    size_t count = ranges_count();
    pthread_mutex_unlock(&lock);
    return count;
}

mmk_region *registry_region_at(uintptr_t address)
{
    entry found;
    bool inside = ranges_find(address, &found) && (uintptr_t)found.range.base <= address;
    return inside ? found.region : NULL;
}

void registry_begin_removal(void)
{
    begin_removal();
}

void registry_end_removal(void)
{
    readers_wait();
    end_removal();
}

unsigned long registry_removals(void)
{
    return atomic_load(&removals);
}
