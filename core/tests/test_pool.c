#include <mmkit/pool.h>

#include <sched.h>
#include <signal.h>
#include <time.h>

#include "support.h"
#include "tmpfs.h"

static mmk_region region;
static mmk_pool pool;

static mmk_pool_geometry geometry(size_t block_size, uint32_t count)
{
    return (mmk_pool_geometry){.block_size = block_size, .count = count, .limit = count};
}

static void open_pool(mmk_pool_geometry wanted)
{
    map(&region, anonymous(mmk_pool_size(&wanted), RW));
    CHECK(mmk_pool_create(&pool, &region, 0, &wanted, true) == 0);
}

static void close_pool(void)
{
    uint32_t lost, damaged;
    CHECK(mmk_pool_check(&pool, &lost, &damaged) == 0 && lost == 0);
    mmk_pool_close(&pool);
    CHECK(mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
}

static mmk_pool_stats stats(void)
{
    mmk_pool_stats found;
    CHECK(mmk_pool_statistics(&pool, &found) == 0);
    return found;
}

static uint64_t *word(size_t offset)
{
    return (uint64_t *)(region.base + offset);
}

TEST(every_block_is_handed_out_once_until_it_comes_back)
{
    open_pool(geometry(24, 100));
    mmk_pool_block blocks[100], another;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 100; i++) {
            CHECK(mmk_pool_take(&pool, &blocks[i]) == 0);
            CHECK((uintptr_t)blocks[i].bytes % 16 == 0);
            memset(blocks[i].bytes, i, 24);
        }
        CHECK(mmk_pool_take(&pool, &another) == -ENOMEM);
        for (int i = 0; i < 100; i++)
            CHECK(all_bytes_are(blocks[i].bytes, 24, i));
        for (int i = 0; i < 100; i++)
            CHECK(mmk_pool_give(&pool, &blocks[round == 1 ? 99 - i : i]) == 0);
    }
    CHECK(stats().takes == 300 && stats().live == 0 && stats().peak == 100 && stats().refusals == 3);
    close_pool();
}

TEST(a_block_that_is_given_twice_or_after_somebody_else_took_it_is_refused)
{
    open_pool(geometry(16, 2));
    mmk_pool_block mine, his;
    CHECK(mmk_pool_take(&pool, &mine) == 0 && mmk_pool_give(&pool, &mine) == 0);
    CHECK(mmk_pool_give(&pool, &mine) == -MMK_ENOTBLOCK);
    CHECK(mmk_pool_take(&pool, &his) == 0 && his.index == mine.index);
    CHECK(mmk_pool_give(&pool, &mine) == -MMK_ENOTBLOCK);
    CHECK(stats().live == 1);
    CHECK(mmk_pool_give(&pool, &his) == 0);
    mine.index = 2;
    CHECK(mmk_pool_give(&pool, &mine) == -MMK_ENOTBLOCK);
    mine.index = UINT32_MAX;
    CHECK(mmk_pool_give(&pool, &mine) == -MMK_ENOTBLOCK);
    close_pool();
}

TEST(a_head_of_the_list_that_is_seen_again_after_others_took_differs_in_its_tag)
{
    open_pool(geometry(16, 2));
    mmk_pool_block one, two;
    CHECK(mmk_pool_take(&pool, &one) == 0 && mmk_pool_take(&pool, &two) == 0);
    CHECK(mmk_pool_give(&pool, &two) == 0 && mmk_pool_give(&pool, &one) == 0);
    uint64_t before = *word(64);
    CHECK(mmk_pool_take(&pool, &one) == 0 && mmk_pool_take(&pool, &two) == 0);
    CHECK(mmk_pool_give(&pool, &one) == 0);
    /* The same first block, and behind it another list: who read the old head must not succeed. */
    CHECK((uint32_t)before == (uint32_t)*word(64) && before != *word(64));
    CHECK(mmk_pool_give(&pool, &two) == 0);
    close_pool();
}

TEST(a_pool_grows_to_its_limit_and_no_further)
{
    mmk_pool_geometry wanted = geometry(32, 3);
    wanted.limit = 10;
    open_pool(wanted);
    mmk_pool_block blocks[10], another;
    for (int i = 0; i < 10; i++)
        CHECK(mmk_pool_take(&pool, &blocks[i]) == 0);
    CHECK(mmk_pool_take(&pool, &another) == -ENOMEM);
    CHECK(stats().count == 10 && stats().live == 10);
    for (int i = 0; i < 10; i++)
        CHECK(mmk_pool_give(&pool, &blocks[i]) == 0);
    close_pool();
}

