#include <mmkit/advice.h>
#include <mmkit/fault.h>
#include <mmkit/protect.h>

#include "held_up.h"
#include "snapshot_scene.h"

/* ---- races that are staged ---- */

/* A writer that stands in mprotect(2), with its page kept. */
static int stand_still_in_the_region(const struct seccomp_data *call)
{
    if (call->args[0] - (uintptr_t)region.base < pages(PAGES))
        stand_still();
    return 0;
}

static atomic_int writing_thread;

static void *write_and_stand_still(void *how)
{
    atomic_store(&writing_thread, gettid());
    watch_mprotect(stand_still_in_the_region);
    atomic_store(&watched.armed, true);
    (*(void (**)(void))how)();
    atomic_store(&watched.armed, false);
    return NULL;
}

static void check_that_it_waits(void writing(void), void other(void))
{
    open_scene();
    pthread_t writer = start_and_hold(write_and_stand_still, &writing);
    CHECK(start_waiting(other));
    let_go_on(writer);
    join_waiting();
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
    void (*writing)(void) = store_into_page_5;
    CHECK(signal(SIGUSR1, store_into_the_same_page) != SIG_ERR);
    open_scene();
    pthread_t writer = start_and_hold(write_and_stand_still, &writing);
    CHECK(blocks(atomic_load(&writing_thread), SIGUSR1));
    CHECK(pthread_kill(writer, SIGUSR1) == 0);
    let_go_on(writer);
    CHECK(atomic_load(&handled));
    CHECK(region.base[pages(5)] == 'x' && region.base[pages(5) + 1] == 'h' && snapshot_is_numbered());
}

TEST(a_signal_handler_that_writes_where_a_page_is_just_being_kept_does_not_wait_for_itself)
{
    if (UNDER_TSAN)
        SKIP("TSan puts handlers off");
    in_child(signal_in_the_middle);
}

/* A first fault that nobody mends is tried again whatever was counted: this thread has had its own. */
static void *fault_and_store(void *unused)
{
    char byte;
    CHECK(mmk_guarded_copy(&byte, NULL, 1, &fault) == -EFAULT);
    hold_faults();
    store_into_page_5();
    return unused;
}

static void open_a_page_during_a_fault(void)
{
    let_no_fault_be_passed_on();
    open_scene();
    pthread_t writer = start_and_hold(fault_and_store, NULL);
    populate_page_5();
    let_go_on(writer);
    CHECK(region.base[pages(5)] == 'x' && snapshot_is_numbered());
}

TEST(a_fault_that_arrives_after_its_page_was_opened_is_none)
{
    in_child(open_a_page_during_a_fault);
}

/* The page of the copy itself cannot be written at first. */
static mmk_fault_answer stand_still_and_allow(mmk_region *kept, uintptr_t address, bool write)
{
    (void)address, (void)write;
    stand_still();
    return mmk_sys_mprotect(kept->base + pages(5), pages(1), RW) == 0 ? MMK_FAULT_RETRY : MMK_FAULT_PASS_ON;
}

static void *populate_in_a_thread(void *unused)
{
    populate_page_5();
    return unused;
}

static pthread_t hold_who_copies(void)
{
    open_scene();
    CHECK(mmk_region_set_fault_hook(&snapshot.kept, stand_still_and_allow) == 0);
    CHECK(mmk_sys_mprotect(snapshot.kept.base + pages(5), pages(1), PROT_NONE) == 0);
    return start_and_hold(populate_in_a_thread, NULL);
}

static void store_in_the_middle_of_a_copy(void)
{
    let_no_fault_be_passed_on();
    pthread_t writer = hold_who_copies();
    CHECK(start_waiting(store_into_page_5));
    let_go_on(writer);
    join_waiting();
    CHECK(region.base[pages(5)] == 'x' && snapshot_is_numbered());
    close_scene();
}

TEST(who_writes_to_a_page_that_is_just_being_copied_waits_until_it_is_kept)
{
    in_child(store_in_the_middle_of_a_copy);
}

/* ---- while one is taken ---- */

static void store_by_an_old_fault(void)
{
    char byte;
    CHECK(mmk_guarded_copy(&byte, NULL, 1, &fault) == -EFAULT);
    hold_faults();
    store_into_page_5();
}

static atomic_bool judged;

static bool is_first_to_protect(const struct seccomp_data *call, size_t page)
{
    bool protects = call->args[0] - (uintptr_t)region.base == pages(page) && call->args[2] == PROT_READ;
    return protects && !atomic_exchange(&judged, true);
}

static void take_anew(call_judge *meanwhile)
{
    watch_mprotect(meanwhile);
    atomic_store(&watched.armed, true);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
    atomic_store(&watched.armed, false);
    CHECK(atomic_load(&judged));
    join_waiting();
    CHECK(mmk_snapshot_read(&snapshot, 0, copy, pages(PAGES), &fault) == 0);
}

