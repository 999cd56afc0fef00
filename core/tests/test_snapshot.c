#include <signal.h>

#include <mmkit/access.h>
#include <mmkit/advice.h>
#include <mmkit/fault.h>
#include <mmkit/protect.h>
#include <mmkit/resize.h>
#include <mmkit/snapshot.h>
#include <mmkit/storage.h>

#include "support.h"

enum {
    PAGES = 64,
    STORERS = 4,
};

static mmk_region region;
static mmk_snapshot snapshot;
static char copy[PAGES * 65536];

static void store(char *address, char byte)
{
    __asm__ volatile("" ::: "memory");
    *(volatile char *)address = byte;
    __asm__ volatile("" ::: "memory");
}

/* A region whose pages are numbered, and a snapshot of it. */
static void open_scene(void)
{
    map_pages(&region, PAGES);
    number_pages(&region);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
}

static void close_scene(void)
{
    mmk_snapshot_release(&snapshot);
    CHECK(mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
}

static bool snapshot_is_numbered(void)
{
    memset(copy, 0, sizeof copy);
    CHECK(mmk_snapshot_read(&snapshot, 0, copy, pages(PAGES), &fault) == 0);
    return pages_are_numbered(copy, PAGES);
}

static size_t dirty_bytes(void)
{
    size_t total = 0;
    for (size_t offset = 0, length = 0; mmk_snapshot_next_dirty(&snapshot, &offset, &length) == 1; offset += length)
        total += length;
    return total;
}

/* ---- what it is for ---- */

TEST(a_snapshot_stays_while_the_region_is_written_to)
{
    open_scene();
    CHECK(snapshot_is_numbered() && dirty_bytes() == 0);
    store(region.base + pages(3) + 5, 'x');
    memset(region.base + pages(10), 'y', pages(2));
    CHECK(mmk_access_store(&region, pages(20) - 1, "zz", 2, &fault) == 0);
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(5));
    CHECK(region.base[pages(3) + 5] == 'x' && all_bytes_are(region.base + pages(10), pages(2), 'y'));
    CHECK(region.base[pages(20) - 1] == 'z' && region.base[pages(20)] == 'z');
    close_scene();
}

TEST(part_of_it_is_read_whatever_was_written)
{
    open_scene();
    store(region.base + pages(4), 'x');
    CHECK(mmk_snapshot_read(&snapshot, pages(4) - 3, copy, pages(1) + 6, &fault) == 0);
    CHECK(all_bytes_are(copy, 3, 4) && all_bytes_are(copy + 3, pages(1), 5) &&
          all_bytes_are(copy + 3 + pages(1), 3, 6));
    CHECK(mmk_snapshot_read(&snapshot, pages(PAGES), copy, 0, &fault) == 0);
    CHECK(mmk_snapshot_read(&snapshot, pages(PAGES), copy, 1, &fault) == -ERANGE);
    CHECK(mmk_snapshot_read(&snapshot, 1, copy, SIZE_MAX, &fault) == -ERANGE);
    close_scene();
}

TEST(every_first_write_is_noted_once_in_order)
{
    size_t offsets[8];
    open_scene();
    store(region.base + pages(7) + 77, 'x');
    store(region.base + pages(7) + 1, 'x');
    store(region.base + pages(2) + 22, 'x');
    store(region.base + pages(PAGES) - 1, 'x');
    CHECK(mmk_snapshot_faults(&snapshot, 0, offsets, 8) == 3);
    CHECK(offsets[0] == pages(7) + 77 && offsets[1] == pages(2) + 22 && offsets[2] == pages(PAGES) - 1);
    CHECK(mmk_snapshot_faults(&snapshot, 2, offsets, 8) == 1 && offsets[0] == pages(PAGES) - 1);
    CHECK(mmk_snapshot_faults(&snapshot, 0, offsets, 2) == 2 && mmk_snapshot_faults(&snapshot, 9, offsets, 8) == 0);
    close_scene();
}

