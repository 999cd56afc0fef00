/* heap_internal.h: heads, lists and slices of a heap, for its own source files. docs/heap.md draws them. */
#ifndef MMKIT_HEAP_INTERNAL_H
#define MMKIT_HEAP_INTERNAL_H

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include <mmkit/heap.h>
#include <mmkit/sys.h>

#include "region_internal.h"

#if defined(__SANITIZE_ADDRESS__)
#define HEAP_UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HEAP_UNDER_ASAN 1
#endif
#endif
#ifdef HEAP_UNDER_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, length) ((void)(address), (void)(length))
#define ASAN_UNPOISON_MEMORY_REGION(address, length) ((void)(address), (void)(length))
#endif

enum {
    UNIT = 16,       /* bytes: sizes are multiples of it */
    LEAST_UNITS = 2, /* a head, and room for the links of a free block */
    SUBLEVELS = 16,  /* lists between one power of two and the next */
    LEVELS = 29,     /* sizes below 16 units; then a power of two each, up to 2**32 units */
    SLICES = 256,
    PARKED_SIZES = 66, /* units: blocks below wait on a stack of their size, up to 1 KiB and the head */
    PARKED_LARGER = 0, /* the stack of all others */
    PARKED_MOST = 7,   /* blocks on a stack of one size; of all others: 1 */
};

typedef enum block_state {
    WIPED = 0, /* a head that was merged away; never the state of a block */
    LIVE = 0xa1,
    FREE = 0xf2,
    PARKED = 0x94, /* freed, not merged yet */
    HOLE = 0x68,
    RECORD = 0x3c,
    END = 0xe5, /* no block: the head behind the last block of a slice */
} block_state;

/* The head of a block; its bytes follow. Numbers of 16 bytes each: a slice spans less than 64 GiB. */
typedef struct block {
    uint32_t units;  /* of the block, head included; of END: 1 */
    uint32_t before; /* of the block before; 0: the first of its slice */
    uint16_t slack;  /* bytes at its end that were not asked for */
    uint8_t state;
    uint8_t unused;
    uint32_t sum;
} block;

_Static_assert(sizeof(block) == UNIT, "drawn in docs/heap.md");

/* In the first bytes of a free block on a list: offsets from the heap's origin, hidden by the key. */
typedef struct links {
    uint64_t next;
    uint64_t previous;
} links;

typedef struct heap_slice {
    char *start;       /* the first head */
    char *end;         /* behind the END head */
    mmk_region region; /* MMK_HEAP_MMAP: what it stands in */
} heap_slice;

/* A large block: its record stands in the heap, its bytes at the start of its region. */
typedef struct large_block {
    struct large_block *next, *previous;
    char *bytes;
    size_t size;
    mmk_region region;
} large_block;

typedef struct heap_control {
    uint32_t levels;                   /* bit i: within[i] is not 0 */
    uint16_t within[LEVELS];           /* bit j: heads[i][j] is not empty */
    uint64_t heads[LEVELS][SUBLEVELS]; /* offset of the first block; 0: none */
    uint64_t parked[PARKED_SIZES];     /* offset of the top block of a stack; 0: none. See heap_parking.h */
    uint8_t parked_count[PARKED_SIZES];
    uint64_t victim; /* offset of the free block that is on no list, to be cut from; 0: none */
    /* Apart: side by side, they are loaded as one word of a vector, which waits for the stores of both. */
    size_t live_bytes;
    size_t peak_bytes;
    size_t live_blocks;
    size_t mapped_bytes;
    size_t large_blocks;
    large_block *large;
    uint64_t backed; /* offset below which pages are known to be there; 0: no need to know */
} heap_control;

/* ---- heads ---- */

static inline uint64_t offset_of(const mmk_heap *heap, const block *head)
{
    return (uint64_t)((const char *)head - heap->origin);
}

/* A smashed link may lead anywhere. */
static inline block *block_at(const mmk_heap *heap, uint64_t offset)
{
    return (block *)((uintptr_t)heap->origin + offset);
}

/* A head is read and written as two words: a store of a field would keep a following load of a word waiting. */
typedef struct words {
    uint64_t sizes; /* units, before */
    uint64_t rest;  /* slack, state, and the sum in the upper half */
} words;

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "write_head puts the fields where they stand");

static inline words words_of(const block *head)
{
    words copy;
    memcpy(&copy, head, sizeof copy);
    return copy;
}

/* Keyed, and of the place, too: a head copied elsewhere is no head there. One multiplication of 64 by 64 bits. */
static inline uint32_t sum_of_sizes(const mmk_heap *heap, uint64_t sizes, uint64_t offset)
{
    uint64_t place = offset << 28 ^ heap->key;
    __extension__ unsigned __int128 product = (unsigned __int128)(sizes ^ heap->key) * (place | 1);
    return (uint32_t)((uint64_t)product ^ (uint64_t)(product >> 64) ^ place >> 32);
}

