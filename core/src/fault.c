#include <mmkit/fault.h>

#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "fault_internal.h"
#include "guarded_leaf.h"
#include "readers.h"
#include "region_internal.h"
#include "registry_internal.h"

enum { TRIES = 8 };

/* ---- the machine ------------------------------------------------------------------------------------ */

#if defined(__x86_64__)

static uintptr_t program_counter(const ucontext_t *context)
{
    return (uintptr_t)context->uc_mcontext.gregs[REG_RIP];
}

/* Bit 1 of the page-fault error code: Intel SDM 3A, 4.7. */
static bool was_write(const ucontext_t *context)
{
    return context->uc_mcontext.gregs[REG_ERR] & 2;
}

static void leave_leaf(ucontext_t *context, uintptr_t address, uint64_t fault)
{
    context->uc_mcontext.gregs[REG_RAX] = (greg_t)address;
    context->uc_mcontext.gregs[REG_RDX] = (greg_t)fault;
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)guarded_leaf_exit;
}

#elif defined(__aarch64__)

static uintptr_t program_counter(const ucontext_t *context)
{
    return context->uc_mcontext.pc;
}

/* Bit 6, WnR, of the syndrome register, which the kernel adds as a record of its own: Arm ARM, ESR_EL1. */
static bool was_write(const ucontext_t *context)
{
    const struct _aarch64_ctx *record = (const void *)context->uc_mcontext.__reserved;
    const char *end = (const char *)context->uc_mcontext.__reserved + sizeof context->uc_mcontext.__reserved;
    while ((const char *)(record + 1) <= end && record->magic && record->size) {
        if (record->magic == ESR_MAGIC)
            return ((const struct esr_context *)record)->esr & 1 << 6;
        record = (const void *)((const char *)record + record->size);
    }
    return false;
}

static void leave_leaf(ucontext_t *context, uintptr_t address, uint64_t fault)
{
    context->uc_mcontext.regs[0] = address;
    context->uc_mcontext.regs[1] = fault;
    context->uc_mcontext.pc = (uintptr_t)guarded_leaf_exit;
}

#endif

/* ---- what to do with a signal ----------------------------------------------------------------------- */

static bool is_in_leaf(const ucontext_t *context)
{
    uintptr_t counter = program_counter(context);
    return (uintptr_t)guarded_leaf <= counter && counter < (uintptr_t)guarded_leaf_end;
}

/* What is sent during an access waits: it is not yet known what it means. */
static bool put_off_if_touching(const siginfo_t *info)
{
    if (!fault_self.touching)
        return false;
    memcpy((void *)(info->si_signo == SIGSEGV ? &fault_self.segv : &fault_self.bus), info, sizeof *info);
    fault_self.was_sent = true;
    if (fault_self.hooks)
        fault_self.is_message = true;
    return true;
}

static void forget_if_raised(volatile siginfo_t *sent)
{
    if (sent->si_pid == getpid() && (sent->si_code == SI_TKILL || sent->si_code == SI_USER))
        sent->si_signo = 0;
}

/* A fault of the access comes to us only now: a handler in front, which did not know it, may have put back what it
 * had replaced and raised the signal again. */
static void forget_what_was_raised_again(void)
{
    if (!fault_self.was_sent || fault_self.is_message)
        return;
    forget_if_raised(&fault_self.segv);
    forget_if_raised(&fault_self.bus);
}

static bool is_mended_by_hook(uintptr_t address, bool write)
{
    unsigned reading = readers_enter();
    mmk_region *region = registry_region_at(address);
    mmk_fault_hook *hook = region ? atomic_load_explicit(&region->hook, memory_order_acquire) : NULL;
    fault_self.hooks++;
    bool mended = hook && hook(region, address, write) == MMK_FAULT_RETRY;
    fault_self.hooks--;
    readers_leave(reading);
    if (mended)
        fault_self.tries = 0;
    return mended;
}

static atomic_ulong mendings;

void fault_count_mending(void)
{
    atomic_fetch_add(&mendings, 1);
}

/* Both only rise, so their sum does. */
static unsigned long count_changes(void)
{
    return registry_removals() + atomic_load(&mendings);
}

/* A fault may be taken just before its page is unprotected, or its hook taken out as well. So what nobody mends is
 * tried again if anything was mended or taken out since this thread last asked. Not for ever: a fault that is nobody's
 * may stand beside a thread that takes things out without a pause. */
static bool may_have_been_mended(uintptr_t address)
{
    unsigned long changes = count_changes();
    bool changed = changes != fault_self.changes;
    fault_self.changes = changes;
    if (address != fault_self.tried)
        fault_self.tries = 0;
    fault_self.tried = address;
    return changed && fault_self.tries++ < TRIES;
}

bool fault_settle(const siginfo_t *info, ucontext_t *context)
{
    if (!fault_is_synchronous(info))
        return put_off_if_touching(info);
    forget_what_was_raised_again();
    uintptr_t address = (uintptr_t)info->si_addr;
    bool write = was_write(context);
    if (info->si_code != SI_KERNEL && (is_mended_by_hook(address, write) || may_have_been_mended(address)))
        return true;
    fault_self.tries = 0;
    if (!is_in_leaf(context))
        return false;
    leave_leaf(context, address, fault_word(info, write));
    return true;
}

/* ---- hooks ------------------------------------------------------------------------------------------ */

int mmk_region_set_fault_hook(mmk_region *region, mmk_fault_hook *hook)
{
    int error = region_begin_change(region);
    if (error)
        return error;
    if (atomic_load(&region->snapshot))
        error = -EBUSY;
    else if (hook)
        mmk_fault_come_first();
    if (!error)
        region_set_hook(region, hook);
    region_end_change(region);
    return error;
}
