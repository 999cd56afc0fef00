#include <signal.h>

#include <mmkit/fault.h>

#include "support.h"

/* ---- what is there ---- */

enum {
    LONGEST = 1300, /* longer than the longest way through the copying routine
                     that is not a loop */
    ARENA = 4 * LONGEST,
};

static char arena[ARENA], expected[ARENA];

static void fill(char *bytes, size_t length)
{
    static unsigned turn;
    unsigned state = ++turn;
    for (size_t i = 0; i < length; i++) {
        state = state * 1664525 + 1013904223;
        bytes[i] = (char)(state >> 24);
    }
}

static void copy_within_arena(size_t to, size_t from, size_t length)
{
    memcpy(expected, arena, sizeof arena);
    memmove(expected + to, expected + from, length);
    CHECK(mmk_guarded_copy(arena + to, arena + from, length, &fault) == 0);
    CHECK(memcmp(arena, expected, sizeof arena) == 0);
}

TEST(a_copy_is_a_memmove_at_every_length_alignment_and_overlap)
{
    static const int steps[] = {0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200};
    enum { STEPS = sizeof steps / sizeof *steps, MIDDLE = ARENA / 2 - LONGEST / 2 };
    for (int length = 0; length <= LONGEST; length++)
        for (int i = 0; i < STEPS; i++) {
            /* Each distance with an alignment of its own; over the lengths they meet in every way. */
            int from = MIDDLE + (length * 7 + i * 5) % 64;
            /* Anew: copying over itself makes all of it the same in the end. */
            fill(arena, sizeof arena);
            copy_within_arena((size_t)(from + steps[i]), (size_t)from, (size_t)length);
            copy_within_arena((size_t)(from - steps[i]), (size_t)from, (size_t)length);
            copy_within_arena((size_t)(from + length - steps[i]), (size_t)from, (size_t)length);
            copy_within_arena((size_t)(from - length + steps[i]), (size_t)from, (size_t)length);
        }
}

TEST(long_copies_are_memmoves_too)
{
    enum { LENGTH = 300001 };
    static char bytes[2 * LENGTH], wanted[2 * LENGTH];
    static const int distances[] = {0, 1, 31, 64, 4096, LENGTH - 1, LENGTH};
    fill(bytes, sizeof bytes);
    for (size_t i = 0; i < sizeof distances / sizeof *distances; i++) {
        memcpy(wanted, bytes, sizeof bytes);
        memmove(wanted + distances[i], wanted, LENGTH);
        CHECK(mmk_guarded_copy(bytes + distances[i], bytes, LENGTH, &fault) == 0);
        CHECK(memcmp(bytes, wanted, sizeof bytes) == 0);
        memmove(wanted, wanted + distances[i], LENGTH);
        CHECK(mmk_guarded_copy(bytes, bytes + distances[i], LENGTH, &fault) == 0);
        CHECK(memcmp(bytes, wanted, sizeof bytes) == 0);
    }
}

TEST(copies_that_do_not_overlap_are_memmoves_whichever_way_their_length_and_alignment_choose)
{
    static const size_t borders[] = {256, 1024, 3072, 4096, 32768, 65536};
    static const size_t alignments[] = {0, 1, 16, 31, 32, 33, 48, 63};
    enum { ALIGNMENTS = sizeof alignments / sizeof *alignments, ROOM = 65536 + 256 };
    static _Alignas(64) char source[ROOM], target[ROOM], wanted[ROOM];
    fill(source, ROOM);
    for (size_t i = 0; i < sizeof borders / sizeof *borders; i++)
        for (size_t length = borders[i] - 1; length <= borders[i] + 1; length++)
            for (size_t j = 0; j < ALIGNMENTS * ALIGNMENTS; j++) {
                char *from = source + alignments[j % ALIGNMENTS];
                size_t to = alignments[j / ALIGNMENTS];
                memset(target, 0x55, length + 128);
                memset(wanted, 0x55, length + 128);
                memcpy(wanted + to, from, length);
                CHECK(mmk_guarded_copy(target + to, from, length, &fault) == 0);
                CHECK(memcmp(target, wanted, length + 128) == 0);
            }
}

