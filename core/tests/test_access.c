#include <mmkit/access.h>
#include <mmkit/protect.h>

#include "support.h"

TEST(what_is_stored_is_loaded_at_any_offset)
{
    mmk_region region;
    char bytes[5000];
    map_pages(&region, 3);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i * 7);
    CHECK(mmk_access_store(&region, 3001, bytes, sizeof bytes, &fault) == 0);
    char back[sizeof bytes] = {0};
    CHECK(mmk_access_load(&region, 3001, back, sizeof back, &fault) == 0 && memcmp(bytes, back, sizeof bytes) == 0);
    CHECK(region.base[3000] == 0 && region.base[3001 + sizeof bytes] == 0);
    /* The source may be the region itself. */
    CHECK(mmk_access_store(&region, 3011, region.base + 3001, 4000, &fault) == 0);
    CHECK(memcmp(region.base + 3011, bytes, 4000) == 0);
    mmk_region_dispose(&region);
}

TEST(a_range_outside_is_refused_and_nothing_is_touched)
{
    mmk_region region;
    char byte = 'x';
    map_pages(&region, 1);
    CHECK(mmk_access_load(&region, pages(1), &byte, 0, &fault) == 0);
    CHECK(mmk_access_load(&region, pages(1), &byte, 1, &fault) == -ERANGE && byte == 'x');
    CHECK(mmk_access_store(&region, SIZE_MAX, &byte, 2, &fault) == -ERANGE);
    CHECK(mmk_access_store(&region, 1, &byte, SIZE_MAX, &fault) == -ERANGE);
    CHECK(mmk_access_find(&region, 1, pages(1), &byte, 1, &fault) == -ERANGE);
    CHECK(mmk_access_rfind(&region, pages(1) + 1, 0, &byte, 1, &fault) == -ERANGE);
    CHECK(atomic_load(&region.state) == MMK_REGION_LIVE);
    mmk_region_dispose(&region);
}

TEST(what_the_protection_forbids_is_refused_and_nothing_is_touched)
{
    mmk_region region;
    mmk_cover window;
    char bytes[2] = "ab";
    map_pages(&region, 3);
    CHECK(mmk_region_protect(&region, pages(1), pages(1), PROT_READ, false) == 0);
    CHECK(mmk_region_protect(&region, pages(2), pages(1), PROT_NONE, false) == 0);
    CHECK(mmk_access_store(&region, pages(1) - 1, bytes, 2, &fault) == -EFAULT && region.base[pages(1) - 1] == 0);
    CHECK(mmk_access_load(&region, pages(1) - 1, bytes, 2, &fault) == 0);
    CHECK(mmk_access_load(&region, pages(2) - 1, bytes, 2, &fault) == -EFAULT);
    CHECK(mmk_access_find(&region, 0, pages(3), "a", 1, &fault) == -EFAULT);
    CHECK(mmk_access_rfind(&region, pages(2), 1, "a", 1, &fault) == -EFAULT);
    CHECK(mmk_region_cover(&region, &window, 0, pages(3), RW, false) == 0);
    CHECK(mmk_access_store(&region, pages(2), "ab", 2, &fault) == 0);
    CHECK(mmk_region_uncover(&region, &window, false) == 0);
    CHECK(mmk_access_store(&region, pages(2), "cd", 2, &fault) == -EFAULT);
    CHECK(atomic_load(&region.state) == MMK_REGION_LIVE);
    mmk_region_dispose(&region);
}

