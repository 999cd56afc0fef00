#include <malloc.h>

#include <mmkit/access.h>
#include <mmkit/protect.h>
#include <mmkit/registry.h>
#include <mmkit/residency.h>
#include <mmkit/resize.h>

#include "support.h"

enum {
    WORKERS = 3,
    EACH = 4, /* regions a worker maps, changes and closes, over and over */
    ROUNDS = 200,
};

static mmk_region regions[WORKERS * EACH], steady;
static atomic_bool stop;

/* Every call that takes the region's lock, and some that do not. The region may be closed, never stuck. */
static void use(mmk_region *region)
{
    char byte = 'x';
    if (mmk_region_is_closed(region)) {
        CHECK(mmk_region_close(region) == -MMK_ECLOSED);
        return;
    }
    CHECK(!mmk_region_has_views(region));
    CHECK(atomic_load(&region->state) == MMK_REGION_LIVE);
    CHECK(mmk_runs_check(&region->protections, region->prot) && mmk_runs_check(&region->locks, 0));
    CHECK(mmk_registry_overlap((uintptr_t)region->base, 1).base == region->outer.base);
    CHECK(mmk_region_protect(region, 0, mmk_region_length(region), RW, false) == 0);
    CHECK(mmk_access_store(region, 0, &byte, 1, &fault) == 0 && mmk_access_load(region, 0, &byte, 1, &fault) == 0);
    CHECK(mmk_region_lock(region, 0, pages(1)) == 0 && mmk_region_unlock(region, 0, pages(1)) == 0);
    CHECK(mmk_region_close(region) == 0);
    mmk_region_dispose(region);
}

static mmk_region inherited, viewed;
static mmk_view view;
static mmk_cover window;

static void use_what_was_inherited(void)
{
    CHECK(mmk_registry_count() == 2);
    CHECK(mmk_region_prot_of_range(&inherited, 0, pages(4)) == PROT_READ);
    CHECK(pages_are_numbered(inherited.base, 4) && !can_write(inherited.base));
    CHECK(mmk_region_uncover(&inherited, &window, false) == 0);
    CHECK(can_write(inherited.base) && can_read(inherited.base + pages(1)));
    CHECK(mmk_region_close(&viewed) == -MMK_EPINNED);
    mmk_view_close(&viewed, &view);
    use(&viewed);
    use(&inherited);
    CHECK(mmk_registry_count() == 0);
}

TEST(a_child_has_each_region_as_its_parent_had_it)
{
    map_pages(&inherited, 4);
    map_pages(&viewed, 1);
    number_pages(&inherited);
    CHECK(mmk_region_cover(&inherited, &window, 0, pages(4), PROT_READ, false) == 0);
    CHECK(mmk_view_open(&viewed, &view, 0, 1, false) == 0);
    in_child(use_what_was_inherited);
    CHECK(mmk_registry_count() == 2 && mmk_region_has_views(&viewed) && !can_write(inherited.base));
    mmk_view_close(&viewed, &view);
    mmk_region_dispose(&viewed);
    mmk_region_dispose(&inherited);
}

/* mlock(2): a child does not inherit locks. What it locks must be locked. */
static void lock_again(void)
{
    CHECK(locked_bytes() == 0);
    CHECK(mmk_region_lock(&inherited, 0, pages(2)) == 0);
    CHECK(locked_bytes() == pages(2));
    CHECK(mmk_region_unlock(&inherited, 0, pages(4)) == 0);
    CHECK(locked_bytes() == 0);
}

TEST(a_child_inherits_no_locks_and_what_it_locks_is_locked)
{
    if (UNDER_SANITIZER)
        SKIP("mlock(2) does nothing under a sanitizer");
    map_pages(&inherited, 4);
    CHECK(mmk_region_lock(&inherited, 0, pages(3)) == 0);
    in_child(lock_again);
    CHECK(mmk_region_unlock(&inherited, 0, pages(3)) == 0);
    mmk_region_dispose(&inherited);
}

