#include <mmkit/access.h>

#include "support.h"
#include "tmpfs.h"

TEST(a_bad_buffer_of_the_caller_is_a_fault_and_the_region_is_free_again)
{
    mmk_region region;
    char *start = mmap(NULL, pages(4), RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *bad = start + pages(2);
    CHECK(start != MAP_FAILED && mprotect(bad, pages(1), PROT_NONE) == 0);
    map_pages(&region, 1);
    CHECK(mmk_access_load(&region, 0, bad, 10, &fault) == -EFAULT);
    CHECK(is_fault((uintptr_t)bad, MMK_FAULT_PROTECTION, true));
    CHECK(mmk_access_store(&region, 0, bad - 5, 10, &fault) == -EFAULT);
    CHECK(is_fault((uintptr_t)bad, MMK_FAULT_PROTECTION, false));
    CHECK(mmk_access_find(&region, 0, pages(1), bad - 1, 2, &fault) == -EFAULT);
    CHECK(is_fault((uintptr_t)bad, MMK_FAULT_PROTECTION, false));
    CHECK(mmk_access_rfind(&region, 0, pages(1), bad - 3000, 3001, &fault) == -EFAULT);
    CHECK(is_fault((uintptr_t)bad, MMK_FAULT_PROTECTION, false));
    CHECK(atomic_load(&region.state) == MMK_REGION_LIVE && mmk_region_close(&region) == 0);
    mmk_region_dispose(&region);
    CHECK(munmap(start, pages(4)) == 0);
}

static void check_region_fault(mmk_region *region, size_t offset, mmk_fault_reason reason)
{
    char byte = 'x';
    uintptr_t address = (uintptr_t)region->base + offset;
    CHECK(mmk_access_load(region, offset, &byte, 1, &fault) == -EFAULT && is_fault(address, reason, false));
    CHECK(mmk_access_store(region, offset, &byte, 1, &fault) == -EFAULT && is_fault(address, reason, true));
    CHECK(mmk_access_find(region, offset, 1, &byte, 1, &fault) == -EFAULT && is_fault(address, reason, false));
    CHECK(mmk_access_rfind(region, offset, 1, &byte, 1, &fault) == -EFAULT && is_fault(address, reason, false));
    CHECK(atomic_load(&region->state) == MMK_REGION_LIVE);
}

static void check_truncated(int flags)
{
    mmk_region region;
    char byte, bytes[2];
    int fd = numbered_file(pages(3));
    mmk_request request = file(fd, pages(3), flags);
    request.may_shrink = true;
    map(&region, request);
    CHECK(ftruncate(fd, (off_t)pages(1) + 10) == 0);
    /* The kernel tells whole pages only. */
    CHECK(mmk_access_load(&region, pages(1) + 9, bytes, 2, &fault) == 0 && bytes[0] == 2 && bytes[1] == 0);
    check_region_fault(&region, pages(2), MMK_FAULT_BEYOND_END);
    check_region_fault(&region, pages(3) - 1, MMK_FAULT_BEYOND_END);
    CHECK(mmk_access_load(&region, pages(2) - 1, bytes, 2, &fault) == -EFAULT);
    CHECK(is_fault((uintptr_t)region.base + pages(2), MMK_FAULT_BEYOND_END, false));
    CHECK(ftruncate(fd, (off_t)pages(3)) == 0);
    CHECK(mmk_access_load(&region, pages(2), &byte, 1, &fault) == 0 && byte == 0);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(a_truncated_file_is_a_fault_beyond_its_end)
{
    check_truncated(MAP_SHARED);
    check_truncated(MAP_PRIVATE);
}

static void fill_a_tmpfs(void)
{
    enum { ROOM = 16 };
    mmk_region region;
    char byte = 'x', options[64];
    snprintf(options, sizeof options, "size=%zu", pages(ROOM));
    if (!mount_tmpfs(options))
        SKIP("may not mount a tmpfs");
    int fd = numbered_file(0);
    CHECK(ftruncate(fd, (off_t)pages(2 * ROOM)) == 0);
    map(&region, file(fd, pages(2 * ROOM), MAP_SHARED));
    for (size_t page = 0; page < ROOM; page++)
        CHECK(mmk_access_store(&region, pages(page), &byte, 1, &fault) == 0);
    check_region_fault(&region, pages(ROOM), MMK_FAULT_NO_MEMORY);
    for (size_t page = 0; page < ROOM; page++)
        CHECK(mmk_access_load(&region, pages(page), &byte, 1, &fault) == 0 && byte == 'x');
    mmk_region_dispose(&region);
}

TEST(a_full_tmpfs_is_a_fault_for_want_of_memory)
{
    in_child(fill_a_tmpfs);
}

static size_t huge_page_setting(const char *name)
{
    char path[128], text[32] = "";
    snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-2048kB/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    CHECK(read(fd, text, sizeof text - 1) > 0);
    close(fd);
    return strtoul(text, NULL, 10);
}

TEST(an_exhausted_pool_of_huge_pages_is_a_fault_for_want_of_memory)
{
    enum { HUGE = 2 << 20 };
    mmk_region region;
    size_t page = 0, count = huge_page_setting("nr_hugepages") + huge_page_setting("nr_overcommit_hugepages") + 1;
    if (huge_page_setting("free_hugepages") == 0)
        SKIP("no free huge pages of 2 MiB: sysctl vm.nr_hugepages");
    mmk_request request = anonymous(count * HUGE, RW);
    request.granule = HUGE;
    request.flags |= MAP_NORESERVE | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT;
    map(&region, request);
    while (mmk_access_store(&region, page * HUGE, "x", 1, &fault) == 0)
        CHECK(++page < count);
    CHECK(page > 0 && is_fault((uintptr_t)region.base + page * HUGE, MMK_FAULT_NO_MEMORY, true));
    char byte;
    CHECK(mmk_access_load(&region, (page - 1) * HUGE, &byte, 1, &fault) == 0 && byte == 'x');
    CHECK(mmk_access_store(&region, page * HUGE + 5000, "x", 1, &fault) == -EFAULT);
    CHECK(is_fault((uintptr_t)region.base + page * HUGE + 5000, MMK_FAULT_NO_MEMORY, true));
    mmk_region_dispose(&region);
}

static void truncate_huge_pages(void)
{
    enum { HUGE = 2 << 20 };
    mmk_region region;
    char byte = 'x';
    int held[2];
    if (!mount_tmpfs("size=16m,huge=always"))
        SKIP("may not mount a tmpfs with huge pages");
    int fd = numbered_file(0);
    CHECK(ftruncate(fd, 2 * HUGE) == 0);
    mmk_request request = file(fd, 2 * HUGE, MAP_SHARED);
    request.may_shrink = true;
    map(&region, request);
    CHECK(mmk_access_store(&region, 0, &byte, 1, &fault) == 0);
    CHECK(mmk_access_store(&region, HUGE, &byte, 1, &fault) == 0);
    /* While somebody holds part of a huge page, here a pipe, truncating cannot split it. */
    CHECK(pipe(held) == 0 && splice(fd, &(off_t){0}, held[1], NULL, 1, 0) == 1);
    CHECK(ftruncate(fd, 10) == 0);
    if (mmk_guarded_copy(&byte, region.base + pages(1), 1, &fault) != 0)
        SKIP("the kernel gave no huge page, or has split it");
    CHECK(mmk_access_load(&region, 9, &byte, 1, &fault) == 0);
    check_region_fault(&region, 10, MMK_FAULT_BEYOND_END);
    check_region_fault(&region, pages(1), MMK_FAULT_BEYOND_END);
    check_region_fault(&region, HUGE, MMK_FAULT_BEYOND_END);
    char bytes[20];
    CHECK(mmk_access_load(&region, 5, bytes, 20, &fault) == -EFAULT);
    CHECK(is_fault((uintptr_t)region.base + 10, MMK_FAULT_BEYOND_END, false));
    mmk_region_dispose(&region);
}

TEST(behind_the_end_within_a_huge_page_is_a_fault_although_the_kernel_gives_no_signal)
{
    in_child(truncate_huge_pages);
}

int main(void)
{
    RUN(a_bad_buffer_of_the_caller_is_a_fault_and_the_region_is_free_again);
    RUN(a_truncated_file_is_a_fault_beyond_its_end);
    RUN(a_full_tmpfs_is_a_fault_for_want_of_memory);
    RUN(an_exhausted_pool_of_huge_pages_is_a_fault_for_want_of_memory);
    RUN(behind_the_end_within_a_huge_page_is_a_fault_although_the_kernel_gives_no_signal);
    return 0;
}
