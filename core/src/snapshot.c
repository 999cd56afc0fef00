#include <mmkit/snapshot.h>

#include <signal.h>
#include <time.h>

#include <mmkit/fault.h>
#include <mmkit/sys.h>

#include "fault_internal.h"
#include "readers.h"
#include "region_internal.h"
#include "snapshot_internal.h"

/* What became of a page, in the low bits of its byte; above them the protection that it is to have once it is open.
 *
 *     UNTOUCHED ──claim──> SAVING ──copied──> KEPT ──mprotect(2)──> OPEN
 *
 * A claim is one compare-and-swap: one thread keeps a page, the others wait until it is open. The steps in between
 * are additions, so that who changes the protection above meanwhile loses nothing; he waits for OPEN, and then sets
 * it. KEPT comes before the page is opened: a child forked in SAVING finds the page as it was, and begins anew. */
enum { UNTOUCHED, SAVING, KEPT, OPEN, STATE = 3, PROT_SHIFT = 2, PROTS = 0x3f };

enum {
    SPINS = 200,
    /* So many faults open a page each. Then each opens what it can of a part of the region, of which there are as many:
     * the areas, of which vm.max_map_count allows 65530, are not to be used up. */
    EXACT = 8192,
};

static unsigned word_of(const mmk_snapshot *snapshot, size_t page)
{
    return atomic_load_explicit(&snapshot->pages[page], memory_order_acquire);
}

static int prot_of(unsigned word)
{
    return (int)(word >> PROT_SHIFT);
}

static bool is_busy(unsigned word)
{
    return (word & STATE) == SAVING || (word & STATE) == KEPT;
}

static bool is_kept(unsigned word)
{
    return (word & STATE) >= KEPT;
}

static bool exchange(mmk_snapshot *snapshot, size_t page, unsigned from, unsigned to)
{
    unsigned char expected = (unsigned char)from;
    return atomic_compare_exchange_strong(&snapshot->pages[page], &expected, (unsigned char)to);
}

/* Not sched_yield: whom this thread waits for may have a lower real-time priority. */
static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

/* returns what the page has come to */
static unsigned wait_while_busy(const mmk_snapshot *snapshot, size_t page)
{
    unsigned word = word_of(snapshot, page);
    for (unsigned turn = 0; is_busy(word); word = word_of(snapshot, page), turn++)
        if (turn >= SPINS)
            nap();
    return word;
}

/* ---- keeping pages, without locks ------------------------------------------------------------------- */

/* While this thread holds a claim nothing may interrupt it that could write to the same page, and wait for it. Nor
 * while it sleeps in the hook: whoever waits for readers would wait for a handler, which may wait for him. */
static void block_signals(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_BLOCK, &all, before);
}

/* Claim an untouched page and copy it.
 * returns 0, -EAGAIN (it is not untouched, or somebody was faster), or -EFAULT */
static int keep(mmk_snapshot *snapshot, size_t page)
{
    size_t size = snapshot->region->granule;
    mmk_fault unreadable;
    unsigned word = word_of(snapshot, page);
    if ((word & STATE) != UNTOUCHED || !exchange(snapshot, page, word, word + SAVING))
        return -EAGAIN;
    int error =
        mmk_guarded_copy(snapshot->kept.base + page * size, snapshot->region->base + page * size, size, &unreadable);
    if (error)
        atomic_fetch_sub(&snapshot->pages[page], SAVING);
    else
        atomic_fetch_add(&snapshot->pages[page], KEPT - SAVING);
    return error;
}

static bool keep_alike(mmk_snapshot *snapshot, size_t page, int prot)
{
    return prot_of(word_of(snapshot, page)) == prot && keep(snapshot, page) == 0;
}

static int mprotect_pages(const mmk_snapshot *snapshot, size_t first, size_t end, int prot)
{
    size_t size = snapshot->region->granule;
    return mmk_sys_mprotect(snapshot->region->base + first * size, (end - first) * size, prot);
}

/* Open pages that this thread has kept. Each may split an area in three. Where the process has too many, keep and
 * open what lies between them and pages that are open: moving the border between two areas needs no new one. */
