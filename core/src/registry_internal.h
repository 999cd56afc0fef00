/* registry_internal.h: what signal handlers ask the registry. */
#ifndef MMKIT_REGISTRY_INTERNAL_H
#define MMKIT_REGISTRY_INTERNAL_H

#include <mmkit/region.h>

/* The region whose outer range has the address; NULL if there is none. It stays valid until readers_leave.
 * pre: inside readers_enter and readers_leave. Async-signal-safe, without locks. */
mmk_region *registry_region_at(uintptr_t address);

/* Around taking out something that handlers look up, such as a region's fault hook: when registry_end_removal
 * returns, no handler uses it any more. The registry's lock is held in between.
 * pre: the caller is not inside readers_enter and readers_leave. */
void registry_begin_removal(void);
void registry_end_removal(void);

/* A count of removals, regions and others; odd while one is going on. Whoever looked something up in vain, because of
 * a removal that began after the count was last read, finds another number now. Async-signal-safe. */
unsigned long registry_removals(void);

/* Have the fork handlers registered by now: whoever stands on the registry registers his later. */
void registry_handle_fork(void);

#endif
