/* A library whose constructor runs before the program's, and that allocates in the handlers of fork: the allocator's
 * own must come behind them, whenever it was first called. Linked into malloc_orders. */
#include <pthread.h>
#include <stdlib.h>

/* Set by who forks and wants to see the allocator's handlers alone. */
volatile int malloc_early_is_quiet;

static void *volatile kept;

static void allocate(void)
{
    if (malloc_early_is_quiet)
        return;
    free(kept);
    kept = malloc(100);
}

__attribute__((constructor)) static void handle_fork_first(void)
{
    pthread_atfork(allocate, allocate, allocate);
    /* More than the C library has room for without malloc. */
    for (int i = 0; i < 100; i++)
        pthread_atfork(allocate, NULL, NULL);
}

int malloc_early_is_linked(void);
int malloc_early_is_linked(void)
{
    return kept != NULL;
}
