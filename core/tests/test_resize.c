#include <mmkit/access.h>
#include <mmkit/advice.h>
#include <mmkit/protect.h>
#include <mmkit/registry.h>
#include <mmkit/residency.h>
#include <mmkit/resize.h>

#include "support.h"

enum {
    DONTUNMAP = 4, /* MREMAP_DONTUNMAP */
};

static mmk_range resize(mmk_region *region, size_t asked)
{
    mmk_range vacated = {(char *)1, 1};
    CHECK(mmk_region_resize(region, asked, &vacated) == 0);
    CHECK(region->asked == asked && mmk_region_length(region) == mmk_round_up(asked, region->granule));
    return vacated;
}

static void resize_in_place(mmk_region *region, size_t asked)
{
    char *base = region->base;
    CHECK(resize(region, asked).length == 0 && region->base == base);
}

/* Map a page right behind the region, so that it cannot grow there. Returns it. */
static char *block_growth(const mmk_region *region)
{
    char *end = region->outer.base + region->outer.length;
    intptr_t got = mmk_sys_mmap(end, pages(1), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(got == (intptr_t)end || got == -EEXIST);
    return end;
}

static void release(mmk_range vacated)
{
    CHECK(vacated.length && is_held(vacated.base, vacated.length));
    CHECK(mmk_sys_munmap(vacated.base, vacated.length) == 0);
}

TEST(a_region_grows_inside_its_reservation_under_live_views)
{
    mmk_region region;
    mmk_view view;
    mmk_request request = anonymous(pages(2), RW);
    request.reserve = pages(8);
    request.guard = pages(1);
    map(&region, request);
    number_pages(&region);
    mmk_range outer = region.outer;
    CHECK(mmk_view_open(&region, &view, 0, pages(2), true) == 0);
    resize_in_place(&region, pages(8));
    CHECK(pages_are_numbered(region.base, 2) && all_bytes_are(region.base + pages(2), pages(6), 0));
    CHECK(can_write(region.base + pages(8) - 1) && !can_read(region.base + pages(8)));
    CHECK(region.outer.base == outer.base && region.outer.length == outer.length);
    mmk_view_close(&region, &view);
    mmk_region_dispose(&region);
    CHECK(is_free(outer.base, outer.length));
}

TEST(a_region_grows_in_place_where_the_addresses_behind_it_are_free)
{
    mmk_region region;
    /* Address space below a hole that was made here. */
    char *hole = (char *)mmk_sys_mmap(NULL, pages(64), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mmk_sys_munmap(hole, pages(64)) == 0);
    map_pages(&region, 64);
    CHECK(mmk_sys_munmap(region.base + pages(2), pages(62)) == 0);
    region.outer.length = region.reserved = pages(2);
    atomic_store(&region.length, pages(2));
    region.asked = pages(2);
    number_pages(&region);
    resize_in_place(&region, pages(10));
    CHECK(pages_are_numbered(region.base, 2) && all_bytes_are(region.base + pages(2), pages(8), 0));
    CHECK(mmk_registry_overlap((uintptr_t)region.base + pages(9), 1).base == region.base);
    mmk_region_dispose(&region);
}

TEST(a_shrunk_region_keeps_its_addresses_and_reads_zeros_when_it_grows_back)
{
    mmk_region region;
    map_pages(&region, 6);
    number_pages(&region);
    resize_in_place(&region, pages(2) + 100);
    CHECK(is_held(region.base + pages(3), pages(3)));
    CHECK(pages_are_numbered(region.base, 2) && all_bytes_are(region.base + pages(2), 100, 3));
    resize_in_place(&region, pages(6));
    CHECK(pages_are_numbered(region.base, 2) && all_bytes_are(region.base + pages(2), 100, 3));
    CHECK(all_bytes_are(region.base + pages(2) + 100, pages(4) - 100, 0));
    mmk_region_dispose(&region);
}

TEST(what_was_cut_off_within_a_read_only_page_does_not_come_back)
{
    mmk_region region;
    map_pages(&region, 3);
    number_pages(&region);
    CHECK(mmk_region_protect(&region, 0, pages(3), PROT_READ, false) == 0);
    resize_in_place(&region, pages(1) + 100);
    CHECK(!can_write(region.base + pages(1)));
    resize_in_place(&region, pages(3));
    CHECK(all_bytes_are(region.base + pages(1), 100, 2));
    CHECK(all_bytes_are(region.base + pages(1) + 100, pages(2) - 100, 0));
    mmk_region_dispose(&region);

    mmk_cover window;
    map_pages(&region, 1);
    number_pages(&region);
    CHECK(mmk_region_cover(&region, &window, 0, pages(1), PROT_NONE, false) == 0);
    resize_in_place(&region, 100);
    CHECK(mmk_region_uncover(&region, &window, false) == 0);
    resize_in_place(&region, pages(1));
    CHECK(all_bytes_are(region.base, 100, 1) && all_bytes_are(region.base + 100, pages(1) - 100, 0));
    mmk_region_dispose(&region);
}

static void cut_within_a_guard(void)
{
    mmk_region region;
    map_pages(&region, 2);
    number_pages(&region);
    CHECK(mmk_region_guard(&region, pages(1), pages(1), false) == 0);
    resize_in_place(&region, pages(1) + 100);
    CHECK(!can_read(region.base + pages(1)));
    resize_in_place(&region, pages(2));
    CHECK(mmk_region_unguard(&region, 0, pages(2)) == 0 && all_bytes_are(region.base + pages(1), pages(1), 0));
    mmk_region_dispose(&region);
}

static void cut_within_an_old_guard(void)
{
    refuse_kernel_guards();
    cut_within_a_guard();
}

TEST(cutting_within_a_guarded_page_leaves_the_process_alive)
{
    in_child(cut_within_a_guard);
    in_child(cut_within_an_old_guard);
}

TEST(a_region_grows_by_moving_and_the_old_addresses_stay_held)
{
    mmk_region region;
    mmk_request request = anonymous(pages(3), RW);
    request.guard = pages(1);
    map(&region, request);
    number_pages(&region);
    char *old = region.base;
    mmk_range outer = region.outer;
    CHECK(mmk_region_guard(&region, pages(2), pages(1), false) == 0);
    mmk_range vacated = resize(&region, pages(5));
    CHECK(region.base != old && vacated.base == outer.base && vacated.length == outer.length);
    CHECK(pages_are_numbered(region.base, 2) && !can_read(region.base + pages(2)));
    CHECK(all_bytes_are(region.base + pages(3), pages(2), 0) && can_write(region.base + pages(5) - 1));
    CHECK(is_held(region.outer.base, pages(1)) && region.base == region.outer.base + pages(1));
    CHECK(is_held(region.base + pages(5), pages(5) + pages(1)));
    CHECK(mmk_registry_overlap((uintptr_t)region.base, 1).length == pages(12));
    CHECK(mmk_registry_overlap((uintptr_t)old, 1).length == 0);
    release(vacated);
    mmk_region_dispose(&region);
}

TEST(a_region_that_was_written_to_moves_again_and_again)
{
    mmk_region region;
    map_pages(&region, 1);
    number_pages(&region);
    for (size_t count = 2; count <= 128; count++) {
        if (count > region.reserved / mmk_page_size())
            block_growth(&region);
        mmk_range vacated = resize(&region, pages(count));
        if (vacated.length)
            release(vacated);
        number_pages(&region);
    }
    CHECK(pages_are_numbered(region.base, 127));
    mmk_region_dispose(&region);
}

TEST(nobody_is_moved_who_is_looked_at_or_used)
{
    mmk_region region;
    mmk_view view;
    mmk_range vacated;
    mmk_request request = anonymous(pages(3), RW);
    request.guard = pages(1);
    map(&region, request);
    number_pages(&region);
    CHECK(mmk_view_open(&region, &view, 0, 1, false) == 0);
    CHECK(mmk_region_resize(&region, pages(4), &vacated) == -MMK_EPINNED && vacated.length == 0);
    resize_in_place(&region, pages(2));
    resize_in_place(&region, 1);
    CHECK(region.base[0] == 1);
    mmk_view_close(&region, &view);
    CHECK(mmk_region_enter(&region) == 0);
    CHECK(mmk_region_resize(&region, pages(5), &vacated) == -MMK_EPINNED);
    resize_in_place(&region, pages(3));
    CHECK(mmk_region_resize(&region, pages(2), &vacated) == -MMK_EPINNED);
    mmk_region_leave(&region);
    mmk_region_dispose(&region);
}

TEST(what_is_looked_at_is_not_cut_off)
{
    mmk_region region;
    mmk_view view;
    mmk_range vacated;
    map(&region, anonymous(pages(2) + 100, RW));
    number_pages(&region);
    CHECK(mmk_view_open(&region, &view, pages(1), 10, false) == 0);
    CHECK(mmk_region_resize(&region, pages(1) + 9, &vacated) == -MMK_EPINNED);
    CHECK(mmk_region_length(&region) == pages(3) && region.asked == pages(2) + 100);
    resize_in_place(&region, pages(1) + 10);
    CHECK(all_bytes_are(region.base + pages(1), 10, 2));
    mmk_view_close(&region, &view);
    mmk_region_dispose(&region);

    /* A view may look at all that is committed, also behind what was asked for. */
    map(&region, anonymous(pages(2) + 100, RW));
    number_pages(&region);
    CHECK(mmk_view_open(&region, &view, pages(2) + 200, 10, false) == 0);
    CHECK(mmk_region_resize(&region, pages(2), &vacated) == -MMK_EPINNED);
    CHECK(all_bytes_are(region.base + pages(2) + 200, 10, 3));
    mmk_view_close(&region, &view);
    mmk_region_dispose(&region);
}

TEST(a_size_that_cannot_be_is_refused_and_nothing_changes)
{
    mmk_region region;
    mmk_range vacated;
    static char before[sizeof maps_text];
    map_pages(&region, 2);
    number_pages(&region);
    strcpy(before, read_maps());
    CHECK(mmk_region_resize(&region, 0, &vacated) == -EINVAL);
    CHECK(mmk_region_resize(&region, SIZE_MAX, &vacated) == -ENOMEM);
    CHECK(mmk_region_resize(&region, SIZE_MAX / 4, &vacated) == -ENOMEM);
    CHECK(mmk_region_resize(&region, (size_t)1 << 47, &vacated) == -ENOMEM);
    CHECK(maps_are(before) && pages_are_numbered(region.base, 2));
    CHECK(region.asked == pages(2) && region.reserved == pages(2));
    mmk_region_dispose(&region);
}

TEST(protections_locks_and_guards_stay_with_their_pages_and_the_grown_part_has_none)
{
    mmk_region region;
    mmk_request request = anonymous(pages(4), RW);
    request.reserve = pages(8);
    map(&region, request);
    size_t before = locked_bytes();
    CHECK(mmk_region_protect(&region, pages(1), pages(3), PROT_READ, false) == 0);
    if (!UNDER_SANITIZER)
        CHECK(mmk_region_lock(&region, pages(2), pages(2)) == 0);
    CHECK(mmk_region_guard(&region, 0, pages(1), false) == 0);
    resize_in_place(&region, pages(3));
    resize_in_place(&region, pages(6));
    CHECK(!can_read(region.base) && !can_write(region.base + pages(1)) && !can_write(region.base + pages(2)));
    CHECK(can_write(region.base + pages(3)) && can_write(region.base + pages(5)));
    CHECK(mmk_region_prot_of_range(&region, pages(3), pages(3)) == RW);
    if (!UNDER_SANITIZER)
        CHECK(locked_bytes() - before == pages(1));
    /* What was locked before it was cut off is not taken for locked now. */
    CHECK(mmk_region_lock(&region, pages(3), pages(1)) == 0);
    if (!UNDER_SANITIZER)
        CHECK(locked_bytes() - before == pages(2));
    mmk_region_dispose(&region);
}

TEST(a_cover_does_not_come_back_over_pages_that_were_cut_off)
{
    mmk_region region;
    mmk_cover window;
    map_pages(&region, 4);
    CHECK(mmk_region_protect(&region, 0, pages(4), PROT_READ, false) == 0);
    CHECK(mmk_region_cover(&region, &window, pages(1), pages(3), RW, false) == 0);
    resize_in_place(&region, pages(2));
    resize_in_place(&region, pages(4));
    for (size_t page = 0; page < 4; page++) {
        bool writable = mmk_region_prot_of_range(&region, pages(page), pages(1)) & PROT_WRITE;
        CHECK(writable == can_write(region.base + pages(page)) && writable == (page == 1));
    }
    CHECK(mmk_access_store(&region, pages(3), "x", 1, &fault) == -EFAULT);
    CHECK(mmk_region_uncover(&region, &window, false) == 0);
    CHECK(!can_write(region.base + pages(1)));
    mmk_region_dispose(&region);
}

TEST(a_file_that_ended_within_the_region_ends_at_its_new_end)
{
    mmk_region region;
    int fd = numbered_file(pages(3));
    mmk_request request = file(fd, pages(2), MAP_SHARED);
    request.file_offset = pages(1);
    request.reserve = pages(16);
    map(&region, request);
    resize_in_place(&region, pages(5) + 7);
    CHECK(size_of(fd) == pages(6) + 7);
    CHECK(all_bytes_are(region.base, pages(1), 2) && all_bytes_are(region.base + pages(2), pages(3), 0));
    resize_in_place(&region, pages(1) + 9);
    CHECK(size_of(fd) == pages(2) + 9);
    resize_in_place(&region, pages(2));
    CHECK(all_bytes_are(region.base + pages(1), 9, 3) && all_bytes_are(region.base + pages(1) + 9, pages(1) - 9, 0));
    mmk_region_dispose(&region);
    close(fd);
}

TEST(a_file_that_goes_on_behind_the_region_keeps_its_size)
{
    mmk_region region;
    int fd = numbered_file(pages(8));
    map(&region, file(fd, pages(4), MAP_SHARED));
    resize_in_place(&region, pages(2));
    CHECK(size_of(fd) == pages(8));
    mmk_range vacated = resize(&region, pages(6));
    CHECK(size_of(fd) == pages(8) && pages_are_numbered(region.base, 6));
    if (vacated.length)
        release(vacated);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(a_file_region_moves)
{
    mmk_region region;
    int fd = numbered_file(pages(3));
    mmk_request request = file(fd, pages(3), MAP_SHARED);
    request.guard = pages(1);
    map(&region, request);
    release(resize(&region, pages(7)));
    CHECK(pages_are_numbered(region.base, 3) && size_of(fd) == pages(7));
    memset(region.base + pages(3), 'x', pages(4));
    char byte;
    CHECK(pread(fd, &byte, 1, (off_t)pages(7) - 1) == 1 && byte == 'x');
    release(resize(&region, pages(20)));
    CHECK(pages_are_numbered(region.base, 3) && region.base[pages(7) - 1] == 'x' && region.base[pages(20) - 1] == 0);
    mmk_region_dispose(&region);
    close(fd);
}

TEST(a_file_sealed_against_growing_or_shrinking_says_so_and_nothing_changes)
{
    mmk_region region;
    mmk_range vacated;
    int fd = memory_file(pages(2));
    map(&region, file(fd, pages(2), MAP_SHARED));
    number_pages(&region);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) == 0);
    CHECK(mmk_region_resize(&region, pages(4), &vacated) == -EPERM);
    CHECK(mmk_region_resize(&region, pages(1), &vacated) == -EPERM);
    CHECK(mmk_region_length(&region) == pages(2) && pages_are_numbered(region.base, 2));
    mmk_region_dispose(&region);
    close(fd);
}

