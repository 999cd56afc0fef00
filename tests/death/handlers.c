/* Signal handlers as other people's libraries have them, and threads as they start them. */
#define _GNU_SOURCE

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct sigaction before;
static volatile int calls, loud;
static char *repaired;

int handler_calls(void)
{
    return calls;
}

/* From now on each call of a handler is told on stderr. */
void handler_be_loud(void)
{
    loud = 1;
}

static void count(void)
{
    calls++;
    if (loud)
        (void)!write(2, "handler\n", 8);
}

static void call_before(int signal, siginfo_t *info, void *context)
{
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(signal, info, context);
    else if (before.sa_handler == SIG_DFL)
        sigaction(signal, &before, NULL); /* the fault comes again */
    else if (before.sa_handler != SIG_IGN)
        before.sa_handler(signal);
}

static void chain_by_calling(int signal, siginfo_t *info, void *context)
{
    count();
    call_before(signal, info, context);
}

static void chain_by_returning(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    count();
    sigaction(signal, &before, NULL);
}

static void chain_by_raise(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    count();
    sigaction(signal, &before, NULL);
    raise(signal);
}

static void chain_by_kill(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    count();
    sigaction(signal, &before, NULL);
    kill(getpid(), signal);
}

static void repair(int signal, siginfo_t *info, void *context)
{
    char *address = info->si_addr;
    count();
    if (repaired && repaired <= address && address < repaired + 4096)
        mprotect(repaired, 4096, PROT_READ | PROT_WRITE);
    else
        call_before(signal, info, context);
}

static __thread sigjmp_buf way_out;
static __thread volatile bool probing;

static void jump(int signal, siginfo_t *info, void *context)
{
    count();
    if (probing)
        siglongjmp(way_out, 1);
    call_before(signal, info, context);
}

/* Look at an address under the handler that jumps: what is there, or -1. */
int handler_probe(const char *address)
{
    volatile int found = -1;
    if (sigsetjmp(way_out, 1) == 0) {
        probing = true;
        found = *address;
    }
    probing = false;
    return found;
}

static void exit_42(int signal)
{
    (void)signal;
    _exit(42);
}

static const struct {
    const char *name;
    void (*handler)(int, siginfo_t *, void *);
} styles[] = {
    {"calling", chain_by_calling}, {"returning", chain_by_returning}, {"raise", chain_by_raise},
    {"kill", chain_by_kill},       {"repairing", repair},
    {"jumping", jump},
};

/* returns 0, or -1 where there is no such style */
int handler_install(int signal, const char *style, bool nodefer)
{
    for (unsigned i = 0; i < sizeof styles / sizeof *styles; i++)
        if (strcmp(styles[i].name, style) == 0) {
            struct sigaction ours = {.sa_sigaction = styles[i].handler,
                                     .sa_flags = SA_SIGINFO | SA_ONSTACK | (nodefer ? SA_NODEFER : 0)};
            return sigaction(signal, &ours, &before);
        }
    return -1;
}

/* As programs did before there was sigaction. */
int handler_install_exit_42(int number)
{
    return signal(number, exit_42) == SIG_ERR ? -1 : 0;
}

int handler_restore(int signal)
{
    return sigaction(signal, &before, NULL);
}

void handler_repairs(void *page)
{
    repaired = page;
}

/* ---- threads ---------------------------------------------------------------------------------------- */

typedef void callback(void);

static void *call_with_all_blocked(void *function)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    ((callback *)(uintptr_t)function)();
    return NULL;
}

/* Call a function in a new thread that blocks all signals. */
int call_in_blocked_thread(callback *function)
{
    pthread_t thread;
    int error = pthread_create(&thread, NULL, call_with_all_blocked, (void *)(uintptr_t)function);
    return error ? error : pthread_join(thread, NULL);
}

/* ---- stacks ----------------------------------------------------------------------------------------- */

int overflow(int depth)
{
    volatile char frame[4096];
    frame[0] = (char)depth;
    return depth < 0 ? 0 : overflow(depth + 1) + frame[0];
}
