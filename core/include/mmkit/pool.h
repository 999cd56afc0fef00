/* pool.h: blocks of one size, taken and given back without a lock, by threads and by processes.
 *
 *     region + offset
 *      [ header | cell, cell, cell .... | block, block, block ........ ]
 *        256 B    8 B a block             stride bytes a block
 *
 * Blocks that were given back stand on a list, linked by number through their cells; its head is one 64-bit word, a
 * number and a tag that every take changes, so that a head seen twice is the same list (R. K. Treiber, "Systems
 * programming: coping with parallelism", IBM RJ 5118, 1986). Blocks that nobody ever took stand behind the list: their
 * memory is not touched before. A cell says in one atomic word whether its block is live, and how often it was taken;
 * so a block that is given twice, or by who had it before, is refused. docs/pool.md draws every byte.
 *
 * A process killed between a take's two steps (off the list; live) or a give's (not live; on the list) loses that
 * one block and nothing else: mmk_pool_check counts such blocks, mmk_pool_repair brings them back. Blocks that a
 * killed process had taken stay live: mmk_pool_find and mmk_pool_give are how somebody else gives them back.
 *
 * The tag has 32 bits: a take that is suspended between its read of the head and its exchange, while others take
 * an exact multiple of 2**32 blocks, would be misled. So would a give, of a block
 * taken a multiple of 2**30 times since.
 *
 * The caller owns the mmk_pool and keeps it at one address from create or attach to close; each process has its own.
 *
 * Threads: any call from any thread, but close. No call waits for another, but mmk_pool_take_until.
 * Fork:    nothing is held, so a child may go on at any point: with a copy where the region is private, with the
 *          same pool where it is shared. Signals: take and give are safe in a handler if nothing is poisoned.
 */
#ifndef MMKIT_POOL_H
#define MMKIT_POOL_H

#include <mmkit/region.h>

enum {
    MMK_POOL_VERSION = 1,
    MMK_POOL_LINE = 64,     /* bytes of a cache line */
    MMK_POOL_POISON = 0xdb, /* what a poisoned block is filled with */
};

/* mmk_pool_geometry.flags */
enum {
    MMK_POOL_PADDED = 1,   /* no two blocks, and no two cells, share a cache line */
    MMK_POOL_ZERO = 2,     /* blocks are zeros when they are taken: a give wipes them */
    MMK_POOL_POISONED = 4, /* a give fills the block with MMK_POOL_POISON, and a take looks whether it still is */
};

typedef struct mmk_pool_geometry {
    size_t block_size; /* bytes of a block, at least 1 */
    uint32_t count;    /* blocks to start with, at least 1 */
    uint32_t limit;    /* blocks to grow to, at least count */
    unsigned flags;
} mmk_pool_geometry;

typedef struct mmk_pool {
    struct pool_header *header; /* NULL: closed */
    char *cells;
    char *blocks;
    size_t block_size;
    size_t stride;        /* bytes from one block to the next */
    unsigned cell_stride; /* bytes from one cell to the next */
    unsigned flags;
    uint32_t limit;
    bool was_zeros; /* blocks that nobody ever took are zeros */
    bool may_lack;  /* and may have no memory: a full tmpfs */
    mmk_region *region;
    mmk_view view; /* nobody closes or discards the region under the pool */
} mmk_pool;

/* A block that was taken. */
typedef struct mmk_pool_block {
    char *bytes; /* aligned to 16, or to a cache line if padded */
    uint32_t index;
    uint32_t generation; /* how often it was taken, with this time */
} mmk_pool_block;

typedef struct mmk_pool_stats {
    uint32_t count;       /* blocks there are */
    uint32_t limit;       /* blocks that there can be */
    uint32_t live;        /* taken and not given back */
    uint32_t peak;        /* the most that were live at one time: so many have been touched */
    uint32_t quarantined; /* written to after they were given back: not handed out any more */
    uint64_t takes;       /* of each block modulo 2**30 */
    uint64_t refusals;    /* takes that found no block */
    uint64_t waits;       /* times that one slept for a block */
} mmk_pool_stats;