/* Two pages between two that must not be touched. */
static char *map_between_bad_pages(void)
{
    char *start = mmap(NULL, pages(4), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(start != MAP_FAILED && mprotect(start + pages(1), pages(2), RW) == 0);
    return start + pages(1);
}

TEST(a_copy_touches_nothing_outside_its_ranges)
{
    char *source = map_between_bad_pages(), *target = map_between_bad_pages();
    fill(source, pages(2));
    for (size_t length = 0; length <= LONGEST; length++)
        for (unsigned ends = 0; ends < 4; ends++) {
            char *from = ends & 1 ? source + pages(2) - length : source;
            char *to = ends & 2 ? target + pages(2) - length : target;
            CHECK(mmk_guarded_copy(to, from, length, &fault) == 0 && memcmp(to, from, length) == 0);
            /* Nor from the end to the start. */
            if (length && ends & 1)
                CHECK(mmk_guarded_copy(from, from - 1, length, &fault) == 0);
            if (length && !(ends & 1))
                CHECK(mmk_guarded_copy(from + 1, from, length, &fault) == 0);
        }
    CHECK(munmap(source - pages(1), pages(4)) == 0 && munmap(target - pages(1), pages(4)) == 0);
}

/* ---- what is not there ---- */

static const size_t lengths[] = {1,  2,  3,  4,  5,  7,   8,   9,   12,   15,   16,   17,   24,   31,   32,   33,
                                 48, 63, 64, 65, 96, 127, 128, 500, 1000, 1023, 1024, 1025, 1300, 4000, 4096, 5000};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

static bool copy_fails(void *to, const void *from, size_t length)
{
    memset(&fault, 0xee, sizeof fault);
    return mmk_guarded_copy(to, from, length, &fault) == -EFAULT;
}

/* Four pages, of which the third is spoiled. */
typedef bool spoiler(char *page);

static bool forbid(char *page)
{
    return mprotect(page, pages(1), PROT_NONE) == 0;
}

static bool forbid_writing(char *page)
{
    return mprotect(page, pages(1), PROT_READ) == 0;
}

static bool unmap(char *page)
{
    return munmap(page, pages(1)) == 0;
}

static bool install_guard(char *page)
{
    return mmk_sys_madvise(page, pages(1), MMK_MADV_GUARD_INSTALL) == 0;
}

static bool map_beyond_end(char *page)
{
    int fd = memory_file(0);
    bool mapped = mmap(page, pages(1), RW, MAP_SHARED | MAP_FIXED, fd, 0) == page;
    close(fd);
    return mapped;
}

static char *map_spoiled(spoiler *spoil)
{
    char *start = mmap(NULL, pages(4), RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(start != MAP_FAILED);
    fill(start, pages(2));
    if (spoil(start + pages(2)))
        return start;
    CHECK(munmap(start, pages(4)) == 0);
    return NULL;
}

static char good[65536];

/* Reading from, and writing to, the page itself: the fault is where the range starts. */
static void check_inside(char *bad, bool readable, mmk_fault_reason reason)
{
    static const size_t offsets[] = {0, 1, 15, 100};
    for (size_t i = 0; i < LENGTHS; i++)
        for (size_t j = 0; j < sizeof offsets / sizeof *offsets; j++) {
            char *start = bad + offsets[j];
            size_t length = lengths[i] < pages(1) - offsets[j] ? lengths[i] : pages(1) - offsets[j];
            if (readable)
                CHECK(mmk_guarded_copy(good, start, length, &fault) == 0);
            else
                CHECK(copy_fails(good, start, length) && is_fault((uintptr_t)start, reason, false));
            CHECK(copy_fails(start, good, length) && is_fault((uintptr_t)start, reason, true));
        }
}

/* From the good page in front of it: the fault is where the page starts. */
static void check_running_in(char *bad, bool readable, mmk_fault_reason reason)
{
    for (size_t i = 0; i < LENGTHS; i++)
        for (size_t before = 1; before < lengths[i] && before <= 2 * pages(1); before = before * 3 / 2 + 1) {
            char *start = bad - before;
            size_t length = lengths[i] < before + pages(1) ? lengths[i] : before + pages(1);
            if (!readable)
                CHECK(copy_fails(good, start, length) && is_fault((uintptr_t)bad, reason, false));
            CHECK(copy_fails(start, good, length) && is_fault((uintptr_t)bad, reason, true));
        }
}

static void check_spoiled(spoiler *spoil, bool readable, mmk_fault_reason reason)
{
    char *start = map_spoiled(spoil);
    if (!start)
        SKIP("this kernel has no such pages");
    fill(good, sizeof good);
    check_inside(start + pages(2), readable, reason);
    check_running_in(start + pages(2), readable, reason);
    CHECK(munmap(start, pages(4)) == 0);
}

TEST(a_forbidden_page_is_a_fault_of_protection)
{
    check_spoiled(forbid, false, MMK_FAULT_PROTECTION);
}

TEST(a_page_for_reading_is_a_fault_to_writes_only)
{
    check_spoiled(forbid_writing, true, MMK_FAULT_PROTECTION);
}

TEST(a_copy_within_a_page_for_reading_fails_at_the_write)
{
    char *start = map_spoiled(forbid_writing), *bad = start + pages(2);
    for (size_t i = 0; i < LENGTHS && lengths[i] <= 1300; i++) {
        CHECK(copy_fails(bad + 2000, bad, lengths[i]) && is_fault((uintptr_t)bad + 2000, MMK_FAULT_PROTECTION, true));
        CHECK(copy_fails(bad + 1, bad, lengths[i]) && is_fault((uintptr_t)bad + 1, MMK_FAULT_PROTECTION, true));
        CHECK(copy_fails(bad, bad + 1, lengths[i]) && is_fault((uintptr_t)bad, MMK_FAULT_PROTECTION, true));
    }
    CHECK(munmap(start, pages(4)) == 0);
}

TEST(a_hole_is_a_fault)
{
    check_spoiled(unmap, false, MMK_FAULT_UNMAPPED);
}

TEST(a_guard_of_the_kernel_is_a_fault)
{
    check_spoiled(install_guard, false, MMK_FAULT_UNMAPPED);
}

TEST(a_page_beyond_the_end_of_its_file_is_a_fault)
{
    check_spoiled(map_beyond_end, false, MMK_FAULT_NOT_BACKED);
}

static void check_address(uintptr_t address, mmk_fault_reason reason)
{
    char bytes[64] = {0};
    for (size_t length = 1; length <= sizeof bytes; length *= 2) {
        CHECK(copy_fails(bytes, (void *)address, length) && is_fault(address, reason, false));
        CHECK(copy_fails((void *)address, bytes, length) && is_fault(address, reason, true));
        /* Of two bad ones, the source is met first. */
        CHECK(copy_fails(NULL, (void *)address, length) && is_fault(address, reason, false));
    }
}

TEST(any_number_at_all_may_be_the_address)
{
    check_address(0, MMK_FAULT_UNMAPPED);
    check_address(1, MMK_FAULT_UNMAPPED);
    check_address(SIZE_MAX, MMK_FAULT_UNMAPPED);
    check_address(SIZE_MAX - 4095, MMK_FAULT_UNMAPPED);
#if defined(__x86_64__)
    check_address((uintptr_t)0xffff800000000000, MMK_FAULT_UNMAPPED);
    /* The last page of the lower half is never mapped. */
    check_address((uintptr_t)0x7ffffffff000, MMK_FAULT_UNMAPPED);
#endif
}

TEST(what_no_page_table_can_hold_is_not_an_address)
{
#if defined(__x86_64__)
    check_address((uintptr_t)0x800000000000, MMK_FAULT_NOT_AN_ADDRESS);
    check_address((uintptr_t)0x8000000000000000, MMK_FAULT_NOT_AN_ADDRESS);
    check_address((uintptr_t)0xdeadbeefdeadbeef, MMK_FAULT_NOT_AN_ADDRESS);
    check_address((uintptr_t)0xffff7fffffffffff, MMK_FAULT_NOT_AN_ADDRESS);
#else
    SKIP("only x86-64 tells them apart");
#endif
}

TEST(an_access_that_only_ends_where_no_address_is_is_known_for_what_it_is)
{
#if defined(__x86_64__)
    char bytes[16] = {0};
    for (size_t length = 2; length <= sizeof bytes; length *= 2) {
        void *edge = (void *)((uintptr_t)0x800000000000 - 1);
        CHECK(copy_fails(bytes, edge, length) && is_fault((uintptr_t)edge, MMK_FAULT_NOT_AN_ADDRESS, false));
        CHECK(copy_fails(edge, bytes, length) && is_fault((uintptr_t)edge, MMK_FAULT_NOT_AN_ADDRESS, true));
    }
#else
    SKIP("only x86-64 tells them apart");
#endif
}

TEST(nothing_is_no_fault_wherever_it_is)
{
    CHECK(mmk_guarded_copy(NULL, NULL, 0, &fault) == 0);
    CHECK(mmk_guarded_copy((void *)SIZE_MAX, (void *)((uintptr_t)1 << 63), 0, &fault) == 0);
}

/* How many bytes from the first on have become new; none behind those may have changed. */
static size_t count_new(const char *bytes, const char *new, const char *old, size_t length)
{
    size_t end = length;
    while (end > 0 && bytes[end - 1] == old[end - 1])
        end--;
    CHECK(memcmp(bytes, new, end) == 0);
    return end;
}

TEST(what_lies_in_front_of_a_fault_is_copied_from_the_start_and_nothing_behind_it)
{
    enum { STEP = 256 }; /* the most that is loaded before it is stored */
    static char old[8192];
    char *start = map_spoiled(forbid);
    for (size_t i = 0; i < LENGTHS; i++)
        for (size_t there = 1; there < lengths[i]; there = there * 3 / 2 + 1) {
            char *from = start + pages(2) - there;
            fill(old, sizeof old);
            memcpy(good, old, sizeof old);
            CHECK(copy_fails(good, from, lengths[i]));
            size_t copied = count_new(good, from, old, there);
            CHECK(memcmp(good + there, old + there, sizeof old - there) == 0);
            CHECK(lengths[i] <= STEP || copied + 2 * STEP > there);

            memcpy(good, from, there);
            CHECK(copy_fails(from, old, lengths[i]));
            copied = count_new(from, old, good, there);
            CHECK(lengths[i] <= STEP || copied + 2 * STEP > there);
        }
    CHECK(munmap(start, pages(4)) == 0);
}

TEST(a_copy_within_a_range_that_is_partly_there_faults_in_both_directions)
{
    char *start = map_spoiled(forbid), *bad = start + pages(2), *behind = start + pages(3);
    for (size_t i = 0; i < LENGTHS; i++) {
        size_t length = lengths[i];
        if (length < 2 || length > pages(1))
            continue;
        CHECK(copy_fails(bad - length, bad - length / 2, length) &&
              is_fault((uintptr_t)bad, MMK_FAULT_PROTECTION, false));
        CHECK(copy_fails(bad - length / 2, bad - length, length) &&
              is_fault((uintptr_t)bad, MMK_FAULT_PROTECTION, true));
        /* It starts on the bad page and ends on a good one. */
        char *from = behind - length / 2;
        CHECK(copy_fails(behind, from, length) && is_fault((uintptr_t)from, MMK_FAULT_PROTECTION, false));
    }
    CHECK(munmap(start, pages(4)) == 0);
}

TEST(errno_is_left_alone)
{
    char *start = map_spoiled(forbid);
    errno = 77;
    CHECK(copy_fails(good, start + pages(2), 10) && errno == 77);
    CHECK(mmk_guarded_copy(good, start, 10, &fault) == 0 && errno == 77);
    CHECK(munmap(start, pages(4)) == 0);
}

/* ---- looking for a byte ---- */

static void scan_everywhere(const char *start, size_t length)
{
    for (int byte = 0; byte < 256; byte++) {
        const char *found = memchr(start, byte, length);
        ssize_t wanted = found ? found - start : -ENOENT;
        CHECK(mmk_guarded_scan(start, length, (unsigned char)byte, &fault) == wanted);
    }
}

TEST(a_scan_finds_what_memchr_finds_at_every_length_and_alignment)
{
    fill(arena, sizeof arena);
    for (size_t length = 0; length <= 300; length++)
        scan_everywhere(arena + length * 7 % 64, length);
    /* The byte stands once, at every place. */
    for (size_t place = 0; place < 600; place++) {
        memset(arena, 'a', 700);
        arena[50 + place] = 'b';
        for (size_t start = 0; start <= 50; start += 7) {
            CHECK(mmk_guarded_scan(arena + start, 650, 'b', &fault) == (ssize_t)(50 + place - start));
            CHECK(mmk_guarded_scan(arena + start, 50 + place - start, 'b', &fault) == -ENOENT);
        }
    }
}

TEST(a_scan_touches_nothing_outside_its_range)
{
    char *bytes = map_between_bad_pages();
    for (size_t length = 0; length <= LONGEST; length++) {
        CHECK(mmk_guarded_scan(bytes, length, 'b', &fault) == -ENOENT);
        CHECK(mmk_guarded_scan(bytes + pages(2) - length, length, 'b', &fault) == -ENOENT);
    }
    CHECK(munmap(bytes - pages(1), pages(4)) == 0);
}

TEST(a_scan_finds_what_stands_in_front_of_a_fault_and_fails_otherwise)
{
    char *start = map_spoiled(forbid), *bad = start + pages(2);
    memset(start, 'a', pages(2));
    for (size_t before = 0; before <= 300; before++)
        for (size_t behind = 1; behind <= 300; behind += 13) {
            memset(&fault, 0xee, sizeof fault);
            CHECK(mmk_guarded_scan(bad - before, before + behind, 'b', &fault) == -EFAULT);
            CHECK(is_fault((uintptr_t)bad, MMK_FAULT_PROTECTION, false));
            for (size_t place = 1; place <= before; place = place * 2 + 1) {
                bad[-(ssize_t)place] = 'b';
                CHECK(mmk_guarded_scan(bad - before, before + behind, 'b', &fault) == (ssize_t)(before - place));
                bad[-(ssize_t)place] = 'a';
            }
        }
    CHECK(munmap(start, pages(4)) == 0);
}

TEST(any_number_at_all_may_be_scanned)
{
    CHECK(mmk_guarded_scan(NULL, 0, 'b', &fault) == -ENOENT);
    CHECK(mmk_guarded_scan(NULL, 5, 'b', &fault) == -EFAULT && is_fault(0, MMK_FAULT_UNMAPPED, false));
    CHECK(mmk_guarded_scan((void *)(SIZE_MAX - 4095), 200, 'b', &fault) == -EFAULT);
    CHECK(is_fault(SIZE_MAX - 4095, MMK_FAULT_UNMAPPED, false));
#if defined(__x86_64__)
    uintptr_t nowhere = 0x800000000000;
    CHECK(mmk_guarded_scan((void *)nowhere, 200, 'b', &fault) == -EFAULT);
    CHECK(is_fault(nowhere, MMK_FAULT_NOT_AN_ADDRESS, false));
#endif
}

/* ---- threads that block signals ---- */

static bool is_same_mask(const sigset_t *one, const sigset_t *other)
{
    for (int signal = 1; signal < NSIG; signal++)
        if (sigismember(one, signal) != sigismember(other, signal))
            return false;
    return true;
}

static void check_that_faults_leave_no_trace(void)
{
    sigset_t before, after, pending_before, pending_after;
    char *start = map_spoiled(forbid), *beyond = map_spoiled(map_beyond_end);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &before) == 0 && sigpending(&pending_before) == 0);
    CHECK(mmk_guarded_copy(good, start, 10, &fault) == 0);
    CHECK(copy_fails(good, start + pages(2), 10) && fault.reason == MMK_FAULT_PROTECTION);
    CHECK(copy_fails(beyond + pages(2), good, 10) && fault.reason == MMK_FAULT_NOT_BACKED);
    CHECK(mmk_guarded_scan(beyond + pages(2), 1, 0, &fault) == -EFAULT && fault.reason == MMK_FAULT_NOT_BACKED);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &after) == 0 && sigpending(&pending_after) == 0);
    CHECK(is_same_mask(&before, &after) && is_same_mask(&pending_before, &pending_after));
    CHECK(munmap(start, pages(4)) == 0 && munmap(beyond, pages(4)) == 0);
}

