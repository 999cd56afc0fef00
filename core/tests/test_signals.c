#include <limits.h>
#include <setjmp.h>

#include "scenes.h"

/* ---- nobody before us ---- */

static void touch_what_is_forbidden(void)
{
    make_guarded_copies();
    touch(forbidden);
}

static void touch_beyond_the_end(void)
{
    make_guarded_copies();
    touch(beyond);
}

TEST(a_foreign_fault_ends_the_process_by_its_signal)
{
    CHECK(end_of(touch_what_is_forbidden) == SIGSEGV);
    CHECK(end_of(touch_beyond_the_end) == SIGBUS);
}

static void send_a_signal_to_oneself(void)
{
    make_guarded_copies();
    CHECK(kill(getpid(), SIGSEGV) == 0);
    /* Where the kernel does not deliver it at once. */
    for (;;)
        pause();
}

TEST(a_signal_that_is_sent_ends_the_process_too)
{
    CHECK(end_of(send_a_signal_to_oneself) == SIGSEGV);
}

/* ---- somebody before us ---- */

/* What a handler sees of a fault at forbidden + 77. */
static sight fault_once(void)
{
    seen->earlier = (sight){0};
    forbid_again();
    touch(forbidden + 77);
    forbid_again();
    return seen->earlier;
}

static bool is_same_sight(const sight *one, const sight *other)
{
    return one->calls == other->calls && one->signal == other->signal && one->code == other->code &&
           one->address == other->address && one->blocked == other->blocked;
}

static void compare_with_the_kernel(const action *new)
{
    action in_front;
    uint64_t blocked = blocked_signals();
    CHECK(sigaction(SIGSEGV, new, NULL) == 0);
    sight without_us = fault_once();
    CHECK(sigaction(SIGSEGV, new, NULL) == 0);
    mmk_fault_come_first();
    CHECK(sigaction(SIGSEGV, NULL, &in_front) == 0 && in_front.sa_sigaction != new->sa_sigaction);
    sight with_us = fault_once();
    CHECK(without_us.calls == 1 && without_us.address == forbidden + 77 && is_same_sight(&without_us, &with_us));
    CHECK(blocked_signals() == blocked);
}

static void compare_with_flags(int flags)
{
    action new = {.sa_sigaction = earlier_that_mends, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&new.sa_mask);
    compare_with_the_kernel(&new);
    sigaddset(&new.sa_mask, SIGUSR1);
    sigaddset(&new.sa_mask, SIGTERM);
    compare_with_the_kernel(&new);
    CHECK(seen->earlier.blocked & bit_of(SIGUSR1));
    CHECK(!(seen->earlier.blocked & bit_of(SIGSEGV)) == !!(flags & SA_NODEFER));
}

static void see_what_the_kernel_would_show(void)
{
    compare_with_flags(0);
    compare_with_flags(SA_NODEFER);
    compare_with_flags(SA_RESETHAND);
    compare_with_flags(SA_NODEFER | SA_RESETHAND);
}

TEST(a_handler_from_before_is_called_as_the_kernel_would_call_it)
{
    if (UNDER_TSAN)
        SKIP("TSan blocks all signals in handlers");
    CHECK(end_of(see_what_the_kernel_would_show) == 0);
}

static void mend_plainly(int signal)
{
    seen->earlier.calls++;
    seen->earlier.signal = signal;
    mend();
}

static void have_a_plain_handler(void)
{
    action plain = {.sa_handler = mend_plainly};
    sigemptyset(&plain.sa_mask);
    CHECK(sigaction(SIGSEGV, &plain, NULL) == 0);
    make_guarded_copies();
    fault_once();
    CHECK(seen->earlier.calls == 1 && seen->earlier.signal == SIGSEGV);
}

TEST(a_handler_without_siginfo_is_called_too)
{
    CHECK(end_of(have_a_plain_handler) == 0);
}

static void fault_twice_with_a_handler_for_once(void)
{
    install_with(SIGSEGV, earlier_that_mends, SA_RESETHAND, NULL);
    make_guarded_copies();
    touch(forbidden);
    forbid_again();
    make_guarded_copies();
    touch(forbidden);
}

TEST(a_handler_for_one_signal_only_is_called_once)
{
    CHECK(end_of(fault_twice_with_a_handler_for_once) == SIGSEGV && seen->earlier.calls == 1);
}

static void be_mended_many_times(void)
{
    install(earlier_that_mends);
    for (int turn = 1; turn <= 100; turn++) {
        make_guarded_copies();
        errno = 77;
        touch(forbidden);
        CHECK(errno == 77 && seen->earlier.calls == turn && forbidden[0] == 1);
        forbid_again();
    }
}

TEST(a_handler_that_mends_the_page_lets_the_program_go_on)
{
    CHECK(end_of(be_mended_many_times) == 0);
}

static sigjmp_buf way_out;

static void jump_out(int signal, siginfo_t *info, void *context)
{
    (void)context;
    note(&seen->earlier, signal, info);
    siglongjmp(way_out, 1);
}

