/* The bare system calls: what nobody can go below. Each function does one piece of work n times and
 * returns the nanoseconds that all of it took, or a negative errno. Compiled and loaded by peers.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#define TIMED(n, work)                                                                                                 \
    int64_t start = now();                                                                                             \
    for (int64_t i = 0; i < (n); i++)                                                                                  \
        if (work)                                                                                                      \
            return -errno;                                                                                             \
    return now() - start

int64_t bare_madvise(void *address, size_t length, int advice, int64_t n)
{
    TIMED(n, madvise(address, length, advice));
}

int64_t bare_msync(void *address, size_t length, int flags, int64_t n)
{
    TIMED(n, msync(address, length, flags));
}

/* Does the file still have the range? What a synchronous flush must ask to notice that it has not. */
static int msync_and_fstat(void *address, size_t length, int flags, int fd)
{
    struct stat status;
    return msync(address, length, flags) || syscall(SYS_fstat, fd, &status);
}

int64_t bare_msync_and_fstat(void *address, size_t length, int flags, int fd, int64_t n)
{
    TIMED(n, msync_and_fstat(address, length, flags, fd));
}

int64_t bare_mprotect(void *address, size_t length, int prot, int64_t n)
{
    TIMED(n, mprotect(address, length, prot));
}

/* Two calls count as one. */
int64_t bare_mprotect_twice(void *address, size_t length, int first, int second, int64_t n)
{
    TIMED(n, mprotect(address, length, first) || mprotect(address, length, second));
}

static int map_and_unmap(size_t length)
{
    void *address = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return address == MAP_FAILED || munmap(address, length);
}

int64_t bare_map_and_unmap(size_t length, int64_t n)
{
    TIMED(n, map_and_unmap(length));
}

/* A file of /proc from its beginning to its end, into a buffer that holds it. */
static int read_whole(int fd, char *buffer, size_t capacity)
{
    size_t length = 0;
    ssize_t got;
    if (lseek(fd, 0, SEEK_SET))
        return -1;
    while ((got = read(fd, buffer + length, capacity - length)) > 0)
        length += (size_t)got;
    return (int)got;
}

int64_t bare_read_whole(int fd, char *buffer, size_t capacity, int64_t n)
{
    TIMED(n, read_whole(fd, buffer, capacity));
}