static void shrink_a_sealed_region(void)
{
    mmk_region region;
    mmk_range vacated;
    int fd = numbered_file(pages(4));
    map(&region, file(fd, pages(4), MAP_SHARED));
    int error = mmk_region_seal(&region);
    if (error == -ENOSYS)
        SKIP("no mseal(2): Linux 6.10");
    CHECK(mmk_region_resize(&region, pages(2), &vacated) == -EPERM);
    CHECK(size_of(fd) == pages(4) && mmk_region_length(&region) == pages(4));
    CHECK(pages_are_numbered(region.base, 4));
}

TEST(shrinking_a_sealed_region_is_refused_and_its_file_keeps_its_contents)
{
    in_child(shrink_a_sealed_region);
}

TEST(what_cannot_be_resized_is_refused)
{
    mmk_region region;
    mmk_range vacated;
    int fd = numbered_file(pages(4));
    map(&region, file(fd, pages(2), MAP_PRIVATE));
    CHECK(mmk_region_resize(&region, pages(4), &vacated) == -MMK_EUNSUPPORTED);
    CHECK(mmk_region_resize(&region, pages(1), &vacated) == -MMK_EUNSUPPORTED);
    CHECK(size_of(fd) == pages(4) && pages_are_numbered(region.base, 2));
    mmk_region_dispose(&region);
    close(fd);

    mmk_request request = shared_anonymous(pages(2));
    request.reserve = pages(4);
    map(&region, request);
    number_pages(&region);
    CHECK(mmk_region_resize(&region, pages(4), &vacated) == -MMK_EUNSUPPORTED);
    CHECK(pages_are_numbered(region.base, 2) && mmk_region_length(&region) == pages(2));
    resize_in_place(&region, pages(1));
    CHECK(pages_are_numbered(region.base, 1));
    mmk_region_dispose(&region);
}

