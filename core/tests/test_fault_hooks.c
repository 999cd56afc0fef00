#include <mmkit/access.h>
#include <mmkit/fault.h>
#include <mmkit/resize.h>

#include "held_up.h"
#include "storing.h"

static char load(const char *address)
{
    forget_what_memory_holds();
    char byte = *(const volatile char *)address;
    forget_what_memory_holds();
    return byte;
}

/* ---- a hook of classroom size: copy-on-write in a few lines ---- */

/* What became of each page since the region was protected. */
enum { UNTOUCHED, BEING_SAVED, SAVED };
static atomic_int page_states[PAGES];
static char *saved; /* the pages as they were; allocated beforehand: a hook may not allocate */
static size_t page_size;
static mmk_region classroom;

/* Save the page, unprotect it, and let the store go on. Of two threads that meet, one does the work. */
static mmk_fault_answer save_first(mmk_region *region, uintptr_t address, bool write)
{
    size_t page = (address - (uintptr_t)region->base) / page_size;
    char *start = region->base + page * page_size;
    int untouched = UNTOUCHED;
    mmk_fault unreadable;
    if (!write)
        return MMK_FAULT_PASS_ON;
    if (!atomic_compare_exchange_strong(&page_states[page], &untouched, BEING_SAVED)) {
        while (atomic_load(&page_states[page]) != SAVED)
            ;
        return MMK_FAULT_RETRY;
    }
    if (mmk_guarded_copy(saved + page * page_size, start, page_size, &unreadable) < 0 ||
        mmk_sys_mprotect(start, page_size, RW) < 0)
        return MMK_FAULT_PASS_ON;
    atomic_store(&page_states[page], SAVED);
    return MMK_FAULT_RETRY;
}

/* Behind the back of its bookkeeping, as a snapshot would: stores are still allowed, only late. */
static void protect_all(mmk_region *region)
{
    CHECK(mmk_sys_mprotect(region->base, mmk_region_length(region), PROT_READ) == 0);
}

static void open_classroom(void)
{
    map_pages(&classroom, PAGES);
    number_pages(&classroom);
    memset(saved, 0, pages(PAGES));
    for (int page = 0; page < PAGES; page++)
        atomic_store(&page_states[page], UNTOUCHED);
    CHECK(mmk_region_set_fault_hook(&classroom, save_first) == 0);
    protect_all(&classroom);
}

TEST(each_page_is_saved_as_it_was_before_the_first_store_whoever_stores)
{
    for (int round = 0; round < 50; round++) {
        open_classroom();
        begin_storing_on_every_page(classroom.base);
        end_storing_on_every_page();
        CHECK(pages_are_numbered(saved, PAGES));
        mmk_region_dispose(&classroom);
    }
}

TEST(a_page_that_nobody_stores_to_is_not_saved_and_reading_is_free)
{
    open_classroom();
    CHECK(pages_are_numbered(classroom.base, PAGES));
    store(classroom.base + pages(3), 'x');
    for (int page = 0; page < PAGES; page++)
        CHECK(atomic_load(&page_states[page]) == (page == 3 ? SAVED : UNTOUCHED));
    CHECK(all_bytes_are(saved, pages(3), 0) && all_bytes_are(saved + pages(3), pages(1), 4));
    mmk_region_dispose(&classroom);
}

TEST(guarded_stores_are_mended_too)
{
    char bytes[3 * 4096];
    open_classroom();
    memset(bytes, 'x', sizeof bytes);
    CHECK(mmk_access_store(&classroom, pages(1) - 1, bytes, 2, &fault) == 0);
    CHECK(mmk_guarded_copy(classroom.base + pages(5) - 100, bytes, sizeof bytes, &fault) == 0);
    CHECK(all_bytes_are(classroom.base + pages(5) - 100, sizeof bytes, 'x'));
    CHECK(all_bytes_are(saved, pages(1), 1) && all_bytes_are(saved + pages(1), pages(1), 2));
    CHECK(all_bytes_are(saved + pages(4), pages(1), 5) && all_bytes_are(saved + pages(5), pages(1), 6));
    mmk_region_dispose(&classroom);
}

/* ---- what a hook is told, and what it may do ---- */

static struct {
    int calls;
    mmk_region *region;
    uintptr_t address;
    bool write;
} told;

static void note(mmk_region *region, uintptr_t address, bool write)
{
    told.calls++;
    told.region = region;
    told.address = address;
    told.write = write;
}

