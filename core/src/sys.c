#include <mmkit/sys.h>

#include <errno.h>
#include <stdatomic.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Calls added since Linux 5.1 have the same number on x86-64 and aarch64. */
enum {
    NR_process_madvise = 440,
    NR_memfd_secret = 447,
    NR_process_mrelease = 448,
    NR_cachestat = 451,
    NR_mseal = 462,
};

enum {
    SET_VMA = 0x53564d41, /* PR_SET_VMA */
    SET_VMA_ANON_NAME = 0,
};

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "mmkit knows the system calls of x86-64 and aarch64"
#endif

static inline long answer(long result)
{
    return result == -1 ? -errno : result;
}

static inline intptr_t address_answer(void *result)
{
    return result == MAP_FAILED ? -errno : (intptr_t)result;
}

size_t mmk_page_size(void)
{
    static atomic_size_t cached;
    size_t size = atomic_load_explicit(&cached, memory_order_relaxed);
    if (size == 0) {
        size = (size_t)sysconf(_SC_PAGESIZE);
        atomic_store_explicit(&cached, size, memory_order_relaxed);
    }
    return size;
}

intptr_t mmk_sys_sbrk(intptr_t increment)
{
    return address_answer(sbrk(increment));
}

intptr_t mmk_sys_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    return address_answer(mmap(addr, length, prot, flags, fd, offset));
}

int mmk_sys_munmap(void *addr, size_t length)
{
    return (int)answer(munmap(addr, length));
}

intptr_t mmk_sys_mremap(void *old_address, size_t old_size, size_t new_size, int flags, void *new_address)
{
    /* glibc before 2.40 reads the fifth argument only with MREMAP_FIXED; MREMAP_DONTUNMAP takes it too. */
    return (intptr_t)answer(syscall(SYS_mremap, old_address, old_size, new_size, flags, new_address));
}

int mmk_sys_msync(void *addr, size_t length, int flags)
{
    return (int)answer(msync(addr, length, flags));
}

int mmk_sys_mprotect(void *addr, size_t length, int prot)
{
    return (int)answer(mprotect(addr, length, prot));
}

int mmk_sys_madvise(void *addr, size_t length, int advice)
{
    return (int)answer(madvise(addr, length, advice));
}

int mmk_sys_mincore(void *addr, size_t length, unsigned char *vec)
{
    return (int)answer(mincore(addr, length, vec));
}

int mmk_sys_mlock(const void *addr, size_t length)
{
    return (int)answer(mlock(addr, length));
}

int mmk_sys_mlock2(const void *addr, size_t length, unsigned flags)
{
    return (int)answer(mlock2(addr, length, flags));
}

int mmk_sys_munlock(const void *addr, size_t length)
{
    return (int)answer(munlock(addr, length));
}

int mmk_sys_mlockall(int flags)
{
    return (int)answer(mlockall(flags));
}

int mmk_sys_munlockall(void)
{
    return (int)answer(munlockall());
}

int mmk_sys_memfd_create(const char *name, unsigned flags)
{
    return (int)answer(memfd_create(name, flags));
}

int mmk_sys_memfd_secret(unsigned flags)
{
    return (int)answer(syscall(NR_memfd_secret, flags));
}

int mmk_sys_mseal(void *addr, size_t length, unsigned long flags)
{
    return (int)answer(syscall(NR_mseal, addr, length, flags));
}

int mmk_sys_cachestat(int fd, const mmk_cachestat_range *range, mmk_cachestat *out, unsigned flags)
{
    return (int)answer(syscall(NR_cachestat, fd, range, out, flags));
}

int mmk_sys_shm_open(const char *name, int oflag, mode_t mode)
{
    return (int)answer(shm_open(name, oflag, mode));
}

int mmk_sys_shm_unlink(const char *name)
{
    return (int)answer(shm_unlink(name));
}

int mmk_sys_shmget(key_t key, size_t size, int shmflg)
{
    return (int)answer(shmget(key, size, shmflg));
}

intptr_t mmk_sys_shmat(int shmid, const void *shmaddr, int shmflg)
{
    return address_answer(shmat(shmid, shmaddr, shmflg));
}

int mmk_sys_shmdt(const void *shmaddr)
{
    return (int)answer(shmdt(shmaddr));
}

int mmk_sys_shmctl(int shmid, int command, struct shmid_ds *buf)
{
    return (int)answer(shmctl(shmid, command, buf));
}

ssize_t mmk_sys_process_vm_readv(pid_t pid, const struct iovec *local_iov, unsigned long liovcnt,
                                 const struct iovec *remote_iov, unsigned long riovcnt, unsigned long flags)
{
    return answer(process_vm_readv(pid, local_iov, liovcnt, remote_iov, riovcnt, flags));
}

ssize_t mmk_sys_process_vm_writev(pid_t pid, const struct iovec *local_iov, unsigned long liovcnt,
                                  const struct iovec *remote_iov, unsigned long riovcnt, unsigned long flags)
{
    return answer(process_vm_writev(pid, local_iov, liovcnt, remote_iov, riovcnt, flags));
}

ssize_t mmk_sys_process_madvise(int pidfd, const struct iovec *iovec, size_t vlen, int advice, unsigned flags)
{
    return answer(syscall(NR_process_madvise, pidfd, iovec, vlen, advice, flags));
}

int mmk_sys_process_mrelease(int pidfd, unsigned flags)
{
    return (int)answer(syscall(NR_process_mrelease, pidfd, flags));
}

int mmk_sys_pkey_alloc(unsigned flags, unsigned access_rights)
{
    return (int)answer(pkey_alloc(flags, access_rights));
}

int mmk_sys_pkey_free(int pkey)
{
    return (int)answer(pkey_free(pkey));
}

int mmk_sys_pkey_mprotect(void *addr, size_t length, int prot, int pkey)
{
    return (int)answer(pkey_mprotect(addr, length, prot, pkey));
}

int mmk_sys_userfaultfd(int flags)
{
    return (int)answer(syscall(SYS_userfaultfd, flags));
}

int mmk_sys_membarrier(int cmd, unsigned flags, int cpu_id)
{
    return (int)answer(syscall(SYS_membarrier, cmd, flags, cpu_id));
}

int mmk_sys_mbind(void *addr, size_t length, int mode, const unsigned long *nodemask, unsigned long maxnode,
                  unsigned flags)
{
    return (int)answer(syscall(SYS_mbind, addr, length, mode, nodemask, maxnode, flags));
}

int mmk_sys_get_mempolicy(int *mode, unsigned long *nodemask, unsigned long maxnode, void *addr, unsigned long flags)
{
    return (int)answer(syscall(SYS_get_mempolicy, mode, nodemask, maxnode, addr, flags));
}

int mmk_sys_set_mempolicy(int mode, const unsigned long *nodemask, unsigned long maxnode)
{
    return (int)answer(syscall(SYS_set_mempolicy, mode, nodemask, maxnode));
}

long mmk_sys_move_pages(pid_t pid, unsigned long count, void **pages, const int *nodes, int *status, int flags)
{
    return answer(syscall(SYS_move_pages, pid, count, pages, nodes, status, flags));
}

long mmk_sys_syscall(long number, const long arguments[6])
{
    return answer(syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]));
}

int mmk_sys_name_anonymous(void *addr, size_t length, const char *name)
{
    return (int)answer(prctl(SET_VMA, (unsigned long)SET_VMA_ANON_NAME, addr, length, name));
}
