#include <mmkit/access.h>
#include <mmkit/advice.h>
#include <mmkit/protect.h>
#include <mmkit/registry.h>
#include <mmkit/residency.h>
#include <mmkit/resize.h>
#include <mmkit/storage.h>

#include <sched.h>

#include "support.h"

enum {
    THREADS = 3,
    TURNS = UNDER_TSAN ? 400 : 4000,
};

static mmk_region region;
static atomic_bool stop;
static atomic_int loads;

static void run_beside(void *beside(void *), void act(void))
{
    pthread_t threads[THREADS];
    atomic_store(&stop, false);
    atomic_store(&loads, 0);
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, beside, (void *)i) == 0);
    act();
    atomic_store(&stop, true);
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

/* Each thread stays on a page of its own: what races here is the bookkeeping. */
static void *load_and_store(void *number)
{
    size_t offset = pages((size_t)number);
    while (!atomic_load(&stop)) {
        char byte = (char)(intptr_t)number;
        int error = mmk_access_store(&region, offset, &byte, 1, &fault);
        CHECK(error == 0 || error == -EFAULT || error == -MMK_ECLOSED);
        error = mmk_access_load(&region, offset, &byte, 1, &fault);
        CHECK(error == 0 || error == -EFAULT || error == -MMK_ECLOSED);
        CHECK(error || byte == (char)(intptr_t)number || byte == 0);
        atomic_fetch_add(&loads, error == 0);
        CHECK(mmk_access_find(&region, offset, 8, "q", 1, &fault) < 0);
        sched_yield(); /* whoever wants the region to himself needs a moment with nobody inside */
    }
    return NULL;
}

/* Do it as soon as nobody is inside. */
#define PATIENTLY(call)                                                                                                \
    do {                                                                                                               \
        int result;                                                                                                    \
        while ((result = (call)) == -MMK_EPINNED)                                                                      \
            sched_yield();                                                                                             \
        CHECK(result == 0);                                                                                            \
    } while (0)

static void take_and_give_access(void)
{
    for (int turn = 0; turn < TURNS; turn++) {
        PATIENTLY(mmk_region_protect(&region, 0, pages(THREADS), PROT_NONE, false));
        PATIENTLY(mmk_region_protect(&region, 0, pages(2), PROT_READ, false));
        PATIENTLY(mmk_region_protect(&region, 0, pages(THREADS), RW, false));
    }
}

TEST(access_is_never_taken_from_an_operation_that_was_allowed)
{
    map_pages(&region, THREADS);
    run_beside(load_and_store, take_and_give_access);
    CHECK(atomic_load(&loads) > 0 && atomic_load(&region.state) == MMK_REGION_LIVE);
    mmk_region_dispose(&region);
}

static void cover_and_uncover(void)
{
    for (int turn = 0; turn < TURNS; turn++) {
        mmk_cover closed, open;
        PATIENTLY(mmk_region_cover(&region, &closed, 0, pages(THREADS), PROT_NONE, false));
        PATIENTLY(mmk_region_cover(&region, &open, 0, pages(2), RW, false));
        PATIENTLY(mmk_region_uncover(&region, &closed, false));
        PATIENTLY(mmk_region_uncover(&region, &open, false));
    }
}

TEST(covers_come_and_go_beside_operations)
{
    map_pages(&region, THREADS);
    run_beside(load_and_store, cover_and_uncover);
    CHECK(region.covers == NULL && mmk_region_prot_of_range(&region, 0, pages(THREADS)) == RW);
    mmk_region_dispose(&region);
}

static void grow_move_and_shrink(void)
{
    for (int turn = 0; turn < TURNS / 4; turn++) {
        mmk_range vacated;
        PATIENTLY(mmk_region_resize(&region, pages(THREADS), &vacated));
        CHECK(vacated.length == 0);
        PATIENTLY(mmk_region_resize(&region, region.reserved + 1, &vacated));
        if (vacated.length)
            CHECK(mmk_sys_munmap(vacated.base, vacated.length) == 0);
        if (region.reserved > pages(256)) {
            PATIENTLY(mmk_region_close(&region));
            return;
        }
    }
}

TEST(a_region_moves_and_shrinks_between_operations_and_never_under_one)
{
    for (int round = 0; round < 20; round++) {
        mmk_request request = anonymous(pages(THREADS), RW);
        request.guard = pages(1);
        map(&region, request);
        run_beside(load_and_store, grow_move_and_shrink);
        mmk_region_dispose(&region);
    }
}

static void *load_the_end(void *number)
{
    (void)number;
    while (!atomic_load(&stop)) {
        char byte;
        size_t length = mmk_region_length(&region);
        int error = mmk_access_load(&region, length - 1, &byte, 1, &fault);
        CHECK(error == 0 || error == -ERANGE);
        sched_yield();
    }
    return NULL;
}

static void grow_and_shrink(void)
{
    for (int turn = 0; turn < 20 * TURNS; turn++) {
        mmk_range vacated;
        PATIENTLY(mmk_region_resize(&region, pages(turn % 2 ? 2 : 1), &vacated));
    }
}

TEST(what_a_region_no_longer_has_is_out_of_range_and_no_fault)
{
    map_pages(&region, 2);
    run_beside(load_the_end, grow_and_shrink);
    mmk_region_dispose(&region);
}

