#include <mmkit/heap.h>
#include <mmkit/lock.h>

#include "stepping.h"

/* The file under a shared heap is made shorter: by anybody, at any time. No call on the heap ends the process. */

enum { PAGES = 64 };

static mmk_region region;
static mmk_heap heap;
static int fd;
static char *blocks[20];

static void open_heap(void)
{
    mmk_request request = file(fd, pages(PAGES), MAP_SHARED);
    request.may_shrink = true;
    CHECK(ftruncate(fd, 0) == 0 && ftruncate(fd, (off_t)pages(PAGES)) == 0);
    map(&region, request);
    CHECK(mmk_heap_open(&heap, &(mmk_heap_request){.source = MMK_HEAP_REGION, .region = &region}) == 0);
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        void *bytes;
        CHECK(mmk_heap_alloc(&heap, 10000, 16, false, &bytes) == 0);
        blocks[i] = bytes;
    }
    for (size_t i = 1; i < sizeof blocks / sizeof *blocks; i += 2)
        CHECK(mmk_heap_free(&heap, blocks[i]) == 0);
}

static void close_heap(void)
{
    mmk_heap_dispose(&heap);
    CHECK(mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
}

/* -ENOMEM: the storage for a block was asked for where the file has ended. */
static bool is_answer(ssize_t answer)
{
    return answer >= 0 || answer == -MMK_ECORRUPT || answer == -ENOMEM;
}

static bool is_missing(const char *at)
{
    char byte;
    return mmk_guarded_copy(&byte, at, 1, &fault) == -EFAULT && fault.reason == MMK_FAULT_NOT_BACKED;
}

static void every_call_says_corrupt(void)
{
    void *bytes = blocks[18];
    mmk_heap_stats stats;
    mmk_heap_block seen[4];
    mmk_heap_class classes[MMK_HEAP_SIZE_CLASSES];
    mmk_heap_damage damage;
    CHECK(mmk_heap_free(&heap, blocks[18]) == -MMK_ECORRUPT);
    CHECK(mmk_heap_alloc(&heap, 100, 16, true, &bytes) == -MMK_ECORRUPT);
    CHECK(mmk_heap_resize(&heap, &bytes, 20000, 16) == -MMK_ECORRUPT);
    CHECK(mmk_heap_size(&heap, blocks[0]) == -MMK_ECORRUPT);
    CHECK(mmk_heap_statistics(&heap, &stats) == -MMK_ECORRUPT);
    CHECK(mmk_heap_blocks(&heap, seen, 4) == -MMK_ECORRUPT);
    CHECK(mmk_heap_classes(&heap, classes) == -MMK_ECORRUPT);
    CHECK(mmk_heap_trim(&heap) == -MMK_ECORRUPT);
    CHECK(mmk_heap_check(&heap, &damage) == -MMK_ECORRUPT);
    CHECK(strstr(damage.what, "shorter") && damage.address >= (uintptr_t)region.base);
}

TEST(a_file_cut_under_a_heap_is_an_error_of_every_call_and_no_signal)
{
    for (size_t left = 0; left < PAGES - 10; left += 3) {
        open_heap();
        CHECK(ftruncate(fd, (off_t)pages(left)) == 0);
        every_call_says_corrupt();
        /* What is not there is not zeros. */
        CHECK(is_missing(region.base + pages(left)));
        close_heap();
    }
}

TEST(a_cut_is_not_undone_by_making_the_file_longer)
{
    open_heap();
    CHECK(ftruncate(fd, 0) == 0);
    CHECK(mmk_heap_free(&heap, blocks[0]) == -MMK_ECORRUPT);
    CHECK(ftruncate(fd, (off_t)pages(PAGES)) == 0);
    every_call_says_corrupt();
    mmk_heap again;
    CHECK(mmk_heap_attach(&again, &region, 0) == -MMK_ECORRUPT);
    close_heap();
}

/* ---- in the middle of a call ---- */

/* libc keeps a list of the robust locks that a thread holds. One is held meanwhile, and one taken afterwards: what the
 * heap's lock left on the list would be touched then. */
static pthread_mutex_t *held, *taken;
static void *subject;
static ssize_t answer;

static void make_locks(void)
{
    pthread_mutexattr_t robust;
    held = mmap(NULL, pages(1), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(held != MAP_FAILED);
    taken = held + 1;
    CHECK(pthread_mutexattr_init(&robust) == 0 && pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED) == 0);
    CHECK(pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST) == 0);
    CHECK(pthread_mutex_init(held, &robust) == 0 && pthread_mutex_init(taken, &robust) == 0);
}