static mmk_region entered;

static void change_what_others_were_inside(void)
{
    CHECK(mmk_region_protect(&entered, 0, pages(1), PROT_NONE, false) == 0);
    CHECK(mmk_region_close(&entered) == 0);
}

static void *stay_inside(void *semaphores)
{
    sem_t *inside = semaphores, *leave = inside + 1;
    CHECK(mmk_region_enter(&entered) == 0 && sem_post(inside) == 0);
    while (sem_wait(leave) < 0)
        ;
    mmk_region_leave(&entered);
    return NULL;
}

TEST(operations_of_threads_that_a_child_has_not_do_not_pin_its_regions)
{
    pthread_t thread;
    sem_t semaphores[2];
    map_pages(&entered, 1);
    CHECK(sem_init(&semaphores[0], 0, 0) == 0 && sem_init(&semaphores[1], 0, 0) == 0);
    CHECK(pthread_create(&thread, NULL, stay_inside, semaphores) == 0);
    while (sem_wait(&semaphores[0]) < 0)
        ;
    in_child(change_what_others_were_inside);
    CHECK(mmk_region_close(&entered) == -MMK_EPINNED);
    CHECK(sem_post(&semaphores[1]) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(mmk_region_close(&entered) == 0);
    mmk_region_dispose(&entered);
}

static void *work(void *first)
{
    mmk_region *own = first;
    for (unsigned turn = 0; !atomic_load(&stop); turn++) {
        mmk_region *region = &own[turn % EACH];
        mmk_cover over;
        mmk_range vacated;
        char byte;
        map_pages(region, 6);
        CHECK(mmk_region_protect(region, pages(1), pages(2), PROT_READ, false) == 0);
        CHECK(mmk_region_lock(region, 0, pages(2)) == 0);
        CHECK(mmk_region_cover(region, &over, pages(2), pages(2), PROT_READ, false) == 0);
        CHECK(mmk_region_resize(region, pages(5), &vacated) == 0);
        CHECK(mmk_region_uncover(region, &over, false) == 0);
        CHECK(mmk_region_lock(&steady, pages(turn % 8), pages(2)) == 0);
        CHECK(mmk_access_load(&steady, 0, &byte, 1, &fault) == 0);
        CHECK(mmk_region_unlock(&steady, pages(turn % 8), pages(2)) == 0);
        CHECK(mmk_region_close(region) == 0);
        mmk_region_dispose(region);
    }
    return NULL;
}

static void use_everything(void)
{
    CHECK(mmk_runs_check(&steady.locks, 0));
    CHECK(mmk_region_lock(&steady, 0, pages(16)) == 0 && mmk_region_unlock(&steady, 0, pages(16)) == 0);
    for (size_t i = 0; i < WORKERS * EACH; i++)
        use(&regions[i]);
    mmk_region region;
    map_pages(&region, 2);
    use(&region);
    use(&steady);
}

TEST(forking_while_threads_map_change_and_close_gives_a_child_that_works)
{
    if (UNDER_ASAN)
        SKIP("ASan's malloc may hang in a child forked beside other threads");
    pthread_t threads[WORKERS];
    map_pages(&steady, 16);
    for (size_t i = 0; i < WORKERS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, &regions[i * EACH]) == 0);
    for (int round = 0; round < ROUNDS; round++)
        in_child(use_everything);
    atomic_store(&stop, true);
    for (size_t i = 0; i < WORKERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(mmk_registry_count() == 1);
    mmk_region_dispose(&steady);
}

int main(void)
{
    RUN(a_child_has_each_region_as_its_parent_had_it);
    RUN(operations_of_threads_that_a_child_has_not_do_not_pin_its_regions);
    RUN(forking_while_threads_map_change_and_close_gives_a_child_that_works);
    RUN(a_child_inherits_no_locks_and_what_it_locks_is_locked);
    return 0;
}
