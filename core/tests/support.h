/* support.h: what the tests of regions share: regions of a few pages, what the kernel says about an
 * address, children that may be broken, and a kernel that refuses.
 *
 * Nothing here is a mock: a refusal is the kernel's own, ordered by a seccomp(2) filter.
 */
#ifndef MMKIT_TEST_SUPPORT_H
#define MMKIT_TEST_SUPPORT_H

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <mmkit/guarded.h>
#include <mmkit/region.h>
#include <mmkit/sys.h>

#include "check.h"

#if defined(__has_feature)
#define TEST_HAS_FEATURE(name) __has_feature(name)
#else
#define TEST_HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || TEST_HAS_FEATURE(address_sanitizer)
#define UNDER_ASAN 1
#else
#define UNDER_ASAN 0
#endif
#if defined(__SANITIZE_THREAD__) || TEST_HAS_FEATURE(thread_sanitizer)
#define UNDER_TSAN 1
#else
#define UNDER_TSAN 0
#endif
#define UNDER_SANITIZER (UNDER_ASAN || UNDER_TSAN)

/* Leave a test that cannot say anything here. */
#define SKIP(why)                                                                                                      \
    do {                                                                                                               \
        printf("  skipped: %s\n", why);                                                                                \
        fflush(stdout);                                                                                                \
        return;                                                                                                        \
    } while (0)

enum {
    RW = PROT_READ | PROT_WRITE,
    CHILD_SECONDS = 20, /* a child that takes longer hangs */
};

/* What the last failed access said; each thread's own. */
static __thread mmk_fault fault __attribute__((unused));

/* ---- regions of a few pages ---- */

static inline size_t pages(size_t count)
{
    return count * mmk_page_size();
}

static inline mmk_request anonymous(size_t length, int prot)
{
    return (mmk_request){.length = length, .prot = prot, .flags = MAP_PRIVATE | MAP_ANONYMOUS, .fd = -1};
}

static inline mmk_request shared_anonymous(size_t length)
{
    return (mmk_request){.length = length, .prot = RW, .flags = MAP_SHARED | MAP_ANONYMOUS, .fd = -1};
}

static inline mmk_request file(int fd, size_t length, int flags)
{
    return (mmk_request){.length = length, .prot = RW, .flags = flags, .fd = fd};
}

static inline void map(mmk_region *region, mmk_request request)
{
    CHECK(mmk_region_map(region, &request) == 0);
}

static inline void map_pages(mmk_region *region, size_t count)
{
    map(region, anonymous(pages(count), RW));
}

/* An unlinked file of `length` bytes, each holding its page's number plus 1. */
static inline int numbered_file(size_t length)
{
    char path[] = "/tmp/mmkit-test-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);
    CHECK(fd >= 0 && unlink(path) == 0);
    static char page[65536];
    for (size_t at = 0, piece; at < length; at += piece) {
        piece = length - at < mmk_page_size() ? length - at : mmk_page_size();
        memset(page, (int)(at / mmk_page_size() + 1), piece);
        CHECK(write(fd, page, piece) == (ssize_t)piece);
    }
    return fd;
}

static inline int memory_file(size_t length)
{
    int fd = mmk_sys_memfd_create("test", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)length) == 0);
    return fd;
}

static inline size_t size_of(int fd)
{
    struct stat status;
    CHECK(fstat(fd, &status) == 0);
    return (size_t)status.st_size;
}

/* Write each page's number plus 1 all over it. */
static inline void number_pages(mmk_region *region)
{
    for (size_t page = 0; page < mmk_region_length(region) / mmk_page_size(); page++)
        memset(region->base + pages(page), (int)(page + 1), mmk_page_size());
}

static inline bool all_bytes_are(const char *bytes, size_t length, int value)
{
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != (char)value)
            return false;
    return true;
}

/* Are the first `count` pages what number_pages wrote? */
static inline bool pages_are_numbered(const char *base, size_t count)
{
    for (size_t page = 0; page < count; page++)
        if (!all_bytes_are(base + pages(page), mmk_page_size(), (int)(page + 1)))
            return false;
    return true;
}

static inline bool is_fault(uintptr_t address, mmk_fault_reason reason, bool write)
{
    if (fault.address == address && fault.reason == reason && fault.write == write)
        return true;
    fprintf(stderr, "%s of %#lx for reason %d, expected %s of %#lx for reason %d\n", fault.write ? "write" : "read",
            (unsigned long)fault.address, (int)fault.reason, write ? "write" : "read", (unsigned long)address,
            (int)reason);
    return false;
}

/* ---- what the kernel says ---- */

static inline bool can_read(const void *address)
{
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)address, 1};
    return syscall(SYS_process_vm_readv, getpid(), &here, 1UL, &there, 1UL, 0UL) == 1;
}

/* Writes the byte that is there, or 0 where it cannot be read. */
static inline bool can_write(void *address)
{
    char byte = 0;
    struct iovec here = {&byte, 1}, there = {address, 1};
    (void)syscall(SYS_process_vm_readv, getpid(), &here, 1UL, &there, 1UL, 0UL);
    return syscall(SYS_process_vm_writev, getpid(), &here, 1UL, &there, 1UL, 0UL) == 1;
}

static char maps_text[8 << 20];

/* All of /proc/self/maps, without asking malloc, which might change it. */
static inline const char *read_maps(void)
{
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    size_t have = 0;
    ssize_t got;
    while ((got = read(fd, maps_text + have, sizeof maps_text - 1 - have)) > 0)
        have += (size_t)got;
    CHECK(got == 0 && have < sizeof maps_text - 1);
    maps_text[have] = 0;
    close(fd);
    return maps_text;
}