static void block_all_signals(void)
{
    sigset_t all;
    CHECK(sigfillset(&all) == 0 && pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
}

/* sigtimedwait(2), but glibc's makes one code of two. */
static int take_from_queue(int signal, siginfo_t *info)
{
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, signal);
    return (int)syscall(SYS_rt_sigtimedwait, &wanted, info, &(struct timespec){0}, NSIG / 8);
}

static void check_queue_holds_one(int signal, int code, pid_t sender)
{
    siginfo_t info;
    CHECK(take_from_queue(signal, &info) == signal && info.si_code == code && info.si_pid == sender);
    CHECK(take_from_queue(signal, &info) == -1 && errno == EAGAIN);
}

static void *block_and_fault(void *unused)
{
    block_all_signals();
    check_that_faults_leave_no_trace();
    check_that_faults_leave_no_trace();
    return unused;
}

/* It has copied in this tick, when the signals were not blocked. */
static void *block_after_copying_and_fault(void *unused)
{
    CHECK(mmk_guarded_copy(good, arena, 10, &fault) == 0);
    block_all_signals();
    mmk_fault_come_first();
    check_that_faults_leave_no_trace();
    return unused;
}

static void *block_and_fault_with_signals_sent_to_the_thread(void *unused)
{
    block_all_signals();
    CHECK(pthread_kill(pthread_self(), SIGSEGV) == 0 && pthread_kill(pthread_self(), SIGBUS) == 0);
    check_that_faults_leave_no_trace();
    check_that_faults_leave_no_trace();
    check_queue_holds_one(SIGSEGV, SI_TKILL, getpid());
    check_queue_holds_one(SIGBUS, SI_TKILL, getpid());
    return unused;
}

