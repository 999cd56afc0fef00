#include <mmkit/heap.h>

#include "support.h"

/* What guarded blocks catch, when, and what is said of it. */

static mmk_heap heap;

static void open_guarded(void)
{
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP, .guard = true}) == 0);
}

static char *alloc(size_t size, size_t align)
{
    void *bytes;
    CHECK(mmk_heap_alloc(&heap, size, align, false, &bytes) == 0);
    return bytes;
}

static void check(void)
{
    mmk_heap_damage damage;
    CHECK(mmk_heap_check(&heap, &damage) == 0);
}

static void ends_by(int number, void body(void), const char *words)
{
    char text[1000];
    int status = death_of(body, text, sizeof text);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != number || !strstr(text, words))
        fprintf(stderr, "status %#x, said: %s\n", status, text);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == number && strstr(text, words));
    CHECK(strncmp(text, "mmkit: ", 7) == 0 && strchr(text, '\n') == text + strlen(text) - 1);
}

/* ---- what dies ---- */

static volatile char *bytes, sink;

static void read_past_the_end(void)
{
    open_guarded();
    bytes = alloc(32, 1);
    sink = bytes[32];
}

static void write_further_past_the_end(void)
{
    open_guarded();
    bytes = alloc(20, 1);
    bytes[40] = 1;
}

static void write_in_front_of_a_whole_page(void)
{
    open_guarded();
    bytes = alloc(mmk_page_size(), 1);
    bytes[-3] = 1;
}

static void write_behind_by_one_and_free(void)
{
    open_guarded();
    bytes = alloc(20, 1);
    bytes[20] = 0;
    (void)!mmk_heap_free(&heap, (char *)bytes);
}

static void write_in_front_by_one_and_free(void)
{
    open_guarded();
    bytes = alloc(20, 1);
    bytes[-1] = 0;
    (void)!mmk_heap_free(&heap, (char *)bytes);
}

static void read_after_free(void)
{
    open_guarded();
    bytes = alloc(3 * mmk_page_size(), 1);
    CHECK(mmk_heap_free(&heap, (char *)bytes) == 0);
    sink = bytes[5000];
}

static void write_where_it_was_before_it_grew(void)
{
    open_guarded();
    bytes = alloc(10, 1);
    void *grown = (char *)bytes;
    CHECK(mmk_heap_resize(&heap, &grown, 12, 1) == 0);
    bytes[1] = 1;
}

static void read_past_the_end_in_a_child(void)
{
    open_guarded();
    bytes = alloc(64, 1);
    in_child(check);
    sink = bytes[64];
}

static void every_mistake(void dies(int number, void body(void), const char *words))
{
    dies(SIGSEGV, read_past_the_end, "out of bounds: read at 0x");
    dies(SIGSEGV, read_past_the_end, ", 0 bytes past the end of the block of 32 bytes at 0x");
    dies(SIGSEGV, write_further_past_the_end, "write at 0x");
    dies(SIGSEGV, write_further_past_the_end, ", 20 bytes past the end of the block of 20 bytes");
    dies(SIGSEGV, write_in_front_of_a_whole_page, ", 3 bytes in front of the block of 4096 bytes");
    dies(SIGABRT, write_behind_by_one_and_free, "found at free: byte 0x");
    dies(SIGABRT, write_behind_by_one_and_free, " was written, 0 bytes past the end of the block of 20 bytes");
    dies(SIGABRT, write_in_front_by_one_and_free, ", 1 byte in front of the block of 20 bytes");
    dies(SIGSEGV, read_after_free, "use after free: read at 0x");
    dies(SIGSEGV, read_after_free, ", 5000 bytes into the freed block of 12288 bytes");
    dies(SIGSEGV, write_where_it_was_before_it_grew, "use after free: write");
    dies(SIGSEGV, read_past_the_end_in_a_child, "0 bytes past the end");
}

TEST(a_wrong_access_dies_and_the_block_is_named)
{
    if (UNDER_SANITIZER)
        SKIP("a sanitizer reports faults itself");
    every_mistake(ends_by);
}

static void (*refused_body)(void);

static void refuse_and_run(void)
{
    refuse_kernel_guards();
    refused_body();
}

static void without_kernel_guards(int number, void body(void), const char *words)
{
    refused_body = body;
    ends_by(number, refuse_and_run, words);
}

TEST(kernels_without_guards_catch_the_same)
{
    if (UNDER_SANITIZER)
        SKIP("a sanitizer reports faults itself");
    every_mistake(without_kernel_guards);
}

