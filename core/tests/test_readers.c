#include <mmkit/registry.h>

#include "held_up.h"
#include "meeting.h"
#include "readers.h"
#include "registry_internal.h"
#include "stepping.h"

enum {
    WRITERS = 2,
    PLACES = 1000, /* a writer's: enough for leaves to be split and joined all the time */
    VERSIONS = 4,
    STRIDE = 0x10000, /* bytes from one place to the next */
    SIGNALS = 20000,
};

static atomic_bool stop;

/* Let threads run for MMKIT_STRESS_SECONDS. */
static void stress(void *(*const bodies[])(void *), size_t count)
{
    const char *asked = getenv("MMKIT_STRESS_SECONDS");
    double seconds = asked ? atof(asked) : 1;
    time_t whole = (time_t)seconds;
    alarm(60 + (unsigned)whole);
    pthread_t threads[8];
    atomic_store(&stop, false);
    for (size_t i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], NULL, bodies[i], (void *)i) == 0);
    nanosleep(&(struct timespec){whole, (long)((seconds - (double)whole) * 1e9)}, NULL);
    atomic_store(&stop, true);
    for (size_t i = 0; i < count; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void wait_for(sem_t *semaphore)
{
    while (sem_wait(semaphore) < 0)
        ;
}

/* ---- a reader that stays ---------------------------------------------------------------------------- */

static struct {
    pthread_t thread;
    sem_t inside, leave;
    unsigned counter;
    mmk_region *found;
    uintptr_t address;
} reader;

static void *stay_inside(void *unused)
{
    reader.counter = readers_enter();
    reader.found = registry_region_at(reader.address);
    CHECK(sem_post(&reader.inside) == 0);
    wait_for(&reader.leave);
    if (reader.found)
        CHECK(reader.found->outer.length); /* as it was when it was found */
    readers_leave(reader.counter);
    return unused;
}

static void let_reader_in(uintptr_t address)
{
    reader.address = address;
    CHECK(sem_init(&reader.inside, 0, 0) == 0 && sem_init(&reader.leave, 0, 0) == 0);
    CHECK(pthread_create(&reader.thread, NULL, stay_inside, NULL) == 0);
    wait_for(&reader.inside);
}

static void let_reader_out(void)
{
    CHECK(sem_post(&reader.leave) == 0 && pthread_join(reader.thread, NULL) == 0);
}

/* ---- who has to wait for him ------------------------------------------------------------------------ */

static void begin_and_end_removal(void)
{
    registry_begin_removal();
    CHECK(registry_removals() % 2 == 1);
    registry_end_removal();
}

TEST(who_waits_is_kept_by_a_reader_that_was_inside_and_by_no_newcomer)
{
    for (int turn = 0; turn < 4; turn++) {
        let_reader_in(0);
        CHECK(start_waiting(begin_and_end_removal));
        unsigned newcomer = readers_enter();
        CHECK(newcomer != reader.counter && still_waits());
        let_reader_out();
        join_waiting();
        readers_leave(newcomer);
        begin_and_end_removal();
    }
}

TEST(readers_nest)
{
    unsigned outer = readers_enter(), inner = readers_enter();
    CHECK(start_waiting(begin_and_end_removal));
    readers_leave(inner);
    CHECK(still_waits());
    unsigned within = readers_enter();
    readers_leave(within);
    CHECK(within != outer && still_waits());
    readers_leave(outer);
    join_waiting();
}

static unsigned first_counter; /* before anybody waited */

static void wait_meanwhile(int signal)
{
    (void)signal;
    (void)start_waiting(begin_and_end_removal);
}

/* Who waited meanwhile pointed newcomers to the other counter, and waits for those in the first. */
static void come_in_and_be_waited_for(void)
{
    alarm(CHILD_SECONDS);
    unsigned counter = readers_enter();
    CHECK(raise(SIGSTOP) == 0);
    if (counter != first_counter) {
        join_waiting();
        CHECK(start_waiting(begin_and_end_removal));
    }
    CHECK(still_waits());
    readers_leave(counter);
    join_waiting();
}

/* Between any two of the reader's instructions. */
TEST(a_reader_that_comes_in_while_somebody_waits_keeps_him_or_the_next_who_waits)
{
    if (UNDER_SANITIZER)
        SKIP("a sanitizer's instructions are too many");
    pid_t child;
    int status;
    unsigned steps = 0;
    readers_leave(first_counter = readers_enter());
    CHECK(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = wait_meanwhile}, NULL) == 0);
    for (; stops_after(come_in_and_be_waited_for, steps, &child); steps++) {
        CHECK(ptrace(PTRACE_CONT, child, 0, SIGUSR1) == 0);
        CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
        CHECK(ptrace(PTRACE_DETACH, child, 0, 0) == 0);
        ends_well(child);
    }
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child && steps > 4);
}

