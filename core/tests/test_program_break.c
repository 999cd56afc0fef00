#include <mmkit/program_break.h>

#include "support.h"

/* Each test runs in a child: the break is one number for the whole process. */

static intptr_t now(void)
{
    return mmk_sys_sbrk(0);
}

static intptr_t step(size_t count)
{
    return (intptr_t)pages(count);
}

static void grow(void)
{
    intptr_t before = now();
    CHECK(mmk_break_move(0) == before && now() == before);
    CHECK(mmk_break_move(step(3)) == before && now() == before + step(3));
    CHECK(all_bytes_are((char *)before, pages(3), 0));
    memset((char *)before, 1, pages(3));
    CHECK(mmk_break_move(5) == before + step(3) && now() == before + step(3) + 5);
}

TEST(growing_returns_the_previous_break_and_gives_zeros)
{
    in_child(grow);
}

static void shrink(void)
{
    intptr_t before = now();
    CHECK(mmk_break_move(-1) == -MMK_EFOREIGN);
    CHECK(mmk_break_move(step(2)) == before && mmk_break_move(step(2)) == before + step(2));
    CHECK(mmk_break_move(-step(4) - 1) == -MMK_EFOREIGN && now() == before + step(4));
    CHECK(mmk_break_move(-step(3)) == before + step(4) && now() == before + step(1));
    CHECK(mmk_break_move(-step(1)) == before + step(1) && now() == before);
    CHECK(mmk_break_move(-1) == -MMK_EFOREIGN && now() == before);
    CHECK(mmk_break_move(step(1)) == before && mmk_break_move(-step(1)) == before + step(1) && now() == before);
}

TEST(what_was_taken_here_is_given_back_and_no_byte_more)
{
    if (UNDER_TSAN)
        SKIP("TSan has a thread of its own");
    in_child(shrink);
}

static void shrink_after_others(void)
{
    intptr_t before = now();
    CHECK(mmk_break_move(step(2)) == before);
    CHECK(sbrk(step(1)) == (void *)(before + step(2)));
    CHECK(mmk_break_move(-step(1)) == -MMK_EFOREIGN && now() == before + step(3));
    CHECK(mmk_break_move(-step(2)) == -MMK_EFOREIGN);
    /* Our next piece stands above theirs, and only it can be given back. */
    CHECK(mmk_break_move(step(2)) == before + step(3));
    CHECK(mmk_break_move(-step(3)) == -MMK_EFOREIGN);
    CHECK(mmk_break_move(-step(2)) == before + step(5) && now() == before + step(3));
    CHECK(mmk_break_move(-1) == -MMK_EFOREIGN);
    /* Somebody took some of ours away. */
    CHECK(mmk_break_move(step(2)) == before + step(3));
    CHECK(sbrk(-step(1)) != (void *)-1);
    CHECK(mmk_break_move(-step(1)) == -MMK_EFOREIGN && now() == before + step(4));
}

TEST(what_others_took_since_is_never_given_back)
{
    if (UNDER_TSAN)
        SKIP("TSan has a thread of its own");
    in_child(shrink_after_others);
}

static void shrink_after_others_gave_back(void)
{
    intptr_t before = now();
    CHECK(mmk_break_move(step(2)) == before);
    CHECK(sbrk(step(1)) != (void *)-1 && sbrk(-step(1)) != (void *)-1);
    CHECK(mmk_break_move(-step(2)) == before + step(2) && now() == before);
}

TEST(what_others_took_and_gave_back_is_not_in_the_way)
{
    if (UNDER_TSAN)
        SKIP("TSan has a thread of its own");
    in_child(shrink_after_others_gave_back);
}

static void *wait_for_the_end(void *semaphore)
{
    while (sem_wait(semaphore) < 0)
        ;
    return NULL;
}

static size_t tasks(void)
{
    struct stat status;
    CHECK(stat("/proc/self/task", &status) == 0);
    return status.st_nlink - 2;
}

static void shrink_beside_a_thread(void)
{
    sem_t end;
    pthread_t thread;
    CHECK(sem_init(&end, 0, 0) == 0 && pthread_create(&thread, NULL, wait_for_the_end, &end) == 0);
    intptr_t before = mmk_break_move(step(1));
    CHECK(before > 0);
    CHECK(mmk_break_move(-step(1)) == -MMK_ETHREADS && now() == before + step(1));
    CHECK(sem_post(&end) == 0 && pthread_join(thread, NULL) == 0);
    /* pthread_join returns a moment before the kernel has forgotten the thread. */
    while (tasks() > 1)
        usleep(100);
    CHECK(mmk_break_move(-step(1)) == before + step(1) && now() == before);
}

TEST(beside_other_threads_nothing_is_given_back)
{
    if (UNDER_TSAN)
        SKIP("TSan has a thread of its own");
    in_child(shrink_beside_a_thread);
}

static void grow_beyond_the_limit(void)
{
    intptr_t before = now();
    CHECK(mmk_break_move(INTPTR_MAX) == -ENOMEM && now() == before);
    limit(RLIMIT_DATA, status_bytes("VmData:") + pages(16));
    CHECK(mmk_break_move(step(4096)) == -ENOMEM && now() == before);
    CHECK(mmk_break_move(step(1)) == before);
}

TEST(a_break_that_cannot_move_stays_where_it_is)
{
    in_child(grow_beyond_the_limit);
}

static void shrink_by_everything(void)
{
    intptr_t before = now();
    CHECK(mmk_break_move(INTPTR_MIN) == -MMK_EFOREIGN && mmk_break_move(INTPTR_MIN + 1) == -MMK_EFOREIGN);
    CHECK(mmk_break_move(step(1)) == before);
    CHECK(mmk_break_move(INTPTR_MIN) == -MMK_EFOREIGN && mmk_break_move(-before) == -MMK_EFOREIGN);
    CHECK(now() == before + step(1));
}

TEST(the_lowest_number_there_is_is_refused)
{
    in_child(shrink_by_everything);
}

static void shrink_in_the_child(void)
{
    intptr_t before = now();
    CHECK(mmk_break_move(-step(1)) == before && now() == before - step(1));
}

static void fork_with_a_piece(void)
{
    intptr_t before = now();
    CHECK(mmk_break_move(step(1)) == before);
    in_child(shrink_in_the_child);
    CHECK(now() == before + step(1) && mmk_break_move(-step(1)) == before + step(1));
}

TEST(a_child_has_its_own_break_and_a_copy_of_what_was_taken)
{
    if (UNDER_TSAN)
        SKIP("TSan has a thread of its own");
    in_child(fork_with_a_piece);
}

int main(void)
{
    RUN(growing_returns_the_previous_break_and_gives_zeros);
    RUN(what_was_taken_here_is_given_back_and_no_byte_more);
    RUN(what_others_took_since_is_never_given_back);
    RUN(what_others_took_and_gave_back_is_not_in_the_way);
    RUN(beside_other_threads_nothing_is_given_back);
    RUN(a_break_that_cannot_move_stays_where_it_is);
    RUN(a_child_has_its_own_break_and_a_copy_of_what_was_taken);
    RUN(the_lowest_number_there_is_is_refused);
    return 0;
}