/* ---- what does not ---- */

TEST(blocks_reach_to_the_end_of_their_page_but_for_alignment)
{
    open_guarded();
    for (size_t align = 1; align <= 4 * mmk_page_size(); align *= 2)
        for (size_t size = 1; size < 3 * mmk_page_size(); size += 701) {
            char *block = alloc(size, align);
            CHECK((uintptr_t)block % align == 0 && (uintptr_t)block % 16 == 0);
            uintptr_t end = (uintptr_t)block + size, least = align < 16 ? 16 : align;
            uintptr_t last = mmk_round_up(end, mmk_page_size());
            CHECK(last - end < least);
            CHECK(!can_read((char *)last) && can_write(block) && can_write(block + size - 1));
            memset(block, 7, size);
            CHECK(mmk_heap_size(&heap, block) == (ssize_t)size);
            if (size % 2)
                CHECK(mmk_heap_free(&heap, block) == 0 && !can_read(block) && !can_read(block + size - 1));
        }
    check();
    mmk_heap_dispose(&heap);
}

static void see_contents(void)
{
    void *block = alloc(100, 1), *zeros;
    memset(block, 9, 100);
    CHECK(mmk_heap_resize(&heap, &block, 50000, 1) == 0 && all_bytes_are(block, 100, 9));
    CHECK(mmk_heap_resize(&heap, &block, 60, 1) == 0 && all_bytes_are(block, 60, 9));
    CHECK(mmk_heap_free(&heap, block) == 0);
    for (int i = 0; i < 2; i++) {
        CHECK(mmk_heap_alloc(&heap, 70000, 1, true, &zeros) == 0 && all_bytes_are(zeros, 70000, 0));
        memset(zeros, 1, 70000);
        CHECK(mmk_heap_free(&heap, zeros) == 0);
    }
    check();
}

TEST(contents_survive_resizing_and_zeros_are_zeros)
{
    open_guarded();
    see_contents();
    mmk_heap_dispose(&heap);
}

static void lock_everything(void)
{
    mmk_heap_request little = {.source = MMK_HEAP_MMAP, .guard = true, .limit = 8 << 20};
    CHECK(mmk_heap_open(&heap, &little) == 0);
    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
        SKIP("RLIMIT_MEMLOCK is too low");
    /* More than the limit has room for: what was freed is used again. */
    for (int i = 0; i < 200; i++)
        see_contents();
}

TEST(locked_memory_is_guarded_by_protection)
{
    if (UNDER_SANITIZER)
        SKIP("the sanitizers' runtimes replace mlock by nothing");
    in_child(lock_everything);
}

TEST(mistakes_that_the_call_sees_are_answered)
{
    open_guarded();
    char *block = alloc(100, 1);
    void *moved = block + 16;
    CHECK(mmk_heap_free(&heap, block + 16) == -MMK_ENOTBLOCK);
    CHECK(mmk_heap_resize(&heap, &moved, 5, 1) == -MMK_ENOTBLOCK);
    CHECK(mmk_heap_free(&heap, &moved) == -MMK_ENOTBLOCK && mmk_heap_free(&heap, NULL) == -MMK_ENOTBLOCK);
    CHECK(mmk_heap_free(&heap, block) == 0);
    CHECK(mmk_heap_free(&heap, block) == -MMK_ENOTBLOCK && mmk_heap_size(&heap, block) == -MMK_ENOTBLOCK);
    mmk_region region = {0};
    map_pages(&region, 4);
    mmk_heap other;
    CHECK(mmk_heap_open(&other, &(mmk_heap_request){.source = MMK_HEAP_SBRK, .guard = true}) == -EINVAL);
    mmk_heap_request in_region = {.source = MMK_HEAP_REGION, .region = &region, .guard = true};
    CHECK(mmk_heap_open(&other, &in_region) == -EINVAL);
    mmk_region_dispose(&region);
    mmk_heap_dispose(&heap);
    CHECK(mmk_heap_close(&heap) == -MMK_ECLOSED);
}

TEST(a_canary_that_was_written_is_found_by_check)
{
    open_guarded();
    char *block = alloc(20, 1);
    mmk_heap_damage damage;
    block[25] = 0;
    CHECK(mmk_heap_check(&heap, &damage) == -MMK_ECORRUPT && damage.address == (uintptr_t)block + 25);
    mmk_heap_dispose(&heap);
}