TEST(restoring_brings_every_page_back)
{
    open_scene();
    memset(region.base + pages(1), 'x', pages(5));
    store(region.base + pages(9), 'x');
    CHECK(mmk_snapshot_restore(&snapshot, &fault) == 0);
    CHECK(pages_are_numbered(region.base, PAGES) && snapshot_is_numbered());
    store(region.base + pages(1), 'y');
    store(region.base + pages(30), 'y');
    CHECK(mmk_snapshot_restore(&snapshot, &fault) == 0 && pages_are_numbered(region.base, PAGES));
    CHECK(mmk_region_protect(&region, pages(9), pages(1), PROT_READ, false) == 0);
    store(region.base + pages(1), 'y');
    CHECK(mmk_snapshot_restore(&snapshot, &fault) == -EFAULT && fault.address == (uintptr_t)region.base + pages(9));
    CHECK(region.base[pages(1)] == 'y');
    close_scene();
}

TEST(after_its_release_nothing_is_caught_and_everything_writable)
{
    open_scene();
    store(region.base + pages(1), 'x');
    mmk_snapshot_release(&snapshot);
    CHECK(bytes_with(region.base, pages(PAGES), "rw-p") == pages(PAGES));
    CHECK(!atomic_load(&region.hook));
    CHECK(mmk_snapshot_read(&snapshot, 0, copy, 1, &fault) == -MMK_ECLOSED);
    CHECK(mmk_snapshot_restore(&snapshot, &fault) == -MMK_ECLOSED);
    CHECK(mmk_snapshot_faults(&snapshot, 0, NULL, 0) == -MMK_ECLOSED);
    mmk_snapshot_release(&snapshot);
    number_pages(&region);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
    store(region.base + pages(1), 'x');
    CHECK(snapshot_is_numbered());
    close_scene();
}

TEST(reading_costs_nothing_and_writing_once_a_page)
{
    size_t offset;
    open_scene();
    size_t before = status_bytes("RssAnon:");
    CHECK(pages_are_numbered(region.base, PAGES));
    CHECK(mmk_snapshot_faults(&snapshot, 0, &offset, 1) == 0);
    CHECK(UNDER_SANITIZER || status_bytes("RssAnon:") < before + pages(8));
    for (int i = 0; i < 1000; i++)
        store(region.base + pages(5) + (size_t)i, 'x');
    CHECK(mmk_snapshot_faults(&snapshot, 0, &offset, 1) == 1 && atomic_load(&snapshot.fault_count) == 1);
    close_scene();
}

/* ---- threads ---- */

static pthread_barrier_t together;

static void *store_on_every_page(void *number)
{
    size_t own = (size_t)number;
    (void)pthread_barrier_wait(&together);
    for (size_t step = 0; step < PAGES; step++) {
        size_t page = own % 2 ? PAGES - 1 - step : step;
        store(region.base + pages(page) + own, (char)(100 + own));
    }
    return NULL;
}