TEST(parts_that_differ_move_as_they_are)
{
    mmk_region region;
    mmk_request request = anonymous(pages(5), RW);
    request.guard = pages(1);
    map(&region, request);
    number_pages(&region);
    CHECK(mmk_region_protect(&region, pages(1), pages(1), PROT_READ, false) == 0);
    CHECK(mmk_region_advise(&region, pages(3), pages(1), 16 /* DONTDUMP */) == 0);
    release(resize(&region, pages(60)));
    CHECK(pages_are_numbered(region.base, 5));
    CHECK(can_write(region.base) && !can_write(region.base + pages(1)) && can_write(region.base + pages(59)));
    mmk_region_dispose(&region);
}

static void move_what_is_locked(void)
{
    static char before[sizeof maps_text];
    mmk_region region;
    mmk_range vacated;
    mmk_request request = anonymous(pages(4), RW);
    request.guard = pages(1);
    map(&region, request);
    number_pages(&region);
    CHECK(mmk_region_lock(&region, 0, pages(1)) == 0);
    strcpy(before, read_maps());
    CHECK(mmk_region_resize(&region, pages(60), &vacated) == -MMK_EUNSUPPORTED && vacated.length == 0);
    CHECK(maps_are(before) && pages_are_numbered(region.base, 4));
    mmk_region_dispose(&region);
}

