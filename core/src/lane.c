#include <mmkit/lane.h>

#include <errno.h>

#include "steps.h"

/* Numbers of messages have 48 bits and wrap; a slot's index is a number's low bits, so that wrapping is harmless. */
#define NUMBERS ((uint64_t)0xffffffffffff)

enum {
    UNHURRIED = 4096 / MMK_LANE_UNIT,     /* a message of more units takes so long that looking for room is nothing */
    NEAR = 16384 / MMK_LANE_UNIT,         /* one of fewer is best where the last one was, in the nearest caches … */
    ROTATION = (4 << 20) / MMK_LANE_UNIT, /* … larger ones go round, in a cache that the processors share */
};

enum state { OLDER = 0, COMMITTED = 1, TAKEN = 2, DONE = 3 };

static uint64_t word_of(uint64_t number, enum state state, unsigned reader)
{
    return number << 16 | reader << 4 | state;
}

static uint64_t number_in(uint64_t word)
{
    return word >> 16;
}

static unsigned reader_in(uint64_t word)
{
    return (unsigned)(word >> 4) & (MMK_LANE_READERS - 1);
}

static enum state state_in(uint64_t word)
{
    return (enum state)(word & 15);
}

static uint64_t after(uint64_t number)
{
    return (number + 1) & NUMBERS;
}

static bool comes_before(uint64_t one, uint64_t other)
{
    return (int64_t)((one - other) << 16) < 0;
}

/* Neighbours in order lie 16 cache lines' worth apart: the writer's next slot is not in the reader's line. */
static mmk_lane_slot *slot_of(const mmk_lane *lane, uint64_t number)
{
    uint64_t index = number & lane->slot_mask;
    return &lane->slots[(index & ~(uint64_t)63) | (index & 15) << 2 | ((index >> 4) & 3)];
}

static uint64_t count_slots(uint64_t units)
{
    uint64_t count = 64;
    while (count < units)
        count *= 2;
    return count;
}

/* A message of no bytes takes a unit, too: there are never more messages than units. */
static uint32_t units_for(size_t length)
{
    return length ? (uint32_t)((length + MMK_LANE_UNIT - 1) / MMK_LANE_UNIT) : 1;
}

size_t mmk_lane_bytes(uint64_t capacity)
{
    size_t slots = count_slots(capacity / MMK_LANE_UNIT) * sizeof(mmk_lane_slot);
    return mmk_round_up(sizeof(mmk_lane_shared) + slots + capacity, 4096);
}

size_t mmk_lane_longest(const mmk_lane *lane)
{
    return (size_t)(lane->units / 2) * MMK_LANE_UNIT;
}

void mmk_lane_attach(mmk_lane *lane, void *base, uint64_t capacity, bool single)
{
    uint32_t units = (uint32_t)(capacity / MMK_LANE_UNIT);
    uint64_t slots = count_slots(units);
    char *bytes = base;
    *lane = (mmk_lane){
        .shared = base,
        .slots = (mmk_lane_slot *)(bytes + sizeof(mmk_lane_shared)),
        .data = bytes + sizeof(mmk_lane_shared) + slots * sizeof(mmk_lane_slot),
        .slot_mask = slots - 1,
        .units = units,
        .single = single,
    };
}

/* ---- the writer --------------------------------------------------------------------------------------- */

/* Where a message lies, as its slot says it: whoever can write the memory can write anything there. */
static int find_message(const mmk_lane *lane, uint64_t number, mmk_message *message)
{
    mmk_lane_slot *slot = slot_of(lane, number);
    uint32_t unit = step_read32(&slot->unit);
    size_t length = step_read32(&slot->length);
    if (unit >= lane->units || units_for(length) > lane->units - unit || length > mmk_lane_longest(lane))
        return -MMK_ECORRUPT;
    *message = (mmk_message){lane->data + (size_t)unit * MMK_LANE_UNIT, length, number};
    return 0;
}

static uint64_t under_way(const mmk_lane *lane)
{
    return (lane->head - lane->tail) & NUMBERS;
}