TEST(each_page_is_kept_as_it_was_before_the_first_store_whoever_stores)
{
    CHECK(pthread_barrier_init(&together, NULL, STORERS) == 0);
    for (int round = 0; round < 50; round++) {
        pthread_t threads[STORERS];
        open_scene();
        for (size_t i = 0; i < STORERS; i++)
            CHECK(pthread_create(&threads[i], NULL, store_on_every_page, (void *)i) == 0);
        CHECK(snapshot_is_numbered());
        for (size_t i = 0; i < STORERS; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(snapshot_is_numbered() && dirty_bytes() == pages(PAGES));
        CHECK(atomic_load(&snapshot.fault_count) == PAGES);
        for (size_t page = 0; page < PAGES; page++)
            for (size_t i = 0; i < STORERS; i++)
                CHECK(region.base[pages(page) + i] == (char)(100 + i));
        close_scene();
    }
}

static atomic_bool stop;
static size_t counters[STORERS];

/* Each stores a rising number into two places, the first one first. */
static void *count_up(void *number)
{
    size_t own = (size_t)number;
    char *first = region.base + pages(own) + own * 8, *second = region.base + pages(PAGES - 1 - own) + own * 8;
    size_t turn = 0;
    while (!atomic_load(&stop)) {
        turn++;
        __atomic_store_n((size_t *)(void *)first, turn, __ATOMIC_SEQ_CST);
        __atomic_store_n((size_t *)(void *)second, turn, __ATOMIC_SEQ_CST);
    }
    counters[own] = turn;
    return NULL;
}

static void never_called(int signal)
{
    (void)signal;
    CHECK(!"a fault was passed on that was none");
}

static size_t number_at(const char *memory, size_t page, size_t own)
{
    size_t number;
    memcpy(&number, memory + pages(page) + own * 8, sizeof number);
    return number;
}

static char again[sizeof copy];

static void take_and_release_while_others_store(void)
{
    pthread_t threads[STORERS];
    CHECK(signal(SIGSEGV, never_called) != SIG_ERR);
    map_pages(&region, PAGES);
    atomic_store(&stop, false);
    for (size_t i = 0; i < STORERS; i++)
        CHECK(pthread_create(&threads[i], NULL, count_up, (void *)i) == 0);
    for (int round = 0; round < (UNDER_TSAN ? 200 : 2000); round++) {
        CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
        CHECK(mmk_snapshot_read(&snapshot, 0, copy, pages(PAGES), &fault) == 0);
        CHECK(mmk_snapshot_read(&snapshot, 0, again, pages(PAGES), &fault) == 0);
        CHECK(memcmp(copy, again, pages(PAGES)) == 0);
        for (size_t i = 0; i < STORERS; i++) {
            size_t first = number_at(copy, i, i), second = number_at(copy, PAGES - 1 - i, i);
            CHECK(first == second || first == second + 1);
        }
        mmk_snapshot_release(&snapshot);
    }
    atomic_store(&stop, true);
    for (size_t i = 0; i < STORERS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(number_at(region.base, i, i) == counters[i] && number_at(region.base, PAGES - 1 - i, i) == counters[i]);
    }
    mmk_region_dispose(&region);
}

TEST(it_is_one_instant_for_all_threads_and_nobody_dies_or_loses_a_store_as_they_come_and_go)
{
    in_child(take_and_release_while_others_store);
}

static void protect_while_others_store(void)
{
    pthread_t threads[STORERS];
    CHECK(signal(SIGSEGV, never_called) != SIG_ERR);
    map_pages(&region, PAGES);
    atomic_store(&stop, false);
    for (size_t i = 0; i < STORERS; i++)
        CHECK(pthread_create(&threads[i], NULL, count_up, (void *)i) == 0);
    for (int round = 0; round < (UNDER_TSAN ? 50 : 500); round++) {
        CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
        CHECK(mmk_snapshot_read(&snapshot, 0, copy, pages(PAGES), &fault) == 0);
        for (int turn = 0; turn < 4; turn++)
            CHECK(mmk_region_protect(&region, 0, pages(PAGES), turn % 2 ? RW : RW | PROT_EXEC, false) == 0);
        CHECK(mmk_snapshot_read(&snapshot, 0, again, pages(PAGES), &fault) == 0);
        CHECK(memcmp(copy, again, pages(PAGES)) == 0);
        mmk_snapshot_release(&snapshot);
    }
    atomic_store(&stop, true);
    for (size_t i = 0; i < STORERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    mmk_region_dispose(&region);
}

TEST(protections_change_while_pages_are_kept_and_no_write_goes_by_unseen)
{
    in_child(protect_while_others_store);
}

static void *populate_all(void *unused)
{
    (void)pthread_barrier_wait(&together);
    snapshot_is_numbered();
    int error = mmk_region_populate(&region, 0, pages(PAGES), true);
    CHECK(error == 0 || error == -EINVAL);
    return unused;
}

TEST(populating_and_storing_meet_on_every_page)
{
    CHECK(pthread_barrier_init(&together, NULL, 2) == 0);
    for (int round = 0; round < 50; round++) {
        pthread_t storer, populater;
        open_scene();
        CHECK(pthread_create(&storer, NULL, store_on_every_page, (void *)1) == 0);
        CHECK(pthread_create(&populater, NULL, populate_all, NULL) == 0);
        CHECK(pthread_join(storer, NULL) == 0 && pthread_join(populater, NULL) == 0);
        CHECK(snapshot_is_numbered() && dirty_bytes() == pages(PAGES));
        close_scene();
    }
}

/* ---- protections, guards, and what the kernel writes ---- */

TEST(what_the_region_forbids_stays_forbidden)
{
    open_scene();
    CHECK(mmk_region_protect(&region, pages(2), pages(1), PROT_READ, false) == 0);
    CHECK(mmk_guarded_copy(region.base + pages(2), "x", 1, &fault) == -EFAULT && dirty_bytes() == 0);
    store(region.base + pages(3), 'x');
    CHECK(mmk_region_protect(&region, pages(3), pages(1), PROT_READ, false) == 0);
    CHECK(mmk_guarded_copy(region.base + pages(3), "y", 1, &fault) == -EFAULT && region.base[pages(3)] == 'x');
    CHECK(mmk_region_protect(&region, 0, pages(PAGES), RW, false) == 0);
    store(region.base + pages(2), 'x');
    store(region.base + pages(3), 'y');
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(2));
    close_scene();
}

TEST(a_read_only_part_becomes_writable_through_the_snapshot_only)
{
    mmk_cover cover;
    map_pages(&region, PAGES);
    number_pages(&region);
    CHECK(mmk_region_protect(&region, 0, pages(8), PROT_READ, false) == 0);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
    CHECK(mmk_region_cover(&region, &cover, pages(4), pages(8), RW, false) == 0);
    memset(region.base + pages(4), 'x', pages(8));
    CHECK(snapshot_is_numbered());
    CHECK(mmk_region_uncover(&region, &cover, false) == 0);
    CHECK(mmk_guarded_copy(region.base + pages(4), "y", 1, &fault) == -EFAULT);
    CHECK(mmk_region_protect(&region, 0, pages(8), RW, false) == 0);
    memset(region.base, 'y', pages(PAGES));
    CHECK(snapshot_is_numbered());
    close_scene();
}

TEST(a_guard_is_no_page_to_be_kept)
{
    if (UNDER_TSAN)
        SKIP("TSan blocks all signals in handlers");
    map_pages(&region, PAGES);
    number_pages(&region);
    CHECK(mmk_region_guard(&region, pages(5), pages(1), false) == 0);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
    CHECK(mmk_guarded_copy(region.base + pages(5), "x", 1, &fault) == -EFAULT && dirty_bytes() == 0);
    CHECK(mmk_region_guard(&region, pages(6), pages(1), true) == -MMK_EPINNED);
    CHECK(mmk_region_unguard(&region, pages(5), pages(1)) == 0);
    store(region.base + pages(5), 'x');
    CHECK(mmk_snapshot_read(&snapshot, pages(5), copy, pages(1), &fault) == 0 && all_bytes_are(copy, pages(1), 0));
    close_scene();
}

/* An OPEN page that faults for another reason must not be tried for ever. */
TEST(a_page_that_was_kept_and_is_protected_behind_its_back_faults)
{
    open_scene();
    store(region.base + pages(5), 'x');
    if (mmk_sys_madvise(region.base + pages(5), pages(1), 102 /* MADV_GUARD_INSTALL */) == 0)
        CHECK(mmk_guarded_copy(region.base + pages(5), "y", 1, &fault) == -EFAULT);
    close_scene();
}

TEST(system_calls_write_where_a_page_was_populated_for_writing)
{
    int ends[2];
    open_scene();
    CHECK(pipe(ends) == 0 && write(ends[1], "hello", 5) == 5);
    CHECK(read(ends[0], region.base + pages(8), 5) == -1 && errno == EFAULT);
    int error = mmk_region_populate(&region, pages(8), pages(1), true);
    CHECK(error == 0 || error == -EINVAL); /* before Linux 5.14 */
    CHECK(read(ends[0], region.base + pages(8), 5) == 5 && memcmp(region.base + pages(8), "hello", 5) == 0);
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(1) && atomic_load(&snapshot.fault_count) == 0);
    close(ends[0]), close(ends[1]);
    close_scene();
}

