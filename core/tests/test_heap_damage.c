#include <mmkit/heap.h>

#include "support.h"

#if UNDER_ASAN
#include <sanitizer/asan_interface.h>
#endif

/* What becomes of a heap whose blocks were written past their ends, or after they were freed. */

static mmk_heap heap;

static char *alloc(size_t size)
{
    void *bytes;
    CHECK(mmk_heap_alloc(&heap, size, 16, false, &bytes) == 0);
    return bytes;
}

/* Four blocks, the second and third of which are neighbours; nothing is parked. */
static char *first, *second, *third, *fourth;

static void open_four(void)
{
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP}) == 0);
    first = alloc(100);
    second = alloc(100);
    third = alloc(100);
    fourth = alloc(100);
}

/* Run body in a child: it must end by abort(), and say one line with these words and addresses. */
static void dies(void body(void), const char *words)
{
    char text[1000];
    int status = death_of(body, text, sizeof text);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || !strstr(text, words))
        fprintf(stderr, "status %#x, said: %s\n", status, text);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    CHECK(strstr(text, words) && strncmp(text, "mmkit: heap corruption at 0x", 28) == 0);
    CHECK(strchr(text, '\n') == text + strlen(text) - 1);
    CHECK(strstr(text, "before it has its head at 0x") || strstr(words, "free"));
}

static void overrun_and_free_it(void)
{
    open_four();
    memset(second, 0x41, 100 + 28);
    CHECK(mmk_heap_free(&heap, second) == 0);
    (void)!mmk_heap_trim(&heap);
}

static void overrun_and_free_next(void)
{
    open_four();
    memset(second, 0x41, 100 + 28);
    (void)!mmk_heap_free(&heap, third);
}

/* A head of zeros is no wiped one: it is a block's. */
static void overrun_by_one_and_free_next(void)
{
    open_four();
    second[112] ^= 1;
    (void)!mmk_heap_free(&heap, third);
}

static void write_to_freed(void)
{
    open_four();
    CHECK(mmk_heap_free(&heap, first) == 0 && mmk_heap_free(&heap, third) == 0);
    char *more = alloc(5000);
    CHECK(mmk_heap_free(&heap, more) == 0);
    memset(first, 0x41, 16);
    memset(third, 0x41, 16);
    first = alloc(100);
    first = alloc(100);
}

/* Its size is as it was, and no link is. */
static void smash_the_state_of_a_freed_one(void)
{
    open_four();
    CHECK(mmk_heap_free(&heap, third) == 0);
    third[-8] ^= 1;
    third = alloc(100);
}

static void write_to_listed(void)
{
    mmk_heap_stats stats;
    open_four();
    char *gaps[2], *walls[2];
    for (int i = 0; i < 2; i++) {
        gaps[i] = alloc(3000);
        walls[i] = alloc(16);
    }
    for (int i = 0; i < 2; i++)
        CHECK(walls[i] && mmk_heap_free(&heap, gaps[i]) == 0);
    CHECK(mmk_heap_statistics(&heap, &stats) == 0 && stats.live_blocks == 6);
    memset(gaps[1], 0x41, 8);
    first = alloc(3000);
}

static void grow_over_a_smashed_head(void)
{
    open_four();
    CHECK(mmk_heap_free(&heap, third) == 0);
    memset(second, 0x41, 100 + 28);
    void *bytes = second;
    (void)!mmk_heap_resize(&heap, &bytes, 150, 16);
}

static void trim_over_a_smashed_head(void)
{
    open_four();
    memset(second, 0x41, 100 + 28);
    (void)!mmk_heap_trim(&heap);
}

static void free_the_inside_of_a_block(void)
{
    open_four();
    memset(second, 0x41, 100);
    (void)!mmk_heap_free(&heap, second + 32);
}

TEST(a_smashed_head_ends_the_process_with_one_line_that_names_the_neighbours)
{
    if (UNDER_ASAN)
        SKIP("ASan sees the write itself");
    dies(overrun_and_free_it, "written past its end");
    dies(overrun_and_free_next, "smashed");
    dies(overrun_by_one_and_free_next, "smashed");
    dies(grow_over_a_smashed_head, "smashed");
    dies(trim_over_a_smashed_head, "smashed");
    dies(free_the_inside_of_a_block, "smashed, or no block was ever here");
}

static void write_in_front_of_the_first(void)
{
    open_four();
    first[-16] ^= 1;
    (void)!mmk_heap_free(&heap, first);
}

TEST(no_neighbour_is_named_where_there_is_none)
{
    if (UNDER_ASAN)
        SKIP("ASan sees the write itself");
    char text[1000];
    int status = death_of(write_in_front_of_the_first, text, sizeof text);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    CHECK(strstr(text, "; the next good head is at 0x") && !strstr(text, "block before it"));
}

TEST(a_block_written_to_after_it_was_freed_is_found_out)
{
    if (UNDER_ASAN)
        SKIP("ASan sees the write itself");
    dies(write_to_freed, "after it was freed");
    dies(smash_the_state_of_a_freed_one, "a freed block is smashed");
    dies(write_to_listed, "links of a free block are smashed");
}

