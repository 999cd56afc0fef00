#include <mmkit/heap.h>

#include "stepping.h"

/* One heap in several processes, and what is left of it when one of them is killed inside a call. */

enum { MINE = 40 };

static mmk_region region, other_region;
static mmk_heap heap, other;
static int fd;

static void check(mmk_heap *of)
{
    mmk_heap_damage damage;
    int error = mmk_heap_check(of, &damage);
    if (error)
        fprintf(stderr, "%d at %#lx: %s\n", error, (unsigned long)damage.address, damage.what ? damage.what : "?");
    CHECK(error == 0);
}

static char *alloc(mmk_heap *from, size_t size)
{
    void *bytes;
    CHECK(mmk_heap_alloc(from, size, 16, false, &bytes) == 0);
    return bytes;
}

static void open_shared(size_t count)
{
    fd = memory_file(pages(count));
    map(&region, file(fd, pages(count), MAP_SHARED));
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_REGION, .region = &region}) == 0);
}

static void close_shared(void)
{
    mmk_heap_dispose(&heap);
    CHECK(mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(another_mapping_of_the_region_has_the_same_heap)
{
    open_shared(64);
    map(&other_region, file(fd, pages(64), MAP_SHARED));
    CHECK(mmk_heap_attach(&other, &other_region, 0) == 0);
    char *block = alloc(&heap, 1000);
    memset(block, 7, 1000);
    char *there = other_region.base + (block - region.base);
    CHECK(mmk_heap_size(&other, there) == 1000 && all_bytes_are(there, 1000, 7));
    CHECK(mmk_heap_free(&other, there) == 0 && mmk_heap_free(&heap, block) == -MMK_ENOTBLOCK);
    CHECK(alloc(&heap, 1000) == block);
    check(&heap);
    check(&other);
    CHECK(mmk_heap_close(&other) == 0 && mmk_region_close(&other_region) == 0);
    mmk_region_dispose(&other_region);
    mmk_heap_dispose(&other);
    close_shared();
}

TEST(what_is_no_heap_is_not_joined_and_a_heap_is_not_made_anew)
{
    map_pages(&region, 8);
    CHECK(mmk_heap_attach(&heap, &region, 0) == -MMK_EUNSUPPORTED);
    mmk_region_dispose(&region);
    fd = memory_file(pages(8));
    map(&region, file(fd, pages(8), MAP_SHARED));
    CHECK(mmk_heap_attach(&heap, &region, 0) == -MMK_ECORRUPT);
    mmk_heap_request request = {.source = MMK_HEAP_REGION, .region = &region};
    CHECK(mmk_heap_open(&heap, &request) == 0 && mmk_heap_open(&other, &request) == -MMK_ETAKEN);
    mmk_heap_dispose(&heap);
    /* Its blocks outlive it, in the file. */
    CHECK(mmk_heap_open(&other, &request) == -EEXIST);
    CHECK(mmk_heap_attach(&heap, &region, 0) == 0);
    ((uint32_t *)region.base)[2]++;
    CHECK(mmk_heap_attach(&other, &region, 0) == -MMK_EFORMAT);
    ((uint32_t *)region.base)[2]--;
    close_shared();
}

TEST(a_smashed_head_of_a_shared_heap_is_an_error_for_everybody)
{
    open_shared(64);
    char *first = alloc(&heap, 100), *second = alloc(&heap, 100);
    if (!UNDER_ASAN)
        memset(first, 0x41, 120);
    else
        second[-16] ^= 1;
    CHECK(mmk_heap_free(&heap, second) == -MMK_ECORRUPT);
    void *bytes;
    CHECK(mmk_heap_alloc(&heap, 16, 16, false, &bytes) == -MMK_ECORRUPT);
    mmk_heap_damage damage;
    CHECK(mmk_heap_check(&heap, &damage) == -MMK_ECORRUPT && damage.address == (uintptr_t)second - 16);
    CHECK(damage.before == (uintptr_t)first - 16);
    CHECK(mmk_heap_attach(&other, &region, 0) == -MMK_ECORRUPT);
    close_shared();
}

/* ---- deaths ---- */

static char *mine[MINE];

static size_t size_of_mine(int i)
{
    return (size_t)(i * 331) % 4000 + 20;
}

static void fill(void)
{
    char *gaps[MINE];
    for (int i = 0; i < MINE; i++) {
        memset(mine[i] = alloc(&heap, size_of_mine(i)), i, size_of_mine(i));
        gaps[i] = alloc(&heap, (size_t)(i % 7 + 1) * 300);
    }
    for (int i = 0; i < MINE; i++)
        CHECK(i % 3 == 0 || mmk_heap_free(&heap, gaps[i]) == 0);
}

static bool is_mine(uintptr_t address)
{
    for (int i = 0; i < MINE; i++)
        if ((uintptr_t)mine[i] == address)
            return true;
    return false;
}

/* Whole, mine untouched; then what the dead had is freed, and all the rest can be had. */
static void inherit(void)
{
    static mmk_heap_block blocks[20000];
    mmk_heap_stats stats;
    CHECK(mmk_heap_statistics(&heap, &stats) == 0);
    check(&heap);
    for (int i = 0; i < MINE; i++)
        CHECK(mmk_heap_size(&heap, mine[i]) == (ssize_t)size_of_mine(i) && all_bytes_are(mine[i], size_of_mine(i), i));
    ssize_t count = mmk_heap_blocks(&heap, blocks, 20000);
    CHECK(count > 0 && count <= 20000);
    for (ssize_t i = 0; i < count; i++)
        if (blocks[i].kind == MMK_BLOCK_LIVE && !is_mine(blocks[i].address))
            CHECK(mmk_heap_free(&heap, (void *)blocks[i].address) == 0);
    check(&heap);
    char *some = alloc(&heap, 5000);
    memset(some, 0xee, 5000);
    CHECK(mmk_heap_free(&heap, some) == 0);
    for (int i = 0; i < MINE; i++)
        CHECK(all_bytes_are(mine[i], size_of_mine(i), i));
}

static uint64_t random_state = 88172645463325252;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void churn_for_ever(void)
{
    void *blocks[50] = {0};
    for (;;) {
        void **slot = &blocks[next_random() % 50];
        size_t size = next_random() % 3000 + 1;
        size_t align = (size_t)16 << next_random() % 5;
        if (*slot && next_random() % 3 == 0) {
            (void)!mmk_heap_resize(&heap, slot, size, 16);
        } else if (*slot) {
            (void)!mmk_heap_free(&heap, *slot);
            *slot = NULL;
        } else if (mmk_heap_alloc(&heap, size, align, false, slot) == 0) {
            memset(*slot, 0xcc, size);
        }
        if (next_random() % 100 == 0)
            (void)!mmk_heap_trim(&heap);
    }
}

TEST(whoever_is_killed_at_random_leaves_a_whole_heap)
{
    int kills = getenv("MMKIT_HEAP_KILLS") ? atoi(getenv("MMKIT_HEAP_KILLS")) : UNDER_SANITIZER ? 60 : 300;
    open_shared(256);
    fill();
    for (int i = 0; i < kills; i++) {
        fflush(NULL);
        pid_t children[2];
        for (int j = 0; j < 2; j++) {
            next_random();
            children[j] = fork();
            CHECK(children[j] >= 0);
            if (children[j] == 0)
                churn_for_ever();
        }
        usleep((useconds_t)(next_random() % 3000));
        for (int j = 0; j < 2; j++)
            CHECK(kill(children[j], SIGKILL) == 0);
        for (int j = 0; j < 2; j++)
            CHECK(waitpid(children[j], NULL, 0) == children[j]);
        inherit();
    }
    close_shared();
}

/* What is done once, and interrupted after each of its instructions. */
static void *subject;

static void alloc_small(void)
{
    (void)!mmk_heap_alloc(&heap, 100, 16, false, &subject);
}

static void alloc_aligned(void)
{
    (void)!mmk_heap_alloc(&heap, 1500, 512, true, &subject);
}

static void free_subject(void)
{
    (void)!mmk_heap_free(&heap, subject);
}

static void grow_subject(void)
{
    (void)!mmk_heap_resize(&heap, &subject, 2600, 16);
}

static void settle(void)
{
    mmk_heap_stats stats;
    (void)!mmk_heap_statistics(&heap, &stats);
}

/* Let a child do it, and kill it after so many instructions. returns false if it was done before. */
static bool dies_after(void act(void), unsigned steps)
{
    pid_t child;
    int status;
    if (!stops_after(act, steps, &child))
        return false;
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
    return true;
}

static void kill_everywhere(void act(void), size_t subject_size)
{
    /* After each instruction takes minutes: MMKIT_HEAP_STRIDE=1. */
    const char *text = getenv("MMKIT_HEAP_STRIDE");
    unsigned stride = text ? (unsigned)atoi(text) : UNDER_SANITIZER ? 5003 : 101;
    for (unsigned steps = 0;; steps += stride) {
        subject = subject_size ? alloc(&heap, subject_size) : NULL;
        if (!dies_after(act, steps))
            break;
        inherit();
    }
    inherit();
}

TEST(whoever_is_killed_anywhere_inside_a_call_leaves_a_whole_heap)
{
    if (UNDER_TSAN)
        SKIP("TSan's own locks are not robust");
    open_shared(64);
    fill();
    kill_everywhere(alloc_small, 0);
    kill_everywhere(alloc_aligned, 0);
    kill_everywhere(free_subject, 100);
    kill_everywhere(free_subject, 2000);
    kill_everywhere(grow_subject, 1100);
    kill_everywhere(settle, 0);
    close_shared();
}

int main(void)
{
    RUN(another_mapping_of_the_region_has_the_same_heap);
    RUN(what_is_no_heap_is_not_joined_and_a_heap_is_not_made_anew);
    RUN(a_smashed_head_of_a_shared_heap_is_an_error_for_everybody);
    RUN(whoever_is_killed_at_random_leaves_a_whole_heap);
    RUN(whoever_is_killed_anywhere_inside_a_call_leaves_a_whole_heap);
    return 0;
}
