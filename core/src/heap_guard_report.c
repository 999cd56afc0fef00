/* What is said of an access to guarded blocks that was wrong, in one line. */
#include <stdlib.h>

#include "fault_internal.h"
#include "heap_guard.h"

static void add_block(line *to, const guard_record *record)
{
    line_add(to, record->state == GUARD_FREED ? "the freed block of " : "the block of ");
    line_add_bytes(to, record->size);
    line_add(to, " at ");
    line_add_address(to, (uintptr_t)record->start);
}

/* The blocks that start at or before the page, and behind it; NULL: none. */
static const guard_record *record_before(const guard_area *area, size_t page)
{
    for (size_t at = page + 1; at-- > 0;)
        if (guard_record_at(area, at)->state != GUARD_NONE)
            return guard_record_at(area, at);
    return NULL;
}

static const guard_record *record_behind(const guard_area *area, size_t page)
{
    while (++page < area->used)
        if (guard_record_at(area, page)->state != GUARD_NONE)
            return guard_record_at(area, page);
    return NULL;
}

/* Say where an address lies: in the block it is in, or nearest to. returns whose it is. */
static const guard_record *place(const guard_area *area, uintptr_t address, line *to)
{
    size_t page = guard_page_of(area, address);
    /* Behind it are no records. */
    page = page < area->used ? page : area->used - 1;
    const guard_record *before = record_before(area, page), *behind = record_behind(area, page);
    uintptr_t start = before ? (uintptr_t)before->start : 0, end = before ? start + before->size : 0;
    bool is_in = before && start <= address && address < end;
    bool is_nearer_behind = behind && !is_in && address < (uintptr_t)behind->start &&
                            (!before || (address >= end && (uintptr_t)behind->start - address < address - end));
    const guard_record *nearest = is_nearer_behind ? behind : before;
    if (!nearest)
        return NULL;
    if (is_in) {
        line_add_bytes(to, address - start);
        line_add(to, " into ");
    } else if (address >= (uintptr_t)nearest->start) {
        line_add_bytes(to, address - end);
        line_add(to, " past the end of ");
    } else {
        line_add_bytes(to, (uintptr_t)nearest->start - address);
        line_add(to, " in front of ");
    }
    add_block(to, nearest);
    return nearest;
}

mmk_fault_answer guard_tell_of_fault(mmk_region *region, uintptr_t address, bool write)
{
    guard_area *area = (guard_area *)region;
    /* A guarded access reports its fault itself; and one that ends the process is taken twice. */
    if (fault_self.touching || atomic_exchange(&area->told, address) == address)
        return MMK_FAULT_PASS_ON;
    line said = {0}, where = {0};
    const guard_record *whose = place(area, address, &where);
    if (!whose)
        return MMK_FAULT_PASS_ON;
    line_add(&said, whose->state == GUARD_FREED ? "mmkit: use after free: " : "mmkit: out of bounds: ");
    line_add(&said, write ? "write at " : "read at ");
    line_add_address(&said, address);
    line_add(&said, ", ");
    line_add(&said, where.text);
    line_write(&said);
    return MMK_FAULT_PASS_ON;
}

void guard_damaged(const guard_record *record, const char *at)
{
    line said = {0};
    line_add(&said, "mmkit: out of bounds, found at free: byte ");
    line_add_address(&said, (uintptr_t)at);
    line_add(&said, " was written, ");
    if (at < record->start)
        line_add_bytes(&said, (size_t)(record->start - at));
    else
        line_add_bytes(&said, (size_t)(at - record->start) - record->size);
    line_add(&said, at < record->start ? " in front of " : " past the end of ");
    add_block(&said, record);
    line_write(&said);
    abort();
}

void guard_describe(heap_guard *guard, uintptr_t address, line *to)
{
    const guard_area *area = guard_area_of(guard, address);
    const guard_record *record = area ? guard_record_at(area, guard_page_of(area, address)) : NULL;
    if (record && record->state == GUARD_FREED && (uintptr_t)record->start == address) {
        line_add(to, "freed already: ");
        add_block(to, record);
    } else if (!area || !place(area, address, to)) {
        line_add(to, "malloc never gave it");
    }
}
