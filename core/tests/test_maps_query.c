#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <mmkit/maps_query.h>

#include "check.h"

TEST(a_query_tells_the_area_at_an_address)
{
    size_t page = mmk_page_size();
    char *memory = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && munmap(memory + 2 * page, page) == 0 && munmap(memory, page) == 0);
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    mmk_area area;
    char path[MMK_MAPS_PATH_MAX];
    size_t length;
    unsigned facts;
    int error = mmk_maps_query(fd, (uintptr_t)memory + page, MMK_QUERY_HOLDING, &area, path, &length, &facts);
    if (error == -ENOTTY) {
        printf("  (not on this kernel: PROCMAP_QUERY came with Linux 6.11)\n");
        CHECK(close(fd) == 0);
        return;
    }
    CHECK(error == 0 && area.start == (uintptr_t)memory + page && area.end == area.start + page);
    CHECK(area.perms == (MMK_AREA_READ | MMK_AREA_WRITE | MMK_AREA_SHARED));
    CHECK(length == strlen("/dev/zero") && memcmp(path, "/dev/zero", length) == 0 && facts == MMK_PATH_DELETED);
    CHECK(mmk_maps_query(fd, 1, MMK_QUERY_HOLDING, &area, path, &length, &facts) == -ENOENT);
    CHECK(close(fd) == 0 && munmap(memory + page, page) == 0);
}

static mmk_own_map own;

/* Is an address mapped, as the kept map tells? */
static int is_mapped_here(const void *address)
{
    if (mmk_own_map_check(&own))
        CHECK(mmk_own_map_open(&own) == 0);
    CHECK(mmk_own_map_check(&own) == 0);
    mmk_area area;
    char path[MMK_MAPS_PATH_MAX];
    size_t length;
    unsigned facts;
    int error = mmk_maps_query(own.fd, (uintptr_t)address, MMK_QUERY_HOLDING, &area, path, &length, &facts);
    CHECK(error == 0 || error == -ENOENT || error == -ENOTTY);
    return error != -ENOENT;
}

static int exit_status(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

TEST(a_child_asks_of_its_own_memory_however_it_was_forked)
{
    size_t page = mmk_page_size();
    char *memory = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && is_mapped_here(memory));
    int fd = own.fd;
    for (int way = 0; way < 2; way++) {
        /* The second way runs no handlers of libc's. */
        pid_t child = way == 0 ? fork() : (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        if (child == 0) {
            int was_told = mmk_own_map_check(&own) == -MMK_ECLOSED;
            munmap(memory, page);
            /* The parent's descriptor is closed, so its number is free for the child's own. */
            _exit(was_told && !is_mapped_here(memory) && own.fd == fd ? 0 : 1);
        }
        CHECK(exit_status(child) == 0);
    }
    CHECK(is_mapped_here(memory) && munmap(memory, page) == 0);
}

TEST(a_descriptor_that_others_closed_and_used_is_left_to_them)
{
    char *memory = mmap(NULL, mmk_page_size(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && is_mapped_here(memory));
    int fd = own.fd;
    CHECK(close(fd) == 0 && mmk_own_map_check(&own) == -MMK_ECLOSED && is_mapped_here(memory));
    /* Somebody else's map is the worst that can be there now. */
    pid_t child = fork();
    if (child == 0)
        _exit(pause());
    char name[64];
    snprintf(name, sizeof name, "/proc/%d/maps", child);
    fd = own.fd;
    CHECK(close(fd) == 0 && open(name, O_RDONLY | O_CLOEXEC) == fd && munmap(memory, mmk_page_size()) == 0);
    CHECK(mmk_own_map_check(&own) == -MMK_ECLOSED && !is_mapped_here(memory) && own.fd != fd);
    CHECK(close(fd) == 0 && kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}

TEST(a_child_leaves_the_map_that_the_program_opened_with_the_same_number)
{
    CHECK(is_mapped_here(&own));
    /* Device and inode are the same, too. */
    int fd = own.fd, theirs = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    CHECK(theirs >= 0 && dup2(theirs, fd) == fd && close(theirs) == 0);
    pid_t child = fork();
    if (child == 0)
        _exit(is_mapped_here(&own) && own.fd != fd && fcntl(fd, F_GETFD) >= 0 ? 0 : 1);
    CHECK(exit_status(child) == 0 && close(fd) == 0);
}

static int ready[2], done[2];

static void *tell_my_stack(void *unused)
{
    (void)unused;
    struct {
        pid_t thread;
        uintptr_t address;
    } here = {(pid_t)syscall(SYS_gettid), (uintptr_t)__builtin_frame_address(0)};
    CHECK(write(ready[1], &here, sizeof here) == sizeof here);
    char byte;
    CHECK(read(done[0], &byte, 1) == 1);
    return NULL;
}

TEST(a_thread_has_an_address_in_its_stack)
{
    pthread_t thread;
    struct {
        pid_t thread;
        uintptr_t address;
    } there;
    CHECK(pipe(ready) == 0 && pipe(done) == 0 && pthread_create(&thread, NULL, tell_my_stack, NULL) == 0);
    CHECK(!mmk_is_single_threaded());
    CHECK(read(ready[0], &there, sizeof there) == sizeof there);
    uint64_t address;
    CHECK(mmk_thread_stack_address(there.thread, &address) == 0);
    /* Above every frame of the thread, within the 8 MiB that it has. */
    CHECK(address == 0 || (address > there.address && address - there.address < 8 << 20));
    CHECK(write(done[1], "", 1) == 1 && pthread_join(thread, NULL) == 0);
    CHECK(mmk_thread_stack_address(0x7ffffffe, &address) == -ESRCH);
}

int main(void)
{
    RUN(a_query_tells_the_area_at_an_address);
    RUN(a_child_asks_of_its_own_memory_however_it_was_forked);
    RUN(a_descriptor_that_others_closed_and_used_is_left_to_them);
    RUN(a_child_leaves_the_map_that_the_program_opened_with_the_same_number);
    RUN(a_thread_has_an_address_in_its_stack);
    return 0;
}
