/* region.h: page-aligned ranges of the address space that mmkit made and owns.
 *
 *     outer                                                              outer + outer_length
 *      |         base                              base + reserved              |
 *      |          |<---- length (committed) ---->|<-- not yet -->|              |
 *      [ guard   ][ data ........................][ PROT_NONE ...][ guard       ]
 *
 * Without `reserve` and `guard` the four boundaries are two: outer == base and everything is data.
 * A region that shrank keeps its address space, as PROT_NONE, and grows back in place.
 *
 * The caller owns the mmk_region (it may stand inside a larger object) and keeps it at one address
 * from mmk_region_map to mmk_region_dispose; in a program that forks, not on a thread's stack, which is
 * somebody else's in the child. Fields are read freely, written by the core only.
 *
 * Life:    map -> close -> dispose. After close the addresses stay taken (PROT_NONE) if anybody was ever
 *          given a pointer: a stale one faults and never reaches what someone else has mapped since.
 *          dispose gives them back, when the caller knows that nobody holds a pointer any more.
 * Threads: any call from any thread that pthread_create(3) made. Calls that change bookkeeping are serialised by the
 *          region's lock; calls that only pass through (advise, flush, load) pin the region and run side by side.
 *          Lock order: region, then registry; never call back into the caller under either.
 * Fork:    the child has each region as its parent had it, with the locks free; but not what the kernel keeps
 *          from it (MADV_DONTFORK, on any part) nor secret memory: those are closed there, and their addresses taken.
 * Signals: none of these: while the process has one thread, not even a pin is one instruction.
 */
#ifndef MMKIT_REGION_H
#define MMKIT_REGION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#endif

#include <mmkit/base.h>
#include <mmkit/runs.h>

typedef struct mmk_region mmk_region;
typedef struct mmk_snapshot mmk_snapshot;

/* What a fault hook answers: run the instruction again, or not mine. See fault.h. */
typedef enum mmk_fault_answer { MMK_FAULT_PASS_ON, MMK_FAULT_RETRY } mmk_fault_answer;
typedef mmk_fault_answer mmk_fault_hook(mmk_region *region, uintptr_t address, bool write);

/* A live view: somebody holds a pointer into [offset, offset + length). Owned by the viewer. */
typedef struct mmk_view {
    struct mmk_view *next;
    struct mmk_view **link;
    size_t offset; /* bytes from base */
    size_t length;
    bool writable;
    const char *tenant; /* what has laid out bytes of its own there, as errors name it; NULL: nothing */
} mmk_view;

/* A protection that holds for a while over pages [first, end); see protect.h. Owned by whoever covers. */
typedef struct mmk_cover {
    struct mmk_cover *below; /* the next older one */
    size_t first;
    size_t end;
    int prot;
} mmk_cover;

struct mmk_region {
    char *base;              /* first byte of data */
    _Atomic size_t length;   /* bytes committed, a multiple of granule; see mmk_region_length */
    _Atomic size_t asked;    /* bytes of it that the caller asked for: the last page may be partly data */
    size_t reserved;         /* bytes of address space from base on, >= length */
    size_t granule;          /* page size of the backing: base pages or huge pages */
    mmk_range outer;         /* everything the region holds, guards included */
    int prot;                /* of every page that `protections` does not name */
    int flags;               /* of mmap(2), without MAP_FIXED */
    int fd;                  /* what backs it, or -1; the caller's, who closes it after dispose */
    uint64_t file_offset;    /* of base in fd */
    _Atomic bool may_shrink; /* fd is a file that others may truncate: flush looks at its size */
    bool always_locked;      /* memfd_secret(2): mlock answers ENOMEM there, because it is locked already */
    bool exposed;            /* a pointer into it may be kept by somebody: set by views, and by whoever hands one out */
    bool sealed;             /* mseal(2): the kernel lets nobody unmap it */
    bool kernel_guards;      /* MADV_GUARD_INSTALL has been used */
    _Atomic bool hides_end;  /* huge pages of a tmpfs file: no signal for what lies behind its end in the last one */
    _Atomic(mmk_fault_hook *) hook;   /* see fault.h */
    _Atomic(mmk_snapshot *) snapshot; /* see snapshot.h */

