#include <mmkit/registry.h>
#include <mmkit/resize.h>

#include "support.h"

enum {
    REGIONS = 1200, /* more than the registry's first page of pointers holds: it has to grow, twice */
};

static mmk_range overlap(const void *address, size_t length)
{
    return mmk_registry_overlap((uintptr_t)address, length);
}

TEST(a_live_region_is_found_by_any_range_that_overlaps_it)
{
    mmk_region region;
    map_pages(&region, 4);
    char *base = region.base, *end = base + pages(4);
    CHECK(mmk_registry_count() == 1);
    CHECK(overlap(base, 1).base == base && overlap(base, 1).length == pages(4));
    CHECK(overlap(end - 1, 1).base == base);
    CHECK(overlap(base - 1, 2).base == base);
    CHECK(overlap(base - 100, pages(4) + 200).base == base);
    CHECK(overlap(end, pages(1)).length == 0);
    CHECK(overlap(base - pages(1), pages(1)).length == 0);
    mmk_region_dispose(&region);
    CHECK(mmk_registry_count() == 0 && overlap(base, pages(4)).length == 0);
}

TEST(guards_and_reserve_belong_to_the_region)
{
    mmk_region region;
    mmk_request request = anonymous(pages(1), RW);
    request.reserve = pages(8);
    request.guard = pages(2);
    map(&region, request);
    mmk_range outer = overlap(region.base, 1);
    CHECK(outer.base == region.base - pages(2) && outer.length == pages(12));
    CHECK(overlap(outer.base, 1).length && overlap(outer.base + outer.length - 1, 1).length);
    mmk_region_dispose(&region);
}

TEST(a_closed_region_holds_its_addresses_until_it_is_disposed_of)
{
    mmk_region region;
    map_pages(&region, 1);
    region.exposed = true;
    CHECK(mmk_region_close(&region) == 0);
    CHECK(mmk_registry_count() == 1 && overlap(region.outer.base, 1).base == region.outer.base);
    mmk_region_dispose(&region);
    CHECK(mmk_registry_count() == 0);
}

TEST(a_refused_region_is_not_live)
{
    mmk_region region;
    mmk_request request = file(12345, pages(1), MAP_SHARED);
    CHECK(mmk_region_map(&region, &request) == -EBADF);
    CHECK(mmk_registry_count() == 0 && mmk_region_is_closed(&region));
}

TEST(many_regions_come_and_go_in_any_order_and_the_lowest_overlap_is_found)
{
    static mmk_region regions[REGIONS];
    for (size_t i = 0; i < REGIONS; i++)
        map_pages(&regions[i], 1 + i % 3);
    CHECK(mmk_registry_count() == REGIONS);
    for (size_t i = 0; i < REGIONS; i++)
        CHECK(all_bytes_are(regions[i].base, pages(1 + i % 3), 0)); /* nothing was written past the registry's end */

    char *lowest = regions[0].base;
    for (size_t i = 0; i < REGIONS; i++) {
        CHECK(overlap(regions[i].base + pages(i % 3), 1).base == regions[i].base);
        lowest = regions[i].base < lowest ? regions[i].base : lowest;
    }
    CHECK(overlap((void *)0x1000, UINTPTR_MAX / 2).base == lowest);

    for (size_t i = 0; i < REGIONS; i += 2)
        mmk_region_dispose(&regions[i]);
    CHECK(mmk_registry_count() == REGIONS / 2);
    for (size_t i = 0; i < REGIONS; i++)
        CHECK(overlap(regions[i].base, 1).base == (i % 2 ? regions[i].base : NULL));
    for (size_t i = REGIONS - 1; i < REGIONS; i -= 2)
        mmk_region_dispose(&regions[i]);
    CHECK(mmk_registry_count() == 0);
}

TEST(regions_that_moved_are_found_where_they_are_now)
{
    enum { MOVED = 24 };
    mmk_region regions[MOVED];
    mmk_range vacated[MOVED];
    for (size_t i = 0; i < MOVED; i++) {
        mmk_request request = anonymous(pages(1), RW);
        request.guard = pages(1);
        map(&regions[i], request);
    }
    for (size_t i = 0; i < MOVED; i++) {
        size_t which = i * 7 % MOVED;
        CHECK(mmk_region_resize(&regions[which], pages(2 + i % 5), &vacated[which]) == 0 && vacated[which].length);
    }
    for (size_t i = 0; i < MOVED; i++) {
        CHECK(overlap(regions[i].base, 1).base == regions[i].outer.base);
        CHECK(overlap(vacated[i].base, 1).length == 0);
    }
    for (size_t i = 0; i < MOVED; i++) {
        char *base = regions[i].base;
        mmk_region_dispose(&regions[i]);
        CHECK(overlap(base, 1).length == 0 && mmk_sys_munmap(vacated[i].base, vacated[i].length) == 0);
    }
    CHECK(mmk_registry_count() == 0);
}

int main(void)
{
    RUN(a_live_region_is_found_by_any_range_that_overlaps_it);
    RUN(guards_and_reserve_belong_to_the_region);
    RUN(a_closed_region_holds_its_addresses_until_it_is_disposed_of);
    RUN(a_refused_region_is_not_live);
    RUN(many_regions_come_and_go_in_any_order_and_the_lowest_overlap_is_found);
    RUN(regions_that_moved_are_found_where_they_are_now);
    return 0;
}
