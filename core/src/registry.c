#include <mmkit/registry.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <mmkit/sys.h>

#include "region_internal.h"

/* Who holds a range: a region, or nobody in particular, for addresses that a region left behind. */
typedef struct entry {
    mmk_range range;
    mmk_region *region;
} entry;

/* A sorted array. It lives in memory of its own and not in malloc's, because a malloc may one day
 * stand on regions. */
static struct {
    pthread_mutex_t lock;
    entry *items;
    size_t count;
    size_t capacity;
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Index of the first region that ends after address. */
static size_t first_ending_after(uintptr_t address)
{
    size_t low = 0, high = registry.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const mmk_range *range = &registry.items[middle].range;
        if ((uintptr_t)range->base + range->length <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void unlock_regions(size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (registry.items[i].region)
            pthread_mutex_unlock(&registry.items[i].region->lock);
}

static bool try_lock_every_region(void)
{
    for (size_t i = 0; i < registry.count; i++) {
        mmk_region *region = registry.items[i].region;
        if (region && pthread_mutex_trylock(&region->lock) != 0) {
            unlock_regions(i);
            return false;
        }
    }
    return true;
}

/* The child must not inherit bookkeeping that another thread was half-way through changing. Region
 * locks come before the registry's, so here they are only tried, and everything is let go in between. */
static void before_fork(void)
{
    for (;;) {
        pthread_mutex_lock(&registry.lock);
        if (try_lock_every_region())
            return;
        pthread_mutex_unlock(&registry.lock);
        /* Not sched_yield: whoever holds a lock may have a lower real-time priority. */
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
}

static void after_fork_in_parent(void)
{
    unlock_regions(registry.count);
    pthread_mutex_unlock(&registry.lock);
}

static void after_fork_in_child(void)
{
    for (size_t i = 0; i < registry.count; i++)
        if (registry.items[i].region)
            region_forget_operations(registry.items[i].region);
    after_fork_in_parent();
}

static int make_room(void)
{
    if (registry.count < registry.capacity)
        return 0;
    size_t size = registry.capacity * sizeof *registry.items;
    size_t grown = size ? size * 2 : mmk_page_size();
    intptr_t address = size ? mmk_sys_mremap(registry.items, size, grown, MREMAP_MAYMOVE, NULL)
                            : mmk_sys_mmap(NULL, grown, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address < 0)
        return (int)address;
    registry.items = (entry *)address;
    registry.capacity = grown / sizeof *registry.items;
    return 0;
}

/* At load, before any thread can fork in the middle of it. */
__attribute__((constructor)) static void handle_fork(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* pre: there is room. */
static void insert(mmk_range range, mmk_region *region)
{
    size_t index = first_ending_after((uintptr_t)range.base);
    memmove(registry.items + index + 1, registry.items + index, (registry.count - index) * sizeof *registry.items);
    registry.items[index] = (entry){range, region};
    registry.count++;
}

static bool is_entry(size_t index, mmk_range range, const mmk_region *region)
{
    const entry *found = &registry.items[index];
    return found->range.base == range.base && found->region == region;
}

/* pre: it is in. */
static void take_out(mmk_range range, const mmk_region *region)
{
    size_t index = first_ending_after((uintptr_t)range.base);
    /* While a region moves on an old kernel, another may have been mapped where it was: see resize.c. */
    if (!is_entry(index, range, region))
        for (index = 0; !is_entry(index, range, region); index++)
            ;
    registry.count--;
    memmove(registry.items + index, registry.items + index + 1, (registry.count - index) * sizeof *registry.items);
}

static int add(mmk_range range, mmk_region *region)
{
    pthread_mutex_lock(&registry.lock);
    int error = make_room();
    if (!error)
        insert(range, region);
    pthread_mutex_unlock(&registry.lock);
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

void mmk_registry_remove(mmk_region *region)
{
    pthread_mutex_lock(&registry.lock);
    take_out(region->outer, region);
    pthread_mutex_unlock(&registry.lock);
}

void mmk_registry_release(mmk_range range)
{
    pthread_mutex_lock(&registry.lock);
    take_out(range, NULL);
    pthread_mutex_unlock(&registry.lock);
}

int mmk_registry_unmap(mmk_region *region)
{
    pthread_mutex_lock(&registry.lock);
    int error = mmk_sys_munmap(region->outer.base, region->outer.length);
    if (!error) {
        take_out(region->outer, region);
        region->outer = (mmk_range){0};
    }
    pthread_mutex_unlock(&registry.lock);
    return error;
}

void mmk_registry_move(mmk_region *region, mmk_range outer)
{
    pthread_mutex_lock(&registry.lock);
    take_out(region->outer, region);
    region->outer = outer;
    insert(outer, region);
    pthread_mutex_unlock(&registry.lock);
}

mmk_range mmk_registry_overlap(uintptr_t address, size_t length)
{
    mmk_range found = {0};
    pthread_mutex_lock(&registry.lock);
    size_t index = first_ending_after(address);
    if (index < registry.count && (uintptr_t)registry.items[index].range.base < address + length)
        found = registry.items[index].range;
    pthread_mutex_unlock(&registry.lock);
    return found;
}

size_t mmk_registry_count(void)
{
    pthread_mutex_lock(&registry.lock);
    size_t count = registry.count;
    pthread_mutex_unlock(&registry.lock);
    return count;
}