TEST(what_would_lose_contents_unseen_is_refused_by_force_too)
{
    mmk_range vacated;
    open_scene();
    CHECK(mmk_region_close(&region) == -MMK_EPINNED);
    CHECK(mmk_region_discard(&region, 0, pages(1), true) == -MMK_EPINNED);
    CHECK(mmk_region_punch(&region, 0, pages(1), true, &fault) == -MMK_EPINNED);
    CHECK(mmk_region_guard(&region, 0, pages(1), true) == -MMK_EPINNED);
    CHECK(mmk_region_resize(&region, pages(1), &vacated) == -MMK_EPINNED);
    CHECK(mmk_region_seal(&region) == -MMK_EPINNED);
    CHECK(mmk_region_set_fault_hook(&region, NULL) == -EBUSY);
    CHECK(snapshot_is_numbered());
    close_scene();
}

TEST(a_region_grows_where_it_is_under_a_snapshot)
{
    mmk_range vacated;
    mmk_request request = anonymous(pages(PAGES), RW);
    request.reserve = pages(2 * PAGES);
    map(&region, request);
    number_pages(&region);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
    CHECK(mmk_region_resize(&region, pages(2 * PAGES), &vacated) == 0);
    memset(region.base, 'x', pages(2 * PAGES));
    CHECK(mmk_region_protect(&region, 0, pages(2 * PAGES), PROT_READ, false) == 0);
    CHECK(mmk_region_protect(&region, 0, pages(2 * PAGES), RW, false) == 0);
    memset(region.base, 'y', pages(2 * PAGES));
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(PAGES));
    close_scene();
}

