/* sys.h: the system calls, as the kernel has them, with errors as negative errno values.
 *
 * One function a man page, same argument order. Where glibc has a wrapper it is called, so that
 * tracers which interpose libc (and the sanitizers) see the call; where it has none (glibc 2.36
 * lacks mseal, memfd_secret and cachestat, older ones the process_* calls) the number here is used.
 * Headers and glibc are older than kernels, so constants are mmkit's own.
 *
 * Threads: any call from any thread, but for mmk_sys_sbrk, whose note says why.
 * Fork:    no state is kept.
 * Signals: every call but mmk_sys_sbrk and mmk_sys_shm_* is async-signal-safe; errno is overwritten.
 */
#ifndef MMKIT_SYS_H
#define MMKIT_SYS_H

#include <sys/types.h>

#include <mmkit/base.h>

/* madvise(2) advice this core itself gives; linux/mman.h of 6.18. */
enum {
    MMK_MADV_DONTNEED = 4,
    MMK_MADV_REMOVE = 9,
    MMK_MADV_DONTFORK = 10,
    MMK_MADV_POPULATE_READ = 22,
    MMK_MADV_POPULATE_WRITE = 23,
    MMK_MADV_GUARD_INSTALL = 102,
    MMK_MADV_GUARD_REMOVE = 103,
};

/* cachestat(2): the range, and what of it the page cache holds, in pages. */
typedef struct mmk_cachestat_range {
    uint64_t offset;
    uint64_t length;
} mmk_cachestat_range;

typedef struct mmk_cachestat {
    uint64_t cached;
    uint64_t dirty;
    uint64_t writeback;
    uint64_t evicted;
    uint64_t recently_evicted;
} mmk_cachestat;

struct iovec;
struct shmid_ds;

/* sbrk(2): move the program break by increment bytes. Returns its previous value, or -ENOMEM.
 *
 * Through libc: glibc's malloc trusts libc's idea of the break and corrupts itself when the raw
 * call has moved it. libc takes no lock: a malloc in another thread that grows the heap at the
 * same moment corrupts memory. pre: no other thread can be inside malloc or sbrk. */
MMK_API intptr_t mmk_sys_sbrk(intptr_t increment);

/* mmap(2). Returns the address, or -errno. */
MMK_API intptr_t mmk_sys_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
MMK_API int mmk_sys_munmap(void *addr, size_t length);
/* mremap(2). new_address is read only with MREMAP_FIXED or MREMAP_DONTUNMAP. */
MMK_API intptr_t mmk_sys_mremap(void *old_address, size_t old_size, size_t new_size, int flags, void *new_address);
MMK_API int mmk_sys_msync(void *addr, size_t length, int flags);
MMK_API int mmk_sys_mprotect(void *addr, size_t length, int prot);
MMK_API int mmk_sys_madvise(void *addr, size_t length, int advice);
/* mincore(2). pre: vec holds one byte for each page touched by the range. */
MMK_API int mmk_sys_mincore(void *addr, size_t length, unsigned char *vec);

MMK_API int mmk_sys_mlock(const void *addr, size_t length);
MMK_API int mmk_sys_mlock2(const void *addr, size_t length, unsigned flags);
MMK_API int mmk_sys_munlock(const void *addr, size_t length);
MMK_API int mmk_sys_mlockall(int flags);
MMK_API int mmk_sys_munlockall(void);

/* memfd_create(2), memfd_secret(2): a file descriptor, or -errno (-ENOSYS where secretmem is off). */
MMK_API int mmk_sys_memfd_create(const char *name, unsigned flags);
MMK_API int mmk_sys_memfd_secret(unsigned flags);
/* mseal(2), Linux 6.10: no later call can unmap, move, reprotect or discard the range. */
MMK_API int mmk_sys_mseal(void *addr, size_t length, unsigned long flags);
/* cachestat(2), Linux 6.5. */
MMK_API int mmk_sys_cachestat(int fd, const mmk_cachestat_range *range, mmk_cachestat *out, unsigned flags);

