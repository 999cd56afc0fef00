#include "signals.h"

#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "fault_internal.h"

enum {
    SEGV,
    BUS,
    SIGNALS,
    LEVELS = 32,
    ACTIONS = 256,        /* different ones that we may meet */
    KERNEL_MASK = 64 / 8, /* bytes of a signal mask that sigaction(2) fills; glibc leaves the others as they were */
};

typedef struct sigaction action;
typedef void handler(int signal, siginfo_t *info, void *context);

/* Actions of others. An entry never changes once it is in, so that handlers may read it at any time. */
static action actions[ACTIONS];
static unsigned action_count;

/* What each level replaced. */
static _Atomic(const action *) previous[SIGNALS][LEVELS];
/* The level in front, or the last that we know of; and the highest that anybody may have replaced and put back one day.
 * -1 before the first. */
static int front[SIGNALS] = {-1, -1}, highest[SIGNALS] = {-1, -1};
/* Over all of the above but reading `previous`. */
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;

/* Has it been done at all? */
static atomic_bool installed;

static const action by_default = {.sa_handler = SIG_DFL};

/* The code of the language interpreter. */
static struct {
    uintptr_t start, end;
} interpreter;

static int number_of(int which)
{
    return which == SEGV ? SIGSEGV : SIGBUS;
}

static uintptr_t code_of(const action *a)
{
    return a->sa_flags & SA_SIGINFO ? (uintptr_t)a->sa_sigaction : (uintptr_t)a->sa_handler;
}

static bool is_interpreters(const action *a)
{
    return interpreter.start <= code_of(a) && code_of(a) < interpreter.end;
}

/* ---- passing a signal on ---------------------------------------------------------------------------- */

/* As the kernel would have called it. */
static void call(const action *a, int signal, siginfo_t *info, void *context)
{
    sigset_t blocked = a->sa_mask, before;
    if (!(a->sa_flags & SA_NODEFER))
        sigaddset(&blocked, signal);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    if (a->sa_flags & SA_SIGINFO)
        a->sa_sigaction(signal, info, context);
    else
        a->sa_handler(signal);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* What was there first: the process ends by the signal, with the address and the registers of the fault. */
static void act_by_default(int signal, const siginfo_t *info)
{
    sigaction(signal, &by_default, NULL);
    /* A fault comes again when the handlers have returned; what was sent does not. */
    if (!fault_is_synchronous(info))
        raise(signal);
}

static void pass_on_from(int level, int which, siginfo_t *info, void *context)
{
    int signal = number_of(which);
    bool synchronous = fault_is_synchronous(info);
    for (; level >= 0; level--) {
        const action *a = atomic_load_explicit(&previous[which][level], memory_order_acquire);
        if (code_of(a) == (uintptr_t)SIG_DFL)
            break;
        /* The kernel does not let a process ignore its faults either. */
        if (code_of(a) == (uintptr_t)SIG_IGN && !synchronous)
            return;
        if (code_of(a) == (uintptr_t)SIG_IGN)
            break;
        if (a->sa_flags & SA_RESETHAND)
            atomic_store_explicit(&previous[which][level], &by_default, memory_order_release);
        call(a, signal, info, context);
        /* The interpreter's only note that it came, or dump a traceback: they mend nothing. */
        if (!synchronous || !is_interpreters(a))
            return;
    }
    act_by_default(signal, info);
}

/* The last level stands for all that did not fit: who is asked there may pass on to the same level. */
static void pass_on(int level, int which, siginfo_t *info, void *context)
{
    bool asked = fault_self.asked_last;
    if (level == LEVELS - 1 && asked)
        level--;
    fault_self.asked_last = asked || level == LEVELS - 1;
    pass_on_from(level, which, info, context);
    fault_self.asked_last = asked;
}

static void handle(int level, int signal, siginfo_t *info, void *context)
{
    int saved = errno;
    if (!fault_settle(info, context))
        pass_on(level, signal == SIGSEGV ? SEGV : BUS, info, context);
    errno = saved;
}

/* ---- the levels ------------------------------------------------------------------------------------- */

/* clang-format off */
#define EACH_LEVEL(X) \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) \
    X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)
/* clang-format on */
#define HANDLER(n)                                                                                                     \
    static void handle_at_##n(int signal, siginfo_t *info, void *context)                                              \
    {                                                                                                                  \
        handle(n, signal, info, context);                                                                              \
    }
#define HANDLER_NAME(n) handle_at_##n,

EACH_LEVEL(HANDLER)

static handler *const levels[LEVELS] = {EACH_LEVEL(HANDLER_NAME)};

static int level_of(const action *a)
{
    for (int level = 0; level < LEVELS; level++)
        if (a->sa_flags & SA_SIGINFO && a->sa_sigaction == levels[level])
            return level;
    return -1;
}

static bool is_same(const action *one, const action *other)
{
    return code_of(one) == code_of(other) && one->sa_flags == other->sa_flags &&
           memcmp(&one->sa_mask, &other->sa_mask, KERNEL_MASK) == 0;
}