TEST(what_cannot_have_one_is_told_so)
{
    mmk_snapshot other;
    map(&region, shared_anonymous(pages(1)));
    CHECK(mmk_snapshot_take(&snapshot, &region) == -MMK_EUNSUPPORTED);
    mmk_region_dispose(&region);
    CHECK(mmk_snapshot_take(&snapshot, &region) == -MMK_ECLOSED);
    mmk_snapshot_release(&snapshot);
    int fd = memory_file(pages(1));
    map(&region, file(fd, pages(1), MAP_PRIVATE));
    CHECK(mmk_snapshot_take(&snapshot, &region) == -MMK_EUNSUPPORTED);
    mmk_region_dispose(&region);
    close(fd);
    open_scene();
    CHECK(mmk_snapshot_take(&other, &region) == -EBUSY);
    mmk_snapshot_release(&other);
    CHECK(mmk_snapshot_read(&other, 0, copy, 0, &fault) == -MMK_ECLOSED && snapshot_is_numbered());
    close_scene();
}

/* ---- fork ---- */

static void go_on_in_the_child(void)
{
    CHECK(snapshot_is_numbered());
    memset(region.base, 'c', pages(PAGES));
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(PAGES));
    CHECK(mmk_snapshot_restore(&snapshot, &fault) == 0 && pages_are_numbered(region.base, PAGES));
    close_scene();
}

TEST(parent_and_child_go_on_each_by_itself)
{
    open_scene();
    store(region.base + pages(1), 'x');
    in_child(go_on_in_the_child);
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(1) && region.base[pages(1)] == 'x');
    close_scene();
}

static void *store_numbers_all_the_time(void *unused)
{
    while (!atomic_load(&stop)) {
        size_t offset, length;
        CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
        for (size_t page = 0; page < PAGES; page++)
            memset(region.base + pages(page), 'x', pages(1));
        offset = 0;
        CHECK(mmk_snapshot_next_dirty(&snapshot, &offset, &length) == 1 && length == pages(PAGES));
        CHECK(mmk_snapshot_restore(&snapshot, &fault) == 0);
        mmk_snapshot_release(&snapshot);
    }
    return unused;
}

/* The child is forked at any instant of the above: if it has a snapshot, that is whole. */
static void look_at_what_was_forked(void)
{
    if (atomic_load(&region.snapshot)) {
        CHECK(snapshot_is_numbered());
        memset(region.base, 'c', pages(PAGES));
        CHECK(snapshot_is_numbered());
        mmk_snapshot_release(&snapshot);
    }
    memset(region.base, 'd', pages(PAGES));
}

TEST(a_child_forked_while_a_thread_keeps_a_page_has_a_whole_snapshot)
{
    pthread_t thread;
    if (UNDER_TSAN)
        SKIP("TSan does not follow a fork beside threads");
    map_pages(&region, PAGES);
    number_pages(&region);
    atomic_store(&stop, false);
    CHECK(pthread_create(&thread, NULL, store_numbers_all_the_time, NULL) == 0);
    for (int round = 0; round < 200; round++)
        in_child(look_at_what_was_forked);
    atomic_store(&stop, true);
    CHECK(pthread_join(thread, NULL) == 0);
    mmk_region_dispose(&region);
}

static void child_without_the_region(void)
{
    CHECK(mmk_region_is_closed(&region));
    CHECK(mmk_snapshot_read(&snapshot, 0, copy, 1, &fault) == -MMK_ECLOSED);
    mmk_snapshot_release(&snapshot);
    mmk_region_dispose(&region);
}

