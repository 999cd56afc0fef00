/* Threads and processes at one pool, and processes that are killed in the middle. */
#include <mmkit/pool.h>

#include <sched.h>
#include <signal.h>
#include <time.h>

#include "stepping.h"

enum {
    STRIDE = 7, /* instructions */
    BLOCKS = 40,
    BLOCK_SIZE = 48,
    HELD = 3, /* blocks that a worker has at one time, at most */
    WORKERS = 3,
    TURNS = UNDER_SANITIZER ? 20000 : 200000,
    KILLS_AT_ONCE = 6, /* before everybody stops, and the pool is looked at */
    LEAST_KILLS = UNDER_SANITIZER ? 24 : 60,
    LONG_FORM_KILLS = 300,
};

static mmk_region region;
static mmk_pool pool;

/* Shared with the children. */
static struct shared {
    atomic_bool stop;
    _Atomic uint64_t turns[WORKERS];
} *shared;

static void open_shared_pool(uint32_t count, unsigned flags)
{
    mmk_pool_geometry wanted = {.block_size = BLOCK_SIZE, .count = count, .limit = count, .flags = flags};
    map(&region, shared_anonymous(mmk_pool_size(&wanted)));
    CHECK(mmk_pool_create(&pool, &region, 0, &wanted, true) == 0);
    shared = mmap(NULL, sizeof *shared, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
}

static void close_shared_pool(void)
{
    CHECK(munmap(shared, sizeof *shared) == 0);
    mmk_pool_close(&pool);
    mmk_region_dispose(&region);
}

/* A block whose bytes are another's than its holder's was handed out twice. */
static void give_what_is_still_mine(const mmk_pool_block *block, int mark)
{
    CHECK(all_bytes_are(block->bytes, BLOCK_SIZE, mark));
    CHECK(mmk_pool_give(&pool, block) == 0);
}

/* Take up to HELD blocks, write to them, give them back in another order than they came. */
static void work(int number, uint64_t turns)
{
    mmk_pool_block held[HELD];
    int mark = number + 1;
    for (uint64_t turn = 0; turn < turns && !atomic_load_explicit(&shared->stop, memory_order_relaxed); turn++) {
        int have = 0, want = 1 + (int)(turn % HELD);
        while (have < want && mmk_pool_take(&pool, &held[have]) == 0)
            memset(held[have++].bytes, mark, BLOCK_SIZE);
        for (int i = 0; i < have; i++)
            give_what_is_still_mine(&held[turn & 1 ? i : have - 1 - i], mark);
        atomic_store_explicit(&shared->turns[number], turn, memory_order_relaxed);
    }
}

static void *work_in_thread(void *number)
{
    work((int)(intptr_t)number, TURNS);
    return NULL;
}

/* Nobody is at it: every block is live or can be had, and each once. */
static void check_quiet_pool(uint32_t count)
{
    uint32_t lost, damaged, seen = 0;
    bool taken[BLOCKS] = {false};
    mmk_pool_block block[BLOCKS + 1];
    CHECK(mmk_pool_check(&pool, &lost, &damaged) == 0 && lost == 0);
    while (mmk_pool_take(&pool, &block[seen]) == 0) {
        CHECK(block[seen].index < count && !taken[block[seen].index]);
        taken[block[seen++].index] = true;
    }
    CHECK(seen == count);
    for (uint32_t i = 0; i < count; i++)
        CHECK(mmk_pool_give(&pool, &block[i]) == 0);
}

/* With fewer blocks than workers want, so that the list runs empty all the time. */
static void race_threads(uint32_t count, unsigned flags)
{
    open_shared_pool(count, flags);
    pthread_t threads[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_create(&threads[i], NULL, work_in_thread, (void *)(intptr_t)i) == 0);
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    check_quiet_pool(count);
    close_shared_pool();
}

TEST(threads_never_get_the_same_block)
{
    race_threads(4, 0);
    race_threads(BLOCKS, MMK_POOL_PADDED);
    race_threads(4, MMK_POOL_POISONED);
}

enum { MANY = UNDER_SANITIZER ? 20000 : 200000 };
static atomic_bool taken_before[MANY];
static atomic_int started;

static void *take_all(void *unused)
{
    mmk_pool_block block;
    for (atomic_fetch_add(&started, 1); atomic_load(&started) < WORKERS;)
        sched_yield();
    while (mmk_pool_take(&pool, &block) == 0)
        CHECK(!atomic_exchange(&taken_before[block.index], true));
    return unused;
}

TEST(threads_never_get_the_same_block_of_those_that_nobody_ever_took)
{
    open_shared_pool(MANY, 0);
    pthread_t threads[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_create(&threads[i], NULL, take_all, NULL) == 0);
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    mmk_pool_stats stats;
    CHECK(mmk_pool_statistics(&pool, &stats) == 0 && stats.live == MANY);
    close_shared_pool();
}

static void *wait_in_thread(void *number)
{
    for (int turn = 0; turn < TURNS / 100; turn++) {
        mmk_pool_block block;
        CHECK(mmk_pool_take_until(&pool, &block, INT64_MAX) == 0);
        memset(block.bytes, (int)(intptr_t)number, BLOCK_SIZE);
        give_what_is_still_mine(&block, (int)(intptr_t)number);
        if (turn % 16 == 0)
            sched_yield();
    }
    return NULL;
}

TEST(threads_that_wait_for_one_block_all_get_it)
{
    open_shared_pool(1, 0);
    pthread_t threads[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_create(&threads[i], NULL, wait_in_thread, (void *)(intptr_t)i) == 0);
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    check_quiet_pool(1);
    close_shared_pool();
}

/* ---- processes ---- */

static pid_t start_worker(int number)
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child)
        return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    work(number, UINT64_MAX);
    _exit(0);
}