static mmk_fault_answer note_and_allow_all(mmk_region *region, uintptr_t address, bool write)
{
    note(region, address, write);
    /* A hook may spoil errno: the handler keeps it. */
    errno = EDOM;
    CHECK(mmk_sys_mprotect(region->base, mmk_region_length(region), RW) == 0);
    return MMK_FAULT_RETRY;
}

static mmk_fault_answer note_and_pass_on(mmk_region *region, uintptr_t address, bool write)
{
    note(region, address, write);
    return MMK_FAULT_PASS_ON;
}

static void forbid_all(mmk_region *region)
{
    CHECK(mmk_sys_mprotect(region->base, mmk_region_length(region), PROT_NONE) == 0);
}

static bool was_told(mmk_region *region, const char *address, bool write)
{
    return told.region == region && told.address == (uintptr_t)address && told.write == write;
}

TEST(a_hook_is_told_the_region_the_address_and_whether_it_is_a_write)
{
    mmk_region one, other;
    char byte = 'x';
    map_pages(&one, 3);
    map_pages(&other, 3);
    CHECK(mmk_region_set_fault_hook(&one, note_and_allow_all) == 0);
    CHECK(mmk_region_set_fault_hook(&other, note_and_allow_all) == 0);
    forbid_all(&one);
    forbid_all(&other);
    told.calls = 0;
    store(one.base + pages(1) + 77, 'x');
    CHECK(told.calls == 1 && was_told(&one, one.base + pages(1) + 77, true));
    CHECK(load(other.base + pages(3) - 1) == 0);
    CHECK(told.calls == 2 && was_told(&other, other.base + pages(3) - 1, false));
    CHECK(one.base[pages(1) + 77] == 'x' && told.calls == 2);

    forbid_all(&one);
    CHECK(mmk_guarded_copy(one.base + 5, &byte, 1, &fault) == 0 && was_told(&one, one.base + 5, true));
    forbid_all(&one);
    CHECK(mmk_guarded_copy(&byte, one.base + 5, 1, &fault) == 0 && was_told(&one, one.base + 5, false));
    CHECK(told.calls == 4 && byte == 'x');
    mmk_region_dispose(&one);
    mmk_region_dispose(&other);
}

TEST(what_a_hook_does_to_errno_is_undone)
{
    mmk_region region;
    char byte = 'x';
    map_pages(&region, 1);
    CHECK(mmk_region_set_fault_hook(&region, note_and_allow_all) == 0);
    forbid_all(&region);
    errno = 77;
    store(region.base, 'x');
    CHECK(errno == 77);
    forbid_all(&region);
    CHECK(mmk_guarded_copy(&byte, region.base, 1, &fault) == 0 && errno == 77);
    mmk_region_dispose(&region);
}

/* Truncated files, too: SIGBUS. */
static mmk_fault_answer give_storage(mmk_region *region, uintptr_t address, bool write)
{
    note(region, address, write);
    CHECK(ftruncate(region->fd, (off_t)mmk_region_length(region)) == 0);
    return MMK_FAULT_RETRY;
}

TEST(a_hook_is_called_for_what_no_page_stands_behind)
{
    mmk_region region;
    int fd = memory_file(0);
    map(&region, file(fd, pages(2), MAP_SHARED));
    CHECK(mmk_region_set_fault_hook(&region, give_storage) == 0);
    told.calls = 0;
    store(region.base + pages(1), 'x');
    CHECK(told.calls == 1 && was_told(&region, region.base + pages(1), true) && region.base[pages(1)] == 'x');
    mmk_region_dispose(&region);
    close(fd);
}

static mmk_fault inner;
static int inner_error;
static char *hole;

static mmk_fault_answer fault_and_allow_all(mmk_region *region, uintptr_t address, bool write)
{
    char byte;
    inner_error = mmk_guarded_copy(&byte, hole + 7, 1, &inner);
    return note_and_allow_all(region, address, write);
}

TEST(a_hook_may_meet_a_fault_of_its_own)
{
    if (UNDER_TSAN)
        SKIP("TSan blocks all signals in handlers");
    mmk_region region;
    char byte = 'x';
    map_pages(&region, 1);
    CHECK(mmk_region_set_fault_hook(&region, fault_and_allow_all) == 0);
    for (int guarded = 0; guarded < 2; guarded++) {
        forbid_all(&region);
        inner_error = 0;
        if (guarded)
            CHECK(mmk_guarded_copy(region.base, &byte, 1, &fault) == 0);
        else
            store(region.base, 'x');
        CHECK(inner_error == -EFAULT && inner.address == (uintptr_t)hole + 7);
        CHECK(inner.reason == MMK_FAULT_PROTECTION && !inner.write && region.base[0] == 'x');
    }
    mmk_region_dispose(&region);
}