TEST(blocks_that_are_wiped_are_zeros_when_they_are_taken_even_in_a_region_that_was_used)
{
    mmk_pool_geometry wanted = geometry(100, 5);
    wanted.flags = MMK_POOL_ZERO;
    map(&region, anonymous(mmk_pool_size(&wanted), RW));
    memset(region.base, 0xff, mmk_region_length(&region));
    CHECK(mmk_pool_create(&pool, &region, 0, &wanted, false) == 0);
    mmk_pool_block blocks[5];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 5; i++) {
            CHECK(mmk_pool_take(&pool, &blocks[i]) == 0 && all_bytes_are(blocks[i].bytes, 100, 0));
            memset(blocks[i].bytes, 7, 100);
        }
        for (int i = 0; i < 5; i++)
            CHECK(mmk_pool_give(&pool, &blocks[i]) == 0);
    }
    close_pool();
}

TEST(a_write_to_a_poisoned_block_is_found_and_the_block_never_handed_out_again)
{
    mmk_pool_geometry wanted = geometry(100, 2);
    wanted.flags = MMK_POOL_POISONED;
    open_pool(wanted);
    mmk_pool_block block, other;
    CHECK(mmk_pool_take(&pool, &block) == 0 && mmk_pool_give(&pool, &block) == 0);
    CHECK(all_bytes_are(block.bytes, 100, MMK_POOL_POISON));
    block.bytes[99] ^= 1;
    CHECK(mmk_pool_take(&pool, &other) == -MMK_ECORRUPT && other.bytes == block.bytes);
    CHECK(mmk_pool_take(&pool, &other) == 0 && other.index != block.index);
    CHECK(mmk_pool_take(&pool, &block) == -ENOMEM);
    CHECK(stats().quarantined == 1);
    CHECK(mmk_pool_give(&pool, &other) == 0);
    CHECK(mmk_pool_repair(&pool) == 0 && stats().quarantined == 1);
    close_pool();
}

TEST(padded_blocks_share_no_cache_line)
{
    mmk_pool_geometry wanted = geometry(24, 4);
    wanted.flags = MMK_POOL_PADDED;
    open_pool(wanted);
    mmk_pool_block one, two;
    CHECK(mmk_pool_take(&pool, &one) == 0 && mmk_pool_take(&pool, &two) == 0);
    CHECK((uintptr_t)one.bytes % 64 == 0 && two.bytes - one.bytes == 64);
    CHECK(mmk_pool_give(&pool, &one) == 0 && mmk_pool_give(&pool, &two) == 0);
    close_pool();
}

TEST(numbers_that_make_no_sense_are_refused)
{
    mmk_pool_geometry bad[] = {
        geometry(0, 1),
        geometry(1, 0),
        geometry(SIZE_MAX, 1),
        geometry((size_t)1 << 61, 1 << 10),
        geometry(16, UINT32_MAX),
        {.block_size = 16, .count = 2, .limit = 1},
        {.block_size = 16, .count = 1, .limit = 1, .flags = 8},
        {.block_size = 16, .count = 1, .limit = 1, .flags = MMK_POOL_ZERO | MMK_POOL_POISONED},
    };
    map_pages(&region, 1);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(mmk_pool_size(&bad[i]) == 0);
        CHECK(mmk_pool_create(&pool, &region, 0, &bad[i], true) == -EINVAL);
    }
    mmk_pool_geometry good = geometry(16, 8), large = geometry(pages(1), 1);
    CHECK(mmk_pool_create(&pool, &region, 8, &good, true) == -EINVAL);
    CHECK(mmk_pool_create(&pool, &region, 0, &large, true) == -ENOSPC);
    CHECK(mmk_pool_create(&pool, &region, pages(2), &good, true) == -ENOSPC);
    CHECK(mmk_region_close(&region) == 0);
    CHECK(mmk_pool_create(&pool, &region, 0, &good, true) == -MMK_ECLOSED);
    CHECK(mmk_pool_attach(&pool, &region, 0) == -MMK_ECLOSED);
    mmk_pool_block block = {0};
    CHECK(mmk_pool_take(&pool, &block) == -MMK_ECLOSED && mmk_pool_give(&pool, &block) == -MMK_ECLOSED);
    mmk_region_dispose(&region);
}

TEST(the_region_cannot_be_closed_under_its_pool)
{
    open_pool(geometry(16, 1));
    CHECK(mmk_region_close(&region) == -MMK_EPINNED);
    close_pool();
}

