#include "ranges.h"

#include <string.h>
#include <sys/mman.h>

#include <mmkit/sys.h>

#include "readers.h"

enum {
    LEAF_MOST = 84,              /* entries: a leaf is 2 KiB */
    JOINED_MOST = LEAF_MOST / 2, /* neighbours that hold no more than this together become one leaf */
    CHUNK_BLOCKS = 64,
};

/* What entries are sorted by: two that overlap may have the same base. */
typedef struct key {
    uintptr_t base;
    uintptr_t region;
} key;

typedef struct leaf {
    size_t count;
    entry entries[LEAF_MOST + 1]; /* one more than any reader meets: a leaf is split after it has grown */
} leaf;

typedef struct slot {
    key first; /* no entry of the leaf is below it, nor any of the leaves before above it; zero in the first slot */
    _Atomic(leaf *) leaf;
} slot;

typedef struct root {
    size_t count; /* at least 1; the leaves are not empty, unless there is but one */
    slot slots[];
} root;

/* Free blocks: a list of spans of neighbours, each described in its first. */
typedef union block {
    leaf leaf;
    struct {
        union block *next;
        size_t blocks;
    } span;
} block;

static struct {
    _Atomic(root *) root; /* NULL before the first ranges_make_room */
    root *spare;          /* as large as the root: the next one is written into it */
    size_t root_bytes;    /* of each of the two, which are one mapping */
    block *free;
    size_t blocks; /* free, or leaves */
    size_t count;
} set;

/* ---- searching -------------------------------------------------------------------------------------- */

static key key_of(const entry *of)
{
    return (key){(uintptr_t)of->range.base, (uintptr_t)of->region};
}

static bool is_below(key left, key right)
{
    return left.base < right.base || (left.base == right.base && left.region < right.region);
}

static bool ends_after(const entry *which, uintptr_t address)
{
    return (uintptr_t)which->range.base + which->range.length > address;
}

static root *current_root(void)
{
    return atomic_load_explicit(&set.root, memory_order_acquire);
}

static leaf *leaf_at(root *in, size_t index)
{
    return atomic_load_explicit(&in->slots[index].leaf, memory_order_acquire);
}

/* Which leaf has the key, or would have it. */
static size_t leaf_of(const root *in, key wanted)
{
    size_t at = 0;
    for (size_t count = in->count, half; count > 1; count -= half) {
        half = count / 2;
        at += is_below(wanted, in->slots[at + half].first) ? 0 : half;
    }
    return at;
}

/* How many of a leaf's entries are below the key. */
static size_t index_of(const leaf *in, key wanted)
{
    size_t index = 0;
    for (size_t count = in->count, half; count > 0; count = half) {
        half = count / 2;
        index += is_below(key_of(&in->entries[index + half]), wanted) ? count - half : 0;
    }
    return index;
}

bool ranges_find(uintptr_t address, entry *found)
{
    root *in = current_root();
    if (!in)
        return false;
    key last = {address, UINTPTR_MAX};
    size_t at = leaf_of(in, last);
    const leaf *here = leaf_at(in, at), *before = here;
    size_t index = index_of(here, last), below = index;
    /* A leaf that has lost its first entries still begins where they were; an entry added since to the leaf
     * before may reach beyond that. */
    if (index == 0 && at > 0) {
        before = leaf_at(in, at - 1);
        below = before->count;
    }
    if (below > 0 && ends_after(&before->entries[below - 1], address)) {
        *found = before->entries[below - 1];
        return true;
    }
    if (index == here->count && at + 1 < in->count) {
        here = leaf_at(in, at + 1);
        index = 0;
    }
    if (index == here->count)
        return false;
    *found = here->entries[index];
    return true;
}

size_t ranges_count(void)
{
    return set.count;
}

ranges_place ranges_place_of(const entry *wanted)
{
    root *in = current_root();
    size_t at = leaf_of(in, key_of(wanted));
    return (ranges_place){at, index_of(leaf_at(in, at), key_of(wanted))};
}

