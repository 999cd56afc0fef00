/* guarded_leaf.h: the two routines in which memory is touched that may not be there.
 *
 * They are leaves: they call nothing, keep nothing on the stack, and the addresses where their code begins and ends
 * are known. So the fault handler (fault.c) can end them at any instruction: it sets the program counter to
 * guarded_leaf_exit, and the two result registers.
 */
#ifndef MMKIT_GUARDED_LEAF_H
#define MMKIT_GUARDED_LEAF_H

#include <stddef.h>
#include <stdint.h>

/* What they answer, in the two registers in which the ABI returns such a structure: fault is 0 when all went well.
 * On a fault the handler fills both: see fault_word in fault_internal.h. */
typedef struct leaf_result {
    uintptr_t value; /* the address of a fault */
    uint64_t fault;
} leaf_result;

/* Copy length bytes, as memmove(3). What precedes a fault in the order of copying has been copied. */
__attribute__((visibility("hidden"))) leaf_result guarded_leaf(void *to, const void *from, size_t length);

/* Where a byte first stands in a range: value is its index, or the length, as memchr(3) would have it. A fault may be
 * met up to a block behind the byte. */
enum { GUARDED_SCAN_BLOCK = 128 };
__attribute__((visibility("hidden"))) leaf_result guarded_scan(const void *from, size_t length, unsigned char byte);

/* Their code begins with guarded_leaf, and ends here; and where the handler lets them return. */
__attribute__((visibility("hidden"))) extern const char guarded_leaf_end[], guarded_leaf_exit[];

#endif