TEST(locked_pages_are_not_moved_and_nothing_changes)
{
    in_child(move_what_is_locked);
}

static void grow_beyond_the_limit(void)
{
    static char before[sizeof maps_text];
    mmk_region region, filed;
    mmk_range vacated;
    int fd = memory_file(pages(64));
    mmk_request request = file(fd, pages(64), MAP_SHARED);
    request.guard = pages(1);
    map(&filed, request);
    map_pages(&region, 64);
    block_growth(&region);
    number_pages(&region);
    number_pages(&filed);
    limit(RLIMIT_AS, status_bytes("VmSize:") + pages(100));
    strcpy(before, read_maps());
    CHECK(mmk_region_resize(&region, pages(1000), &vacated) == -ENOMEM && vacated.length == 0);
    CHECK(mmk_region_resize(&region, pages(80), &vacated) == -ENOMEM && vacated.length == 0);
    CHECK(mmk_region_resize(&filed, pages(1000), &vacated) == -ENOMEM && vacated.length == 0);
    CHECK(maps_are(before) && size_of(fd) == pages(64));
    CHECK(pages_are_numbered(region.base, 64) && pages_are_numbered(filed.base, 64));
    CHECK(mmk_region_length(&region) == pages(64) && region.asked == pages(64) && filed.asked == pages(64));
    resize_in_place(&region, pages(1));
    resize_in_place(&region, pages(64));
    mmk_region_dispose(&filed);
    mmk_region_dispose(&region);
}

