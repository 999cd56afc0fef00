#include <mmkit/heap.h>

#include "support.h"

/* Many threads on one heap, and forks in the middle; and long random runs. MMKIT_HEAP_OPERATIONS makes those longer. */

enum { THREADS = 4, SLOTS = 300 };

static mmk_heap heap;
static size_t operations = 20000;

static void check(void)
{
    mmk_heap_damage damage;
    int error = mmk_heap_check(&heap, &damage);
    if (error)
        fprintf(stderr, "at %#lx: %s\n", (unsigned long)damage.address, damage.what ? damage.what : "?");
    CHECK(error == 0);
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

typedef struct slot {
    char *bytes;
    size_t size;
    unsigned char mark;
} slot;

/* The first and last bytes, and some between: enough to see an overlap. */
static void mark(const slot *block)
{
    memset(block->bytes, block->mark, block->size < 64 ? block->size : 64);
    block->bytes[block->size / 2] = block->bytes[block->size - 1] = (char)block->mark;
}

static void check_mark(const slot *block)
{
    CHECK(all_bytes_are(block->bytes, block->size < 64 ? block->size : 64, block->mark));
    CHECK(block->bytes[block->size - 1] == (char)block->mark);
    CHECK(block->size < 130 || block->bytes[block->size / 2] == (char)block->mark);
}

static size_t random_size(uint64_t *random)
{
    return 1 + (next_random(random) >> 11) % ((size_t)16 << (next_random(random) >> 7) % 13);
}

static void change(slot *block, uint64_t *random)
{
    void *bytes = block->bytes;
    if (!bytes) {
        block->size = random_size(random);
        size_t align = (size_t)16 << (next_random(random) % 32 ? 0 : next_random(random) % 9);
        bool zero = next_random(random) % 8 == 0;
        CHECK(mmk_heap_alloc(&heap, block->size, align, zero, &bytes) == 0 && (uintptr_t)bytes % align == 0);
        CHECK(!zero || all_bytes_are(bytes, block->size, 0));
    } else {
        check_mark(block);
        if (next_random(random) % 4) {
            CHECK(mmk_heap_free(&heap, bytes) == 0);
            block->bytes = NULL;
            return;
        }
        size_t before = block->size, size = random_size(random);
        CHECK(mmk_heap_resize(&heap, &bytes, size, 16) == 0);
        CHECK(all_bytes_are(bytes, before < size ? before < 64 ? before : 64 : size < 64 ? size : 64, block->mark));
        block->size = size;
    }
    block->bytes = bytes;
    block->mark = (unsigned char)next_random(random);
    mark(block);
}

static void change_at_random(uint64_t seed, size_t count, size_t check_every)
{
    static __thread slot slots[SLOTS];
    uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
    for (size_t i = 0; i < count; i++) {
        change(&slots[next_random(&random) % SLOTS], &random);
        if (check_every && i % check_every == 0)
            check();
    }
    for (size_t i = 0; i < SLOTS; i++)
        if (slots[i].bytes) {
            check_mark(&slots[i]);
            CHECK(mmk_heap_free(&heap, slots[i].bytes) == 0);
            slots[i].bytes = NULL;
        }
}

TEST(a_long_random_run_leaves_no_block_damaged_and_nothing_behind)
{
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP}) == 0);
    change_at_random(1, operations, operations / 100 + 1);
    mmk_heap_stats stats;
    CHECK(mmk_heap_statistics(&heap, &stats) == 0 && stats.live_blocks == 0 && stats.live_bytes == 0);
    void *bytes;
    CHECK(mmk_heap_alloc(&heap, 16, 4096, false, &bytes) == 0 && mmk_heap_free(&heap, bytes) == 0);
    check();
    mmk_heap_dispose(&heap);
}

static void *work(void *seed)
{
    change_at_random((uintptr_t)seed, operations / THREADS, 5000);
    return NULL;
}

static void run_threads(void)
{
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)(i + 1)) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

TEST(threads_share_a_heap)
{
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP}) == 0);
    run_threads();
    check();
    mmk_heap_dispose(&heap);
}

static atomic_bool over;

static void *change_until_over(void *seed)
{
    while (!atomic_load(&over))
        change_at_random((uintptr_t)seed, 500, 0);
    return NULL;
}

static void use_the_heap(void)
{
    check();
    change_at_random(99, 300, 50);
}

TEST(a_fork_in_the_middle_leaves_the_child_a_whole_heap)
{
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_MMAP}) == 0);
    pthread_t threads[2];
    for (uintptr_t i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, change_until_over, (void *)(i + 7)) == 0);
    for (int i = 0; i < 30; i++)
        in_child(use_the_heap);
    atomic_store(&over, true);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    check();
    mmk_heap_dispose(&heap);
}

int main(void)
{
    const char *text = getenv("MMKIT_HEAP_OPERATIONS");
    if (text)
        operations = strtoul(text, NULL, 10);
    RUN(a_long_random_run_leaves_no_block_damaged_and_nothing_behind);
    RUN(threads_share_a_heap);
    RUN(a_fork_in_the_middle_leaves_the_child_a_whole_heap);
    return 0;
}
