/* Forking where others' fork handlers allocate, registered before and after anybody called malloc; and thread-local
 * memory of libraries, dlopen, dlerror, which allocate by themselves. A program for LD_PRELOAD. */
#include <dlfcn.h>
#include <sched.h>

#include "support.h"

extern volatile int malloc_early_is_quiet;
int malloc_early_is_linked(void);

static _Thread_local char large_thread_local[10000];
static volatile int over;

static void *allocate_all_the_time(void *unused)
{
    /* Large ones, for which the heap asks the kernel with its lock held. */
    while (!over) {
        free(malloc(1000));
        free(malloc(10 << 20));
    }
    large_thread_local[5] = 1;
    return unused;
}

static void fork_and_allocate(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(30);
        free(malloc(5000));
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

TEST(fork_handlers_of_others_may_allocate)
{
    fork_and_allocate();
    CHECK(malloc_early_is_linked());
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, allocate_all_the_time, NULL) == 0);
    for (int i = 0; i < 50; i++)
        fork_and_allocate();
    over = 1;
    CHECK(pthread_join(thread, NULL) == 0);
}

enum { LARGE = 20 << 20 };
static sem_t heap_is_locked;
static atomic_bool is_forking;

/* In which system call is the main thread? -1: in none. */
static long call_of_main_thread(void)
{
    char path[64], text[64] = {0};
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", (int)getpid());
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && read(fd, text, sizeof text - 1) >= 0);
    close(fd);
    return text[0] == 'r' ? -1 : atol(text);
}

/* The mapping of a large block, for which the heap is locked, lasts until who forks waits for a lock. */
static int let_main_thread_wait(const struct seccomp_data *call)
{
    if (call->args[1] < LARGE)
        return 0;
    atomic_store(&watched.armed, false);
    CHECK(sem_post(&heap_is_locked) == 0);
    while (!atomic_load(&is_forking) || call_of_main_thread() != SYS_futex)
        sched_yield();
    return 0;
}

static void *allocate_slowly(void *unused)
{
    static const long mapping[4] = {SYS_mmap, SYS_mmap, SYS_mmap, SYS_mmap};
    watch_calls(let_main_thread_wait, mapping);
    atomic_store(&watched.armed, true);
    free(malloc(LARGE));
    return unused;
}

static void fork_while_the_heap_is_locked(void)
{
    pthread_t thread;
    malloc_early_is_quiet = 1;
    CHECK(sem_init(&heap_is_locked, 0, 0) == 0);
    CHECK(pthread_create(&thread, NULL, allocate_slowly, NULL) == 0);
    while (sem_wait(&heap_is_locked) < 0)
        ;
    atomic_store(&is_forking, true);
    fork_and_allocate();
    CHECK(pthread_join(thread, NULL) == 0);
}

TEST(who_forks_takes_the_heaps_lock_before_those_that_it_takes_itself)
{
    in_child(fork_while_the_heap_is_locked);
}

TEST(the_loader_allocates_through_it)
{
    for (int i = 0; i < 20; i++) {
        void *math = dlopen("libm.so.6", RTLD_NOW);
        CHECK(math && dlsym(math, "cos") && !dlsym(math, "no_such_name") && dlerror());
        dlclose(math);
        CHECK(!dlopen("no_such_library.so", RTLD_NOW) && dlerror());
    }
}

int main(void)
{
    RUN(fork_handlers_of_others_may_allocate);
    RUN(who_forks_takes_the_heaps_lock_before_those_that_it_takes_itself);
    RUN(the_loader_allocates_through_it);
    return 0;
}
