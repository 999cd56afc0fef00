#include <mmkit/protect.h>
#include <mmkit/residency.h>

#include "support.h"

enum {
    PAGES = 16,
};

static void lock(mmk_region *region, size_t page, size_t count)
{
    CHECK(mmk_region_lock(region, pages(page), pages(count)) == 0);
}

static void unlock(mmk_region *region, size_t page, size_t count)
{
    CHECK(mmk_region_unlock(region, pages(page), pages(count)) == 0);
}

TEST(each_page_stays_locked_until_it_was_unlocked_as_often)
{
    mmk_region region;
    map_pages(&region, 8);
    size_t before = locked_bytes();
    lock(&region, 0, 4);
    lock(&region, 2, 4);
    CHECK(locked_bytes() - before == pages(6));
    unlock(&region, 0, 4);
    CHECK(locked_bytes() - before == pages(4));
    unlock(&region, 0, 2); /* pages that have no lock are left alone */
    CHECK(locked_bytes() - before == pages(4));
    unlock(&region, 0, 8);
    CHECK(locked_bytes() == before && region.locks.count == 0);
    mmk_region_dispose(&region);
}

TEST(there_is_room_for_a_count_of_its_own_for_every_page)
{
    mmk_region region;
    map_pages(&region, 508);
    for (size_t page = 0; page < 508; page += 2)
        lock(&region, page, 1);
    lock(&region, 0, 508);
    CHECK(region.locks.count == 508 && region.locks.capacity >= 508 && mmk_runs_check(&region.locks, 0));
    unlock(&region, 0, 508);
    unlock(&region, 0, 508);
    CHECK(region.locks.count == 0);
    mmk_region_dispose(&region);
}

static uint64_t random_state = 362436069;

static size_t random_below(size_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (size_t)(random_state % limit);
}

TEST(any_sequence_of_locks_and_unlocks_gives_what_counting_per_page_gives)
{
    mmk_region region;
    int counts[PAGES] = {0};
    map_pages(&region, PAGES);
    size_t before = locked_bytes();
    for (int step = 0; step < 6000; step++) {
        size_t first = random_below(PAGES), count = 1 + random_below(PAGES - first);
        bool locking = random_below(2);
        if (locking)
            lock(&region, first, count);
        else
            unlock(&region, first, count);
        size_t locked = 0;
        for (size_t page = 0; page < PAGES; page++) {
            size_t end;
            if (first <= page && page < first + count)
                counts[page] += locking ? 1 : counts[page] > 0 ? -1 : 0;
            CHECK(mmk_runs_at(&region.locks, page, PAGES, 0, &end) == counts[page]);
            locked += counts[page] > 0;
        }
        CHECK(mmk_runs_check(&region.locks, 0) && region.locks.count <= region.locks.capacity);
        CHECK(locked_bytes() - before == pages(locked));
    }
    CHECK(mmk_region_close(&region) == 0);
    CHECK(locked_bytes() == before);
    mmk_region_dispose(&region);
}

static void lock_beyond_the_limit(void)
{
    mmk_region region;
    drop_privileges();
    limit(RLIMIT_MEMLOCK, pages(8));
    map_pages(&region, PAGES);
    lock(&region, 2, 2);
    lock(&region, 6, 2);
    CHECK(mmk_region_lock(&region, 0, pages(PAGES)) == -ENOMEM);
    CHECK(locked_bytes() == pages(4));
    CHECK(mmk_region_lock(&region, pages(8), pages(8)) == -ENOMEM);
    CHECK(locked_bytes() == pages(4));
    lock(&region, 0, 6);
    CHECK(locked_bytes() == pages(8));
    unlock(&region, 0, PAGES);
    CHECK(locked_bytes() == pages(2));
    unlock(&region, 0, PAGES);
    CHECK(locked_bytes() == 0 && region.locks.count == 0);
    limit(RLIMIT_MEMLOCK, 0);
    CHECK(mmk_region_lock(&region, 0, pages(1)) == -EPERM && region.locks.count == 0);
    mmk_region_dispose(&region);
}

TEST(a_lock_beyond_RLIMIT_MEMLOCK_is_refused_and_locks_nothing_new)
{
    if (UNDER_SANITIZER)
        SKIP("mlock(2) does nothing under a sanitizer");
    in_child(lock_beyond_the_limit);
}

