/* placed_internal.h: how the objects of placed.h come to be. */
#ifndef MMKIT_PLACED_INTERNAL_H
#define MMKIT_PLACED_INTERNAL_H

#include <mmkit/placed.h>

/* Take the place for an object; everything behind the header is 0 then.
 * returns  0
 *          -EEXIST       an object is there
 *          -EBUSY        somebody is making one at this moment
 *          -MMK_EALIEN   something else is there: it is not overwritten
 *          -errno        /proc cannot be read */
MMK_MUST_CHECK int placed_begin(mmk_placed *placed, mmk_placed_kind kind, size_t size);

/* It is whole: let everybody see it. */
void placed_publish(mmk_placed *placed);

#endif
