/* What each call of the malloc family promises: a program for LD_PRELOAD, which knows nothing of mmkit. */
#include <dlfcn.h>
#include <malloc.h>
#include <stdint.h>

#include "support.h"

/* Compilers know malloc, and leave out what cannot be seen of it. */
static void *(*volatile c_malloc)(size_t) = malloc;
static void *(*volatile c_calloc)(size_t, size_t) = calloc;
static void *(*volatile c_realloc)(void *, size_t) = realloc;
static void *(*volatile c_reallocarray)(void *, size_t, size_t) = reallocarray;
static void (*volatile c_free)(void *) = free;

static const volatile size_t huge = (size_t)PTRDIFF_MAX + 1;

TEST(the_malloc_of_this_process_is_the_one_that_was_preloaded)
{
    Dl_info whose;
    CHECK(dladdr(dlsym(RTLD_DEFAULT, "malloc"), &whose) && strstr(whose.dli_fname, "libmmkit_preload"));
}

TEST(blocks_are_aligned_and_hold_what_was_asked)
{
    for (size_t size = 0; size < 5000; size += 7) {
        char *bytes = c_malloc(size);
        CHECK(bytes && (uintptr_t)bytes % 16 == 0 && malloc_usable_size(bytes) >= size);
        memset(bytes, 0x5a, malloc_usable_size(bytes));
        c_free(bytes);
    }
    CHECK(malloc_usable_size(NULL) == 0);
    c_free(NULL);
}

TEST(a_block_of_no_bytes_is_a_block_of_its_own)
{
    void *one = c_malloc(0), *other = c_malloc(0);
    CHECK(one && other && one != other);
    c_free(one);
    c_free(other);
}

TEST(success_and_free_leave_errno_alone)
{
    errno = 77;
    for (size_t size = 1; size < (64u << 20); size *= 3) {
        void *bytes = c_realloc(c_malloc(size), size * 2), *aligned;
        CHECK(posix_memalign(&aligned, 64, size) == 0);
        c_free(bytes);
        c_free(aligned);
        CHECK(errno == 77);
    }
}

/* In a child: the kernel takes nothing back, which free has nobody to tell of. */
static void free_where_the_kernel_refuses(void)
{
    void *bytes = c_malloc(20u << 20);
    refuse(SYS_munmap, 0, 0, 0, EINVAL);
    refuse(SYS_mmap, 0, 0, 0, ENOMEM);
    refuse(SYS_madvise, 0, 0, 0, EINVAL);
    errno = 77;
    c_free(bytes);
    CHECK(errno == 77);
}

TEST(free_leaves_errno_alone_whatever_happens)
{
    in_child(free_where_the_kernel_refuses);
}

TEST(what_is_too_much_fails_with_enomem_and_changes_nothing)
{
    void *aligned = &aligned;
    char *bytes = strcpy(c_malloc(10), "as it was");
#define FAILS(call)                                                                                                    \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        CHECK((call) == NULL && errno == ENOMEM);                                                                      \
    } while (0)
    FAILS(c_malloc(huge));
    FAILS(c_malloc(SIZE_MAX));
    FAILS(c_malloc((size_t)PTRDIFF_MAX));
    FAILS(c_calloc(SIZE_MAX / 2, 3));
    FAILS(c_calloc(1, huge));
    FAILS(c_calloc((size_t)1 << 33, (size_t)1 << 33));
    FAILS(c_realloc(bytes, huge));
    FAILS(c_reallocarray(bytes, SIZE_MAX / 2, 3));
    FAILS(c_reallocarray(bytes, (size_t)1 << 33, (size_t)1 << 33));
    FAILS(memalign(64, huge));
    FAILS(valloc(huge));
    FAILS(pvalloc(SIZE_MAX));
    errno = 0;
    CHECK(posix_memalign(&aligned, 64, huge) == ENOMEM && aligned == &aligned && errno == 0);
    CHECK(strcmp(bytes, "as it was") == 0);
    c_free(bytes);
}

TEST(realloc_is_malloc_for_null_and_free_for_nothing)
{
    char *bytes = c_realloc(NULL, 20);
    CHECK(bytes);
    errno = 5;
    CHECK(c_realloc(bytes, 0) == NULL && errno == 5);
    bytes = c_reallocarray(NULL, 5, 4);
    CHECK(bytes && c_reallocarray(bytes, 0, 4) == NULL);
}

