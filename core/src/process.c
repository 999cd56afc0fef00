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

enum {
    STAT_FIELDS_TO_START = 20, /* from the state, field 3, to the start, field 22 */
};

_Atomic uint32_t mmk_process_generation;

/* Each is written after it was found out, by any number of threads, with the same value. */
static struct {
    _Atomic uint64_t start;
    _Atomic uint64_t namespace_inode;
    _Atomic uint32_t pid;
} known;

_Thread_local thread_facts this_thread __attribute__((tls_model("initial-exec")));

static void after_fork_in_child(void)
{
    atomic_fetch_add(&mmk_process_generation, 1);
    atomic_store(&known.start, 0);
    atomic_store(&known.pid, 0);
    /* After unshare(CLONE_NEWPID) only children are in the new namespace. */
    atomic_store(&known.namespace_inode, 0);
    this_thread = (thread_facts){0};
}

__attribute__((constructor)) static void handle_fork(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

/* Field 22 of /proc/PID/stat. returns 0 or -errno. */
static int read_start(const char *path, uint64_t *start)
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
    const char *field = strrchr(text, ')');
    for (int i = 0; field && i < STAT_FIELDS_TO_START; i++)
        field = strchr(field + 1, ' ');
    if (!field)
        return -ENODATA;
    *start = strtoull(field + 1, NULL, 10);
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
        int error = read_start("/proc/self/stat", &start);
        if (error)
            return error;
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

/* returns 1 if the process has ended, 0 if not, or -errno. */
static int has_ended(pid_t pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0U);
    if (fd < 0)
        return errno == ENOSYS ? (kill(pid, 0) < 0 ? -errno : 0) : -errno;
    /* Readable once the last thread is gone: also of a zombie, which nobody has waited for. */
    struct pollfd end = {.fd = fd, .events = POLLIN};
    int ready = poll(&end, 1, 0);
    close(fd);
    return ready > 0;
}

bool mmk_process_is_gone(const mmk_process *process)
{
    int ended = has_ended((pid_t)process->pid);
    if (ended)
        return ended > 0 || ended == -ESRCH;
    if (!process->start)
        return false;
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/stat", process->pid);
    uint64_t start;
    return read_start(path, &start) == 0 && start != process->start;
}

int mmk_process_namespace(uint64_t *inode)
{
    *inode = atomic_load_explicit(&known.namespace_inode, memory_order_relaxed);
    if (*inode)
        return 0;
    struct stat status;
    if (stat("/proc/self/ns/pid", &status) < 0)
        return -errno;
    *inode = status.st_ino;
    atomic_store_explicit(&known.namespace_inode, *inode, memory_order_relaxed);
    return 0;
}
