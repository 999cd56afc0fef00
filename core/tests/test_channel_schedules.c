/* The code of channels itself, not a model of it, under every schedule within a budget of preemptions and deaths, on
 * memory that keeps stores back: nothing torn, nothing lost, nothing twice but where a death allows it, and nobody
 * asleep while there is something to do.
 *
 *     test_channel_schedules [SCENARIO PREEMPTIONS DEATHS | SCENARIO RANDOM_RUNS]
 *     MMKIT_STRESS_SECONDS=1: larger budgets
 *
 * channel_mutants.sh breaks the code in all the ways that this has to notice.
 */
#include <stdio.h>

#define MMK_STEPS "scheduled_steps.h"
#include "../src/lane.c"
#include "../src/channel.c"
#include "../src/channel_mend.c"

#include "support.h"

enum {
    CAPACITY = 2 * MMK_LANE_UNIT, /* two short messages: the third waits for room */
    MOST_MESSAGES = 8,
    MOST_LANES = 2,
    LANE_BYTES = sizeof(mmk_lane_shared) + 64 * sizeof(mmk_lane_slot) + CAPACITY,
};

typedef struct scenario {
    const char *name;
    void (*programs[MOST_PROCESSES])(void);
    uint32_t flags;
    unsigned lanes;
    unsigned messages;    /* a writer's */
    unsigned preemptions; /* enumerated; 0: there are too many schedules, it runs at random only */
} scenario;

static const scenario *scene;
static _Alignas(4096) char header_page[MMK_CHANNEL_HEADER];
static _Alignas(4096) char lane_memory[MOST_LANES][LANE_BYTES];

/* What happened, by writer and message. */
static unsigned committed[MOST_PROCESSES][MOST_MESSAGES], delivered[MOST_PROCESSES][MOST_MESSAGES];
/* How many readers died with it in their hands, having seen it. */
static unsigned excused[MOST_PROCESSES][MOST_MESSAGES];
static struct {
    bool holds;
    unsigned writer, index;
} hands[MOST_PROCESSES];

/* ---- files, which here are memory ---- */

int channel_map_lanes(mmk_channel *channel)
{
    (void)channel;
    return 0;
}

/* ---- what processes do ---- */

static unsigned me(void)
{
    return (unsigned)(current - processes);
}

static _Atomic uint32_t nothing;

/* No claim was to be had: look again a slice later. */
static void sleep_a_slice(void)
{
    (void)step_sleep(&nothing, 0, MMK_FOREVER);
}

static mmk_channel_message reserve_next(void)
{
    mmk_channel_message message;
    mmk_channel *channel = &current->channel;
    bool patient = true;
    int error;
    while ((error = mmk_channel_reserve(channel, 8, &message))) {
        CHECK(error == -EAGAIN || error == -EBUSY || error == -MMK_ENOLANE);
        if (error == -EBUSY) {
            sleep_a_slice();
            continue;
        }
        mmk_channel_wait wait;
        mmk_channel_plan_wait(channel, patient, &wait);
        (void)!mmk_channel_await_room(channel, &wait, 0, MMK_FOREVER);
        patient = false;
    }
    return message;
}

/* A message says who wrote it, and which it is. */
static void fill(const mmk_channel_message *message, unsigned index)
{
    step_write((_Atomic uint64_t *)(void *)message->message.data, (uint64_t)(me() + 1) << 32 | (index + 1));
}

static void send(const mmk_channel_message *message, unsigned index)
{
    /* The commit is the first step of the call: who dies in it has committed, or not. */
    committed[me()][index] = 1;
    mmk_channel_commit(&current->channel, message);
    committed[me()][index] = 2;
}

static void write_messages(void)
{
    for (unsigned i = 0; i < scene->messages; i++) {
        mmk_channel_message message = reserve_next();
        fill(&message, i);
        send(&message, i);
    }
    mmk_lane_release(&current->channel.lanes[current->channel.lane]);
}

