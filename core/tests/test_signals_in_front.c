#include "scenes.h"

/* ---- somebody after us ---- */

static void install_after_us(void)
{
    make_guarded_copies();
    install(later_that_mends);
    mmk_fault_come_first();
    for (int turn = 1; turn <= 10; turn++) {
        make_guarded_copies();
        CHECK(seen->later.calls == turn - 1);
        touch(forbidden);
        CHECK(seen->later.calls == turn && seen->later.code == SEGV_ACCERR && seen->later.address == forbidden);
        forbid_again();
    }
}

TEST(a_handler_installed_after_us_gets_foreign_faults_and_no_others)
{
    CHECK(end_of(install_after_us) == 0);
}

static void install_after_us_and_say_nothing(void)
{
    /* mmkit looks once a tick who is in front. */
    make_guarded_copies();
    install(later_that_mends);
    for (action in_front = {.sa_sigaction = later_that_mends}; in_front.sa_sigaction == later_that_mends;) {
        char byte;
        CHECK(mmk_guarded_copy(&byte, "x", 1, &fault) == 0);
        CHECK(sigaction(SIGSEGV, NULL, &in_front) == 0);
    }
    make_guarded_copies();
    CHECK(seen->later.calls == 0);
}

TEST(a_handler_installed_after_us_is_noticed_within_a_tick)
{
    CHECK(end_of(install_after_us_and_say_nothing) == 0);
}

static action replaced;

static void put_back_and_raise(int signal, siginfo_t *info, void *context)
{
    (void)context;
    note(&seen->later, signal, info);
    CHECK(sigaction(signal, &replaced, NULL) == 0);
    raise(signal);
}

static void call_what_was_replaced(int signal, siginfo_t *info, void *context)
{
    note(&seen->later, signal, info);
    replaced.sa_sigaction(signal, info, context);
}

/* Have a handler in front meet the fault of a guarded copy; which it does not where a tick ends between the two.
 * Then put mmkit in front of it. */
static bool meets_copies(handler *in_front, int flags)
{
    make_guarded_copies();
    install_with(SIGSEGV, in_front, flags, &replaced);
    make_guarded_copies();
    make_guarded_copies();
    seen->has_met = seen->later.calls > 0;
    seen->later.calls = 0;
    action now;
    CHECK(sigaction(SIGSEGV, NULL, &now) == 0);
    if (now.sa_sigaction != in_front)
        install_with(SIGSEGV, in_front, flags, &replaced);
    mmk_fault_come_first();
    make_guarded_copies();
    CHECK(seen->later.calls == 0);
    return seen->has_met;
}

static int end_of_meeting(void scene(void))
{
    int end;
    do
        end = end_of(scene);
    while (end == 0 && !seen->has_met);
    return end;
}

static void raise_behind_a_handler(void)
{
    install(earlier_that_mends);
    if (!meets_copies(put_back_and_raise, 0))
        return;
    touch(forbidden);
    CHECK(seen->later.calls == 1 && seen->earlier.calls == 1 && seen->later.code == SEGV_ACCERR);
    forbid_again();
    make_guarded_copies();
    touch(forbidden);
    CHECK(seen->later.calls == 1 && seen->earlier.calls == 2);
}

static void raise_behind_nobody(void)
{
    if (meets_copies(put_back_and_raise, 0))
        touch(forbidden);
}

static void raise_at_once_behind_nobody(void)
{
    if (meets_copies(put_back_and_raise, SA_NODEFER))
        touch(forbidden);
}

TEST(a_handler_that_puts_back_what_it_replaced_and_raises_again_is_called_once)
{
    CHECK(end_of_meeting(raise_behind_a_handler) == 0);
    CHECK(end_of_meeting(raise_behind_nobody) == SIGSEGV && seen->later.calls == 1);
    CHECK(end_of_meeting(raise_at_once_behind_nobody) == SIGSEGV && seen->later.calls == 1);
}