/* shm_open(3), shm_unlink(3). */
MMK_API int mmk_sys_shm_open(const char *name, int oflag, mode_t mode);
MMK_API int mmk_sys_shm_unlink(const char *name);
/* shmget(2), shmat(2), shmdt(2), shmctl(2): an identifier, an address, or a command's own result. */
MMK_API int mmk_sys_shmget(key_t key, size_t size, int shmflg);
MMK_API intptr_t mmk_sys_shmat(int shmid, const void *shmaddr, int shmflg);
MMK_API int mmk_sys_shmdt(const void *shmaddr);
MMK_API int mmk_sys_shmctl(int shmid, int command, struct shmid_ds *buf);

/* process_vm_readv(2), process_vm_writev(2): bytes moved, which may be fewer than asked. */
MMK_API ssize_t mmk_sys_process_vm_readv(pid_t pid, const struct iovec *local_iov, unsigned long liovcnt,
                                         const struct iovec *remote_iov, unsigned long riovcnt, unsigned long flags);
MMK_API ssize_t mmk_sys_process_vm_writev(pid_t pid, const struct iovec *local_iov, unsigned long liovcnt,
                                          const struct iovec *remote_iov, unsigned long riovcnt, unsigned long flags);

/* process_madvise(2), Linux 5.10: bytes advised, which may be fewer than asked. process_mrelease(2), Linux 5.15. */
MMK_API ssize_t mmk_sys_process_madvise(int pidfd, const struct iovec *iovec, size_t vlen, int advice, unsigned flags);
MMK_API int mmk_sys_process_mrelease(int pidfd, unsigned flags);

/* pkey_alloc(2), pkey_free(2), pkey_mprotect(2), Linux 4.9: a key's number, or 0.
 * -ENOSPC also where the processor has no keys; pkey -1 makes pkey_mprotect the same as mprotect. */
MMK_API int mmk_sys_pkey_alloc(unsigned flags, unsigned access_rights);
MMK_API int mmk_sys_pkey_free(int pkey);
MMK_API int mmk_sys_pkey_mprotect(void *addr, size_t length, int prot, int pkey);

/* userfaultfd(2), Linux 4.3: a file descriptor. -EPERM without UFFD_USER_MODE_ONLY, unless privileged. */
MMK_API int mmk_sys_userfaultfd(int flags);
/* membarrier(2), Linux 4.3: for QUERY and GET_REGISTRATIONS a set of commands, else 0. */
MMK_API int mmk_sys_membarrier(int cmd, unsigned flags, int cpu_id);

/* mbind(2), get_mempolicy(2), set_mempolicy(2), move_pages(2): -ENOSYS where the kernel was built without NUMA.
 * maxnode counts bits; the kernel looks at one fewer, so it is one more than those that are there to be read. */
MMK_API int mmk_sys_mbind(void *addr, size_t length, int mode, const unsigned long *nodemask, unsigned long maxnode,
                          unsigned flags);
/* pre: nodemask has room for maxnode bits, rounded up to whole longs, which must be as many as the kernel's nodes. */
MMK_API int mmk_sys_get_mempolicy(int *mode, unsigned long *nodemask, unsigned long maxnode, void *addr,
                                  unsigned long flags);
MMK_API int mmk_sys_set_mempolicy(int mode, const unsigned long *nodemask, unsigned long maxnode);
/* Returns 0, or since Linux 4.17 the number of pages that were not moved. pre: each vector has count entries. */
MMK_API long mmk_sys_move_pages(pid_t pid, unsigned long count, void **pages, const int *nodes, int *status, int flags);

/* syscall(2): any call by its number, for asking whether the kernel has it. */
MMK_API long mmk_sys_syscall(long number, const long arguments[6]);

/* prctl(2), PR_SET_VMA_ANON_NAME, Linux 5.17: name an anonymous range for /proc/PID/maps.
 * -EINVAL where the kernel was built without CONFIG_ANON_VMA_NAME. */
MMK_API int mmk_sys_name_anonymous(void *addr, size_t length, const char *name);

#endif