static mmk_region region;

static void remove_region(void)
{
    mmk_registry_remove(&region);
}

static void close_region(void)
{
    CHECK(mmk_region_close(&region) == 0);
}

static void move_region(void)
{
    mmk_registry_move(&region, (mmk_range){region.outer.base + pages(100), pages(1)});
}

static void shorten_region(void)
{
    mmk_registry_move(&region, (mmk_range){region.outer.base, pages(1)});
}

static mmk_region *region_at(const void *address)
{
    unsigned reading = readers_enter();
    mmk_region *found = registry_region_at((uintptr_t)address);
    readers_leave(reading);
    return found;
}

/* With fewer neighbours each time: so in some turns it is the removal that joins two leaves and copies the root. */
TEST(a_region_is_removed_only_when_no_reader_has_it)
{
    enum { NEIGHBOURS = 200 };
    region = (mmk_region){.outer = {(char *)0x10000000, pages(1)}};
    for (size_t i = 1; i <= NEIGHBOURS; i++)
        CHECK(mmk_registry_hold((mmk_range){region.outer.base + i * STRIDE, STRIDE}) == 0);
    for (size_t i = 1; i <= NEIGHBOURS; i++) {
        CHECK(mmk_registry_add(&region) == 0);
        mmk_registry_release((mmk_range){region.outer.base + i * STRIDE, STRIDE});
        let_reader_in((uintptr_t)region.outer.base);
        CHECK(reader.found == &region);
        CHECK(start_waiting(remove_region));
        CHECK(region_at(region.outer.base) == NULL);
        CHECK(registry_removals() % 2 == 1);
        let_reader_out();
        join_waiting();
    }
}

TEST(a_region_is_unmapped_only_when_no_reader_has_it)
{
    map_pages(&region, 2);
    char *base = region.base;
    let_reader_in((uintptr_t)base + 1);
    CHECK(start_waiting(close_region));
    CHECK(can_write(base) && region_at(base) == NULL && registry_removals() % 2 == 1);
    let_reader_out();
    join_waiting();
    CHECK(!can_read(base));
}

TEST(a_moved_regions_old_range_is_given_up_only_when_no_reader_has_it)
{
    void (*const moves[])(void) = {move_region, shorten_region};
    for (size_t i = 0; i < 2; i++) {
        region = (mmk_region){.outer = {(char *)0x10000000, pages(2)}};
        CHECK(mmk_registry_add(&region) == 0);
        let_reader_in(0x10000000 + pages(1));
        CHECK(reader.found == &region);
        CHECK(start_waiting(moves[i]));
        CHECK(region_at((char *)0x10000000) == &region);
        let_reader_out();
        join_waiting();
        CHECK(region_at((char *)0x10000000 + pages(1)) == NULL && region_at(region.outer.base) == &region);
        mmk_registry_remove(&region);
    }
}

TEST(a_removal_is_counted_when_it_begins_and_when_nobody_reads_what_was_there)
{
    unsigned long before = registry_removals();
    unsigned reading = readers_enter();
    CHECK(start_waiting(begin_and_end_removal));
    CHECK(registry_removals() == before + 1 && before % 2 == 0);
    readers_leave(reading);
    join_waiting();
    CHECK(registry_removals() == before + 2);

    region = (mmk_region){.outer = {(char *)0x10000000, pages(1)}};
    CHECK(mmk_registry_add(&region) == 0 && registry_removals() == before + 2);
    shorten_region();
    CHECK(registry_removals() == before + 4);
    mmk_registry_remove(&region);
    CHECK(registry_removals() == before + 6);
}

static void change_the_registry(void)
{
    mmk_registry_remove(&region);
    CHECK(region_at(region.base) == NULL && mmk_registry_add(&region) == 0 && region_at(region.base) == &region);
    begin_and_end_removal();
}

TEST(a_child_does_not_wait_for_readers_that_it_has_not)
{
    map_pages(&region, 1);
    let_reader_in((uintptr_t)region.base);
    unsigned first = reader.counter;
    in_child(change_the_registry);
    let_reader_out();
    begin_and_end_removal();
    let_reader_in((uintptr_t)region.base);
    CHECK(reader.counter != first); /* now in the other counter */
    in_child(change_the_registry);
    let_reader_out();
    mmk_region_dispose(&region);
}