static void call_down_to_a_handler(void)
{
    install(earlier_that_mends);
    if (!meets_copies(call_what_was_replaced, 0))
        return;
    touch(forbidden + 5);
    CHECK(seen->later.calls == 1 && seen->earlier.calls == 1);
    CHECK(seen->earlier.code == SEGV_ACCERR && seen->earlier.address == forbidden + 5);
}

static void call_down_to_nobody(void)
{
    if (meets_copies(call_what_was_replaced, 0))
        touch(forbidden);
}

TEST(a_handler_that_calls_what_it_replaced_is_called_once)
{
    CHECK(end_of_meeting(call_down_to_a_handler) == 0);
    CHECK(end_of_meeting(call_down_to_nobody) == SIGSEGV && seen->later.calls == 1);
}

static void install_twice(handler *function)
{
    action now;
    make_guarded_copies();
    for (int time = 0; time < 2; time++) {
        install_with(SIGSEGV, function, 0, &replaced);
        mmk_fault_come_first();
        make_guarded_copies();
    }
    CHECK(seen->later.calls == 0 && sigaction(SIGSEGV, NULL, &now) == 0 && now.sa_sigaction != function);
    touch(forbidden);
}

static void install_one_that_calls_twice(void)
{
    install_twice(call_what_was_replaced);
}

static void install_one_that_raises_twice(void)
{
    install_twice(put_back_and_raise);
}

TEST(a_handler_that_is_installed_twice_is_called_once)
{
    CHECK(end_of(install_one_that_calls_twice) == SIGSEGV && seen->later.calls == 1);
    CHECK(end_of(install_one_that_raises_twice) == SIGSEGV && seen->later.calls == 1);
}

/* ---- Python's faulthandler ---- */

/* It prints a traceback for a fatal signal, puts back what it replaced, and raises the signal again. */
static struct {
    bool enabled;
    action replaced;
} dumper;

static void dumper_disable(void)
{
    if (dumper.enabled)
        CHECK(sigaction(SIGSEGV, &dumper.replaced, NULL) == 0);
    dumper.enabled = false;
}

static void dump(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    dumper_disable();
    seen->dumps++;
    raise(signal);
}

static void dumper_enable(void)
{
    if (!dumper.enabled)
        install_with(SIGSEGV, dump, SA_NODEFER | SA_ONSTACK, &dumper.replaced);
    dumper.enabled = true;
}

/* As mmkit's Python does after each call of faulthandler. */
static void after(void change(void))
{
    change();
    mmk_fault_come_first();
    make_guarded_copies();
    CHECK(seen->dumps == 0);
}

static void enable_before_and_after(void)
{
    dumper_enable();
    for (int round = 0; round < 100; round++) {
        make_guarded_copies();
        after(dumper_enable);
        after(dumper_disable);
        after(dumper_enable);
        after(dumper_disable);
        after(dumper_disable);
        after(dumper_enable);
    }
}

static void enable_and_die(void)
{
    enable_before_and_after();
    touch(forbidden);
}

static void disable_and_die(void)
{
    enable_before_and_after();
    after(dumper_disable);
    touch(forbidden);
}

static void enable_and_live_with_a_handler(void)
{
    install(earlier_that_mends);
    enable_before_and_after();
    touch(forbidden);
    CHECK(seen->dumps == 1 && seen->earlier.calls == 1);
    seen->dumps = 0;
    forbid_again();
    after(dumper_enable);
    after(dumper_disable);
    touch(forbidden);
    CHECK(seen->dumps == 0 && seen->earlier.calls == 2);
}

static void enable_and_be_followed_by_another(void)
{
    enable_before_and_after();
    install(later_that_mends);
    mmk_fault_come_first();
    touch(forbidden);
    CHECK(seen->later.calls == 1 && seen->dumps == 0);
}

TEST(a_faulthandler_turned_on_and_off_dumps_once_for_foreign_faults_and_never_for_ours)
{
    CHECK(end_of(enable_and_die) == SIGSEGV && seen->dumps == 1);
    CHECK(end_of(disable_and_die) == SIGSEGV && seen->dumps == 0);
    CHECK(end_of(enable_and_live_with_a_handler) == 0);
    CHECK(end_of(enable_and_be_followed_by_another) == 0);
}