static void open_pages(mmk_snapshot *snapshot, size_t first, size_t end, int prot)
{
    size_t count = snapshot->length / snapshot->region->granule;
    int error = mprotect_pages(snapshot, first, end, prot);
    if (error == -ENOMEM) {
        while (end < count && keep_alike(snapshot, end, prot))
            end++;
        error = mprotect_pages(snapshot, first, end, prot);
    }
    if (error == -ENOMEM) {
        while (first > 0 && keep_alike(snapshot, first - 1, prot))
            first--;
        error = mprotect_pages(snapshot, first, end, prot);
    }
    /* If even that was refused, the next write finds an OPEN page that faults. */
    fault_count_mending();
    for (size_t page = first; page < end; page++)
        atomic_fetch_add(&snapshot->pages[page], OPEN - KEPT);
}

/* returns its number */
static size_t note_fault(mmk_snapshot *snapshot, size_t offset)
{
    size_t number = atomic_fetch_add(&snapshot->fault_count, 1);
    atomic_store(&snapshot->faults[number], offset + 1);
    return number;
}

/* A write met a page that may be written. RETRY where it was mended since the fault, is being mended, or cannot be
 * yet. */
static mmk_fault_answer let_write(mmk_snapshot *snapshot, size_t offset)
{
    if (atomic_load(&snapshot->beginning)) {
        nap();
        return MMK_FAULT_RETRY;
    }
    size_t page = offset / snapshot->region->granule;
    unsigned word = word_of(snapshot, page);
    if (is_busy(word)) {
        (void)wait_while_busy(snapshot, page);
        return MMK_FAULT_RETRY;
    }
    if ((word & STATE) == OPEN) {
        /* Opened between the fault and here; or it is something else that faults, a guard perhaps: counted as mended
         * and passed on, it is tried again, but not for ever. Or snapshot_mprotect was in between: mend it. */
        if (!exchange(snapshot, page, word, word - (OPEN - KEPT)))
            return MMK_FAULT_RETRY;
        open_pages(snapshot, page, page + 1, prot_of(word));
        return MMK_FAULT_PASS_ON;
    }
    int error = keep(snapshot, page);
    if (error)
        return error == -EAGAIN ? MMK_FAULT_RETRY : MMK_FAULT_PASS_ON;
    size_t first = page, end = page + 1;
    if (note_fault(snapshot, offset) >= EXACT) {
        size_t count = snapshot->length / snapshot->region->granule, part = count / EXACT + 1;
        size_t part_end = (page / part + 1) * part < count ? (page / part + 1) * part : count;
        while (end < part_end && keep_alike(snapshot, end, prot_of(word)))
            end++;
        while (first > page / part * part && keep_alike(snapshot, first - 1, prot_of(word)))
            first--;
    }
    open_pages(snapshot, first, end, prot_of(word));
    return MMK_FAULT_RETRY;
}

static mmk_fault_answer keep_before_write(mmk_region *region, uintptr_t address, bool write)
{
    mmk_snapshot *snapshot = atomic_load(&region->snapshot);
    size_t offset = address - (uintptr_t)region->base; /* in front of it: beyond any length */
    if (!write || !snapshot || offset >= snapshot->length)
        return MMK_FAULT_PASS_ON;
    if (!(prot_of(word_of(snapshot, offset / region->granule)) & PROT_WRITE))
        return MMK_FAULT_PASS_ON;
    sigset_t before;
    block_signals(&before);
    mmk_fault_answer answer = let_write(snapshot, offset);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return answer;
}

static void keep_run(mmk_snapshot *snapshot, size_t first, size_t end)
{
    for (size_t page = first, next; page < end; page = next) {
        int prot = prot_of(word_of(snapshot, page));
        for (next = page; next < end && (prot & PROT_WRITE) && keep_alike(snapshot, next, prot);)
            next++;
        if (next > page)
            open_pages(snapshot, page, next, prot);
        else /* open, or soon; or it may not be written, or cannot be read */
            (void)wait_while_busy(snapshot, next++);
    }
}

/* returns false if the snapshot is just being taken, for which who takes it needs readers to leave */
static bool keep_all(mmk_snapshot *snapshot, size_t offset, size_t length)
{
    if (atomic_load(&snapshot->beginning))
        return false;
    size_t size = snapshot->region->granule;
    size_t end = offset + length < snapshot->length ? offset + length : snapshot->length;
    sigset_t before;
    block_signals(&before);
    keep_run(snapshot, offset / size, end / size);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return true;
}

