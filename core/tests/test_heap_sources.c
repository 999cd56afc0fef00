#include <mmkit/heap.h>

#include "support.h"
#include "tmpfs.h"

/* What the break, and the caller's own region, add to what every heap promises. */

static mmk_heap heap;

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
    CHECK(mmk_heap_alloc(&heap, size, 16, false, &bytes) == 0);
    memset(bytes, 0x5a, size);
    return bytes;
}

static size_t mapped(void)
{
    mmk_heap_stats stats;
    CHECK(mmk_heap_statistics(&heap, &stats) == 0);
    return stats.mapped_bytes;
}

/* ---- the break ---- */

static void open_break_heap(void)
{
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_SBRK}) == 0);
}

static void move_the_break(void)
{
    char *before = sbrk(0);
    open_break_heap();
    CHECK(sbrk(0) == before);
    char *first = alloc(100);
    char *after = sbrk(0);
    CHECK(first >= before && first < after && (uintptr_t)after % mmk_page_size() == 0);
    CHECK(mapped() == (size_t)(after - before));
    char *second = alloc(1000000);
    CHECK(second > before && second + 1000000 <= (char *)sbrk(0));
    check();
    CHECK(mmk_heap_free(&heap, second) == 0 && mmk_heap_trim(&heap) == 0);
    CHECK(UNDER_TSAN || (char *)sbrk(0) <= after);
    check();
    CHECK(mmk_heap_free(&heap, first) == 0);
    mmk_heap_dispose(&heap);
    CHECK(UNDER_TSAN || sbrk(0) == before);
}

TEST(the_break_moves_up_with_the_heap_and_down_when_it_ends)
{
    in_child(move_the_break);
}

static void share_the_break(void)
{
    open_break_heap();
    char *blocks[40];
    char *foreign[40];
    for (int i = 0; i < 40; i++) {
        memset(blocks[i] = alloc(200000), i, 200000);
        foreign[i] = sbrk(1000 + i);
        CHECK(foreign[i] != (char *)-1);
        memset(foreign[i], 0x77, (size_t)(1000 + i));
        check();
    }
    for (int i = 0; i < 40; i++)
        CHECK(all_bytes_are(blocks[i], 200000, i) && all_bytes_are(foreign[i], (size_t)(1000 + i), 0x77));
    char *end = sbrk(0);
    for (int i = 0; i < 40; i++)
        CHECK(mmk_heap_free(&heap, blocks[i]) == 0);
    check();
    CHECK(mmk_heap_trim(&heap) == 0 && sbrk(0) == end);
    check();
    for (int i = 0; i < 40; i++)
        CHECK(all_bytes_are(foreign[i], (size_t)(1000 + i), 0x77));
}

static void free_what_is_foreign(void)
{
    open_break_heap();
    (void)alloc(200000);
    char *foreign = sbrk(4096);
    memset(foreign, 0, 4096);
    (void)alloc(200000);
    char *inside = (char *)mmk_round_up((uintptr_t)foreign + 64, 16);
    CHECK(mmk_heap_free(&heap, inside) == -MMK_ENOTBLOCK);
    check();
}

static void trim_beside_others(void)
{
    open_break_heap();
    char *blocks[8];
    char *foreign[8];
    for (int i = 0; i < 8; i++) {
        blocks[i] = alloc(400000);
        foreign[i] = memset(sbrk(3000), 0x77, 3000);
    }
    char *end = sbrk(0);
    for (int i = 0; i < 8; i++)
        CHECK(mmk_heap_free(&heap, blocks[i]) == 0);
    CHECK(mmk_heap_trim(&heap) == 0 && sbrk(0) == end);
    check();
    for (int i = 0; i < 8; i++)
        CHECK(all_bytes_are(foreign[i], 3000, 0x77));
    mmk_heap_dispose(&heap);
    CHECK(sbrk(0) == end);
    for (int i = 0; i < 8; i++)
        CHECK(all_bytes_are(foreign[i], 3000, 0x77));
}