/* Loans of two threads: the second is committed first, and the first given up. */
static void write_out_of_order(void)
{
    mmk_channel_message first = reserve_next(), second = reserve_next();
    fill(&second, 1);
    send(&second, 1);
    mmk_channel_abandon(&current->channel, &first);
    mmk_channel_message third = reserve_next();
    fill(&third, 2);
    send(&third, 2);
}

static void read_message(const mmk_channel_message *message, bool finishes)
{
    const _Atomic uint64_t *bytes = (void *)message->message.data;
    uint64_t first = step_read(bytes);
    unsigned writer = (unsigned)(first >> 32) - 1, index = (unsigned)first - 1;
    CHECK(message->message.length == 8 && writer < MOST_PROCESSES && index < MOST_MESSAGES);
    CHECK(committed[writer][index]);
    if (finishes) {
        delivered[writer][index]++;
        hands[me()].writer = writer;
        hands[me()].index = index;
        hands[me()].holds = true;
    }
    /* It stays as it is until it is finished. */
    CHECK(step_read(bytes) == first);
    if (finishes)
        mmk_channel_finish(&current->channel, message);
    else
        mmk_channel_give_back(&current->channel, message);
    hands[me()].holds = false;
}

/* finishes: how many messages before it leaves; gives_back: whether it does, the first. */
static void read_some(unsigned finishes, bool gives_back)
{
    while (finishes) {
        mmk_channel_message message;
        int error = mmk_channel_take(&current->channel, &message);
        if (!error) {
            read_message(&message, !gives_back);
            finishes -= !gives_back;
            gives_back = false;
        } else if (error == -EBUSY) {
            sleep_a_slice();
        } else {
            CHECK(error == -EAGAIN);
            (void)!mmk_channel_await_message(&current->channel, 0, MMK_FOREVER);
        }
    }
}

static void read_messages(void)
{
    read_some(UINT32_MAX, false);
}

static void give_back_and_read(void)
{
    read_some(UINT32_MAX, true);
}

/* It takes one, and has other things to do. */
static void read_one(void)
{
    read_some(1, false);
}

static void give_back_and_leave(void)
{
    mmk_channel_message message;
    while (mmk_channel_take(&current->channel, &message))
        (void)!mmk_channel_await_message(&current->channel, 0, MMK_FOREVER);
    read_message(&message, false);
}

static void claim_and_die(void)
{
    mmk_channel_message message;
    int error = mmk_channel_take(&current->channel, &message);
    CHECK(!error || error == -EAGAIN);
    deaths++;
    leave(DEAD);
}

static void come_late_and_read(void)
{
    sleep_a_slice();
    read_messages();
}

static void run_program(void)
{
    current->program();
    leave(FINISHED);
}

/* ---- one run ---- */

static void set_the_scene(void)
{
    memset(header_page, 0, sizeof header_page);
    memset(lane_memory, 0, sizeof lane_memory);
    memset(committed, 0, sizeof committed);
    memset(delivered, 0, sizeof delivered);
    memset(excused, 0, sizeof excused);
    memset(hands, 0, sizeof hands);
    deaths = 0;
    next_choice = 0;
    mmk_channel_header *header = (void *)header_page;
    header->lanes = scene->lanes;
    for (unsigned i = 0; i < MOST_PROCESSES; i++) {
        process *one = &processes[i];
        one->program = scene->programs[i];
        one->state = one->program ? READY : ABSENT;
        one->stored = 0;
        mmk_channel *channel = &one->channel;
        memset(channel, 0, offsetof(mmk_channel, lanes));
        channel->header = header;
        channel->flags = scene->flags;
        channel->owner = i + 1;
        channel->generation = mmk_process_generation;
        channel->lane = channel->reader = -1;
        channel->mapped = scene->lanes;
        for (unsigned k = 0; k < scene->lanes; k++)
            mmk_lane_attach(&channel->lanes[k], lane_memory[k], CAPACITY, scene->flags & MMK_CHANNEL_SINGLE);
        getcontext(&one->context);
        one->context.uc_stack.ss_sp = one->stack;
        one->context.uc_stack.ss_size = STACK;
        one->context.uc_link = NULL;
        makecontext(&one->context, run_program, 0);
    }
}