#if UNDER_ASAN
static void asan_knows(char *bytes, size_t size, size_t room, bool is_live)
{
    CHECK((__asan_region_is_poisoned(bytes, size) == NULL) == is_live);
    /* The first 16 bytes of a free block are its links. */
    for (size_t i = is_live ? size : 16; i < room; i++)
        CHECK(__asan_address_is_poisoned(bytes + i));
}

TEST(asan_knows_what_is_free_and_what_was_not_asked_for)
{
    static const size_t sizes[] = {100, 1000, 5000, 200001};
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP}) == 0);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t room = mmk_round_up(sizes[i], 16);
        /* New, waiting, taken again, waiting, merged. */
        for (int round = 0; round < 2; round++) {
            char *bytes = alloc(sizes[i]);
            asan_knows(bytes, sizes[i], room, true);
            CHECK(mmk_heap_free(&heap, bytes) == 0);
            asan_knows(bytes, sizes[i], room, false);
            first = bytes;
        }
        mmk_heap_stats stats;
        CHECK(mmk_heap_statistics(&heap, &stats) == 0 && stats.live_blocks == 0);
        asan_knows(first, sizes[i], room, false);
    }
    mmk_heap_dispose(&heap);
}
#endif

/* Each of these breaks one thing that check() walks. */
static void check_finds(char *smash_from, size_t length, const char *words)
{
    char saved[200];
    mmk_heap_damage damage;
    CHECK(mmk_heap_check(&heap, &damage) == 0 && damage.what == NULL);
    memcpy(saved, smash_from, length);
    for (size_t i = 0; i < length; i++)
        smash_from[i] ^= 0x41; /* a checksum may have any byte, 0x41 too */
    CHECK(mmk_heap_check(&heap, &damage) == -MMK_ECORRUPT);
    if (!strstr(damage.what, words))
        fprintf(stderr, "said: %s\n", damage.what);
    CHECK(strstr(damage.what, words));
    memcpy(smash_from, saved, length);
    CHECK(mmk_heap_check(&heap, &damage) == 0);
}

TEST(a_check_says_what_is_broken_and_between_which_heads)
{
    if (UNDER_ASAN)
        SKIP("ASan sees the write itself");
    open_four();
    for (int i = 0; i < 16; i++)
        check_finds(third - 16 + i, 1, "head is smashed");
    mmk_heap_damage damage;
    char saved = third[-16];
    third[-16] ^= 4;
    CHECK(mmk_heap_check(&heap, &damage) == -MMK_ECORRUPT);
    CHECK(damage.address == (uintptr_t)third - 16 && damage.before == (uintptr_t)second - 16);
    CHECK(damage.after == (uintptr_t)fourth - 16);
    third[-16] = saved;
    check_finds(first - 16, 16, "head is smashed");
    CHECK(mmk_heap_free(&heap, second) == 0 && mmk_heap_free(&heap, fourth) == 0);
    char *other = alloc(3000);
    CHECK(mmk_heap_free(&heap, other) == 0);
    mmk_heap_stats stats;
    CHECK(mmk_heap_statistics(&heap, &stats) == 0 && stats.live_blocks == 2);
    check_finds(second, 8, "leads astray");
    check_finds(second + 8, 8, "does not know the one before");
    mmk_heap_dispose(&heap);
}

/* A good head, with its sum, at another place is none there. */
static void check_finds_the_head_of(char *bytes)
{
    mmk_heap_damage damage;
    CHECK(mmk_heap_check(&heap, &damage) == -MMK_ECORRUPT && damage.address == (uintptr_t)(bytes - 16));
}

TEST(no_bit_of_a_head_changes_unseen_nor_what_it_says_the_block_is)
{
    open_four();
    for (int bit = 0; bit < 128; bit++) {
        char *byte = second - 16 + bit / 8;
        *byte = (char)(*byte ^ 1 << bit % 8);
        check_finds_the_head_of(second);
        *byte = (char)(*byte ^ 1 << bit % 8);
    }
    static const unsigned char states[] = {0xf2, 0x94, 0x68, 0x3c};
    char live = second[-6];
    CHECK((unsigned char)live == 0xa1);
    for (size_t i = 0; i < sizeof states; i++) {
        second[-6] = (char)states[i];
        check_finds_the_head_of(second);
    }
    second[-6] = live;
    mmk_heap_dispose(&heap);
}

TEST(a_head_copied_elsewhere_is_no_head)
{
    if (UNDER_ASAN)
        SKIP("ASan sees the write itself");
    open_four();
    mmk_heap_damage damage;
    memcpy(third - 16, second - 16, 16);
    CHECK(mmk_heap_check(&heap, &damage) == -MMK_ECORRUPT && damage.address == (uintptr_t)third - 16);
    mmk_heap_dispose(&heap);
}

int main(void)
{
    RUN(a_smashed_head_ends_the_process_with_one_line_that_names_the_neighbours);
    RUN(no_neighbour_is_named_where_there_is_none);
    RUN(a_block_written_to_after_it_was_freed_is_found_out);
    RUN(a_check_says_what_is_broken_and_between_which_heads);
#if UNDER_ASAN
    RUN(asan_knows_what_is_free_and_what_was_not_asked_for);
#endif
    RUN(no_bit_of_a_head_changes_unseen_nor_what_it_says_the_block_is);
    RUN(a_head_copied_elsewhere_is_no_head);
    return 0;
}