TEST(a_child_that_has_not_got_the_region_has_no_snapshot)
{
    open_scene();
    CHECK(mmk_region_advise(&region, 0, pages(PAGES), 10 /* MADV_DONTFORK */) == 0);
    in_child(child_without_the_region);
    CHECK(snapshot_is_numbered());
    close_scene();
}

/* ---- in the middle of a call ---- */

/* A writer that stands in mprotect(2), with its page kept, and whoever has to wait for it. */
static atomic_bool standing, go_on, ended;
static atomic_int writing_thread, other_thread;

static int stand_still(const struct seccomp_data *call)
{
    if (call->args[0] - (uintptr_t)region.base >= pages(PAGES))
        return 0;
    atomic_store(&standing, true);
    while (!atomic_load(&go_on))
        sched_yield();
    return 0;
}

static const long mprotect_only[4] = {SYS_mprotect, SYS_mprotect, SYS_mprotect, SYS_mprotect};

static void *write_and_stand_still(void *how)
{
    atomic_store(&writing_thread, gettid());
    watch_calls(stand_still, mprotect_only);
    atomic_store(&watched.armed, true);
    (*(void (**)(void))how)();
    atomic_store(&watched.armed, false);
    return NULL;
}

static void *have_to_wait(void *how)
{
    atomic_store(&other_thread, gettid());
    (*(void (**)(void))how)();
    atomic_store(&ended, true);
    return NULL;
}

static void check_that_it_waits(void writing(void), void other(void))
{
    pthread_t writer, waiter;
    open_scene();
    CHECK(pthread_create(&writer, NULL, write_and_stand_still, &writing) == 0);
    while (!atomic_load(&standing))
        sched_yield();
    CHECK(pthread_create(&waiter, NULL, have_to_wait, &other) == 0);
    while (!atomic_load(&ended) && !(atomic_load(&other_thread) && is_asleep(atomic_load(&other_thread))))
        sched_yield();
    CHECK(!atomic_load(&ended));
    atomic_store(&go_on, true);
    CHECK(pthread_join(writer, NULL) == 0 && pthread_join(waiter, NULL) == 0);
}

static void store_into_page_5(void)
{
    store(region.base + pages(5), 'x');
}

static void populate_page_5(void)
{
    int error = mmk_region_populate(&region, pages(5), pages(1), true);
    CHECK(error == 0 || error == -EINVAL);
}

static void forbid_writing(void)
{
    CHECK(mmk_region_protect(&region, 0, pages(PAGES), PROT_READ, true) == 0);
}

static void release(void)
{
    mmk_snapshot_release(&snapshot);
}

static void protect_in_the_middle(void)
{
    check_that_it_waits(populate_page_5, forbid_writing);
    CHECK(!can_write(region.base + pages(5)));
}

static void release_in_the_middle_of_a_store(void)
{
    check_that_it_waits(store_into_page_5, release);
    CHECK(region.base[pages(5)] == 'x');
}

static void release_in_the_middle_of_populating(void)
{
    check_that_it_waits(populate_page_5, release);
}

TEST(who_protects_or_releases_waits_for_pages_that_are_just_being_opened)
{
    in_child(protect_in_the_middle);
    in_child(release_in_the_middle_of_a_store);
    in_child(release_in_the_middle_of_populating);
}

/* proc_pid_status(5) */
static bool blocks(int thread, int signal)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", thread);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = read(fd, text, sizeof text - 1);
    CHECK(got > 0);
    text[got] = 0;
    close(fd);
    const char *mask = strstr(text, "SigBlk:");
    CHECK(mask);
    return strtoull(mask + strlen("SigBlk:"), NULL, 16) >> (signal - 1) & 1;
}

static atomic_bool handled;

static void store_into_the_same_page(int signal)
{
    (void)signal;
    store(region.base + pages(5) + 1, 'h');
    atomic_store(&handled, true);
}

