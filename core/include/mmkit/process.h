/* process.h: who a process is, so that others can tell later whether it still lives.
 *
 * A pid alone does not tell: it is given to somebody else when its process is gone. A pid with the moment at
 * which its process started does, within one boot, one PID namespace and one time namespace: the kernel tells each
 * time namespace another start of the same process.
 *
 * Threads: any call from any thread.
 * Fork:    a child is somebody else: what is remembered here of the process is forgotten in it.
 * Signals: mmk_process_generation only.
 */
#ifndef MMKIT_PROCESS_H
#define MMKIT_PROCESS_H

#include <stdatomic.h>
#include <stdbool.h>

#include <mmkit/base.h>

typedef struct mmk_process {
    uint32_t pid;   /* of the thread group, in the PID namespace of whoever looks; 0: nobody */
    uint64_t start; /* in clock ticks since boot, field 22 of proc_pid_stat(5); 0: not known */
} mmk_process;

/* How many times a fork lies between this process and the one that loaded the library: whoever keeps something that
 * a child does not have (the ownership of a lock) compares. Written in the child of a fork, before anything runs. */
MMK_API extern _Atomic uint32_t mmk_process_generation;

/* The calling process. proc_pid_stat(5).
 * returns  0; -errno where /proc/self cannot be read */
MMK_API MMK_MUST_CHECK int mmk_process_self(mmk_process *self);

/* The calling thread's identifier, as gettid(2), without a system call but for a thread's first. */
MMK_API uint32_t mmk_thread_id(void);

typedef enum mmk_life {
    MMK_LIFE_UNKNOWN, /* it cannot be looked at (hidepid, no descriptor left), or its start is not known */
    MMK_LIFE_LASTS,
    MMK_LIFE_ENDED, /* be it as a zombie, or so that a thread has its number now */
} mmk_life;

/* Does the process still live? pidfd_open(2), Linux 5.3; kill(2) where it is not there or refused. */
MMK_API mmk_life mmk_process_life(const mmk_process *process);

/* Is it known to have ended? */
MMK_API bool mmk_process_is_gone(const mmk_process *process);

/* When the process that has a pid started. proc_pid_stat(5).
 * returns  0; -errno where it cannot be looked at, and start is 0 */
MMK_API int mmk_process_start(uint32_t pid, uint64_t *start);

/* Which boot this is: what proc_sys_kernel(5) has as random/boot_id, as 16 bytes.
 * returns  0; -errno where it cannot be read */
MMK_API MMK_MUST_CHECK int mmk_process_boot(uint8_t boot[16]);

/* Where a pid and a start mean what they say: the inodes of the caller's PID namespace, in the lower half, and of its
 * time namespace, in the upper; that is 0 in a kernel that has none. pid_namespaces(7), time_namespaces(7).
 * returns  0; -errno where /proc/self/ns cannot be read */
MMK_API MMK_MUST_CHECK int mmk_process_namespace(uint64_t *namespaces);

#endif