static void *fault_with_a_signal_sent_to_the_process(void *unused)
{
    pid_t target = getpid(), sender = fork();
    CHECK(sender >= 0);
    if (sender == 0)
        _exit(kill(target, SIGSEGV) != 0);
    int status;
    CHECK(waitpid(sender, &status, 0) == sender && status == 0);
    check_that_faults_leave_no_trace();
    check_queue_holds_one(SIGSEGV, SI_USER, sender);
    return unused;
}

static void in_thread(void *body(void *))
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, body, NULL) == 0 && pthread_join(thread, NULL) == 0);
}

static void fault_where_signals_are_blocked(void)
{
    in_thread(block_and_fault);
    in_thread(block_after_copying_and_fault);
}

static void fault_where_signals_wait(void)
{
    in_thread(block_and_fault_with_signals_sent_to_the_thread);
}

static void fault_where_a_signal_waits_for_the_process(void)
{
    block_all_signals();
    in_thread(fault_with_a_signal_sent_to_the_process);
}

TEST(a_thread_that_blocks_all_signals_gets_its_faults_and_keeps_its_mask)
{
    in_child(fault_where_signals_are_blocked);
}

TEST(a_signal_sent_to_a_thread_that_blocks_it_waits_there_until_after_the_copy)
{
    if (UNDER_TSAN)
        SKIP("TSan takes signals from the kernel's queue into its own");
    in_child(fault_where_signals_wait);
}