/* Has nothing been mapped or unmapped since? TSan maps memory of its own at any time: nothing to say then. */
static inline bool maps_are(const char *before)
{
    return UNDER_TSAN || strcmp(before, read_maps()) == 0;
}

/* Bytes of a range that areas with these permissions cover ("---p"); NULL: any. */
static inline size_t bytes_with(const void *address, size_t length, const char *perms)
{
    uintptr_t first = (uintptr_t)address, end = first + length;
    size_t covered = 0;
    for (const char *line = read_maps(); *line; line = strchr(line, '\n') + 1) {
        unsigned long from, to;
        char found[5];
        CHECK(sscanf(line, "%lx-%lx %4s", &from, &to, found) == 3);
        from = from > first ? from : first;
        to = to < end ? to : end;
        if (from < to && (!perms || strcmp(perms, found) == 0))
            covered += to - from;
    }
    return covered;
}

static inline bool is_held(const void *address, size_t length)
{
    return bytes_with(address, length, "---p") == length;
}

static inline bool is_free(const void *address, size_t length)
{
    return bytes_with(address, length, NULL) == 0;
}

/* A line of /proc/self/status, in bytes. */
static inline size_t status_bytes(const char *field)
{
    char text[8192];
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    ssize_t got = read(fd, text, sizeof text - 1);
    CHECK(got > 0);
    close(fd);
    text[got] = 0;
    const char *line = strstr(text, field);
    CHECK(line);
    return strtoul(line + strlen(field), NULL, 10) * 1024;
}

static inline size_t locked_bytes(void)
{
    return status_bytes("VmLck:");
}

/* The number of the call that a thread stands in, also one of another process; -1: none. wchan would say it better, but
 * not everywhere. proc_pid_syscall(5) */
static inline long call_of(pid_t thread)
{
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/%d/syscall", thread);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    return isdigit((unsigned char)text[0]) ? atol(text) : -1; /* "running" */
}

/* ---- children ---- */

static inline void ends_well(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Run body in a child; it ends well, or the test fails. */
static inline void in_child(void body(void))
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(CHILD_SECONDS);
        body();
        fflush(NULL);
        _exit(0);
    }
    ends_well(child);
}

/* Run body in a child that is expected to die. returns how it ended, and what it said on standard error. */
static inline int death_of(void body(void), char *text, size_t capacity)
{
    int pipe_ends[2];
    CHECK(pipe(pipe_ends) == 0);
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(CHILD_SECONDS);
        CHECK(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}) == 0);
        dup2(pipe_ends[1], STDERR_FILENO);
        body();
        _exit(0);
    }
    close(pipe_ends[1]);
    size_t have = 0;
    ssize_t got;
    while (have < capacity - 1 && (got = read(pipe_ends[0], text + have, capacity - 1 - have)) > 0)
        have += (size_t)got;
    text[have] = 0;
    close(pipe_ends[0]);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

/* Become nobody: root is above RLIMIT_MEMLOCK. */
static inline void drop_privileges(void)
{
    if (geteuid() == 0)
        CHECK(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
    /* The files of /proc/self belong to root otherwise. */
    CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
}

static inline void limit(int resource, size_t bytes)
{
    CHECK(setrlimit(resource, &(struct rlimit){bytes, bytes}) == 0);
}

/* ---- a kernel that refuses ---- */

static inline long install_filter(struct sock_filter *program, unsigned short length, unsigned flags)
{
    struct sock_fprog filter = {length, program};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
}

/* From now on and for good: the call answers error if (its argument & mask) == value. In a child. */
static inline void refuse(long number, int argument, uint32_t mask, uint32_t value, int error)
{
    unsigned low_word = (unsigned)(offsetof(struct seccomp_data, args) + (size_t)argument * 8);
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, low_word),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    CHECK(install_filter(program, sizeof program / sizeof *program, 0) == 0);
}

/* The guards of Linux 6.13 are not there. */
static inline void refuse_kernel_guards(void)
{
    refuse(SYS_madvise, 2, 0xfffffffe, 102, EINVAL);
}

/* What to do with a call: 0 lets it go on, an errno refuses it. Runs in a thread of its own while the
 * caller stands in the call, and may do what it likes meanwhile. */
typedef int call_judge(const struct seccomp_data *call);

static struct {
    call_judge *judge;
    int listener;
    sem_t ready;
    atomic_bool armed;
} watched;

static inline void *judge_calls(void *unused)
{
    while (sem_wait(&watched.ready) < 0)
        ;
    for (;;) {
        struct seccomp_notif call = {0};
        if (ioctl(watched.listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0)
            continue;
        int error = atomic_load(&watched.armed) ? watched.judge(&call.data) : 0;
        struct seccomp_notif_resp answer = {.id = call.id};
        if (error)
            answer.error = -error;
        else
            answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        CHECK(ioctl(watched.listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) == 0);
    }
    return unused;
}

/* From now on and for good, this thread's calls with up to 4 numbers are judged while watched.armed. In a child. */
static inline void watch_calls(call_judge *judge, const long numbers[4])
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)numbers[0], 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)numbers[1], 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)numbers[2], 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)numbers[3], 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    };
    watched.judge = judge;
    CHECK(sem_init(&watched.ready, 0, 0) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, judge_calls, NULL) == 0 && pthread_detach(thread) == 0);
    watched.listener = (int)install_filter(program, sizeof program / sizeof *program, SECCOMP_FILTER_FLAG_NEW_LISTENER);
    CHECK(watched.listener >= 0);
    CHECK(sem_post(&watched.ready) == 0);
}

#endif
