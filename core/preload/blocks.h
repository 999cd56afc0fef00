/* blocks.h: where the blocks of malloc come from: plain.c or guarded.c.
 *
 * The heap is opened by the first call, whoever makes it: the dynamic loader calls malloc before any constructor has
 * run. That call is always the only one: no thread can be started before the constructors, of which ours is the first.
 * Opening it calls nothing that wants a block before it can give one.
 *
 * Threads: any. errno may be changed. A pointer that is not a live block's ends the process with one line.
 */
#ifndef MMKIT_PRELOAD_BLOCKS_H
#define MMKIT_PRELOAD_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>

#include <mmkit/heap.h>

/* pre: size > 0, align is a power of two. NULL: no memory. */
void *blocks_alloc(size_t size, size_t align, bool zero);

/* pre: bytes is not NULL. call: the function of the malloc family that was called, for the line. */
void blocks_free(void *bytes, const char *call);
size_t blocks_size(void *bytes, const char *call);

/* pre: bytes is not NULL, size > 0. NULL: no memory; the block is as it was. */
void *blocks_resize(void *bytes, size_t size, const char *call);

#endif