TEST(a_signal_sent_to_a_process_that_blocks_it_is_not_lost)
{
    if (UNDER_TSAN)
        SKIP("TSan takes signals from the kernel's queue into its own");
    in_child(fault_where_a_signal_waits_for_the_process);
}

/* ---- on other processors ---- */

#if defined(__x86_64__)
extern bool guarded_leaf_has_avx;
extern size_t guarded_leaf_string_together, guarded_leaf_string_apart;

static void be_on_another_processor(bool has_avx, size_t together, size_t apart)
{
    guarded_leaf_has_avx = has_avx;
    guarded_leaf_string_together = together;
    guarded_leaf_string_apart = apart;
    a_copy_is_a_memmove_at_every_length_alignment_and_overlap();
    long_copies_are_memmoves_too();
    copies_that_do_not_overlap_are_memmoves_whichever_way_their_length_and_alignment_choose();
    a_copy_touches_nothing_outside_its_ranges();
    what_lies_in_front_of_a_fault_is_copied_from_the_start_and_nothing_behind_it();
    a_copy_within_a_range_that_is_partly_there_faults_in_both_directions();
    a_scan_finds_what_memchr_finds_at_every_length_and_alignment();
    a_scan_finds_what_stands_in_front_of_a_fault_and_fails_otherwise();
}