/* The second word of a head. What a block is comes last into the sum, so that another state costs no second
 * multiplication by the key; the number is odd: no two states and slacks have the same. */
static inline uint64_t rest_of(uint32_t sum_of_its_sizes, block_state state, size_t slack)
{
    uint32_t what = (uint16_t)slack | (uint32_t)state << 16;
    return what | (uint64_t)(sum_of_its_sizes ^ what * UINT32_C(0x9e3779b1)) << 32;
}

static inline block_state state_of(words head)
{
    return (block_state)(head.rest >> 16 & 0xff);
}

static inline size_t slack_of(words head)
{
    return head.rest & UINT16_MAX;
}

/* Does the second word of a head fit the first, and its place? */
static inline bool fits(const mmk_heap *heap, words head, uint64_t offset)
{
    uint64_t right = rest_of(sum_of_sizes(heap, head.sizes, offset), state_of(head), slack_of(head));
    return __builtin_expect(head.rest == right, true);
}

static inline bool is_head(const mmk_heap *heap, const block *head)
{
    return fits(heap, words_of(head), offset_of(heap, head));
}

/* What stands in front of somebody's pointer, which may lead anywhere in a slice, into poisoned bytes, too. */
#ifdef HEAP_UNDER_ASAN
__attribute__((no_sanitize("address"), noinline, unused)) static words words_of_any(const void *bytes)
#else
static inline words words_of_any(const void *bytes)
#endif
{
    const volatile uint64_t *place = (const volatile uint64_t *)bytes - 2;
    return (words){place[0], place[1]};
}

/* A head as it was, for putting it back: docs/heap.md. */
typedef struct journal_entry {
    uint64_t offset;
    words before;
} journal_entry;

enum { JOURNAL = 32 };

/* Heads that the running call has changed. Somebody killed inside it is undone from here, last change first. */
typedef struct heap_journal {
    _Atomic uint32_t count;
    journal_entry entries[JOURNAL];
} heap_journal;

/* Of a shared heap: write down a head before it changes. The entry counts once it is whole. */
void shared_note(mmk_heap *heap, const block *head);

static inline void note(mmk_heap *heap, const block *head)
{
    if (__builtin_expect(heap->shared != NULL, false))
        shared_note(heap, head);
}

/* All heads fit each other again: from here on there is nothing to undo. */
void shared_commit(mmk_heap *heap);

static inline void commit(mmk_heap *heap)
{
    if (__builtin_expect(heap->shared != NULL, false))
        shared_commit(heap);
}

static inline void write_head(mmk_heap *heap, block *head, uint32_t units, uint32_t before, block_state state,
                              size_t slack)
{
    words both = {.sizes = units | (uint64_t)before << 32};
    both.rest = rest_of(sum_of_sizes(heap, both.sizes, offset_of(heap, head)), state, slack);
    note(heap, head);
    memcpy(head, &both, sizeof both);
}

/* Change what a block is: the first word stays. pre: the head is noted. */
static inline void write_rest(block *head, uint64_t rest)
{
    memcpy((char *)head + sizeof(uint64_t), &rest, sizeof rest);
}

static inline char *bytes_of(const block *head)
{
    return (char *)(head + 1);
}

static inline block *head_of(const void *bytes)
{
    return (block *)((uintptr_t)bytes - sizeof(block)); /* of NULL, too */
}

static inline block *block_after(const block *head)
{
    return (block *)head + head->units;
}

/* Say of a block that is about to be written to that what it reaches over is no longer fresh. */
static inline void spend_fresh(mmk_heap *heap, const block *head)
{
    char *end = (char *)block_after(head);
    if (end > heap->fresh && end <= heap->fresh_end)
        heap->fresh = end;
}

static inline block *block_before(const block *head)
{
    return (block *)head - head->before;
}

static inline size_t room_of(const block *head)
{
    return ((size_t)head->units - 1) * UNIT;
}

static inline size_t asked_of_words(words head)
{
    return ((head.sizes & UINT32_MAX) - 1) * UNIT - slack_of(head);
}

static inline size_t asked_of(const block *head)
{
    return asked_of_words(words_of(head));
}

/* pre: size is not 0, so that there is room for the links. */
static inline uint32_t units_for(size_t size)
{
    return (uint32_t)(1 + (size + UNIT - 1) / UNIT);
}

static inline size_t slack_for(size_t size, uint32_t units)
{
    return (size_t)(units - 1) * UNIT - size;
}

