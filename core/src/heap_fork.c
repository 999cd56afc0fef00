/* Fork: a child must not inherit a heap that another thread was half-way through changing. */
#include <pthread.h>

#include "heap_internal.h"
#include "registry_internal.h"

/* Over the list. Taken before any heap's lock; and heaps before regions, since a heap grows with its lock held. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static mmk_heap *heaps;

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
    for (mmk_heap *heap = heaps; heap; heap = heap->next)
        pthread_mutex_lock(&heap->lock);
}

static void after_fork_in_parent(void)
{
    for (mmk_heap *heap = heaps; heap; heap = heap->next)
        pthread_mutex_unlock(&heap->lock);
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    for (mmk_heap *heap = heaps; heap; heap = heap->next)
        watch_forked(heap);
    after_fork_in_parent();
}

/* Handlers run before a fork in the reverse of the order in which they were registered: later than the registry, so
 * that heaps are locked before regions. A heap that is malloc is opened before anything else at load. */
static void handle_fork(void)
{
    registry_handle_fork();
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

void fork_watch(mmk_heap *heap)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, handle_fork);
    pthread_mutex_lock(&lock);
    heap->previous = NULL;
    heap->next = heaps;
    if (heaps)
        heaps->previous = heap;
    heaps = heap;
    pthread_mutex_unlock(&lock);
}

void fork_forget(mmk_heap *heap)
{
    pthread_mutex_lock(&lock);
    if (heap->previous)
        heap->previous->next = heap->next;
    else
        heaps = heap->next;
    if (heap->next)
        heap->next->previous = heap->previous;
    pthread_mutex_unlock(&lock);
}

bool fork_knows_neighbour(const mmk_heap *heap)
{
    pthread_mutex_lock(&lock);
    const mmk_heap *other = heaps;
    while (other && (other == heap || other->region != heap->region))
        other = other->next;
    pthread_mutex_unlock(&lock);
    return other != NULL;
}
