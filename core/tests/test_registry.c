#include <mmkit/registry.h>
#include <mmkit/resize.h>

#include "ranges.h"
#include "registry_internal.h"
#include "support.h"

enum {
    REGIONS = 1200,
    MANY = 100000,
    BURST = 10000,
    STRIDE = 0x10000, /* bytes from one of many ranges to the next */
};

static mmk_region regions[MANY];

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

/* ---- many ranges, of which nothing is mapped -------------------------------------------------------- */

static mmk_range range_at(size_t place)
{
    return (mmk_range){(char *)0x100000000 + place * STRIDE, place % 2 ? STRIDE : STRIDE / 2};
}

static size_t order[MANY];

/* 0 .. MANY - 1 in random order. */
static void shuffle(void)
{
    static uint64_t seed = 1;
    for (size_t i = 0; i < MANY; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        size_t other = (seed >> 33) % (i + 1);
        order[i] = order[other];
        order[other] = i;
    }
}

static bool is_in(size_t place)
{
    mmk_range range = range_at(place);
    char *end = range.base + range.length;
    bool first = overlap(range.base, 1).base == range.base, last = overlap(end - 1, 1).base == range.base;
    CHECK(first == last && overlap(range.base, range.length).base == (first ? range.base : NULL));
    CHECK(place % 2 || overlap(end, STRIDE / 2).length == 0);
    return first;
}

TEST(a_hundred_thousand_ranges_come_and_go_in_any_order)
{
    static bool in[MANY];
    for (int adding = 1; adding >= 0; adding--) {
        shuffle();
        for (size_t i = 0; i < MANY; i++) {
            if (adding)
                CHECK(mmk_registry_hold(range_at(order[i])) == 0);
            else
                mmk_registry_release(range_at(order[i]));
            in[order[i]] = adding;
            if (i % BURST != BURST - 1)
                continue;
            CHECK(ranges_check() && mmk_registry_count() == (adding ? i + 1 : MANY - 1 - i));
            for (size_t place = 0; place < MANY; place++)
                CHECK(is_in(place) == in[place]);
        }
    }
}

TEST(the_lowest_range_is_found_from_any_gap)
{
    for (size_t place = 0; place < BURST; place++)
        CHECK(mmk_registry_hold(range_at(place)) == 0);
    /* In each turn gaps are twice as wide, over leaves that have lost their first or last entries. */
    for (size_t gap = 1; gap < BURST; gap *= 2) {
        for (size_t place = 0; place < BURST; place++) {
            size_t next = mmk_round_up(place, gap);
            CHECK(overlap(range_at(place).base, SIZE_MAX / 2).base == (next < BURST ? range_at(next).base : NULL));
        }
        for (size_t place = gap; place < BURST; place += 2 * gap)
            mmk_registry_release(range_at(place));
        CHECK(ranges_check());
    }
    mmk_registry_release(range_at(0));
    CHECK(mmk_registry_count() == 0);
}

TEST(a_range_added_in_place_of_several_is_found_in_all_of_it)
{
    enum { TOGETHER = 5 };
    for (size_t first = 0; first < 500; first++) {
        for (size_t place = 0; place < 1000; place++)
            CHECK(mmk_registry_hold(range_at(place)) == 0);
        for (size_t place = first; place < first + TOGETHER; place++)
            mmk_registry_release(range_at(place));
        mmk_range wide = {range_at(first).base, TOGETHER * STRIDE};
        CHECK(mmk_registry_hold(wide) == 0 && ranges_check());
        for (size_t place = first; place < first + TOGETHER; place++)
            CHECK(overlap(range_at(place).base, 1).base == wide.base);
        mmk_registry_release(wide);
        for (size_t place = 0; place < 1000; place++)
            if (place < first || place >= first + TOGETHER)
                mmk_registry_release(range_at(place));
        CHECK(ranges_check() && mmk_registry_count() == 0);
    }
}

TEST(ranges_that_overlap_for_a_while_leave_in_any_order)
{
    enum { OVERLAPPING = 300 };
    shuffle();
    for (size_t i = 0; i < OVERLAPPING; i++) {
        regions[i].outer = (mmk_range){range_at(i / 100).base, STRIDE * (1 + i % 3)};
        CHECK(mmk_registry_add(&regions[i]) == 0);
    }
    for (size_t i = 0, left = OVERLAPPING; i < MANY; i++)
        if (order[i] < OVERLAPPING) {
            mmk_registry_remove(&regions[order[i]]);
            CHECK(mmk_registry_count() == --left && ranges_check());
        }
    CHECK(mmk_registry_count() == 0);
}

TEST(a_walk_meets_every_range_once_in_order_also_when_some_are_taken_out_on_the_way)
{
    for (size_t keep = 1; keep < 200; keep += 33) {
        entry found;
        size_t place = 0;
        for (; place < REGIONS; place++)
            CHECK(mmk_registry_hold(range_at(place)) == 0);
        place = 0;
        for (ranges_place walk = {0}; ranges_next(&walk, &found); place++) {
            CHECK(found.range.base == range_at(place).base && found.range.length == range_at(place).length);
            if (place % keep == 0)
                continue;
            ranges_take(&found);
            walk = ranges_place_of(&found);
        }
        CHECK(place == REGIONS && ranges_check() && mmk_registry_count() == (REGIONS + keep - 1) / keep);
        for (place = 0; place < REGIONS; place += keep)
            mmk_registry_release(range_at(place));
    }
}

/* ---- refusals --------------------------------------------------------------------------------------- */

