/* arena.h: memory that is allocated by moving a pointer, and freed all at once.
 *
 *     start                  used             end             reserved
 *      [ block | block |gap| block ][ next ...... ][ PROT_NONE .... ]
 *
 * An arena has one range of addresses: of its own, which grows in place and never moves, or in the caller's region. Its
 * bookkeeping is the process's own: other processes may look at a shared region, but one allocates.
 *
 * The caller owns the mmk_arena and keeps it at one address from open to dispose; in a program that forks, not on a
 * thread's stack.
 *
 * Threads: one at a time. Fork: the child has the arena as its parent had it. Signals: none of these.
 */
#ifndef MMKIT_ARENA_H
#define MMKIT_ARENA_H

#include <mmkit/region.h>

typedef struct mmk_arena {
    char *base;     /* of the range; NULL: closed */
    size_t start;   /* bytes from base: nothing is allocated in front of it */
    size_t used;    /* bytes from base: where the next block goes */
    size_t touched; /* bytes from base: what lies behind was never allocated */
    bool was_zeros; /* and is zeros */
    mmk_region *region;
    mmk_view view; /* of the caller's region: nobody closes or discards it under the arena */
    mmk_region own;
} mmk_arena;

/* Start an empty arena.
 *
 * region   where, from `offset` bytes on to its end; NULL: a range of its own
 * limit    a range of its own: bytes of address space to hold, and so the most that it can have
 * returns  0
 *          -EINVAL      limit is 0, or the region ends before offset
 *          -ENOMEM      no address space
 *          -EACCES      the region is not writable throughout
 *          -MMK_ETAKEN  a heap, a pool or another arena stands there
 *          -MMK_ECLOSED the region is closed */
MMK_API MMK_MUST_CHECK int mmk_arena_open(mmk_arena *arena, mmk_region *region, size_t offset, size_t limit);

/* End it. Every later call answers -MMK_ECLOSED; the addresses of a range of its own stay taken until
 * mmk_arena_dispose.
 *
 * returns  0, -MMK_ECLOSED
 *          -ENOMEM  the process has too many areas to replace this one; nothing has changed */
MMK_API MMK_MUST_CHECK int mmk_arena_close(mmk_arena *arena);

/* Closes first if need be. pre: nobody holds a pointer into it. */
MMK_API void mmk_arena_dispose(mmk_arena *arena);

/* Allocate a block: a multiple of `align` in address, and never freed alone.
 *
 * zero      its bytes are 0; memory that is known to be is not touched for it. Else they are anything
 * returns   0 with *block
 *           -EINVAL  size is 0, or align is no power of two
 *           -ENOMEM  the limit, the region or the system's memory is exhausted; nothing has changed
 *           -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_arena_alloc(mmk_arena *arena, size_t size, size_t align, bool zero, char **block);

/* Forget every block from `mark` on, which is what `used` was then. Their memory stays with the arena.
 *
 * returns  0, -EINVAL: no such mark (any more), -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_arena_rewind(mmk_arena *arena, size_t mark);

/* Bytes that the arena holds: committed, used or not. 0: closed. */
MMK_API size_t mmk_arena_capacity(const mmk_arena *arena);

#endif
