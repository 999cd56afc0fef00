#include <malloc.h>

#include <mmkit/access.h>
#include <mmkit/advice.h>
#include <mmkit/fault.h>
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

/* ---- what a child has not ---- */

static mmk_region gone;

static bool is_taken(char *address)
{
    void *got = mmap(address, pages(1), RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    return got == MAP_FAILED && errno == EEXIST;
}

static void check_that_every_page_is_taken(mmk_range outer)
{
    for (char *page = outer.base; page < outer.base + outer.length; page += pages(1))
        CHECK(is_taken(page));
}

static void check_that_it_is_closed(mmk_region *region)
{
    char byte;
    mmk_view view_of_it;
    CHECK(mmk_region_is_closed(region) && !mmk_region_has_views(region));
    CHECK(mmk_access_load(region, 0, &byte, 1, &fault) == -MMK_ECLOSED);
    CHECK(mmk_access_store(region, 0, "x", 1, &fault) == -MMK_ECLOSED);
    CHECK(mmk_region_protect(region, 0, pages(1), RW, false) == -MMK_ECLOSED);
    CHECK(mmk_view_open(region, &view_of_it, 0, 1, false) == -MMK_ECLOSED);
    CHECK(mmk_region_close(region) == -MMK_ECLOSED);
}

/* A page at an address that is free; no other. */
static char *map_at(char *address)
{
    char *got = mmap(address, pages(1), RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(got == address);
    got[0] = 'm';
    return got;
}

static void check_that_disposing_gives_back_its_own_addresses_only(mmk_region *region)
{
    mmk_range outer = region->outer;
    mmk_region_dispose(region);
    CHECK(is_free(outer.base, outer.length));
    char *mine = map_at(outer.base);
    CHECK(mmk_region_close(region) == -MMK_ECLOSED);
    mmk_region_dispose(region);
    CHECK(mine[0] == 'm' && mmk_registry_count() == 0);
}

/* The region is closed; its pages from `first` to `end` are missing, the others as they were, unless all are held. */
static void check_what_is_left(size_t first, size_t end)
{
    char byte;
    mmk_range outer = gone.outer;
    check_that_it_is_closed(&gone);
    check_that_every_page_is_taken(outer);
    CHECK(mmk_registry_overlap((uintptr_t)outer.base, 1).base == outer.base);
    for (size_t page = 0; page < 8; page++) {
        int error = mmk_guarded_copy(&byte, gone.base + pages(page), 1, &fault);
        if (first <= page && page < end)
            CHECK(error == -EFAULT && fault.reason == MMK_FAULT_PROTECTION);
        else
            CHECK(error == 0 && byte == (char)(page + 1));
    }
    check_that_disposing_gives_back_its_own_addresses_only(&gone);
}

static void miss_everything(void)
{
    check_what_is_left(0, 8);
}

static void miss_the_middle(void)
{
    check_what_is_left(2, 5);
}

static void miss_the_first_page(void)
{
    check_what_is_left(0, 1);
}

static void miss_the_last_page(void)
{
    check_what_is_left(7, 8);
}

static void miss_every_other_page(void)
{
    for (size_t page = 0; page < 8; page++) {
        char byte;
        int error = mmk_guarded_copy(&byte, gone.base + pages(page), 1, &fault);
        CHECK(page % 2 ? error == -EFAULT : error == 0 && byte == (char)(page + 1));
    }
    check_that_it_is_closed(&gone);
    check_that_every_page_is_taken(gone.outer);
    check_that_disposing_gives_back_its_own_addresses_only(&gone);
}

/* Eight pages, with room to grow and guards. */
static void map_with_surroundings(mmk_region *region)
{
    mmk_request request = anonymous(pages(8), RW);
    request.reserve = pages(12);
    request.guard = pages(2);
    map(region, request);
    number_pages(region);
}

static void check_in_child(void body(void))
{
    in_child(body);
    CHECK(!mmk_region_is_closed(&gone) && pages_are_numbered(gone.base, 8));
    CHECK(mmk_access_store(&gone, pages(3), "\4", 1, &fault) == 0);
    mmk_region_dispose(&gone);
}

TEST(a_child_that_does_not_get_a_region_has_it_closed_and_its_addresses_taken)
{
    map_with_surroundings(&gone);
    CHECK(mmk_region_advise(&gone, 0, pages(8), MADV_DONTFORK) == 0);
    check_in_child(miss_everything);
}

TEST(a_child_that_gets_part_of_a_region_has_it_closed_and_the_rest_of_its_addresses_taken)
{
    map_with_surroundings(&gone);
    CHECK(mmk_region_advise(&gone, pages(2), pages(3), MADV_DONTFORK) == 0);
    check_in_child(miss_the_middle);
    map_with_surroundings(&gone);
    CHECK(mmk_region_advise(&gone, 0, pages(1), MADV_DONTFORK) == 0);
    check_in_child(miss_the_first_page);
    map_with_surroundings(&gone);
    CHECK(mmk_region_advise(&gone, pages(7), pages(1), MADV_DONTFORK) == 0);
    check_in_child(miss_the_last_page);
    map_with_surroundings(&gone);
    for (size_t page = 1; page < 8; page += 2)
        CHECK(mmk_region_advise(&gone, pages(page), pages(1), MADV_DONTFORK) == 0);
    check_in_child(miss_every_other_page);
}

TEST(what_is_kept_from_a_child_behind_our_back_is_noticed_too)
{
    map_with_surroundings(&gone);
    CHECK(madvise(gone.base + pages(2), pages(3), MADV_DONTFORK) == 0);
    check_in_child(miss_the_middle);
    /* The surroundings, too. */
    map_with_surroundings(&gone);
    CHECK(madvise(gone.outer.base, gone.outer.length, MADV_DONTFORK) == 0);
    check_in_child(miss_everything);
    map_pages(&gone, 8);
    number_pages(&gone);
    CHECK(madvise(gone.base, pages(8), MADV_DONTFORK) == 0);
    check_in_child(miss_everything);
}

static mmk_fault_answer never_called(mmk_region *region, uintptr_t address, bool write)
{
    (void)region, (void)address, (void)write;
    CHECK(!"a hook of a region that is not here was called");
    return MMK_FAULT_PASS_ON;
}

static void release_what_was_viewed(void)
{
    char byte;
    CHECK(mmk_guarded_copy(&byte, gone.base, 1, &fault) == -EFAULT);
    mmk_view_close(&gone, &view);
    check_what_is_left(0, 8);
}

TEST(a_region_that_a_child_has_not_has_no_hook_there_and_its_views_can_be_closed)
{
    map_with_surroundings(&gone);
    CHECK(mmk_region_set_fault_hook(&gone, never_called) == 0);
    CHECK(mmk_view_open(&gone, &view, 0, 1, false) == 0);
    CHECK(mmk_region_advise(&gone, 0, pages(8), MADV_DONTFORK) == 0);
    in_child(release_what_was_viewed);
    mmk_view_close(&gone, &view);
    mmk_region_dispose(&gone);
}

static void have_what_could_not_be_held(void)
{
    check_that_it_is_closed(&gone);
    CHECK(mmk_registry_count() == 0 && is_free(gone.base + pages(2), pages(3)));
    char *mine = map_at(gone.base + pages(2));
    mmk_region_dispose(&gone);
    CHECK(mine[0] == 'm' && mmk_registry_count() == 0);
}

static void fork_where_nothing_can_be_held(void)
{
    map_pages(&gone, 8);
    number_pages(&gone);
    CHECK(mmk_region_advise(&gone, pages(2), pages(3), MADV_DONTFORK) == 0);
    refuse(SYS_mmap, 3, MAP_FIXED_NOREPLACE, MAP_FIXED_NOREPLACE, ENOMEM);
    check_in_child(have_what_could_not_be_held);
}

TEST(a_region_whose_addresses_cannot_be_held_is_forgotten_and_never_unmaps_what_comes_after)
{
    if (UNDER_SANITIZER)
        SKIP("the sanitizer needs the call that is refused");
    in_child(fork_where_nothing_can_be_held);
}

static void have_no_secret(void)
{
    mmk_range outer = gone.outer;
    char byte;
    check_that_it_is_closed(&gone);
    check_that_every_page_is_taken(outer);
    CHECK(is_held(outer.base, outer.length));
    for (size_t page = 0; page < 8; page++)
        CHECK(mmk_guarded_copy(&byte, gone.base + pages(page), 1, &fault) == -EFAULT);
    check_that_disposing_gives_back_its_own_addresses_only(&gone);
}

TEST(a_child_does_not_get_secret_memory)
{
    int fd = mmk_sys_memfd_secret(O_CLOEXEC);
    if (fd < 0)
        SKIP("the kernel has no secret memory: secretmem.enable=1");
    CHECK(ftruncate(fd, (off_t)pages(8)) == 0);
    mmk_request request = file(fd, pages(8), MAP_SHARED);
    request.guard = pages(2);
    request.always_locked = true;
    if (mmk_region_map(&gone, &request) == -EAGAIN) {
        close(fd);
        SKIP("RLIMIT_MEMLOCK leaves no room for secret memory");
    }
    number_pages(&gone);
    check_in_child(have_no_secret);
    close(fd);
}

/* ---- forking beside other threads ---- */

static mmk_fault_answer never_needed(mmk_region *region, uintptr_t address, bool write)
{
    (void)region, (void)address, (void)write;
    return MMK_FAULT_PASS_ON;
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
        CHECK(mmk_region_set_fault_hook(region, never_needed) == 0);
        CHECK(mmk_guarded_copy(region->base + pages(2), &byte, 1, &fault) == -EFAULT);
        CHECK(mmk_region_unlock(&steady, pages(turn % 8), pages(2)) == 0);
        CHECK(mmk_region_close(region) == 0);
        mmk_region_dispose(region);
    }
    return NULL;
}

static void *come_first_all_the_time(void *unused)
{
    while (!atomic_load(&stop))
        mmk_fault_come_first();
    return unused;
}

static void use_everything(void)
{
    char byte;
    CHECK(mmk_runs_check(&steady.locks, 0));
    mmk_fault_come_first();
    CHECK(mmk_guarded_copy(&byte, NULL, 1, &fault) == -EFAULT);
    CHECK(mmk_region_lock(&steady, 0, pages(16)) == 0 && mmk_region_unlock(&steady, 0, pages(16)) == 0);
    for (size_t i = 0; i < WORKERS * EACH; i++)
        use(&regions[i]);
    mmk_region region;
    map_pages(&region, 2);
    use(&region);
    use(&steady);
}

TEST(forking_while_threads_fault_map_change_and_close_gives_a_child_that_works)
{
    if (UNDER_ASAN)
        SKIP("ASan's malloc may hang in a child forked beside other threads");
    pthread_t threads[WORKERS], other;
    map_pages(&steady, 16);
    for (size_t i = 0; i < WORKERS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, &regions[i * EACH]) == 0);
    CHECK(pthread_create(&other, NULL, come_first_all_the_time, NULL) == 0);
    for (int round = 0; round < ROUNDS; round++)
        in_child(use_everything);
    atomic_store(&stop, true);
    for (size_t i = 0; i < WORKERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(mmk_registry_count() == 1);
    mmk_region_dispose(&steady);
}

int main(void)
{
    RUN(a_child_has_each_region_as_its_parent_had_it);
    RUN(a_child_that_does_not_get_a_region_has_it_closed_and_its_addresses_taken);
    RUN(a_child_that_gets_part_of_a_region_has_it_closed_and_the_rest_of_its_addresses_taken);
    RUN(what_is_kept_from_a_child_behind_our_back_is_noticed_too);
    RUN(a_region_that_a_child_has_not_has_no_hook_there_and_its_views_can_be_closed);
    RUN(a_region_whose_addresses_cannot_be_held_is_forgotten_and_never_unmaps_what_comes_after);
    RUN(a_child_does_not_get_secret_memory);
    RUN(operations_of_threads_that_a_child_has_not_do_not_pin_its_regions);
    RUN(forking_while_threads_fault_map_change_and_close_gives_a_child_that_works);
    RUN(a_child_inherits_no_locks_and_what_it_locks_is_locked);
    return 0;
}
