/* secret.h: memory for keys and passwords: locked, guarded, unreadable while nobody looks, and wiped.
 *
 * Small secrets share slabs, one page each, so that one costs as little of RLIMIT_MEMLOCK as its slot has bytes:
 *
 *      outer     base                                        base + length
 *       [ guard  ][ slot ][ slot ][ slot ] ...            [ slot ][ guard  ]
 *                  |      |
 *        slot:     [ canary, 16 B ][ the secret ][ canary, to the slot's end: at least 16 B ]
 *
 * A slot has 64, 128 ... 4096 bytes, as the secret asks. A longer secret, or one that shall stand alone, has pages of
 * its own, and ends where the guard begins; canaries fill what is in front of it:
 *
 *       [ guard  ][ canary ][ the secret                                  ][ guard  ]
 *
 * While nobody has a secret open, its slab is PROT_NONE; who opens one slot opens its slab-mates. What is known of a
 * slab stands outside it. A canary is a word that depends on its address and on a key that the process drew at random;
 * none of its bytes is 0, so the terminator of a string that is one byte too long never passes for one. A slot that
 * nobody has is canaries from end to end: so it is wiped when it is released, and what is written into it afterwards
 * is found. A slot that was never opened holds nothing, and costs no call to the kernel.
 *
 * Damaged canaries end the process by abort(3), with one line: what has written there may have written anywhere. That
 * is looked at when a secret is opened for the first time, when access for writing ends, and when it is released.
 *
 * The caller owns the mmk_secret, zeroed at first, and keeps it at one address while the secret lives.
 *
 * Threads: any call from any thread; one lock is over all secrets, since mprotect(2) has the process to itself anyway.
 *          It comes before the registry's, and is never held while memory is allocated.
 * Fork:    the child has no secrets: the kernel gives it zeros in their place, or nothing, and its copy would not be
 *          locked. All that it inherits is closed; slabs that nobody had open at that moment are unmapped, others are
 *          left as they are for who still has a pointer into them. New secrets of the child get new slabs.
 * Exit:    exit(3) wipes what was not released: the kernel does not wipe what it takes back.
 * Signals: mmk_secret_copy, _erase, _equal, _scrub only.
 */
#ifndef MMKIT_SECRET_H
#define MMKIT_SECRET_H

#include <stdbool.h>
#include <sys/types.h>

#include <mmkit/base.h>

/* What stands behind a secret. */
typedef enum mmk_secret_kind {
    MMK_SECRET_LOCKED,   /* anonymous, mlock(2); not in core dumps; zeros in children */
    MMK_SECRET_UNLOCKED, /* the same, but the kernel may write it to swap */
    MMK_SECRET_MEMFD,    /* memfd_secret(2): the kernel itself has not mapped it; not in children. No hibernation. */
    MMK_SECRET_KINDS
} mmk_secret_kind;

typedef struct mmk_secret {
    struct secret_area *area; /* NULL: closed */
    char *bytes;              /* to be touched only while it is open */
    size_t length;            /* bytes asked for; stays when it is closed */
    size_t readers, writers;  /* how often it is open now */
    uint64_t era;             /* changes in a forked child */
    uint32_t slot;
    bool used; /* it was opened: there is something to wipe */
} mmk_secret;

/* Which call failed, for whom a number says too little. */
typedef struct mmk_secret_refusal {
    const char *call; /* as its man page is named */
    size_t length;    /* bytes that it was about */
} mmk_secret_refusal;

/* Make a secret of zeros.
 *
 * pre:     length > 0; *secret is closed
 * alone    own pages, with its end at the guard
 * returns  0
 *          -ENOMEM, -EPERM  with "mlock" in *refusal: the pages would not fit RLIMIT_MEMLOCK beside what is locked,
 *                           which is looked at before anything is locked; empty slabs were given back first
 *          -EAGAIN          with "mmap": the same for memfd_secret(2). -ENOSYS with "memfd_secret": it is off
 *          -ENOMEM          with "mmap" or "mprotect": no memory, or the process has too many areas
 *          -errno           of another call, named in *refusal
 * On error nothing stays mapped, locked or open. */
MMK_API MMK_MUST_CHECK int mmk_secret_take(mmk_secret *secret, size_t length, mmk_secret_kind kind, bool alone,
                                           mmk_secret_refusal *refusal);

/* Make its bytes readable (and writable), until mmk_secret_shut with the same `write`. Opens nest, and add up.
 *
 * returns  0
 *          -MMK_ECLOSED
 *          -errno  of mprotect(2); it is not open */
MMK_API MMK_MUST_CHECK int mmk_secret_open(mmk_secret *secret, bool write);

/* returns  0; in a forked child also for what was open in its parent
 *          -errno  of mprotect(2): it is shut as far as mmkit knows, but still accessible */
MMK_API MMK_MUST_CHECK int mmk_secret_shut(mmk_secret *secret, bool write);

/* Wipe the secret and give its slot back. Closed already: nothing to do.
 *
 * returns  0
 *          -MMK_EPINNED  it is open; nothing has changed
 *          -errno        of mprotect(2): it is as it was */
MMK_API MMK_MUST_CHECK int mmk_secret_give(mmk_secret *secret);

/* Is it closed, or inherited from a parent? A snapshot. */
MMK_API bool mmk_secret_is_closed(const mmk_secret *secret);

/* Overwrite its bytes with zeros, with random ones by getrandom(2): opened for the time it takes.
 * returns  0; as mmk_secret_open; of mmk_secret_randomize also -errno of getrandom(2) */
MMK_API MMK_MUST_CHECK int mmk_secret_wipe(mmk_secret *secret);
MMK_API MMK_MUST_CHECK int mmk_secret_randomize(mmk_secret *secret);

/* Bytes of slabs and pages that secrets have mapped, those of empty slabs included. */
MMK_API size_t mmk_secret_footprint(void);

/* ---- bytes ---- */

/* Copy without leaving a piece in a register: memcpy(3) leaves some in vector registers, from where the next signal
 * frame, core dump or context takes them. pre: the ranges do not overlap. */
MMK_API void mmk_secret_copy(void *to, const void *from, size_t length);

/* Overwrite with zeros, whatever the compiler thinks of it. */
MMK_API void mmk_secret_erase(void *bytes, size_t length);

/* Compare in a time that depends on the length only. */
MMK_API bool mmk_secret_equal(const void *one, const void *other, size_t length);

/* Clear what those who touched a secret may have left: the registers that a call need not keep, vectors first of all,
 * and the stack below the caller, where they, and signal frames with all registers, have stood. */
MMK_API void mmk_secret_scrub(void);

#endif