TEST(a_resize_beyond_RLIMIT_AS_is_refused_and_changes_nothing)
{
    if (UNDER_SANITIZER)
        SKIP("the sanitizer itself needs address space");
    in_child(grow_beyond_the_limit);
}

static void move_without_dontunmap(void)
{
    refuse(SYS_mremap, 3, DONTUNMAP, DONTUNMAP, EINVAL);
    a_region_grows_by_moving_and_the_old_addresses_stay_held();
    a_file_region_moves();
}

TEST(regions_move_without_MREMAP_DONTUNMAP_too)
{
    in_child(move_without_dontunmap);
}

/* Somebody maps a page at the addresses that the region has just left, before they can be held again. */
static char *left, *intruder;

static int intrude(const struct seccomp_data *call)
{
    if (call->nr == SYS_mremap)
        return call->args[3] & DONTUNMAP ? EINVAL : 0;
    if (call->args[0] == (uintptr_t)left && (call->args[3] & MAP_FIXED_NOREPLACE) && !intruder) {
        intruder = mmap(left, pages(1), RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        CHECK(intruder == left);
        intruder[0] = 'x';
    }
    return 0;
}

static void move_while_somebody_takes_the_old_place(void)
{
    mmk_region region;
    mmk_request request = anonymous(pages(3), RW);
    request.guard = pages(1);
    map(&region, request);
    number_pages(&region);
    left = region.base;
    watch_calls(intrude, (const long[4]){SYS_mmap, SYS_mremap, SYS_mremap, SYS_mremap});
    atomic_store(&watched.armed, true);
    mmk_range vacated = resize(&region, pages(5));
    atomic_store(&watched.armed, false);
    CHECK(intruder && region.base != left && pages_are_numbered(region.base, 3));
    if (vacated.length)
        CHECK(mmk_sys_munmap(vacated.base, vacated.length) == 0);
    CHECK(can_read(intruder) && intruder[0] == 'x');
}

TEST(whoever_takes_the_old_addresses_meanwhile_keeps_them)
{
    if (UNDER_SANITIZER)
        SKIP("the sanitizer maps memory of its own");
    in_child(move_while_somebody_takes_the_old_place);
}

TEST(a_region_of_huge_pages_moves_and_the_old_addresses_stay_held)
{
    enum { HUGE = 2 << 20 };
    mmk_region region;
    mmk_request request = anonymous(HUGE, RW);
    request.flags |= MAP_HUGETLB | (21 << MAP_HUGE_SHIFT);
    request.granule = HUGE;
    request.guard = pages(1);
    int error = mmk_region_map(&region, &request);
    if (error)
        SKIP("no free huge pages of 2 MiB: sysctl vm.nr_hugepages");
    region.base[HUGE - 1] = 'x';
    mmk_range vacated;
    error = mmk_region_resize(&region, HUGE + 1, &vacated);
    if (error == 0) {
        CHECK(mmk_region_length(&region) == 2 * HUGE && region.base[HUGE - 1] == 'x' && region.base[HUGE] == 0);
        CHECK((uintptr_t)region.base % HUGE == 0);
        release(vacated);
        CHECK(mmk_region_resize(&region, HUGE, &vacated) == 0 && is_held(region.base + HUGE, HUGE));
    }
    CHECK(error == 0 || error == -ENOMEM);
    CHECK(mmk_region_close(&region) == 0 && is_held(region.outer.base, region.outer.length));
    mmk_region_dispose(&region);
}

static void resize_with_file(mmk_region *region, int fd, size_t asked)
{
    mmk_range vacated = {(char *)1, 1};
    CHECK(mmk_region_resize_with_file(region, asked, &vacated) == 0);
    CHECK(region->asked == asked && mmk_region_length(region) == mmk_round_up(asked, mmk_page_size()));
    CHECK(size_of(fd) == region->file_offset + asked);
    if (vacated.length)
        release(vacated);
}

TEST(a_file_that_is_resized_with_its_region_ends_where_the_region_does)
{
    mmk_region region;
    int fd = numbered_file(pages(8));
    mmk_request request = file(fd, pages(3), MAP_SHARED);
    request.file_offset = pages(1);
    map(&region, request);
    resize_with_file(&region, fd, pages(2) + 100);
    CHECK(ftruncate(fd, (off_t)pages(8)) == 0);
    resize_with_file(&region, fd, pages(2) + 100);
    CHECK(ftruncate(fd, (off_t)pages(8)) == 0);
    resize_with_file(&region, fd, pages(3) - 1);
    CHECK(ftruncate(fd, (off_t)pages(8)) == 0);
    block_growth(&region);
    resize_with_file(&region, fd, pages(5));
    CHECK(can_write(region.base + pages(5) - 1));
    resize_with_file(&region, fd, pages(6));
    mmk_region_dispose(&region);
    close(fd);
}

TEST(a_file_that_cannot_be_cut_stays_as_long_as_it_was_and_so_does_its_region)
{
    size_t lengths[] = {pages(1), pages(3), pages(5)};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        mmk_region region;
        mmk_range vacated;
        int fd = memory_file(pages(8));
        map(&region, file(fd, pages(3), MAP_SHARED));
        number_pages(&region);
        CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
        block_growth(&region);
        CHECK(mmk_region_resize_with_file(&region, lengths[i], &vacated) == -EPERM);
        if (vacated.length)
            release(vacated);
        CHECK(region.asked == pages(3) && mmk_region_length(&region) == pages(3) && size_of(fd) == pages(8));
        CHECK(pages_are_numbered(region.base, 3) && can_write(region.base + pages(3) - 1));
        /* It grew by moving, and what it got is taken back. */
        CHECK(lengths[i] < pages(5) || !can_read(region.base + pages(3)));
        mmk_region_dispose(&region);
        close(fd);
    }
}

