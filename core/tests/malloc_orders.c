/* Forking where others' fork handlers allocate, registered before and after anybody called malloc; and thread-local
 * memory of libraries, dlopen, dlerror, which allocate by themselves. A program for LD_PRELOAD. */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

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
    for (int i = 0; i < 300; i++)
        fork_and_allocate();
    over = 1;
    CHECK(pthread_join(thread, NULL) == 0);
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
    RUN(the_loader_allocates_through_it);
    return 0;
}
