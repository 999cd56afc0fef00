/* heap.h: blocks of any size out of one source of memory: malloc, with its memory chosen by the caller.
 *
 *     slice: a stretch of the source
 *     [ head | block ....... ][ head | block ][ head | free .................. ][ end ]
 *       16 B   16 B and more
 *
 * Every block has a head in front of it: its size, the size of the block before, what it is, how many bytes of it
 * were not asked for, and a keyed checksum of all that. Free blocks stand on lists by size (two-level segregated
 * fit, TLSF: Masmano, Ripoll, Crespo, Real, "TLSF: a new dynamic memory allocator for real-time systems", 2004);
 * two bitmaps find the smallest list that has a block large enough. So alloc and free look at a bounded number of
 * heads, whatever the heap holds. A freed block merges with its free neighbours; a few of each small size wait with
 * that for the next alloc of that size, unseen: before the source is asked for more, and before anybody is told what
 * is free, they are merged. docs/heap.md draws it all.
 *
 *     MMK_HEAP_MMAP    slices are regions with room to grow in place; a large block has a region of its own
 *     MMK_HEAP_SBRK    the program break; what others take of it stays in between as a hole
 *     MMK_HEAP_REGION  the region that the caller gives, which cannot be closed meanwhile. In a shared one all of the
 *                      heap lies inside it, linked by offsets, under a robust lock: other processes attach to it
 *
 * A heap of guarded blocks (`guard`) has each block on pages of its own, in front of a page without access, and freed
 * blocks without access, too, until 256 MiB more were freed: what runs past the end of a block, or into a freed one,
 * gets SIGSEGV at that instruction, after one line on standard error that names the block. Bytes that share the block's
 * pages are looked at when it is freed: there the line comes then, and abort(3). It takes two pages for each block, and
 * before Linux 6.13 two areas of vm.max_map_count.
 *
 * The caller owns the mmk_heap and keeps it at one address from open to dispose; in a program that forks, not on a
 * thread's stack.
 *
 * Threads: any call from any thread, serialised by the heap's lock; with MMK_HEAP_SBRK see program_break.h.
 * Fork:    the child has the heap as its parent had it, with the lock free. Signals: none of these.
 * A smashed head of a private heap ends the process with one line on standard error: what follows from wrong sizes
 * cannot be undone, and nobody but this process can have done it. In a shared heap it may have been another process:
 * there every call answers -MMK_ECORRUPT from then on; so it does when the file under it was made shorter. A process
 * that is killed inside a call leaves a shared heap as it was before the call: the next one finds the lock of the dead
 * and puts back what had changed.
 */
#ifndef MMKIT_HEAP_H
#define MMKIT_HEAP_H

#include <sys/types.h>

#include <mmkit/program_break.h>
#include <mmkit/region.h>

enum {
    MMK_HEAP_ALIGNMENT = 16,          /* of every block, in bytes */
    MMK_HEAP_LARGE = 8 * 1024 * 1024, /* from this size on a block of an mmap heap has a region of its own */
    MMK_HEAP_SIZE_CLASSES = 40,       /* rows of mmk_heap_classes: powers of two */
};

/* The largest block inside a slice, and the most that a slice may span. */
#define MMK_HEAP_LARGEST (UINT64_C(16) * UINT32_MAX - 4096)

typedef enum mmk_heap_source { MMK_HEAP_MMAP, MMK_HEAP_SBRK, MMK_HEAP_REGION } mmk_heap_source;

typedef enum mmk_heap_kind {
    MMK_BLOCK_LIVE = 1,
    MMK_BLOCK_FREE,
    MMK_BLOCK_HOLE,     /* somebody else's part of the break */
    MMK_BLOCK_INTERNAL, /* the heap's own records */
    MMK_BLOCK_LARGE,    /* live, in a region of its own */
} mmk_heap_kind;

/* What mmk_heap_check found: at which address, and between which blocks. */
typedef struct mmk_heap_damage {
    const char *what; /* NULL: nothing */
    uintptr_t address;
    uintptr_t before; /* the last good head in front of it; 0: none */
    uintptr_t after;  /* the first good one behind it; 0: none found */
} mmk_heap_damage;

typedef struct mmk_heap {
    char *origin; /* links are offsets from here: NULL in a private heap */
    struct heap_control *control;
    struct heap_slice *slices;
    unsigned slice_count;
    uintptr_t newest; /* the newest slice, again: where most blocks are */
    size_t newest_length;
    bool open;
    uint64_t key;
    size_t limit; /* bytes of slices and large blocks together */
    mmk_heap_source source;
    pthread_mutex_t lock;
    struct heap_shared *shared; /* a shared heap: what stands at its start; else NULL */
    struct heap_watch *watch;   /* a shared heap whose file others can make shorter: see heap_watch.c; else NULL */
    struct heap_guard *guard;   /* a heap of guarded blocks; else NULL */
    mmk_break_piece piece;      /* MMK_HEAP_SBRK: where the last piece without a hole starts */
    char *fresh;                /* [fresh, fresh_end): nobody ever wrote there, but for heads and links: zeros */
    char *fresh_end;
    mmk_region *region;               /* MMK_HEAP_REGION: the caller's */
    mmk_view view;                    /* of it: nobody closes or discards it under the heap */
    mmk_region own;                   /* what control and slices stand in */
    struct mmk_heap *next, *previous; /* for the fork handlers */
} mmk_heap;

