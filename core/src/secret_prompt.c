#include <mmkit/secret_prompt.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <termios.h>
#include <unistd.h>

static pthread_mutex_t asking = PTHREAD_MUTEX_INITIALIZER;

static const int ending[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGALRM, SIGPIPE, SIGTSTP, SIGTTIN, SIGTTOU};
enum { ENDING = sizeof ending / sizeof *ending };

/* Any thread may run the handler; it wakes the one that waits through a descriptor. */
static volatile sig_atomic_t caught;
static volatile sig_atomic_t waker;

static void note(int signal)
{
    int before = errno;
    uint64_t one = 1;
    caught = signal;
    if (write(waker, &one, sizeof one) < 0)
        errno = before;
    errno = before;
}

static void catch_signals(struct sigaction before[ENDING])
{
    struct sigaction ours = {.sa_handler = note};
    sigfillset(&ours.sa_mask);
    for (int i = 0; i < ENDING; i++)
        if (sigaction(ending[i], NULL, &before[i]) == 0 && before[i].sa_handler == SIG_DFL)
            (void)sigaction(ending[i], &ours, NULL);
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

static int be_silent(int terminal, const struct termios *before, bool again)
{
    struct termios silent = *before;
    silent.c_iflag |= ICRNL;
    silent.c_lflag |= ICANON | ISIG;
    silent.c_lflag &= ~(tcflag_t)(ECHO | ECHONL);
    return answer(tcsetattr(terminal, again ? TCSADRAIN : TCSAFLUSH, &silent));
}

/* Also from the background, where it would stop the process otherwise. */
static int be_as_before(int terminal, const struct termios *before)
{
    sigset_t change, mask;
    sigemptyset(&change);
    sigaddset(&change, SIGTTOU);
    pthread_sigmask(SIG_BLOCK, &change, &mask);
    int error;
    do
        error = answer(tcsetattr(terminal, TCSADRAIN, before));
    while (error == -EINTR);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    return error;
}

static int say(int terminal, const char *text)
{
    for (size_t length = strlen(text); length;) {
        ssize_t written = write(terminal, text, length);
        if (written < 0)
            return -errno;
        text += written;
        length -= (size_t)written;
    }
    return 0;
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
static ssize_t read_line(int terminal, const sigset_t *mask, char *line, size_t room)
{
    struct pollfd places[] = {{.fd = terminal, .events = POLLIN}, {.fd = waker, .events = POLLIN}};
    int error = answer(ppoll(places, 2, NULL, mask));
    if (error || caught)
        return error ? error : -EINTR;
    ssize_t got = read(terminal, line, room);
    if (got <= 0)
        return got < 0 ? -errno : -ENODATA;
    if (line[got - 1] == '\n')
        return got - 1;
    if ((size_t)got < room)
        return got; /* ^D behind text ends it as well */
    explicit_bzero(line, room);
    (void)tcflush(terminal, TCIFLUSH);
    return -E2BIG;
}

static ssize_t ask(int terminal, const char *text, bool again, const sigset_t *mask, char *line, size_t room)
{
    struct termios before;
    if (tcgetattr(terminal, &before) < 0)
        return -errno;
    ssize_t got = be_silent(terminal, &before, again);
    if (got == 0 && !again)
        got = say(terminal, text);
    if (got == 0)
        got = read_line(terminal, mask, line, room);
    int error = be_as_before(terminal, &before);
    if (got != -EINTR)
        (void)say(terminal, "\n");
    return error && got >= 0 ? error : got;
}

ssize_t mmk_secret_prompt(int terminal, const char *text, bool again, char *line, size_t room)
{
    struct sigaction before[ENDING] = {0};
    if (pthread_mutex_trylock(&asking) != 0)
        return -EBUSY;
    sigset_t mask;
    ssize_t got;
    int signal;
    do {
        int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (event < 0) {
            got = -errno;
            break;
        }
        waker = event;
        caught = 0;
        catch_signals(before);
        block_signals(&mask);
        got = ask(terminal, text, again, &mask, line, room);
        leave_signals(before);
        pthread_sigmask(SIG_SETMASK, &mask, NULL);
        signal = caught;
        close(event);
        /* Who stopped us may have us go on, and then we ask anew. */
        if (signal)
            (void)kill(getpid(), signal);
        again = false;
    } while (signal);
    pthread_mutex_unlock(&asking);
    return got;
}
