/* A heap that several processes use: all of it in their region, under a robust lock, and undone where one dies.
 *
 * What a call changes are heads and lists. Before a head changes it is written down in the journal; when all fit each
 * other again, the journal is emptied. Who finds the lock of a dead process puts the heads of the journal back, in
 * reverse order, and makes the lists anew from the heads: they need no journal.
 */
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include <mmkit/advice.h>

#include "heap_lists.h"
#include "robust.h"

#define MAGIC UINT64_C(0x706165682d6b6d6d) /* "mmk-heap" in little-endian order */

enum { VERSION = 2, BOOT_ID = 36 };

typedef struct heap_shared {
    _Atomic uint64_t magic; /* written last */
    uint32_t version;
    uint32_t mutex_size; /* another C library's mutex is another */
    uint64_t length;     /* bytes from here to the end of the heap */
    uint64_t key;
    char boot[BOOT_ID + 4]; /* of the machine: a lock held before the last boot is nobody's */
    _Atomic uint32_t damaged;
    uint32_t unused;
    robust_mutex mutex;
    heap_journal journal;
    heap_control control;
} heap_shared;

/* ---- the journal ---- */

void shared_note(mmk_heap *heap, const block *head)
{
    heap_journal *journal = &heap->shared->journal;
    uint32_t count = atomic_load_explicit(&journal->count, memory_order_relaxed);
    if (count == JOURNAL)
        return; /* never: see the commits */
    journal->entries[count] = (journal_entry){offset_of(heap, head), words_of(head)};
    atomic_store_explicit(&journal->count, count + 1, memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
}

void shared_commit(mmk_heap *heap)
{
    atomic_signal_fence(memory_order_seq_cst);
    atomic_store_explicit(&heap->shared->journal.count, 0, memory_order_release);
}

/* Unlike source_slice_of, this knows END heads, too: they are written like others. */
static bool is_in_heap(const mmk_heap *heap, const block *head)
{
    for (unsigned i = 0; i < heap->slice_count; i++)
        if ((char *)head >= heap->slices[i].start && (char *)(head + 1) <= heap->slices[i].end)
            return true;
    return false;
}

static void undo(mmk_heap *heap)
{
    heap_journal *journal = &heap->shared->journal;
    uint32_t count = atomic_load(&journal->count);
    for (uint32_t i = count < JOURNAL ? count : JOURNAL; i-- > 0;) {
        block *head = block_at(heap, journal->entries[i].offset);
        if (is_in_heap(heap, head))
            memcpy(head, &journal->entries[i].before, sizeof journal->entries[i].before);
    }
    shared_commit(heap);
}

/* ---- repair ---- */

static bool chain_is_whole(mmk_heap *heap, const heap_slice *slice)
{
    const block *last = (const block *)slice->end - 1;
    uint32_t before = 0;
    for (const block *head = (const block *)slice->start; head <= last; head = block_after(head)) {
        if (!is_head(heap, head) || head->before != before || head->units == 0)
            return false;
        if (head == last)
            return head->state == END;
        if (head->units > (size_t)(last - head))
            return false;
        before = head->units;
    }
    return false;
}

/* Merge the free blocks that follow a free one into it. */
static void join_free(mmk_heap *heap, block *head)
{
    for (block *after = block_after(head); (after->state == FREE || after->state == PARKED) && !watch_torn(heap);
         after = block_after(head)) {
        block *behind = block_after(after);
        uint32_t units = head->units + after->units;
        write_head(heap, head, units, head->before, FREE, 0);
        write_head(heap, behind, behind->units, units, behind->state, behind->slack);
        commit(heap);
    }
}

static void rebuild(mmk_heap *heap)
{
    heap_control *control = heap->control;
    control->levels = 0;
    memset(control->within, 0, sizeof control->within);
    memset(control->heads, 0, sizeof control->heads);
    memset(control->parked, 0, sizeof control->parked);
    memset(control->parked_count, 0, sizeof control->parked_count);
    control->victim = 0;
    control->live_bytes = control->live_blocks = 0;
    for (unsigned i = 0; i < heap->slice_count; i++)
        for (block *head = (block *)heap->slices[i].start; head->state != END && !watch_torn(heap);
             head = block_after(head)) {
            if (head->state == LIVE) {
                count_live(heap, asked_of(head));
                continue;
            }
            write_head(heap, head, head->units, head->before, FREE, 0);
            commit(heap);
            join_free(heap, head);
            blocks_keep(heap, head);
        }
}

/* pre: the lock is held. returns 0, -MMK_ECORRUPT. */
static MMK_MUST_CHECK int repair(mmk_heap *heap)
{
    undo(heap);
    for (unsigned i = 0; i < heap->slice_count; i++)
        if (!chain_is_whole(heap, &heap->slices[i])) {
            shared_give_up(heap);
            return -MMK_ECORRUPT;
        }
    rebuild(heap);
    return 0;
}

/* ---- the lock ---- */

void shared_give_up(mmk_heap *heap)
{
    atomic_store(&heap->shared->damaged, 1);
}

static MMK_MUST_CHECK int release(mmk_heap *heap)
{
    (void)robust_release(&heap->shared->mutex);
    return watch_end(heap);
}

int shared_enter(mmk_heap *heap)
{
    if (!heap->open)
        return -MMK_ECLOSED;
    int error = watch_begin(heap);
    if (error)
        return error;
    heap_shared *shared = heap->shared;
    error = robust_take(&shared->mutex, &(mmk_wait){.deadline = MMK_FOREVER});
    if (error && error != -EOWNERDEAD)
        return watch_end(heap) ? -MMK_ECORRUPT : error;
    if (__builtin_expect(error == -EOWNERDEAD, false)) {
        error = repair(heap);
        /* Only now: who dies repairing leaves the lock of a dead process, too. */
        robust_settled(&shared->mutex);
    }
    if (atomic_load_explicit(&shared->damaged, memory_order_relaxed))
        error = -MMK_ECORRUPT;
    if (!error)
        return 0;
    int torn = release(heap);
    return torn ? torn : error;
}

int shared_leave(mmk_heap *heap)
{
    shared_commit(heap);
    return release(heap);
}

/* ---- making and joining ---- */

static void read_boot(char boot[BOOT_ID + 4])
{
    memset(boot, 0, BOOT_ID + 4);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (read(fd, boot, BOOT_ID) < 0)
        boot[0] = 0;
    close(fd);
}

static heap_shared *place_in(mmk_heap *heap, size_t offset)
{
    return (heap_shared *)(heap->region->base + mmk_round_up(offset, 64));
}

/* What lies between the start of the heap and its first slice. */
static size_t lead_of(size_t offset)
{
    return mmk_round_up(offset, 64) - offset + mmk_round_up(sizeof(heap_shared), 64);
}

static MMK_MUST_CHECK int back_start(mmk_heap *heap, size_t offset, size_t length)
{
    mmk_region *region = heap->region;
    if (length > MMK_HEAP_LARGEST || length < lead_of(offset) + 8 * UNIT)
        return -EINVAL;
    size_t from = mmk_round_down(offset, region->granule);
    size_t to = mmk_round_up(offset + lead_of(offset), region->granule);
    return region_may_lack_memory(region) && mmk_region_populate(region, from, to - from, true) ? -ENOMEM : 0;
}

static void use(mmk_heap *heap, heap_shared *shared)
{
    heap->shared = shared;
    heap->control = &shared->control;
    heap->origin = (char *)shared;
    heap->key = shared->key;
}

static MMK_MUST_CHECK int create(mmk_heap *heap, size_t offset, size_t length)
{
    heap_shared *shared = place_in(heap, offset);
    if (atomic_load(&shared->magic) == MAGIC)
        return -EEXIST;
    memset((void *)shared, 0, sizeof *shared);
    shared->version = VERSION;
    shared->mutex_size = sizeof(pthread_mutex_t);
    shared->length = length;
    shared->key = heap->key;
    read_boot(shared->boot);
    int error = robust_init(&shared->mutex);
    if (error)
        return error;
    use(heap, shared);
    error = source_add_slices(heap, offset + lead_of(offset), offset + length);
    shared->control.mapped_bytes = length;
    shared_commit(heap);
    if (!error)
        atomic_store_explicit(&shared->magic, MAGIC, memory_order_release);
    return error;
}

/* A file may be older than the machine's last boot: then nobody holds the lock, whatever it says. */
static MMK_MUST_CHECK int renew_after_boot(mmk_heap *heap)
{
    heap_shared *shared = heap->shared;
    char boot[BOOT_ID + 4];
    read_boot(boot);
    if (memcmp(boot, shared->boot, sizeof boot) == 0)
        return 0;
    int fd = heap->region->fd;
    if (fd >= 0 && flock(fd, LOCK_EX) < 0)
        return -errno;
    int error = 0;
    if (memcmp(boot, shared->boot, sizeof boot) != 0) {
        error = robust_init(&shared->mutex);
        if (!error)
            error = repair(heap);
        if (!error)
            memcpy(shared->boot, boot, sizeof boot);
    }
    if (fd >= 0)
        flock(fd, LOCK_UN);
    return error;
}

static MMK_MUST_CHECK int join(mmk_heap *heap, size_t offset, size_t length)
{
    heap_shared *shared = place_in(heap, offset);
    if (atomic_load_explicit(&shared->magic, memory_order_acquire) != MAGIC)
        return -MMK_ECORRUPT;
    if (shared->version != VERSION || shared->mutex_size != sizeof(pthread_mutex_t))
        return -MMK_EFORMAT;
    if (shared->length > length || shared->length < lead_of(offset) + 8 * UNIT || atomic_load(&shared->damaged))
        return -MMK_ECORRUPT;
    use(heap, shared);
    char *start = heap->region->base + offset;
    source_note_slice(heap, &heap->slices[heap->slice_count++], start + lead_of(offset), start + shared->length);
    return renew_after_boot(heap);
}

int shared_open(mmk_heap *heap, size_t offset, size_t length, bool joins)
{
    int error = back_start(heap, offset, length);
    if (!error)
        error = watch_open(heap, heap->slices + SLICES, &place_in(heap, offset)->mutex);
    if (!error)
        error = watch_begin(heap);
    if (error)
        return error;
    error = joins ? join(heap, offset, length) : create(heap, offset, length);
    if (watch_end(heap))
        error = -MMK_ECORRUPT;
    if (error) {
        heap->shared = NULL;
        watch_close(heap);
    }
    return error;
}
