#include <mmkit/placed.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <mmkit/process.h>

#include "placed_internal.h"

#define MAGIC UINT64_C(0x636e79732d6b6d6d)      /* "mmk-sync" in little-endian order */
#define BEING_MADE UINT64_C(0x2077656e00000000) /* "new ", and a pid in the lower half */
#define UPPER_HALF UINT64_C(0xffffffff00000000)

#ifdef __GLIBC__
enum { LIBC = 1 };
#else
enum { LIBC = 2 };
#endif

enum { MUTEX_ABI = LIBC << 16 | (int)sizeof(pthread_mutex_t) };

_Static_assert(sizeof(mmk_placed) == 64, "drawn in placed.h");
_Static_assert(offsetof(mmk_placed, namespaces) == 16 && offsetof(mmk_placed, mutex_abi) == 40, "likewise");

/* Does whoever took the place for a new object still live? The start may not have been written yet. */
static bool maker_is_gone(const mmk_placed *placed, uint64_t magic)
{
    uint32_t pid = (uint32_t)magic;
    uint64_t here;
    bool is_known = placed->maker_pid == pid && !mmk_process_namespace(&here) && placed->namespaces == here;
    uint64_t start = is_known ? placed->maker_start : 0;
    return mmk_process_is_gone(&(mmk_process){pid, start});
}

static int take_place(mmk_placed *placed, const mmk_process *self)
{
    uint64_t seen = atomic_load_explicit(&placed->magic, memory_order_acquire);
    for (;;) {
        if (seen == MAGIC)
            return -EEXIST;
        if (seen && (seen & UPPER_HALF) != BEING_MADE)
            return -MMK_EALIEN;
        if (seen && !maker_is_gone(placed, seen))
            return -EBUSY;
        if (atomic_compare_exchange_strong(&placed->magic, &seen, BEING_MADE | self->pid))
            return 0;
    }
}

int placed_begin(mmk_placed *placed, mmk_placed_kind kind, size_t size)
{
    mmk_process self;
    uint64_t here;
    uint8_t boot[16];
    int error = mmk_process_self(&self);
    if (!error)
        error = mmk_process_namespace(&here);
    if (!error)
        error = mmk_process_boot(boot);
    if (!error)
        error = take_place(placed, &self);
    if (error)
        return error;
    placed->namespaces = here;
    placed->maker_start = self.start;
    placed->maker_pid = self.pid;
    placed->version = MMK_PLACED_VERSION;
    placed->kind = (uint16_t)kind;
    placed->size = (uint32_t)size;
    memcpy(placed->boot, boot, sizeof boot);
    placed->mutex_abi = MUTEX_ABI;
    placed->unused = 0;
    memset(placed + 1, 0, size - sizeof *placed);
    return 0;
}

void placed_publish(mmk_placed *placed)
{
    atomic_store_explicit(&placed->magic, MAGIC, memory_order_release);
}

static int why_nothing(const mmk_placed *placed, uint64_t magic)
{
    if (magic == 0)
        return -MMK_ENOTHING;
    if ((magic & UPPER_HALF) != BEING_MADE)
        return -MMK_EALIEN;
    return maker_is_gone(placed, magic) ? -MMK_EHALFMADE : -EBUSY;
}

int mmk_placed_check(const mmk_placed *placed, mmk_placed_kind kind, size_t size)
{
    uint64_t magic = atomic_load_explicit(&((mmk_placed *)placed)->magic, memory_order_acquire);
    if (magic != MAGIC)
        return why_nothing(placed, magic);
    if (placed->version != MMK_PLACED_VERSION)
        return -MMK_EFORMAT;
    if (placed->kind != kind)
        return -MMK_EKIND;
    if (placed->size != size)
        return -MMK_EFORMAT;
    if (placed->mutex_abi != MUTEX_ABI)
        return -MMK_EABI;
    uint64_t here;
    uint8_t boot[16];
    int error = mmk_process_namespace(&here);
    if (!error)
        error = mmk_process_boot(boot);
    if (error)
        return error;
    if (memcmp(boot, placed->boot, sizeof boot) != 0)
        return -MMK_EBOOT;
    return here == placed->namespaces ? 0 : -MMK_EOTHERPIDS;
}

void mmk_placed_remove(mmk_placed *placed)
{
    atomic_store_explicit(&placed->magic, 0, memory_order_release);
}