bool ranges_next(ranges_place *place, entry *found)
{
    root *in = current_root();
    for (; in && place->leaf < in->count; *place = (ranges_place){place->leaf + 1, 0}) {
        const leaf *here = leaf_at(in, place->leaf);
        if (place->index < here->count) {
            *found = here->entries[place->index++];
            return true;
        }
    }
    return false;
}

/* ---- memory ----------------------------------------------------------------------------------------- */

/* Any two neighbours hold more than JOINED_MOST together. */
static size_t most_leaves(size_t entries)
{
    return 1 + entries / (JOINED_MOST + 1) * 2;
}

static intptr_t map_memory(size_t bytes)
{
    return mmk_sys_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int add_chunk(void)
{
    intptr_t address = map_memory(CHUNK_BLOCKS * sizeof(block));
    if (address < 0)
        return (int)address;
    block *chunk = (block *)address;
    chunk->span.blocks = CHUNK_BLOCKS;
    chunk->span.next = set.free;
    set.free = chunk;
    set.blocks += CHUNK_BLOCKS;
    return 0;
}

/* pre: there is a free block. */
static leaf *take_leaf(void)
{
    block *span = set.free;
    size_t last = --span->span.blocks;
    if (last == 0)
        set.free = span->span.next;
    span[last].leaf.count = 0;
    return &span[last].leaf;
}

static void give_back(leaf *unread)
{
    block *span = (block *)unread;
    span->span.next = set.free;
    span->span.blocks = 1;
    set.free = span;
}

static size_t root_size(size_t slots)
{
    return sizeof(root) + slots * sizeof(slot);
}

/* Make the root and its spare twice as large. The old ones stay mapped: a reader may be in one, and all there ever were
 * are smaller than the new. */
static int grow_roots(void)
{
    size_t bytes = set.root_bytes ? set.root_bytes * 2 : mmk_page_size();
    intptr_t address = map_memory(2 * bytes);
    if (address < 0)
        return (int)address;
    root *grown = (root *)address, *old = current_root();
    if (old) {
        memcpy(grown, old, root_size(old->count));
    } else {
        grown->count = 1;
        atomic_init(&grown->slots[0].leaf, take_leaf());
    }
    atomic_store_explicit(&set.root, grown, memory_order_release);
    set.spare = (root *)(address + (intptr_t)bytes);
    set.root_bytes = bytes;
    return 0;
}

int ranges_make_room(void)
{
    /* ranges_move puts in before it takes out; and a change takes its new leaves before it gives the old ones back,
     * but never has more than one leaf too many. */
    size_t leaves = most_leaves(set.count + 2);
    int error = leaves + 1 > set.blocks ? add_chunk() : 0;
    if (!error && root_size(leaves) > set.root_bytes)
        error = grow_roots();
    return error;
}

/* ---- changing --------------------------------------------------------------------------------------- */

static void append(leaf *to, const entry *added, size_t count)
{
    memcpy(to->entries + to->count, added, count * sizeof *added);
    to->count += count;
}

static void put_slot(root *to, key first, leaf *in)
{
    slot *added = &to->slots[to->count++];
    added->first = first;
    atomic_init(&added->leaf, in);
}

/* The root with one leaf or two, the second of which may be NULL, in the place of `gone` others. */
static root *copy_root(root *old, size_t at, size_t gone, leaf *first, leaf *second)
{
    root *copy = set.spare;
    size_t behind = old->count - at - gone;
    memcpy(copy->slots, old->slots, at * sizeof(slot));
    copy->count = at;
    put_slot(copy, old->slots[at].first, first);
    if (second)
        put_slot(copy, key_of(&second->entries[0]), second);
    memcpy(copy->slots + copy->count, old->slots + at + gone, behind * sizeof(slot));
    copy->count += behind;
    return copy;
}

/* Publish one leaf or two in the place of `gone` (1 or 2) others, and wait until nobody reads those. */
static void replace(size_t at, size_t gone, leaf *first, leaf *second)
{
    root *in = current_root();
    leaf *old[] = {leaf_at(in, at), leaf_at(in, at + gone - 1)};
    if (gone == 1 && !second) {
        atomic_store_explicit(&in->slots[at].leaf, first, memory_order_release);
        readers_wait();
    } else {
        atomic_store_explicit(&set.root, copy_root(in, at, gone, first, second), memory_order_release);
        readers_wait();
        set.spare = in;
    }
    for (size_t i = 0; i < gone; i++)
        give_back(old[i]);
}

static leaf *split(leaf *grown)
{
    leaf *right = take_leaf();
    size_t half = grown->count / 2;
    append(right, grown->entries + half, grown->count - half);
    grown->count = half;
    return right;
}

void ranges_put(const entry *added)
{
    ranges_place place = ranges_place_of(added);
    const leaf *old = leaf_at(current_root(), place.leaf);
    leaf *grown = take_leaf();
    append(grown, old->entries, place.index);
    append(grown, added, 1);
    append(grown, old->entries + place.index, old->count - place.index);
    set.count++;
    replace(place.leaf, 1, grown, grown->count > LEAF_MOST ? split(grown) : NULL);
}

/* Shall a leaf of `left` entries be joined with its neighbour at this index? */
static bool may_join(root *in, size_t left, size_t neighbour)
{
    /* In front of the first leaf, the index has wrapped. */
    return left <= JOINED_MOST && neighbour < in->count &&
           (left == 0 || left + leaf_at(in, neighbour)->count <= JOINED_MOST);
}

void ranges_take(const entry *gone)
{
    ranges_place place = ranges_place_of(gone);
    root *in = current_root();
    size_t left = leaf_at(in, place.leaf)->count - 1;
    bool with_left = may_join(in, left, place.leaf - 1);
    bool with_right = !with_left && may_join(in, left, place.leaf + 1);

    leaf *shrunk = take_leaf();
    for (size_t at = place.leaf - with_left; at <= place.leaf + with_right; at++) {
        const leaf *old = leaf_at(in, at);
        size_t kept = at == place.leaf ? place.index : old->count;
        append(shrunk, old->entries, kept);
        if (kept < old->count)
            append(shrunk, old->entries + kept + 1, old->count - kept - 1);
    }
    set.count--;
    replace(place.leaf - with_left, 1 + (with_left || with_right), shrunk, NULL);
}

void ranges_move(const entry *moved, mmk_range to)
{
    entry arrived = {to, moved->region};
    if (to.base != moved->range.base) {
        ranges_put(&arrived);
        ranges_take(moved);
        return;
    }
    ranges_place place = ranges_place_of(moved);
    const leaf *old = leaf_at(current_root(), place.leaf);
    leaf *changed = take_leaf();
    append(changed, old->entries, old->count);
    changed->entries[place.index] = arrived;
    replace(place.leaf, 1, changed, NULL);
}

/* ---- checking --------------------------------------------------------------------------------------- */

static bool is_leaf_whole(root *in, size_t at)
{
    const leaf *here = leaf_at(in, at);
    bool last = at + 1 == in->count;
    key from = in->slots[at].first, end = last ? (key){UINTPTR_MAX, UINTPTR_MAX} : in->slots[at + 1].first;
    for (size_t i = 0; i < here->count; from = key_of(&here->entries[i++]))
        if (is_below(key_of(&here->entries[i]), from) || !is_below(key_of(&here->entries[i]), end))
            return false;
    bool alone = in->count == 1;
    bool joined = !last && here->count + leaf_at(in, at + 1)->count <= JOINED_MOST;
    return here->count <= LEAF_MOST && (here->count > 0 || alone) && !joined;
}

bool ranges_check(void)
{
    root *in = current_root();
    if (!in)
        return set.count == 0;
    size_t entries = 0, blocks = in->count;
    bool whole = in->slots[0].first.base == 0 && in->slots[0].first.region == 0;
    for (size_t at = 0; at < in->count; at++) {
        whole = whole && is_leaf_whole(in, at);
        entries += leaf_at(in, at)->count;
    }
    for (const block *span = set.free; span; span = span->span.next)
        blocks += span->span.blocks;
    size_t leaves = most_leaves(set.count + 1);
    return whole && entries == set.count && blocks == set.blocks && leaves + 1 <= set.blocks &&
           root_size(leaves) <= set.root_bytes;
}