/* No page is protected any more, or yet. */
static int let_the_fault_go_on(const struct seccomp_data *call)
{
    if (!is_first_to_protect(call, 0))
        return 0;
    atomic_store(&go_on, true);
    while (still_waits())
        sched_yield();
    store(region.base + pages(6), 'y');
    return 0;
}

static void take_after_a_fault(void)
{
    let_no_fault_be_passed_on();
    open_scene();
    waiting.act = store_by_an_old_fault;
    waiting.thread = start_and_hold(act_and_end, NULL);
    release();
    take_anew(let_the_fault_go_on);
    CHECK(copy[pages(5)] == 'x' && copy[pages(6)] == 'y');
}

/* Page 5 is protected already. */
static int store_before_the_rest_is_protected(const struct seccomp_data *call)
{
    if (!is_first_to_protect(call, 11))
        return 0;
    CHECK(start_waiting(store_into_page_5));
    store(region.base + pages(20), 'y');
    return 0;
}

static void take_with_two_protections(void)
{
    let_no_fault_be_passed_on();
    map_numbered_pages();
    CHECK(mmk_region_protect(&region, pages(10), pages(1), PROT_READ, true) == 0);
    take_anew(store_before_the_rest_is_protected);
    /* Else whoever waits for readers would wait for what a handler does. */
    CHECK(atomic_load(&waiting.is_deaf));
    CHECK(region.base[pages(5)] == 'x' && copy[pages(5)] == 6 && copy[pages(20)] == 'y');
}

static int populate_meanwhile(const struct seccomp_data *call)
{
    if (is_first_to_protect(call, 0))
        CHECK(start_waiting(populate_page_5));
    return 0;
}

static void take_before_populating(void)
{
    map_numbered_pages();
    take_anew(populate_meanwhile);
    CHECK(pages_are_numbered(copy, PAGES) && dirty_bytes() == pages(1));
}

TEST(no_page_is_kept_while_others_can_still_be_written_to)
{
    in_child(take_after_a_fault);
    in_child(take_with_two_protections);
    in_child(take_before_populating);
}

static int ask_with_a_signal(const struct seccomp_data *call)
{
    if (is_first_to_protect(call, 0))
        CHECK(kill(getpid(), SIGUSR1) == 0);
    return 0;
}

static void take_with_a_signal(void)
{
    CHECK(signal(SIGUSR1, store_into_the_same_page) != SIG_ERR);
    map_numbered_pages();
    /* The judge's thread has it blocked as well: it can come to this one only. */
    sigset_t ours, before;
    sigemptyset(&ours);
    sigaddset(&ours, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &ours, &before) == 0);
    watch_mprotect(ask_with_a_signal);
    CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
    atomic_store(&watched.armed, true);
    CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
    atomic_store(&watched.armed, false);
    CHECK(atomic_load(&handled) && snapshot_is_numbered() && dirty_bytes() == pages(1));
}

TEST(a_signal_handler_that_writes_while_its_thread_takes_a_snapshot_does_not_wait_for_it)
{
    if (UNDER_TSAN)
        SKIP("TSan puts handlers off");
    in_child(take_with_a_signal);
}

/* ---- while protections change, and others read ---- */

static int store_meanwhile(const struct seccomp_data *call)
{
    if (call->args[2] == PROT_READ)
        store_into_page_5();
    return 0;
}

static void write_while_all_is_protected_anew(void)
{
    open_scene();
    watch_mprotect(store_meanwhile);
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

static void look_at_what_was_forked(void)
{
    CHECK(snapshot_is_numbered());
    memset(region.base, 'c', pages(PAGES));
    CHECK(snapshot_is_numbered());
    mmk_snapshot_release(&snapshot);
    memset(region.base, 'd', pages(PAGES));
}

/* What the thread had begun, that the child has not, is the child's to do: it meets the hook, too. */
static void do_what_was_begun(void)
{
    atomic_store(&go_on, true);
    look_at_what_was_forked();
}

static void fork_while_a_page_is_copied(void)
{
    pthread_t writer = hold_who_copies();
    in_child(do_what_was_begun);
    let_go_on(writer);
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(1));
}

static void fork_while_a_page_is_opened(void)
{
    void (*writing)(void) = populate_page_5;
    open_scene();
    pthread_t writer = start_and_hold(write_and_stand_still, &writing);
    in_child(do_what_was_begun);
    let_go_on(writer);
    CHECK(snapshot_is_numbered() && dirty_bytes() == pages(1));
}

TEST(a_child_does_not_wait_for_threads_that_were_keeping_pages_in_its_parent)
{
    if (UNDER_TSAN)
        SKIP("TSan does not follow a fork beside threads");
    in_child(fork_while_a_page_is_copied);
    in_child(fork_while_a_page_is_opened);
}

/* ---- threads that meet where they like ---- */

