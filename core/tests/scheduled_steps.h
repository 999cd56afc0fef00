/* scheduled_steps.h: the steps of steps.h, each a place where the schedule may do something else first.
 *
 * Processes are coroutines of one thread; what runs is decided by `choose`, whose answers are enumerated. Stores that
 * are not sequentially consistent wait in a buffer, as x86 keeps them, until something drains it: other processes do
 * not see them before. At each step, within its budget, the schedule may let another process run (with as much of the
 * buffer drained as it likes) or let this one die.
 */
#ifndef MMKIT_SCHEDULED_STEPS_H
#define MMKIT_SCHEDULED_STEPS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <mmkit/channel.h>
#include <mmkit/futex.h>
#include <mmkit/process.h>

#include "channel_internal.h"
#include "check.h"

enum { MOST_PROCESSES = 4, STACK = 64 * 1024, MOST_STORES = 256, MOST_CHOICES = 4096, MOST_OPTIONS = 512 };

typedef enum { ABSENT, READY, ASLEEP, FINISHED, DEAD } process_state;

typedef struct store {
    void *place;
    unsigned size;
    uint64_t value;
} store;

typedef struct process {
    ucontext_t context;
    char *stack;
    process_state state;
    _Atomic uint32_t *sleeps_on;
    int sleep_result;
    bool sleeps_briefly; /* it has a deadline */
    store stores[MOST_STORES];
    unsigned stored;
    void (*program)(void);
    mmk_channel channel;
} process;

static process processes[MOST_PROCESSES];
static process *current;
static ucontext_t scheduler;

/* ---- choices: depth first through all of them --------------------------------------------------------- */

static struct {
    unsigned chosen, options;
} choices[MOST_CHOICES];
static unsigned known_choices, next_choice;
static unsigned preemptions_left, deaths_left, deaths;
static bool at_random;
static unsigned calm = 1; /* at random: one in so many steps is where something else happens */

/* rarely: at random, mostly the first, so that what is rare is left for late. */
static unsigned choose(unsigned options, bool rarely)
{
    if (options == 1)
        return 0;
    CHECK(next_choice < MOST_CHOICES);
    if (next_choice == known_choices) {
        bool first = !at_random || (rarely && (unsigned)rand() % calm);
        choices[next_choice].options = options;
        choices[next_choice].chosen = first ? 0 : (unsigned)rand() % options;
        known_choices++;
    }
    CHECK(choices[next_choice].options == options);
    return choices[next_choice++].chosen;
}

static bool next_schedule(void)
{
    while (known_choices && choices[known_choices - 1].chosen + 1 == choices[known_choices - 1].options)
        known_choices--;
    if (known_choices)
        choices[known_choices - 1].chosen++;
    return known_choices;
}

/* ---- memory ------------------------------------------------------------------------------------------- */

/* Places that nobody ever writes are no meeting points. Which are written is learnt by running; a run goes by what was
 * known before it. By low address bits. */
enum { PLACES = 1 << 16 };
static bool is_written[PLACES], was_seen_written[PLACES];
static bool has_learnt;

static unsigned place_number(const volatile void *place)
{
    return ((uintptr_t)place >> 2) % PLACES;
}

static void note_written(const void *place)
{
    unsigned number = place_number(place);
    has_learnt |= !was_seen_written[number];
    was_seen_written[number] = true;
}

static bool learn(void)
{
    bool more = has_learnt;
    memcpy(is_written, was_seen_written, sizeof is_written);
    has_learnt = false;
    return more;
}

static void put(const store *one)
{
    note_written(one->place);
    if (one->size == 4) {
        uint32_t value = (uint32_t)one->value;
        memcpy(one->place, &value, 4);
    } else {
        memcpy(one->place, &one->value, 8);
    }
}

static void drain(process *who, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        put(&who->stores[i]);
    who->stored -= count;
    memmove(who->stores, who->stores + count, who->stored * sizeof(store));
}

static uint64_t get(const volatile void *place, unsigned size)
{
    for (unsigned i = current->stored; i-- > 0;)
        if (current->stores[i].place == place)
            return current->stores[i].value;
    uint64_t value = 0;
    memcpy(&value, (const void *)place, size);
    return value;
}

/* ---- the schedule ------------------------------------------------------------------------------------- */

static void leave(process_state state)
{
    drain(current, current->stored);
    current->state = state;
    swapcontext(&current->context, &scheduler);
}

