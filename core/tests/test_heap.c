#include <mmkit/heap.h>

#include "support.h"

/* What a heap promises whatever its source is; test_heap_sources.c has the sources' own. */

static mmk_heap heap;

static void open_mmap_heap(size_t limit_bytes)
{
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP, .limit = limit_bytes}) == 0);
}

static void check(void)
{
    mmk_heap_damage damage;
    int error = mmk_heap_check(&heap, &damage);
    if (error)
        fprintf(stderr, "at %#lx: %s\n", (unsigned long)damage.address, damage.what ? damage.what : "?");
    CHECK(error == 0);
}

static char *alloc(size_t size)
{
    void *bytes;
    CHECK(mmk_heap_alloc(&heap, size, 1, false, &bytes) == 0);
    return bytes;
}

static mmk_heap_stats statistics(void)
{
    mmk_heap_stats stats;
    CHECK(mmk_heap_statistics(&heap, &stats) == 0);
    return stats;
}

TEST(blocks_are_aligned_and_apart_and_as_large_as_asked)
{
    open_mmap_heap(0);
    char *blocks[200];
    for (size_t i = 0; i < 200; i++) {
        blocks[i] = alloc(i * 37 + 1);
        CHECK((uintptr_t)blocks[i] % 16 == 0);
        memset(blocks[i], (int)i, i * 37 + 1);
        check();
    }
    for (size_t i = 0; i < 200; i++) {
        CHECK(all_bytes_are(blocks[i], i * 37 + 1, (int)i));
        CHECK(mmk_heap_size(&heap, blocks[i]) == (ssize_t)(i * 37 + 1));
    }
    CHECK(statistics().live_blocks == 200 && statistics().live_bytes == 199 * 100 * 37 + 200);
    for (size_t i = 0; i < 200; i += 2)
        CHECK(mmk_heap_free(&heap, blocks[i]) == 0);
    check();
    for (size_t i = 1; i < 200; i += 2)
        CHECK(mmk_heap_free(&heap, blocks[i]) == 0);
    check();
    CHECK(statistics().live_blocks == 0 && statistics().live_bytes == 0);
    CHECK(statistics().peak_bytes == 199 * 100 * 37 + 200);
    mmk_heap_dispose(&heap);
}

TEST(any_power_of_two_is_an_alignment)
{
    open_mmap_heap(0);
    for (size_t align = 1; align <= 1 << 20; align *= 2)
        for (size_t size = 1; size <= 100000; size = size * 7 + 1) {
            void *bytes;
            CHECK(mmk_heap_alloc(&heap, size, align, true, &bytes) == 0);
            CHECK((uintptr_t)bytes % align == 0 && all_bytes_are(bytes, size, 0));
            memset(bytes, 1, size);
            check();
            if (size & 2)
                CHECK(mmk_heap_free(&heap, bytes) == 0);
        }
    void *bytes;
    CHECK(mmk_heap_alloc(&heap, MMK_HEAP_LARGE, 1 << 21, false, &bytes) == 0 && (uintptr_t)bytes % (1 << 21) == 0);
    check();
    mmk_heap_dispose(&heap);
}

TEST(what_makes_no_sense_is_refused)
{
    void *bytes = NULL;
    open_mmap_heap(0);
    CHECK(mmk_heap_alloc(&heap, 0, 16, false, &bytes) == -EINVAL);
    CHECK(mmk_heap_alloc(&heap, 1, 0, false, &bytes) == -EINVAL);
    CHECK(mmk_heap_alloc(&heap, 1, 3, false, &bytes) == -EINVAL);
    CHECK(mmk_heap_alloc(&heap, SIZE_MAX, 16, false, &bytes) == -ENOMEM);
    CHECK(mmk_heap_alloc(&heap, (size_t)1 << 63, 16, false, &bytes) == -ENOMEM);
    CHECK(mmk_heap_alloc(&heap, 1, (size_t)1 << 63, false, &bytes) == -ENOMEM);
    CHECK(mmk_heap_alloc(&heap, MMK_HEAP_LARGE, (size_t)1 << 63, false, &bytes) == -ENOMEM);
    check();
    bytes = alloc(100);
    CHECK(mmk_heap_resize(&heap, &bytes, 0, 16) == -EINVAL && mmk_heap_resize(&heap, &bytes, 1, 5) == -EINVAL);
    CHECK(mmk_heap_resize(&heap, &bytes, SIZE_MAX, 16) == -ENOMEM);
    CHECK(mmk_heap_size(&heap, bytes) == 100);
    mmk_heap_dispose(&heap);
    CHECK(mmk_heap_alloc(&heap, 1, 16, false, &bytes) == -MMK_ECLOSED);
    CHECK(mmk_heap_free(&heap, bytes) == -MMK_ECLOSED && mmk_heap_trim(&heap) == -MMK_ECLOSED);
}