void snapshot_keep(mmk_region *region, size_t offset, size_t length)
{
    while (atomic_load(&region->snapshot)) {
        unsigned reading = readers_enter(); /* as in a hook: release waits for us */
        mmk_snapshot *snapshot = atomic_load(&region->snapshot);
        bool done = !snapshot || keep_all(snapshot, offset, length);
        readers_leave(reading);
        if (done)
            return;
        nap();
    }
}

/* ---- protecting, under the region's lock ------------------------------------------------------------ */

/* Note what a page is to have once it is open. returns whether it is open now. */
static bool set_prot(mmk_snapshot *snapshot, size_t page, int prot)
{
    unsigned word = word_of(snapshot, page);
    while (!exchange(snapshot, page, word, (word & STATE) | (unsigned)(prot & PROTS) << PROT_SHIFT))
        word = word_of(snapshot, page);
    return (wait_while_busy(snapshot, page) & STATE) == OPEN;
}

int snapshot_mprotect(mmk_snapshot *snapshot, size_t first, size_t end, int prot)
{
    size_t count = snapshot->ending ? 0 : snapshot->length / snapshot->region->granule;
    int late = prot & PROT_WRITE ? (prot & ~PROT_WRITE) | PROT_READ : prot, error = 0;
    for (size_t page = first, next; page < end && !error; page = next) {
        bool open = page >= count || set_prot(snapshot, page, prot);
        for (next = page + 1; next < end && open == (next >= count || set_prot(snapshot, next, prot));)
            next++;
        error = mprotect_pages(snapshot, page, next, open ? prot : late);
        /* What a writer opened just before that call is protected again. Should he meet that, see let_write. */
        for (size_t at = page; at < next && !open && late != prot && !error; at++)
            if (wait_while_busy(snapshot, at) & STATE)
                error = mprotect_pages(snapshot, at, at + 1, prot);
    }
    return error;
}

void snapshot_after_fork(mmk_snapshot *snapshot)
{
    for (size_t page = 0; page < snapshot->length / snapshot->region->granule; page++) {
        unsigned word = word_of(snapshot, page);
        if ((word & STATE) == SAVING)
            (void)exchange(snapshot, page, word, word - SAVING);
        else if ((word & STATE) == KEPT)
            open_pages(snapshot, page, page + 1, prot_of(word));
    }
}

/* ---- life ------------------------------------------------------------------------------------------- */

static int map_kept(mmk_snapshot *snapshot)
{
    size_t pages = snapshot->length / snapshot->region->granule;
    size_t bytes = mmk_round_up(pages, sizeof *snapshot->faults);
    mmk_request request = {
        .length = snapshot->length + bytes + pages * sizeof *snapshot->faults,
        .prot = PROT_READ | PROT_WRITE,
        .flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
        .fd = -1,
    };
    int error = mmk_region_map(&snapshot->kept, &request);
    if (error)
        return error;
    snapshot->pages = (void *)(snapshot->kept.base + snapshot->length);
    snapshot->faults = (void *)(snapshot->kept.base + snapshot->length + bytes);
    return 0;
}

/* pre: the lock is held */
static void end(mmk_snapshot *snapshot)
{
    snapshot->ending = true;
    (void)region_enforce(snapshot->region, 0, snapshot->length);
    region_set_hook(snapshot->region, NULL);
    atomic_store(&snapshot->region->snapshot, NULL);
    mmk_region_dispose(&snapshot->kept);
}

/* A page that is opened while others can still be written to would be of an earlier instant than those: by a fault of
 * before, which the last snapshot had caused, or where one call does not protect all pages. */
static int begin_catching(mmk_snapshot *snapshot)
{
    mmk_region *region = snapshot->region;
    atomic_store(&snapshot->beginning, true);
    atomic_store(&region->snapshot, snapshot);
    region_set_hook(region, keep_before_write);
    int error = region_enforce(region, 0, snapshot->length);
    atomic_store(&snapshot->beginning, false);
    return error;
}

static int take(mmk_snapshot *snapshot, mmk_region *region)
{
    if (!region_is_private_anonymous(region))
        return -MMK_EUNSUPPORTED;
    if (atomic_load(&region->hook))
        return -EBUSY;
    snapshot->region = region;
    snapshot->length = mmk_region_length(region);
    int error = map_kept(snapshot);
    if (error)
        return error;
    mmk_fault_come_first();
    /* A handler here that writes to the region would wait for what it has interrupted. */
    sigset_t before;
    block_signals(&before);
    error = begin_catching(snapshot);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        end(snapshot);
    return error;
}