TEST(a_needle_is_found_where_it_first_and_last_stands)
{
    mmk_region region;
    map_pages(&region, 2);
    memcpy(region.base + 100, "needle", 6);
    memcpy(region.base + pages(1) - 3, "needle", 6);
    ssize_t second = (ssize_t)pages(1) - 3;
    CHECK(mmk_access_find(&region, 0, pages(2), "needle", 6, &fault) == 100);
    CHECK(mmk_access_find(&region, 101, pages(2) - 101, "needle", 6, &fault) == second);
    CHECK(mmk_access_rfind(&region, 0, pages(2), "needle", 6, &fault) == second);
    CHECK(mmk_access_rfind(&region, 0, pages(1) + 2, "needle", 6, &fault) == 100);
    CHECK(mmk_access_rfind(&region, 100, 6, "needle", 6, &fault) == 100);
    CHECK(mmk_access_find(&region, 100, 5, "needle", 6, &fault) == -ENOENT);
    CHECK(mmk_access_rfind(&region, 100, 5, "needle", 6, &fault) == -ENOENT);
    CHECK(mmk_access_find(&region, 0, pages(2), "absent", 6, &fault) == -ENOENT);
    CHECK(mmk_access_rfind(&region, 0, pages(2), "absent", 6, &fault) == -ENOENT);
    CHECK(mmk_access_find(&region, 7, 9, "", 0, &fault) == 7 && mmk_access_rfind(&region, 7, 9, "", 0, &fault) == 16);
    CHECK(mmk_access_find(&region, 7, 0, "", 0, &fault) == 7 &&
          mmk_access_rfind(&region, 7, 0, "n", 1, &fault) == -ENOENT);
    memcpy(region.base, "aaaa", 4);
    CHECK(mmk_access_rfind(&region, 0, 4, "aa", 2, &fault) == 2 &&
          mmk_access_find(&region, 0, 4, "aa", 2, &fault) == 0);
    mmk_region_dispose(&region);
}

TEST(what_is_moved_within_the_region_may_overlap_itself)
{
    mmk_region region;
    map_pages(&region, 2);
    memcpy(region.base, "0123456789", 10);
    CHECK(mmk_access_move(&region, 2, 0, 8, &fault) == 0 && memcmp(region.base, "0101234567", 10) == 0);
    CHECK(mmk_access_move(&region, 0, 2, 8, &fault) == 0 && memcmp(region.base, "0123456767", 10) == 0);
    CHECK(mmk_access_move(&region, pages(2), 0, 0, &fault) == 0);
    CHECK(mmk_access_move(&region, pages(2) - 1, 0, 2, &fault) == -ERANGE);
    CHECK(mmk_access_move(&region, 0, pages(2) - 1, 2, &fault) == -ERANGE);
    CHECK(mmk_region_protect(&region, pages(1), pages(1), PROT_READ, false) == 0);
    CHECK(mmk_access_move(&region, 0, pages(1), 2, &fault) == 0 && region.base[0] == 0);
    CHECK(mmk_access_move(&region, pages(1), 2, 2, &fault) == -EFAULT && fault.write);
    CHECK(mmk_access_move(&region, pages(1) - 1, 2, 2, &fault) == -EFAULT && region.base[pages(1) - 1] == 0);
    CHECK(mmk_region_protect(&region, pages(1), pages(1), PROT_NONE, false) == 0);
    CHECK(mmk_access_move(&region, 0, pages(1), 2, &fault) == -EFAULT && !fault.write);
    CHECK(fault.address == (uintptr_t)region.base + pages(1) && fault.reason == MMK_FAULT_PROTECTION);
    CHECK(atomic_load(&region.state) == MMK_REGION_LIVE);
    CHECK(mmk_region_close(&region) == 0);
    CHECK(mmk_access_move(&region, 0, 1, 1, &fault) == -MMK_ECLOSED);
    mmk_region_dispose(&region);
}

TEST(what_stands_in_front_of_a_hole_is_found_and_what_does_not_is_a_fault)
{
    mmk_region region;
    map_pages(&region, 4);
    memcpy(region.base + pages(1) - 100, "needle", 6);
    CHECK(mmk_region_guard(&region, pages(1), pages(1), false) == 0);
    for (size_t offset = 0; offset < pages(1) - 100; offset += 61)
        CHECK(mmk_access_find(&region, offset, pages(4) - offset, "needle", 6, &fault) == (ssize_t)pages(1) - 100);
    CHECK(mmk_access_find(&region, 0, pages(4), "n", 1, &fault) == (ssize_t)pages(1) - 100);
    CHECK(mmk_access_find(&region, 0, pages(4), "absent", 6, &fault) == -EFAULT);
    CHECK(fault.address == (uintptr_t)region.base + pages(1) && !fault.write);
    mmk_region_dispose(&region);
}

int main(void)
{
    RUN(what_is_moved_within_the_region_may_overlap_itself);
    RUN(what_stands_in_front_of_a_hole_is_found_and_what_does_not_is_a_fault);
    RUN(what_is_stored_is_loaded_at_any_offset);
    RUN(a_range_outside_is_refused_and_nothing_is_touched);
    RUN(what_the_protection_forbids_is_refused_and_nothing_is_touched);
    RUN(a_needle_is_found_where_it_first_and_last_stands);
    return 0;
}