int mmk_lane_claim(mmk_lane *lane, uint64_t owner)
{
    if (!step_swap(&lane->shared->owner, 0, owner))
        return -EBUSY;
    lane->head = step_read(&lane->shared->head) & NUMBERS;
    lane->tail = step_read(&lane->shared->tail) & NUMBERS;
    lane->next_unit = 0;
    if (!under_way(lane))
        return 0;
    mmk_message last;
    int error = find_message(lane, (lane->head - 1) & NUMBERS, &last);
    if (error || under_way(lane) > lane->slot_mask + 1) {
        mmk_lane_release(lane);
        return -MMK_ECORRUPT;
    }
    lane->next_unit = (uint32_t)((last.data - lane->data) / MMK_LANE_UNIT) + units_for(last.length);
    return 0;
}

void mmk_lane_release(mmk_lane *lane)
{
    step_publish(&lane->shared->owner, 0);
}

/* Notice which messages are done. The tail is published before any of their slots is used again, so that who meets
 * a slot of a later round finds the tail beyond its own number. */
static void reclaim(mmk_lane *lane)
{
    uint64_t tail = lane->tail;
    while (tail != lane->head && step_read(&slot_of(lane, tail)->word) == word_of(tail, DONE, 0))
        tail = after(tail);
    if (tail == lane->tail)
        return;
    lane->tail = tail;
    step_write(&lane->shared->tail, tail);
}

/* Where to begin in an empty lane. A few pages use the same lines again and again. For more that is bad: who writes to
 * lines that the reader's own cache still holds has to take each away from there, and the reader then fetches each from
 * the writer's. Going round, they are in the shared cache by then: half the time. docs/channel.md has figures. */
static uint32_t begin_anew(const mmk_lane *lane, uint32_t wanted)
{
    uint64_t end = lane->next_unit + (uint64_t)wanted;
    return wanted >= NEAR && end <= ROTATION && end <= lane->units ? lane->next_unit : 0;
}

/* Find so many units in one piece. */
static int find_room(const mmk_lane *lane, uint32_t wanted, uint32_t *unit)
{
    uint64_t count = under_way(lane);
    if (!count) {
        *unit = begin_anew(lane, wanted);
        return 0;
    }
    if (count > lane->slot_mask)
        return -EAGAIN;
    uint32_t oldest = step_read32(&slot_of(lane, lane->tail)->unit), next = lane->next_unit;
    if (oldest >= lane->units)
        return -MMK_ECORRUPT;
    uint32_t end = oldest < next ? lane->units : oldest;
    if (wanted <= end - next) {
        *unit = next;
        return 0;
    }
    if (oldest >= next || wanted > oldest)
        return -EAGAIN;
    *unit = 0;
    return 0;
}

int mmk_lane_reserve(mmk_lane *lane, size_t length, mmk_message *message)
{
    if (length > mmk_lane_longest(lane))
        return -EMSGSIZE;
    uint32_t wanted = units_for(length), unit;
    /* Looking takes the readers' cache lines away from them: for small messages only when there is need. */
    if (wanted > UNHURRIED)
        reclaim(lane);
    int error = find_room(lane, wanted, &unit);
    if (error == -EAGAIN) {
        reclaim(lane);
        error = find_room(lane, wanted, &unit);
    }
    if (error)
        return error;
    uint64_t number = lane->head;
    mmk_lane_slot *slot = slot_of(lane, number);
    step_write32(&slot->unit, unit);
    step_write32(&slot->length, (uint32_t)length);
    lane->next_unit = unit + wanted;
    lane->head = after(number);
    step_publish(&lane->shared->head, lane->head);
    *message = (mmk_message){lane->data + (size_t)unit * MMK_LANE_UNIT, length, number};
    return 0;
}

void mmk_lane_commit(mmk_lane *lane, const mmk_message *message)
{
    step_publish(&slot_of(lane, message->number)->word, word_of(message->number, COMMITTED, 0));
}