static void die(void)
{
    deaths_left--;
    deaths++;
    leave(DEAD);
}

static void meet(void)
{
    struct {
        process *other;
        unsigned drained;
    } options[MOST_OPTIONS];
    unsigned count = 1;
    if (preemptions_left)
        for (process *other = processes; other < processes + MOST_PROCESSES; other++)
            for (unsigned drained = 0; other != current && other->state == READY && drained <= current->stored;
                 drained++) {
                options[count].other = other;
                options[count++].drained = drained;
            }
    unsigned choice = choose(count + (deaths_left > 0), true);
    if (choice == count)
        die();
    else if (choice) {
        preemptions_left--;
        process *self = current;
        drain(self, options[choice].drained);
        current = options[choice].other;
        swapcontext(&self->context, &current->context);
    }
}

static void keep(void *place, unsigned size, uint64_t value)
{
    CHECK(current->stored < MOST_STORES);
    note_written(place);
    current->stores[current->stored++] = (store){place, size, value};
}

/* ---- the steps ---------------------------------------------------------------------------------------- */

static uint64_t read_at(const volatile void *place, unsigned size)
{
    if (is_written[place_number(place)])
        meet();
    return get(place, size);
}

static void write_at(void *place, unsigned size, uint64_t value, bool ordered)
{
    meet();
    keep(place, size, value);
    if (ordered)
        drain(current, current->stored);
}

static inline uint64_t step_read(const _Atomic uint64_t *place)
{
    return read_at(place, 8);
}

static inline uint64_t step_read_ordered(const _Atomic uint64_t *place)
{
    return read_at(place, 8);
}

static inline uint32_t step_read32(const _Atomic uint32_t *place)
{
    return (uint32_t)read_at(place, 4);
}

static inline uint32_t step_read32_ordered(const _Atomic uint32_t *place)
{
    return (uint32_t)read_at(place, 4);
}

static inline void step_write(_Atomic uint64_t *place, uint64_t value)
{
    write_at(place, 8, value, false);
}

static inline void step_write32(_Atomic uint32_t *place, uint32_t value)
{
    write_at(place, 4, value, false);
}

static inline void step_publish(_Atomic uint64_t *place, uint64_t value)
{
    write_at(place, 8, value, false);
}

static inline void step_publish_ordered(_Atomic uint64_t *place, uint64_t value)
{
    write_at(place, 8, value, true);
}

static bool swap_at(void *place, unsigned size, uint64_t old, uint64_t new)
{
    meet();
    drain(current, current->stored);
    if (get(place, size) != old)
        return false;
    put(&(store){place, size, new});
    return true;
}

static inline bool step_swap(_Atomic uint64_t *place, uint64_t old, uint64_t new)
{
    return swap_at(place, 8, old, new);
}

static inline bool step_swap32(_Atomic uint32_t *place, uint32_t old, uint32_t new)
{
    return swap_at(place, 4, old, new);
}

static inline uint32_t step_exchange32(_Atomic uint32_t *place, uint32_t value)
{
    meet();
    drain(current, current->stored);
    uint32_t old = (uint32_t)get(place, 4);
    put(&(store){place, 4, value});
    return old;
}

static inline int step_sleep(_Atomic uint32_t *word, uint32_t expected, uint64_t deadline)
{
    meet();
    drain(current, current->stored);
    if (get(word, 4) != expected)
        return 0;
    current->sleeps_on = word;
    current->sleeps_briefly = deadline != MMK_FOREVER;
    current->sleep_result = 0;
    leave(ASLEEP);
    return current->sleep_result;
}

static inline void step_wake(_Atomic uint32_t *word, int count)
{
    meet();
    drain(current, current->stored);
    for (; count > 0; count--) {
        process *sleepers[MOST_PROCESSES];
        unsigned found = 0;
        for (process *other = processes; other < processes + MOST_PROCESSES; other++)
            if (other->state == ASLEEP && other->sleeps_on == word)
                sleepers[found++] = other;
        if (!found)
            return;
        sleepers[choose(found, false)]->state = READY;
    }
}

/* Each look at the clock finds that much time has passed. */
static inline uint64_t step_now(void)
{
    static uint64_t now;
    return now += MMK_SLICE;
}

static inline bool step_is_gone(uint64_t claim)
{
    meet();
    return processes[claim - 1].state == DEAD;
}

#endif
