/* registry.h: every range of addresses that regions hold, live, closed or left behind, sorted by address.
 *
 * Who asks: the raw calls, before they unmap or map over a range; the fork handler, which leaves the child with
 * free locks; and the handler of faults, which looks up addresses without locks (src/registry_internal.h).
 *
 * When a call returns that takes out or moves a range, no handler in any thread has or can find what was there:
 * each such call waits until the lookups that had begun before have ended.
 *
 * Threads: any call from any thread. Fork: handled by pthread_atfork. Signals: no.
 */
#ifndef MMKIT_REGISTRY_H
#define MMKIT_REGISTRY_H

#include <mmkit/region.h>

/* Enter a region under its outer range.
 * returns  0, or -ENOMEM */
MMK_API MMK_MUST_CHECK int mmk_registry_add(mmk_region *region);

/* Take it out again, when its addresses are given back. pre: it is in. */
MMK_API void mmk_registry_remove(mmk_region *region);

/* Enter (take out) addresses that a region left behind when it moved: who asks shall not reuse them yet.
 * mmk_registry_hold returns 0 or -ENOMEM. pre of mmk_registry_release: the range is in. */
MMK_API MMK_MUST_CHECK int mmk_registry_hold(mmk_range range);
MMK_API void mmk_registry_release(mmk_range range);

/* Unmap a region's outer range and take it out, so that no region mapped there since meets it, and no handler has
 * the region when its memory goes. munmap(2).
 * returns  0 with the outer range empty, or -errno with nothing changed */
MMK_API MMK_MUST_CHECK int mmk_registry_unmap(mmk_region *region);

/* Give a region another outer range: handlers find it throughout, at one of the two or at both. pre: it is in. */
MMK_API void mmk_registry_move(mmk_region *region, mmk_range outer);

/* The lowest range that overlaps [address, address + length); empty if none.
 * pre: the range does not wrap. */
MMK_API mmk_range mmk_registry_overlap(uintptr_t address, size_t length);

/* How many ranges are in. */
MMK_API size_t mmk_registry_count(void);

#endif
