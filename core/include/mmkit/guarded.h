/* guarded.h: touching memory that may not be there, or that others may take away meanwhile.
 *
 *     mmk_guarded_copy ──> the bytes are there: copied, 0
 *                     └──> they are not: SIGSEGV or SIGBUS ──> fault.h's handler finds the program counter
 *                          in the copying routine and ends that ──> -EFAULT, and what is known of it
 *
 * Threads: any. Fork: nothing is kept. Signals: mmk_guarded_copy may be called in a fault hook (fault.h).
 */
#ifndef MMKIT_GUARDED_H
#define MMKIT_GUARDED_H

#include <stdbool.h>
#include <sys/types.h>

#include <mmkit/base.h>

/* Why memory could not be touched, as far as the kernel tells. */
typedef enum mmk_fault_reason {
    MMK_FAULT_UNKNOWN,
    MMK_FAULT_PROTECTION,     /* SEGV_ACCERR */
    MMK_FAULT_UNMAPPED,       /* SEGV_MAPERR: nothing is mapped there, or a guard is installed */
    MMK_FAULT_NOT_AN_ADDRESS, /* non-canonical: no page table can hold it */
    MMK_FAULT_PROTECTION_KEY, /* SEGV_PKUERR */
    MMK_FAULT_NOT_BACKED,     /* BUS_ADRERR: no page stands behind it; which of the next three is not known */
    MMK_FAULT_BEYOND_END,     /* the file ends before it */
    MMK_FAULT_NO_MEMORY,      /* no page, huge page or disk space is left to back it */
    MMK_FAULT_IO_ERROR,       /* the file could not be read */
    MMK_FAULT_POISONED,       /* BUS_MCEERR_AR: the hardware lost the contents */
} mmk_fault_reason;

/* A bad access. */
typedef struct mmk_fault {
    uintptr_t address; /* the first byte that was met and could not be touched, as near as the kernel tells */
    mmk_fault_reason reason;
    bool write;
} mmk_fault;

/* Copy length bytes from one address to another, both any number at all, as memmove(3).
 *
 * returns  0
 *          -EFAULT  with *fault filled: some byte could not be read or written. Bytes in front of it may have
 *                   been copied.
 * Cost: 4 ns more than memmove(3), most of which is a look at the clock: once a tick (4 ms) each thread makes sure
 * that the handler is in front and that the signals are not blocked. sigaction(2), sigprocmask(2) */
MMK_API MMK_MUST_CHECK int mmk_guarded_copy(void *to, const void *from, size_t length, mmk_fault *fault);

/* Where a byte first stands in the range, as memchr(3): its index, -ENOENT, or -EFAULT as above, where what lies in
 * front of the fault does not hold it. */
MMK_API MMK_MUST_CHECK ssize_t mmk_guarded_scan(const void *from, size_t length, unsigned char byte, mmk_fault *fault);

#endif