void mmk_lane_commit_ordered(mmk_lane *lane, const mmk_message *message)
{
    step_publish_ordered(&slot_of(lane, message->number)->word, word_of(message->number, COMMITTED, 0));
}

void mmk_lane_abandon(mmk_lane *lane, const mmk_message *message)
{
    step_publish_ordered(&slot_of(lane, message->number)->word, word_of(message->number, DONE, 0));
}

static uint32_t room_request(uint64_t number)
{
    return (uint32_t)number << 1 | 1;
}

void mmk_lane_plan_wait(mmk_lane *lane, bool patient, mmk_lane_wait *wait)
{
    reclaim(lane);
    uint64_t count = under_way(lane);
    uint64_t awaited = patient && count ? (lane->tail + (count - 1) / 2) & NUMBERS : lane->tail;
    *wait = (mmk_lane_wait){
        .word = count ? &slot_of(lane, awaited)->word : NULL,
        .done = word_of(awaited, DONE, 0),
        .request = room_request(awaited),
    };
}

bool mmk_lane_wait_is_over(const mmk_lane_wait *wait)
{
    return !wait->word || step_read_ordered(wait->word) == wait->done;
}

/* Is what stands in the word a request for an earlier message, whose end is still to come? */
static bool still_asks(const mmk_lane *lane, uint32_t seen, const mmk_lane_wait *wait)
{
    if (!seen)
        return false;
    int32_t further = (int32_t)(seen - wait->request) / 2;
    uint64_t number = (number_in(wait->done) + (uint64_t)further) & NUMBERS;
    uint64_t word = step_read_ordered(&slot_of(lane, number)->word);
    return further <= 0 && word != word_of(number, DONE, 0) && !comes_before(number, number_in(word));
}

uint32_t mmk_lane_announce_wait(mmk_lane *lane, const mmk_lane_wait *wait)
{
    _Atomic uint32_t *room = &lane->shared->room;
    uint32_t seen = step_read32_ordered(room);
    while (!still_asks(lane, seen, wait)) {
        if (step_swap32(room, seen, wait->request)) {
            seen = wait->request;
            break;
        }
        seen = step_read32_ordered(room);
    }
    /* It may have happened just before: then nobody was there to be woken. */
    return mmk_lane_wait_is_over(wait) ? 0 : seen;
}

/* ---- readers ------------------------------------------------------------------------------------------ */

static uint64_t cursor_at(uint64_t cursor, uint64_t number)
{
    return number << 16 | (cursor & 0xffff);
}

/* The cursor moves on only from where it was seen, and not if anything was put back since. */
static uint64_t move_cursor(mmk_lane *lane, uint64_t cursor, uint64_t number)
{
    uint64_t moved = cursor_at(cursor, number);
    if (lane->single)
        step_publish(&lane->shared->cursor, moved);
    else if (!step_swap(&lane->shared->cursor, cursor, moved))
        return step_read(&lane->shared->cursor);
    return moved;
}

static bool make_taken(mmk_lane *lane, mmk_lane_slot *slot, uint64_t word, unsigned reader)
{
    uint64_t taken = word_of(number_in(word), TAKEN, reader);
    if (!lane->single)
        return step_swap(&slot->word, word, taken);
    step_publish(&slot->word, taken);
    return true;
}

static int open_taken(mmk_lane *lane, uint64_t number, mmk_message *message)
{
    int error = find_message(lane, number, message);
    if (error)
        step_publish_ordered(&slot_of(lane, number)->word, word_of(number, DONE, 0));
    return error;
}