/* ---- races ------------------------------------------------------------------------------------------ */

/* One published thing, replaced as fast as can be: it is in use until its grace period has passed. */
static struct {
    _Atomic(size_t *) now;
    size_t versions[VERSIONS];
    atomic_size_t reads;
} published;

static void *read_published(void *number)
{
    uint64_t seed = (uintptr_t)number;
    size_t reads = 0;
    for (; !atomic_load(&stop); reads++) {
        unsigned reading = readers_enter();
        const volatile size_t *version = atomic_load_explicit(&published.now, memory_order_acquire);
        for (unsigned turn = random_number(&seed) % 64; turn > 0; turn--)
            CHECK(*version == 1);
        readers_leave(reading);
    }
    atomic_fetch_add(&published.reads, reads);
    return NULL;
}

static void *replace_published(void *unused)
{
    for (size_t turn = 1; !atomic_load(&stop); turn++) {
        size_t *old = atomic_load(&published.now), *next = &published.versions[turn % VERSIONS];
        *next = 1;
        atomic_store_explicit(&published.now, next, memory_order_release);
        readers_wait();
        *old = 0;
    }
    return unused;
}

TEST(what_was_replaced_before_a_wait_is_met_by_nobody_after_it)
{
    void *(*const bodies[])(void *) = {read_published, read_published, replace_published};
    published.versions[0] = 1;
    atomic_store(&published.now, published.versions);
    stress(bodies, sizeof bodies / sizeof *bodies);
    CHECK(atomic_load(&published.reads) > 0);
}

/* Where a writer adds and removes one region after the other: generation g is regions[g % 2]. */
static struct place {
    atomic_uint state; /* 4 * generation + phase */
    mmk_region regions[2];
} places[WRITERS * PLACES];

enum phase { OUT, COMING, IN, GOING };

static atomic_size_t seen_in, seen_out;

/* Those of the writers alternate. Every other range touches the next, the others leave a gap. */
static mmk_range range_of(size_t place)
{
    return (mmk_range){(char *)0x100000000 + place * STRIDE, place % 4 < 2 ? STRIDE : STRIDE / 2};
}

static void add_or_remove(size_t which)
{
    struct place *place = &places[which];
    unsigned state = atomic_load(&place->state);
    mmk_region *next = &place->regions[state / 4 % 2];
    if (state % 4 == OUT) {
        next->outer = range_of(which);
        next->fd = (int)which;
        atomic_store(&place->state, state + COMING);
        CHECK(mmk_registry_add(next) == 0);
        atomic_store(&place->state, state + IN);
    } else {
        atomic_store(&place->state, state - IN + GOING);
        mmk_registry_remove(next);
        next->fd = -1;
        atomic_store(&place->state, state - IN + 4);
    }
}

/* Fill, then empty, with some going back and forth on the way. */
static void *come_and_go(void *number)
{
    uint64_t seed = (uintptr_t)number;
    size_t in = 0;
    bool filling = true;
    while (!atomic_load(&stop)) {
        size_t which = random_number(&seed) % PLACES * WRITERS + (uintptr_t)number % WRITERS;
        bool adds = atomic_load(&places[which].state) % 4 == OUT;
        filling = in == 0 || (filling && in < PLACES - PLACES / 8);
        if (adds != filling && random_number(&seed) % 4)
            continue;
        add_or_remove(which);
        in += adds ? 1 : (size_t)-1;
    }
    for (size_t which = (uintptr_t)number % WRITERS; which < WRITERS * PLACES; which += WRITERS)
        if (atomic_load(&places[which].state) % 4 == IN)
            add_or_remove(which);
    return NULL;
}

static void look(size_t which, uint64_t *seed)
{
    struct place *place = &places[which];
    mmk_range range = range_of(which);
    uintptr_t address = (uintptr_t)range.base + random_number(seed) % range.length;
    unsigned before = atomic_load(&place->state);
    unsigned reading = readers_enter();
    mmk_region *found = registry_region_at(address);
    if (random_number(seed) % 16 == 0)
        sched_yield();
    CHECK(!found || found->fd == (int)which); /* else it was removed under us */
    CHECK(range.length == STRIDE || !registry_region_at(address + range.length));
    readers_leave(reading);
    unsigned after = atomic_load(&place->state);
    if (before / 4 == after / 4)
        CHECK(!found || found == &place->regions[before / 4 % 2]); /* the other one was removed before */
    if (before == after && before % 4 == IN) {
        CHECK(found);
        atomic_fetch_add_explicit(&seen_in, 1, memory_order_relaxed);
    }
    if (before == after && before % 4 == OUT) {
        CHECK(!found);
        atomic_fetch_add_explicit(&seen_out, 1, memory_order_relaxed);
    }
}

