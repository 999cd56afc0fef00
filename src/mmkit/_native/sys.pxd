"""core/include/mmkit/sys.h, program_break.h and registry.h."""

from libc.stdint cimport intptr_t, uint64_t, uintptr_t
from posix.types cimport gid_t, mode_t, off_t, pid_t, uid_t

from mmkit._native.base cimport mmk_range

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/shm.h>" nogil:
    ctypedef int key_t

    struct ipc_perm:
        key_t __key
        uid_t uid
        gid_t gid
        uid_t cuid
        gid_t cgid
        unsigned short mode
        unsigned short __seq

    struct shmid_ds:
        ipc_perm shm_perm
        size_t shm_segsz
        long shm_atime
        long shm_dtime
        long shm_ctime
        pid_t shm_cpid
        pid_t shm_lpid
        unsigned long shm_nattch

    struct shminfo:
        unsigned long shmmax
        unsigned long shmmin
        unsigned long shmmni
        unsigned long shmseg
        unsigned long shmall

    struct shm_info:
        int used_ids
        unsigned long shm_tot
        unsigned long shm_rss
        unsigned long shm_swp

    key_t c_ftok "ftok"(const char *pathname, int proj_id)

cdef extern from "mmkit/sys.h" nogil:
    ctypedef struct mmk_cachestat_range:
        uint64_t offset
        uint64_t length

    ctypedef struct mmk_cachestat:
        uint64_t cached
        uint64_t dirty
        uint64_t writeback
        uint64_t evicted
        uint64_t recently_evicted

    intptr_t mmk_sys_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int mmk_sys_munmap(void *addr, size_t length)
    intptr_t mmk_sys_mremap(void *old_address, size_t old_size, size_t new_size, int flags, void *new_address)
    int mmk_sys_msync(void *addr, size_t length, int flags)
    int mmk_sys_mprotect(void *addr, size_t length, int prot)
    int mmk_sys_madvise(void *addr, size_t length, int advice)
    int mmk_sys_mincore(void *addr, size_t length, unsigned char *vec)
    int mmk_sys_mlock(const void *addr, size_t length)
    int mmk_sys_mlock2(const void *addr, size_t length, unsigned flags)
    int mmk_sys_munlock(const void *addr, size_t length)
    int mmk_sys_mlockall(int flags)
    int mmk_sys_munlockall()
    int mmk_sys_memfd_create(const char *name, unsigned flags)
    int mmk_sys_memfd_secret(unsigned flags)
    int mmk_sys_mseal(void *addr, size_t length, unsigned long flags)
    int mmk_sys_cachestat(int fd, const mmk_cachestat_range *range, mmk_cachestat *out, unsigned flags)
    int mmk_sys_shm_open(const char *name, int oflag, mode_t mode)
    int mmk_sys_shm_unlink(const char *name)
    int mmk_sys_shmget(key_t key, size_t size, int shmflg)
    intptr_t mmk_sys_shmat(int shmid, const void *shmaddr, int shmflg)
    int mmk_sys_shmdt(const void *shmaddr)
    int mmk_sys_shmctl(int shmid, int command, shmid_ds *buf)
    ssize_t mmk_sys_process_vm_readv(pid_t pid, const iovec *local_iov, unsigned long liovcnt,
                                     const iovec *remote_iov, unsigned long riovcnt, unsigned long flags)
    ssize_t mmk_sys_process_vm_writev(pid_t pid, const iovec *local_iov, unsigned long liovcnt,
                                      const iovec *remote_iov, unsigned long riovcnt, unsigned long flags)
    ssize_t mmk_sys_process_madvise(int pidfd, const iovec *iovec, size_t vlen, int advice, unsigned flags)
    int mmk_sys_process_mrelease(int pidfd, unsigned flags)
    int mmk_sys_pkey_alloc(unsigned flags, unsigned access_rights)
    int mmk_sys_pkey_free(int pkey)
    int mmk_sys_pkey_mprotect(void *addr, size_t length, int prot, int pkey)
    int mmk_sys_userfaultfd(int flags)
    int mmk_sys_membarrier(int cmd, unsigned flags, int cpu_id)
    int mmk_sys_mbind(void *addr, size_t length, int mode, const unsigned long *nodemask, unsigned long maxnode,
                      unsigned flags)
    int mmk_sys_get_mempolicy(int *mode, unsigned long *nodemask, unsigned long maxnode, void *addr,
                              unsigned long flags)
    int mmk_sys_set_mempolicy(int mode, const unsigned long *nodemask, unsigned long maxnode)
    long mmk_sys_move_pages(pid_t pid, unsigned long count, void **pages, const int *nodes, int *status, int flags)
    long mmk_sys_syscall(long number, const long *arguments)
    int mmk_sys_name_anonymous(void *addr, size_t length, const char *name)

cdef extern from "mmkit/program_break.h" nogil:
    intptr_t mmk_break_move(intptr_t increment)

cdef extern from "mmkit/registry.h" nogil:
    int mmk_registry_hold(mmk_range range)
    void mmk_registry_release(mmk_range range)
    mmk_range mmk_registry_overlap(uintptr_t address, size_t length)
