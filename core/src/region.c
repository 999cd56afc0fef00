#include <mmkit/region.h>

#include <string.h>
#include <sys/shm.h>
#include <time.h>

#include <mmkit/registry.h>
#include <mmkit/sys.h>

#include "region_internal.h"
#include "registry_internal.h"
#include "snapshot_internal.h"

enum { FIXED_NOREPLACE = 0x100000 }; /* MAP_FIXED_NOREPLACE, Linux 4.17 */

int region_reserve(size_t reserved, size_t guard, size_t granule, mmk_range *outer, char **base)
{
    /* Huge pages need an aligned base; the kernel aligns PROT_NONE mappings to base pages only. */
    size_t slack = granule - mmk_page_size();
    size_t length, padded;
    if (__builtin_add_overflow(reserved, 2 * guard, &length) || __builtin_add_overflow(length, slack, &padded))
        return -ENOMEM;

    intptr_t got = mmk_sys_mmap(NULL, padded, PROT_NONE, HOLD_FLAGS, -1, 0);
    if (got < 0)
        return (int)got;
    char *start = (char *)got;
    *base = (char *)mmk_round_up((size_t)start + guard, granule);
    *outer = (mmk_range){*base - guard, length};

    size_t before = (size_t)(outer->base - start);
    if (before)
        mmk_sys_munmap(start, before);
    if (slack > before)
        mmk_sys_munmap(outer->base + length, slack - before);
    return 0;
}

int region_hold_free(char *address, size_t length)
{
    intptr_t got = mmk_sys_mmap(address, length, PROT_NONE, HOLD_FLAGS | FIXED_NOREPLACE, -1, 0);
    if (got < 0)
        return (int)got;
    if (got == (intptr_t)address)
        return 0;
    /* Before 4.17 the flag is unknown and the address only a hint. */
    mmk_sys_munmap((void *)got, length);
    return -EEXIST;
}

static int map_reserved(mmk_region *region, const mmk_request *request, size_t length)
{
    int error = region_reserve(region->reserved, request->guard, region->granule, &region->outer, &region->base);
    if (error)
        return error;
    intptr_t address = mmk_sys_mmap(region->base, length, request->prot, request->flags | MAP_FIXED, request->fd,
                                    (off_t)request->file_offset);
    if (address < 0)
        mmk_sys_munmap(region->outer.base, region->outer.length);
    return address < 0 ? (int)address : 0;
}

static int map_plain(mmk_region *region, const mmk_request *request, size_t length)
{
    intptr_t address =
        mmk_sys_mmap(NULL, length, request->prot, request->flags, request->fd, (off_t)request->file_offset);
    if (address < 0)
        return (int)address;
    region->base = (char *)address;
    region->outer = (mmk_range){region->base, length};
    return 0;
}

static int attach_system_v(mmk_region *region, const mmk_request *request, size_t length)
{
    int flags = (request->prot & PROT_WRITE ? 0 : SHM_RDONLY) | (request->prot & PROT_EXEC ? SHM_EXEC : 0);
    intptr_t address = mmk_sys_shmat(request->shmid, NULL, flags);
    if (address < 0)
        return (int)address;
    region->base = (char *)address;
    region->outer = (mmk_range){region->base, length};
    return 0;
}

static int map_as_asked(mmk_region *region, const mmk_request *request, size_t length)
{
    bool plain = region->reserved == length && request->guard == 0;
    if (request->system_v)
        return plain && request->file_offset == 0 ? attach_system_v(region, request, length) : -EINVAL;
    return plain ? map_plain(region, request, length) : map_reserved(region, request, length);
}

int mmk_region_map(mmk_region *region, const mmk_request *request)
{
    size_t granule = request->granule ? request->granule : mmk_page_size();
    size_t wanted = request->reserve > request->length ? request->reserve : request->length;
    *region = (mmk_region){0};
    if (request->length == 0 || wanted > SIZE_MAX / 4 || request->guard > SIZE_MAX / 4)
        return request->length == 0 ? -EINVAL : -ENOMEM;

    size_t length = mmk_round_up(request->length, granule);
    *region = (mmk_region){
        .asked = request->length,
        .granule = granule,
        .reserved = mmk_round_up(wanted, granule),
        .prot = request->prot,
        .uniform = request->prot,
        .flags = request->flags,
        .fd = request->fd,
        .file_offset = request->file_offset,
        .may_shrink = request->may_shrink,
        .always_locked = request->always_locked,
        .lock = PTHREAD_MUTEX_INITIALIZER,
    };
    atomic_init(&region->length, length);

    int error = map_as_asked(region, request, length);
    if (!error) {
        /* Left to itself the kernel lets a child have secret memory: a secret of two is none. */
        error = region->always_locked ? mmk_sys_madvise(region->base, length, MMK_MADV_DONTFORK) : 0;
        if (!error)
            error = mmk_registry_add(region);
        if (error)
            mmk_sys_munmap(region->outer.base, region->outer.length);
    }
    if (error) {
        region->outer = (mmk_range){0};
        return error;
    }
    region->hides_end = region_hides_end(region);
    atomic_store_explicit(&region->state, MMK_REGION_LIVE, memory_order_release);
    return 0;
}