TEST(what_others_take_of_the_break_is_left_alone)
{
    in_child(share_the_break);
    in_child(free_what_is_foreign);
    in_child(trim_beside_others);
}

static void pull_the_break_away(void)
{
    CHECK(mmk_break_move((intptr_t)pages(4)) > 0);
    open_break_heap();
    char *block = alloc(1000);
    char *end = sbrk(0);
    CHECK(mmk_break_move(-(intptr_t)pages(1)) == -MMK_EFOREIGN && sbrk(0) == end);
    CHECK(all_bytes_are(block, 1000, 0x5a));
    mmk_heap_dispose(&heap);
    CHECK(UNDER_TSAN || mmk_break_move(-(intptr_t)pages(4)) > 0);
}

TEST(nobody_pulls_the_break_from_under_a_heap)
{
    in_child(pull_the_break_away);
}

static void exhaust_the_break(void)
{
    limit(RLIMIT_DATA, status_bytes("VmData:") + (4 << 20));
    open_break_heap();
    void *bytes, *last = NULL;
    size_t count = 0;
    while (mmk_heap_alloc(&heap, 50000, 16, false, &bytes) == 0) {
        last = bytes;
        count++;
    }
    CHECK(count > 10);
    check();
    CHECK(mmk_heap_free(&heap, last) == 0 && mmk_heap_alloc(&heap, 50000, 16, false, &bytes) == 0 && bytes == last);
    check();
}

TEST(where_the_break_cannot_move_nothing_changes)
{
    if (UNDER_SANITIZER)
        SKIP("a sanitizer has more data than any limit");
    in_child(exhaust_the_break);
}

static void zero_after_others(void)
{
    open_break_heap();
    (void)alloc(100);
    for (int i = 0; i < 10; i++) {
        char *foreign = sbrk(5000);
        memset(foreign, 0xff, 5000);
        CHECK(sbrk(-5000) != (void *)-1);
        void *bytes;
        CHECK(mmk_heap_alloc(&heap, 300000, 16, true, &bytes) == 0 && all_bytes_are(bytes, 300000, 0));
        memset(bytes, 0xff, 300000);
    }
    check();
}

TEST(what_others_wrote_and_gave_back_is_not_taken_for_zeros)
{
    in_child(zero_after_others);
}

/* ---- a region ---- */

static mmk_region region;

static void open_region_heap(size_t most)
{
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_REGION, .region = &region, .limit = most}) == 0);
}