static mmk_region nested;

static mmk_fault_answer touch_nested_and_allow_all(mmk_region *region, uintptr_t address, bool write)
{
    mmk_fault ignored;
    inner_error = mmk_guarded_copy(nested.base, "y", 1, &ignored);
    return note_and_allow_all(region, address, write);
}

TEST(a_hook_may_touch_a_region_that_has_a_hook)
{
    if (UNDER_TSAN)
        SKIP("TSan blocks all signals in handlers");
    mmk_region region;
    map_pages(&region, 1);
    map_pages(&nested, 1);
    CHECK(mmk_region_set_fault_hook(&region, touch_nested_and_allow_all) == 0);
    CHECK(mmk_region_set_fault_hook(&nested, note_and_allow_all) == 0);
    forbid_all(&region);
    forbid_all(&nested);
    told.calls = 0;
    inner_error = 1;
    store(region.base, 'x');
    CHECK(inner_error == 0 && told.calls == 2 && nested.base[0] == 'y' && region.base[0] == 'x');
    mmk_region_dispose(&nested);
    mmk_region_dispose(&region);
}

/* ---- passing on ---- */

static siginfo_t seen_by_earlier;
static mmk_region passed_on;

static void earlier_that_mends(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    seen_by_earlier = *info;
    CHECK(mmk_sys_mprotect(passed_on.base, pages(2), RW) == 0);
}

static void pass_on_to_an_earlier_handler(void)
{
    struct sigaction earlier = {.sa_sigaction = earlier_that_mends, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSEGV, &earlier, NULL) == 0);
    map_pages(&passed_on, 2);
    CHECK(mmk_region_set_fault_hook(&passed_on, note_and_pass_on) == 0);
    forbid_all(&passed_on);
    store(passed_on.base + pages(1) + 9, 'x');
    CHECK(told.calls > 0 && was_told(&passed_on, passed_on.base + pages(1) + 9, true));
    CHECK(seen_by_earlier.si_code == SEGV_ACCERR && seen_by_earlier.si_addr == passed_on.base + pages(1) + 9);
    CHECK(passed_on.base[pages(1) + 9] == 'x');
}

TEST(what_a_hook_passes_on_goes_to_who_was_there_before)
{
    in_child(pass_on_to_an_earlier_handler);
}

TEST(what_a_hook_passes_on_is_a_fault_of_a_guarded_copy)
{
    char byte;
    map_pages(&passed_on, 2);
    CHECK(mmk_region_set_fault_hook(&passed_on, note_and_pass_on) == 0);
    forbid_all(&passed_on);
    told.calls = 0;
    CHECK(mmk_access_load(&passed_on, 5, &byte, 1, &fault) == -EFAULT && told.calls > 0);
    CHECK(fault.address == (uintptr_t)passed_on.base + 5 && fault.reason == MMK_FAULT_PROTECTION && !fault.write);
    mmk_region_dispose(&passed_on);
}

/* ---- the end of a hook ---- */

static mmk_region held;
static atomic_bool has_left, left_before_the_end;

static mmk_fault_answer stand_still_and_allow_all(mmk_region *region, uintptr_t address, bool write)
{
    stand_still();
    mmk_fault_answer answer = note_and_allow_all(region, address, write);
    atomic_store(&has_left, true);
    return answer;
}

static void *store_plainly(void *unused)
{
    store(held.base, 'x');
    return unused;
}

/* When it returns, the region may be gone. */
static void *store_guarded(void *unused)
{
    int error = mmk_guarded_copy(held.base, "x", 1, &fault);
    CHECK(error == 0 || error == -EFAULT);
    return unused;
}

/* Start a store to a region whose hook stands still. */
static pthread_t hold_hook(mmk_fault_hook *hook, void *store_in_thread(void *))
{
    map_pages(&held, 2);
    CHECK(mmk_region_set_fault_hook(&held, hook) == 0);
    forbid_all(&held);
    atomic_store(&has_left, false);
    return start_and_hold(store_in_thread, NULL);
}

static void (*end_hook)(void);

