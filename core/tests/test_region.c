#include <mmkit/access.h>
#include <mmkit/advice.h>
#include <mmkit/protect.h>
#include <mmkit/registry.h>
#include <mmkit/residency.h>
#include <mmkit/resize.h>
#include <mmkit/storage.h>

#include "support.h"

static void check_that_every_call_answers_closed(mmk_region *region)
{
    mmk_view view;
    mmk_cover cover;
    mmk_range vacated;
    size_t bytes;
    char byte = 0;
    CHECK(mmk_region_is_closed(region));
    CHECK(mmk_region_close(region) == -MMK_ECLOSED);
    CHECK(mmk_region_enter(region) == -MMK_ECLOSED);
    CHECK(mmk_view_open(region, &view, 0, 0, false) == -MMK_ECLOSED);
    CHECK(mmk_region_seal(region) == -MMK_ECLOSED);
    CHECK(mmk_region_protect(region, 0, 0, PROT_READ, true) == -MMK_ECLOSED);
    CHECK(mmk_region_cover(region, &cover, 0, 0, PROT_READ, true) == -MMK_ECLOSED);
    CHECK(mmk_region_guard(region, 0, 0, true) == -MMK_ECLOSED);
    CHECK(mmk_region_unguard(region, 0, 0) == -MMK_ECLOSED);
    CHECK(mmk_region_advise(region, 0, 0, MADV_NORMAL) == -MMK_ECLOSED);
    CHECK(mmk_region_advise(region, 0, 0, MADV_FREE) == -MMK_ECLOSED);
    CHECK(mmk_region_populate(region, 0, 0, true) == -MMK_ECLOSED);
    CHECK(mmk_region_discard(region, 0, 0, true) == -MMK_ECLOSED);
    CHECK(mmk_region_lock(region, 0, 0) == -MMK_ECLOSED);
    CHECK(mmk_region_unlock(region, 0, 0) == -MMK_ECLOSED);
    CHECK(mmk_region_resident(region, 0, 0, -1, &bytes) == -MMK_ECLOSED);
    CHECK(mmk_region_cached(region, 0, 0, &bytes) == -MMK_ECLOSED);
    CHECK(mmk_region_flush(region, 0, 0, MS_SYNC) == -MMK_ECLOSED);
    CHECK(mmk_region_punch(region, 0, 0, true, &fault) == -MMK_ECLOSED);
    CHECK(mmk_region_resize(region, 1, &vacated) == -MMK_ECLOSED && vacated.length == 0);
    CHECK(mmk_access_load(region, 0, &byte, 0, &fault) == -MMK_ECLOSED);
    CHECK(mmk_access_store(region, 0, &byte, 0, &fault) == -MMK_ECLOSED);
    CHECK(mmk_access_find(region, 0, 0, &byte, 1, &fault) == -MMK_ECLOSED);
    CHECK(mmk_access_rfind(region, 0, 0, &byte, 1, &fault) == -MMK_ECLOSED);
    CHECK(!mmk_region_has_views(region));
    CHECK(atomic_load(&region->state) == 0);
}

TEST(a_zeroed_handle_is_a_closed_region)
{
    mmk_region region = {0};
    check_that_every_call_answers_closed(&region);
    mmk_region_dispose(&region);
}

TEST(every_call_on_a_closed_region_answers_closed)
{
    mmk_region region;
    map_pages(&region, 2);
    CHECK(mmk_region_close(&region) == 0);
    check_that_every_call_answers_closed(&region);
    mmk_region_dispose(&region);
    check_that_every_call_answers_closed(&region);
}