static void *keep_looking(void *number)
{
    uint64_t seed = (uintptr_t)number;
    while (!atomic_load(&stop))
        look(random_number(&seed) % (WRITERS * PLACES), &seed);
    return NULL;
}

TEST(a_lookup_finds_what_is_in_and_nothing_that_was_removed_before)
{
    void *(*const bodies[])(void *) = {come_and_go, come_and_go, keep_looking, keep_looking};
    stress(bodies, sizeof bodies / sizeof *bodies);
    CHECK(atomic_load(&seen_in) > 0 && atomic_load(&seen_out) > 0 && mmk_registry_count() == 0);
}

static void *grow_and_shrink(void *unused)
{
    for (size_t turn = 0; !atomic_load(&stop); turn++)
        mmk_registry_move(&region, (mmk_range){region.outer.base, pages(1 + turn % 3)});
    return unused;
}

static void *find_first_page(void *unused)
{
    while (!atomic_load(&stop))
        CHECK(region_at((char *)0x10000000) == &region);
    return unused;
}

TEST(a_region_that_grows_in_place_is_found_throughout)
{
    void *(*const bodies[])(void *) = {grow_and_shrink, find_first_page, find_first_page};
    region = (mmk_region){.outer = {(char *)0x10000000, pages(1)}};
    CHECK(mmk_registry_add(&region) == 0);
    stress(bodies, sizeof bodies / sizeof *bodies);
    mmk_registry_remove(&region);
}

/* ---- a handler -------------------------------------------------------------------------------------- */

static sem_t handled;

static void look_up_in_handler(int number)
{
    (void)number;
    CHECK(region_at((char *)0x10000000) == &region && region_at((char *)0x10000000 - 1) == NULL);
    CHECK(sem_post(&handled) == 0);
}

static void *hold_and_release(void *unused)
{
    uint64_t seed = 1;
    while (!atomic_load(&stop)) {
        mmk_range range = {(char *)0x20000000 + random_number(&seed) % 512 * STRIDE, STRIDE};
        CHECK(mmk_registry_hold(range) == 0);
        mmk_registry_release(range);
    }
    return unused;
}

TEST(a_handler_looks_up_while_the_thread_it_interrupts_changes_the_registry)
{
    pthread_t thread;
    region = (mmk_region){.outer = {(char *)0x10000000, pages(1)}};
    CHECK(mmk_registry_add(&region) == 0 && sem_init(&handled, 0, 0) == 0);
    CHECK(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = look_up_in_handler}, NULL) == 0);
    atomic_store(&stop, false);
    CHECK(pthread_create(&thread, NULL, hold_and_release, NULL) == 0);
    for (int i = 0; i < SIGNALS; i++) {
        CHECK(pthread_kill(thread, SIGUSR1) == 0);
        wait_for(&handled);
    }
    atomic_store(&stop, true);
    CHECK(pthread_join(thread, NULL) == 0);
    mmk_registry_remove(&region);
}

int main(void)
{
    alarm(60);
    RUN(who_waits_is_kept_by_a_reader_that_was_inside_and_by_no_newcomer);
    RUN(a_reader_that_comes_in_while_somebody_waits_keeps_him_or_the_next_who_waits);
    RUN(readers_nest);
    RUN(a_region_is_removed_only_when_no_reader_has_it);
    RUN(a_region_is_unmapped_only_when_no_reader_has_it);
    RUN(a_moved_regions_old_range_is_given_up_only_when_no_reader_has_it);
    RUN(a_removal_is_counted_when_it_begins_and_when_nobody_reads_what_was_there);
    RUN(a_child_does_not_wait_for_readers_that_it_has_not);
    RUN(what_was_replaced_before_a_wait_is_met_by_nobody_after_it);
    RUN(a_lookup_finds_what_is_in_and_nothing_that_was_removed_before);
    RUN(a_region_that_grows_in_place_is_found_throughout);
    RUN(a_handler_looks_up_while_the_thread_it_interrupts_changes_the_registry);
    return 0;
}