TEST(a_second_free_and_a_foreign_pointer_change_nothing)
{
    int here;
    open_mmap_heap(0);
    char *first = alloc(100), *second = alloc(100), *third = alloc(100);
    CHECK(mmk_heap_free(&heap, second) == 0 && mmk_heap_free(&heap, second) == -MMK_ENOTBLOCK);
    CHECK(mmk_heap_free(&heap, first) == 0 && mmk_heap_free(&heap, second) == -MMK_ENOTBLOCK);
    CHECK(mmk_heap_free(&heap, third) == 0);
    /* Merged by now: the heads are gone. */
    CHECK(mmk_heap_free(&heap, first) == -MMK_ENOTBLOCK && mmk_heap_free(&heap, second) == -MMK_ENOTBLOCK);
    CHECK(mmk_heap_free(&heap, third) == -MMK_ENOTBLOCK);
    CHECK(mmk_heap_free(&heap, &here) == -MMK_ENOTBLOCK && mmk_heap_free(&heap, NULL) == -MMK_ENOTBLOCK);
    CHECK(mmk_heap_free(&heap, first + 1) == -MMK_ENOTBLOCK);
    CHECK(mmk_heap_size(&heap, first) == -MMK_ENOTBLOCK);
    check();
    char *large = alloc(MMK_HEAP_LARGE);
    CHECK(mmk_heap_free(&heap, large) == 0 && mmk_heap_free(&heap, large) == -MMK_ENOTBLOCK);
    check();
    mmk_heap_dispose(&heap);
}

TEST(freed_neighbours_merge)
{
    open_mmap_heap(0);
    char *blocks[64];
    size_t largest = 0;
    for (int order = 0; order < 3; order++) {
        for (int i = 0; i < 64; i++)
            blocks[i] = alloc(1000);
        for (int i = 0; i < 64; i++)
            CHECK(mmk_heap_free(&heap, blocks[order == 0 ? i : order == 1 ? 63 - i : (i * 37) % 64]) == 0);
        char *last = alloc(16);
        CHECK(mmk_heap_free(&heap, last) == 0);
        check();
        void *all;
        CHECK(mmk_heap_alloc(&heap, 1000, 32, false, &all) == 0 && mmk_heap_free(&heap, all) == 0);
        CHECK(largest == 0 || statistics().largest_free == largest);
        largest = statistics().largest_free;
    }
    mmk_heap_dispose(&heap);
}

TEST(a_block_grows_in_place_where_there_is_room)
{
    open_mmap_heap(0);
    void *bytes = alloc(1000);
    void *same = bytes;
    memset(bytes, 7, 1000);
    CHECK(mmk_heap_resize(&heap, &bytes, 5000, 16) == 0 && bytes == same && all_bytes_are(bytes, 1000, 7));
    CHECK(mmk_heap_resize(&heap, &bytes, 10, 16) == 0 && bytes == same && all_bytes_are(bytes, 10, 7));
    check();
    char *wall = alloc(16);
    CHECK(mmk_heap_resize(&heap, &bytes, 100000, 16) == 0 && bytes != same && all_bytes_are(bytes, 10, 7));
    check();
    CHECK(mmk_heap_free(&heap, wall) == 0);
    CHECK(statistics().live_bytes == 100000 && statistics().live_blocks == 1);
    memset(bytes, 8, 100000);
    CHECK(mmk_heap_resize(&heap, &bytes, MMK_HEAP_LARGE + 5, 16) == 0 && all_bytes_are(bytes, 100000, 8));
    check();
    memset(bytes, 9, MMK_HEAP_LARGE + 5);
    CHECK(mmk_heap_resize(&heap, &bytes, 3 * MMK_HEAP_LARGE, 16) == 0);
    CHECK(all_bytes_are(bytes, MMK_HEAP_LARGE + 5, 9));
    CHECK(mmk_heap_resize(&heap, &bytes, 100, 16) == 0 && all_bytes_are(bytes, 100, 9));
    check();
    CHECK(statistics().live_bytes == 100);
    mmk_heap_dispose(&heap);
}

/* The record of a large block stands where nothing stood before, and leaves what it wrote. */
TEST(zeroed_blocks_are_zeros_where_the_record_of_a_large_one_was)
{
    open_mmap_heap(0);
    CHECK(mmk_heap_free(&heap, alloc(MMK_HEAP_LARGE)) == 0);
    check(); /* merges what waits */
    void *zeros;
    CHECK(mmk_heap_alloc(&heap, 1000, 1, true, &zeros) == 0 && all_bytes_are(zeros, 1000, 0));
    mmk_heap_dispose(&heap);
}