TEST(memory_without_a_file_is_resized_with_it_as_without)
{
    mmk_region region;
    mmk_range vacated;
    map_pages(&region, 3);
    CHECK(mmk_region_resize_with_file(&region, pages(2), &vacated) == 0);
    CHECK(mmk_region_resize_with_file(&region, pages(2), &vacated) == 0);
    CHECK(region.asked == pages(2));
    CHECK(mmk_region_close(&region) == 0);
    CHECK(mmk_region_resize_with_file(&region, pages(1), &vacated) == -MMK_ECLOSED);
    mmk_region_dispose(&region);
}

int main(void)
{
    RUN(a_region_grows_inside_its_reservation_under_live_views);
    RUN(a_region_grows_in_place_where_the_addresses_behind_it_are_free);
    RUN(a_shrunk_region_keeps_its_addresses_and_reads_zeros_when_it_grows_back);
    RUN(a_region_grows_by_moving_and_the_old_addresses_stay_held);
    RUN(nobody_is_moved_who_is_looked_at_or_used);
    RUN(a_size_that_cannot_be_is_refused_and_nothing_changes);
    RUN(protections_locks_and_guards_stay_with_their_pages_and_the_grown_part_has_none);
    RUN(a_file_that_ended_within_the_region_ends_at_its_new_end);
    RUN(a_file_that_goes_on_behind_the_region_keeps_its_size);
    RUN(a_file_region_moves);
    RUN(a_file_sealed_against_growing_or_shrinking_says_so_and_nothing_changes);
    RUN(what_cannot_be_resized_is_refused);
    RUN(parts_that_differ_move_as_they_are);
    RUN(locked_pages_are_not_moved_and_nothing_changes);
    RUN(a_resize_beyond_RLIMIT_AS_is_refused_and_changes_nothing);
    RUN(regions_move_without_MREMAP_DONTUNMAP_too);
    RUN(a_region_of_huge_pages_moves_and_the_old_addresses_stay_held);
    RUN(what_is_looked_at_is_not_cut_off);
    RUN(what_was_cut_off_within_a_read_only_page_does_not_come_back);
    RUN(cutting_within_a_guarded_page_leaves_the_process_alive);
    RUN(a_region_that_was_written_to_moves_again_and_again);
    RUN(a_cover_does_not_come_back_over_pages_that_were_cut_off);
    RUN(shrinking_a_sealed_region_is_refused_and_its_file_keeps_its_contents);
    RUN(whoever_takes_the_old_addresses_meanwhile_keeps_them);
    RUN(a_file_that_is_resized_with_its_region_ends_where_the_region_does);
    RUN(a_file_that_cannot_be_cut_stays_as_long_as_it_was_and_so_does_its_region);
    RUN(memory_without_a_file_is_resized_with_it_as_without);
    return 0;
}
