/* Heaps, pools and arenas of one region: each has its range to itself. */
#include <sys/mman.h>

#include <mmkit/arena.h>
#include <mmkit/heap.h>
#include <mmkit/pool.h>

#include "support.h"

static const mmk_pool_geometry SMALL = {.block_size = 64, .count = 4, .limit = 4};

static mmk_region region;
static mmk_heap heap, other_heap, third_heap;
static mmk_pool pool, other_pool, third_pool;
static mmk_arena arena, third_arena;

static int open_heap(mmk_heap *made)
{
    return mmk_heap_open(made, &(mmk_heap_request){.source = MMK_HEAP_REGION, .region = &region});
}

static void check_that_all_are_refused(const char *tenant)
{
    CHECK(strcmp(mmk_region_tenant(&region), tenant) == 0);
    CHECK(open_heap(&third_heap) == -MMK_ETAKEN);
    CHECK(mmk_pool_create(&third_pool, &region, 0, &SMALL, false) == -MMK_ETAKEN);
    CHECK(mmk_arena_open(&third_arena, &region, 0, 0) == -MMK_ETAKEN);
    CHECK(strcmp(mmk_region_tenant(&region), tenant) == 0);
}

TEST(nothing_is_laid_out_over_what_lives_and_closing_that_frees_the_place)
{
    map_pages(&region, 16);
    CHECK(mmk_region_tenant(&region) == NULL);
    CHECK(open_heap(&heap) == 0);
    void *block;
    CHECK(mmk_heap_alloc(&heap, 100, 16, false, &block) == 0);
    check_that_all_are_refused("a heap");
    mmk_heap_damage damage;
    CHECK(mmk_heap_check(&heap, &damage) == 0 && mmk_heap_free(&heap, block) == 0);
    CHECK(mmk_heap_close(&heap) == 0 && mmk_region_tenant(&region) == NULL);
    mmk_heap_dispose(&heap);

    CHECK(mmk_pool_create(&pool, &region, 0, &SMALL, true) == 0);
    check_that_all_are_refused("a pool");
    uint32_t lost, damaged;
    CHECK(mmk_pool_check(&pool, &lost, &damaged) == 0);
    mmk_pool_close(&pool);

    CHECK(mmk_arena_open(&arena, &region, 0, 0) == 0);
    check_that_all_are_refused("an arena");
    mmk_arena_dispose(&arena);

    CHECK(open_heap(&heap) == 0);
    mmk_heap_dispose(&heap);
    CHECK(mmk_region_close(&region) == 0 && mmk_region_tenant(&region) == NULL);
    mmk_region_dispose(&region);
}

TEST(ranges_that_do_not_overlap_have_a_tenant_each)
{
    map_pages(&region, 16);
    CHECK(mmk_pool_create(&pool, &region, 0, &SMALL, true) == 0);
    CHECK(mmk_pool_create(&other_pool, &region, mmk_pool_size(&SMALL) - MMK_POOL_LINE, &SMALL, true) == -MMK_ETAKEN);
    CHECK(mmk_pool_create(&other_pool, &region, mmk_pool_size(&SMALL), &SMALL, true) == 0);
    CHECK(mmk_arena_open(&arena, &region, mmk_pool_size(&SMALL), 0) == -MMK_ETAKEN);
    CHECK(mmk_arena_open(&arena, &region, pages(1), 0) == 0);
    mmk_arena_dispose(&arena);
    mmk_pool_close(&pool);
    mmk_pool_close(&other_pool);
    mmk_region_dispose(&region);
}

TEST(who_joins_stands_beside_its_own_kind_only)
{
    int fd = memory_file(pages(16));
    map(&region, file(fd, pages(16), MAP_SHARED));
    CHECK(open_heap(&heap) == 0);
    CHECK(mmk_heap_attach(&other_heap, &region, 0) == 0);
    mmk_heap_dispose(&heap);
    check_that_all_are_refused("a heap");
    mmk_heap_dispose(&other_heap);
    /* The heap that is in the file now is no pool; but an arena may be over it by the time that somebody joins it. */
    CHECK(open_heap(&heap) == -EEXIST);
    CHECK(mmk_arena_open(&arena, &region, 0, 0) == 0);
    CHECK(mmk_heap_attach(&heap, &region, 0) == -MMK_ETAKEN);
    mmk_arena_dispose(&arena);

    CHECK(mmk_pool_create(&pool, &region, 0, &SMALL, false) == 0);
    CHECK(mmk_pool_attach(&other_pool, &region, 0) == 0);
    mmk_pool_close(&pool);
    CHECK(mmk_pool_create(&pool, &region, 0, &SMALL, false) == -MMK_ETAKEN);
    mmk_pool_close(&other_pool);
    CHECK(mmk_arena_open(&arena, &region, 0, 0) == 0);
    CHECK(mmk_pool_attach(&pool, &region, 0) == -MMK_ETAKEN);
    mmk_arena_dispose(&arena);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(what_is_refused_for_another_reason_holds_no_place)
{
    map_pages(&region, 16);
    const mmk_pool_geometry large = {.block_size = 1 << 20, .count = 4, .limit = 4};
    CHECK(mmk_pool_create(&pool, &region, 0, &large, true) == -ENOSPC);
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_REGION, .region = &region, .limit = 16}) ==
          -EINVAL);
    CHECK(mmk_region_tenant(&region) == NULL);
    mmk_view view;
    CHECK(mmk_view_open(&region, &view, 0, pages(16), true) == 0);
    CHECK(mmk_region_tenant(&region) == NULL && open_heap(&heap) == 0);
    mmk_view_close(&region, &view);
    mmk_heap_dispose(&heap);
    mmk_region_dispose(&region);
}

int main(void)
{
    RUN(nothing_is_laid_out_over_what_lives_and_closing_that_frees_the_place);
    RUN(ranges_that_do_not_overlap_have_a_tenant_each);
    RUN(who_joins_stands_beside_its_own_kind_only);
    RUN(what_is_refused_for_another_reason_holds_no_place);
    return 0;
}