typedef struct mmk_heap_request {
    mmk_heap_source source;
    mmk_region *region; /* MMK_HEAP_REGION: writable; no mapping is made, and the heap lies inside it */
    size_t offset;      /* MMK_HEAP_REGION: where in it to start, a multiple of 16 */
    size_t limit;       /* bytes that the source may give at most; 0: as many as there are */
    bool guard;         /* MMK_HEAP_MMAP: guarded blocks, for finding mistakes */
} mmk_heap_request;

typedef struct mmk_heap_stats {
    size_t live_bytes; /* asked for */
    size_t live_blocks;
    size_t peak_bytes;   /* most live bytes so far */
    size_t mapped_bytes; /* held from the source */
    size_t largest_free; /* the largest block that can be had without asking the source, in bytes */
    size_t free_bytes;   /* of free blocks, heads not counted */
    size_t slices;
    size_t large_blocks;
} mmk_heap_stats;

/* One row: blocks whose size, in bytes, is in [2**i, 2**(i + 1)) for row i. */
typedef struct mmk_heap_class {
    size_t live_blocks;
    size_t live_bytes;
    size_t free_blocks;
    size_t free_bytes;
} mmk_heap_class;

/* One block, as a walk finds it. */
typedef struct mmk_heap_block {
    uintptr_t address;
    size_t size; /* bytes asked for of a live block, all there are of another */
    size_t span; /* bytes from its head to the next */
    mmk_heap_kind kind;
} mmk_heap_block;

/* Start an empty heap.
 *
 * returns  0
 *          -EINVAL      an offset that is not a multiple of 16, a region too small for one block, or guarded blocks of
 *                       another source than MMK_HEAP_MMAP
 *          -EACCES      the region is not writable throughout
 *          -MMK_ETAKEN  a pool, an arena or another heap stands there
 *          -EEXIST      a heap is there already, in a shared region
 *          -ENOMEM      no memory
 *          -MMK_ECLOSED the region is closed */
MMK_API MMK_MUST_CHECK int mmk_heap_open(mmk_heap *heap, const mmk_heap_request *request);

/* Join the heap that another process, or this one, has opened in a shared region, at whatever address it is here.
 *
 * returns  0
 *          -MMK_ECORRUPT     no heap is there, or a damaged one
 *          -MMK_EFORMAT     one of another version, or another C library's
 *          -MMK_EUNSUPPORTED the region is not shared
 *          -MMK_ETAKEN       a pool or an arena stands there
 *          -EINVAL, -EACCES, -ENOMEM, -MMK_ECLOSED  as mmk_heap_open */
MMK_API MMK_MUST_CHECK int mmk_heap_attach(mmk_heap *heap, mmk_region *region, size_t offset);

/* Give everything back to the source; of a shared heap, leave it: its blocks stay. Every later call answers
 * -MMK_ECLOSED; the addresses of an mmap heap stay taken until mmk_heap_dispose. The break goes down if nobody has
 * moved it since, and there are no other threads.
 *
 * pre:     of a shared heap, no call is inside: its lock, which another process may hold, is not waited for
 * returns  0, -MMK_ECLOSED */
MMK_API int mmk_heap_close(mmk_heap *heap);

/* Closes first if need be. pre: nobody holds a pointer into it. */
MMK_API void mmk_heap_dispose(mmk_heap *heap);

/* malloc(3), calloc(3), aligned_alloc(3).
 *
 * zero      the block's bytes are 0; pages that are known to be are not touched for it
 * returns   0 with *block
 *           -EINVAL  size is 0, or align is no power of two
 *           -ENOMEM  the limit, the source, or 64 GiB, which is the most in one slice; nothing has changed
 *           -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_heap_alloc(mmk_heap *heap, size_t size, size_t align, bool zero, void **block);

/* free(3).
 * returns  0
 *          -MMK_ENOTBLOCK  it is free already, or not a block of this heap; nothing has changed
 *          -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_heap_free(mmk_heap *heap, void *block);

/* realloc(3): in place where the block shrinks, or its neighbour behind is free; a large block by mremap(2); else
 * it is copied. Bytes behind the old size are undefined.
 *
 * align    what a block that moves is aligned to
 * returns  0 with *block, which may be elsewhere; -EINVAL, -ENOMEM, -MMK_ENOTBLOCK, -MMK_ECLOSED: as it was */
MMK_API MMK_MUST_CHECK int mmk_heap_resize(mmk_heap *heap, void **block, size_t size, size_t align);

/* Bytes that were asked for with a live block, or -MMK_ENOTBLOCK, -MMK_ECLOSED. malloc_usable_size(3) */
MMK_API ssize_t mmk_heap_size(mmk_heap *heap, const void *block);

/* Give whole free pages back, and the end of the last slice. malloc_trim(3), madvise(2), sbrk(2).
 * returns  0, or -errno where the source took nothing back; -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_heap_trim(mmk_heap *heap);

/* Walk every head, list and bitmap.
 * returns  0, -MMK_ECORRUPT with *damage, -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_heap_check(mmk_heap *heap, mmk_heap_damage *damage);

MMK_API MMK_MUST_CHECK int mmk_heap_statistics(mmk_heap *heap, mmk_heap_stats *stats);
MMK_API MMK_MUST_CHECK int mmk_heap_classes(mmk_heap *heap, mmk_heap_class classes[MMK_HEAP_SIZE_CLASSES]);

/* Bytes of the heap that this process has in RAM. pagemap: /proc/self/pagemap, open for reading.
 * returns  0, -errno of pread(2), -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_heap_resident(mmk_heap *heap, int pagemap, size_t *bytes);

/* Describe the first `capacity` blocks, in order of slices, then large blocks.
 * returns  how many there are in all, -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK ssize_t mmk_heap_blocks(mmk_heap *heap, mmk_heap_block *blocks, size_t capacity);

#endif