TEST(processors_without_vectors_or_fast_strings_copy_as_well)
{
    bool has_avx = guarded_leaf_has_avx;
    size_t together = guarded_leaf_string_together, apart = guarded_leaf_string_apart;
    be_on_another_processor(false, together, apart);
    be_on_another_processor(has_avx, SIZE_MAX, SIZE_MAX);
    be_on_another_processor(has_avx, 256, SIZE_MAX);
    be_on_another_processor(has_avx, SIZE_MAX, 256);
    guarded_leaf_has_avx = has_avx;
    guarded_leaf_string_together = together;
    guarded_leaf_string_apart = apart;
}
#endif

int main(void)
{
    RUN(a_copy_is_a_memmove_at_every_length_alignment_and_overlap);
    RUN(long_copies_are_memmoves_too);
    RUN(copies_that_do_not_overlap_are_memmoves_whichever_way_their_length_and_alignment_choose);
    RUN(a_copy_touches_nothing_outside_its_ranges);
    RUN(a_forbidden_page_is_a_fault_of_protection);
    RUN(a_page_for_reading_is_a_fault_to_writes_only);
    RUN(a_copy_within_a_page_for_reading_fails_at_the_write);
    RUN(a_hole_is_a_fault);
    RUN(a_guard_of_the_kernel_is_a_fault);
    RUN(a_page_beyond_the_end_of_its_file_is_a_fault);
    RUN(any_number_at_all_may_be_the_address);
    RUN(what_no_page_table_can_hold_is_not_an_address);
    RUN(an_access_that_only_ends_where_no_address_is_is_known_for_what_it_is);
    RUN(nothing_is_no_fault_wherever_it_is);
    RUN(what_lies_in_front_of_a_fault_is_copied_from_the_start_and_nothing_behind_it);
    RUN(a_copy_within_a_range_that_is_partly_there_faults_in_both_directions);
    RUN(errno_is_left_alone);
    RUN(a_scan_finds_what_memchr_finds_at_every_length_and_alignment);
    RUN(a_scan_touches_nothing_outside_its_range);
    RUN(a_scan_finds_what_stands_in_front_of_a_fault_and_fails_otherwise);
    RUN(any_number_at_all_may_be_scanned);
    RUN(a_thread_that_blocks_all_signals_gets_its_faults_and_keeps_its_mask);
    RUN(a_signal_sent_to_a_thread_that_blocks_it_waits_there_until_after_the_copy);
    RUN(a_signal_sent_to_a_process_that_blocks_it_is_not_lost);
#if defined(__x86_64__)
    RUN(processors_without_vectors_or_fast_strings_copy_as_well);
#endif
    return 0;
}