TEST(who_attaches_finds_the_blocks_by_their_offsets)
{
    mmk_pool_geometry wanted = geometry(200, 10);
    mmk_region second;
    int fd = memory_file(mmk_round_up(mmk_pool_size(&wanted) + 128, mmk_page_size()));
    map(&region, file(fd, size_of(fd), MAP_SHARED));
    map(&second, file(fd, size_of(fd), MAP_SHARED));
    mmk_pool other;
    CHECK(mmk_pool_attach(&other, &second, 128) == -MMK_ECORRUPT);
    CHECK(mmk_pool_create(&pool, &region, 128, &wanted, true) == 0);
    CHECK(mmk_pool_attach(&other, &second, 128) == 0);
    mmk_pool_block mine, same;
    CHECK(mmk_pool_take(&pool, &mine) == 0 && mmk_pool_take(&pool, &mine) == 0);
    memcpy(mine.bytes, "hello", 6);
    size_t offset = (size_t)(mine.bytes - region.base);
    CHECK(mmk_pool_find(&other, offset, &same) == 0 && strcmp(same.bytes, "hello") == 0);
    CHECK(mmk_pool_find(&other, offset + 1, &same) == -MMK_ENOTBLOCK);
    CHECK(mmk_pool_find(&other, offset + wanted.block_size + 8, &same) == -MMK_ENOTBLOCK);
    CHECK(mmk_pool_find(&other, 0, &same) == -MMK_ENOTBLOCK);
    CHECK(mmk_pool_find(&other, SIZE_MAX, &same) == -MMK_ENOTBLOCK);
    CHECK(mmk_pool_find(&other, offset, &same) == 0);
    CHECK(mmk_pool_give(&other, &same) == 0);
    CHECK(mmk_pool_give(&pool, &mine) == -MMK_ENOTBLOCK);
    CHECK(mmk_pool_next_live(&other, 0, &same) == 0 && same.index == 0);
    CHECK(mmk_pool_next_live(&other, 1, &same) == -MMK_ENOTBLOCK);
    mmk_pool_block nothing = {0};
    CHECK(mmk_pool_find(&other, offset, &nothing) == -MMK_ENOTBLOCK && !nothing.bytes);
    mmk_pool_close(&other);
    mmk_pool_close(&pool);
    mmk_region_dispose(&second);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(a_header_that_cannot_be_is_refused)
{
    open_pool(geometry(200, 10));
    mmk_pool other;
    CHECK(mmk_pool_attach(&other, &region, 0) == 0);
    mmk_pool_close(&other);
    /* Every word of the header that is written once, and the counts. */
    for (size_t offset = 0; offset < 40; offset += 4) {
        uint32_t *at = (uint32_t *)(region.base + offset), before = *at;
        *at = 0xfffffff1;
        CHECK(mmk_pool_attach(&other, &region, 0) == (offset == 8 ? -MMK_EFORMAT : -MMK_ECORRUPT));
        *at = before;
    }
    for (size_t offset = 128; offset < 136; offset += 4) {
        uint32_t *at = (uint32_t *)(region.base + offset), before = *at;
        *at = 0xfffffff1;
        CHECK(mmk_pool_attach(&other, &region, 0) == -MMK_ECORRUPT);
        *at = before;
    }
    CHECK(mmk_pool_attach(&other, &region, pages(1) - 64) == -MMK_ECORRUPT);
    CHECK(mmk_pool_attach(&other, &region, pages(9)) == -MMK_ECORRUPT);
    CHECK(mmk_pool_attach(&other, &region, 0) == 0);
    mmk_pool_close(&other);
    close_pool();
}

/* Blocks 2, 1, 0 on the list in this order; block 3 is live. */
static void list_three(mmk_pool_block blocks[4])
{
    for (int i = 0; i < 4; i++)
        CHECK(mmk_pool_take(&pool, &blocks[i]) == 0 && blocks[i].index == (uint32_t)i);
    for (int i = 0; i < 3; i++)
        CHECK(mmk_pool_give(&pool, &blocks[i]) == 0);
}

static void smash_and_repair(size_t offset, uint32_t smashed)
{
    mmk_pool_block blocks[4], block;
    uint32_t lost, damaged;
    open_pool(geometry(16, 4));
    list_three(blocks);
    *(uint32_t *)(region.base + offset) = smashed;
    CHECK(mmk_pool_check(&pool, &lost, &damaged) == -MMK_ECORRUPT);
    CHECK(mmk_pool_repair(&pool) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(mmk_pool_take(&pool, &blocks[i]) == 0 && blocks[i].index < 3);
    CHECK(mmk_pool_take(&pool, &block) == -ENOMEM);
    for (int i = 0; i < 4; i++)
        CHECK(mmk_pool_give(&pool, &blocks[i]) == 0);
    close_pool();
}

TEST(a_smashed_list_is_found_and_made_anew)
{
    uint32_t links[] = {100, UINT32_MAX, 4 /* live */, 3 /* a circle */};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        smash_and_repair(256 + 8, links[i]); /* the link of block 1 */
        if (links[i] != 3)
            smash_and_repair(64, links[i]); /* the head */
    }
}

TEST(a_pool_that_goes_on_behind_the_end_of_its_region_is_refused)
{
    mmk_pool_geometry wanted = geometry(512, 100);
    int fd = memory_file(mmk_round_up(mmk_pool_size(&wanted), mmk_page_size()));
    mmk_region part;
    map(&region, file(fd, size_of(fd), MAP_SHARED));
    map(&part, file(fd, pages(2), MAP_SHARED));
    CHECK(mmk_pool_create(&pool, &region, 0, &wanted, true) == 0);
    mmk_pool other;
    CHECK(mmk_pool_attach(&other, &part, 0) == -MMK_ECORRUPT);
    mmk_region_dispose(&part);
    close_pool();
    close(fd);
}

TEST(a_smashed_head_or_state_leads_nowhere)
{
    mmk_pool_block blocks[4], block;
    open_pool(geometry(16, 4));
    list_three(blocks);
    uint64_t before = *word(64);
    *word(64) = 77;
    CHECK(mmk_pool_take(&pool, &block) == -MMK_ECORRUPT && block.bytes == NULL);
    *word(64) = 4; /* live */
    CHECK(mmk_pool_take(&pool, &block) == -MMK_ECORRUPT && block.bytes == NULL);
    *word(64) = before;
    uint32_t *count = (uint32_t *)(region.base + 132);
    *count = 1000;
    for (int i = 0; i < 3; i++)
        CHECK(mmk_pool_take(&pool, &blocks[i]) == 0);
    CHECK(mmk_pool_take(&pool, &block) == -MMK_ECORRUPT && mmk_pool_repair(&pool) == -MMK_ECORRUPT);
    *count = 4;
    for (int i = 0; i < 4; i++)
        CHECK(mmk_pool_give(&pool, &blocks[i]) == 0);
    close_pool();
}

TEST(a_block_that_was_lost_on_the_way_is_counted_and_comes_back)
{
    mmk_pool_geometry wanted = geometry(64, 3);
    wanted.flags = MMK_POOL_POISONED;
    open_pool(wanted);
    mmk_pool_block blocks[3];
    for (int i = 0; i < 3; i++)
        CHECK(mmk_pool_take(&pool, &blocks[i]) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(mmk_pool_give(&pool, &blocks[i]) == 0);
    /* What a kill between a take's steps leaves: off the list, not live. And one within a give: being wiped. */
    uint32_t lost, damaged, *cells = (uint32_t *)(region.base + 256);
    *word(64) = 0;
    cells[2 * 1 + 1] |= 2;
    memset(blocks[1].bytes, 0, 30);
    CHECK(mmk_pool_check(&pool, &lost, &damaged) == 0 && lost == 3);
    CHECK(mmk_pool_repair(&pool) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(mmk_pool_take(&pool, &blocks[i]) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(mmk_pool_give(&pool, &blocks[i]) == 0);
    close_pool();
}

static int64_t in_ns(int64_t ns)
{
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec + ns;
}

static void *take_and_tell(void *taken)
{
    CHECK(mmk_pool_take_until(&pool, taken, INT64_MAX) == 0);
    return NULL;
}

TEST(who_waits_gets_the_block_that_comes_back_or_hears_that_the_time_is_up)
{
    open_pool(geometry(16, 1));
    mmk_pool_block first, second;
    CHECK(mmk_pool_take_until(&pool, &first, 0) == 0);
    CHECK(mmk_pool_take_until(&pool, &second, in_ns(1000000)) == -ETIMEDOUT);
    uint64_t waits = stats().waits;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, take_and_tell, &second) == 0);
    while (stats().waits == waits)
        sched_yield();
    const _Atomic uint32_t *sleepers = (const _Atomic uint32_t *)(region.base + 192);
    CHECK(atomic_load(sleepers) & 1);
    uint32_t before = atomic_load(sleepers);
    CHECK(mmk_pool_give(&pool, &first) == 0);
    CHECK(atomic_load(sleepers) != before); /* woken, not slept out */
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(second.index == first.index && mmk_pool_give(&pool, &second) == 0);
    close_pool();
}

static void do_nothing(int number)
{
    (void)number;
}

static pthread_t sleeper;
static atomic_bool interrupted;

static void *interrupt(void *unused)
{
    while (!atomic_load(&interrupted)) {
        CHECK(pthread_kill(sleeper, SIGUSR1) == 0);
        sched_yield();
    }
    return unused;
}

TEST(a_signal_ends_the_waiting)
{
    struct sigaction action = {.sa_handler = do_nothing}, before;
    CHECK(sigaction(SIGUSR1, &action, &before) == 0);
    open_pool(geometry(16, 1));
    mmk_pool_block block, another;
    CHECK(mmk_pool_take(&pool, &block) == 0);
    sleeper = pthread_self();
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, interrupt, NULL) == 0);
    CHECK(mmk_pool_take_until(&pool, &another, INT64_MAX) == -EINTR);
    atomic_store(&interrupted, true);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(mmk_pool_give(&pool, &block) == 0);
    close_pool();
    CHECK(sigaction(SIGUSR1, &before, NULL) == 0);
}