TEST(every_call_on_a_closed_private_file_region_answers_closed)
{
    mmk_region region;
    int fd = numbered_file(pages(1));
    map(&region, file(fd, pages(1), MAP_PRIVATE));
    CHECK(mmk_region_close(&region) == 0);
    check_that_every_call_answers_closed(&region);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(a_length_is_rounded_up_to_pages_and_what_was_asked_is_remembered)
{
    mmk_region region;
    map(&region, anonymous(pages(1) + 1, RW));
    CHECK(mmk_region_length(&region) == pages(2) && region.asked == pages(1) + 1 && region.reserved == pages(2));
    CHECK(region.outer.base == region.base && region.outer.length == pages(2));
    CHECK(all_bytes_are(region.base, pages(2), 0));
    mmk_region_dispose(&region);
}

TEST(a_request_that_cannot_be_is_refused_and_leaves_nothing_mapped)
{
    static char before[sizeof maps_text];
    mmk_region region;
    const size_t wild[] = {SIZE_MAX, SIZE_MAX - 4095, SIZE_MAX / 2, SIZE_MAX / 4, (size_t)1 << 47};
    strcpy(before, read_maps());
    mmk_request empty = anonymous(0, RW);
    CHECK(mmk_region_map(&region, &empty) == -EINVAL);
    for (size_t i = 0; i < sizeof wild / sizeof *wild; i++) {
        mmk_request huge = anonymous(wild[i], RW), reserving = anonymous(1, RW), guarded = anonymous(1, RW);
        reserving.reserve = wild[i];
        guarded.guard = mmk_round_down(wild[i], mmk_page_size());
        CHECK(mmk_region_map(&region, &huge) == -ENOMEM && mmk_region_is_closed(&region));
        CHECK(mmk_region_map(&region, &reserving) == -ENOMEM && mmk_region_is_closed(&region));
        CHECK(mmk_region_map(&region, &guarded) == -ENOMEM && mmk_region_is_closed(&region));
        mmk_region_dispose(&region);
    }
    CHECK(maps_are(before));
}

TEST(a_mapping_the_kernel_refuses_takes_its_reservation_back)
{
    static char before[sizeof maps_text];
    mmk_region region;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    strcpy(before, read_maps());
    mmk_request request = file(fd, pages(1), MAP_SHARED);
    request.reserve = pages(16);
    request.guard = pages(1);
    CHECK(mmk_region_map(&region, &request) == -EACCES);
    CHECK(maps_are(before) && mmk_registry_count() == 0);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(guards_stand_at_both_ends_and_the_reserve_behind_the_data)
{
    mmk_region region;
    mmk_request request = anonymous(pages(3), RW);
    request.reserve = pages(8);
    request.guard = pages(2);
    map(&region, request);
    CHECK(region.base == region.outer.base + pages(2) && region.outer.length == pages(12));
    CHECK(is_held(region.outer.base, pages(2)));
    CHECK(bytes_with(region.base, pages(3), "rw-p") == pages(3));
    CHECK(is_held(region.base + pages(3), pages(5) + pages(2)));
    mmk_range outer = region.outer;
    mmk_region_dispose(&region);
    CHECK(is_free(outer.base, outer.length));
}

TEST(a_larger_granule_aligns_the_base_and_nothing_around_it_stays_mapped)
{
    static char before[sizeof maps_text];
    enum { HUGE = 2 << 20 };
    mmk_region warm_up;
    map_pages(&warm_up, 1); /* the registry's own page */
    mmk_region_dispose(&warm_up);
    for (size_t guard = 0; guard <= 3; guard++) {
        mmk_region region;
        mmk_request request = anonymous(1, RW);
        request.reserve = 2 * HUGE;
        request.granule = HUGE;
        request.guard = pages(guard);
        strcpy(before, read_maps());
        map(&region, request);
        CHECK((uintptr_t)region.base % HUGE == 0 && mmk_region_length(&region) == HUGE);
        CHECK(is_held(region.outer.base, pages(guard)));
        CHECK(is_held(region.base + HUGE, HUGE + pages(guard)));
        CHECK(mmk_region_protect(&region, 0, pages(1), PROT_READ, false) == -EINVAL);
        mmk_region_dispose(&region);
        CHECK(maps_are(before));
    }
}

TEST(addresses_that_nobody_was_given_are_free_after_close)
{
    mmk_region region;
    map_pages(&region, 4);
    char *base = region.base;
    CHECK(mmk_region_close(&region) == 0 && !is_held(base, pages(4)) && mmk_registry_count() == 0);
    mmk_region_dispose(&region);
}

TEST(after_close_the_addresses_stay_taken_and_fault_until_dispose)
{
    mmk_region region;
    map_pages(&region, 4);
    char *base = region.base;
    memset(base, 1, pages(4));
    region.exposed = true;
    CHECK(mmk_region_close(&region) == 0);
    CHECK(is_held(base, pages(4)) && !can_read(base) && !can_write(base + pages(3)));
    CHECK(mmk_sys_mmap(base, pages(1), RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == -EEXIST);
    mmk_region_dispose(&region);
    CHECK(is_free(base, pages(4)));
}

TEST(dispose_closes_first_if_need_be)
{
    mmk_region region;
    map_pages(&region, 1);
    char *base = region.base;
    mmk_region_dispose(&region);
    CHECK(is_free(base, pages(1)) && mmk_region_is_closed(&region));
    mmk_region_dispose(&region);
}

TEST(closing_under_a_live_view_changes_nothing)
{
    mmk_region region;
    mmk_view view;
    map_pages(&region, 2);
    number_pages(&region);
    CHECK(mmk_view_open(&region, &view, 10, 20, false) == 0 && mmk_region_has_views(&region));
    CHECK(mmk_region_close(&region) == -MMK_EPINNED);
    CHECK(!mmk_region_is_closed(&region) && pages_are_numbered(region.base, 2) && mmk_registry_count() == 1);
    CHECK(mmk_region_protect(&region, 0, pages(1), PROT_READ, false) == 0);
    mmk_view_close(&region, &view);
    CHECK(!mmk_region_has_views(&region) && mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
}

TEST(closing_under_a_running_operation_changes_nothing)
{
    mmk_region region;
    map_pages(&region, 2);
    number_pages(&region);
    CHECK(mmk_region_enter(&region) == 0 && mmk_region_enter(&region) == 0);
    mmk_region_leave(&region);
    CHECK(mmk_region_close(&region) == -MMK_EPINNED);
    CHECK(!mmk_region_is_closed(&region) && pages_are_numbered(region.base, 2));
    mmk_region_leave(&region);
    CHECK(mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
}

TEST(views_close_in_any_order)
{
    mmk_region region;
    mmk_view views[3];
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    map_pages(&region, 1);
    for (int order = 0; order < 6; order++) {
        for (int i = 0; i < 3; i++)
            CHECK(mmk_view_open(&region, &views[i], 0, 1, true) == 0);
        for (int i = 0; i < 3; i++) {
            CHECK(mmk_region_has_views(&region));
            mmk_view_close(&region, &views[orders[order][i]]);
        }
        CHECK(!mmk_region_has_views(&region));
    }
    mmk_region_dispose(&region);
}

TEST(a_view_gets_only_what_every_page_of_it_allows)
{
    mmk_region region;
    mmk_view view;
    map_pages(&region, 3);
    CHECK(mmk_region_protect(&region, pages(1), pages(1), PROT_READ, false) == 0);
    CHECK(mmk_region_protect(&region, pages(2), pages(1), PROT_NONE, false) == 0);
    CHECK(mmk_view_open(&region, &view, 0, pages(1) + 1, true) == -EACCES);
    CHECK(mmk_view_open(&region, &view, 0, pages(2) + 1, false) == -EACCES);
    CHECK(mmk_view_open(&region, &view, pages(3) - 1, 1, false) == -EACCES);
    CHECK(!mmk_region_has_views(&region));
    CHECK(mmk_view_open(&region, &view, 0, pages(2), false) == 0);
    mmk_view_close(&region, &view);
    CHECK(mmk_view_open(&region, &view, 0, pages(1), true) == 0);
    mmk_view_close(&region, &view);
    mmk_region_dispose(&region);
}

/* Whoever checked the range himself did so without the lock: another thread may have shrunk the region since. */
TEST(a_view_beyond_the_region_is_refused)
{
    mmk_region region;
    mmk_view view;
    map_pages(&region, 2);
    CHECK(mmk_view_open(&region, &view, pages(1), pages(1) + 1, false) == -ERANGE);
    CHECK(mmk_view_open(&region, &view, pages(3), 0, false) == -ERANGE);
    CHECK(mmk_view_open(&region, &view, 1, SIZE_MAX, false) == -ERANGE);
    CHECK(!mmk_region_has_views(&region));
    mmk_region_dispose(&region);
}

static void seal_and_close(void)
{
    mmk_region region;
    map_pages(&region, 2);
    number_pages(&region);
    int error = mmk_region_seal(&region);
    if (error == -ENOSYS)
        SKIP("no mseal(2): Linux 6.10");
    CHECK(error == 0 && region.sealed);
    char *base = region.base;
    CHECK(mmk_region_protect(&region, 0, pages(1), PROT_READ, false) == -EPERM);
    CHECK(mmk_region_prot_of_range(&region, 0, pages(2)) == RW && can_write(base));
    CHECK(mmk_region_close(&region) == 0 && mmk_region_is_closed(&region));
    mmk_region_dispose(&region);
    CHECK(mmk_registry_count() == 0);
    CHECK(pages_are_numbered(base, 2) && can_write(base));
}

TEST(a_sealed_region_stays_mapped_and_counts_as_closed)
{
    in_child(seal_and_close);
}

/* Cut the address space into areas until the kernel allows no more: each page that differs from its neighbours
 * is one. Returns the range, to be unmapped. */
static mmk_range use_up_every_area(void)
{
    size_t length = pages(400000);
    intptr_t got = mmk_sys_mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(got > 0);
    char *base = (char *)got;
    size_t page = 1;
    while (page < 400000 && mmk_sys_mprotect(base + pages(page), pages(1), PROT_READ) == 0)
        page += 2;
    CHECK(page < 400000);
    /* The last refusal was one split of the two: use up the other one. */
    while (mmk_sys_mprotect(base + length - pages(1), pages(1), PROT_READ) == 0 && length > pages(page + 4))
        length -= pages(2);
    return (mmk_range){base, pages(400000)};
}

static void live_without_free_areas(void)
{
    mmk_region region, other;
    mmk_cover cover;
    mmk_range vacated;
    mmk_request request = anonymous(pages(8), RW);
    request.reserve = pages(16);
    request.guard = pages(1);
    map(&region, request);
    number_pages(&region);
    CHECK(mmk_region_protect(&region, pages(6), pages(1), PROT_READ, false) == 0);

    mmk_range filling = use_up_every_area();
    CHECK(mmk_region_protect(&region, pages(2), pages(1), PROT_READ, false) == -ENOMEM);
    CHECK(mmk_region_cover(&region, &cover, pages(2), pages(2), PROT_NONE, false) == -ENOMEM);
    CHECK(mmk_region_protect(&region, pages(2), pages(5), PROT_NONE, false) == -ENOMEM);
    CHECK(region.covers == NULL);
    CHECK(mmk_region_prot_of_range(&region, 0, pages(6)) == RW);
    CHECK(mmk_region_prot_of_range(&region, pages(6), pages(1)) == PROT_READ);
    for (size_t page = 0; page < 8; page++)
        CHECK(can_read(region.base + pages(page)) && can_write(region.base + pages(page)) == (page != 6));
    CHECK(pages_are_numbered(region.base, 8));

    int error = mmk_region_lock(&region, pages(2), pages(1));
    CHECK(error == -ENOMEM && region.locks.count == 0);
    CHECK(mmk_region_map(&other, &request) == -ENOMEM && mmk_registry_count() == 1);
    CHECK(mmk_region_resize(&region, pages(64), &vacated) < 0 && vacated.length == 0);
    CHECK(pages_are_numbered(region.base, 8) && mmk_region_length(&region) == pages(8));

    CHECK(mmk_sys_munmap(filling.base, filling.length) == 0);
    CHECK(mmk_region_protect(&region, pages(2), pages(1), PROT_READ, false) == 0);
    CHECK(!can_write(region.base + pages(2)) && can_write(region.base + pages(3)));
    CHECK(mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
}

TEST(with_no_area_left_calls_answer_ENOMEM_and_everything_stays_usable)
{
    if (UNDER_SANITIZER)
        SKIP("the sanitizer itself needs areas");
    in_child(live_without_free_areas);
}

int main(void)
{
    RUN(a_zeroed_handle_is_a_closed_region);
    RUN(a_length_is_rounded_up_to_pages_and_what_was_asked_is_remembered);
    RUN(a_request_that_cannot_be_is_refused_and_leaves_nothing_mapped);
    RUN(a_mapping_the_kernel_refuses_takes_its_reservation_back);
    RUN(guards_stand_at_both_ends_and_the_reserve_behind_the_data);
    RUN(a_larger_granule_aligns_the_base_and_nothing_around_it_stays_mapped);
    RUN(addresses_that_nobody_was_given_are_free_after_close);
    RUN(after_close_the_addresses_stay_taken_and_fault_until_dispose);
    RUN(dispose_closes_first_if_need_be);
    RUN(closing_under_a_live_view_changes_nothing);
    RUN(closing_under_a_running_operation_changes_nothing);
    RUN(views_close_in_any_order);
    RUN(a_view_gets_only_what_every_page_of_it_allows);
    RUN(a_sealed_region_stays_mapped_and_counts_as_closed);
    RUN(with_no_area_left_calls_answer_ENOMEM_and_everything_stays_usable);
    RUN(every_call_on_a_closed_region_answers_closed);
    RUN(every_call_on_a_closed_private_file_region_answers_closed);
    RUN(a_view_beyond_the_region_is_refused);
    return 0;
}