/* Until nobody can go on. */
static void run_all(void)
{
    for (;;) {
        process *ready[MOST_PROCESSES];
        unsigned count = 0;
        for (unsigned i = 0; i < MOST_PROCESSES; i++)
            if (processes[i].state == READY)
                ready[count++] = &processes[i];
        if (!count)
            return;
        current = ready[choose(count, false)];
        swapcontext(&scheduler, &current->context);
    }
}

static void end_slices(bool all)
{
    for (unsigned i = 0; i < MOST_PROCESSES; i++)
        if (processes[i].state == ASLEEP &&
            (all || processes[i].sleeps_briefly || processes[i].sleeps_on == &nothing)) {
            processes[i].state = READY;
            processes[i].sleep_result = -EAGAIN;
        }
}

static void fail(const char *what, unsigned writer, unsigned index)
{
    fprintf(stderr, "%s: %s: message %u of process %u\nschedule:", scene->name, what, index, writer);
    for (unsigned i = 0; i < next_choice; i++)
        fprintf(stderr, " %u/%u", choices[i].chosen, choices[i].options);
    fprintf(stderr, "\n");
    abort();
}

static bool stays_to_read(unsigned number)
{
    void (*program)(void) = scene->programs[number];
    return program == read_messages || program == give_back_and_read || program == come_late_and_read;
}

static void judge_message(unsigned writer, unsigned index, unsigned *missing)
{
    unsigned times = delivered[writer][index];
    bool at_most_once = scene->flags & MMK_CHANNEL_AT_MOST_ONCE;
    if (times > 1 && (at_most_once || times > 1 + excused[writer][index]))
        fail("delivered again", writer, index);
    *missing += times == 0 && committed[writer][index] == 2;
    /* Who dies while taking may have taken: which, only it knew. */
    if (*missing > (at_most_once ? deaths : 0))
        fail("lost, or nobody was told of it", writer, index);
}

static void judge(void)
{
    bool somebody_reads = false;
    unsigned missing = 0;
    for (unsigned i = 0; i < MOST_PROCESSES; i++) {
        somebody_reads |= stays_to_read(i) && processes[i].state == ASLEEP;
        if (hands[i].holds && processes[i].state == DEAD)
            excused[hands[i].writer][hands[i].index]++;
    }
    if (!somebody_reads)
        return;
    for (unsigned writer = 0; writer < MOST_PROCESSES; writer++) {
        bool writes = scene->programs[writer] == write_messages || scene->programs[writer] == write_out_of_order;
        if (writes && processes[writer].state == ASLEEP)
            fail("waits for ever", writer, 0);
        for (unsigned index = 0; index < MOST_MESSAGES; index++)
            judge_message(writer, index, &missing);
    }
}

static void run_once(unsigned preemptions, unsigned most_deaths)
{
    preemptions_left = preemptions;
    deaths_left = most_deaths;
    set_the_scene();
    run_all();
    /* Without a death nobody needs a slice but who found no claim. After one, a few mend everything: a mender may have
     * died, too. */
    for (unsigned slices = 0; slices < 4; slices++) {
        end_slices(deaths);
        run_all();
    }
    judge();
}

/* Deeper than the enumeration goes, but not everything; and it learns where to meet. */
static void run_at_random(const scenario *one, unsigned runs)
{
    scene = one;
    at_random = true;
    srand(1);
    for (unsigned i = 0; i < runs; i++) {
        known_choices = 0;
        calm = 1u << i % 6;
        run_once(i % 20, i % 3);
        (void)learn();
    }
    at_random = false;
    known_choices = 0;
}