static void signal_in_the_middle(void)
{
    pthread_t writer;
    void (*writing)(void) = store_into_page_5;
    CHECK(signal(SIGUSR1, store_into_the_same_page) != SIG_ERR);
    open_scene();
    CHECK(pthread_create(&writer, NULL, write_and_stand_still, &writing) == 0);
    while (!atomic_load(&standing))
        sched_yield();
    CHECK(blocks(atomic_load(&writing_thread), SIGUSR1));
    CHECK(pthread_kill(writer, SIGUSR1) == 0);
    atomic_store(&go_on, true);
    CHECK(pthread_join(writer, NULL) == 0 && atomic_load(&handled));
    CHECK(region.base[pages(5)] == 'x' && region.base[pages(5) + 1] == 'h' && snapshot_is_numbered());
}

TEST(a_signal_handler_that_writes_where_a_page_is_just_being_kept_does_not_wait_for_itself)
{
    if (UNDER_TSAN)
        SKIP("TSan puts handlers off");
    in_child(signal_in_the_middle);
}

/* In front of mmkit's handler: it has the fault until it is let go. */
static struct sigaction behind;

static void delay(int signal, siginfo_t *info, void *context)
{
    atomic_store(&standing, true);
    while (!atomic_load(&go_on))
        ;
    behind.sa_sigaction(signal, info, context);
}

static void *store_in_a_thread(void *unused)
{
    store_into_page_5();
    return unused;
}

static void open_a_page_during_a_fault(void)
{
    struct sigaction in_front = {.sa_sigaction = delay, .sa_flags = SA_SIGINFO};
    pthread_t writer;
    CHECK(signal(SIGSEGV, never_called) != SIG_ERR);
    open_scene();
    CHECK(sigaction(SIGSEGV, &in_front, &behind) == 0);
    CHECK(pthread_create(&writer, NULL, store_in_a_thread, NULL) == 0);
    while (!atomic_load(&standing))
        sched_yield();
    populate_page_5();
    atomic_store(&go_on, true);
    CHECK(pthread_join(writer, NULL) == 0 && region.base[pages(5)] == 'x' && snapshot_is_numbered());
}

TEST(a_fault_that_arrives_after_its_page_was_opened_is_none)
{
    in_child(open_a_page_during_a_fault);
}

static int store_meanwhile(const struct seccomp_data *call)
{
    if (call->args[2] == PROT_READ)
        store_into_page_5();
    return 0;
}

static void write_while_all_is_protected_anew(void)
{
    open_scene();
    watch_calls(store_meanwhile, mprotect_only);
    atomic_store(&watched.armed, true);
    CHECK(mmk_region_protect(&region, 0, pages(PAGES), RW, false) == 0);
    atomic_store(&watched.armed, false);
    CHECK(can_write(region.base + pages(5)) && !can_write(region.base + pages(6)));
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(1));
    close_scene();
}

TEST(a_page_that_is_opened_while_all_are_protected_anew_is_open_for_the_kernel_too)
{
    in_child(write_while_all_is_protected_anew);
}

static mmk_region window;

static mmk_fault_answer write_and_allow(mmk_region *where, uintptr_t address, bool write)
{
    (void)address, (void)write;
    memset(region.base + pages(5), 'x', pages(1));
    return mmk_sys_mprotect(where->base, pages(2), RW) == 0 ? MMK_FAULT_RETRY : MMK_FAULT_PASS_ON;
}

TEST(a_page_that_is_written_to_while_it_is_read_is_read_as_it_was)
{
    if (UNDER_TSAN)
        SKIP("TSan blocks all signals in handlers");
    open_scene();
    map_pages(&window, 2);
    CHECK(mmk_region_set_fault_hook(&window, write_and_allow) == 0);
    CHECK(mmk_sys_mprotect(window.base + pages(1), pages(1), PROT_READ) == 0);
    char *into = window.base + pages(1) / 2;
    CHECK(mmk_snapshot_read(&snapshot, pages(5), into, pages(1), &fault) == 0);
    CHECK(all_bytes_are(into, pages(1), 6) && all_bytes_are(region.base + pages(5), pages(1), 'x'));
    mmk_region_dispose(&window);
    close_scene();
}

/* ---- a kernel that refuses ---- */

static size_t allowed_first, allowed_end, refused;

/* All but one range: as at vm.max_map_count, where moving the border between two areas needs none, and splitting one
 * does. */
static int refuse_to_split(const struct seccomp_data *call)
{
    size_t first = (call->args[0] - (uintptr_t)region.base) / mmk_page_size(), count = call->args[1] / mmk_page_size();
    if (first >= PAGES || (first == allowed_first && first + count == allowed_end))
        return 0;
    refused++;
    return ENOMEM;
}

