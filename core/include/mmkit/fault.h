/* fault.h: the handler of SIGSEGV and SIGBUS.
 *
 *                        ┌─ a region's hook says "retry" ─────> the instruction runs again
 *     fault ─> handler ──┼─ inside mmk_guarded_copy ──────────> that returns -EFAULT
 *                        ├─ something was unmapped just now ──> the instruction runs again, to be sure
 *                        └─ not ours ─────────────────────────> who handled it before us
 *
 * The handler is installed on first use. Others may install theirs in front of it (faulthandler, signal.signal,
 * a crash reporter): then it is put in front again, and theirs is what comes after it: see mmk_fault_come_first.
 * It needs no stack of its own, preserves errno, waits for no lock and calls no malloc.
 *
 * Threads: any. Fork: a child has the handlers and hooks of its parent.
 */
#ifndef MMKIT_FAULT_H
#define MMKIT_FAULT_H

#include <mmkit/region.h>

/* Have a hook called when a load or store in the region faults; NULL for none. (System calls answer EFAULT.) When
 * this returns, no earlier hook is running any more, nor will be.
 *
 * The hook makes the page accessible and answers MMK_FAULT_RETRY, also where it finds that another thread has
 * done so meanwhile. It is async-signal-safe: it takes no lock that anybody may hold while touching the region
 * or calling into mmkit, does not allocate, return by longjmp(3) or call Python. mmk_sys_* and mmk_guarded_copy
 * may be called. A child forked while another thread runs a hook finds what that had done so far. A region that
 * must move to grow cannot be resized while it has a hook.
 *
 * returns  0, -MMK_ECLOSED, or -EBUSY where a snapshot has its own (snapshot.h)
 * Lock order: as mmk_region_close. */
MMK_API MMK_MUST_CHECK int mmk_region_set_fault_hook(mmk_region *region, mmk_fault_hook *hook);

/* Put the handler in front of whatever others have installed since; and learn what was taken away again, when
 * others have put back an older handler of ours. mmk_guarded_copy does it once a tick: who knows that handlers
 * have changed calls it at once. sigaction(2) */
MMK_API void mmk_fault_come_first(void);

/* Say where the language interpreter is: in the loaded object that holds this address. Its handlers only note
 * that a signal came. When one returns from a real fault, the instruction would fault again, for ever: so what
 * came before it is asked then. dl_iterate_phdr(3) */
MMK_API void mmk_fault_interpreter(const void *function);

#endif
