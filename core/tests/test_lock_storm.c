/* Holders killed at random instants: nobody hangs, every death is told, nobody is ever inside with another. */
#include <mmkit/lock.h>

#include "meeting.h"

enum {
    WORKERS = 4,
    DEATHS = UNDER_SANITIZER ? 100 : 500, /* at least, however short the storm */
};

enum { OUTSIDE, INSIDE, REPAIRING };

static struct storm {
    mmk_lock lock;
    _Atomic uint32_t owner;  /* who is inside: whoever comes in finds 0 */
    volatile uint64_t first; /* the same as last, but for who is inside */
    volatile uint64_t last;
    atomic_ulong rounds;
    atomic_ulong repairs;
    atomic_int doing[WORKERS];
} *storm;

static void be_inside(uint64_t *seed)
{
    uint32_t nobody = 0;
    CHECK(atomic_compare_exchange_strong(&storm->owner, &nobody, (uint32_t)getpid()));
    CHECK(storm->first == storm->last);
    storm->first = storm->first + 1;
    for (unsigned i = random_number(seed) % 200; i; i--)
        __asm__ volatile("");
    storm->last = storm->last + 1;
    uint32_t me = (uint32_t)getpid();
    CHECK(atomic_compare_exchange_strong(&storm->owner, &me, 0));
}

static void repair(int number)
{
    int abandoned = mmk_lock_begin_repair(&storm->lock, &forever);
    CHECK(abandoned >= 0);
    atomic_store(&storm->doing[number], REPAIRING);
    if (abandoned) {
        storm->last = storm->first;
        atomic_store(&storm->owner, 0);
        atomic_fetch_add(&storm->repairs, 1);
    }
    atomic_store(&storm->doing[number], OUTSIDE);
    CHECK(mmk_lock_end_repair(&storm->lock, true) == 0);
}

static void work(void *with)
{
    int number = (int)((atomic_int *)with - storm->doing);
    alarm(0);
    uint64_t seed = (uint64_t)getpid() * 2654435761u;
    for (;;) {
        int error = mmk_lock_acquire(&storm->lock, &forever);
        if (error == -EOWNERDEAD) {
            repair(number);
            continue;
        }
        CHECK(error == 0);
        atomic_store(&storm->doing[number], INSIDE);
        be_inside(&seed);
        atomic_store(&storm->doing[number], OUTSIDE);
        CHECK(mmk_lock_release(&storm->lock) == 0);
        atomic_fetch_add(&storm->rounds, 1);
    }
}

static pid_t start_worker(int number)
{
    atomic_store(&storm->doing[number], OUTSIDE);
    return start(work, &storm->doing[number]);
}

TEST(a_storm_of_deaths)
{
    storm = shared_zeros(sizeof *storm);
    CHECK(mmk_lock_create(&storm->lock, MMK_LOCK) == 0);
    pid_t workers[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        workers[i] = start_worker(i);
    uint64_t seed = mmk_now(), end = end_of_storm();
    unsigned deaths = 0, deaths_inside = 0;
    for (; deaths < DEATHS || mmk_now() < end; deaths++) {
        int victim = (int)(random_number(&seed) % WORKERS);
        nanosleep(&(struct timespec){.tv_nsec = random_number(&seed) % (2 * MILLISECOND)}, NULL);
        unsigned long repairs = atomic_load(&storm->repairs), rounds;
        killed(workers[victim]);
        int was_doing = atomic_load(&storm->doing[victim]);
        if (was_doing == INSIDE) {
            deaths_inside++;
            /* The others must be told, and one repairs. */
            WAIT_UNTIL(atomic_load(&storm->repairs) > repairs);
        }
        rounds = atomic_load(&storm->rounds);
        WAIT_UNTIL(atomic_load(&storm->rounds) > rounds);
        workers[victim] = start_worker(victim);
    }
    for (int i = 0; i < WORKERS; i++)
        killed(workers[i]);
    printf("  %u deaths, %u of them inside, %lu repairs, %lu rounds\n", deaths, deaths_inside,
           atomic_load(&storm->repairs), atomic_load(&storm->rounds));
    CHECK(deaths_inside > 0);
    int last = mmk_lock_try(&storm->lock);
    CHECK(last == 0 || last == -EOWNERDEAD);
}

int main(void)
{
    RUN(a_storm_of_deaths);
    return 0;
}