/* An eighth of all that the heap has would one day be more than a slice may span. */
TEST(large_blocks_do_not_make_slices_larger_than_they_may_be)
{
    open_mmap_heap(0);
    void *bytes;
    for (int i = 0; i < 4; i++)
        if (mmk_heap_alloc(&heap, (size_t)4 << 30, 16, false, &bytes)) {
            mmk_heap_dispose(&heap);
            SKIP("the kernel gives no such blocks here");
        }
    size_t before = statistics().mapped_bytes;
    while (statistics().mapped_bytes == before)
        alloc(MMK_HEAP_LARGE - 1);
    CHECK(statistics().mapped_bytes - before <= (size_t)1 << 30);
    check();
    mmk_heap_dispose(&heap);
}

TEST(zeroed_blocks_are_zeros_whatever_was_there)
{
    open_mmap_heap(0);
    unsigned random = 1;
    char *live[50] = {0};
    for (int i = 0; i < 20000; i++) {
        random = random * 1103515245 + 12345;
        unsigned slot = random >> 8 & 63;
        size_t size = (random >> 16) % 3000 + 1;
        if (slot >= 50)
            continue;
        if (live[slot]) {
            CHECK(mmk_heap_free(&heap, live[slot]) == 0);
            live[slot] = NULL;
            continue;
        }
        void *bytes;
        CHECK(mmk_heap_alloc(&heap, size, 16u << (random >> 28), true, &bytes) == 0 && all_bytes_are(bytes, size, 0));
        memset(bytes, 0xff, size);
        live[slot] = bytes;
        if (i % 1000 == 0) {
            CHECK(mmk_heap_trim(&heap) == 0);
            check();
        }
    }
    mmk_heap_dispose(&heap);
}

TEST(at_the_limit_nothing_changes_and_the_heap_goes_on)
{
    open_mmap_heap(1 << 20);
    char *blocks[2000];
    size_t count = 0;
    void *bytes;
    while (mmk_heap_alloc(&heap, 1000, 16, false, &bytes) == 0)
        blocks[count++] = bytes;
    CHECK(count > 900 && statistics().mapped_bytes <= 1 << 20);
    check();
    CHECK(mmk_heap_alloc(&heap, MMK_HEAP_LARGE, 16, false, &bytes) == -ENOMEM);
    bytes = blocks[0];
    CHECK(mmk_heap_resize(&heap, &bytes, 1 << 19, 16) == -ENOMEM && bytes == blocks[0]);
    CHECK(mmk_heap_size(&heap, blocks[0]) == 1000);
    check();
    for (size_t i = 0; i < count; i++)
        CHECK(mmk_heap_free(&heap, blocks[i]) == 0);
    CHECK(mmk_heap_alloc(&heap, 900000, 16, false, &bytes) == 0);
    check();
    mmk_heap_dispose(&heap);
}

/* The same calls, whatever they get. returns how many were refused. */
static size_t make_the_same_calls(void)
{
    enum { SLOTS = 16 };
    void *slots[SLOTS] = {NULL};
    uint64_t random = 88172645463325252;
    size_t refused = 0;
    for (int i = 0; i < 150; i++) {
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
        void **slot = &slots[random >> 60];
        size_t size = 1 + (random >> 20) % (i % 3 ? 3000 : 60000), align = (size_t)16 << (random >> 40) % 9;
        int error = *slot && i % 2 ? mmk_heap_resize(&heap, slot, size, align) : 0;
        if (*slot && i % 2 == 0) {
            CHECK(mmk_heap_free(&heap, *slot) == 0);
            *slot = NULL;
        } else if (!*slot) {
            error = mmk_heap_alloc(&heap, size, align, i % 5 == 0, slot);
            *slot = error ? NULL : *slot;
        }
        CHECK(error == 0 || error == -ENOMEM);
        refused += error != 0;
        if (error)
            check();
        if (*slot)
            memset(*slot, i, (size_t)mmk_heap_size(&heap, *slot));
    }
    for (int i = 0; i < SLOTS; i++)
        CHECK(!slots[i] || mmk_heap_free(&heap, slots[i]) == 0);
    check();
    CHECK(statistics().live_blocks == 0);
    return refused;
}

static void refuse_at_each(mmk_heap_source source)
{
    size_t limit = pages(1), refused;
    do {
        CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = source, .limit = limit}) == 0);
        refused = make_the_same_calls();
        mmk_heap_dispose(&heap);
        limit += pages(1);
    } while (refused);
    CHECK(limit > pages(20));
}

static void refuse_at_each_on_the_break(void)
{
    refuse_at_each(MMK_HEAP_SBRK);
}

TEST(wherever_memory_runs_out_the_heap_is_whole_and_goes_on)
{
    refuse_at_each(MMK_HEAP_MMAP);
    in_child(refuse_at_each_on_the_break);
}

