/* program_break.h: the program break, moved without pulling it from under somebody else.
 *
 *     [ text | data | bss | .... malloc .... | ours ........ ] <- break
 *                                            ^ floor         ^ top
 *
 * The break is one number for the whole process, and glibc's malloc moves it too. Growing is always
 * possible; what others took since stays between our pieces. Shrinking takes memory away from whoever
 * holds it, so it goes down to `floor` only: the start of the last piece taken here, as long as nothing
 * else has moved the break since.
 *
 * Threads: glibc's malloc takes no lock around libc's sbrk. A malloc in another thread that grows its
 * heap at the same moment corrupts memory; no library can prevent that. Callers serialise themselves.
 * Fork: the child has its own break and a copy of the bookkeeping. Signals: no.
 */
#ifndef MMKIT_PROGRAM_BREAK_H
#define MMKIT_PROGRAM_BREAK_H

#include <mmkit/base.h>

/* Move the break by increment bytes. sbrk(2).
 *
 * pre:     calls are serialised.
 * returns  the previous break, or
 *          -ENOMEM       RLIMIT_DATA, or something is mapped behind the break
 *          -MMK_EFOREIGN shrinking would give back memory that was not taken here, or somebody has moved
 *                        the break since
 *          -MMK_ETHREADS shrinking while the process has other threads */
MMK_API intptr_t mmk_break_move(intptr_t increment);

/* The piece that one owner took last: what stands above it is another's, and so is what lies below. */
typedef struct mmk_break_piece {
    intptr_t floor;
    intptr_t top;
} mmk_break_piece;

/* The same for an owner with a piece of its own, zeroed at first, which no other owner gives back: a heap. */
MMK_API intptr_t mmk_break_move_piece(mmk_break_piece *piece, intptr_t increment);

#endif
