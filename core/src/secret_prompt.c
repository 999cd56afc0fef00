#include <mmkit/secret_prompt.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

static const int ending[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGALRM, SIGPIPE, SIGTSTP, SIGTTIN, SIGTTOU};
enum { ENDING = sizeof ending / sizeof *ending };

/* The process that asks, 0 if none does, and its thread. A child that another thread forks meanwhile is neither. */
static _Atomic pid_t asker, asking_thread;
static volatile sig_atomic_t caught;

static bool begin_asking(void)
{
    pid_t self = getpid(), before = atomic_load(&asker);
    if (before == self || !atomic_compare_exchange_strong(&asker, &before, self))
        return false;
    atomic_store(&asking_thread, gettid());
    return true;
}

/* Any thread may run it: the one that asks is told, by the same signal. */
static void note(int signal)
{
    int before = errno;
    pid_t process = atomic_load(&asker), thread = atomic_load(&asking_thread);
    if (process == getpid() && thread == gettid()) {
        caught = signal;
    } else if (process == getpid()) {
        (void)syscall(SYS_tgkill, process, thread, signal);
    } else {
        /* In a forked child; or late, and then it has been put back already. */
        if (process)
            (void)sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
        (void)raise(signal);
    }
    errno = before;
}

static void catch_signals(struct sigaction before[ENDING])
{
    struct sigaction ours = {.sa_handler = note};
    sigfillset(&ours.sa_mask);
    for (int i = 0; i < ENDING; i++) {
        (void)sigaction(ending[i], NULL, &before[i]);
        if (before[i].sa_handler == note)
            before[i].sa_handler = SIG_DFL;
        if (before[i].sa_handler == SIG_DFL)
            (void)sigaction(ending[i], &ours, NULL);
    }
}

static void leave_signals(const struct sigaction before[ENDING])
{
    for (int i = 0; i < ENDING; i++)
        if (before[i].sa_handler == SIG_DFL)
            (void)sigaction(ending[i], &before[i], NULL);
}

static int answer(int result)
{
    return result < 0 ? -errno : 0;
}

/* Without waiting for what is still to be written (TCSADRAIN): that could take for ever. */
static int be_silent(int terminal, const struct termios *before, bool again)
{
    struct termios silent = *before;
    silent.c_iflag |= ICRNL;
    silent.c_lflag |= ICANON | ISIG;
    silent.c_lflag &= ~(tcflag_t)(ECHO | ECHONL);
    int error = answer(tcsetattr(terminal, TCSANOW, &silent));
    return error || again ? error : answer(tcflush(terminal, TCIFLUSH));
}

/* Also from the background, where it would stop the process otherwise. */
static int be_as_before(int terminal, const struct termios *before, bool discard)
{
    sigset_t change, mask;
    sigemptyset(&change);
    sigaddset(&change, SIGTTOU);
    pthread_sigmask(SIG_BLOCK, &change, &mask);
    if (discard)
        (void)tcflush(terminal, TCIFLUSH);
    int error = answer(tcsetattr(terminal, TCSANOW, before));
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    return error;
}

/* All but those that tell who has no right to the terminal now, and those that cannot wait. */
static void block_signals(sigset_t *before)
{
    static const int let_in[] = {SIGTTIN, SIGTTOU, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    sigset_t all;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof let_in / sizeof *let_in; i++)
        sigdelset(&all, let_in[i]);
    pthread_sigmask(SIG_BLOCK, &all, before);
}

/* Signals are let in while it waits, and only then: none comes between a look and the wait. */
static int wait_for(int terminal, short event, const sigset_t *mask)
{
    struct pollfd place = {.fd = terminal, .events = event};
    return caught ? -EINTR : answer(ppoll(&place, 1, NULL, mask));
}

static int say(int terminal, const char *text, const sigset_t *mask)
{
    for (size_t length = strlen(text); length;) {
        ssize_t written = write(terminal, text, length);
        int error = written >= 0 ? 0 : errno == EAGAIN ? wait_for(terminal, POLLOUT, mask) : -errno;
        if (error)
            return error;
        if (written > 0) {
            text += written;
            length -= (size_t)written;
        }
    }
    return 0;
}

static ssize_t read_line(int terminal, const sigset_t *mask, char *line, size_t room)
{
    ssize_t got;
    do {
        int error = wait_for(terminal, POLLIN, mask);
        if (error)
            return error;
        got = read(terminal, line, room);
    } while (got < 0 && errno == EAGAIN);
    if (got <= 0)
        return got < 0 ? -errno : -ENODATA;
    if (line[got - 1] == '\n')
        return got - 1;
    if ((size_t)got < room)
        return got; /* ^D behind text ends it as well */
    explicit_bzero(line, room);
    return -E2BIG;
}

static ssize_t ask(int terminal, const char *text, bool again, const sigset_t *mask, char *line, size_t room)
{
    struct termios before;
    if (tcgetattr(terminal, &before) < 0)
        return -errno;
    ssize_t got = be_silent(terminal, &before, again);
    if (got == 0 && !again)
        got = say(terminal, text, mask);
    if (got == 0)
        got = read_line(terminal, mask, line, room);
    /* Half a line is not for whoever reads next. */
    bool goes_on = got == -EINTR && !caught;
    int error = be_as_before(terminal, &before, got < 0 && !goes_on);
    if (got != -EINTR)
        (void)say(terminal, "\n", mask);
    return error && got >= 0 ? error : got;
}

ssize_t mmk_secret_prompt(int terminal, const char *text, bool again, char *line, size_t room)
{
    struct sigaction before[ENDING] = {0};
    sigset_t mask;
    ssize_t got;
    if (!begin_asking())
        return -EBUSY;
    do {
        caught = 0;
        block_signals(&mask);
        catch_signals(before);
        got = ask(terminal, text, again, &mask, line, room);
        leave_signals(before);
        pthread_sigmask(SIG_SETMASK, &mask, NULL);
        /* Who stopped us may have us go on, and then we ask anew. */
        if (caught)
            (void)kill(getpid(), caught);
        again = false;
    } while (caught);
    atomic_store(&asker, 0);
    return got;
}