static mmk_pool_block parents;

/* A file whose file system is full answers a write with SIGBUS: a block has to be there before it is handed out. */
static void fill_a_small_tmpfs(void)
{
    if (!mount_tmpfs("size=1m"))
        SKIP("may not mount a tmpfs");
    int fd = numbered_file(0);
    mmk_pool_geometry wanted = geometry(10000, 300);
    CHECK(ftruncate(fd, 4 << 20) == 0);
    map(&region, file(fd, 4 << 20, MAP_SHARED));
    CHECK(mmk_pool_create(&pool, &region, 0, &wanted, true) == 0);
    mmk_pool_block block, last = {0};
    int error;
    while ((error = mmk_pool_take(&pool, &block)) == 0) {
        memset(block.bytes, 1, wanted.block_size);
        last = block;
    }
    CHECK(error == -ENODATA && last.index > 50 && stats().live == last.index + 1);
    CHECK(mmk_pool_take_until(&pool, &block, INT64_MAX) == -ENODATA);
    CHECK(mmk_pool_give(&pool, &last) == 0 && mmk_pool_take(&pool, &block) == 0 && block.index == last.index);
    mmk_pool second;
    CHECK(mmk_pool_create(&second, &region, 3500 << 10, &(mmk_pool_geometry){16, 10, 10, 0}, true) == -ENOMEM);
    close_pool();
    close(fd);
}

