/* readers.h: grace periods. Signal handlers read what others change; nobody can make a handler wait.
 *
 *     handler   |--- reads old or new ---|
 *     changer        publish new |-- readers_wait --| nobody has the old any more: free it
 *
 * A handler announces itself in one of two counters. Who waits points newcomers to the other one and then needs
 * only the first to empty, so newcomers, however many, do not keep him.
 *
 * Threads: any. Signals: readers_enter and readers_leave are async-signal-safe and nest.
 */
#ifndef MMKIT_READERS_H
#define MMKIT_READERS_H

/* Announce a reader. From now until readers_leave, what it finds published stays valid, also when it is taken
 * out meanwhile. It must not wait for anything that somebody may hold who waits for readers.
 * Returns what readers_leave takes. */
unsigned readers_enter(void);
void readers_leave(unsigned counter);

/* Wait until every reader has left that may have seen what the caller replaced before the call.
 * pre: one caller at a time, and not a reader. Cost: a few nanoseconds when nobody reads. */
void readers_wait(void);

/* In a fork child, whose only thread is no reader: those that were reading are not here. */
void readers_forget(void);

#endif