static const action *remember(const action *a)
{
    for (unsigned i = 0; i < action_count; i++)
        if (is_same(&actions[i], a))
            return &actions[i];
    /* More than anybody installs: rather none of them than the wrong one. */
    if (action_count == ACTIONS)
        return &by_default;
    actions[action_count] = *a;
    return &actions[action_count++];
}

/* Does it never pass a signal on? The interpreter's own for signal.signal; faulthandler's has SA_NODEFER. */
static bool ends_the_chain(const action *a)
{
    return code_of(a) == (uintptr_t)SIG_DFL || code_of(a) == (uintptr_t)SIG_IGN ||
           (is_interpreters(a) && !(a->sa_flags & SA_NODEFER));
}

/* The level to put in front of what was found. One further up than all that others may know of; but the same one
 * again for what knows of none, or when all are used up. */
static int level_for(int which, const action *found)
{
    int next = highest[which] + 1;
    if (next == LEVELS || ends_the_chain(found))
        for (int level = 0; level < next; level++)
            if (is_same(atomic_load(&previous[which][level]), found))
                return level;
    return next < LEVELS ? next : LEVELS - 1;
}

/* Who installs the same handler again knows only what he replaced last, and passes on to that. So the levels below
 * must not ask him: what they asked is asked by the level below. */
static void take_out_below(int which, int level, const action *again)
{
    if (ends_the_chain(again))
        return;
    const action *below = &by_default;
    for (int i = 0; i < level; i++) {
        const action *a = atomic_load(&previous[which][i]);
        if (is_same(a, again))
            atomic_store_explicit(&previous[which][i], below, memory_order_release);
        else
            below = a;
    }
}

static void come_first(int which)
{
    int signal = number_of(which);
    action found, replaced;
    sigaction(signal, NULL, &found);
    int level = level_of(&found);
    /* Put back by who knows no higher one. */
    if (level >= 0 && level != front[which])
        highest[which] = level;
    if (level < 0) {
        level = level_for(which, &found);
        highest[which] = level > highest[which] ? level : highest[which];
        take_out_below(which, level, &found);
        atomic_store_explicit(&previous[which][level], remember(&found), memory_order_release);
        /* SA_NODEFER: a hook may meet a fault of its own. SA_ONSTACK: the fault may be that the stack is full. */
        int flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | (found.sa_flags & SA_RESTART);
        action ours = {.sa_sigaction = levels[level], .sa_flags = flags};
        sigemptyset(&ours.sa_mask);
        sigaction(signal, &ours, &replaced);
        /* Somebody was quicker; if it was to put one of ours back, that one stays. */
        if (level_of(&replaced) >= 0) {
            highest[which] = level = level_of(&replaced);
            sigaction(signal, &replaced, NULL);
        } else if (!is_same(&replaced, &found)) {
            atomic_store_explicit(&previous[which][level], remember(&replaced), memory_order_release);
        }
    }
    front[which] = level;
}

/* pre: the lock is held. */
static void come_first_for_both(void)
{
    come_first(SEGV);
    come_first(BUS);
    atomic_store(&installed, true);
}

bool signals_come_first(void)
{
    sigset_t blocked;
    /* Does not wait for the lock: this may be a hook that touches memory, in a thread that holds it; or whoever forks
     * may hold it, and wait for a lock of this thread's. Who holds it does the same work; which must have been done
     * once. */
    bool locked = pthread_mutex_trylock(&changing) == 0;
    while (!locked && !atomic_load(&installed)) {
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        locked = pthread_mutex_trylock(&changing) == 0;
    }
    if (locked) {
        come_first_for_both();
        pthread_mutex_unlock(&changing);
    }
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    return sigismember(&blocked, SIGSEGV) || sigismember(&blocked, SIGBUS);
}

void mmk_fault_come_first(void)
{
    pthread_mutex_lock(&changing);
    come_first_for_both();
    pthread_mutex_unlock(&changing);
    /* The thread may have blocked the signals just now. */
    fault_self.checked.tv_sec = 0;
}

/* ---- the interpreter; fork ------------------------------------------------------------------------- */

static int find_object(struct dl_phdr_info *object, size_t size, void *function)
{
    (void)size;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
        uintptr_t start = object->dlpi_addr + segment->p_vaddr, end = start + segment->p_memsz;
        if (segment->p_type == PT_LOAD && segment->p_flags & PF_X && start <= (uintptr_t)function &&
            (uintptr_t)function < end) {
            interpreter.start = start;
            interpreter.end = end;
            return 1;
        }
    }
    return 0;
}

void mmk_fault_interpreter(const void *function)
{
    pthread_mutex_lock(&changing);
    (void)dl_iterate_phdr(find_object, (void *)(uintptr_t)function);
    pthread_mutex_unlock(&changing);
}

void signals_before_fork(void)
{
    pthread_mutex_lock(&changing);
}

void signals_after_fork(void)
{
    pthread_mutex_unlock(&changing);
}
