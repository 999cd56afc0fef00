/* A shared heap whose file others make shorter: no call on it ends the process.
 *
 * A touch of a page that is not there is a SIGBUS. Inside a call on a heap, the hook of its region (fault.h) puts
 * zeros there, from that page to the region's end, and lets the instruction go on. Zeros are no heads: the call finds
 * the heap damaged, or finds nothing wrong and answers -MMK_ECORRUPT all the same when it leaves. It puts the file back
 * then, so that what touches a block meets what is true, and nobody in this process enters any more.
 *
 *     region   [ lock, lists │ slice ........................│ not there ...... ]
 *                                                            └ torn
 *
 * The lock itself may be gone, while libc takes or releases it. It finds a free one then, whose links lead nowhere that
 * matters; and what it left on its list of the locks that the thread holds is taken off when the call leaves.
 */
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <mmkit/fault.h>

#include "guarded_internal.h"
#include "heap_internal.h"
#include "robust.h"

struct heap_watch {
    pthread_mutex_t gate;   /* of this process: nobody else is inside, even if the heap's lock is gone */
    _Atomic uintptr_t torn; /* where zeros begin, or began; 0: nothing was missing so far */
    bool has_zeros;         /* they are there still */
    robust_mutex *mutex;
    robust_mutex free_mutex;
    __pthread_list_t nowhere; /* where its links lead */
};

_Static_assert(sizeof(struct heap_watch) <= HEAP_WATCH_ROOM, "source_open reserves as much");

/* The call that this thread is in. Initial-exec: read by the signal's handler. */
static __thread struct {
    mmk_heap *volatile heap;
    bool is_gate_shut;
    touch touch;
    struct robust_list_head *locks; /* libc's list of the robust locks that the thread holds */
    struct robust_list *last_lock;  /* the last of them before the call */
} self __attribute__((tls_model("initial-exec")));

/* Put zeros, and the lock, at [from, end). */
static bool put_zeros(const heap_watch *watch, uintptr_t from, uintptr_t end)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    intptr_t made = mmk_sys_mmap(NULL, end - from, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (made < 0)
        return false;
    uintptr_t lock = (uintptr_t)watch->mutex;
    if (from <= lock && lock < end)
        memcpy((char *)made + (lock - from), &watch->free_mutex, sizeof watch->free_mutex);
    if (mmk_sys_mremap((void *)made, end - from, end - from, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)from) >= 0)
        return true;
    mmk_sys_munmap((void *)made, end - from);
    return false;
}

static mmk_fault_answer mend(mmk_region *region, uintptr_t address, bool write)
{
    (void)write;
    mmk_heap *heap = self.heap;
    if (!heap || heap->region != region)
        return MMK_FAULT_PASS_ON;
    heap_watch *watch = heap->watch;
    uintptr_t torn = atomic_load(&watch->torn), from = mmk_round_down(address, region->granule);
    uintptr_t end = torn ? torn : (uintptr_t)region->base + mmk_region_length(region);
    if (from >= end || !put_zeros(watch, from, end))
        return MMK_FAULT_PASS_ON;
    watch->has_zeros = true;
    atomic_store(&watch->torn, from);
    return MMK_FAULT_RETRY;
}

static void put_file_back(const mmk_heap *heap)
{
    const mmk_region *region = heap->region;
    uintptr_t from = atomic_load(&heap->watch->torn);
    size_t offset = from - (uintptr_t)region->base;
    /* Refused, zeros stay: better than nothing mapped there. */
    (void)!mmk_sys_mmap((void *)from, mmk_region_length(region) - offset, region->prot, region->flags | MAP_FIXED,
                        region->fd, (off_t)(region->file_offset + offset));
}

/* Links lead to the second word of a node; bit 0 says of the kind of a lock. */
static __pthread_list_t *node_of(const struct robust_list *link)
{
    return (__pthread_list_t *)(((uintptr_t)link & ~(uintptr_t)1) - offsetof(__pthread_list_t, __next));
}

static void find_locks(void)
{
    size_t length;
    if (!self.locks && syscall(SYS_get_robust_list, 0, &self.locks, &length) < 0)
        self.locks = NULL;
    self.last_lock = self.locks ? self.locks->list.next : NULL;
}

/* Take the heap's lock off libc's list, as libc would if it were still there. */
static void forget_lock(const heap_watch *watch)
{
    if (!self.locks || node_of(self.locks->list.next) != &watch->mutex->mutex.__data.__list)
        return;
    self.locks->list.next = self.last_lock;
    node_of(self.last_lock)->__prev = (__pthread_list_t *)&self.locks->list;
}

uintptr_t watch_torn(const mmk_heap *heap)
{
    return heap->watch ? atomic_load(&heap->watch->torn) : 0;
}

int watch_begin(mmk_heap *heap)
{
    heap_watch *watch = heap->watch;
    if (!watch)
        return 0;
    self.is_gate_shut = !mmk_is_single_threaded();
    if (self.is_gate_shut)
        pthread_mutex_lock(&watch->gate);
    find_locks();
    self.heap = heap;
    touch_begin(&self.touch);
    return watch_torn(heap) ? watch_end(heap) : 0;
}

int watch_end(mmk_heap *heap)
{
    heap_watch *watch = heap->watch;
    if (!watch)
        return 0;
    touch_end(&self.touch);
    self.heap = NULL;
    uintptr_t torn = watch_torn(heap);
    if (torn)
        forget_lock(watch);
    if (watch->has_zeros)
        put_file_back(heap);
    watch->has_zeros = false;
    if (self.is_gate_shut)
        pthread_mutex_unlock(&watch->gate);
    return torn ? -MMK_ECORRUPT : 0;
}

void watch_forked(mmk_heap *heap)
{
    /* Who was inside is not here. */
    if (heap->watch)
        pthread_mutex_init(&heap->watch->gate, NULL);
}

int watch_open(mmk_heap *heap, void *room, robust_mutex *mutex)
{
    if (!atomic_load(&heap->region->may_shrink))
        return 0;
    heap_watch *watch = room;
    pthread_mutex_init(&watch->gate, NULL);
    watch->mutex = mutex;
    int error = robust_init(&watch->free_mutex);
    watch->free_mutex.mutex.__data.__list.__next = watch->free_mutex.mutex.__data.__list.__prev =
        (__pthread_list_t *)&watch->nowhere.__next;
    if (!error)
        error = mmk_region_set_fault_hook(heap->region, mend);
    if (!error)
        heap->watch = watch;
    return error;
}

void watch_close(mmk_heap *heap)
{
    if (heap->watch && !fork_knows_neighbour(heap))
        (void)!mmk_region_set_fault_hook(heap->region, NULL);
}
