/* Random calls of the malloc family, in threads that hand blocks to each other, with forks in between: a program for
 * LD_PRELOAD. The contents of every block are checked before it is freed or resized.
 *
 *     MMKIT_MALLOC_OPERATIONS   calls of each thread; MMKIT_SEED makes another run
 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { THREADS = 4, SLOTS = 400, EXCHANGED = 64, FORKS = 20 };

typedef struct held {
    unsigned char *bytes;
    size_t size;
    unsigned char seed;
} held;

/* Blocks on their way from one thread to another. */
static _Atomic(held *) exchange[EXCHANGED];
static atomic_int running;
static unsigned long operations;

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Mostly small, some to many pages, few large. */
static size_t random_size(uint64_t *state)
{
    uint64_t what = next_random(state) % 1000, value = next_random(state);
    if (what < 800)
        return value % 600;
    if (what < 990)
        return value % 20000;
    return what < 999 ? value % 300000 : value % (12u << 20);
}

/* The ends, and a byte in each page: all of a large block would take too long. */
static size_t step_of(size_t size)
{
    return size < 4096 ? 1 : 509;
}

static void fill(const held *block)
{
    for (size_t i = 0; i < block->size; i += step_of(block->size))
        block->bytes[i] = (unsigned char)(block->seed + i);
    if (block->size)
        block->bytes[block->size - 1] = block->seed;
}

static void check(const held *block, size_t size)
{
    for (size_t i = 0; i < size; i += step_of(block->size))
        CHECK(i == block->size - 1 || block->bytes[i] == (unsigned char)(block->seed + i));
    CHECK(!block->size || size < block->size || block->bytes[block->size - 1] == block->seed);
}

static void give(held *block)
{
    check(block, block->size);
    free(block->bytes);
    *block = (held){0};
}

static void take(held *block, uint64_t *state)
{
    size_t size = random_size(state), align = (size_t)16 << next_random(state) % 10;
    void *bytes = NULL;
    bool zero = false;
    switch (next_random(state) % 8) {
    case 0:
        bytes = calloc(size / 8 + 1, 8);
        zero = true;
        break;
    case 1:
        CHECK(posix_memalign(&bytes, align, size) == 0 && (uintptr_t)bytes % align == 0);
        break;
    case 2:
        bytes = memalign(align, size);
        CHECK((uintptr_t)bytes % align == 0);
        break;
    default:
        bytes = malloc(size);
    }
    CHECK(bytes && (uintptr_t)bytes % 16 == 0 && malloc_usable_size(bytes) >= size);
    *block = (held){bytes, size, (unsigned char)next_random(state)};
    for (size_t i = 0; zero && i < size; i += step_of(size))
        CHECK(block->bytes[i] == 0);
    fill(block);
}

static void resize(held *block, uint64_t *state)
{
    size_t size = random_size(state) + 1, kept = size < block->size ? size : block->size;
    check(block, block->size);
    unsigned char *bytes = realloc(block->bytes, size);
    CHECK(bytes);
    block->bytes = bytes;
    check(block, kept);
    block->size = size;
    fill(block);
}

/* Swap the block for another thread's. */
static void hand_over(held *block, uint64_t *state)
{
    held *mine = malloc(sizeof *mine);
    CHECK(mine);
    *mine = *block;
    held *theirs = atomic_exchange(&exchange[next_random(state) % EXCHANGED], mine);
    *block = theirs ? *theirs : (held){0};
    free(theirs);
}

static void *storm(void *seed)
{
    uint64_t state = (uintptr_t)seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    held *blocks = calloc(SLOTS, sizeof *blocks);
    CHECK(blocks);
    for (unsigned long i = 0; i < operations; i++) {
        held *block = &blocks[next_random(&state) % SLOTS];
        if (!block->bytes)
            take(block, &state);
        else if (next_random(&state) % 3 == 0)
            resize(block, &state);
        else if (next_random(&state) % 8 == 0)
            hand_over(block, &state);
        else
            give(block);
    }
    for (int i = 0; i < SLOTS; i++)
        if (blocks[i].bytes)
            give(&blocks[i]);
    free(blocks);
    atomic_fetch_sub(&running, 1);
    return NULL;
}

/* While others are inside malloc: the child must be able to allocate, and its copies are whole. */
static void fork_once(void)
{
    void *before = malloc(100);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(30);
        free(before);
        for (size_t size = 1; size < 1000000; size *= 3)
            free(realloc(malloc(size), size * 2));
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    free(before);
}

static unsigned long number_from(const char *name, unsigned long otherwise)
{
    const char *text = getenv(name);
    return text ? strtoul(text, NULL, 10) : otherwise;
}

int main(void)
{
    operations = number_from("MMKIT_MALLOC_OPERATIONS", 20000);
    uintptr_t seed = number_from("MMKIT_SEED", 1) * THREADS;
    pthread_t threads[THREADS];
    atomic_store(&running, THREADS);
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, storm, (void *)(seed + i)) == 0);
    for (int i = 0; i < FORKS && atomic_load(&running); i++)
        fork_once();
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < EXCHANGED; i++) {
        held *left = atomic_load(&exchange[i]);
        if (left && left->bytes)
            give(left);
        free(left);
    }
    return 0;
}