int mmk_snapshot_take(mmk_snapshot *snapshot, mmk_region *region)
{
    *snapshot = (mmk_snapshot){0};
    int error = region_begin_change(region);
    if (error)
        return error;
    error = take(snapshot, region);
    region_end_change(region);
    if (error)
        snapshot->region = NULL;
    return error;
}

/* returns 0 with the lock held, or -MMK_ECLOSED */
static int begin(mmk_snapshot *snapshot)
{
    if (!snapshot->region || region_begin_change(snapshot->region))
        return -MMK_ECLOSED;
    if (atomic_load(&snapshot->region->snapshot) == snapshot)
        return 0;
    region_end_change(snapshot->region);
    return -MMK_ECLOSED;
}

void mmk_snapshot_release(mmk_snapshot *snapshot)
{
    if (begin(snapshot) == 0) {
        end(snapshot);
        region_end_change(snapshot->region);
    } else {
        mmk_region_dispose(&snapshot->kept); /* in a child that has not got the region */
    }
}

/* ---- contents --------------------------------------------------------------------------------------- */

static int read_page(const mmk_snapshot *snapshot, size_t offset, void *into, size_t length, mmk_fault *fault)
{
    size_t page = offset / snapshot->region->granule;
    if (!is_kept(word_of(snapshot, page))) {
        int error = mmk_guarded_copy(into, snapshot->region->base + offset, length, fault);
        /* Nothing is written before it says KEPT: if it does not say so yet, this was the page as it was. An addition,
         * since a load might come before those of the copy. */
        if (!is_kept(atomic_fetch_add(&snapshot->pages[page], 0)))
            return error;
    }
    return mmk_guarded_copy(into, snapshot->kept.base + offset, length, fault);
}

int mmk_snapshot_read(mmk_snapshot *snapshot, size_t offset, void *into, size_t length, mmk_fault *fault)
{
    int error = begin(snapshot);
    if (error)
        return error;
    size_t size = snapshot->region->granule;
    if (offset > snapshot->length || length > snapshot->length - offset)
        error = -ERANGE;
    for (size_t done = 0, part; done < length && !error; done += part) {
        size_t rest = size - (offset + done) % size;
        part = rest < length - done ? rest : length - done;
        error = read_page(snapshot, offset + done, (char *)into + done, part, fault);
    }
    region_end_change(snapshot->region);
    return error;
}

static bool next_dirty(const mmk_snapshot *snapshot, size_t *offset, size_t *length)
{
    size_t size = snapshot->region->granule, end = snapshot->length / size, first = *offset / size;
    while (first < end && !is_kept(word_of(snapshot, first)))
        first++;
    size_t last = first;
    while (last < end && is_kept(word_of(snapshot, last)))
        last++;
    *offset = first * size;
    *length = (last - first) * size;
    return last > first;
}

int mmk_snapshot_restore(mmk_snapshot *snapshot, mmk_fault *fault)
{
    int error = begin(snapshot);
    if (error)
        return error;
    mmk_region *region = snapshot->region;
    for (size_t offset = 0, length = 0; !error && next_dirty(snapshot, &offset, &length); offset += length)
        error = region_check_write(region, offset, length, fault);
    for (size_t offset = 0, length = 0; !error && next_dirty(snapshot, &offset, &length); offset += length)
        error = mmk_guarded_copy(region->base + offset, snapshot->kept.base + offset, length, fault);
    region_end_change(region);
    return error;
}

int mmk_snapshot_next_dirty(mmk_snapshot *snapshot, size_t *offset, size_t *length)
{
    int error = begin(snapshot);
    if (error)
        return error;
    bool found = next_dirty(snapshot, offset, length);
    region_end_change(snapshot->region);
    return found;
}

ssize_t mmk_snapshot_faults(mmk_snapshot *snapshot, size_t first, size_t *offsets, size_t count)
{
    int error = begin(snapshot);
    if (error)
        return error;
    size_t end = atomic_load(&snapshot->fault_count), found = 0;
    for (size_t number = first; number < end && found < count; number++, found++) {
        size_t noted = atomic_load(&snapshot->faults[number]);
        if (!noted) /* its thread is just about to */
            break;
        offsets[found] = noted - 1;
    }
    region_end_change(snapshot->region);
    return (ssize_t)found;
}