static void explore(const scenario *one, unsigned preemptions, unsigned most_deaths)
{
    run_at_random(one, 300);
    unsigned long runs = 0;
    bool more = true;
    while (more) {
        run_once(preemptions, most_deaths);
        runs++;
        more = next_schedule();
        /* A place nobody had written before: those who read it have to meet there, in all schedules. */
        if (learn()) {
            known_choices = 0;
            more = true;
        }
    }
    printf("  %-45s %u preemptions, %u deaths: %lu schedules\n", one->name, preemptions, most_deaths, runs);
    fflush(stdout);
}

/* ---- the scenarios ---- */

static const scenario scenarios[] = {
    {"a writer, two readers", {write_messages, read_messages, read_messages}, 0, 1, 3, 1},
    {"two writers, a reader", {write_messages, write_messages, read_messages}, 0, 2, 2, 1},
    {"two writers, two readers, at most once",
     {write_messages, write_messages, read_messages, read_messages},
     MMK_CHANNEL_AT_MOST_ONCE,
     2,
     1,
     1},
    {"a reader gives back", {write_messages, give_back_and_read, read_messages}, 0, 1, 3, 1},
    {"a reader gives back and leaves", {write_messages, give_back_and_leave, read_messages}, 0, 1, 1, 1},
    /* The bell has to count: only two preemptions tell. */
    {"a reader takes one and leaves", {write_messages, read_one, read_messages}, 0, 1, 2, 2},
    {"loans out of order", {write_out_of_order, read_messages, read_messages}, 0, 1, 3, 1},
    {"a lane handed on", {write_messages, write_messages, read_messages}, 0, 1, 2, 1},
    {"a number handed on", {write_messages, claim_and_die, read_messages, come_late_and_read}, 0, 1, 3, 0},
    {"single", {write_messages, read_messages}, MMK_CHANNEL_SINGLE, 1, 5, 1},
    {"single, with successors",
     {write_messages, read_messages, read_messages, write_messages},
     MMK_CHANNEL_SINGLE,
     1,
     1,
     1},
    {"single, at most once, with a successor",
     {write_messages, read_messages, read_messages},
     MMK_CHANNEL_SINGLE | MMK_CHANNEL_AT_MOST_ONCE,
     1,
     3,
     1},
};

enum { SCENARIOS = sizeof scenarios / sizeof *scenarios, RANDOM_RUNS = 10000 };

int main(int count, char **arguments)
{
    if (UNDER_SANITIZER) {
        printf("skipped: coroutines do not go with sanitizers\n");
        return 0;
    }
    for (unsigned i = 0; i < MOST_PROCESSES; i++)
        CHECK((processes[i].stack = malloc(STACK)));
    if (count == 4) {
        explore(&scenarios[atoi(arguments[1])], (unsigned)atoi(arguments[2]), (unsigned)atoi(arguments[3]));
        return 0;
    }
    if (count == 3) {
        run_at_random(&scenarios[atoi(arguments[1])], (unsigned)atoi(arguments[2]));
        return 0;
    }
    bool deeply = getenv("MMKIT_STRESS_SECONDS");
    for (unsigned i = 0; i < SCENARIOS; i++) {
        unsigned runs = scenarios[i].preemptions ? RANDOM_RUNS : 4 * RANDOM_RUNS;
        run_at_random(&scenarios[i], deeply ? 50 * runs : runs);
        if (scenarios[i].preemptions) {
            explore(&scenarios[i], scenarios[i].preemptions, 0);
            explore(&scenarios[i], 0, 1);
        }
    }
    for (unsigned i = 0; deeply && i < SCENARIOS; i++) {
        explore(&scenarios[i], 2, 0);
        explore(&scenarios[i], 1, 1);
        explore(&scenarios[i], 0, 2);
    }
    return 0;
}