int mmk_region_enter_late(mmk_region *region)
{
    for (;;) {
        uint64_t before = atomic_fetch_sub_explicit(&region->state, 1, memory_order_release);
        if (!(before & MMK_REGION_LIVE))
            return -MMK_ECLOSED;
        /* Whoever keeps others out holds the lock: wait for it. */
        pthread_mutex_lock(&region->lock);
        pthread_mutex_unlock(&region->lock);
        before = atomic_fetch_add_explicit(&region->state, 1, memory_order_acquire);
        if ((before & (MMK_REGION_LIVE | MMK_REGION_EXCLUDED)) == MMK_REGION_LIVE)
            return 0;
    }
}

int region_begin_change(mmk_region *region)
{
    /* A closed region's lock is no business of the fork handlers: in a child it may never come free. */
    if (mmk_region_is_closed(region))
        return -MMK_ECLOSED;
    pthread_mutex_lock(&region->lock);
    if (!mmk_region_is_closed(region))
        return 0;
    pthread_mutex_unlock(&region->lock);
    return -MMK_ECLOSED;
}

int region_exclude(mmk_region *region)
{
    uint64_t idle = MMK_REGION_LIVE;
    return atomic_compare_exchange_strong(&region->state, &idle, MMK_REGION_LIVE | MMK_REGION_EXCLUDED) ? 0
                                                                                                        : -MMK_EPINNED;
}

void region_exclude_waiting(mmk_region *region)
{
    uint64_t before = atomic_fetch_or(&region->state, MMK_REGION_EXCLUDED);
    while (before != MMK_REGION_LIVE && before != (MMK_REGION_LIVE | MMK_REGION_EXCLUDED)) {
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        before = atomic_load(&region->state);
    }
}

void region_admit(mmk_region *region)
{
    region_publish(region);
    atomic_fetch_and(&region->state, ~MMK_REGION_EXCLUDED);
}

static void forget_bookkeeping(mmk_region *region)
{
    mmk_runs_clear(&region->protections);
    mmk_runs_clear(&region->locks);
    mmk_runs_clear(&region->guards);
    region->covers = NULL;
}

void region_set_hook(mmk_region *region, mmk_fault_hook *hook)
{
    if (!hook && !atomic_load(&region->hook))
        return;
    registry_begin_removal();
    atomic_store_explicit(&region->hook, hook, memory_order_release);
    registry_end_removal();
}

/* Take the addresses that the child has not got. */
static int fill_holes(char *address, size_t length)
{
    /* ENOMEM: some of it is not mapped. With MS_ASYNC that is all that the call does. */
    if (mmk_sys_msync(address, length, MS_ASYNC) != -ENOMEM)
        return 0;
    int error = region_hold_free(address, length);
    if (!error || length == mmk_page_size())
        return error;
    size_t half = mmk_round_up(length / 2, mmk_page_size());
    error = fill_holes(address, half);
    int other = fill_holes(address + half, length - half);
    return error ? error : other;
}

/* Make the child's address space the same as the parent's where the region is.
 * returns 1 if the region is all there, 0 if its addresses are only held now, or a negative errno. */
static int settle_in_child(const mmk_region *region)
{
    const mmk_range *outer = &region->outer;
    if (mmk_sys_msync(outer->base, outer->length, MS_ASYNC) != -ENOMEM)
        return 1;
    return fill_holes(outer->base, outer->length);
}

bool region_after_fork(mmk_region *region)
{
    atomic_fetch_and(&region->state, MMK_REGION_LIVE);
    region->locks.count = 0; /* mlock(2): not inherited */
    if (mmk_region_is_closed(region))
        return true;
    int settled = settle_in_child(region);
    mmk_snapshot *snapshot = atomic_load(&region->snapshot);
    if (settled == 1) {
        if (snapshot)
            snapshot_after_fork(snapshot);
        return true;
    }
    atomic_store(&region->state, 0);
    atomic_store(&region->hook, NULL);
    atomic_store(&region->snapshot, NULL);
    forget_bookkeeping(region);
    if (settled == 0)
        return true;
    region->outer = (mmk_range){0};
    return false;
}

bool region_is_viewed(const mmk_region *region, size_t offset, size_t length, bool writable)
{
    for (const mmk_view *view = region->views; length && view; view = view->next)
        if (view->length && view->offset < offset + length && offset < view->offset + view->length &&
            (view->writable || !writable))
            return true;
    return false;
}

int region_begin_destroying(mmk_region *region, size_t offset, size_t length, bool force)
{
    int error = region_begin_change(region);
    if (error)
        return error;
    if (atomic_load(&region->snapshot))
        error = -MMK_EPINNED;
    else if (!force)
        error = region_is_viewed(region, offset, length, false) ? -MMK_EPINNED : region_exclude(region);
    if (error)
        region_end_change(region);
    return error;
}

void region_end_destroying(mmk_region *region, bool force)
{
    if (!force)
        region_admit(region);
    region_end_change(region);
}