static void store_where_only_this_may_be_opened(size_t page, size_t first, size_t end)
{
    allowed_first = first, allowed_end = end;
    atomic_store(&watched.armed, true);
    store(region.base + pages(page), 'x');
    atomic_store(&watched.armed, false);
    CHECK(snapshot_is_numbered());
}

static void store_at_the_limit(void)
{
    open_scene();
    store(region.base + pages(40), 'x');
    watch_calls(refuse_to_split, mprotect_only);
    store_where_only_this_may_be_opened(30, 30, 40);
    CHECK(refused == 1 && dirty_bytes() == pages(11));
    store_where_only_this_may_be_opened(50, 50, PAGES);
    CHECK(refused == 2 && dirty_bytes() == pages(25));
    store_where_only_this_may_be_opened(20, 0, 30);
    CHECK(refused == 4 && dirty_bytes() == pages(55));
    close_scene();
}

TEST(where_the_process_has_too_many_areas_pages_around_are_kept_as_well)
{
    if (UNDER_TSAN)
        SKIP("TSan puts handlers off");
    in_child(store_at_the_limit);
}

static int refuse_protecting(const struct seccomp_data *call)
{
    return call->args[2] == PROT_READ ? ENOMEM : 0;
}

static void take_where_it_is_refused(void)
{
    map_pages(&region, PAGES);
    number_pages(&region);
    watch_calls(refuse_protecting, mprotect_only);
    atomic_store(&watched.armed, true);
    CHECK(mmk_snapshot_take(&snapshot, &region) == -ENOMEM);
    atomic_store(&watched.armed, false);
    CHECK(!atomic_load(&region.snapshot) && !atomic_load(&region.hook));
    CHECK(bytes_with(region.base, pages(PAGES), "rw-p") == pages(PAGES));
    mmk_snapshot_release(&snapshot);
    CHECK(mmk_region_close(&region) == 0);
}

TEST(a_snapshot_that_is_refused_changes_nothing)
{
    in_child(take_where_it_is_refused);
}

int main(void)
{
    RUN(a_snapshot_stays_while_the_region_is_written_to);
    RUN(part_of_it_is_read_whatever_was_written);
    RUN(every_first_write_is_noted_once_in_order);
    RUN(restoring_brings_every_page_back);
    RUN(after_its_release_nothing_is_caught_and_everything_writable);
    RUN(reading_costs_nothing_and_writing_once_a_page);
    RUN(each_page_is_kept_as_it_was_before_the_first_store_whoever_stores);
    RUN(it_is_one_instant_for_all_threads_and_nobody_dies_or_loses_a_store_as_they_come_and_go);
    RUN(protections_change_while_pages_are_kept_and_no_write_goes_by_unseen);
    RUN(populating_and_storing_meet_on_every_page);
    RUN(what_the_region_forbids_stays_forbidden);
    RUN(a_read_only_part_becomes_writable_through_the_snapshot_only);
    RUN(a_guard_is_no_page_to_be_kept);
    RUN(a_page_that_was_kept_and_is_protected_behind_its_back_faults);
    RUN(system_calls_write_where_a_page_was_populated_for_writing);
    RUN(what_would_lose_contents_unseen_is_refused_by_force_too);
    RUN(a_region_grows_where_it_is_under_a_snapshot);
    RUN(what_cannot_have_one_is_told_so);
    RUN(parent_and_child_go_on_each_by_itself);
    RUN(a_child_forked_while_a_thread_keeps_a_page_has_a_whole_snapshot);
    RUN(a_child_that_has_not_got_the_region_has_no_snapshot);
    RUN(who_protects_or_releases_waits_for_pages_that_are_just_being_opened);
    RUN(a_signal_handler_that_writes_where_a_page_is_just_being_kept_does_not_wait_for_itself);
    RUN(a_fault_that_arrives_after_its_page_was_opened_is_none);
    RUN(a_page_that_is_opened_while_all_are_protected_anew_is_open_for_the_kernel_too);
    RUN(a_page_that_is_written_to_while_it_is_read_is_read_as_it_was);
    RUN(where_the_process_has_too_many_areas_pages_around_are_kept_as_well);
    RUN(a_snapshot_that_is_refused_changes_nothing);
    return 0;
}