static void kill_worker(pid_t worker)
{
    int status;
    CHECK(kill(worker, SIGKILL) == 0 && waitpid(worker, &status, 0) == worker);
    /* Its own CHECKs end it by SIGABRT. */
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Until it has done something: then a random bit longer. */
static void let_work(int number, unsigned *seed)
{
    uint64_t before = atomic_load(&shared->turns[number]);
    while (atomic_load(&shared->turns[number]) == before)
        sched_yield();
    for (volatile int spin = rand_r(seed) % 50000; spin > 0; spin--)
        ;
}

static void stop_workers(const pid_t workers[WORKERS])
{
    atomic_store(&shared->stop, true);
    for (int i = 0; i < WORKERS; i++) {
        int status;
        CHECK(waitpid(workers[i], &status, 0) == workers[i]);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    atomic_store(&shared->stop, false);
}

/* What the killed had stays live; what they were just taking or giving is lost: one block each. */
static uint32_t collect_from_the_dead(uint32_t kills)
{
    uint32_t lost, damaged, live = 0;
    CHECK(mmk_pool_check(&pool, &lost, &damaged) == 0);
    CHECK(lost <= kills);
    mmk_pool_block block;
    while (mmk_pool_next_live(&pool, 0, &block) == 0) {
        CHECK(mmk_pool_give(&pool, &block) == 0);
        live++;
    }
    CHECK(live + lost <= kills * HELD);
    CHECK(mmk_pool_repair(&pool) == 0);
    return lost;
}

static int64_t seconds_now(void)
{
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return now.tv_sec;
}

static void kill_often(unsigned flags)
{
    const char *text = getenv("MMKIT_STRESS_SECONDS");
    int64_t end = seconds_now() + (text ? atoi(text) : 0);
    unsigned seed = 1, kills = 0, lost = 0, least = text ? LONG_FORM_KILLS : LEAST_KILLS;
    open_shared_pool(BLOCKS, flags);
    while (kills < least || seconds_now() < end) {
        pid_t workers[WORKERS];
        for (int i = 0; i < WORKERS; i++)
            workers[i] = start_worker(i);
        for (int i = 0; i < KILLS_AT_ONCE; i++) {
            int victim = i % WORKERS;
            let_work(victim, &seed);
            kill_worker(workers[victim]);
            atomic_store(&shared->turns[victim], UINT64_MAX);
            workers[victim] = start_worker(victim);
        }
        stop_workers(workers);
        lost += collect_from_the_dead(KILLS_AT_ONCE);
        check_quiet_pool(BLOCKS);
        kills += KILLS_AT_ONCE;
    }
    printf("  %u killed, %u blocks lost on the way and brought back\n", kills, lost);
    close_shared_pool();
}

TEST(processes_that_are_killed_lose_one_block_each_at_most_and_no_block_is_handed_out_twice)
{
    kill_often(0);
    kill_often(MMK_POOL_ZERO);
}

/* A fork at any moment of other threads' work: the child's copy is a pool that works. */
static void attach(void)
{
    mmk_pool other;
    if (mmk_pool_attach(&other, &region, 0))
        _exit(1);
}

TEST(whoever_attaches_while_a_pool_grows_finds_it_whole)
{
    if (UNDER_SANITIZER)
        SKIP("most instructions would be the sanitizer's");
    mmk_pool_geometry wanted = {.block_size = BLOCK_SIZE, .count = 1, .limit = 2};
    bool is_over = false;
    for (unsigned steps = 0; !is_over; steps += STRIDE) {
        map(&region, shared_anonymous(mmk_pool_size(&wanted)));
        CHECK(mmk_pool_create(&pool, &region, 0, &wanted, true) == 0);
        pid_t child;
        is_over = !stops_after(attach, steps, &child);
        mmk_pool_block block;
        CHECK(mmk_pool_take(&pool, &block) == 0 && mmk_pool_take(&pool, &block) == 0);
        int status = 0;
        if (!is_over)
            CHECK(ptrace(PTRACE_DETACH, child, 0, 0) == 0 && waitpid(child, &status, 0) == child);
        if (status)
            fprintf(stderr, "grown after %u instructions: %#x\n", steps, status);
        CHECK(status == 0);
        mmk_pool_close(&pool);
        mmk_region_dispose(&region);
    }
}

static void use_copy(void)
{
    mmk_pool_block block;
    uint32_t lost, damaged;
    CHECK(mmk_pool_check(&pool, &lost, &damaged) == 0 && lost <= WORKERS);
    CHECK(mmk_pool_take(&pool, &block) == 0 && mmk_pool_give(&pool, &block) == 0);
}

TEST(a_child_forked_in_the_middle_of_other_threads_work_has_a_pool_that_works)
{
    mmk_pool_geometry wanted = {.block_size = BLOCK_SIZE, .count = BLOCKS, .limit = BLOCKS};
    map(&region, anonymous(mmk_pool_size(&wanted), RW));
    CHECK(mmk_pool_create(&pool, &region, 0, &wanted, true) == 0);
    shared = mmap(NULL, sizeof *shared, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    pthread_t threads[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_create(&threads[i], NULL, work_in_thread, (void *)(intptr_t)i) == 0);
    for (int i = 0; i < (UNDER_SANITIZER ? 5 : 30); i++)
        in_child(use_copy);
    atomic_store(&shared->stop, true);
    for (int i = 0; i < WORKERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    check_quiet_pool(BLOCKS);
    close_shared_pool();
}

int main(void)
{
    RUN(threads_never_get_the_same_block);
    RUN(threads_never_get_the_same_block_of_those_that_nobody_ever_took);
    RUN(threads_that_wait_for_one_block_all_get_it);
    RUN(processes_that_are_killed_lose_one_block_each_at_most_and_no_block_is_handed_out_twice);
    RUN(whoever_attaches_while_a_pool_grows_finds_it_whole);
    RUN(a_child_forked_in_the_middle_of_other_threads_work_has_a_pool_that_works);
    return 0;
}
