/* event.h: a flag between unrelated processes that one sets and others wait for.
 *
 *     offset  bytes
 *          0     64  header, placed.h
 *         64      4  bit 0: set; bits 1 to 31: how many times it was set, so that who slept through setting and
 *                    clearing knows that it was set
 *         68     60  0
 *
 * Nobody owns an event, so no death changes it. Who dies between setting the word and waking the sleepers leaves them
 * to the end of their slice (futex.h).
 *
 * Threads: any call from any thread. Fork: a child shares it. Signals: mmk_event_set, _clear and _is_set.
 */
#ifndef MMKIT_EVENT_H
#define MMKIT_EVENT_H

#include <stdbool.h>

#include <mmkit/futex.h>
#include <mmkit/placed.h>

typedef struct mmk_event {
    _Alignas(MMK_PLACED_ALIGNMENT) mmk_placed placed;
    _Atomic uint32_t word;
    char unused[60];
} mmk_event;

/* Make an event at this place, not set. As mmk_lock_create. */
MMK_API MMK_MUST_CHECK int mmk_event_create(mmk_event *event);

/* Set it and wake all who wait; setting what is set does nothing. */
MMK_API void mmk_event_set(mmk_event *event);
MMK_API void mmk_event_clear(mmk_event *event);
MMK_API bool mmk_event_is_set(const mmk_event *event);

/* Wait until it is set, or was set since the call began.
 * returns  0, -ETIMEDOUT or -EINTR */
MMK_API MMK_MUST_CHECK int mmk_event_wait(mmk_event *event, const mmk_wait *wait);

#endif
