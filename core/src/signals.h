/* signals.h: whose turn it is: the actions before and after ours.
 *
 *     installed by          top of the chain at the time          what it puts back, or passes on to
 *     mmkit                 level 0                               the action found: previous[0]
 *     faulthandler          its handler                           level 0
 *     mmkit, come first     level 1                               its handler: previous[1]
 *
 * Each time that ours goes in front it is another function, a level of its own, that knows what it replaced. So a
 * fault runs down the chain and never in a circle, however the others pass it on: by calling what they
 * replaced, or by putting that back and raising the signal again. And when they put a level of ours back, what
 * came after it is forgotten.
 */
#ifndef MMKIT_SIGNALS_H
#define MMKIT_SIGNALS_H

#include <signal.h>
#include <stdbool.h>

/* Put ours in front; say whether this thread blocks one of the signals. */
__attribute__((visibility("hidden"))) bool signals_come_first(void);

/* The lock over the chain is the last in the order: memory may be touched under a region's lock, and by whoever touches
 * it this one is taken. So a fork takes it last, too: registry.c calls these. */
__attribute__((visibility("hidden"))) void signals_before_fork(void);
__attribute__((visibility("hidden"))) void signals_after_fork(void);

#endif