int mmk_lane_take(mmk_lane *lane, unsigned reader, mmk_message *message)
{
    uint64_t cursor = step_read(&lane->shared->cursor);
    for (;;) {
        uint64_t number = number_in(cursor);
        mmk_lane_slot *slot = slot_of(lane, number);
        uint64_t word = step_read(&slot->word);
        if (number_in(word) != number) {
            if (!word || comes_before(number_in(word), number))
                return -EAGAIN;
            /* A later round has begun here: the cursor was put back to what was done meanwhile, or it is old. */
            uint64_t tail = step_read(&lane->shared->tail) & NUMBERS;
            uint64_t now = step_read(&lane->shared->cursor);
            if (now == cursor && !comes_before(number, tail))
                return -MMK_ECORRUPT;
            cursor = now == cursor ? move_cursor(lane, cursor, tail) : now;
            continue;
        }
        if (state_in(word) == OLDER)
            return -EAGAIN;
        if (state_in(word) == COMMITTED) {
            if (!make_taken(lane, slot, word, reader))
                continue;
            move_cursor(lane, cursor, after(number));
            return open_taken(lane, number, message);
        }
        cursor = move_cursor(lane, cursor, after(number));
    }
}

bool mmk_lane_has_news(const mmk_lane *lane)
{
    uint64_t number = number_in(step_read_ordered(&lane->shared->cursor));
    uint64_t word = step_read_ordered(&slot_of(lane, number)->word);
    return word && !comes_before(number_in(word), number) && state_in(word) != OLDER;
}

bool mmk_lane_finish(mmk_lane *lane, const mmk_message *message)
{
    step_publish_ordered(&slot_of(lane, message->number)->word, word_of(message->number, DONE, 0));
    return step_read32_ordered(&lane->shared->room) == room_request(message->number) &&
           step_exchange32(&lane->shared->room, 0);
}

/* Have readers look again from a number on. Counting up makes those fail that saw the message taken and are about to
 * move past it. */
static void put_cursor_back(mmk_lane *lane, uint64_t number)
{
    uint64_t cursor, back;
    do {
        cursor = step_read(&lane->shared->cursor);
        back = comes_before(number, number_in(cursor)) ? cursor_at(cursor, number) : cursor;
        back = (back & ~(uint64_t)0xffff) | ((cursor + 1) & 0xffff);
    } while (!step_swap(&lane->shared->cursor, cursor, back));
}

void mmk_lane_give_back(mmk_lane *lane, const mmk_message *message)
{
    step_publish_ordered(&slot_of(lane, message->number)->word, word_of(message->number, COMMITTED, 0));
    put_cursor_back(lane, message->number);
}

/* ---- after deaths ------------------------------------------------------------------------------------- */

/* How many messages from the tail on may be under way: bounded whatever the memory says. */
static uint64_t count_published(const mmk_lane *lane, uint64_t tail)
{
    uint64_t count = (step_read(&lane->shared->head) - tail) & NUMBERS;
    return count <= lane->slot_mask ? count : lane->slot_mask + 1;
}

size_t mmk_lane_mend_reader(mmk_lane *lane, unsigned reader, bool redeliver)
{
    uint64_t tail = step_read(&lane->shared->tail) & NUMBERS, count = lane->slot_mask + 1;
    size_t mended = 0;
    /* All slots, not those from tail to head: both move on meanwhile. */
    for (uint64_t i = 0; i < count; i++) {
        mmk_lane_slot *slot = &lane->slots[i];
        uint64_t word = step_read(&slot->word);
        if (state_in(word) != TAKEN || reader_in(word) != reader)
            continue;
        uint64_t number = number_in(word);
        mended += step_swap(&slot->word, word, word_of(number, redeliver ? COMMITTED : DONE, 0));
    }
    /* Even if there was none: who mended before us may have died before this. */
    if (redeliver)
        put_cursor_back(lane, tail);
    return mended;
}

size_t mmk_lane_mend_writer(mmk_lane *lane, uint64_t owner)
{
    uint64_t number = step_read(&lane->shared->tail) & NUMBERS;
    size_t passed_over = 0;
    for (uint64_t count = count_published(lane, number); count; count--, number = after(number)) {
        mmk_lane_slot *slot = slot_of(lane, number);
        uint64_t word = step_read(&slot->word);
        if (number_in(word) != number || state_in(word) == OLDER)
            passed_over += step_swap(&slot->word, word, word_of(number, DONE, 0));
    }
    (void)step_swap(&lane->shared->owner, owner, 0);
    return passed_over;
}
