#include <mmkit/protect.h>
#include <mmkit/residency.h>
#include <mmkit/storage.h>

#include "support.h"

TEST(a_flush_writes_the_changed_pages)
{
    mmk_region region;
    char byte;
    int fd = numbered_file(pages(3));
    map(&region, file(fd, pages(3), MAP_SHARED));
    region.base[pages(1)] = 'x';
    CHECK(mmk_region_flush(&region, pages(1), pages(1), MS_SYNC) == 0);
    CHECK(mmk_region_flush(&region, 0, pages(3), MS_ASYNC) == 0);
    CHECK(mmk_region_flush(&region, 0, 0, MS_SYNC) == 0);
    CHECK(pread(fd, &byte, 1, (off_t)pages(1)) == 1 && byte == 'x');
    CHECK(mmk_region_flush(&region, 1, pages(1), MS_SYNC) == -EINVAL);
    CHECK(mmk_region_flush(&region, 0, pages(4), MS_SYNC) == -ERANGE);
    CHECK(mmk_region_flush(&region, 0, pages(1), MS_SYNC | MS_ASYNC) == -EINVAL);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(a_flush_says_that_the_file_has_shrunk_below_the_range)
{
    mmk_region region;
    int fd = numbered_file(pages(4));
    mmk_request request = file(fd, pages(3), MAP_SHARED);
    request.may_shrink = true;
    request.file_offset = pages(1);
    map(&region, request);
    CHECK(mmk_region_flush(&region, 0, pages(3), MS_SYNC) == 0);
    CHECK(ftruncate(fd, (off_t)pages(4) - 1) == 0);
    CHECK(mmk_region_flush(&region, 0, pages(3), MS_SYNC) == -MMK_ESHRUNK);
    CHECK(mmk_region_flush(&region, 0, pages(2), MS_SYNC) == 0);
    CHECK(mmk_region_flush(&region, 0, pages(3), MS_ASYNC) == 0);
    CHECK(ftruncate(fd, (off_t)pages(2)) == 0);
    CHECK(mmk_region_flush(&region, 0, pages(1), MS_SYNC) == 0);
    CHECK(mmk_region_flush(&region, pages(1), pages(1), MS_SYNC) == -MMK_ESHRUNK);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(a_file_need_not_fill_the_last_page_to_be_stored)
{
    mmk_region region;
    int fd = numbered_file(pages(1) + 100);
    mmk_request request = file(fd, pages(1) + 100, MAP_SHARED);
    request.may_shrink = true;
    map(&region, request);
    CHECK(mmk_region_flush(&region, 0, pages(2), MS_SYNC) == 0);
    CHECK(ftruncate(fd, (off_t)pages(1) + 99) == 0);
    CHECK(mmk_region_flush(&region, 0, pages(2), MS_SYNC) == -MMK_ESHRUNK);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(a_flush_over_locked_pages_or_a_hole_says_so)
{
    mmk_region region;
    int fd = numbered_file(pages(4));
    map(&region, file(fd, pages(4), MAP_SHARED));
    if (!UNDER_SANITIZER) {
        CHECK(mmk_region_lock(&region, pages(1), pages(1)) == 0);
        CHECK(mmk_region_flush(&region, 0, pages(4), MS_SYNC | MS_INVALIDATE) == -EBUSY);
        CHECK(mmk_region_unlock(&region, pages(1), pages(1)) == 0);
    }
    CHECK(mmk_region_flush(&region, 0, pages(4), MS_SYNC | MS_INVALIDATE) == 0);
    CHECK(munmap(region.base + pages(2), pages(1)) == 0);
    CHECK(mmk_region_flush(&region, 0, pages(4), MS_SYNC) == -ENOMEM);
    mmk_region_dispose(&region);
    close(fd);
}

/* Punch every range with odd edges: zeros inside, nothing changed outside. */
static void punch_everywhere(mmk_region *region)
{
    static const size_t edges[] = {0, 1, 4095, 4096, 4097, 8192, 8193, 12287, 12288};
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        for (size_t j = i; j < sizeof edges / sizeof *edges; j++) {
            size_t offset = edges[i], length = edges[j] - edges[i];
            memset(region->base, 'x', pages(3));
            CHECK(mmk_region_punch(region, offset, length, false, &fault) == 0);
            CHECK(all_bytes_are(region->base, offset, 'x'));
            CHECK(all_bytes_are(region->base + offset, length, 0));
            CHECK(all_bytes_are(region->base + offset + length, pages(3) - offset - length, 'x'));
        }
}

TEST(a_punched_range_reads_zeros_and_nothing_else_changes)
{
    if (mmk_page_size() != 4096)
        SKIP("written for pages of 4096 bytes");
    mmk_region region;
    map_pages(&region, 3);
    punch_everywhere(&region);
    mmk_region_dispose(&region);

    map(&region, shared_anonymous(pages(3)));
    punch_everywhere(&region);
    mmk_region_dispose(&region);

    int fd = memory_file(pages(5));
    mmk_request request = file(fd, pages(3), MAP_SHARED);
    request.file_offset = pages(1);
    CHECK(pwrite(fd, "a", 1, (off_t)pages(1) - 1) == 1 && pwrite(fd, "b", 1, (off_t)pages(4)) == 1);
    map(&region, request);
    punch_everywhere(&region);
    CHECK(mmk_region_punch(&region, 0, pages(3), false, &fault) == 0);
    char before, after;
    CHECK(pread(fd, &before, 1, (off_t)pages(1) - 1) == 1 && before == 'a');
    CHECK(pread(fd, &after, 1, (off_t)pages(4)) == 1 && after == 'b' && size_of(fd) == pages(5));
    mmk_region_dispose(&region);
    close(fd);

    fd = numbered_file(pages(3));
    map(&region, file(fd, pages(3), MAP_SHARED));
    punch_everywhere(&region);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(punching_gives_the_storage_back)
{
    mmk_region region;
    struct stat status;
    int fd = memory_file(pages(8));
    map(&region, file(fd, pages(8), MAP_SHARED));
    number_pages(&region);
    CHECK(fstat(fd, &status) == 0 && (size_t)status.st_blocks * 512 == pages(8));
    CHECK(mmk_region_punch(&region, 1, pages(7), false, &fault) == 0);
    CHECK(fstat(fd, &status) == 0 && (size_t)status.st_blocks * 512 == pages(2));
    mmk_region_dispose(&region);
    close(fd);
}

TEST(what_is_looked_at_is_not_punched_but_by_force)
{
    mmk_region region;
    mmk_view view;
    map_pages(&region, 3);
    number_pages(&region);
    CHECK(mmk_view_open(&region, &view, pages(1) + 5, 5, false) == 0);
    CHECK(mmk_region_punch(&region, 0, pages(3), false, &fault) == -MMK_EPINNED);
    CHECK(mmk_region_punch(&region, pages(1) + 9, 1, false, &fault) == -MMK_EPINNED);
    CHECK(pages_are_numbered(region.base, 3));
    CHECK(mmk_region_punch(&region, pages(1) + 10, 1, false, &fault) == 0);
    CHECK(mmk_region_punch(&region, 0, pages(3), true, &fault) == 0);
    CHECK(all_bytes_are(region.base, pages(3), 0));
    mmk_view_close(&region, &view);
    CHECK(mmk_region_enter(&region) == 0);
    CHECK(mmk_region_punch(&region, 0, 1, false, &fault) == -MMK_EPINNED);
    mmk_region_leave(&region);
    mmk_region_dispose(&region);
}

TEST(what_cannot_be_punched_is_refused)
{
    mmk_region region;
    int fd = numbered_file(pages(2));
    map(&region, file(fd, pages(2), MAP_PRIVATE));
    CHECK(mmk_region_punch(&region, 0, pages(1), false, &fault) == -MMK_EUNSUPPORTED);
    CHECK(pages_are_numbered(region.base, 2));
    mmk_region_dispose(&region);
    close(fd);

    fd = memory_file(pages(2));
    map(&region, file(fd, pages(2), MAP_SHARED));
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0);
    CHECK(mmk_region_punch(&region, 0, pages(1), false, &fault) == -EPERM);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(an_edge_that_is_not_writable_is_refused_before_anything_is_given_up)
{
    mmk_region region;
    map_pages(&region, 4);
    number_pages(&region);
    CHECK(mmk_region_protect(&region, pages(3), pages(1), PROT_READ, false) == 0);
    CHECK(mmk_region_punch(&region, pages(3) + 1, 1, false, &fault) == -EFAULT);
    CHECK(mmk_region_punch(&region, pages(1), pages(2) + 1, false, &fault) == -EFAULT);
    CHECK(pages_are_numbered(region.base, 4));
    CHECK(mmk_region_punch(&region, pages(2), pages(2), false, &fault) == 0);
    mmk_region_dispose(&region);
}

/* Whoever checked the range himself did so without the lock: another thread may have shrunk the region since. */
TEST(a_range_beyond_the_region_is_refused)
{
    mmk_region region;
    int fd = numbered_file(pages(3));
    map(&region, file(fd, pages(2), MAP_SHARED));
    CHECK(mmk_region_punch(&region, pages(1), pages(2), false, &fault) == -ERANGE);
    CHECK(mmk_region_punch(&region, pages(3), 0, false, &fault) == -ERANGE);
    CHECK(mmk_region_punch(&region, 1, SIZE_MAX, true, &fault) == -ERANGE);
    CHECK(pages_are_numbered(region.base, 2));
    mmk_region_dispose(&region);
    close(fd);
}

static void punch_into_a_guard(void)
{
    mmk_region region;
    map_pages(&region, 3);
    number_pages(&region);
    CHECK(mmk_region_guard(&region, pages(1), pages(1), false) == 0);
    CHECK(mmk_region_punch(&region, pages(1) + 10, 20, false, &fault) == -EFAULT);
    CHECK(mmk_region_unguard(&region, pages(1), pages(1)) == 0);
    CHECK(region.base[0] == 1 && region.base[pages(2)] == 3);
    mmk_region_dispose(&region);
}

static void punch_into_an_old_guard(void)
{
    refuse_kernel_guards();
    punch_into_a_guard();
}

TEST(punching_into_a_guard_is_refused_and_the_process_lives)
{
    in_child(punch_into_a_guard);
    in_child(punch_into_an_old_guard);
}

TEST(the_size_of_the_file_can_be_asked_for_until_the_region_is_closed)
{
    mmk_region region, anonymous_one;
    uint64_t size = 0;
    int fd = numbered_file(pages(5) + 7);
    map(&region, file(fd, pages(2), MAP_SHARED));
    CHECK(mmk_region_file_size(&region, &size) == 0 && size == pages(5) + 7);
    CHECK(mmk_region_close(&region) == 0);
    CHECK(mmk_region_file_size(&region, &size) == -MMK_ECLOSED);
    mmk_region_dispose(&region);
    close(fd);
    map_pages(&anonymous_one, 1);
    CHECK(mmk_region_file_size(&anonymous_one, &size) == -EBADF);
    mmk_region_dispose(&anonymous_one);
}

TEST(seals_go_to_the_file_and_what_cannot_shrink_is_not_looked_at_any_more)
{
    mmk_region region;
    int fd = memory_file(pages(2));
    mmk_request request = file(fd, pages(2), MAP_SHARED);
    request.may_shrink = true;
    map(&region, request);
    CHECK(mmk_region_add_seals(&region, F_SEAL_WRITE) == -EBUSY);
    CHECK(mmk_region_add_seals(&region, F_SEAL_GROW) == 0 && region.may_shrink);
    CHECK(mmk_region_add_seals(&region, F_SEAL_SHRINK | F_SEAL_SEAL) == 0 && !region.may_shrink);
    CHECK(fcntl(fd, F_GET_SEALS) == (F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL));
    CHECK(mmk_region_add_seals(&region, F_SEAL_GROW) == -EPERM);
    CHECK(mmk_region_close(&region) == 0);
    CHECK(mmk_region_add_seals(&region, F_SEAL_GROW) == -MMK_ECLOSED);
    mmk_region_dispose(&region);
    close(fd);
}

int main(void)
{
    RUN(a_flush_writes_the_changed_pages);
    RUN(a_flush_says_that_the_file_has_shrunk_below_the_range);
    RUN(a_file_need_not_fill_the_last_page_to_be_stored);
    RUN(a_flush_over_locked_pages_or_a_hole_says_so);
    RUN(a_punched_range_reads_zeros_and_nothing_else_changes);
    RUN(punching_gives_the_storage_back);
    RUN(what_is_looked_at_is_not_punched_but_by_force);
    RUN(what_cannot_be_punched_is_refused);
    RUN(an_edge_that_is_not_writable_is_refused_before_anything_is_given_up);
    RUN(a_range_beyond_the_region_is_refused);
    RUN(punching_into_a_guard_is_refused_and_the_process_lives);
    RUN(the_size_of_the_file_can_be_asked_for_until_the_region_is_closed);
    RUN(seals_go_to_the_file_and_what_cannot_shrink_is_not_looked_at_any_more);
    return 0;
}
