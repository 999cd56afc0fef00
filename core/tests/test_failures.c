#include <mmkit/protect.h>
#include <mmkit/registry.h>
#include <mmkit/residency.h>
#include <mmkit/resize.h>
#include <mmkit/storage.h>

#include "support.h"

/* Each operation is tried again and again, and each time one more of its system calls answers ENOMEM. */
typedef struct operation {
    const char *name;
    void (*prepare)(void);
    int (*act)(void);
    long calls[4]; /* those that fail */
} operation;

static mmk_region region;
static mmk_cover window;
static int fd = -1;
static mmk_range vacated;

static const operation *current;
static int failing, seen;

static int fail_one(const struct seccomp_data *call)
{
    (void)call;
    return ++seen == failing ? ENOMEM : 0;
}

static void prepare_nothing(void)
{
}

static void prepare_plain(void)
{
    mmk_request request = anonymous(pages(8), RW);
    request.guard = pages(1);
    map(&region, request);
    number_pages(&region);
}

static void prepare_reserved(void)
{
    mmk_request request = anonymous(pages(8), RW);
    request.reserve = pages(32);
    request.guard = pages(1);
    map(&region, request);
    number_pages(&region);
}

static void prepare_file(void)
{
    fd = numbered_file(pages(8));
    mmk_request request = file(fd, pages(8), MAP_SHARED);
    request.guard = pages(1);
    map(&region, request);
}

static void prepare_reserved_file(void)
{
    fd = numbered_file(pages(8));
    mmk_request request = file(fd, pages(8), MAP_SHARED);
    request.reserve = pages(32);
    map(&region, request);
}

static void prepare_mixed(void)
{
    prepare_reserved();
    CHECK(mmk_region_protect(&region, pages(2), pages(2), PROT_READ, false) == 0);
    CHECK(mmk_region_lock(&region, pages(5), pages(1)) == 0);
}

static void prepare_covered(void)
{
    prepare_mixed();
    CHECK(mmk_region_cover(&region, &window, pages(1), pages(6), PROT_READ, false) == 0);
}

static void prepare_free_space_behind(void)
{
    map_pages(&region, 64);
    CHECK(mmk_sys_munmap(region.base + pages(8), pages(56)) == 0);
    region.outer.length = region.reserved = pages(8);
    region.asked = pages(8);
    atomic_store(&region.length, pages(8));
    number_pages(&region);
}

static int act_map(void)
{
    mmk_request request = anonymous(pages(8), RW);
    return mmk_region_map(&region, &request);
}

static int act_map_reserved(void)
{
    mmk_request request = anonymous(pages(8), RW);
    request.reserve = pages(1024);
    request.guard = pages(2);
    request.granule = 2 << 20;
    return mmk_region_map(&region, &request);
}

static int act_grow(void)
{
    return mmk_region_resize(&region, pages(12), &vacated);
}

static int act_shrink(void)
{
    return mmk_region_resize(&region, pages(5), &vacated);
}

static int act_protect(void)
{
    return mmk_region_protect(&region, pages(1), pages(6), PROT_READ, false);
}

static int act_cover(void)
{
    return mmk_region_cover(&region, &window, pages(1), pages(5), PROT_NONE, false);
}

static int act_uncover(void)
{
    return mmk_region_uncover(&region, &window, false);
}

static int act_lock(void)
{
    return mmk_region_lock(&region, 0, pages(8));
}

static int act_close(void)
{
    return mmk_region_close(&region);
}

