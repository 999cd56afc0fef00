/* channel_internal.h: what the parts of a channel know of each other. */
#ifndef MMKIT_CHANNEL_INTERNAL_H
#define MMKIT_CHANNEL_INTERNAL_H

#include <mmkit/channel.h>

/* A claim is its process in one word, so that one compare-and-swap makes it: the pid, at most 2^22 (proc_sys_kernel(5),
 * pid_max), and the clock ticks since boot at which it started. */
enum { CLAIM_PID_BITS = 22, CLAIM_PID = (1 << CLAIM_PID_BITS) - 1 };

/* Map the lanes that the file has and this handle has not. returns 0, -MMK_ECORRUPT, or as mmap(2). */
int channel_map_lanes(mmk_channel *channel);

/* What a parent claimed is not this process's. returns 0, -MMK_EOTHERPIDS, or -errno: /proc is not there. */
int channel_forget_parent(mmk_channel *channel);

/* Wake up to so many parked readers, if there may be any. */
void channel_ring(mmk_channel *channel, int count);

#endif
