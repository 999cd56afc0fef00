#include <mmkit/process.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "process_internal.h"

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* What /proc/PID/stat tells. */
typedef struct process_facts {
    char state;
    uint64_t threads;
    uint64_t start;
} process_facts;

enum {
    FIELDS_TO_THREADS = 18, /* from the name, field 2 */
    FIELDS_TO_START = 20,
};

_Atomic uint32_t mmk_process_generation;

/* Each is written after it was found out, by any number of threads, with the same value. */
static struct {
    _Atomic uint64_t start;
    _Atomic uint64_t namespaces;
    _Atomic uint32_t pid;
} known;

_Thread_local thread_facts this_thread __attribute__((tls_model("initial-exec")));

static void after_fork_in_child(void)
{
    atomic_fetch_add(&mmk_process_generation, 1);
    atomic_store(&known.start, 0);
    atomic_store(&known.pid, 0);
    /* After unshare(CLONE_NEWPID), or CLONE_NEWTIME, only children are in the new namespace. */
    atomic_store(&known.namespaces, 0);
    this_thread = (thread_facts){0};
}

__attribute__((constructor)) static void handle_fork(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

/* The text after so many spaces; NULL if there are not so many. */
static const char *after_spaces(const char *text, int count)
{
    for (int i = 0; text && i < count; i++) {
        text = strchr(text, ' ');
        text = text ? text + 1 : NULL;
    }
    return text;
}

/* Read /proc/PID/stat. returns 0 or -errno. */
static int read_facts(const char *path, process_facts *facts)
{
    char text[1024];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t got = read(fd, text, sizeof text - 1);
    int error = got < 0 ? -errno : 0;
    close(fd);
    if (error)
        return error;
    text[got] = 0;
    /* The name, field 2, may hold spaces and parentheses: the last one ends it. */
    const char *fields = strrchr(text, ')');
    const char *state = after_spaces(fields, 1);
    const char *threads = after_spaces(fields, FIELDS_TO_THREADS);
    const char *start = after_spaces(fields, FIELDS_TO_START);
    if (!start)
        return -ENODATA;
    *facts = (process_facts){*state, strtoull(threads, NULL, 10), strtoull(start, NULL, 10)};
    return 0;
}

uint32_t process_id(void)
{
    uint32_t pid = atomic_load_explicit(&known.pid, memory_order_relaxed);
    if (__builtin_expect(pid == 0, false)) {
        pid = (uint32_t)getpid();
        atomic_store_explicit(&known.pid, pid, memory_order_relaxed);
    }
    return pid;
}

int mmk_process_self(mmk_process *self)
{
    uint64_t start = atomic_load_explicit(&known.start, memory_order_relaxed);
    if (!start) {
        process_facts facts;
        int error = read_facts("/proc/self/stat", &facts);
        if (error)
            return error;
        start = facts.start;
        atomic_store_explicit(&known.start, start, memory_order_relaxed);
    }
    *self = (mmk_process){process_id(), start};
    return 0;
}

uint32_t thread_id_late(void)
{
    return this_thread.id = (uint32_t)syscall(SYS_gettid);
}

uint32_t mmk_thread_id(void)
{
    return thread_id();
}

/* Where there is no pidfd_open(2): before Linux 5.3, or where a filter of a container refuses it. */
static mmk_life life_by_signal(pid_t pid)
{
    return kill(pid, 0) < 0 && errno == ESRCH ? MMK_LIFE_ENDED : MMK_LIFE_UNKNOWN;
}

static mmk_life life_of(pid_t pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0U);
    /* A thread has the number that was a process's: ENOENT, and EINVAL before Linux 6.15. */
    if (fd < 0 && (errno == ESRCH || errno == ENOENT || errno == EINVAL))
        return MMK_LIFE_ENDED;
    if (fd < 0)
        return errno == ENOSYS || errno == EPERM ? life_by_signal(pid) : MMK_LIFE_UNKNOWN;
    /* Readable once the last thread is gone: also of a zombie, which nobody has waited for. */
    struct pollfd end = {.fd = fd, .events = POLLIN};
    int ready = poll(&end, 1, 0);
    close(fd);
    return ready > 0 ? MMK_LIFE_ENDED : MMK_LIFE_LASTS;
}

/* Is all that is left of it its number? Where the first thread alone has ended, the state says the same. */
static bool is_zombie(const process_facts *facts)
{
    return (facts->state == 'Z' || facts->state == 'X') && facts->threads <= 1;
}

static int read_facts_of(uint32_t pid, process_facts *facts)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    return read_facts(path, facts);
}

mmk_life mmk_process_life(const mmk_process *process)
{
    if (process->pid == 0 || process->pid > INT32_MAX)
        return MMK_LIFE_UNKNOWN;
    mmk_life now = life_of((pid_t)process->pid);
    if (now == MMK_LIFE_ENDED)
        return now;
    process_facts facts;
    if ((now == MMK_LIFE_LASTS && !process->start) || read_facts_of(process->pid, &facts))
        return MMK_LIFE_UNKNOWN;
    if ((process->start && facts.start != process->start) || (now == MMK_LIFE_UNKNOWN && is_zombie(&facts)))
        return MMK_LIFE_ENDED;
    return process->start ? MMK_LIFE_LASTS : MMK_LIFE_UNKNOWN;
}

bool mmk_process_is_gone(const mmk_process *process)
{
    return mmk_process_life(process) == MMK_LIFE_ENDED;
}

int mmk_process_start(uint32_t pid, uint64_t *start)
{
    process_facts facts;
    int error = read_facts_of(pid, &facts);
    *start = error ? 0 : facts.start;
    return error;
}

/* returns 0 or -errno. */
static int read_inode(const char *path, uint64_t *inode)
{
    struct stat status;
    if (stat(path, &status) < 0)
        return -errno;
    *inode = status.st_ino;
    return 0;
}

int mmk_process_namespace(uint64_t *namespaces)
{
    *namespaces = atomic_load_explicit(&known.namespaces, memory_order_relaxed);
    if (*namespaces)
        return 0;
    uint64_t pids, time = 0;
    int error = read_inode("/proc/self/ns/pid", &pids);
    if (error)
        return error;
    error = read_inode("/proc/self/ns/time", &time);
    /* Before Linux 5.6, and in a kernel built without them, there is but one. */
    if (error && error != -ENOENT)
        return error;
    /* The kernel gives namespaces inode numbers of 32 bits. */
    *namespaces = time << 32 | (uint32_t)pids;
    atomic_store_explicit(&known.namespaces, *namespaces, memory_order_relaxed);
    return 0;
}

int mmk_process_boot(uint8_t boot[16])
{
    char text[64];
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t got = read(fd, text, sizeof text);
    int error = got < 0 ? -errno : 0;
    close(fd);
    memset(boot, 0, 16);
    for (ssize_t i = 0, digits = 0; i < got && digits < 32; i++) {
        char c = text[i];
        if (c == '-')
            continue;
        boot[digits / 2] = (uint8_t)(boot[digits / 2] << 4 | (c <= '9' ? c - '0' : c - 'a' + 10));
        digits++;
    }
    return error;
}
