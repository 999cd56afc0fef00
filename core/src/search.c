#include <mmkit/access.h>

#include <string.h>

#include <mmkit/sys.h>

#include "access_internal.h"
#include "region_internal.h"

/* Searching reads a copy, a window at a time: the bytes themselves may go away under memmem(3), which is not
 * ours to guard, and may be changing. A window that stays in the nearest cache costs little; and since what is
 * looked for, as the end of a line, is often near, the first one is small. */
enum {
    SHORT_NEEDLE = 512,
    FIRST_WINDOW = 1024,
    SHORT_WINDOW = 4096,
};

typedef struct search {
    mmk_region *region;
    const char *needle;
    size_t needle_length;
    char *window;
    size_t room;  /* of the window, in bytes: more than the needle has */
    size_t first; /* how much of it to use at first: no less than the needle has */
    mmk_fault *fault;
} search;

/* Load a part of the range, or what there is of it in front of a fault.
 * returns how much, or 0 with *s->fault filled. */
static size_t load_what_is_there(const search *s, size_t offset, size_t part)
{
    while (part && access_load(s->region, offset, s->window, part, s->fault) < 0) {
        size_t there = s->fault->address - ((uintptr_t)s->region->base + offset);
        part = there < part ? there : 0;
    }
    return part;
}

typedef ssize_t direction(const search *s, size_t offset, size_t length);

static ssize_t forward(const search *s, size_t offset, size_t length)
{
    for (size_t room = s->first; length >= s->needle_length; room = s->room) {
        size_t part = length < room ? length : room, there = load_what_is_there(s, offset, part);
        const char *found = memmem(s->window, there, s->needle, s->needle_length);
        if (found)
            return (ssize_t)offset + (found - s->window);
        if (there < part)
            return -EFAULT;
        /* The needle may begin at the end of this window. */
        size_t done = part - (s->needle_length - 1);
        offset += done;
        length -= done;
    }
    return -ENOENT;
}

/* One byte needs no copy. */
static ssize_t forward_for_byte(const search *s, size_t offset, size_t length)
{
    ssize_t index = mmk_guarded_scan(s->region->base + offset, length, (unsigned char)s->needle[0], s->fault);
    if (index == -EFAULT)
        region_explain_fault(s->region, s->fault);
    return index < 0 ? index : (ssize_t)offset + index;
}

static const char *last_occurrence(const char *hay, size_t length, const char *needle, size_t needle_length)
{
    /* Look for the needle's first byte from the end; each step goes on in front of the last candidate. */
    size_t candidates = length - needle_length + 1;
    const char *candidate;
    while ((candidate = memrchr(hay, needle[0], candidates))) {
        if (memcmp(candidate, needle, needle_length) == 0)
            return candidate;
        candidates = (size_t)(candidate - hay);
    }
    return NULL;
}

static ssize_t backward(const search *s, size_t offset, size_t length)
{
    for (size_t room = s->first; length >= s->needle_length; room = s->room) {
        size_t part = length < room ? length : room, start = offset + length - part;
        int error = access_load(s->region, start, s->window, part, s->fault);
        if (error)
            return error;
        const char *found = last_occurrence(s->window, part, s->needle, s->needle_length);
        if (found)
            return (ssize_t)start + (found - s->window);
        length -= part - (s->needle_length - 1);
    }
    return -ENOENT;
}

static ssize_t search_with(search *s, char *needle, const void *wanted, direction *way, size_t offset, size_t length)
{
    if (mmk_guarded_copy(needle, wanted, s->needle_length, s->fault) < 0)
        return -EFAULT;
    s->needle = needle;
    if (way == forward && s->needle_length == 1 && !s->region->hides_end)
        return forward_for_byte(s, offset, length);
    return way(s, offset, length);
}

static ssize_t search_short(search *s, const void *wanted, direction *way, size_t offset, size_t length)
{
    char needle[SHORT_NEEDLE], window[SHORT_WINDOW];
    s->window = window;
    s->room = sizeof window;
    s->first = FIRST_WINDOW;
    return search_with(s, needle, wanted, way, offset, length);
}

/* Needle and window in a mapping. */
static ssize_t search_long(search *s, const void *wanted, direction *way, size_t offset, size_t length)
{
    s->room = s->needle_length + (s->needle_length > SHORT_WINDOW ? s->needle_length : SHORT_WINDOW);
    size_t size = mmk_round_up(s->needle_length + s->room, mmk_page_size());
    intptr_t memory = mmk_sys_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory < 0)
        return memory;
    s->window = (char *)memory + s->needle_length;
    s->first = s->room;
    ssize_t found = search_with(s, (char *)memory, wanted, way, offset, length);
    mmk_sys_munmap((char *)memory, size);
    return found;
}

static ssize_t search_region(mmk_region *region, size_t offset, size_t length, const void *needle, size_t needle_length,
                             direction *way, mmk_fault *fault)
{
    ssize_t found = access_begin(region, offset, length, PROT_READ, fault);
    if (found)
        return found;
    search s = {.region = region, .needle_length = needle_length, .fault = fault};
    if (needle_length > length)
        found = -ENOENT;
    else if (needle_length == 0)
        found = (ssize_t)(way == forward ? offset : offset + length);
    else if (needle_length <= SHORT_NEEDLE)
        found = search_short(&s, needle, way, offset, length);
    else
        found = search_long(&s, needle, way, offset, length);
    mmk_region_leave(region);
    return found;
}

ssize_t mmk_access_find(mmk_region *region, size_t offset, size_t length, const void *needle, size_t needle_length,
                        mmk_fault *fault)
{
    return search_region(region, offset, length, needle, needle_length, forward, fault);
}

ssize_t mmk_access_rfind(mmk_region *region, size_t offset, size_t length, const void *needle, size_t needle_length,
                         mmk_fault *fault)
{
    return search_region(region, offset, length, needle, needle_length, backward, fault);
}