static void fault_and_jump_out(char *address)
{
    if (sigsetjmp(way_out, 1) == 0)
        touch(address);
}

static void jump_out_many_times(void)
{
    uint64_t blocked = blocked_signals();
    install(jump_out);
    install_with(SIGBUS, jump_out, 0, NULL);
    for (int turn = 1; turn <= 200; turn++) {
        make_guarded_copies();
        fault_and_jump_out(turn % 2 ? forbidden : beyond);
        CHECK(seen->earlier.calls == turn && blocked_signals() == blocked);
    }
}

TEST(a_handler_that_jumps_out_gets_the_next_fault_too)
{
    CHECK(end_of(jump_out_many_times) == 0);
}

/* Not a tail call, which would need no stack. */
static int recurse(volatile char *above, int depth)
{
    volatile char here[1024];
    here[0] = above[0];
    return depth ? recurse(here, depth - 1) + here[0] : 0;
}

static void exhaust_the_stack(void)
{
    static char elsewhere[1 << 16];
    CHECK(sigaltstack(&(stack_t){.ss_sp = elsewhere, .ss_size = sizeof elsewhere}, NULL) == 0);
    install_with(SIGSEGV, leave_well, SA_ONSTACK, NULL);
    make_guarded_copies();
    char top = 0;
    (void)recurse(&top, INT_MAX);
}

TEST(a_full_stack_reaches_a_handler_that_has_a_stack_of_its_own)
{
    CHECK(end_of(exhaust_the_stack) == 0 && seen->earlier.calls == 1 && seen->earlier.signal == SIGSEGV);
}

static void send_with_a_handler(void)
{
    install(earlier_that_returns);
    make_guarded_copies();
    for (int turn = 1; turn <= 3; turn++) {
        CHECK(kill(getpid(), SIGSEGV) == 0);
        CHECK(seen->earlier.calls == turn && seen->earlier.code == SI_USER && seen->earlier.sender == getpid());
    }
}

TEST(a_signal_that_is_sent_goes_to_the_handler_from_before)
{
    CHECK(end_of(send_with_a_handler) == 0);
}

static void ignore(void)
{
    CHECK(signal(SIGSEGV, SIG_IGN) != SIG_ERR);
    make_guarded_copies();
    CHECK(kill(getpid(), SIGSEGV) == 0 && raise(SIGSEGV) == 0);
    make_guarded_copies();
    touch(forbidden);
}

TEST(who_ignores_signals_ignores_those_that_are_sent_and_dies_of_faults)
{
    CHECK(end_of(ignore) == SIGSEGV);
}

/* ---- signals during a copy ---- */

/* On the first page of a region. */
static mmk_fault_answer send_and_mend(mmk_region *region, uintptr_t address, bool write)
{
    (void)write;
    CHECK(kill(getpid(), SIGSEGV) == 0);
    if (address >= (uintptr_t)region->base + pages(1))
        return MMK_FAULT_PASS_ON;
    CHECK(mmk_sys_mprotect(region->base, pages(1), RW) == 0);
    return MMK_FAULT_RETRY;
}

static void send_during_copies(void)
{
    mmk_region region;
    char byte = 'x';
    map(&region, anonymous(pages(2), PROT_NONE));
    CHECK(mmk_region_set_fault_hook(&region, send_and_mend) == 0);
    CHECK(mmk_guarded_copy(region.base, &byte, 1, &fault) == 0);
    CHECK(mmk_guarded_copy(region.base + pages(1), &byte, 1, &fault) == -EFAULT);
    mmk_region_dispose(&region);
}

static void send_during_copies_with_a_handler(void)
{
    install(earlier_that_returns);
    send_during_copies();
    /* Once for each copy: such signals do not queue. */
    CHECK(seen->earlier.calls == 2 && seen->earlier.code == SI_USER && seen->earlier.sender == getpid());
}

TEST(a_signal_that_is_sent_during_a_copy_goes_where_it_belongs)
{
    CHECK(end_of(send_during_copies_with_a_handler) == 0);
    CHECK(end_of(send_during_copies) == SIGSEGV);
}

int main(void)
{
    set_the_scenes();
    RUN(a_foreign_fault_ends_the_process_by_its_signal);
    RUN(a_signal_that_is_sent_ends_the_process_too);
    RUN(a_handler_from_before_is_called_as_the_kernel_would_call_it);
    RUN(a_handler_without_siginfo_is_called_too);
    RUN(a_handler_for_one_signal_only_is_called_once);
    RUN(a_handler_that_mends_the_page_lets_the_program_go_on);
    RUN(a_handler_that_jumps_out_gets_the_next_fault_too);
    RUN(a_full_stack_reaches_a_handler_that_has_a_stack_of_its_own);
    RUN(a_signal_that_is_sent_goes_to_the_handler_from_before);
    RUN(who_ignores_signals_ignores_those_that_are_sent_and_dies_of_faults);
    RUN(a_signal_that_is_sent_during_a_copy_goes_where_it_belongs);
    return 0;
}