TEST(what_it_holds_is_counted)
{
    mmk_heap_stats stats;
    mmk_heap_block blocks[4];
    open_guarded();
    char *first = alloc(20, 1), *second = alloc(5000, 1);
    CHECK(mmk_heap_statistics(&heap, &stats) == 0 && stats.live_blocks == 2 && stats.live_bytes == 5020);
    CHECK(mmk_heap_blocks(&heap, blocks, 4) == 2);
    CHECK(blocks[0].address == (uintptr_t)first && blocks[0].size == 20 && blocks[0].kind == MMK_BLOCK_LIVE);
    CHECK(mmk_heap_free(&heap, first) == 0 && mmk_heap_blocks(&heap, blocks, 4) == 1);
    CHECK(blocks[0].address == (uintptr_t)second && blocks[0].size == 5000);
    mmk_heap_dispose(&heap);
}

/* Freed blocks are given again at last: or a loop would use up the address space. */
TEST(quarantine_is_bounded_and_first_in_first_out)
{
    open_guarded();
    mmk_heap_stats late;
    char *first = alloc(10, 1), *again = NULL;
    CHECK(mmk_heap_free(&heap, first) == 0);
    size_t others = 0;
    while (again != first && others < 100000) {
        again = alloc(10, 1);
        CHECK(mmk_heap_free(&heap, again) == 0);
        others++;
    }
    /* Two pages each. */
    CHECK(others > 30000 && others < 35000);
    for (int i = 0; i < 100000; i++)
        CHECK(mmk_heap_free(&heap, alloc(10, 1)) == 0);
    CHECK(mmk_heap_statistics(&heap, &late) == 0 && late.mapped_bytes < (size_t)400 << 20);
    mmk_heap_dispose(&heap);
}

static void use_all_areas(void)
{
    refuse_kernel_guards();
    open_guarded();
    static char *blocks[100000];
    size_t count = 0;
    void *block;
    while (count < 100000 && mmk_heap_alloc(&heap, 10, 1, false, &block) == 0)
        blocks[count++] = block;
    CHECK(count > 1000 && count < 100000);
    for (size_t i = 0; i < count; i++)
        CHECK(mmk_heap_free(&heap, blocks[i]) == 0);
    alloc(10, 1);
    check();
}

TEST(without_kernel_guards_areas_run_out_and_the_heap_goes_on)
{
    if (UNDER_SANITIZER)
        SKIP("a sanitizer needs areas of its own");
    char text[16] = {0};
    int limits = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
    bool is_known = limits >= 0 && read(limits, text, sizeof text - 1) > 0;
    close(limits);
    if (!is_known || atol(text) > 100000)
        SKIP("vm.max_map_count is too large to be reached");
    in_child(use_all_areas);
}

TEST(a_limit_holds_and_a_full_heap_goes_on)
{
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP, .guard = true, .limit = 8 << 20}) == 0);
    void *blocks[2000];
    int count = 0;
    while (count < 2000 && mmk_heap_alloc(&heap, 10, 1, false, &blocks[count]) == 0)
        count++;
    CHECK(count > 500 && count < 1100);
    CHECK(mmk_heap_free(&heap, blocks[0]) == 0 && mmk_heap_alloc(&heap, 10, 1, false, &blocks[0]) == 0);
    check();
    mmk_heap_dispose(&heap);
}

TEST(closing_gives_everything_back)
{
    const char *before = strdup(read_maps());
    for (int i = 0; i < 3; i++) {
        open_guarded();
        CHECK(mmk_heap_free(&heap, alloc(10, 1)) == 0);
        alloc((size_t)1 << 20, 1);
        mmk_heap_dispose(&heap);
    }
    CHECK(UNDER_SANITIZER || maps_are(before));
    free((void *)before);
}

int main(void)
{
    RUN(a_wrong_access_dies_and_the_block_is_named);
    RUN(kernels_without_guards_catch_the_same);
    RUN(blocks_reach_to_the_end_of_their_page_but_for_alignment);
    RUN(contents_survive_resizing_and_zeros_are_zeros);
    RUN(locked_memory_is_guarded_by_protection);
    RUN(mistakes_that_the_call_sees_are_answered);
    RUN(a_canary_that_was_written_is_found_by_check);
    RUN(what_it_holds_is_counted);
    RUN(quarantine_is_bounded_and_first_in_first_out);
    RUN(without_kernel_guards_areas_run_out_and_the_heap_goes_on);
    RUN(a_limit_holds_and_a_full_heap_goes_on);
    RUN(closing_gives_everything_back);
    return 0;
}
