/* guarded_internal.h: mmk_guarded_copy in the few instructions that every access pays.
 *
 *     touch_begin   a look at the clock; rarely: at the handlers, and at the signals that the thread blocks
 *     the leaf      loads and stores (guarded_leaf.h)
 *     touch_end     rarely: signals that were sent meanwhile go where they belong
 */
#ifndef MMKIT_GUARDED_INTERNAL_H
#define MMKIT_GUARDED_INTERNAL_H

#include <errno.h>

#include "fault_internal.h"
#include "guarded_leaf.h"

#define HIDDEN __attribute__((visibility("hidden")))
#define RARE __attribute__((visibility("hidden"), cold))

/* clock_gettime(2); glibc's way to the kernel's code, a third of the cost, is gone once that was found. vdso(7) */
extern int (*touch_look_at_clock)(clockid_t clock, struct timespec *now) HIDDEN;

/* Around an access. A thread that blocks the signals would be killed by a fault, which the kernel delivers all the
 * same: they are unblocked meanwhile. */
typedef struct touch {
    bool unblocked;
    sigset_t before;
} touch;

/* What is done once in a tick. returns whether nothing need be unblocked */
RARE bool touch_make_ready(const struct timespec *tick);
RARE void touch_unblock(sigset_t *before);
RARE void touch_block(const sigset_t *before);
RARE void touch_send_again(void);

/* Is the handler the first to be asked, and are its signals not blocked here? Looked up once a tick. */
static inline bool touch_is_ready(void)
{
    struct timespec tick;
    touch_look_at_clock(CLOCK_MONOTONIC_COARSE, &tick);
    bool same = tick.tv_nsec == fault_self.checked.tv_nsec && tick.tv_sec == fault_self.checked.tv_sec;
    return __builtin_expect(same, true) || touch_make_ready(&tick);
}

static inline void touch_begin(touch *t)
{
    t->unblocked = !touch_is_ready();
    fault_self.touching++;
    if (__builtin_expect(t->unblocked, false))
        touch_unblock(&t->before);
}

static inline void touch_end(const touch *t)
{
    if (__builtin_expect(t->unblocked, false))
        touch_block(&t->before);
    fault_self.touching--;
    if (__builtin_expect(fault_self.was_sent, false))
        touch_send_again();
}

/* Say what happened to a copy. returns -EFAULT */
RARE int guarded_describe(mmk_fault *fault, leaf_result result, const void *to, const void *from, size_t length);

/* mmk_guarded_copy */
static inline int guarded_copy(void *to, const void *from, size_t length, mmk_fault *fault)
{
    touch t;
    touch_begin(&t);
    leaf_result result = guarded_leaf(to, from, length);
    touch_end(&t);
    return __builtin_expect(!result.fault, true) ? 0 : guarded_describe(fault, result, to, from, length);
}

#undef HIDDEN
#undef RARE
#endif