/* ---- many ---- */

static _Atomic(handler *) beneath;
static atomic_bool stop;

static void pass_down(int signal, siginfo_t *info, void *context)
{
    atomic_load (&beneath)(signal, info, context);
}

static void install_passing_down(void)
{
    action found;
    install_with(SIGSEGV, pass_down, 0, &found);
    if (found.sa_sigaction != pass_down)
        atomic_store(&beneath, found.sa_sigaction);
}

static void *install_all_the_time(void *unused)
{
    while (!atomic_load(&stop))
        install_passing_down();
    return unused;
}

static void *copy_all_the_time(void *come_first)
{
    for (int turn = 0; turn < 5000; turn++) {
        if (come_first)
            mmk_fault_come_first();
        make_guarded_copies();
    }
    return come_first;
}

static void copy_while_somebody_installs_handlers(void)
{
    pthread_t installer, copiers[2];
    action ours;
    make_guarded_copies();
    CHECK(sigaction(SIGSEGV, NULL, &ours) == 0);
    atomic_store(&beneath, ours.sa_sigaction);
    CHECK(pthread_create(&installer, NULL, install_all_the_time, NULL) == 0);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&copiers[i], NULL, copy_all_the_time, i ? &ours : NULL) == 0);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(copiers[i], NULL) == 0);
    atomic_store(&stop, true);
    CHECK(pthread_join(installer, NULL) == 0);
}

TEST(copies_fault_well_while_somebody_installs_a_handler_over_and_over)
{
    if (UNDER_TSAN)
        SKIP("sigaction(2) is not atomic under TSan");
    CHECK(end_of(copy_while_somebody_installs_handlers) == 0);
}

static void *copy_for_the_first_time(void *barrier)
{
    (void)pthread_barrier_wait(barrier);
    make_guarded_copies();
    return NULL;
}

static void begin_together(void)
{
    enum { THREADS = 8 };
    pthread_t threads[THREADS];
    pthread_barrier_t barrier;
    install(earlier_that_mends);
    CHECK(pthread_barrier_init(&barrier, NULL, THREADS) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, copy_for_the_first_time, &barrier) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    touch(forbidden);
    CHECK(seen->earlier.calls == 1);
}

TEST(threads_that_begin_together_all_copy_well)
{
    CHECK(end_of(begin_together) == 0);
}

/* ---- more than there is room for ---- */

/* mmkit has 32 levels. Each handler of the crowd knows what it replaced. */
enum { CROWD = 70 };
static action replaced_by[CROWD];
static int calls_of[CROWD];

static void be_one_of_many(int index, int signal, siginfo_t *info, void *context)
{
    CHECK(++calls_of[index] == 1);
    note(&seen->later, signal, info);
    replaced_by[index].sa_sigaction(signal, info, context);
}

#define ONE(number)                                                                                                    \
    static void handler_##number(int signal, siginfo_t *info, void *context)                                           \
    {                                                                                                                  \
        be_one_of_many(number - 100, signal, info, context);                                                           \
    }
#define NAME(number) handler_##number,
#define FIVE(of, tens, a, b, c, d, e) of(tens##a) of(tens##b) of(tens##c) of(tens##d) of(tens##e)
#define TEN(of, tens) FIVE(of, tens, 0, 1, 2, 3, 4) FIVE(of, tens, 5, 6, 7, 8, 9)
#define ALL(of) TEN(of, 10) TEN(of, 11) TEN(of, 12) TEN(of, 13) TEN(of, 14) TEN(of, 15) TEN(of, 16)
ALL(ONE)
static handler *const crowd[CROWD] = {ALL(NAME)};

static void come_one_by_one(void)
{
    install(leave_well);
    make_guarded_copies();
    for (int i = 0; i < CROWD; i++) {
        install_with(SIGSEGV, crowd[i], 0, &replaced_by[i]);
        mmk_fault_come_first();
        make_guarded_copies();
        CHECK(seen->later.calls == 0);
    }
    touch(forbidden);
}