/* Somebody's bytes, exactly as many as asked for; and nobody's, but for the links. Of a shared heap nothing is
 * poisoned: what another process does to it, ASan does not see here. */
static inline void open_bytes(const mmk_heap *heap, const block *head)
{
    if (heap->shared)
        return;
    ASAN_UNPOISON_MEMORY_REGION(bytes_of(head), asked_of(head));
    ASAN_POISON_MEMORY_REGION(bytes_of(head) + asked_of(head), head->slack);
}

static inline void close_bytes(const mmk_heap *heap, const block *head)
{
    if (heap->shared)
        return;
    ASAN_UNPOISON_MEMORY_REGION(bytes_of(head), sizeof(links));
    ASAN_POISON_MEMORY_REGION(bytes_of(head) + sizeof(links), room_of(head) - sizeof(links));
}

/* ---- what went wrong: heap_damage.c ---- */

/* A head or a link that is not as it was written. Of a private heap: ends the process. returns -MMK_ECORRUPT. */
int heap_damaged(mmk_heap *heap, const block *head, const char *what);
void heap_describe(mmk_heap *heap, const block *head, const char *what, mmk_heap_damage *damage);

/* ---- blocks: heap_blocks.c ---- */

/* Cut a free block of so many units, whose bytes are aligned, asking the source if need be. Its state is LIVE.
 * returns 0 with *found, -ENOMEM, -MMK_ECORRUPT */
MMK_MUST_CHECK int blocks_take(mmk_heap *heap, uint32_t units, size_t align, size_t slack, block **found);

/* Free a block and merge it with its free neighbours. pre: its head is good. returns 0, -MMK_ECORRUPT. */
MMK_MUST_CHECK int blocks_give(mmk_heap *heap, block *head);

/* Merge all parked blocks. returns 0, -MMK_ECORRUPT. */
MMK_MUST_CHECK int blocks_settle(mmk_heap *heap);

/* Merge a block, which is on no list, with its free neighbours, and keep it. returns 0, -MMK_ECORRUPT. */
MMK_MUST_CHECK int blocks_merge(mmk_heap *heap, block *head);

/* Change a live block's size without moving it. returns 0, -ENOMEM where it has to move, -MMK_ECORRUPT. */
MMK_MUST_CHECK int blocks_fit(mmk_heap *heap, block *head, uint32_t units, size_t slack);

/* Take the last block of a slice from where free ones are kept. NULL: it is not free. */
block *blocks_take_last(mmk_heap *heap, const heap_slice *slice);
void blocks_keep(mmk_heap *heap, block *head);

/* ---- slices and their sources: heap_source.c ---- */

/* Have the source give a free block of so many units at least. returns 0, -ENOMEM, -MMK_ECORRUPT. */
MMK_MUST_CHECK int source_grow(mmk_heap *heap, uint32_t units);

/* The slice that has this address between its first head and its END; NULL: none. */
const heap_slice *source_slice_of(const mmk_heap *heap, const void *address);

MMK_MUST_CHECK int source_open(mmk_heap *heap, const mmk_heap_request *request, bool joins);

/* Make slices of free memory of the caller's region, from an offset to another. */
MMK_MUST_CHECK int source_add_slices(mmk_heap *heap, size_t offset, size_t end);
/* Know of a slice, whatever is in it. */
void source_note_slice(mmk_heap *heap, heap_slice *slice, char *start, char *end);
void source_close(mmk_heap *heap);
void source_dispose(mmk_heap *heap);
MMK_MUST_CHECK int source_trim(mmk_heap *heap);

static inline bool is_in_newest_slice(const mmk_heap *heap, const void *address)
{
    return __builtin_expect((uintptr_t)address - heap->newest < heap->newest_length, true);
}

static inline bool is_in_slice(const mmk_heap *heap, const void *address)
{
    return is_in_newest_slice(heap, address) || source_slice_of(heap, address);
}

/* Make sure that writing before this address finds memory, where it might not: a full tmpfs answers with a signal.
 * returns 0, -ENOMEM. */
MMK_MUST_CHECK int source_back(mmk_heap *heap, const void *end);

/* May so many bytes more be taken? */
static inline bool is_within_limit(const mmk_heap *heap, size_t more)
{
    return more <= heap->limit && heap->control->mapped_bytes <= heap->limit - more;
}

/* ---- large blocks: heap_large.c ---- */

MMK_MUST_CHECK int large_alloc(mmk_heap *heap, size_t size, size_t align, void **bytes);
MMK_MUST_CHECK int large_free(mmk_heap *heap, large_block *large);
/* returns 0 with *bytes, -ENOMEM where it cannot be done without copying */
MMK_MUST_CHECK int large_resize(mmk_heap *heap, large_block *large, void **bytes, size_t size);
large_block *large_find(const mmk_heap *heap, const void *bytes);
void large_close_all(mmk_heap *heap);