static void *enter_and_leave(void *number)
{
    size_t offset = pages((size_t)number);
    for (int error = 0; error != -MMK_ECLOSED;) {
        error = mmk_region_enter(&region);
        CHECK(error == 0 || error == -MMK_ECLOSED);
        if (error)
            continue;
        ((volatile char *)region.base)[offset]++; /* dies if the region is closed under it */
        mmk_region_leave(&region);
    }
    return NULL;
}

static void close_it(void)
{
    PATIENTLY(mmk_region_close(&region));
}

TEST(a_region_is_closed_between_operations_and_never_under_one)
{
    for (int round = 0; round < (UNDER_TSAN ? 40 : 100); round++) {
        map_pages(&region, THREADS);
        run_beside(enter_and_leave, close_it);
        CHECK(atomic_load(&region.state) == 0);
        mmk_region_dispose(&region);
        CHECK(mmk_registry_count() == 0);
    }
}

static void *change_everything(void *number)
{
    size_t own = pages((size_t)number), seed = (size_t)number;
    while (!atomic_load(&stop)) {
        mmk_view view;
        mmk_cover window;
        size_t bytes;
        seed = seed * 6364136223846793005 + 1442695040888963407;
        switch ((seed >> 33) % 8) {
        case 0:
            CHECK(mmk_region_lock(&region, own, pages(1)) == 0);
            CHECK(mmk_region_unlock(&region, own, pages(1)) == 0);
            break;
        case 1:
            if (mmk_view_open(&region, &view, own, 10, false) == 0)
                mmk_view_close(&region, &view);
            break;
        case 2:
            if (mmk_region_cover(&region, &window, own, pages(1), PROT_READ, false) == 0)
                PATIENTLY(mmk_region_uncover(&region, &window, false));
            break;
        case 3:
            if (mmk_region_guard(&region, own, pages(1), false) == 0)
                CHECK(mmk_region_unguard(&region, own, pages(1)) == 0);
            break;
        case 4:
            CHECK(mmk_region_advise(&region, own, pages(1), MADV_WILLNEED) == 0);
            break;
        case 5:
            CHECK(mmk_region_cached(&region, 0, pages(THREADS), &bytes) == 0);
            break;
        case 6:
            (void)!mmk_region_discard(&region, own, pages(1), false);
            break;
        case 7:
            CHECK(mmk_registry_overlap((uintptr_t)region.outer.base, 1).length);
            break;
        }
    }
    return NULL;
}

static void resize_in_place(void)
{
    for (int turn = 0; turn < TURNS; turn++) {
        mmk_range vacated;
        CHECK(mmk_region_resize(&region, pages(THREADS + 4), &vacated) == 0 && vacated.length == 0);
        PATIENTLY(mmk_region_resize(&region, pages(THREADS), &vacated));
    }
}

TEST(any_change_goes_beside_any_other_and_leaves_the_bookkeeping_whole)
{
    mmk_request request = anonymous(pages(THREADS), RW);
    request.reserve = pages(THREADS + 4);
    map(&region, request);
    run_beside(change_everything, resize_in_place);
    CHECK(!region.views && !region.covers && region.locks.count == 0 && region.guards.count == 0);
    CHECK(mmk_region_prot_of_range(&region, 0, pages(THREADS)) == RW);
    CHECK(atomic_load(&region.state) == MMK_REGION_LIVE);
    for (size_t page = 0; page < THREADS; page++)
        CHECK(can_write(region.base + pages(page)));
    mmk_region_dispose(&region);
}

static void *flush_all(void *number)
{
    (void)number;
    while (!atomic_load(&stop)) {
        CHECK(mmk_region_flush(&region, 0, pages(THREADS), MS_SYNC) == 0);
        sched_yield();
    }
    return NULL;
}

TEST(a_flush_goes_beside_growing)
{
    int fd = memory_file(pages(THREADS));
    mmk_request request = file(fd, pages(THREADS), MAP_SHARED);
    request.reserve = pages(THREADS + 4);
    request.may_shrink = true;
    map(&region, request);
    run_beside(flush_all, resize_in_place);
    mmk_region_dispose(&region);
    close(fd);
}

static void *map_and_dispose(void *number)
{
    mmk_region own[8];
    (void)number;
    while (!atomic_load(&stop)) {
        for (size_t i = 0; i < 8; i++)
            map_pages(&own[i], 1 + i);
        for (size_t i = 0; i < 8; i++)
            CHECK(mmk_registry_overlap((uintptr_t)own[i].base, 1).base == own[i].base);
        for (size_t i = 0; i < 8; i++)
            mmk_region_dispose(&own[i]);
    }
    return NULL;
}

static void watch_the_registry(void)
{
    for (int turn = 0; turn < TURNS; turn++)
        CHECK(mmk_registry_count() <= 8 * THREADS);
}

TEST(regions_come_and_go_in_every_thread)
{
    run_beside(map_and_dispose, watch_the_registry);
    CHECK(mmk_registry_count() == 0);
}

int main(void)
{
    alarm(120);
    RUN(what_a_region_no_longer_has_is_out_of_range_and_no_fault);
    RUN(a_region_is_closed_between_operations_and_never_under_one);
    RUN(regions_come_and_go_in_every_thread);
    RUN(any_change_goes_beside_any_other_and_leaves_the_bookkeeping_whole);
    RUN(a_region_moves_and_shrinks_between_operations_and_never_under_one);
    RUN(access_is_never_taken_from_an_operation_that_was_allowed);
    RUN(covers_come_and_go_beside_operations);
    RUN(a_flush_goes_beside_growing);
    return 0;
}