static void exhaust_address_space(void)
{
    limit(RLIMIT_AS, status_bytes("VmSize:") + (40 << 20));
    open_mmap_heap(0);
    size_t count = 0;
    void *bytes, *last = NULL;
    while (mmk_heap_alloc(&heap, 100000, 16, false, &bytes) == 0) {
        last = bytes;
        count++;
    }
    CHECK(count > 200);
    check();
    CHECK(mmk_heap_alloc(&heap, 100 << 20, 16, false, &bytes) == -ENOMEM);
    check();
    CHECK(mmk_heap_free(&heap, last) == 0 && mmk_heap_alloc(&heap, 100000, 16, false, &bytes) == 0 && bytes == last);
    check();
}

TEST(without_address_space_nothing_changes_and_the_heap_goes_on)
{
    if (UNDER_SANITIZER)
        SKIP("a sanitizer has more address space than any limit");
    in_child(exhaust_address_space);
}

TEST(trimming_gives_memory_back_and_keeps_what_is_live)
{
    open_mmap_heap(0);
    char *blocks[64];
    for (int i = 0; i < 64; i++)
        memset(blocks[i] = alloc(100000), i, 100000);
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    size_t before, after, mapped = statistics().mapped_bytes;
    CHECK(pagemap >= 0 && mmk_heap_resident(&heap, pagemap, &before) == 0 && before >= 6400000);
    for (int i = 0; i < 64; i++)
        if (i % 4)
            CHECK(mmk_heap_free(&heap, blocks[i]) == 0);
    CHECK(mmk_heap_trim(&heap) == 0);
    check();
    CHECK(mmk_heap_resident(&heap, pagemap, &after) == 0 && after < before / 3);
    CHECK(statistics().mapped_bytes < mapped);
    for (int i = 0; i < 64; i += 4)
        CHECK(all_bytes_are(blocks[i], 100000, i));
    close(pagemap);
    void *bytes;
    CHECK(mmk_heap_alloc(&heap, 3000000, 16, true, &bytes) == 0 && all_bytes_are(bytes, 3000000, 0));
    check();
    mmk_heap_dispose(&heap);
}

TEST(the_walk_shows_every_block_once)
{
    open_mmap_heap(0);
    char *first = alloc(100), *second = alloc(200), *third = alloc(300), *large = alloc(MMK_HEAP_LARGE);
    CHECK(mmk_heap_free(&heap, second) == 0);
    mmk_heap_block blocks[16];
    ssize_t count = mmk_heap_blocks(&heap, blocks, 16);
    CHECK(count == 6 && mmk_heap_blocks(&heap, NULL, 0) == 6);
    CHECK(blocks[0].address == (uintptr_t)first && blocks[0].size == 100 && blocks[0].kind == MMK_BLOCK_LIVE);
    CHECK(blocks[1].address == (uintptr_t)second && blocks[1].kind == MMK_BLOCK_FREE);
    CHECK(blocks[2].address == (uintptr_t)third && blocks[2].address == blocks[1].address + blocks[1].span);
    CHECK(blocks[3].kind == MMK_BLOCK_INTERNAL && blocks[4].kind == MMK_BLOCK_FREE);
    CHECK(blocks[5].address == (uintptr_t)large && blocks[5].kind == MMK_BLOCK_LARGE);
    mmk_heap_class rows[MMK_HEAP_SIZE_CLASSES];
    CHECK(mmk_heap_classes(&heap, rows) == 0 && rows[6].live_blocks == 1 && rows[7].free_blocks == 1);
    CHECK(rows[8].live_blocks == 1 && rows[8].live_bytes == 300 && rows[23].live_blocks == 1);
    mmk_heap_dispose(&heap);
}

int main(void)
{
    RUN(blocks_are_aligned_and_apart_and_as_large_as_asked);
    RUN(any_power_of_two_is_an_alignment);
    RUN(what_makes_no_sense_is_refused);
    RUN(a_second_free_and_a_foreign_pointer_change_nothing);
    RUN(freed_neighbours_merge);
    RUN(a_block_grows_in_place_where_there_is_room);
    RUN(zeroed_blocks_are_zeros_where_the_record_of_a_large_one_was);
    RUN(large_blocks_do_not_make_slices_larger_than_they_may_be);
    RUN(zeroed_blocks_are_zeros_whatever_was_there);
    RUN(at_the_limit_nothing_changes_and_the_heap_goes_on);
    RUN(wherever_memory_runs_out_the_heap_is_whole_and_goes_on);
    RUN(without_address_space_nothing_changes_and_the_heap_goes_on);
    RUN(trimming_gives_memory_back_and_keeps_what_is_live);
    RUN(the_walk_shows_every_block_once);
    return 0;
}