static const mmk_view *find_tenant(const mmk_view *view)
{
    while (view && !view->tenant)
        view = view->next;
    return view;
}

static bool is_taken(const mmk_region *region, const mmk_view *wanted, bool joins)
{
    for (const mmk_view *view = find_tenant(region->views); view; view = find_tenant(view->next))
        if (view->offset < wanted->offset + wanted->length && wanted->offset < view->offset + view->length &&
            !(joins && strcmp(view->tenant, wanted->tenant) == 0))
            return true;
    return false;
}

static MMK_MUST_CHECK int open_view(mmk_region *region, mmk_view *view, const mmk_view *wanted, bool joins)
{
    int error = region_begin_change(region);
    if (error)
        return error;
    int needed = wanted->writable ? PROT_READ | PROT_WRITE : PROT_READ;
    /* The caller looked at the length without the lock: the region may have shrunk since. */
    if (!is_inside(region, wanted->offset, wanted->length))
        error = -ERANGE;
    else if ((region_prot_of_range(region, wanted->offset, wanted->length) & needed) != needed)
        error = -EACCES;
    else if (wanted->tenant && is_taken(region, wanted, joins))
        error = -MMK_ETAKEN;
    if (error) {
        region_end_change(region);
        return error;
    }
    *view = *wanted;
    view->next = region->views;
    view->link = &region->views;
    if (view->next)
        view->next->link = &view->next;
    region->views = view;
    region->exposed = true;
    region_end_change(region);
    return 0;
}

int mmk_view_open(mmk_region *region, mmk_view *view, size_t offset, size_t length, bool writable)
{
    return open_view(region, view, &(mmk_view){.offset = offset, .length = length, .writable = writable}, false);
}

int mmk_view_settle(mmk_region *region, mmk_view *view, size_t offset, size_t length, const char *tenant, bool joins)
{
    const mmk_view wanted = {.offset = offset, .length = length, .writable = true, .tenant = tenant};
    return open_view(region, view, &wanted, joins);
}

void mmk_view_close(mmk_region *region, mmk_view *view)
{
    pthread_mutex_lock(&region->lock);
    *view->link = view->next;
    if (view->next)
        view->next->link = view->link;
    pthread_mutex_unlock(&region->lock);
}

bool mmk_region_has_views(mmk_region *region)
{
    if (mmk_region_is_closed(region))
        return false;
    pthread_mutex_lock(&region->lock);
    bool viewed = region->views != NULL;
    pthread_mutex_unlock(&region->lock);
    return viewed;
}

const char *mmk_region_tenant(mmk_region *region)
{
    if (mmk_region_is_closed(region))
        return NULL;
    pthread_mutex_lock(&region->lock);
    const mmk_view *view = find_tenant(region->views);
    const char *tenant = view ? view->tenant : NULL;
    pthread_mutex_unlock(&region->lock);
    return tenant;
}

int mmk_region_seal(mmk_region *region)
{
    int error = region_begin_change(region);
    if (error)
        return error;
    error = atomic_load(&region->snapshot) ? -MMK_EPINNED : mmk_sys_mseal(region->base, mmk_region_length(region), 0);
    if (!error)
        region->sealed = true;
    region_end_change(region);
    return error;
}

static int give_up_contents(mmk_region *region)
{
    if (region->sealed)
        return 0;
    /* Unmapping much takes long, and would keep the registry locked. */
    bool quick = region->outer.length <= 4u << 20;
    if (!region->exposed && quick && mmk_registry_unmap(region) == 0)
        return 0;
    return (int)hold(region->outer.base, region->outer.length);
}

int mmk_region_close(mmk_region *region)
{
    int error = region_begin_change(region);
    if (error)
        return error;
    error = region->views || atomic_load(&region->snapshot) ? -MMK_EPINNED : region_exclude(region);
    if (!error) {
        /* Closed first: the fork handlers do not free the lock of a region that has left the registry, so a
         * child must not want it. */
        atomic_fetch_and(&region->state, ~MMK_REGION_LIVE);
        mmk_fault_hook *hook = atomic_load(&region->hook);
        region_set_hook(region, NULL);
        error = give_up_contents(region);
        if (error) {
            region_set_hook(region, hook);
            atomic_fetch_or(&region->state, MMK_REGION_LIVE);
        } else {
            forget_bookkeeping(region);
        }
        region_admit(region);
    }
    region_end_change(region);
    return error;
}

void mmk_region_dispose(mmk_region *region)
{
    if (region->outer.length == 0)
        return;
    atomic_fetch_and(&region->state, ~MMK_REGION_LIVE);
    forget_bookkeeping(region);
    mmk_registry_remove(region);
    /* munmap needs one area more where a neighbour has merged with this one: at the limit, give up the
     * contents at least. */
    if (!region->sealed && mmk_sys_munmap(region->outer.base, region->outer.length) < 0)
        mmk_sys_madvise(region->outer.base, region->outer.length, MMK_MADV_DONTNEED);
    region->outer = (mmk_range){0};
}