    _Atomic uint64_t state; /* MMK_REGION_* and the number of operations inside; see mmk_region_enter */
    pthread_mutex_t lock;   /* over everything below, and over length, prot, reserved when they change */
    _Atomic int uniform;    /* prot while it is in force on every page, else -1; read without the lock */
    mmk_view *views;
    mmk_cover *covers;    /* newest first */
    mmk_runs protections; /* page -> prot, where it is not `prot` */
    mmk_runs locks;       /* page -> how many times locked, where it is not 0 */
    mmk_runs guards;      /* page -> 1 where the guard is PROT_NONE: kernels before 6.13 */
};

/* Bits of mmk_region.state. A zeroed mmk_region is a closed one. */
#define MMK_REGION_LIVE (UINT64_C(1) << 63)
#define MMK_REGION_EXCLUDED (UINT64_C(1) << 62) /* a change has the region to itself */

/* What to map. All zero but length, prot and flags is an ordinary anonymous mapping once fd is -1. */
typedef struct mmk_request {
    size_t length;        /* bytes, > 0; rounded up to the granule */
    size_t reserve;       /* bytes of address space to hold, >= length; 0: no more than length */
    size_t guard;         /* bytes of PROT_NONE at each end: a multiple of the page size, or 0 */
    size_t granule;       /* page size of the backing: 0 means the base page size */
    int prot;             /* PROT_* */
    int flags;            /* MAP_*, without MAP_FIXED and MAP_FIXED_NOREPLACE */
    int fd;               /* or -1 */
    uint64_t file_offset; /* a multiple of the granule */
    bool may_shrink;      /* fd is a file that others may truncate */
    bool always_locked;   /* fd is from memfd_secret(2), whose pages are locked by nature */
    bool system_v;        /* attach the System V segment `shmid` instead of calling mmap(2) */
    int shmid;            /* with system_v; then length is its shm_segsz, flags MAP_SHARED, fd -1 */
} mmk_request;

/* Map, and enter the region in the registry. mmap(2); shmat(2) for a System V segment, which closing detaches.
 * To the kernel each area of an attached segment is one attachment: protecting a part of it, or closing it under
 * a pointer that was handed out, changes shm_nattch as a second shmat(2) or a shmdt(2) would.
 *
 * returns  0 with *region filled
 *          -EINVAL     length is 0, or a reservation, guard or offset was asked for a System V segment
 *          -ENOMEM     no address space (or more than there can be), no memory for the registry, or the process
 *                      has too many areas
 *          -errno      of mmap(2) or shmat(2)
 * On error nothing stays mapped. MAP_POPULATE and MAP_LOCKED fail silently in the kernel: use
 * mmk_region_populate and mmk_region_lock. */
MMK_API MMK_MUST_CHECK int mmk_region_map(mmk_region *region, const mmk_request *request);

/* End the region: its contents go. If a pointer into it was ever handed out (`exposed`), its addresses stay
 * taken, as PROT_NONE, until mmk_region_dispose; else they are free at once.
 *
 * returns  0
 *          -MMK_ECLOSED  it is closed already
 *          -MMK_EPINNED  a view or a snapshot is live, or an operation is running; nothing has changed
 *          -ENOMEM       the process has too many areas to replace this one; nothing has changed
 * A sealed region (mseal(2)) stays mapped until the process ends; it only counts as closed. */
MMK_API MMK_MUST_CHECK int mmk_region_close(mmk_region *region);

/* Give the addresses back; closes first if need be. Nothing to do for a region that mmk_region_map refused.
 *
 * pre:     no view is live, no operation is running, and nobody holds a pointer into the region. */
MMK_API void mmk_region_dispose(mmk_region *region);