static void take_another_lock(void)
{
    CHECK(pthread_mutex_lock(taken) == 0 && pthread_mutex_unlock(taken) == 0);
}

static void alloc_zeros(void)
{
    answer = mmk_heap_alloc(&heap, 4100, 4096, true, &subject);
}

static void alloc_small(void)
{
    answer = mmk_heap_alloc(&heap, 100, 16, false, &subject);
}

static void free_one(void)
{
    answer = mmk_heap_free(&heap, blocks[6]);
}

static void grow_one(void)
{
    subject = blocks[4];
    answer = mmk_heap_resize(&heap, &subject, 15000, 16);
}

static void look_around(void)
{
    mmk_heap_damage damage;
    mmk_heap_stats stats;
    answer = mmk_heap_statistics(&heap, &stats);
    if (answer == 0)
        answer = mmk_heap_check(&heap, &damage);
}

static void (*act)(void);

static void act_and_look(void)
{
    CHECK(pthread_mutex_lock(held) == 0);
    act();
    raise(SIGSTOP); /* it is over: no more steps */
    CHECK(is_answer(answer));
    take_another_lock();
    look_around();
    CHECK(is_answer(answer));
    close_heap();
    take_another_lock();
    CHECK(pthread_mutex_unlock(held) == 0);
    take_another_lock();
}

/* Let it go on to its end, and through all signals that it gets. */
static int end_of(pid_t child)
{
    int status, signal = 0;
    do {
        CHECK(ptrace(PTRACE_CONT, child, 0, signal) == 0 && waitpid(child, &status, 0) == child);
        signal = WIFSTOPPED(status) ? WSTOPSIG(status) : 0;
    } while (signal);
    return status;
}

static void cut_everywhere(void doing(void), size_t left)
{
    const char *text = getenv("MMKIT_HEAP_STRIDE");
    unsigned stride = text ? (unsigned)atoi(text) : UNDER_SANITIZER ? 5003 : 997;
    pid_t child;
    act = doing;
    bool is_over = false;
    for (unsigned steps = 0; !is_over; steps += stride) {
        open_heap();
        is_over = !stops_after(act_and_look, steps, &child);
        CHECK(ftruncate(fd, (off_t)pages(left)) == 0);
        int status = end_of(child);
        if (status)
            fprintf(stderr, "cut to %zu pages after %u instructions: %#x\n", left, steps, status);
        CHECK(status == 0);
        close_heap();
    }
}

TEST(a_file_cut_at_any_instruction_of_a_call_ends_no_process)
{
    if (UNDER_TSAN)
        SKIP("TSan's own locks are not robust");
    make_locks();
    static const size_t lefts[] = {0, 1, 2, 20};
    for (size_t i = 0; i < sizeof lefts / sizeof *lefts; i++) {
        cut_everywhere(alloc_small, lefts[i]);
        cut_everywhere(alloc_zeros, lefts[i]);
        cut_everywhere(free_one, lefts[i]);
        cut_everywhere(grow_one, lefts[i]);
    }
    cut_everywhere(look_around, 2);
}

/* ---- by threads ---- */

static void *use_until_cut(void *unused)
{
    (void)unused;
    int error = 0;
    while (!error) {
        void *bytes;
        error = mmk_heap_alloc(&heap, 3000, 16, true, &bytes);
        if (!error)
            error = mmk_heap_free(&heap, bytes);
    }
    CHECK(is_answer(error));
    return NULL;
}

TEST(threads_that_meet_the_cut_together_all_get_an_answer)
{
    for (int round = 0; round < 100; round++) {
        pthread_t threads[3];
        open_heap();
        for (int i = 0; i < 3; i++)
            CHECK(pthread_create(&threads[i], NULL, use_until_cut, NULL) == 0);
        usleep((useconds_t)(round * 20));
        CHECK(ftruncate(fd, (off_t)pages((size_t)round % 3)) == 0);
        for (int i = 0; i < 3; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        every_call_says_corrupt();
        close_heap();
    }
}

int main(void)
{
    fd = memory_file(pages(PAGES));
    RUN(a_file_cut_under_a_heap_is_an_error_of_every_call_and_no_signal);
    RUN(a_cut_is_not_undone_by_making_the_file_longer);
    RUN(a_file_cut_at_any_instruction_of_a_call_ends_no_process);
    RUN(threads_that_meet_the_cut_together_all_get_an_answer);
    return 0;
}
