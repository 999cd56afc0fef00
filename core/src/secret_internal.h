/* secret_internal.h: areas, the memory that secrets stand in: slabs, and pages of one secret alone. */
#ifndef MMKIT_SECRET_INTERNAL_H
#define MMKIT_SECRET_INTERNAL_H

#include <sys/queue.h>

#include <mmkit/secret.h>

enum {
    CANARY = 16,         /* bytes at least on each side of a secret in a slab */
    SMALLEST_SLOT = 64,  /* two canaries and a key of 256 bits */
    LARGEST_SLOT = 4096, /* the smallest page there is */
    SLOT_SIZES = 7,      /* 64, 128 ... 4096 */
    ALONE = SLOT_SIZES,  /* the list of areas that have one secret, and no slots */
    LISTS,
};

typedef struct secret_area {
    TAILQ_ENTRY(secret_area) link;
    mmk_range outer; /* with guards */
    char *base;
    size_t length;
    size_t slot_size; /* all of it where a secret stands alone */
    mmk_secret_kind kind;
    int list;
    int prot;                /* in force */
    size_t readers, writers; /* of all its slots */
    uint32_t slots;
    uint32_t free_slots;
    uint16_t free[]; /* their numbers: a stack */
} secret_area;

/* Map an area that is canaries all over, and PROT_NONE. `size`: of slots, or of the one secret that stands alone.
 * returns  0 or -errno with *refusal; nothing stays mapped */
int secret_area_map(secret_area **made, int list, size_t size, mmk_secret_kind kind, mmk_secret_refusal *refusal);

/* Unmap it. It may not be on a list any more. */
void secret_area_unmap(secret_area *area);

/* In a forked child: give back an area that was the parent's, or see that nothing else is mapped into it. */
void secret_area_abandon(secret_area *area);

/* ---- canaries: of bytes [from, to) ---- */

int canaries_begin(void);
void canaries_write(char *from, char *to);

/* The first byte that is not as it was written, or NULL. */
char *canaries_find_damage(char *from, char *to);

#endif
