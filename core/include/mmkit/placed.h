/* placed.h: the first 64 bytes of everything that mmkit places in shared memory for processes to meet at.
 *
 *     offset  bytes
 *          0      8  magic: "mmk-sync", written last; 0: nothing is here; "new " in the upper half: being made by
 *                    the process in the lower half
 *          8      2  version
 *         10      2  kind
 *         12      4  size of the whole object, in bytes
 *         16      8  namespaces that it was made in, by inode: PID in the lower half, time in the upper
 *         24     16  boot that it was made in, /proc/sys/kernel/random/boot_id
 *         40      4  what pthread_mutex_t is to whoever made it: libc in the upper half, size in the lower
 *         44      4  pid of whoever made it
 *         48      8  when that process started, as in process.h
 *         56      8  0
 *
 * All in the byte order of the machine: of another order, the magic is not what it should be.
 *
 * Whoever makes an object first takes the place, by one compare-and-swap of the magic, then writes everything, then
 * the magic. So an object is whole or it is not there; and who died in between has left its pid: its place can be
 * taken over, and nobody waits for it. Pids and thread ids are what these objects stand on: hence one PID namespace,
 * one time namespace, in which a process's start is one number, and one boot (the memory may be a file's).
 *
 * Not for peers that distrust each other: who can write the memory can break the lock, or make it shorter and have
 * everybody killed by SIGBUS.
 *
 * Threads: any call from any thread. Fork: nothing is kept. Signals: no.
 */
#ifndef MMKIT_PLACED_H
#define MMKIT_PLACED_H

#include <stdatomic.h>

#include <mmkit/base.h>

enum {
    MMK_PLACED_VERSION = 1,
    MMK_PLACED_ALIGNMENT = 64, /* of every object, in bytes: a cache line */
};

typedef enum mmk_placed_kind {
    MMK_LOCK = 1,
    MMK_RLOCK = 2,
    MMK_CONDITION = 3,
    MMK_SEMAPHORE = 4,
    MMK_EVENT = 5,
    MMK_BARRIER = 6,
} mmk_placed_kind;

/* Why there is no object to be had at a place; MMK_EFORMAT and MMK_EOTHERPIDS besides. */
enum {
    MMK_ENOTHING = 4128,  /* the place is empty */
    MMK_EALIEN = 4129,    /* something else is there */
    MMK_EHALFMADE = 4130, /* whoever was making it died before it was done */
    MMK_EKIND = 4132,     /* an object of another kind */
    MMK_EBOOT = 4134,     /* made before this boot */
    MMK_EABI = 4135,      /* made with a libc whose mutexes are others */
};

typedef struct mmk_placed {
    _Atomic uint64_t magic;
    uint16_t version;
    uint16_t kind;
    uint32_t size;
    uint64_t namespaces;
    uint8_t boot[16];
    uint32_t mutex_abi;
    uint32_t maker_pid;
    uint64_t maker_start;
    uint64_t unused;
} mmk_placed;

/* Is the object at this place one that this process can use? A process that was forked asks again.
 *
 * pre:     `placed` is aligned, and size bytes are there.
 * returns  0
 *          -EBUSY     it is being made at this moment
 *          -MMK_E...  as above
 *          -errno     /proc cannot be read */
MMK_API MMK_MUST_CHECK int mmk_placed_check(const mmk_placed *placed, mmk_placed_kind kind, size_t size);

/* Take the object away: the place is empty afterwards. pre: nobody uses it any more, in any process. */
MMK_API void mmk_placed_remove(mmk_placed *placed);

#endif