static void move_all_to(size_t count, size_t first, size_t step)
{
    shuffle();
    for (size_t i = 0; i < MANY; i++)
        if (order[i] < count)
            mmk_registry_move(&regions[order[i]], range_at(first + order[i] * step));
    CHECK(ranges_check() && mmk_registry_count() == count);
    for (size_t i = 0; i < count; i++)
        CHECK(registry_region_at((uintptr_t)regions[i].outer.base) == &regions[i]);
}

static void limit_address_space(rlim_t bytes)
{
    CHECK(setrlimit(RLIMIT_AS, &(struct rlimit){bytes, RLIM_INFINITY}) == 0);
}

static void fill_all_memory(void)
{
    size_t count = 0;
    int error;
    limit_address_space(status_bytes("VmSize:") + (2 << 20));
    for (; count < MANY; count++) {
        regions[count].outer = range_at(count * 8);
        error = mmk_registry_add(&regions[count]);
        if (error)
            break;
    }
    CHECK(error == -ENOMEM && count > REGIONS && count < MANY);
    CHECK(ranges_check() && mmk_registry_count() == count && overlap(regions[count].outer.base, 1).length == 0);
    CHECK(mmk_registry_hold(regions[count].outer) == -ENOMEM);

    /* Moves need no memory that is not there, wherever they put things together or pull them apart. */
    move_all_to(count, 1, 8);
    move_all_to(count, 2, 1);
    move_all_to(count, 0, 16);
    for (size_t i = 0; i < count; i++)
        if (i % 40) {
            mmk_registry_move(&regions[i], range_at(MANY * 16 + i));
            mmk_registry_move(&regions[i - i % 40], range_at(MANY * 32 + i / 40 * 100 + i % 40));
        }
    CHECK(ranges_check() && mmk_registry_count() == count);

    mmk_registry_remove(&regions[0]);
    CHECK(mmk_registry_add(&regions[0]) == 0);
    limit_address_space(RLIM_INFINITY);
    for (; count < MANY; count++) {
        regions[count].outer = range_at(MANY * 64 + count);
        CHECK(mmk_registry_add(&regions[count]) == 0);
    }
    move_all_to(count, 3, 2);
    for (size_t i = 0; i < count; i++)
        mmk_registry_remove(&regions[i]);
    CHECK(ranges_check() && mmk_registry_count() == 0);
}

TEST(without_memory_nothing_is_added_and_everything_else_works)
{
    if (UNDER_SANITIZER)
        SKIP("the sanitizer needs address space");
    in_child(fill_all_memory);
}

static void close_what_cannot_be_unmapped(void)
{
    mmk_region region;
    map_pages(&region, 3);
    refuse(SYS_munmap, 1, UINT32_MAX, (uint32_t)pages(3), ENOMEM);
    CHECK(mmk_registry_unmap(&region) == -ENOMEM && can_write(region.base) && region.outer.length == pages(3));
    CHECK(mmk_registry_count() == 1 && registry_region_at((uintptr_t)region.base) == &region && ranges_check());
    CHECK(mmk_region_close(&region) == 0 && is_held(region.base, pages(3)));
    mmk_region_dispose(&region);
    CHECK(mmk_registry_count() == 0);
}

TEST(a_region_that_the_kernel_does_not_unmap_stays_in)
{
    in_child(close_what_cannot_be_unmapped);
}

TEST(a_child_finds_adds_and_removes_what_its_parent_had)
{
    enum { INHERITED = UNDER_TSAN ? 50 : REGIONS }; /* TSan knows 64 locks a thread; fork takes them all */
    for (size_t i = 0; i < INHERITED; i++)
        map_pages(&regions[i], 1);
    CHECK(mmk_registry_hold(range_at(0)) == 0);
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    /* Parent and child alike. */
    CHECK(mmk_registry_count() == INHERITED + 1 && ranges_check());
    for (size_t i = 0; i < INHERITED; i++) {
        CHECK(registry_region_at((uintptr_t)regions[i].base) == &regions[i]);
        CHECK(mmk_region_close(&regions[i]) == 0 && registry_region_at((uintptr_t)regions[i].base) == NULL);
    }
    CHECK(is_in(0) && registry_region_at((uintptr_t)range_at(0).base) == NULL); /* nobody's */
    mmk_registry_release(range_at(0));
    CHECK(mmk_registry_count() == 0 && ranges_check());
    if (child == 0)
        _exit(0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
    RUN(a_live_region_is_found_by_any_range_that_overlaps_it);
    RUN(guards_and_reserve_belong_to_the_region);
    RUN(a_closed_region_holds_its_addresses_until_it_is_disposed_of);
    RUN(a_refused_region_is_not_live);
    RUN(many_regions_come_and_go_in_any_order_and_the_lowest_overlap_is_found);
    RUN(regions_that_moved_are_found_where_they_are_now);
    RUN(without_memory_nothing_is_added_and_everything_else_works);
    RUN(a_hundred_thousand_ranges_come_and_go_in_any_order);
    RUN(the_lowest_range_is_found_from_any_gap);
    RUN(a_range_added_in_place_of_several_is_found_in_all_of_it);
    RUN(ranges_that_overlap_for_a_while_leave_in_any_order);
    RUN(a_walk_meets_every_range_once_in_order_also_when_some_are_taken_out_on_the_way);
    RUN(a_region_that_the_kernel_does_not_unmap_stays_in);
    RUN(a_child_finds_adds_and_removes_what_its_parent_had);
    return 0;
}