TEST(each_page_is_kept_as_it_was_before_the_first_store_whoever_stores)
{
    for (int round = 0; round < 50; round++) {
        open_scene();
        begin_storing_on_every_page(region.base);
        CHECK(snapshot_is_numbered());
        end_storing_on_every_page();
        CHECK(snapshot_is_numbered() && dirty_bytes() == pages(PAGES));
        CHECK(atomic_load(&snapshot.fault_count) == PAGES);
        close_scene();
    }
}

static char again[sizeof copy];

static void read_into(char *into)
{
    CHECK(mmk_snapshot_read(&snapshot, 0, into, pages(PAGES), &fault) == 0);
}

static void take_and_release_while_others_store(void)
{
    let_no_fault_be_passed_on();
    map_pages(&region, PAGES);
    begin_counting(region.base);
    for (int round = 0; round < (UNDER_TSAN ? 200 : 2000); round++) {
        CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
        read_into(copy);
        read_into(again);
        CHECK(memcmp(copy, again, pages(PAGES)) == 0);
        for (size_t i = 0; i < STORERS; i++) {
            size_t first = number_at(first_place(copy, i)), second = number_at(second_place(copy, i));
            CHECK(first == second || first == second + 1);
        }
        mmk_snapshot_release(&snapshot);
    }
    end_counting();
    mmk_region_dispose(&region);
}

TEST(it_is_one_instant_for_all_threads_and_nobody_dies_or_loses_a_store_as_they_come_and_go)
{
    in_child(take_and_release_while_others_store);
}

static void protect_while_others_store(void)
{
    let_no_fault_be_passed_on();
    map_pages(&region, PAGES);
    begin_counting(region.base);
    for (int round = 0; round < (UNDER_TSAN ? 50 : 500); round++) {
        CHECK(mmk_snapshot_take(&snapshot, &region) == 0);
        read_into(copy);
        for (int turn = 0; turn < 4; turn++)
            CHECK(mmk_region_protect(&region, 0, pages(PAGES), turn % 2 ? RW : RW | PROT_EXEC, false) == 0);
        read_into(again);
        CHECK(memcmp(copy, again, pages(PAGES)) == 0);
        mmk_snapshot_release(&snapshot);
    }
    end_counting();
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
        stored_to = region.base;
        CHECK(pthread_create(&storer, NULL, store_on_every_page, (void *)1) == 0);
        CHECK(pthread_create(&populater, NULL, populate_all, NULL) == 0);
        CHECK(pthread_join(storer, NULL) == 0 && pthread_join(populater, NULL) == 0);
        CHECK(snapshot_is_numbered() && dirty_bytes() == pages(PAGES));
        close_scene();
    }
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

/* At any instant of the above: if the child has a snapshot, that is whole. */
static void look_whether_there_is_one(void)
{
    if (atomic_load(&region.snapshot))
        look_at_what_was_forked();
    else
        memset(region.base, 'd', pages(PAGES));
}

TEST(a_child_forked_while_a_thread_keeps_a_page_has_a_whole_snapshot)
{
    pthread_t thread;
    if (UNDER_TSAN)
        SKIP("TSan does not follow a fork beside threads");
    map_numbered_pages();
    atomic_store(&stop, false);
    CHECK(pthread_create(&thread, NULL, store_numbers_all_the_time, NULL) == 0);
    for (int round = 0; round < 200; round++)
        in_child(look_whether_there_is_one);
    atomic_store(&stop, true);
    CHECK(pthread_join(thread, NULL) == 0);
    mmk_region_dispose(&region);
}

int main(void)
{
    RUN(who_protects_or_releases_waits_for_pages_that_are_just_being_opened);
    RUN(a_signal_handler_that_writes_where_a_page_is_just_being_kept_does_not_wait_for_itself);
    RUN(a_fault_that_arrives_after_its_page_was_opened_is_none);
    RUN(who_writes_to_a_page_that_is_just_being_copied_waits_until_it_is_kept);
    RUN(no_page_is_kept_while_others_can_still_be_written_to);
    RUN(a_signal_handler_that_writes_while_its_thread_takes_a_snapshot_does_not_wait_for_it);
    RUN(a_page_that_is_opened_while_all_are_protected_anew_is_open_for_the_kernel_too);
    RUN(a_page_that_is_written_to_while_it_is_read_is_read_as_it_was);
    RUN(a_child_does_not_wait_for_threads_that_were_keeping_pages_in_its_parent);
    RUN(each_page_is_kept_as_it_was_before_the_first_store_whoever_stores);
    RUN(it_is_one_instant_for_all_threads_and_nobody_dies_or_loses_a_store_as_they_come_and_go);
    RUN(protections_change_while_pages_are_kept_and_no_write_goes_by_unseen);
    RUN(populating_and_storing_meet_on_every_page);
    RUN(a_child_forked_while_a_thread_keeps_a_page_has_a_whole_snapshot);
    return 0;
}
