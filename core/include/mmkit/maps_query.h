/* maps_query.h: the one area at an address, and where threads have their stacks, without reading a map.
 *
 * Threads: state is the caller's; calls that take a mmk_own_map as const may run at the same time.
 * Signals: every call is async-signal-safe; errno is overwritten.
 * Stands on proc_pid_maps(5), PROCMAP_QUERY, Linux 6.11.
 */
#ifndef MMKIT_MAPS_QUERY_H
#define MMKIT_MAPS_QUERY_H

#include <sys/types.h>

#include <mmkit/maps.h>

/* The longest path that a query tells, with its NUL: PATH_MAX. The text of maps has longer ones, too. */
enum {
    MMK_MAPS_PATH_MAX = 4096,
};

/* Which area. */
enum {
    MMK_QUERY_HOLDING = 0,      /* the one that holds the address */
    MMK_QUERY_CODE_FROM = 0x34, /* the first executable one of a file that ends after the address */
};

/* An area by its address. ioctl(2) PROCMAP_QUERY on an open /proc/PID/maps.
 *
 * path     gets the path as it is (nothing in it is escaped), without " (deleted)" and without NUL
 * pre:     path has room for MMK_MAPS_PATH_MAX bytes.
 * returns  0 with *area, *path_length and *facts (MMK_PATH_*) filled
 *          -ENOENT  there is none (vsyscall, which is no area of the process, counts as none)
 *          -ENOTTY  the kernel does not have the call: read and parse instead
 *          -ENAMETOOLONG  its path is longer: read and parse instead
 *          -ESRCH   the process ended, or never had memory (kernel threads)
 *          -errno   of ioctl(2) */
MMK_API MMK_MUST_CHECK int mmk_maps_query(int fd, uint64_t address, int which, mmk_area *area, char *path,
                                          size_t *path_length, unsigned *facts);

/* The map of the calling process, kept open: opening it costs ten times what a query does.
 *
 * Fork: the descriptor that a child inherits shows the parent's memory. A page that the kernel wipes in the
 *       child (MADV_WIPEONFORK) tells, whoever forked and however.
 * The program may close descriptors that it does not know, and open others with their numbers. Device and inode
 * tell whether what is there shows this memory, whoever opened it. A child closes what it inherits only if it also
 * has our mark (F_SETSIG, which forks share and nobody else has): a map that the program opened itself stays.
 * Not known is what another thread puts there between a check and the query. Begins as zeros. */
typedef struct mmk_own_map {
    uint64_t *is_ours; /* on the page that a child has wiped; NULL: none yet */
    int fd;            /* valid where is_ours is not NULL */
    dev_t device;
    ino_t inode;
} mmk_own_map;

/* Open, or open anew, what mmk_own_map_check finds missing. One thread at a time.
 * returns  0
 *          -EINVAL  no MADV_WIPEONFORK (before Linux 4.14)
 *          -errno   of mmap(2), open(2), fcntl(2), fstat(2) */
MMK_API MMK_MUST_CHECK int mmk_own_map_open(mmk_own_map *own);

/* Does own->fd show the memory of this process? fstat(2).
 * returns  0
 *          -MMK_ECLOSED  no: open it */
MMK_API MMK_MUST_CHECK int mmk_own_map_check(const mmk_own_map *own);

/* Has the process never had a second thread? False where libc does not tell (glibc before 2.32, musl). */
MMK_API bool mmk_is_single_threaded(void);

/* An address inside the stack of a thread: that of its list of robust locks, which glibc keeps at the upper end
 * of the stack that it made for the thread. The main thread's is elsewhere. get_robust_list(2).
 *
 * returns  0 with *address filled; 0 there: the thread has no such list (musl, until it needs one)
 *          -ESRCH  there is no such thread
 *          -EPERM  ptrace(2) would not be allowed either */
MMK_API MMK_MUST_CHECK int mmk_thread_stack_address(pid_t thread, uint64_t *address);

#endif