TEST(realloc_keeps_what_fits)
{
    for (size_t from = 1; from < (40u << 20); from = from * 5 + 1)
        for (size_t to = 1; to < (40u << 20); to = to * 7 + 3) {
            size_t kept = from < to ? from : to;
            unsigned char *bytes = c_malloc(from);
            memset(bytes, 0x11, from);
            bytes[kept - 1] = 0x22;
            bytes = c_realloc(bytes, to);
            CHECK(bytes && bytes[0] == (kept == 1 ? 0x22 : 0x11) && bytes[kept - 1] == 0x22);
            c_free(bytes);
        }
}

TEST(calloc_gives_zeros_where_something_was)
{
    for (int round = 0; round < 3; round++)
        for (size_t size = 1; size < (16u << 20); size = size * 2 + 1) {
            unsigned char *bytes = c_calloc(1, size);
            CHECK(bytes && !bytes[0] && !memcmp(bytes, bytes + 1, size - 1));
            memset(bytes, 0xff, size);
            c_free(bytes);
        }
}

TEST(aligned_blocks_are_aligned)
{
    for (size_t align = 8; align <= (4u << 20); align *= 2)
        for (size_t size = 1; size < 100000; size = size * 9 + 5) {
            void *bytes[4];
            CHECK(posix_memalign(&bytes[0], align, size) == 0);
            CHECK((bytes[1] = memalign(align, size)) && (bytes[2] = aligned_alloc(align, size)));
            CHECK((bytes[3] = memalign(align - align / 4, size)));
            for (int i = 0; i < 4; i++) {
                CHECK((uintptr_t)bytes[i] % align == 0 && (uintptr_t)bytes[i] % 16 == 0);
                memset(bytes[i], i, size);
            }
            bytes[0] = c_realloc(bytes[0], size + 100);
            for (int i = 0; i < 4; i++)
                c_free(bytes[i]);
        }
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *one = valloc(3), *whole = pvalloc(3), *none = pvalloc(0);
    CHECK((uintptr_t)one % page == 0 && (uintptr_t)whole % page == 0 && malloc_usable_size(whole) >= page);
    CHECK(none && malloc_usable_size(none) >= page);
    c_free(one);
    c_free(whole);
    c_free(none);
}

TEST(an_alignment_that_is_none_is_refused)
{
    void *block = &block;
    static const size_t wrong[] = {0, 1, 2, 4, 12, 24, 100};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(posix_memalign(&block, wrong[i], 10) == EINVAL && block == &block);
    volatile size_t three = 3;
    errno = 0;
    CHECK(aligned_alloc(three, 3) == NULL && errno == EINVAL);
    errno = 0;
    CHECK(memalign(SIZE_MAX / 2 + 2, 3) == NULL && errno == EINVAL);
}

/* In a child: with so little address space that malloc fails soon. */
static void use_all_memory(void)
{
    struct rlimit little = {256u << 20, 256u << 20};
    CHECK(setrlimit(RLIMIT_AS, &little) == 0);
    enum { SIZE = 100000 };
    static char *blocks[5000];
    size_t count = 0;
    while (count < 5000 && (blocks[count] = c_malloc(SIZE)))
        memset(blocks[count++], 1, SIZE);
    CHECK(count > 100 && count < 5000 && errno == ENOMEM);
    for (size_t i = 0; i < count; i++)
        c_free(blocks[i]);
    CHECK((blocks[0] = c_malloc(SIZE)) && (blocks[1] = c_realloc(blocks[0], SIZE - 10)));
    c_free(blocks[1]);
}

TEST(a_process_that_ran_out_of_memory_goes_on)
{
    in_child(use_all_memory);
}

static void *free_it(void *bytes)
{
    c_free(bytes);
    return c_malloc(1000);
}

TEST(what_one_thread_allocates_another_frees)
{
    for (int i = 0; i < 200; i++) {
        pthread_t thread;
        void *back;
        CHECK(pthread_create(&thread, NULL, free_it, c_malloc((size_t)i * 100)) == 0);
        CHECK(pthread_join(thread, &back) == 0 && back);
        c_free(back);
    }
}

int main(void)
{
    RUN(the_malloc_of_this_process_is_the_one_that_was_preloaded);
    RUN(blocks_are_aligned_and_hold_what_was_asked);
    RUN(a_block_of_no_bytes_is_a_block_of_its_own);
    RUN(success_and_free_leave_errno_alone);
    RUN(free_leaves_errno_alone_whatever_happens);
    RUN(what_is_too_much_fails_with_enomem_and_changes_nothing);
    RUN(realloc_is_malloc_for_null_and_free_for_nothing);
    RUN(realloc_keeps_what_fits);
    RUN(calloc_gives_zeros_where_something_was);
    RUN(aligned_blocks_are_aligned);
    RUN(an_alignment_that_is_none_is_refused);
    RUN(a_process_that_ran_out_of_memory_goes_on);
    RUN(what_one_thread_allocates_another_frees);
    return 0;
}