/* Bytes that a pool takes of its region, or 0: the geometry makes no sense. */
MMK_API size_t mmk_pool_size(const mmk_pool_geometry *geometry);

/* Make an empty pool.
 *
 * pre:     nobody uses a pool that was there before, in another process or through another mapping
 * offset   bytes from the region's base, a multiple of MMK_POOL_LINE
 * zeros    the region's bytes are known to be 0
 * returns  0
 *          -EINVAL       the geometry makes no sense, or the offset
 *          -ENOSPC       it does not fit
 *          -EACCES       the region is not writable throughout
 *          -MMK_ETAKEN   a heap, an arena or another pool stands there
 *          -ENOMEM       there is no memory for header and cells
 *          -MMK_ECLOSED  the region is closed */
MMK_API MMK_MUST_CHECK int mmk_pool_create(mmk_pool *pool, mmk_region *region, size_t offset,
                                           const mmk_pool_geometry *geometry, bool zeros);

/* Use the pool that is there.
 *
 * returns  0; -EINVAL, -EACCES, -MMK_ECLOSED as mmk_pool_create
 *          -MMK_ETAKEN    a heap or an arena stands there
 *          -MMK_ECORRUPT  there is no pool, or it does not fit the region
 *          -MMK_EFORMAT  it has another version */
MMK_API MMK_MUST_CHECK int mmk_pool_attach(mmk_pool *pool, mmk_region *region, size_t offset);

/* Stop using it; the pool stays where it is. pre: no call is inside. Twice is once. */
MMK_API void mmk_pool_close(mmk_pool *pool);

/* Take a block.
 *
 * returns  0 with *block
 *          -ENOMEM        all are taken
 *          -ENODATA       there is no memory for one that nobody took before: a full tmpfs; nothing has changed
 *          -MMK_ECORRUPT  a block was written to after it was given back (block->bytes says which; it is not handed out
 *                         any more), or the list leads nowhere (block->bytes is NULL)
 *          -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_pool_take(mmk_pool *pool, mmk_pool_block *block);

/* The same; while all blocks are taken, sleep. futex(2)
 *
 * deadline_ns  by CLOCK_MONOTONIC; INT64_MAX: never
 * returns      as mmk_pool_take; -ETIMEDOUT; -EINTR: a signal came
 * Who is killed between giving a block and waking sleepers lets them sleep 100 ms longer at most. */
MMK_API MMK_MUST_CHECK int mmk_pool_take_until(mmk_pool *pool, mmk_pool_block *block, int64_t deadline_ns);

/* Give a block back; wakes who sleeps for one.
 *
 * pre:     the block came from this pool, through whichever process
 * returns  0
 *          -MMK_ENOTBLOCK  it was given back already; nothing has changed
 *          -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_pool_give(mmk_pool *pool, const mmk_pool_block *block);

/* The live block that starts so many bytes from the region's base.
 * returns  0 with *block, -MMK_ENOTBLOCK, -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_pool_find(mmk_pool *pool, size_t offset, mmk_pool_block *block);

/* The first live block whose number is at least `from`.
 * returns  0 with *block, -MMK_ENOTBLOCK: there is none, -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_pool_next_live(mmk_pool *pool, uint32_t from, mmk_pool_block *block);

/* Count. Each figure is right for some moment of the call.
 * returns  0, -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_pool_statistics(mmk_pool *pool, mmk_pool_stats *stats);

/* Walk the list and all cells.
 *
 * pre:     nobody takes or gives meanwhile
 * returns  0 with *lost, the blocks that killed processes lost on the way
 *          -MMK_ECORRUPT  the list is broken, or a cell says what it cannot; *damaged is the cell's number
 *          -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_pool_check(mmk_pool *pool, uint32_t *lost, uint32_t *damaged);

/* Make the list anew, of all blocks that are not live, lost ones included. Killed on the way, it can be called again.
 *
 * pre:     nobody takes or gives meanwhile
 * returns  0, -MMK_ECORRUPT: a cell says what it cannot, -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_pool_repair(mmk_pool *pool);

#endif