/* Pin the region for the length of an operation: it will not be closed, moved or cut meanwhile.
 * Each success is paired with one mmk_region_leave. Cost: an addition each, atomic once the process
 * has had other threads: 10 ns, and 3 while it is alone.
 *
 * returns  0
 *          -MMK_ECLOSED */
static inline MMK_MUST_CHECK int mmk_region_enter(mmk_region *region);

/* The rest of mmk_region_enter, where the region was found closed or kept to somebody else. */
MMK_API MMK_MUST_CHECK int mmk_region_enter_late(mmk_region *region);

/* Alone in the process an ordinary addition will do, at a third of the cost. */
static inline bool mmk_is_single_threaded(void)
{
#if __has_include(<sys/single_threaded.h>)
    return __libc_single_threaded;
#else
    return false;
#endif
}

static inline uint64_t mmk_region_count_pins(mmk_region *region, int64_t change, memory_order order)
{
    if (!mmk_is_single_threaded())
        return atomic_fetch_add_explicit(&region->state, (uint64_t)change, order);
    uint64_t before = atomic_load_explicit(&region->state, memory_order_relaxed);
    atomic_store_explicit(&region->state, before + (uint64_t)change, memory_order_relaxed);
    return before;
}

static inline int mmk_region_enter(mmk_region *region)
{
    uint64_t before = mmk_region_count_pins(region, 1, memory_order_acquire);
    bool open = (before & (MMK_REGION_LIVE | MMK_REGION_EXCLUDED)) == MMK_REGION_LIVE;
    return __builtin_expect(open, true) ? 0 : mmk_region_enter_late(region);
}

static inline void mmk_region_leave(mmk_region *region)
{
    (void)mmk_region_count_pins(region, -1, memory_order_release);
}

/* Register a pointer handed out into [offset, offset + length), until mmk_view_close.
 *
 * pre:     offset + length <= mmk_region_length(region); *view is not registered.
 * returns  0
 *          -EACCES       some page of the range cannot be read (or written, where `writable` asks it)
 *          -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_view_open(mmk_region *region, mmk_view *view, size_t offset, size_t length,
                                         bool writable);
MMK_API void mmk_view_close(mmk_region *region, mmk_view *view);

/* The same, writable, for what lays out bytes of its own there. Two of them would destroy each other: the second is
 * refused, unless the first was opened through another mapping of the same memory, or in another process.
 *
 * tenant   what it is, as errors name it ("a heap"): stays where it is until the view is closed
 * joins    it lays out nothing, but uses what a tenant of this name has laid out, and may stand beside such
 * returns  as mmk_view_open
 *          -MMK_ETAKEN  the range overlaps a live tenant's */
MMK_API MMK_MUST_CHECK int mmk_view_settle(mmk_region *region, mmk_view *view, size_t offset, size_t length,
                                           const char *tenant, bool joins);

/* What has laid out bytes of its own in the region: of several the last; NULL: nothing. A snapshot. */
MMK_API const char *mmk_region_tenant(mmk_region *region);

/* Is any view live? A snapshot: another thread may open one at once. */
MMK_API bool mmk_region_has_views(mmk_region *region);

/* Seal the committed range against unmapping, moving, reprotecting and discarding. mseal(2), Linux 6.10.
 *
 * returns  0; -ENOSYS before 6.10; -errno; -MMK_EPINNED where a snapshot lives; -MMK_ECLOSED */
MMK_API MMK_MUST_CHECK int mmk_region_seal(mmk_region *region);

/* Bytes committed. */
static inline size_t mmk_region_length(const mmk_region *region)
{
    return atomic_load_explicit(&((mmk_region *)region)->length, memory_order_relaxed);
}

/* Is it closed (or was it never mapped)? A snapshot. */
static inline bool mmk_region_is_closed(const mmk_region *region)
{
    return !(atomic_load_explicit(&((mmk_region *)region)->state, memory_order_acquire) & MMK_REGION_LIVE);
}

#endif