static void end_the_hook_and_look(void)
{
    end_hook();
    atomic_store(&left_before_the_end, atomic_load(&has_left));
}

static void take_hook_out(void)
{
    CHECK(mmk_region_set_fault_hook(&held, NULL) == 0);
}

static void put_another_in(void)
{
    CHECK(mmk_region_set_fault_hook(&held, note_and_allow_all) == 0);
}

static void close_region(void)
{
    CHECK(mmk_region_close(&held) == 0);
}

static void dispose_of_region(void)
{
    mmk_region_dispose(&held);
}

static void check_that_it_waits(void end(void), void *store_in_thread(void *))
{
    end_hook = end;
    pthread_t storer = hold_hook(stand_still_and_allow_all, store_in_thread);
    CHECK(start_waiting(end_the_hook_and_look));
    let_go_on(storer);
    join_waiting();
    CHECK(atomic_load(&left_before_the_end));
    mmk_region_dispose(&held);
}

TEST(taking_a_hook_out_returns_when_it_is_not_running_any_more)
{
    check_that_it_waits(take_hook_out, store_plainly);
    check_that_it_waits(put_another_in, store_plainly);
}

TEST(closing_and_disposing_return_when_the_hook_is_not_running_any_more)
{
    check_that_it_waits(close_region, store_guarded);
    check_that_it_waits(dispose_of_region, store_guarded);
}

static mmk_fault_answer stand_still_fault_and_allow_all(mmk_region *region, uintptr_t address, bool write)
{
    stand_still();
    return fault_and_allow_all(region, address, write);
}

static void fault_in_a_hook_that_is_waited_for(void)
{
    pthread_t storer = hold_hook(stand_still_fault_and_allow_all, store_plainly);
    CHECK(start_waiting(take_hook_out));
    let_go_on(storer);
    join_waiting();
    CHECK(inner_error == -EFAULT && held.base[0] == 'x');
    mmk_region_dispose(&held);
}

TEST(a_hook_may_meet_a_fault_while_somebody_waits_for_its_end)
{
    if (UNDER_TSAN)
        SKIP("TSan blocks all signals in handlers");
    in_child(fault_in_a_hook_that_is_waited_for);
}

TEST(a_closed_region_has_no_hook)
{
    mmk_region region;
    char byte;
    map_pages(&region, 1);
    CHECK(mmk_region_set_fault_hook(&region, note_and_allow_all) == 0);
    region.exposed = true; /* so that its addresses stay taken */
    CHECK(mmk_region_close(&region) == 0);
    told.calls = 0;
    CHECK(mmk_guarded_copy(&byte, region.base, 1, &fault) == -EFAULT && told.calls == 0);
    CHECK(mmk_region_set_fault_hook(&region, note_and_allow_all) == -MMK_ECLOSED);
    CHECK(mmk_region_set_fault_hook(&region, NULL) == -MMK_ECLOSED);
    mmk_region_dispose(&region);
}

static void take_a_hook_out_during_a_fault(void)
{
    let_no_fault_be_passed_on();
    map_pages(&held, 2);
    for (int round = 0; round < 3; round++) {
        CHECK(mmk_region_set_fault_hook(&held, note_and_allow_all) == 0);
        forbid_all(&held);
        hold_faults();
        pthread_t storer = start_and_hold(store_plainly, NULL);
        CHECK(mmk_sys_mprotect(held.base, pages(2), RW) == 0);
        CHECK(mmk_region_set_fault_hook(&held, NULL) == 0);
        told.calls = 0;
        let_go_on(storer);
        CHECK(held.base[0] == 'x' && told.calls == 0);
        CHECK(sigaction(SIGSEGV, &behind_held_faults, NULL) == 0);
    }
    mmk_region_dispose(&held);
}

TEST(a_fault_that_arrives_after_its_page_was_unprotected_and_its_hook_taken_out_is_tried_again)
{
    in_child(take_a_hook_out_during_a_fault);
}

static mmk_fault_answer allow_page(mmk_region *region, uintptr_t address, bool write)
{
    (void)region, (void)write;
    bool allowed = mmk_sys_mprotect((char *)mmk_round_down(address, page_size), page_size, RW) == 0;
    return allowed ? MMK_FAULT_RETRY : MMK_FAULT_PASS_ON;
}