TEST(a_lock_that_meets_a_guard_or_the_end_of_the_file_is_taken_back)
{
    mmk_region region;
    size_t before = locked_bytes();
    map_pages(&region, 6);
    lock(&region, 0, 1);
    CHECK(mmk_region_guard(&region, pages(4), pages(1), false) == 0);
    CHECK(mmk_region_lock(&region, 0, pages(6)) == -ENOMEM);
    CHECK(locked_bytes() - before == pages(1));
    mmk_region_dispose(&region);

    int fd = numbered_file(pages(2));
    map(&region, file(fd, pages(4), MAP_SHARED));
    int error = mmk_region_lock(&region, 0, pages(4));
    CHECK(error == -ENOMEM || error == -EAGAIN);
    CHECK(locked_bytes() == before && region.locks.count == 0);
    lock(&region, 0, 2);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(secret_memory_is_locked_by_nature_and_asks_for_no_lock)
{
    int fd = mmk_sys_memfd_secret(O_CLOEXEC);
    if (fd < 0)
        SKIP("no memfd_secret(2) here");
    mmk_region region;
    CHECK(ftruncate(fd, (off_t)pages(2)) == 0);
    mmk_request request = file(fd, pages(2), MAP_SHARED);
    request.always_locked = true;
    int error = mmk_region_map(&region, &request);
    if (error == -EAGAIN) {
        close(fd);
        SKIP("RLIMIT_MEMLOCK is too low");
    }
    CHECK(error == 0);
    lock(&region, 0, 2);
    unlock(&region, 0, 2);
    CHECK(region.locks.count == 0);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(resident_counts_what_this_process_has_touched)
{
    mmk_region region;
    size_t bytes = 1;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    CHECK(pagemap >= 0);
    /* More pages than one read of pagemap holds. */
    map_pages(&region, 3000);
    (void)madvise(region.base, pages(3000), MADV_NOHUGEPAGE);
    CHECK(mmk_region_resident(&region, 0, pages(3000), pagemap, &bytes) == 0 && bytes == 0);
    for (size_t page = 0; page < 3000; page += 3)
        region.base[pages(page)] = 1;
    CHECK(mmk_region_resident(&region, 0, pages(3000), pagemap, &bytes) == 0 && bytes == pages(1000));
    CHECK(mmk_region_resident(&region, pages(1), pages(2), pagemap, &bytes) == 0 && bytes == 0);
    CHECK(mmk_region_resident(&region, pages(2996), pages(4), pagemap, &bytes) == 0 && bytes == pages(1));
    CHECK(mmk_region_resident(&region, pages(2999), 0, pagemap, &bytes) == 0 && bytes == 0);
    CHECK(mmk_region_resident(&region, 0, pages(3001), pagemap, &bytes) == -ERANGE);
    CHECK(mmk_region_resident(&region, 0, pages(1), -1, &bytes) == -EBADF);
    mmk_region_dispose(&region);
    close(pagemap);
}

static void count_what_the_page_cache_holds(void)
{
    mmk_region region;
    size_t bytes = 1;
    int fd = memory_file(pages(3000));
    map(&region, file(fd, pages(2900), MAP_SHARED));
    for (size_t page = 0; page < 3000; page += 4)
        CHECK(pwrite(fd, "x", 1, (off_t)pages(page)) == 1);
    CHECK(mmk_region_cached(&region, 0, pages(2900), &bytes) == 0 && bytes == pages(725));
    CHECK(mmk_region_cached(&region, pages(1), pages(3), &bytes) == 0 && bytes == 0);
    CHECK(mmk_region_cached(&region, pages(1), 0, &bytes) == 0 && bytes == 0);
    CHECK(mmk_region_cached(&region, 0, pages(3000), &bytes) == -ERANGE);
    mmk_region_dispose(&region);

    /* A region that starts within the file counts from its own start. */
    mmk_request request = file(fd, pages(4), MAP_SHARED);
    request.file_offset = pages(2);
    map(&region, request);
    CHECK(mmk_region_cached(&region, pages(2), pages(1), &bytes) == 0 && bytes == pages(1));
    CHECK(mmk_region_cached(&region, 0, pages(2), &bytes) == 0 && bytes == 0);
    mmk_region_dispose(&region);
    close(fd);

    map(&region, shared_anonymous(pages(4)));
    region.base[pages(2)] = 1;
    CHECK(mmk_region_cached(&region, 0, pages(4), &bytes) == 0 && bytes == pages(1));
    mmk_region_dispose(&region);

    map_pages(&region, 4);
    number_pages(&region);
    CHECK(mmk_region_cached(&region, 0, pages(4), &bytes) == 0 && bytes == 0);
    mmk_region_dispose(&region);
}

TEST(cached_counts_what_the_page_cache_holds_whoever_brought_it_in)
{
    count_what_the_page_cache_holds();
}

static void count_without_cachestat(void)
{
    refuse(451, 0, 0, 0, ENOSYS);
    count_what_the_page_cache_holds();
}

TEST(before_Linux_6_5_mincore_answers_the_same)
{
    in_child(count_without_cachestat);
}

static void look_at_a_file_of_somebody_else(void)
{
    mmk_region region;
    size_t bytes;
    drop_privileges();
    int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    mmk_request request = file(fd, 1, MAP_SHARED);
    request.prot = PROT_READ;
    map(&region, request);
    int error = mmk_region_cached(&region, 0, pages(1), &bytes);
    CHECK(error == -EPERM || error == 0); /* Linux 6.13 and before do not check */
    mmk_region_dispose(&region);
}

TEST(what_is_cached_of_a_file_that_one_could_not_write_is_not_told)
{
    in_child(look_at_a_file_of_somebody_else);
}

int main(void)
{
    RUN(resident_counts_what_this_process_has_touched);
    RUN(cached_counts_what_the_page_cache_holds_whoever_brought_it_in);
    RUN(before_Linux_6_5_mincore_answers_the_same);
    RUN(what_is_cached_of_a_file_that_one_could_not_write_is_not_told);
    RUN(there_is_room_for_a_count_of_its_own_for_every_page);
    RUN(secret_memory_is_locked_by_nature_and_asks_for_no_lock);
    RUN(a_lock_beyond_RLIMIT_MEMLOCK_is_refused_and_locks_nothing_new);
    if (UNDER_SANITIZER) {
        printf("  skipped the rest: mlock(2) does nothing under a sanitizer\n");
        return 0;
    }
    RUN(each_page_stays_locked_until_it_was_unlocked_as_often);
    RUN(any_sequence_of_locks_and_unlocks_gives_what_counting_per_page_gives);
    RUN(a_lock_that_meets_a_guard_or_the_end_of_the_file_is_taken_back);
    return 0;
}