TEST(of_more_handlers_than_there_are_levels_none_is_called_twice)
{
    int end = end_of(come_one_by_one);
    CHECK(end == SIGSEGV || (end == 0 && seen->earlier.calls == 1));
}

static void never_called(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    CHECK(!"a handler was called that is not there any more");
}

/* Each comes with a mask of its own, which makes it another action, and goes. */
static void come_and_go(bool noticed)
{
    enum { MANY = 300 };
    action visitor = {.sa_sigaction = never_called, .sa_flags = SA_SIGINFO}, found;
    install(leave_well);
    make_guarded_copies();
    for (int i = 0; i < MANY; i++) {
        sigemptyset(&visitor.sa_mask);
        for (int bit = 0; bit < 9; bit++)
            if (i >> bit & 1)
                sigaddset(&visitor.sa_mask, SIGRTMIN + bit);
        CHECK(sigaction(SIGSEGV, &visitor, &found) == 0);
        mmk_fault_come_first();
        make_guarded_copies();
        CHECK(sigaction(SIGSEGV, &found, NULL) == 0);
        if (noticed)
            mmk_fault_come_first();
    }
    install(later_that_mends);
    mmk_fault_come_first();
    make_guarded_copies();
    touch(forbidden);
    CHECK(seen->later.calls == 1);
}

static void come_and_go_noticed(void)
{
    come_and_go(true);
}

static void come_and_go_unnoticed(void)
{
    come_and_go(false);
}

TEST(of_more_handlers_than_can_be_remembered_none_is_taken_for_another)
{
    int end = end_of(come_and_go_noticed);
    CHECK(end == SIGSEGV || end == 0);
    end = end_of(come_and_go_unnoticed);
    CHECK(end == SIGSEGV || end == 0);
}

/* ---- the interpreter ---- */

static void have_an_interpreter(void)
{
    mmk_fault_interpreter((const void *)(uintptr_t)have_an_interpreter);
}

static void fault_with_a_handler_that_only_returns(void)
{
    have_an_interpreter();
    install(earlier_that_returns);
    make_guarded_copies();
    CHECK(kill(getpid(), SIGSEGV) == 0 && seen->earlier.calls == 1);
    make_guarded_copies();
    touch(forbidden);
}

static void fault_with_one_installed_after_us(void)
{
    have_an_interpreter();
    for (int round = 0; round < 100; round++) {
        make_guarded_copies();
        CHECK(signal(SIGSEGV, SIG_DFL) != SIG_ERR);
        mmk_fault_come_first();
        make_guarded_copies();
        install(earlier_that_returns);
        mmk_fault_come_first();
    }
    CHECK(kill(getpid(), SIGSEGV) == 0 && seen->earlier.calls == 1);
    touch(forbidden);
}

TEST(a_handler_of_the_interpreter_that_only_returns_does_not_make_a_fault_last_for_ever)
{
    CHECK(end_of(fault_with_a_handler_that_only_returns) == SIGSEGV && seen->earlier.calls == 2);
    CHECK(end_of(fault_with_one_installed_after_us) == SIGSEGV && seen->earlier.calls == 2);
}

int main(void)
{
    set_the_scenes();
    RUN(a_handler_installed_after_us_gets_foreign_faults_and_no_others);
    RUN(a_handler_installed_after_us_is_noticed_within_a_tick);
    RUN(a_handler_that_puts_back_what_it_replaced_and_raises_again_is_called_once);
    RUN(a_handler_that_calls_what_it_replaced_is_called_once);
    RUN(a_faulthandler_turned_on_and_off_dumps_once_for_foreign_faults_and_never_for_ours);
    RUN(copies_fault_well_while_somebody_installs_a_handler_over_and_over);
    RUN(threads_that_begin_together_all_copy_well);
    RUN(a_handler_that_is_installed_twice_is_called_once);
    RUN(of_more_handlers_than_there_are_levels_none_is_called_twice);
    RUN(of_more_handlers_than_can_be_remembered_none_is_taken_for_another);
    RUN(a_handler_of_the_interpreter_that_only_returns_does_not_make_a_fault_last_for_ever);
    return 0;
}
