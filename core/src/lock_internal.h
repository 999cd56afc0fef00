/* lock_internal.h: a lock inside something larger. */
#ifndef MMKIT_LOCK_INTERNAL_H
#define MMKIT_LOCK_INTERNAL_H

#include <mmkit/lock.h>

/* Everything of a lock but its header. returns 0 or -errno. */
MMK_MUST_CHECK int lock_init(mmk_lock *lock);

#endif