TEST(on_a_full_file_system_take_answers_and_nobody_is_killed)
{
    in_child(fill_a_small_tmpfs);
}

static void give_and_take_in_child(void)
{
    mmk_pool_block block;
    CHECK(mmk_pool_give(&pool, &parents) == 0);
    CHECK(mmk_pool_take(&pool, &block) == 0);
    memset(block.bytes, 9, 16);
}

TEST(a_child_has_a_copy_of_a_private_pool)
{
    open_pool(geometry(16, 1));
    CHECK(mmk_pool_take(&pool, &parents) == 0);
    in_child(give_and_take_in_child);
    CHECK(all_bytes_are(parents.bytes, 16, 0) && mmk_pool_give(&pool, &parents) == 0);
    close_pool();
}

int main(void)
{
    RUN(every_block_is_handed_out_once_until_it_comes_back);
    RUN(a_block_that_is_given_twice_or_after_somebody_else_took_it_is_refused);
    RUN(a_head_of_the_list_that_is_seen_again_after_others_took_differs_in_its_tag);
    RUN(a_pool_grows_to_its_limit_and_no_further);
    RUN(blocks_that_are_wiped_are_zeros_when_they_are_taken_even_in_a_region_that_was_used);
    RUN(a_write_to_a_poisoned_block_is_found_and_the_block_never_handed_out_again);
    RUN(padded_blocks_share_no_cache_line);
    RUN(numbers_that_make_no_sense_are_refused);
    RUN(the_region_cannot_be_closed_under_its_pool);
    RUN(who_attaches_finds_the_blocks_by_their_offsets);
    RUN(a_header_that_cannot_be_is_refused);
    RUN(a_smashed_list_is_found_and_made_anew);
    RUN(a_pool_that_goes_on_behind_the_end_of_its_region_is_refused);
    RUN(a_smashed_head_or_state_leads_nowhere);
    RUN(a_block_that_was_lost_on_the_way_is_counted_and_comes_back);
    RUN(who_waits_gets_the_block_that_comes_back_or_hears_that_the_time_is_up);
    RUN(a_signal_ends_the_waiting);
    RUN(on_a_full_file_system_take_answers_and_nobody_is_killed);
    RUN(a_child_has_a_copy_of_a_private_pool);
    return 0;
}