/* ---- guarded blocks: heap_guard.c ---- */

/* As mmk_heap_alloc and so on, with the heap's lock held. What is new is not counted yet. */
MMK_MUST_CHECK int guard_alloc(mmk_heap *heap, size_t size, size_t align, bool zero, void **bytes);
MMK_MUST_CHECK int guard_free(mmk_heap *heap, void *bytes);
MMK_MUST_CHECK int guard_resize(mmk_heap *heap, void **bytes, size_t size, size_t align);
ssize_t guard_size(mmk_heap *heap, const void *bytes);

/* Walk the live blocks, from a place of zeros. returns false behind the last. */
typedef struct guard_place {
    unsigned area;
    size_t page;
} guard_place;
bool guard_next(const mmk_heap *heap, guard_place *place, mmk_heap_block *found);

/* Where a live block was written out of its bounds; NULL: nowhere that is known. */
const char *guard_first_smashed(const mmk_heap *heap, uintptr_t block);

/* Bytes for heap->guard, zeroed. */
size_t guard_room(void);
void guard_close(mmk_heap *heap);
void guard_dispose(mmk_heap *heap);

/* ---- fork: heap_fork.c ---- */

/* Have the heap's lock taken around fork(2), and free in the child; stop that. */
void fork_watch(mmk_heap *heap);
void fork_forget(mmk_heap *heap);
/* Is another heap in the same region? */
bool fork_knows_neighbour(const mmk_heap *heap);

/* ---- shared heaps: heap_shared.c ---- */

/* Make a heap at an offset of the region, or join the one that is there. pre: the region is shared, and viewed. */
MMK_MUST_CHECK int shared_open(mmk_heap *heap, size_t offset, size_t length, bool joins);

/* Take the lock, and put right what somebody who died with it left. returns 0, -MMK_ECLOSED, -MMK_ECORRUPT. */
MMK_MUST_CHECK int shared_enter(mmk_heap *heap);
/* returns 0, -MMK_ECORRUPT where something was missing since */
MMK_MUST_CHECK int shared_leave(mmk_heap *heap);

/* Nobody shall use it any more: it is damaged. */
void shared_give_up(mmk_heap *heap);

/* ---- files that others make shorter: heap_watch.c ---- */

typedef struct heap_watch heap_watch;
typedef union robust_mutex robust_mutex;
enum { HEAP_WATCH_ROOM = 256 }; /* bytes */

/* Watch the region of a shared heap, if need be. room: of HEAP_WATCH_ROOM zeros. */
MMK_MUST_CHECK int watch_open(mmk_heap *heap, void *room, robust_mutex *mutex);
void watch_close(mmk_heap *heap);

/* Around everything that touches a shared heap. returns 0, or -MMK_ECORRUPT: something was missing, now or before.
 * watch_begin then has not begun. */
MMK_MUST_CHECK int watch_begin(mmk_heap *heap);
MMK_MUST_CHECK int watch_end(mmk_heap *heap);

/* The first address that was missing; 0: none was. */
uintptr_t watch_torn(const mmk_heap *heap);

/* In the child. */
void watch_forked(mmk_heap *heap);

/* ---- the lock ---- */

/* Can nobody else come in? A process with one thread has nobody to lock out of a private heap. */
static inline bool is_all_ours(const mmk_heap *heap)
{
    return __builtin_expect(mmk_is_single_threaded() && heap->open && !heap->shared && !heap->guard, true);
}

/* returns what heap_unlock wants to know, or a negative error: then it is not locked. */
static inline int heap_lock(mmk_heap *heap)
{
    if (__builtin_expect(heap->shared != NULL, false))
        return shared_enter(heap);
    if (mmk_is_single_threaded())
        return 0;
    pthread_mutex_lock(&heap->lock);
    return 1;
}

/* returns the answer of the call, or why that is none. */
static inline MMK_MUST_CHECK ssize_t heap_unlock(mmk_heap *heap, int locked, ssize_t answer)
{
    if (__builtin_expect(heap->shared != NULL, false)) {
        int error = shared_leave(heap);
        return error ? error : answer;
    }
    if (locked)
        pthread_mutex_unlock(&heap->lock);
    return answer;
}

static inline void count_live(mmk_heap *heap, size_t size)
{
    heap_control *control = heap->control;
    control->live_blocks++;
    control->live_bytes += size;
    if (control->live_bytes > control->peak_bytes)
        control->peak_bytes = control->live_bytes;
}

static inline void count_freed(mmk_heap *heap, size_t size)
{
    heap->control->live_blocks--;
    heap->control->live_bytes -= size;
}

#endif