TEST(a_heap_lies_inside_its_region_and_keeps_it_open)
{
    map_pages(&region, 16);
    memset(region.base, 0xff, pages(16));
    open_region_heap(0);
    void *bytes;
    CHECK(mmk_heap_alloc(&heap, 1000, 16, true, &bytes) == 0 && all_bytes_are(bytes, 1000, 0));
    CHECK((char *)bytes > region.base && (char *)bytes + 1000 < region.base + pages(16));
    CHECK(mmk_region_close(&region) == -MMK_EPINNED);
    size_t count = 0;
    while (mmk_heap_alloc(&heap, 1000, 16, false, &bytes) == 0)
        count++;
    CHECK(count > pages(16) / 1100);
    check();
    CHECK(mmk_heap_alloc(&heap, MMK_HEAP_LARGE, 16, false, &bytes) == -ENOMEM);
    CHECK(mmk_heap_close(&heap) == 0 && mmk_heap_close(&heap) == -MMK_ECLOSED);
    mmk_heap_dispose(&heap);
    CHECK(mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
}

TEST(only_what_the_heap_may_use_of_its_region_counts_as_its_own)
{
    map_pages(&region, 16);
    mmk_heap_request request = {.source = MMK_HEAP_REGION, .region = &region, .offset = pages(4)};
    CHECK(mmk_heap_open(&heap, &request) == 0);
    mmk_heap_stats stats;
    CHECK(mmk_heap_statistics(&heap, &stats) == 0 && stats.mapped_bytes == pages(12));
    mmk_heap_dispose(&heap);
    mmk_region_dispose(&region);
}

TEST(a_region_that_does_not_do_is_refused)
{
    mmk_heap_request request = {.source = MMK_HEAP_REGION, .region = &region};
    map(&region, anonymous(pages(1), PROT_READ));
    CHECK(mmk_heap_open(&heap, &request) == -EACCES);
    mmk_region_dispose(&region);
    map_pages(&region, 1);
    request.offset = 8;
    CHECK(mmk_heap_open(&heap, &request) == -EINVAL);
    request.offset = pages(1) - 16;
    CHECK(mmk_heap_open(&heap, &request) == -EINVAL);
    request.offset = pages(1) + 16;
    CHECK(mmk_heap_open(&heap, &request) == -EINVAL);
    CHECK(mmk_region_close(&region) == 0);
    request.offset = 0;
    CHECK(mmk_heap_open(&heap, &request) == -MMK_ECLOSED);
    mmk_region_dispose(&region);
}

TEST(trimming_a_shared_region_gives_its_storage_back)
{
    int fd = memory_file(pages(64));
    map(&region, file(fd, pages(64), MAP_SHARED));
    open_region_heap(0);
    char *first = alloc(pages(30)), *second = alloc(pages(30));
    struct stat status;
    CHECK(fstat(fd, &status) == 0 && status.st_blocks * 512 >= (off_t)pages(60));
    CHECK(mmk_heap_free(&heap, first) == 0 && mmk_heap_trim(&heap) == 0);
    CHECK(fstat(fd, &status) == 0 && status.st_blocks * 512 < (off_t)pages(40));
    CHECK(all_bytes_are(second, pages(30), 0x5a));
    check();
    mmk_heap_dispose(&heap);
    CHECK(mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
    close(fd);
}

/* A file whose file system is full answers a write with SIGBUS: the heap has to be there first. */
static void fill_a_small_tmpfs(void)
{
    if (!mount_tmpfs("size=1m"))
        SKIP("may not mount a tmpfs");
    int fd = numbered_file(0);
    CHECK(ftruncate(fd, 4 << 20) == 0);
    map(&region, file(fd, 4 << 20, MAP_SHARED));
    open_region_heap(0);
    size_t count = 0;
    void *bytes, *last = NULL;
    while (mmk_heap_alloc(&heap, 10000, 16, true, &bytes) == 0) {
        memset(bytes, 1, 10000);
        last = bytes;
        count++;
    }
    CHECK(count > 50 && count < 105);
    check();
    CHECK(mmk_heap_resize(&heap, &last, 500000, 16) == -ENOMEM);
    CHECK(mmk_heap_free(&heap, last) == 0 && mmk_heap_alloc(&heap, 10000, 16, false, &bytes) == 0);
    memset(bytes, 2, 10000);
    check();
    mmk_heap_dispose(&heap);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(on_a_full_file_system_alloc_answers_and_nobody_is_killed)
{
    in_child(fill_a_small_tmpfs);
}

int main(void)
{
    RUN(the_break_moves_up_with_the_heap_and_down_when_it_ends);
    RUN(what_others_take_of_the_break_is_left_alone);
    RUN(nobody_pulls_the_break_from_under_a_heap);
    RUN(where_the_break_cannot_move_nothing_changes);
    RUN(what_others_wrote_and_gave_back_is_not_taken_for_zeros);
    RUN(a_heap_lies_inside_its_region_and_keeps_it_open);
    RUN(only_what_the_heap_may_use_of_its_region_counts_as_its_own);
    RUN(a_region_that_does_not_do_is_refused);
    RUN(trimming_a_shared_region_gives_its_storage_back);
    RUN(on_a_full_file_system_alloc_answers_and_nobody_is_killed);
    return 0;
}
