#include <mmkit/arena.h>

#include "support.h"

static mmk_arena arena;

static char *alloc(size_t size, size_t align, bool zero)
{
    char *block;
    CHECK(mmk_arena_alloc(&arena, size, align, zero, &block) == 0);
    return block;
}

TEST(blocks_are_aligned_do_not_overlap_and_stay_where_they_are_while_the_arena_grows)
{
    CHECK(mmk_arena_open(&arena, NULL, 0, 64 << 20) == 0);
    char *blocks[200];
    for (size_t i = 0; i < 200; i++) {
        size_t align = (size_t)1 << i % 16;
        blocks[i] = alloc(i * 100 + 1, align, false);
        CHECK((uintptr_t)blocks[i] % align == 0);
        memset(blocks[i], (int)i, i * 100 + 1);
    }
    for (size_t i = 0; i < 200; i++)
        CHECK(all_bytes_are(blocks[i], i * 100 + 1, (int)i));
    CHECK(mmk_arena_close(&arena) == 0 && mmk_arena_close(&arena) == -MMK_ECLOSED);
    char *block;
    CHECK(mmk_arena_alloc(&arena, 1, 1, false, &block) == -MMK_ECLOSED && mmk_arena_rewind(&arena, 0) == -MMK_ECLOSED);
    mmk_arena_dispose(&arena);
}

TEST(what_was_rewound_is_allocated_again_and_its_memory_stays)
{
    CHECK(mmk_arena_open(&arena, NULL, 0, 64 << 20) == 0);
    char *kept = alloc(100, 16, false);
    memset(kept, 1, 100);
    size_t mark = arena.used;
    char *gone = alloc(1 << 20, 16, false);
    memset(gone, 2, 1 << 20);
    size_t capacity = mmk_arena_capacity(&arena);
    CHECK(mmk_arena_rewind(&arena, arena.used + 1) == -EINVAL);
    CHECK(mmk_arena_rewind(&arena, mark) == 0);
    CHECK(mmk_arena_rewind(&arena, mark + 1) == -EINVAL);
    CHECK(mmk_arena_capacity(&arena) == capacity && alloc(1 << 20, 16, false) == gone);
    CHECK(all_bytes_are(gone, 1 << 20, 2) && all_bytes_are(kept, 100, 1));
    /* Zeros on request: part of it was used before, part never. */
    CHECK(mmk_arena_rewind(&arena, mark) == 0);
    CHECK(all_bytes_are(alloc(3 << 20, 16, true), 3 << 20, 0));
    /* However little was allocated since. */
    memset(gone, 3, 3 << 20);
    CHECK(mmk_arena_rewind(&arena, mark) == 0 && alloc(16, 16, false) == gone);
    CHECK(mmk_arena_rewind(&arena, mark) == 0);
    CHECK(all_bytes_are(alloc(3 << 20, 16, true), 3 << 20, 0));
    mmk_arena_dispose(&arena);
}

TEST(a_request_that_makes_no_sense_or_is_too_large_changes_nothing)
{
    CHECK(mmk_arena_open(&arena, NULL, 0, 0) == -EINVAL);
    CHECK(mmk_arena_open(&arena, NULL, 0, SIZE_MAX) == -ENOMEM);
    CHECK(mmk_arena_open(&arena, NULL, 0, 1 << 20) == 0);
    char *first = alloc(10, 1, false), *block;
    size_t used = arena.used;
    CHECK(mmk_arena_alloc(&arena, 0, 16, false, &block) == -EINVAL);
    CHECK(mmk_arena_alloc(&arena, 1, 0, false, &block) == -EINVAL);
    CHECK(mmk_arena_alloc(&arena, 1, 3, false, &block) == -EINVAL);
    CHECK(mmk_arena_alloc(&arena, 1 << 20, 1, false, &block) == -ENOMEM);
    CHECK(mmk_arena_alloc(&arena, SIZE_MAX, 1, false, &block) == -ENOMEM);
    CHECK(mmk_arena_alloc(&arena, SIZE_MAX - 4096, 4096, false, &block) == -ENOMEM);
    CHECK(mmk_arena_alloc(&arena, 1, (size_t)1 << 63, false, &block) == -ENOMEM);
    CHECK(arena.used == used);
    CHECK(alloc((1 << 20) - 10, 1, false) == first + 10);
    mmk_arena_dispose(&arena);
}

TEST(an_arena_in_a_region_stays_inside_and_pins_it)
{
    mmk_region region;
    map_pages(&region, 3);
    number_pages(&region);
    CHECK(mmk_arena_open(&arena, &region, pages(3), 0) == -EINVAL);
    CHECK(mmk_arena_open(&arena, &region, pages(1), 0) == 0);
    CHECK(mmk_region_close(&region) == -MMK_EPINNED);
    char *block;
    CHECK(mmk_arena_alloc(&arena, pages(2) + 1, 1, false, &block) == -ENOMEM);
    block = alloc(pages(2), 1, true);
    CHECK(block == region.base + pages(1) && all_bytes_are(block, pages(2), 0));
    CHECK(pages_are_numbered(region.base, 1));
    CHECK(mmk_arena_rewind(&arena, 0) == -EINVAL && mmk_arena_rewind(&arena, arena.start) == 0);
    mmk_arena_dispose(&arena);
    CHECK(mmk_region_close(&region) == 0);
    CHECK(mmk_arena_open(&arena, &region, 0, 0) == -MMK_ECLOSED);
    mmk_region_dispose(&region);
}

static void exhaust(void)
{
    CHECK(mmk_arena_open(&arena, NULL, 0, 256 << 20) == 0);
    limit(RLIMIT_DATA, 32 << 20);
    char *block;
    int error = 0;
    for (int i = 0; i < 300 && !error; i++)
        error = mmk_arena_alloc(&arena, 1 << 20, 16, false, &block);
    CHECK(error == -ENOMEM);
    size_t used = arena.used;
    CHECK(mmk_arena_rewind(&arena, 0) == 0);
    memset(alloc(used, 1, true), 1, used);
    mmk_arena_dispose(&arena);
}

TEST(an_arena_that_found_no_memory_can_be_used_on)
{
    if (UNDER_SANITIZER)
        SKIP("a limit on data does not go with a sanitizer's shadow memory");
    in_child(exhaust);
}

int main(void)
{
    RUN(blocks_are_aligned_do_not_overlap_and_stay_where_they_are_while_the_arena_grows);
    RUN(what_was_rewound_is_allocated_again_and_its_memory_stays);
    RUN(a_request_that_makes_no_sense_or_is_too_large_changes_nothing);
    RUN(an_arena_in_a_region_stays_inside_and_pins_it);
    RUN(an_arena_that_found_no_memory_can_be_used_on);
    return 0;
}