static void set_and_take_out_while_others_store(void)
{
    let_no_fault_be_passed_on();
    map_pages(&held, PAGES);
    begin_counting(held.base);
    for (int round = 0; round < 3000; round++) {
        CHECK(mmk_region_set_fault_hook(&held, allow_page) == 0);
        protect_all(&held);
        CHECK(mmk_sys_mprotect(held.base, pages(PAGES), RW) == 0);
        CHECK(mmk_region_set_fault_hook(&held, NULL) == 0);
    }
    end_counting();
    mmk_region_dispose(&held);
}

TEST(nobody_who_stores_dies_while_hooks_come_and_go)
{
    in_child(set_and_take_out_while_others_store);
}

/* ---- resizing, forking ---- */

TEST(a_region_with_a_hook_grows_where_it_is_and_does_not_move)
{
    mmk_region region;
    mmk_range vacated;
    mmk_request request = anonymous(pages(2), RW);
    request.reserve = pages(4);
    request.guard = pages(1);
    map(&region, request);
    char *base = region.base;
    CHECK(mmk_region_set_fault_hook(&region, note_and_allow_all) == 0);
    CHECK(mmk_region_resize(&region, pages(4), &vacated) == 0 && region.base == base);
    CHECK(mmk_region_resize(&region, pages(5), &vacated) == -MMK_EPINNED && vacated.length == 0);
    CHECK(region.base == base && mmk_region_length(&region) == pages(4));
    CHECK(mmk_region_set_fault_hook(&region, NULL) == 0);
    CHECK(mmk_region_resize(&region, pages(5), &vacated) == 0 && region.base != base);
    CHECK(mmk_sys_munmap(vacated.base, vacated.length) == 0);
    mmk_region_dispose(&region);
}

static void store_where_the_parent_has_a_hook(void)
{
    store(classroom.base + pages(2), 'x');
    CHECK(all_bytes_are(saved + pages(2), pages(1), 3) && classroom.base[pages(2)] == 'x');
}

TEST(a_child_has_the_hooks_of_its_parent)
{
    open_classroom();
    in_child(store_where_the_parent_has_a_hook);
    CHECK(atomic_load(&page_states[2]) == UNTOUCHED && all_bytes_are(saved, pages(PAGES), 0));
    mmk_region_dispose(&classroom);
}

static void end_a_hook_that_ran_in_the_parent(void)
{
    take_hook_out();
    mmk_region_dispose(&held);
}

TEST(a_child_does_not_wait_for_hooks_that_ran_in_threads_of_its_parent)
{
    if (UNDER_ASAN)
        SKIP("ASan's malloc may hang in a child forked beside other threads");
    pthread_t storer = hold_hook(stand_still_and_allow_all, store_plainly);
    in_child(end_a_hook_that_ran_in_the_parent);
    let_go_on(storer);
    mmk_region_dispose(&held);
}

int main(void)
{
    page_size = mmk_page_size();
    saved = mmap(NULL, pages(PAGES), RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    hole = mmap(NULL, pages(1), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(saved != MAP_FAILED && hole != MAP_FAILED);
    RUN(each_page_is_saved_as_it_was_before_the_first_store_whoever_stores);
    RUN(a_page_that_nobody_stores_to_is_not_saved_and_reading_is_free);
    RUN(guarded_stores_are_mended_too);
    RUN(a_hook_is_told_the_region_the_address_and_whether_it_is_a_write);
    RUN(what_a_hook_does_to_errno_is_undone);
    RUN(a_hook_is_called_for_what_no_page_stands_behind);
    RUN(a_hook_may_meet_a_fault_of_its_own);
    RUN(a_hook_may_touch_a_region_that_has_a_hook);
    RUN(what_a_hook_passes_on_goes_to_who_was_there_before);
    RUN(what_a_hook_passes_on_is_a_fault_of_a_guarded_copy);
    RUN(taking_a_hook_out_returns_when_it_is_not_running_any_more);
    RUN(closing_and_disposing_return_when_the_hook_is_not_running_any_more);
    RUN(a_hook_may_meet_a_fault_while_somebody_waits_for_its_end);
    RUN(a_closed_region_has_no_hook);
    RUN(a_fault_that_arrives_after_its_page_was_unprotected_and_its_hook_taken_out_is_tried_again);
    RUN(nobody_who_stores_dies_while_hooks_come_and_go);
    RUN(a_region_with_a_hook_grows_where_it_is_and_does_not_move);
    RUN(a_child_has_the_hooks_of_its_parent);
    RUN(a_child_does_not_wait_for_hooks_that_ran_in_threads_of_its_parent);
    return 0;
}