static const operation operations[] = {
    {"map", prepare_nothing, act_map, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_madvise}},
    {"map with reserve and guard",
     prepare_nothing,
     act_map_reserved,
     {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_madvise}},
    {"grow in reserve", prepare_reserved, act_grow, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_ftruncate}},
    {"grow in free space", prepare_free_space_behind, act_grow, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_ftruncate}},
    {"grow by moving", prepare_plain, act_grow, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_ftruncate}},
    {"grow a file by moving", prepare_file, act_grow, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_ftruncate}},
    {"grow a file in reserve", prepare_reserved_file, act_grow, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_ftruncate}},
    {"shrink", prepare_mixed, act_shrink, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_ftruncate}},
    {"protect", prepare_mixed, act_protect, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_madvise}},
    {"protect a file", prepare_reserved_file, act_protect, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_madvise}},
    {"cover", prepare_mixed, act_cover, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_madvise}},
    {"uncover", prepare_covered, act_uncover, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_madvise}},
    {"lock", prepare_mixed, act_lock, {SYS_mlock, SYS_mmap, SYS_mprotect, SYS_madvise}},
    {"close", prepare_mixed, act_close, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_madvise}},
    {"shrink a file", prepare_reserved_file, act_shrink, {SYS_mmap, SYS_mremap, SYS_mprotect, SYS_ftruncate}},
};

static char before[sizeof maps_text];

static void check_nothing_has_changed(const mmk_region *was)
{
    CHECK(maps_are(before));
    if (current->prepare == prepare_nothing) {
        CHECK(mmk_registry_count() == 0 && mmk_region_is_closed(&region));
        return;
    }
    CHECK(mmk_registry_count() == 1 && pages_are_numbered(region.base, 8) && !vacated.length);
    CHECK(region.base == was->base && region.outer.base == was->outer.base && region.asked == was->asked);
    CHECK(region.outer.length == was->outer.length && region.reserved == was->reserved && region.prot == was->prot);
    CHECK(mmk_region_length(&region) == pages(8) && region.protections.count == was->protections.count);
    CHECK(region.locks.count == was->locks.count && atomic_load(&region.state) == MMK_REGION_LIVE);
    CHECK(fd < 0 || size_of(fd) == pages(8));
}

/* Exits with 1 when the operation needs fewer calls than would have to fail. */
static void fail_at(int number)
{
    mmk_region warm_up;
    map_pages(&warm_up, 1); /* the registry's own page, and the C library's buffers */
    mmk_region_dispose(&warm_up);
    current->prepare();
    /* Bookkeeping may ask malloc for memory: that is not what fails here. */
    CHECK(mmk_runs_reserve(&region.protections, 16) == 0 && mmk_runs_reserve(&region.locks, 32) == 0);
    watch_calls(fail_one, current->calls);
    mmk_region was = region;
    strcpy(before, read_maps());

    failing = number;
    atomic_store(&watched.armed, true);
    int error = current->act();
    atomic_store(&watched.armed, false);
    if (seen < failing) {
        CHECK(error == 0);
        _exit(1);
    }
    if (error) {
        CHECK(error == -ENOMEM);
        /* A cover is gone even when the kernel refuses what it says below it: so says protect.h. */
        if (current->act != act_uncover)
            check_nothing_has_changed(&was);
        if (current->prepare == prepare_nothing)
            memset(&region, 0, sizeof region);
        CHECK(current->act() == 0);
    }
    if (current->act != act_close)
        CHECK(mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
    CHECK(mmk_registry_count() == 0);
}

static void fail_each_call(const operation *operation)
{
    current = operation;
    printf("  %s\n", operation->name);
    for (int number = 1;; number++) {
        fflush(NULL);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            alarm(CHILD_SECONDS);
            fail_at(number);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        if (WEXITSTATUS(status) == 1)
            break;
        CHECK(WEXITSTATUS(status) == 0 && number < 100);
    }
}

TEST(whichever_system_call_fails_nothing_has_changed_and_everything_stays_usable)
{
    if (UNDER_SANITIZER)
        SKIP("the sanitizer makes system calls of its own");
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        fail_each_call(&operations[i]);
}

int main(void)
{
    RUN(whichever_system_call_fails_nothing_has_changed_and_everything_stays_usable);
    return 0;
}
